//! The parcels of one UDP flow, both ways.
//!
//! A parcel is what an application's UDP datagram becomes: where it goes to or comes from, then its bytes; see
//! [`open`](super::open). Parcels enter by [`Parcels::push`] and leave, whole or cut into fragments for the path that takes them, by
//! [`Parcels::cut`]; those that arrive wait in [`Parcels::receive`]'s queue for the application. None is ever sent again. Always holds: each arrives at most
//! once, both queues are bounded in bytes, and what has waited too long is dropped at the head of the queue, where it is oldest: a call
//! or a game wants the newest. Fragments are put together by the session's one [`Assembly`], within its own bounds.

mod assembly;
mod budget;
mod window;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;

pub use self::assembly::{FLOW_ASSEMBLY_BYTES, SESSION_ASSEMBLY_BYTES};
use self::window::Window;
pub(super) use self::{assembly::Assembly, budget::Budget};
use super::{
    packet::{Fragment, PARCEL_BYTES_MAX},
    schedule::{Class, Policy},
};
use crate::ids::FlowId;

/// The parcels of one UDP flow.
#[derive(Debug, Default)]
pub(super) struct Parcels {
    /// How they are spread over paths.
    pub(super) policy: Policy,
    /// The class in whose queue for a path the flow waits, if it does, and its place among all that wait.
    pub(super) waits_in: Option<Class>,
    pub(super) ticket: u64,
    /// What the flow may send as an interactive one.
    pub(super) budget: Budget,
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    next_number: u64,
    window: Window,
    arrived: VecDeque<Bytes>,
    arrived_bytes: usize,
}

#[derive(Debug)]
struct Queued {
    number: u64,
    bytes: Bytes,
    at: Instant,
    /// The bytes that went out in fragments.
    cut: usize,
}

/// The room that a path has for a fragment.
pub(super) trait Room {
    /// For a whole parcel, or for the part of one of so many bytes at that offset; `None` if not even for the header.
    fn for_fragment(&self, flow: FlowId, number: u64, part: Option<(u32, u32)>) -> Option<usize>;
    /// For a whole parcel alone in a datagram.
    fn alone(&self, flow: FlowId, number: u64) -> usize;
}

/// Bytes of a flow that wait for a path, or for the application: some of the longest parcels, or 5 Mbit/s for [`STALE_AFTER`].
pub const FLOW_QUEUE_BYTES: usize = 256 << 10;

/// Bytes that wait for a path, and as many for applications, of all flows of a session.
pub const SESSION_QUEUE_BYTES: usize = 4 << 20;

/// What a parcel that waits costs besides its bytes.
pub const ENTRY_BYTES: usize = 64;

/// How long a parcel waits for a path: beyond it a voice is no conversation any more (ITU-T G.114: at most 400 ms one way).
pub const STALE_AFTER: Duration = Duration::from_millis(400);

/// On slow lines a parcel waits as long as they take for so many bytes: the first flight of a QUIC connection (RFC 9002 §7.2), which would
/// otherwise lose its tail each time it is sent.
pub const FIRST_FLIGHT_BYTES: f64 = 14_720.0;

/// The longest that a parcel waits for a path however slow.
pub const STALE_AFTER_MAX: Duration = Duration::from_secs(4);

/// The least part of a parcel that is worth a header.
const PART_BYTES_MIN: usize = 64;

impl Parcels {
    /// Lets a parcel wait for a path; gives how many were dropped for it.
    pub(super) fn push(&mut self, now: Instant, bytes: Bytes) -> u64 {
        if bytes.len() > PARCEL_BYTES_MAX {
            return 1;
        }
        self.queued_bytes += bytes.len() + ENTRY_BYTES;
        self.queue.push_back(Queued { number: self.next_number, bytes, at: now, cut: 0 });
        self.next_number += 1;
        let mut dropped = 0;
        while self.queued_bytes > FLOW_QUEUE_BYTES {
            dropped += u64::from(self.drop_head());
        }
        dropped
    }

    /// Drops the parcel that has waited longest; whether there was one.
    pub(super) fn drop_head(&mut self) -> bool {
        let Some(head) = self.queue.pop_front() else { return false };
        self.queued_bytes -= head.bytes.len() + ENTRY_BYTES;
        true
    }

    /// Drops what has waited for longer than `stale_after`; gives how many.
    pub(super) fn drop_stale(&mut self, now: Instant, stale_after: Duration) -> u64 {
        let mut dropped = 0;
        while self.queue.front().is_some_and(|head| now.saturating_duration_since(head.at) > stale_after) {
            dropped += u64::from(self.drop_head());
        }
        dropped
    }

    /// Whether anything waits for a path.
    pub(super) fn has_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Bytes that wait for a path, bookkeeping included.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Takes the next parcel, or as much of it as there is `room` for. One that would fit a datagram of its own waits for that.
    pub(super) fn cut(&mut self, flow: FlowId, room: &impl Room) -> Option<Fragment> {
        let head = self.queue.front_mut()?;
        let (number, total) = (head.number, head.bytes.len());
        if head.cut == 0 {
            if room.for_fragment(flow, number, None).is_some_and(|room| room >= total) {
                let bytes = head.bytes.clone();
                self.drop_head();
                return Some(Fragment { flow, number, total: total as u32, offset: 0, bytes });
            }
            if room.alone(flow, number) >= total {
                return None;
            }
        }
        let offset = head.cut;
        let left = total - offset;
        let room = room.for_fragment(flow, number, Some((total as u32, offset as u32)))?;
        if room < left.min(PART_BYTES_MIN) {
            return None;
        }
        // A part is never the whole: one that would be takes the longer header of a part and so does not fit.
        let len = left.min(room).min(total - 1);
        let bytes = head.bytes.slice(offset..offset + len);
        head.cut += len;
        if head.cut == total {
            self.drop_head();
        }
        Some(Fragment { flow, number, total: total as u32, offset: offset as u32, bytes })
    }

    /// Whether the parcel of this number has not arrived yet, as far as is remembered.
    pub(super) fn is_new(&self, number: u64) -> bool {
        self.window.is_new(number)
    }

    /// Keeps a parcel that arrived for the application; gives how many were dropped for it.
    pub(super) fn receive(&mut self, number: u64, bytes: Bytes) -> u64 {
        self.window.mark(number);
        self.arrived_bytes += bytes.len() + ENTRY_BYTES;
        self.arrived.push_back(bytes);
        let mut dropped = 0;
        while self.arrived_bytes > FLOW_QUEUE_BYTES {
            dropped += u64::from(self.take().is_some());
        }
        dropped
    }

    /// Takes the parcel that arrived first.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        let bytes = self.arrived.pop_front()?;
        self.arrived_bytes -= bytes.len() + ENTRY_BYTES;
        Some(bytes)
    }

    /// Bytes that wait for the application, bookkeeping included.
    pub(super) fn arrived_bytes(&self) -> usize {
        self.arrived_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way_to_the_newest() {
        let now = Instant::now();
        let mut parcels = Parcels::default();
        let mut dropped = 0;
        for _ in 0..10 {
            dropped += parcels.push(now, vec![0; 60_000].into());
        }
        assert_eq!((dropped, parcels.queued_bytes()), (6, 4 * (60_000 + ENTRY_BYTES)));
        let first = parcels.cut(FLOW, &Fixed(100_000)).expect("a parcel");
        assert_eq!((first.number, first.is_whole()), (6, true));
        assert_eq!(parcels.drop_stale(now + STALE_AFTER * 2, STALE_AFTER), 3);
        assert!(!parcels.has_waiting() && parcels.queued_bytes() == 0);
    }

    #[test]
    fn a_parcel_that_fits_a_datagram_is_never_cut_and_a_longer_one_fills_what_is_there() {
        let now = Instant::now();
        let mut parcels = Parcels::default();
        parcels.push(now, vec![1; 900].into());
        parcels.push(now, vec![2; 2500].into());
        assert_eq!(parcels.cut(FLOW, &Fixed(500)), None);
        assert_eq!(parcels.cut(FLOW, &Fixed(1000)).map(|whole| whole.bytes.len()), Some(900));
        let parts: Vec<_> = [400, 20, 1000, 1400].map(|room| parcels.cut(FLOW, &Fixed(room))).into_iter().flatten().collect();
        let places: Vec<_> = parts.iter().map(|part| (part.offset, part.bytes.len(), part.total)).collect();
        assert_eq!(places, [(0, 400, 2500), (400, 1000, 2500), (1400, 1100, 2500)]);
        assert!(!parcels.has_waiting());
    }

    #[test]
    fn what_the_application_does_not_take_is_bounded() {
        let mut parcels = Parcels::default();
        let dropped: u64 = (0..100_000).map(|number| parcels.receive(number, Bytes::from_static(b"x"))).sum();
        assert!(parcels.arrived_bytes() <= FLOW_QUEUE_BYTES && dropped > 90_000);
        assert!(!parcels.is_new(99_999) && parcels.is_new(100_000));
    }

    const FLOW: FlowId = FlowId(1);

    /// So much room now, and 1,000 bytes alone.
    struct Fixed(usize);

    impl Room for Fixed {
        fn for_fragment(&self, _flow: FlowId, _number: u64, _part: Option<(u32, u32)>) -> Option<usize> {
            Some(self.0)
        }

        fn alone(&self, _flow: FlowId, _number: u64) -> usize {
            1000
        }
    }
}
