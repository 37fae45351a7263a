//! What a path's datagrams hold: acknowledgements, pings and chunks.
//!
//! ```text
//! datagram = kind [seq] body *(kind body)
//! kind     = 0x01 ping | 0x02 acknowledgement | 0x04..0x07 chunk (bit 0: last of its flow, bit 1: length given)
//!            bit 7, in the first kind alone: the datagram is tracked and `seq` (varint) follows
//! ack      = path, largest, received_at_us, delay_us, ranges, length - 1 of the highest range, *(gap - 1, length - 1)
//! chunk    = flow, offset, [length], bytes; without a length the bytes go on to the datagram's end
//! ```
//! All integers are varints. A tracked datagram is acknowledged, congestion controlled and, if lost, its chunks go out again;
//! one that holds nothing but acknowledgements isn't tracked.

use std::ops::Range;

use bytes::{Buf, Bytes};

use crate::{
    ids::{FlowId, PathId, Seq},
    wire::{self, WireError},
};

/// A frame of a datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// Asks for nothing but an acknowledgement.
    Ping,
    /// What arrived of a path.
    Ack(Ack),
    /// A slice of a flow.
    Chunk(Chunk),
}

/// What arrived of a path's tracked datagrams.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ack {
    /// The path whose datagrams these are, whichever path the acknowledgement takes.
    pub path: PathId,
    /// When the datagram of the highest number arrived, in microseconds on a clock of the receiver's own.
    pub received_at_us: u64,
    /// How long the acknowledgement was held back after that, in microseconds.
    pub delay_us: u64,
    /// The numbers that arrived, half-open, from the highest range down; never empty.
    pub ranges: Vec<Range<u64>>,
}

/// A slice of a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// The flow.
    pub flow: FlowId,
    /// The place of the first byte in the flow.
    pub offset: u64,
    /// Whether the flow ends behind these bytes.
    pub fin: bool,
    /// The bytes.
    pub bytes: Bytes,
}

/// The most ranges an acknowledgement holds: what two dozen separate losses between two received acknowledgements need.
pub const MAX_ACK_RANGES: usize = 24;

const PING: u8 = 0x01;
const ACK: u8 = 0x02;
const CHUNK: u8 = 0x04;
const CHUNK_FIN: u8 = 0x01;
const CHUNK_LENGTH: u8 = 0x02;
const TRACKED: u8 = 0x80;

impl Ack {
    /// The highest number that arrived.
    pub fn largest(&self) -> Seq {
        Seq(self.ranges[0].end - 1)
    }
}

/// Puts frames one behind the other into a datagram of a given size.
#[derive(Debug)]
pub struct DatagramWriter {
    out: Vec<u8>,
    limit: usize,
    tracked: Option<Seq>,
}

impl DatagramWriter {
    /// An empty datagram of at most `limit` bytes, tracked under a number if given one.
    pub fn new(limit: usize, tracked: Option<Seq>) -> Self {
        Self { out: Vec::with_capacity(limit), limit, tracked }
    }

    /// The bytes still free.
    pub fn remaining(&self) -> usize {
        self.limit.saturating_sub(self.out.len())
    }

    /// Whether no frame has been put yet.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Appends a ping.
    pub fn put_ping(&mut self) {
        self.put_kind(PING);
    }

    /// Appends an acknowledgement of `path` with as many of `ranges` (from the highest down) as fit the limits.
    pub fn put_ack(&mut self, path: PathId, received_at_us: u64, delay_us: u64, ranges: impl Iterator<Item = Range<u64>>) {
        let mut ranges = ranges.take(MAX_ACK_RANGES).peekable();
        let Some(highest) = ranges.next() else { return };
        self.put_kind(ACK);
        wire::put_varint(&mut self.out, u64::from(path.0));
        wire::put_varint(&mut self.out, highest.end - 1);
        wire::put_varint(&mut self.out, received_at_us);
        wire::put_varint(&mut self.out, delay_us);
        let mut tail = Vec::new();
        let mut count = 1;
        let mut previous_start = highest.start;
        for range in ranges {
            let before = tail.len();
            wire::put_varint(&mut tail, previous_start - range.end - 1);
            wire::put_varint(&mut tail, range.end - range.start - 1);
            if self.remaining() < tail.len() + 10 {
                tail.truncate(before);
                break;
            }
            previous_start = range.start;
            count += 1;
        }
        wire::put_varint(&mut self.out, count);
        wire::put_varint(&mut self.out, highest.end - highest.start - 1);
        self.out.extend_from_slice(&tail);
    }

    /// The bytes of a chunk at `offset` of `flow` that fit behind what is there, or `None` if its header alone doesn't.
    ///
    /// `length_given` says whether the chunk must leave room for another frame behind it.
    pub fn chunk_room(&self, flow: FlowId, offset: u64, length_given: bool) -> Option<usize> {
        let mut header = 1 + wire::varint_len(flow.0) + wire::varint_len(offset);
        if self.out.is_empty() {
            header += self.tracked.map_or(0, |seq| wire::varint_len(seq.0));
        }
        if length_given {
            header += 2;
        }
        self.remaining().checked_sub(header)
    }

    /// Appends a chunk whose bytes `fill` writes; `len` must be at most [`DatagramWriter::chunk_room`].
    pub fn put_chunk(&mut self, flow: FlowId, offset: u64, fin: bool, len: usize, length_given: bool, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut kind = CHUNK;
        if fin {
            kind |= CHUNK_FIN;
        }
        if length_given {
            kind |= CHUNK_LENGTH;
        }
        self.put_kind(kind);
        wire::put_varint(&mut self.out, flow.0);
        wire::put_varint(&mut self.out, offset);
        if length_given {
            // Always two bytes, so that the room is known before the length is.
            self.out.extend_from_slice(&(0x4000 | len as u16).to_be_bytes());
        }
        let before = self.out.len();
        fill(&mut self.out);
        debug_assert_eq!(self.out.len() - before, len);
        debug_assert!(self.out.len() <= self.limit);
    }

    /// The datagram.
    pub fn finish(self) -> Bytes {
        self.out.into()
    }

    fn put_kind(&mut self, kind: u8) {
        match self.tracked {
            Some(seq) if self.out.is_empty() => {
                self.out.push(kind | TRACKED);
                wire::put_varint(&mut self.out, seq.0);
            }
            _ => self.out.push(kind),
        }
    }
}

/// Takes a datagram apart, frame by frame; stops at the first error.
#[derive(Debug)]
pub struct DatagramReader {
    input: Bytes,
    first_kind: Option<u8>,
}

impl DatagramReader {
    /// Begins to read; gives the reader and, for a tracked datagram, its number.
    ///
    /// # Errors
    /// [`WireError::Short`] if not even the first kind and number are there.
    pub fn new(mut input: Bytes) -> Result<(Self, Option<Seq>), WireError> {
        let kind = wire::take_u8(&mut input)?;
        let seq = if kind & TRACKED == 0 { None } else { Some(Seq(wire::take_varint(&mut input)?)) };
        Ok((Self { input, first_kind: Some(kind & !TRACKED) }, seq))
    }

    fn take_frame(&mut self) -> Result<Option<Frame>, WireError> {
        let kind = match self.first_kind.take() {
            Some(kind) => kind,
            None if self.input.is_empty() => return Ok(None),
            None => self.input.get_u8(),
        };
        match kind {
            PING => Ok(Some(Frame::Ping)),
            ACK => self.take_ack().map(|ack| Some(Frame::Ack(ack))),
            CHUNK..=0x07 => self.take_chunk(kind).map(|chunk| Some(Frame::Chunk(chunk))),
            _ => Err(WireError::Value("frame kind")),
        }
    }

    fn take_ack(&mut self) -> Result<Ack, WireError> {
        let input = &mut self.input;
        let path = PathId(u32::try_from(wire::take_varint(input)?).map_err(|_| WireError::Value("path"))?);
        let largest = wire::take_varint(input)?;
        let received_at_us = wire::take_varint(input)?;
        let delay_us = wire::take_varint(input)?;
        let count = wire::take_varint(input)?;
        if !(1..=MAX_ACK_RANGES as u64).contains(&count) {
            return Err(WireError::Value("range count"));
        }
        let below = WireError::Value("range");
        let mut start = largest.checked_sub(wire::take_varint(input)?).ok_or(below.clone())?;
        let mut ranges = Vec::with_capacity(count as usize);
        ranges.push(start..largest + 1);
        for _ in 1..count {
            let end = start.checked_sub(wire::take_varint(input)? + 1).ok_or(below.clone())?;
            start = end.checked_sub(wire::take_varint(input)? + 1).ok_or(below.clone())?;
            ranges.push(start..end);
        }
        Ok(Ack { path, received_at_us, delay_us, ranges })
    }

    fn take_chunk(&mut self, kind: u8) -> Result<Chunk, WireError> {
        let flow = FlowId(wire::take_varint(&mut self.input)?);
        let offset = wire::take_varint(&mut self.input)?;
        let len = if kind & CHUNK_LENGTH == 0 { self.input.len() as u64 } else { wire::take_varint(&mut self.input)? };
        if len > self.input.len() as u64 {
            return Err(WireError::Short);
        }
        if offset + len > wire::VARINT_MAX {
            return Err(WireError::Value("offset"));
        }
        Ok(Chunk { flow, offset, fin: kind & CHUNK_FIN != 0, bytes: self.input.split_to(len as usize) })
    }
}

impl Iterator for DatagramReader {
    type Item = Result<Frame, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        let frame = self.take_frame().transpose();
        if matches!(frame, Some(Err(_))) {
            self.input.clear();
        }
        frame
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_datagram_comes_back_as_it_was(seq in 0..1u64 << 40, largest in 0..1u64 << 40, lens in prop::collection::vec((1u64..1000, 1u64..1000), 0..30), first in prop::collection::vec(any::<u8>(), 0..200), second in prop::collection::vec(any::<u8>(), 0..200), offset in 0..1u64 << 50) {
            let mut ranges = Vec::new();
            let mut end = largest + 1;
            for (len, gap) in lens {
                let Some(start) = end.checked_sub(len) else { break };
                ranges.push(start..end);
                let Some(next) = start.checked_sub(gap) else { break };
                if next == 0 { break }
                end = next;
            }
            prop_assume!(!ranges.is_empty());
            let mut writer = DatagramWriter::new(1200, Some(Seq(seq)));
            writer.put_ack(PathId(7), 1234, 567, ranges.iter().cloned());
            let room = writer.chunk_room(FlowId(3), offset, true).expect("room");
            prop_assert!(room >= first.len());
            writer.put_chunk(FlowId(3), offset, false, first.len(), true, |out| out.extend_from_slice(&first));
            writer.put_chunk(FlowId(4), offset, true, second.len(), false, |out| out.extend_from_slice(&second));
            let (reader, got_seq) = DatagramReader::new(writer.finish()).expect("a datagram");
            prop_assert_eq!(got_seq, Some(Seq(seq)));
            let frames: Vec<_> = reader.collect::<Result<_, _>>().expect("frames");
            ranges.truncate(MAX_ACK_RANGES);
            prop_assert_eq!(&frames[0], &Frame::Ack(Ack { path: PathId(7), received_at_us: 1234, delay_us: 567, ranges }));
            prop_assert_eq!(&frames[1], &Frame::Chunk(Chunk { flow: FlowId(3), offset, fin: false, bytes: first.into() }));
            prop_assert_eq!(&frames[2], &Frame::Chunk(Chunk { flow: FlowId(4), offset, fin: true, bytes: second.into() }));
        }

        #[test]
        fn random_bytes_never_panic(input in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok((reader, _)) = DatagramReader::new(input.into()) {
                for frame in reader {
                    if let Ok(Frame::Ack(ack)) = frame {
                        prop_assert!(ack.ranges.windows(2).all(|pair| pair[1].end < pair[0].start));
                    }
                }
            }
        }
    }

    #[test]
    fn a_chunk_fills_its_datagram_to_the_byte() {
        for limit in [100, 1200, 1450] {
            let mut writer = DatagramWriter::new(limit, Some(Seq(70_000)));
            let room = writer.chunk_room(FlowId(1), 1 << 33, false).expect("room");
            writer.put_chunk(FlowId(1), 1 << 33, false, room, false, |out| out.resize(out.len() + room, 9));
            assert_eq!(writer.finish().len(), limit);
        }
    }
}
