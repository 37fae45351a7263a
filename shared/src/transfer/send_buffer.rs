//! The outgoing half of a flow: what the application wrote, until the other end has it.
//!
//! Bytes enter by [`SendBuffer::write`] and leave as [`Piece`]s, lost ones first, cut to what the path that asks can take
//! now. They stay until [`SendBuffer::on_acked`] covers them. Which path carries a piece is the scheduler's business.

use std::{collections::VecDeque, ops::Range};

use bytes::BufMut;

use super::ranges::RangeSet;
use crate::ids::FlowId;

/// A slice of a flow that one datagram carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The flow.
    pub flow: FlowId,
    /// The place of the first byte in the flow.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the flow ends behind these bytes.
    pub fin: bool,
}

/// The outgoing half of a flow.
#[derive(Debug)]
pub struct SendBuffer {
    /// What was written and is not yet acknowledged in one run from the start: equal blocks, the first of which begins at `origin` and holds
    /// `base`.
    blocks: VecDeque<Vec<u8>>,
    origin: u64,
    /// Everything before is with the other end.
    base: u64,
    /// The first byte never handed to a path.
    next: u64,
    /// The end of what was written.
    end: u64,
    /// The offset up to which the receiver takes bytes.
    credit: u64,
    acked: RangeSet,
    lost: RangeSet,
    fin: Fin,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fin {
    Open,
    /// To be sent, for the first time or again.
    Pending,
    Sent,
    Acked,
}

/// Small enough that an idle flow's last block is cheap, large enough that a chunk spans two at most.
const BLOCK_BYTES: usize = 16 * 1024;

/// A block begins so small, so that a few bytes are cheap as well.
const BLOCK_BYTES_MIN: usize = 512;

impl Piece {
    /// The bytes of the flow that this is.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.len)
    }
}

impl SendBuffer {
    /// An empty flow towards a receiver that takes `credit` bytes.
    pub fn new(credit: u64) -> Self {
        Self {
            blocks: VecDeque::new(),
            origin: 0,
            base: 0,
            next: 0,
            end: 0,
            credit,
            acked: RangeSet::default(),
            lost: RangeSet::default(),
            fin: Fin::Open,
        }
    }

    /// Appends `bytes`. Bounding what is written is the caller's: see [`SendBuffer::unsent`] and [`SendBuffer::retained`].
    pub fn write(&mut self, mut bytes: &[u8]) {
        debug_assert_eq!(self.fin, Fin::Open, "nothing is written behind the end");
        while !bytes.is_empty() {
            if self.blocks.is_empty() {
                self.origin = self.end;
            }
            let used = (self.end - self.origin) as usize % BLOCK_BYTES;
            if used == 0 {
                self.blocks.push_back(Vec::with_capacity(BLOCK_BYTES.min(bytes.len()).max(BLOCK_BYTES_MIN)));
            }
            let block = self.blocks.back_mut().expect("pushed above");
            let taken = bytes.len().min(BLOCK_BYTES - used);
            block.extend_from_slice(&bytes[..taken]);
            self.end += taken as u64;
            bytes = &bytes[taken..];
        }
    }

    /// Ends the flow behind what was written.
    pub fn finish(&mut self) {
        if self.fin == Fin::Open {
            self.fin = Fin::Pending;
        }
    }

    /// Raises the offset up to which the receiver takes bytes.
    pub fn on_credit(&mut self, credit: u64) {
        self.credit = self.credit.max(credit);
    }

    /// Whether a piece could be cut now.
    pub fn has_piece(&self) -> bool {
        !self.lost.is_empty() || self.next < self.end.min(self.credit) || (self.fin == Fin::Pending && self.next == self.end)
    }

    /// The bytes that could be cut now.
    pub fn ready(&self) -> u64 {
        let lost: u64 = self.lost.iter().take(8).map(|range| range.end - range.start).sum();
        lost + self.end.min(self.credit).saturating_sub(self.next)
    }

    /// The offset that the next piece would begin at.
    pub fn next_offset(&self) -> u64 {
        self.lost.first().map_or(self.next, |range| range.start)
    }

    /// Bytes that the other end's credit lets out, written or not.
    pub fn sendable(&self) -> u64 {
        self.credit.saturating_sub(self.next)
    }

    /// Cuts the next piece of at most `room` bytes: the lowest that was lost, else the first that was never sent.
    pub fn cut(&mut self, flow: FlowId, room: usize) -> Option<Piece> {
        let room = room as u64;
        let (offset, len) = match self.lost.first() {
            Some(range) => {
                let len = room.min(range.end - range.start);
                self.lost.remove(range.start..range.start + len);
                (range.start, len)
            }
            None => {
                let offset = self.next;
                let len = room.min(self.end.min(self.credit).saturating_sub(offset));
                self.next += len;
                (offset, len)
            }
        };
        let fin = self.fin == Fin::Pending && offset + len == self.end;
        if len == 0 && !fin {
            return None;
        }
        if fin {
            self.fin = Fin::Sent;
        }
        Some(Piece { flow, offset, len: len as u32, fin })
    }

    /// Appends the bytes of `piece` to `out`.
    pub fn copy_into(&self, piece: &Piece, out: &mut impl BufMut) {
        let Range { mut start, end } = piece.range();
        debug_assert!(start >= self.base || start == end);
        while start < end {
            let place = (start - self.origin) as usize;
            let block = &self.blocks[place / BLOCK_BYTES];
            let from = place % BLOCK_BYTES;
            let taken = ((end - start) as usize).min(BLOCK_BYTES - from);
            out.put_slice(&block[from..from + taken]);
            start += taken as u64;
        }
    }

    /// Notes that the other end has `piece`; gives the number of bytes that could be let go.
    pub fn on_acked(&mut self, piece: &Piece) -> u64 {
        if piece.fin {
            self.fin = Fin::Acked;
        }
        let Range { start, end } = piece.range();
        self.lost.remove(start..end);
        let start = start.max(self.base);
        if start >= end {
            return 0;
        }
        if start > self.base {
            self.acked.insert(start..end);
            return 0;
        }
        let before = self.base;
        self.base = end;
        while let Some(range) = self.acked.first()
            && range.start <= self.base
        {
            self.base = self.base.max(range.end);
            self.acked.pop_first();
        }
        let gone = (self.base - self.origin) as usize / BLOCK_BYTES;
        self.blocks.drain(..gone.min(self.blocks.len()));
        self.origin += (gone * BLOCK_BYTES) as u64;
        if self.base == self.end {
            self.blocks.clear();
        }
        self.base - before
    }

    /// Notes that `piece` was lost on its path, so that it goes out again; what is acknowledged since does not.
    pub fn on_lost(&mut self, piece: &Piece) {
        let Range { start, end } = piece.range();
        for gap in self.acked.gaps(start.max(self.base)..end) {
            self.lost.insert(gap);
        }
        if piece.fin && self.fin == Fin::Sent {
            self.fin = Fin::Pending;
        }
    }

    /// `piece` without what is no longer here; `None` if the other end has all of it.
    pub fn missing_part(&self, piece: &Piece) -> Option<Piece> {
        let Range { start, end } = piece.range();
        let start = start.max(self.base).min(end);
        let is_missing = (piece.fin && self.fin != Fin::Acked) || !self.acked.gaps(start..end).is_empty();
        is_missing.then_some(Piece { offset: start, len: (end - start) as u32, ..*piece })
    }

    /// Bytes written and never handed to a path.
    pub fn unsent(&self) -> u64 {
        self.end - self.next
    }

    /// Bytes written and kept because the other end may lack them.
    pub fn retained(&self) -> u64 {
        self.end - self.base
    }

    /// Whether bytes wait that the receiver's credit does not cover.
    pub fn is_blocked_on_credit(&self) -> bool {
        self.next < self.end && self.next >= self.credit
    }

    /// Whether the application has ended the flow.
    pub fn is_finished(&self) -> bool {
        self.fin != Fin::Open
    }

    /// Whether the other end has everything, the end included.
    pub fn is_delivered(&self) -> bool {
        self.fin == Fin::Acked && self.base == self.end
    }

    /// Lets everything go: the flow was aborted.
    pub fn clear(&mut self) {
        self.blocks = VecDeque::new();
        self.base = self.end;
        self.next = self.end;
        self.acked.clear();
        self.lost.clear();
        self.fin = Fin::Acked;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: FlowId = FlowId(1);

    #[test]
    fn lost_pieces_go_first_and_fit_a_smaller_path() {
        let mut buffer = SendBuffer::new(1 << 20);
        let bytes = sample(40_000);
        buffer.write(&bytes);
        let first = buffer.cut(FLOW, 1400).expect("a piece");
        buffer.cut(FLOW, 1400).expect("a piece");
        buffer.on_lost(&first);
        let again = buffer.cut(FLOW, 900).expect("a piece");
        assert_eq!((again.offset, again.len), (0, 900));
        let rest = buffer.cut(FLOW, 900).expect("a piece");
        assert_eq!((rest.offset, rest.len), (900, 500));
        assert_eq!(buffer.cut(FLOW, 900).expect("a piece").offset, 2800);
    }

    #[test]
    fn nothing_leaves_beyond_the_credit() {
        let mut buffer = SendBuffer::new(1000);
        buffer.write(&sample(3000));
        buffer.finish();
        assert_eq!(buffer.cut(FLOW, 1400).map(|piece| piece.len), Some(1000));
        assert_eq!(buffer.cut(FLOW, 1400), None);
        assert!(buffer.is_blocked_on_credit());
        buffer.on_credit(4000);
        let last = buffer.cut(FLOW, 2000).expect("a piece");
        assert_eq!((last.len, last.fin), (2000, true));
    }

    #[test]
    fn an_end_that_was_lost_goes_out_again() {
        let mut buffer = SendBuffer::new(1000);
        buffer.finish();
        let fin = buffer.cut(FLOW, 100).expect("the end");
        assert!(fin.fin && fin.len == 0);
        assert_eq!(buffer.cut(FLOW, 100), None);
        buffer.on_lost(&fin);
        let fin = buffer.cut(FLOW, 100).expect("the end again");
        buffer.on_acked(&fin);
        assert!(buffer.is_delivered());
    }

    #[test]
    fn what_is_acknowledged_is_let_go_and_the_rest_stays_exact() {
        let mut buffer = SendBuffer::new(1 << 20);
        let bytes = sample(100_000);
        let mut written = 0;
        let mut pieces = Vec::new();
        for len in [1, 5000, 20_000, 30_000, 44_999] {
            buffer.write(&bytes[written..written + len]);
            written += len;
            while let Some(piece) = buffer.cut(FLOW, 1379) {
                let mut out = Vec::new();
                buffer.copy_into(&piece, &mut out);
                assert_eq!(out, bytes[piece.offset as usize..][..piece.len as usize]);
                pieces.push(piece);
            }
        }
        let (odd, even): (Vec<_>, Vec<_>) = pieces.iter().enumerate().partition(|(place, _)| place % 2 == 1);
        for (_, piece) in odd {
            assert_eq!(buffer.on_acked(piece), 0);
        }
        assert_eq!(buffer.retained(), 100_000);
        for (_, piece) in even.iter().rev() {
            buffer.on_lost(piece);
        }
        let mut freed = 0;
        while let Some(piece) = buffer.cut(FLOW, 700) {
            let mut out = Vec::new();
            buffer.copy_into(&piece, &mut out);
            assert_eq!(out, bytes[piece.offset as usize..][..piece.len as usize]);
            freed += buffer.on_acked(&piece);
        }
        assert_eq!((freed, buffer.retained()), (100_000, 0));
        buffer.write(&bytes[..10]);
        let piece = buffer.cut(FLOW, 100).expect("a piece");
        let mut out = Vec::new();
        buffer.copy_into(&piece, &mut out);
        assert_eq!(out, bytes[..10]);
    }

    fn sample(len: usize) -> Vec<u8> {
        (0..len).map(|place| ((place * 31) >> 3) as u8).collect()
    }
}
