//! The counter stream: bytes that say themselves where they belong.
//!
//! Each eight bytes are a mix of their position and the stream's seed, so a byte that is lost, doubled, out of place or of
//! another stream shows.

use thiserror::Error;

/// A position in the stream of a seed: writes what comes next, or checks what came.
#[derive(Clone, Debug)]
pub struct CounterStream {
    seed: u64,
    position: u64,
}

/// The first byte that is not what the stream has there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("byte {position} of the stream is {found:#04x} and not {expected:#04x}")]
pub struct Mismatch {
    /// Its place in the stream.
    pub position: u64,
    /// What the stream has there.
    pub expected: u8,
    /// What came.
    pub found: u8,
}

impl CounterStream {
    /// The beginning of the stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    /// The bytes written or checked so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on by `len` bytes.
    pub fn skip(&mut self, len: usize) {
        self.position += len as u64;
    }

    /// Writes the next bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        let (front, rest) = out.split_at_mut(self.to_next_word().min(out.len()));
        self.fill_part(front);
        let (words, back) = rest.as_chunks_mut();
        for (word, index) in words.iter_mut().zip(self.position / WORD_BYTES as u64..) {
            *word = self.word(index);
        }
        self.position += (words.len() * WORD_BYTES) as u64;
        self.fill_part(back);
    }

    /// Checks that `bytes` come next.
    ///
    /// # Errors
    /// The first byte that does not; the position then stays before `bytes`.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        let (front, rest) = bytes.split_at(self.to_next_word().min(bytes.len()));
        let (words, back) = rest.as_chunks();
        let first_index = self.position.div_ceil(WORD_BYTES as u64);
        let are_next = words.iter().zip(first_index..).all(|(word, index)| *word == self.word(index));
        let back_at = self.position + (bytes.len() - back.len()) as u64;
        if !(are_next && self.part(self.position, front.len()) == *front && self.part(back_at, back.len()) == *back) {
            return Err(self.first_mismatch(bytes));
        }
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn first_mismatch(&self, bytes: &[u8]) -> Mismatch {
        let mut expected = vec![0; bytes.len()];
        self.clone().fill(&mut expected);
        let at = bytes.iter().zip(&expected).position(|(found, expected)| found != expected).unwrap_or_default();
        Mismatch { position: self.position + at as u64, expected: expected[at], found: bytes[at] }
    }

    /// Bytes until a word begins.
    fn to_next_word(&self) -> usize {
        self.position.wrapping_neg() as usize % WORD_BYTES
    }

    fn fill_part(&mut self, out: &mut [u8]) {
        out.copy_from_slice(&self.part(self.position, out.len()));
        self.position += out.len() as u64;
    }

    /// The `len` bytes from `position` on, which are within one word.
    fn part(&self, position: u64, len: usize) -> Vec<u8> {
        let skip = (position % WORD_BYTES as u64) as usize;
        self.word(position / WORD_BYTES as u64)[skip..skip + len].to_vec()
    }

    fn word(&self, index: u64) -> [u8; WORD_BYTES] {
        mix(self.seed, index).to_be_bytes()
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 18).
fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_mul(0xd1b5_4a32_d192_ed03).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const WORD_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_length_make_the_same_stream() {
        let whole = bytes(9, 1_000);
        let mut stream = CounterStream::new(9);
        let mut pieces = vec![0; 1_000];
        let mut rest = &mut pieces[..];
        for len in [1, 7, 8, 9, 100, 3, 872] {
            let (piece, later) = rest.split_at_mut(len);
            stream.fill(piece);
            rest = later;
        }
        assert_eq!(pieces, whole);
    }

    #[test]
    fn any_changed_byte_is_found_where_it_is() {
        let mut changed = bytes(9, 100);
        for at in 0..changed.len() {
            changed[at] ^= 1;
            let found = CounterStream::new(9).check(&changed).unwrap_err();
            assert_eq!((found.position, found.found ^ found.expected), (at as u64, 1));
            changed[at] ^= 1;
        }
        assert_eq!(CounterStream::new(9).check(&changed), Ok(()));
    }

    #[test]
    fn another_place_or_another_seed_does_not_pass() {
        let stream = bytes(9, 1 << 20);
        assert!(CounterStream::new(8).check(&stream).is_err());
        assert!(CounterStream::new(9).check(&stream[8..]).is_err());
        assert!(CounterStream::new(9).check(&stream[1 << 19..]).is_err());
    }

    fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        CounterStream::new(seed).fill(&mut out);
        out
    }
}
