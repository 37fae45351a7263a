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

    /// Writes the next bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        self.each_word(out.len(), |range, word| out[range].copy_from_slice(word));
        self.position += out.len() as u64;
    }

    /// Checks that `bytes` come next.
    ///
    /// # Errors
    /// The first byte that does not; the position then stays before `bytes`.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        let mut first = None;
        self.each_word(bytes.len(), |range, word| {
            if first.is_none() && bytes[range.clone()] != *word {
                first = range.clone().zip(word).find(|&(at, &expected)| bytes[at] != expected).map(|(at, &expected)| (at, expected));
            }
        });
        if let Some((at, expected)) = first {
            return Err(Mismatch { position: self.position + at as u64, expected, found: bytes[at] });
        }
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Calls `each` with the places of every word or part of one in the next `len` bytes, and its bytes.
    fn each_word(&self, len: usize, mut each: impl FnMut(std::ops::Range<usize>, &[u8])) {
        let mut at = 0;
        while at < len {
            let position = self.position + at as u64;
            let skip = (position % WORD_BYTES as u64) as usize;
            let end = len.min(at + WORD_BYTES - skip);
            let word = mix(self.seed, position / WORD_BYTES as u64).to_be_bytes();
            each(at..end, &word[skip..skip + end - at]);
            at = end;
        }
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
