//! The incoming half of a flow: chunks in any order, once, twice or overlapping; bytes out in order, once.
//!
//! Memory is bounded by the credit that the flow has given: a chunk beyond it is an error of the sender's, and what a chunk
//! costs besides its bytes is counted too.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use bytes::{Bytes, BytesMut};
use thiserror::Error;

/// The incoming half of a flow.
#[derive(Debug)]
pub struct Reorder {
    /// In order, not yet read.
    ready: VecDeque<Bytes>,
    /// Behind `ready`: small chunks, put together so that each doesn't cost a handle.
    ready_small: BytesMut,
    ready_bytes: u64,
    /// Beyond a hole; disjoint.
    waiting_by_offset: BTreeMap<u64, Bytes>,
    waiting_bytes: u64,
    /// The first byte that has not come in order.
    delivered: u64,
    /// The first byte that the application has not read.
    consumed: u64,
    /// The end of the highest byte that has come.
    highest: u64,
    /// The flow's end, once known.
    end: Option<u64>,
    /// The offset up to which the sender may send.
    limit: u64,
}

/// A sender that broke the rules.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum ReorderError {
    /// A chunk beyond the credit.
    #[error("a chunk lies beyond the flow's credit")]
    BeyondCredit,
    /// Two ends, or bytes behind the end.
    #[error("the flow's end moved")]
    EndMoved,
    /// More pieces behind a hole than whole chunks would make: the chunk is left as if it never came.
    #[error("too many pieces wait behind a hole")]
    TooManyPieces,
}

/// What a stored chunk costs besides its bytes: a map node and a handle on the datagram's memory.
pub const CHUNK_OVERHEAD_BYTES: u64 = 96;

/// Chunks that hold less are copied, so that a few bytes don't hold a whole datagram's memory.
const COPY_BELOW_BYTES: usize = 512;

/// So many may wait as they came. Beyond it they are copied: what arrived in one system call is one piece of memory, up to 64 KiB, and each chunk
/// that waits in it keeps all of it. An application that keeps up leaves no more than the driver works in at once, which cost nothing so.
const UNCOPIED_MAX: usize = 64;

/// What is put together of small chunks, at most.
const BLOCK_BYTES: usize = 64 * 1024;

/// Pieces that may wait behind holes for each KiB of credit in use, and at least. Chunks of honest senders hold about 1 KiB or end a
/// write; this bounds what a sender of one-byte chunks can cost.
const WAITING_PER_KIB: u64 = 4;
const WAITING_MIN: u64 = 256;

impl Reorder {
    /// A flow whose sender may send `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            ready: VecDeque::new(),
            ready_small: BytesMut::new(),
            ready_bytes: 0,
            waiting_by_offset: BTreeMap::new(),
            waiting_bytes: 0,
            delivered: 0,
            consumed: 0,
            highest: 0,
            end: None,
            limit,
        }
    }

    /// Takes a chunk in; gives whether there is more to read than before.
    ///
    /// # Errors
    /// If the sender broke the rules; nothing has changed then.
    pub fn insert(&mut self, offset: u64, bytes: Bytes, fin: bool) -> Result<bool, ReorderError> {
        let range = offset..offset + bytes.len() as u64;
        if range.end > self.limit {
            return Err(ReorderError::BeyondCredit);
        }
        if self.end.is_some_and(|end| range.end > end || (fin && range.end != end)) || (fin && range.end < self.highest) {
            return Err(ReorderError::EndMoved);
        }
        let beyond_hole = range.start > self.delivered;
        if beyond_hole && self.waiting_by_offset.len() as u64 > WAITING_MIN + WAITING_PER_KIB * ((self.limit - self.consumed) >> 10) {
            return Err(ReorderError::TooManyPieces);
        }
        let ended = fin && self.end.is_none();
        if fin {
            self.end = Some(range.end);
        }
        self.highest = self.highest.max(range.end);
        let before = self.delivered;
        let is_crowded = self.ready.len() + self.waiting_by_offset.len() >= UNCOPIED_MAX;
        if range.start <= self.delivered && self.waiting_by_offset.is_empty() {
            self.deliver(range, bytes, is_crowded);
        } else {
            self.store(range, bytes, is_crowded);
            while let Some(entry) = self.waiting_by_offset.first_entry()
                && *entry.key() <= self.delivered
            {
                let (start, bytes) = entry.remove_entry();
                self.waiting_bytes -= bytes.len() as u64;
                self.deliver(start..start + bytes.len() as u64, bytes, false);
            }
        }
        Ok(self.delivered > before || (ended && self.is_complete()))
    }

    /// Takes the next bytes out, at most `max` of them.
    pub fn read(&mut self, max: usize) -> Option<Bytes> {
        if self.ready.is_empty() && !self.ready_small.is_empty() {
            self.ready.push_back(self.ready_small.split().freeze());
        }
        let front = self.ready.front_mut()?;
        let bytes = if front.len() <= max { self.ready.pop_front().expect("front is there") } else { front.split_to(max) };
        self.ready_bytes -= bytes.len() as u64;
        self.consumed += bytes.len() as u64;
        Some(bytes)
    }

    /// Whether everything up to the flow's end has been read.
    pub fn is_consumed(&self) -> bool {
        self.end == Some(self.consumed)
    }

    /// Whether everything up to the flow's end has come.
    pub fn is_complete(&self) -> bool {
        self.end == Some(self.delivered)
    }

    /// Whether there is something to read, the end included.
    pub fn is_readable(&self) -> bool {
        self.ready_bytes > 0 || self.is_consumed()
    }

    /// The first byte that the application has not read.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// The end of the highest byte that has come.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// Bytes in order that wait for the application.
    pub fn ready_bytes(&self) -> u64 {
        self.ready_bytes
    }

    /// The memory in use, bookkeeping included.
    pub fn memory_bytes(&self) -> u64 {
        let chunks = (self.ready.len() + self.waiting_by_offset.len()) as u64;
        self.ready_bytes + self.waiting_bytes + chunks * CHUNK_OVERHEAD_BYTES
    }

    /// The offset up to which the sender may send.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Raises the limit.
    pub fn raise_limit(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    /// Lets go of what waits behind holes: the flow was aborted. What is in order can still be read.
    pub fn give_up_holes(&mut self) {
        self.waiting_by_offset.clear();
        self.waiting_bytes = 0;
    }

    /// Appends what of `range` is new to what is in order; the range must reach back to it.
    fn deliver(&mut self, range: Range<u64>, mut bytes: Bytes, copies: bool) {
        if range.end <= self.delivered {
            return;
        }
        let new = bytes.split_off((self.delivered - range.start) as usize);
        self.delivered = range.end;
        self.ready_bytes += new.len() as u64;
        if copies || new.len() < COPY_BELOW_BYTES {
            self.ready_small.extend_from_slice(&new);
            if self.ready_small.len() >= BLOCK_BYTES {
                self.ready.push_back(self.ready_small.split().freeze());
            }
            return;
        }
        if !self.ready_small.is_empty() {
            self.ready.push_back(self.ready_small.split().freeze());
        }
        self.ready.push_back(new);
    }

    /// Keeps what of `range` neither is in order nor waits already.
    fn store(&mut self, range: Range<u64>, bytes: Bytes, copies: bool) {
        let mut at = range.start.max(self.delivered);
        if let Some((&start, waiting)) = self.waiting_by_offset.range(..=at).next_back() {
            at = at.max(start + waiting.len() as u64);
        }
        while at < range.end {
            let gap_end = self.waiting_by_offset.range(at..range.end).next().map_or(range.end, |(&start, _)| start);
            if gap_end > at {
                let piece = bytes.slice((at - range.start) as usize..(gap_end - range.start) as usize);
                self.waiting_bytes += piece.len() as u64;
                self.waiting_by_offset.insert(at, if copies { Bytes::copy_from_slice(&piece) } else { compact(piece) });
            }
            let Some(next) = self.waiting_by_offset.get(&gap_end) else { break };
            at = gap_end + next.len() as u64;
        }
    }
}

fn compact(bytes: Bytes) -> Bytes {
    if bytes.len() < COPY_BELOW_BYTES { Bytes::copy_from_slice(&bytes) } else { bytes }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_the_order_the_bytes_come_out_as_they_went_in(len in 1usize..5000, cuts in prop::collection::vec((any::<prop::sample::Index>(), 1usize..900), 1..60)) {
            let whole: Bytes = (0..len).map(|place| ((place * 7) >> 2) as u8).collect::<Vec<_>>().into();
            let mut reorder = Reorder::new(len as u64);
            let mut out = Vec::new();
            let sequential = (0..len).step_by(600).map(|start| (start, 600));
            for (start, piece_len) in cuts.into_iter().map(|(at, piece_len)| (at.index(len), piece_len)).chain(sequential) {
                let end = (start + piece_len).min(len);
                reorder.insert(start as u64, whole.slice(start..end), end == len).expect("within the rules");
                prop_assert!(reorder.waiting_bytes + reorder.ready_bytes <= len as u64);
                if start % 3 == 0 {
                    while let Some(bytes) = reorder.read(700) {
                        out.extend_from_slice(&bytes);
                    }
                }
            }
            while let Some(bytes) = reorder.read(usize::MAX) {
                out.extend_from_slice(&bytes);
            }
            prop_assert_eq!(out, whole);
            prop_assert!(reorder.is_consumed());
            prop_assert_eq!(reorder.memory_bytes(), 0);
        }
    }

    #[test]
    fn a_sender_beyond_its_credit_or_its_end_is_caught() {
        let mut reorder = Reorder::new(10);
        assert_eq!(reorder.insert(5, Bytes::from_static(b"123456"), false), Err(ReorderError::BeyondCredit));
        assert_eq!(reorder.insert(5, Bytes::from_static(b"12345"), false), Ok(false));
        assert_eq!(reorder.insert(0, Bytes::from_static(b"12"), true), Err(ReorderError::EndMoved));
        assert_eq!(reorder.insert(5, Bytes::from_static(b"12345"), true), Ok(false));
        assert_eq!(reorder.insert(0, Bytes::from_static(b"12345"), false), Ok(true));
        assert!(reorder.is_complete() && !reorder.is_consumed());
    }

    #[test]
    fn one_byte_chunks_behind_a_hole_meet_a_bound() {
        let mut reorder = Reorder::new(256 * 1024);
        let refused = (1..100_000).step_by(2).find(|&offset| reorder.insert(offset, Bytes::from_static(b"x"), false).is_err());
        assert!(refused.is_some());
        assert!(reorder.memory_bytes() < 256 * 1024, "{}", reorder.memory_bytes());
    }

    #[test]
    fn chunks_that_wait_do_not_keep_what_arrived_with_them() {
        let limit = 256 * 1024;
        for first in [0, 1] {
            let kept = Arc::new(AtomicUsize::new(0));
            let mut reorder = Reorder::new(limit);
            for offset in (first..limit - 512).step_by(512) {
                let arrived = Bytes::from_owner(Arrived::new(&kept));
                reorder.insert(offset, arrived.slice(1000..1512), false).expect("within the rules");
            }
            assert!(kept.load(Relaxed) <= UNCOPIED_MAX * 65536, "{} with a hole of {first}", kept.load(Relaxed));
            assert!(reorder.memory_bytes() >= limit - 1024);
        }
    }

    /// What a system call received.
    struct Arrived(Vec<u8>, Arc<AtomicUsize>);

    impl Arrived {
        fn new(kept: &Arc<AtomicUsize>) -> Self {
            kept.fetch_add(65536, Relaxed);
            Self(vec![7; 65536], kept.clone())
        }
    }

    impl AsRef<[u8]> for Arrived {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Arrived {
        fn drop(&mut self) {
            self.1.fetch_sub(65536, Relaxed);
        }
    }
}
