//! What a path's datagrams hold: acknowledgements, pings, chunks of flows and fragments of parcels.
//!
//! ```text
//! datagram = kind [seq] body *(kind body)
//! kind     = 0x01 ping | 0x02 acknowledgement | 0x04..0x07 chunk (bit 0: last of its flow, bit 1: length given)
//!            | 0x08 parcel | 0x09 part of a parcel
//!            bit 7, in the first kind alone: the datagram is tracked and `seq` (varint) follows
//! ack      = path, largest, received_at_us, delay_us, held_back_us - delay_us, ranges, length - 1 of the highest range, *(gap - 1, length - 1)
//! chunk    = flow, offset, [length], bytes; without a length the bytes go on to the datagram's end
//! parcel   = flow, number, length, bytes
//! part     = flow, number, length of the whole, offset, length, bytes
//! ```
//! All integers are varints. A tracked datagram is acknowledged, congestion controlled and, if lost, its chunks go out again, its parcels
//! never; one that holds nothing but acknowledgements isn't tracked.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};

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
    /// A parcel, or a part of one.
    Fragment(Fragment),
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
    /// How long the first that it acknowledges for the first time had waited for it, in microseconds; at least `delay_us`.
    pub held_back_us: u64,
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

/// A parcel of a UDP flow, whole or in part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// The flow.
    pub flow: FlowId,
    /// The parcel's number in its direction of the flow.
    pub number: u64,
    /// The length of the whole parcel, at most [`PARCEL_BYTES_MAX`].
    pub total: u32,
    /// The place of the first byte in the parcel.
    pub offset: u32,
    /// The bytes; a part has at least one.
    pub bytes: Bytes,
}

/// The longest parcel: the payload of the longest UDP datagram over IPv6 without jumbograms, and a target with the longest name.
pub const PARCEL_BYTES_MAX: usize = 65_527 + 258;

/// The most ranges an acknowledgement holds: what two dozen separate losses between two received acknowledgements need.
pub const MAX_ACK_RANGES: usize = 24;

const PING: u8 = 0x01;
const ACK: u8 = 0x02;
const CHUNK: u8 = 0x04;
const CHUNK_FIN: u8 = 0x01;
const CHUNK_LENGTH: u8 = 0x02;
const PARCEL: u8 = 0x08;
const PARCEL_PART: u8 = 0x09;
const TRACKED: u8 = 0x80;

/// Lengths behind which bytes follow take two bytes whatever they are, so that the room is known before the length is.
const LENGTH_BYTES: usize = 2;

impl Fragment {
    /// Whether this is the whole parcel.
    pub fn is_whole(&self) -> bool {
        self.bytes.len() == self.total as usize
    }
}

impl Ack {
    /// The highest number that arrived.
    pub fn largest(&self) -> Seq {
        Seq(self.ranges[0].end - 1)
    }
}

/// Puts frames one behind the other into a datagram of a given size.
#[derive(Debug)]
pub struct DatagramWriter {
    out: BytesMut,
    limit: usize,
    tracked: Option<Seq>,
}

impl DatagramWriter {
    /// An empty datagram of at most `limit` bytes, tracked under a number if given one.
    pub fn new(limit: usize, tracked: Option<Seq>) -> Self {
        Self { out: BytesMut::with_capacity(limit), limit, tracked }
    }

    /// The same, in memory taken off `store`, so that several datagrams cost one allocation.
    pub fn new_in(store: &mut BytesMut, limit: usize, tracked: Option<Seq>) -> Self {
        if store.capacity() < limit {
            *store = BytesMut::with_capacity(limit * (STORE_BYTES / limit).max(1));
        }
        let rest = store.split_off(limit);
        Self { out: std::mem::replace(store, rest), limit, tracked }
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
    pub fn put_ack(
        &mut self,
        path: PathId,
        received_at_us: u64,
        delay_us: u64,
        held_back_us: u64,
        ranges: impl Iterator<Item = Range<u64>>,
    ) {
        let mut ranges = ranges.take(MAX_ACK_RANGES).peekable();
        let Some(highest) = ranges.next() else { return };
        self.put_kind(ACK);
        wire::put_varint(&mut self.out, u64::from(path.0));
        wire::put_varint(&mut self.out, highest.end - 1);
        wire::put_varint(&mut self.out, received_at_us);
        wire::put_varint(&mut self.out, delay_us);
        wire::put_varint(&mut self.out, held_back_us.saturating_sub(delay_us));
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
            header += LENGTH_BYTES;
        }
        self.remaining().checked_sub(header)
    }

    /// Appends a chunk whose bytes `fill` writes; `len` must be at most [`DatagramWriter::chunk_room`].
    pub fn put_chunk(&mut self, flow: FlowId, offset: u64, fin: bool, len: usize, length_given: bool, fill: impl FnOnce(&mut BytesMut)) {
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
            self.put_length(len);
        }
        let before = self.out.len();
        fill(&mut self.out);
        debug_assert_eq!(self.out.len() - before, len);
        debug_assert!(self.out.len() <= self.limit);
    }

    /// The bytes of a parcel, or of the part of one of `total` bytes at an offset, that fit behind what is there, or `None` if the
    /// header alone doesn't.
    pub fn fragment_room(&self, flow: FlowId, number: u64, part: Option<(u32, u32)>) -> Option<usize> {
        self.remaining().checked_sub(self.fragment_header(flow, number, part, self.out.is_empty()))
    }

    /// The bytes of a parcel that would fit if nothing were there yet.
    pub fn fragment_room_alone(&self, flow: FlowId, number: u64) -> usize {
        self.limit.saturating_sub(self.fragment_header(flow, number, None, true))
    }

    /// Appends a parcel or a part of one, of at most [`DatagramWriter::fragment_room`] bytes.
    pub fn put_fragment(&mut self, fragment: &Fragment) {
        let is_whole = fragment.is_whole();
        self.put_kind(if is_whole { PARCEL } else { PARCEL_PART });
        wire::put_varint(&mut self.out, fragment.flow.0);
        wire::put_varint(&mut self.out, fragment.number);
        if !is_whole {
            wire::put_varint(&mut self.out, u64::from(fragment.total));
            wire::put_varint(&mut self.out, u64::from(fragment.offset));
        }
        self.put_length(fragment.bytes.len());
        self.out.extend_from_slice(&fragment.bytes);
        debug_assert!(self.out.len() <= self.limit);
    }

    fn fragment_header(&self, flow: FlowId, number: u64, part: Option<(u32, u32)>, is_first: bool) -> usize {
        let seq = self.tracked.filter(|_| is_first).map_or(0, |seq| wire::varint_len(seq.0));
        let part = part.map_or(0, |(total, offset)| wire::varint_len(u64::from(total)) + wire::varint_len(u64::from(offset)));
        1 + seq + wire::varint_len(flow.0) + wire::varint_len(number) + part + LENGTH_BYTES
    }

    fn put_length(&mut self, len: usize) {
        self.out.extend_from_slice(&(0x4000 | len as u16).to_be_bytes());
    }

    /// The datagram.
    pub fn finish(self) -> Bytes {
        self.out.freeze()
    }

    fn put_kind(&mut self, kind: u8) {
        match self.tracked {
            Some(seq) if self.out.is_empty() => {
                self.out.put_u8(kind | TRACKED);
                wire::put_varint(&mut self.out, seq.0);
            }
            _ => self.out.put_u8(kind),
        }
    }
}

/// What one allocation has: eight datagrams or more on most lines, and so little that an idle session's rest of it is small, also where a
/// datagram may be large, as on loopback.
const STORE_BYTES: usize = 12 << 10;

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
            PARCEL | PARCEL_PART => self.take_fragment(kind == PARCEL_PART).map(|fragment| Some(Frame::Fragment(fragment))),
            _ => Err(WireError::Value("frame kind")),
        }
    }

    fn take_ack(&mut self) -> Result<Ack, WireError> {
        let input = &mut self.input;
        let path = PathId(u32::try_from(wire::take_varint(input)?).map_err(|_| WireError::Value("path"))?);
        let largest = wire::take_varint(input)?;
        let received_at_us = wire::take_varint(input)?;
        let delay_us = wire::take_varint(input)?;
        let held_back_us = delay_us.saturating_add(wire::take_varint(input)?);
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
        Ok(Ack { path, received_at_us, delay_us, held_back_us, ranges })
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

    fn take_fragment(&mut self, is_part: bool) -> Result<Fragment, WireError> {
        let flow = FlowId(wire::take_varint(&mut self.input)?);
        let number = wire::take_varint(&mut self.input)?;
        let part = if is_part { Some((wire::take_varint(&mut self.input)?, wire::take_varint(&mut self.input)?)) } else { None };
        let len = wire::take_varint(&mut self.input)?;
        if len > self.input.len() as u64 {
            return Err(WireError::Short);
        }
        let (total, offset) = part.unwrap_or((len, 0));
        let is_within = total <= PARCEL_BYTES_MAX as u64 && offset + len <= total;
        if !is_within || (is_part && (len == 0 || len == total)) {
            return Err(WireError::Value("fragment"));
        }
        Ok(Fragment { flow, number, total: total as u32, offset: offset as u32, bytes: self.input.split_to(len as usize) })
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
            writer.put_ack(PathId(7), 1234, 567, 890, ranges.iter().cloned());
            let room = writer.chunk_room(FlowId(3), offset, true).expect("room");
            prop_assert!(room >= first.len());
            writer.put_chunk(FlowId(3), offset, false, first.len(), true, |out| out.extend_from_slice(&first));
            let whole = Fragment { flow: FlowId(5), number: largest, total: first.len() as u32, offset: 0, bytes: first.clone().into() };
            let part = Fragment { flow: FlowId(6), number: seq, total: 60_000, offset: second.len() as u32, bytes: vec![7; 1 + second.len()].into() };
            prop_assert!(writer.fragment_room(whole.flow, whole.number, None).expect("room") >= first.len());
            writer.put_fragment(&whole);
            writer.put_fragment(&part);
            writer.put_chunk(FlowId(4), offset, true, second.len(), false, |out| out.extend_from_slice(&second));
            let (reader, got_seq) = DatagramReader::new(writer.finish()).expect("a datagram");
            prop_assert_eq!(got_seq, Some(Seq(seq)));
            let frames: Vec<_> = reader.collect::<Result<_, _>>().expect("frames");
            ranges.truncate(MAX_ACK_RANGES);
            prop_assert_eq!(&frames[0], &Frame::Ack(Ack { path: PathId(7), received_at_us: 1234, delay_us: 567, held_back_us: 890, ranges }));
            prop_assert_eq!(&frames[1], &Frame::Chunk(Chunk { flow: FlowId(3), offset, fin: false, bytes: first.into() }));
            prop_assert_eq!(&frames[2], &Frame::Fragment(whole));
            prop_assert_eq!(&frames[3], &Frame::Fragment(part));
            prop_assert_eq!(&frames[4], &Frame::Chunk(Chunk { flow: FlowId(4), offset, fin: true, bytes: second.into() }));
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

    #[test]
    fn a_parcel_and_a_part_fill_their_datagram_to_the_byte() {
        for limit in [100, 1200, 1450] {
            for part in [None, Some((50_000, 20_000))] {
                let mut writer = DatagramWriter::new(limit, Some(Seq(70_000)));
                let room = writer.fragment_room(FlowId(70), 1 << 33, part).expect("room");
                let (total, offset) = part.unwrap_or((room as u32, 0));
                writer.put_fragment(&Fragment { flow: FlowId(70), number: 1 << 33, total, offset, bytes: vec![1; room].into() });
                assert_eq!(writer.finish().len(), limit);
            }
        }
    }

    #[test]
    fn a_part_beyond_its_parcel_is_refused() {
        for (total, offset, len) in [(100, 90, 11), (PARCEL_BYTES_MAX as u64 + 1, 0, 5), (10, 0, 10), (10, 5, 0), (1 << 61, 1 << 60, 9)] {
            let mut bytes = vec![PARCEL_PART];
            for value in [3, 4, total, offset, len] {
                wire::put_varint(&mut bytes, value);
            }
            bytes.resize(bytes.len() + 20, 0);
            let (mut reader, _) = DatagramReader::new(bytes.into()).expect("a kind");
            assert_eq!(reader.next(), Some(Err(WireError::Value("fragment"))), "{total} {offset} {len}");
        }
    }
}
