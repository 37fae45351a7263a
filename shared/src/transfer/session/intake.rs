//! What a session takes from its applications, and when: late, since bytes that are taken early only grow old in memory.
//!
//! Few flows each take what the paths carry in the time that the longest takes. With many bulk flows that would be more than the processor's
//! caches hold, copied in and out of memory once more, and a while before any of it is sent. So then their writers stand in line:
//! the next is called when little is left to send, and gives a portion, which leaves in one turn or a few.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Event, Session, transmit::UNSENT};
use crate::{
    ids::FlowId,
    transfer::{control::AbortCode, flow::Intake, schedule::Class},
};

/// Bulk flows whose applications have more to write than is taken now.
#[derive(Debug, Default)]
pub(super) struct WriterLine {
    /// In the order in which they are called, each flow once.
    waiting: VecDeque<FlowId>,
    /// Those that were called and have not written yet, each with the time after which that is no longer awaited.
    called: VecDeque<(FlowId, Instant)>,
}

impl WriterLine {
    /// Takes a flow out of the line.
    pub(super) fn leave(&mut self, id: FlowId) {
        self.waiting.retain(|waiting| *waiting != id);
        self.called.retain(|(called, _)| *called != id);
    }

    fn is_called(&self, id: FlowId) -> bool {
        self.called.iter().any(|(called, _)| *called == id)
    }
}

impl Session {
    /// Takes as many of `bytes` as there is room for; 0 means that [`Event::Writable`] will tell of room.
    ///
    /// # Errors
    /// The reason, if the flow was aborted or is none of this session.
    pub fn write(&mut self, id: FlowId, bytes: &[u8]) -> Result<usize, AbortCode> {
        let intake = self.intake(id);
        let flow = self.flows.get_mut(&id).ok_or(AbortCode::Reset)?;
        if let Some(code) = flow.aborted {
            return Err(code);
        }
        if flow.send.is_finished() {
            return Err(AbortCode::Protocol);
        }
        let taken = bytes.len().min(flow.room(intake) as usize);
        flow.send.write(&bytes[..taken]);
        flow.writer_waits = taken < bytes.len();
        self.retained += taken as u64;
        if taken > 0 {
            self.line.called.retain(|(called, _)| *called != id);
        }
        if taken < bytes.len() {
            self.get_in_line(id);
        }
        self.enqueue(id);
        Ok(taken)
    }

    /// Whether a flow has room for a good part of what it takes at once, or will never have any. For whoever takes bytes from elsewhere only
    /// when they can go on.
    pub fn has_room(&self, id: FlowId) -> bool {
        let Some(flow) = self.flows.get(&id) else { return true };
        flow.aborted.is_some() || flow.send.is_finished() || flow.has_good_room(self.intake(id))
    }

    /// Has [`Event::Writable`] tell when [`Session::has_room`] becomes true.
    pub fn await_room(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.writer_waits = true;
            self.offer_room(id);
        }
    }

    /// What a flow takes from its application now.
    fn intake(&self, id: FlowId) -> Intake {
        if self.retained >= self.limits.retained {
            return Intake::Retained(RETAINED_FLOOR);
        }
        if self.flows.get(&id).is_none_or(|flow| flow.class() != Class::Bulk) {
            return Intake::Unsent(UNSENT.0);
        }
        if self.has_enough() || !self.line.waiting.is_empty() {
            return Intake::Unsent(if self.line.is_called(id) { self.portion() } else { 0 });
        }
        Intake::Unsent(self.unsent_limit)
    }

    /// Whether bulk flows have, or were just asked for, so many portions that no more are needed for a while.
    fn has_enough(&self) -> bool {
        let portions = self.waiting.get(&Class::Bulk).map_or(0, VecDeque::len) + self.line.called.len();
        portions as u64 * self.portion() >= SENDABLE_MIN.max(2 * self.unsent_limit)
    }

    fn portion(&self) -> u64 {
        (PORTION_TURNS * self.turn_max).clamp(PORTION.0, PORTION.1)
    }

    /// Puts a bulk flow whose writer waits at the end of the line, unless it waits only for others to keep less.
    fn get_in_line(&mut self, id: FlowId) {
        if self.intake(id) != Intake::Unsent(0) {
            return;
        }
        if let Some(flow) = self.flows.get_mut(&id)
            && !std::mem::replace(&mut flow.is_in_line, true)
        {
            self.line.waiting.push_back(id);
        }
    }

    /// Follows that a flow may have got room: tells its application, or lets it stand in line for it.
    pub(super) fn offer_room(&mut self, id: FlowId) {
        if self.flows.get(&id).is_none_or(|flow| !flow.writer_waits || flow.is_in_line) {
            return;
        }
        let intake = self.intake(id);
        if let Some(flow) = self.flows.get_mut(&id)
            && flow.has_good_room(intake)
        {
            flow.writer_waits = false;
            self.events.push_back(Event::Writable(id));
        } else {
            self.get_in_line(id);
        }
    }

    /// Calls those who are first in line as long as there is not enough to send.
    pub(super) fn call_writers(&mut self, now: Instant) {
        while self.line.called.front().is_some_and(|(_, until)| *until <= now) {
            self.line.called.pop_front();
        }
        while !self.line.waiting.is_empty() && !self.has_enough() {
            let Some(id) = self.line.waiting.pop_front() else { return };
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            flow.is_in_line = false;
            if std::mem::take(&mut flow.writer_waits) {
                self.line.called.push_back((id, now + CALL_LASTS));
                self.events.push_back(Event::Writable(id));
            }
        }
    }

    /// When the next writer in line is to be called at the latest.
    pub(super) fn next_call_at(&self) -> Option<Instant> {
        self.line.called.front().filter(|_| !self.line.waiting.is_empty()).map(|(_, until)| *until)
    }

    /// Whether bulk flows have more to send than has been taken from them.
    pub(super) fn writers_wait_in_line(&self) -> bool {
        !self.line.waiting.is_empty()
    }
}

/// Bytes that each flow may have unacknowledged however much the others have, so that none is shut out.
const RETAINED_FLOOR: u64 = 32 << 10;

/// What a writer gives when it is called: so many turns, and bytes within these bounds. Few make many calls, and many let the other flows of a
/// slow line wait long.
const PORTION_TURNS: u64 = 4;
const PORTION: (u64, u64) = (8 << 10, 64 << 10);

/// Bytes in portions, at least, beyond which no further writer is called. Fewer let a fast path run dry before those who are called have
/// written; more don't fit a processor's cache.
const SENDABLE_MIN: u64 = 1 << 20;

/// How long a called writer is awaited. One that has nothing to write must not hold up those behind it.
const CALL_LASTS: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::{
        ids::PathId,
        transfer::{
            path::PathInfo,
            schedule::Policy,
            session::{Limits, Read, Side},
        },
    };

    const PATH: PathId = PathId(1);
    const STEP: Duration = Duration::from_millis(1);
    const FLOW_BYTES: u64 = 1 << 20;
    const FLOWS: usize = 300;

    #[test]
    fn many_bulk_flows_are_taken_little_from_at_once_and_end_together() {
        let mut ends = Ends::new();
        let flows = ends.open(FLOWS);
        let mut most_unsent = 0;
        let mut least_when_first_ended = None;
        ends.run(|ends| {
            let unsent: Vec<u64> = flows.iter().map(|flow| ends.near.flows[flow].send.unsent()).collect();
            let sent: Vec<u64> = flows.iter().zip(&unsent).map(|(flow, unsent)| ends.written[flow] - unsent).collect();
            if sent.iter().all(|sent| *sent > FLOW_BYTES / 2) {
                most_unsent = most_unsent.max(unsent.iter().sum());
            }
            if least_when_first_ended.is_none() && sent.contains(&FLOW_BYTES) {
                least_when_first_ended = sent.into_iter().min();
            }
        });
        assert!(most_unsent > 0 && most_unsent <= 2 * SENDABLE_MIN.max(2 * ends.near.unsent_limit), "{most_unsent}");
        assert!(least_when_first_ended.is_some_and(|least| least > FLOW_BYTES * 3 / 4), "{least_when_first_ended:?}");
        assert!(ends.near.line.waiting.is_empty(), "all have written");
    }

    #[test]
    fn writers_that_are_called_and_have_nothing_to_write_hold_up_nobody() {
        let mut ends = Ends::new();
        let flows = ends.open(FLOWS);
        let (silent, others) = flows.split_at(FLOWS / 2);
        ends.silent_behind = silent.iter().map(|flow| (*flow, FLOW_BYTES / 2)).collect();
        ends.run(|_| {});
        assert!(others.iter().all(|flow| ends.written[flow] == FLOW_BYTES));
    }

    #[test]
    fn a_flow_that_is_reset_in_line_leaves_it() {
        let mut ends = Ends::new();
        let flows = ends.open(FLOWS);
        let mut in_line = (0..1000).filter_map(|_| {
            ends.step();
            ends.near.line.waiting.front().copied()
        });
        let id = in_line.next().expect("a flow in line");
        ends.near.release(id);
        assert!(!ends.near.line.waiting.contains(&id) && ends.near.flows.len() == flows.len());
    }

    #[test]
    fn flows_that_nobody_reads_leave_the_others_what_all_may_keep() {
        let mut ends = Ends::new();
        ends.near.limits.retained = 4 << 20;
        let flows = ends.open(101);
        let (unread, read) = flows.split_at(100);
        ends.unread = unread.iter().copied().collect();
        ends.run(|_| {});
        assert_eq!(ends.written[&read[0]], FLOW_BYTES);
        assert!(ends.near.retained < ends.near.limits.retained, "{}", ends.near.retained);
    }

    /// Two sessions over a path that loses nothing, and writers that write whenever there is room.
    struct Ends {
        now: Instant,
        near: Session,
        far: Session,
        written: BTreeMap<FlowId, u64>,
        /// Flows that write no more after so many bytes, although they are called.
        silent_behind: BTreeMap<FlowId, u64>,
        /// Flows of which nothing is read.
        unread: BTreeSet<FlowId>,
    }

    impl Ends {
        fn new() -> Self {
            let now = Instant::now();
            let end = |side| {
                let mut session = Session::new(now, side, Policy::Adaptive, Limits::default());
                session.add_path(now, PATH, PathInfo { weight: Default::default(), max_datagram_bytes: 1400, rtt: 2 * STEP });
                session
            };
            Self {
                now,
                near: end(Side::Proxy),
                far: end(Side::Reconst),
                written: BTreeMap::new(),
                silent_behind: BTreeMap::new(),
                unread: BTreeSet::new(),
            }
        }

        fn open(&mut self, flows: usize) -> Vec<FlowId> {
            let flows: Vec<FlowId> = (0..flows).map(|_| self.near.open().expect("a flow")).collect();
            self.written.extend(flows.iter().map(|flow| (*flow, 0)));
            for &flow in &flows {
                self.write(flow);
            }
            flows
        }

        fn write(&mut self, id: FlowId) {
            let written = self.written.get_mut(&id).expect("one of ours");
            let left = FLOW_BYTES - *written;
            if left > 0 && self.silent_behind.get(&id).is_none_or(|until| *written < *until) {
                *written += self.near.write(id, &vec![7; left as usize]).expect("an open flow") as u64;
            }
        }

        /// A millisecond: what either end sends arrives at the other.
        fn step(&mut self) {
            self.now += STEP;
            self.near.handle_timeout(self.now);
            self.far.handle_timeout(self.now);
            while let Some(transmit) = self.near.poll_transmit(self.now) {
                self.far.handle_datagram(self.now + STEP, PATH, transmit.datagram).expect("a datagram of the other end");
            }
            while let Some(event) = self.far.poll_event() {
                if let Event::Readable(id) = event
                    && !self.unread.contains(&id)
                {
                    while let Read::Bytes(_) = self.far.read(id, usize::MAX) {}
                }
            }
            self.now += STEP;
            while let Some(transmit) = self.far.poll_transmit(self.now) {
                self.near.handle_datagram(self.now, PATH, transmit.datagram).expect("a datagram of the other end");
            }
            while let Some(event) = self.near.poll_event() {
                if let Event::Writable(id) = event {
                    self.write(id);
                }
            }
        }

        /// Until every flow has written and sent what it has, or nothing has moved for a second.
        fn run(&mut self, mut look: impl FnMut(&Self)) {
            let mut before = (0, 0);
            let mut moved_at = self.now;
            while self.now < moved_at + Duration::from_secs(1) {
                self.step();
                look(self);
                let moved = (self.written.values().sum(), self.near.counters().delivered_bytes);
                if moved != before {
                    (before, moved_at) = (moved, self.now);
                }
            }
        }
    }
}
