//! Parcels in a session: from their flows onto paths, and from paths to their flows.
//!
//! They wait beside the chunks, in the same classes, and whichever waited first of a class goes first. A UDP flow is interactive within a budget of its
//! own and of all such flows, by rates that are parts of the session's; what is beyond it takes turns with bulk. So neither kind starves the other,
//! and control goes before both.

use std::{
    collections::{BTreeMap, BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Event, Read, Session, SessionError, Transmit,
    transmit::{PENDING_LOOK_AHEAD, WORTHWHILE_ROOM},
};
use crate::{
    ids::{FlowId, PathId},
    transfer::{
        control::AbortCode,
        packet::{DatagramWriter, Fragment},
        parcel::{Assembly, Budget, FIRST_FLIGHT_BYTES, Room, SESSION_QUEUE_BYTES, STALE_AFTER, STALE_AFTER_MAX},
        path::Path,
        recovery::Pieces,
        schedule::{Class, Pending, Policy, Scheduler, second_best},
    },
};

/// What a session keeps for the parcels of all its flows.
#[derive(Debug)]
pub(super) struct ParcelTraffic {
    /// Flows whose parcels wait for a path, by class.
    waiting: BTreeMap<Class, VecDeque<FlowId>>,
    /// Whose turn it is: not the chunks' turns, so that parcels go strictly in turn whatever else is sent.
    scheduler: Scheduler,
    budget: Budget,
    assembly: Assembly,
    queued_bytes: usize,
    arrived_bytes: usize,
}

/// The part of the session's rate that one UDP flow, and that all together, may take before bulk: a call has what it needs, and half
/// is left for the rest however many flood.
const FLOW_SHARE: f64 = 0.25;
const SESSION_SHARE: f64 = 0.5;

/// What is left of a session's queue that is too long.
const SHORTENED_BYTES: usize = SESSION_QUEUE_BYTES / 16 * 15;

impl ParcelTraffic {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            waiting: BTreeMap::new(),
            scheduler: Scheduler::new(policy),
            budget: Budget::default(),
            assembly: Assembly::default(),
            queued_bytes: 0,
            arrived_bytes: 0,
        }
    }

    pub(super) fn something_waits(&self) -> bool {
        self.waiting.values().any(|flows| !flows.is_empty())
    }

    pub(super) fn expires_at(&self) -> Option<Instant> {
        self.assembly.expires_at()
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.assembly.expire(now);
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.queued_bytes + self.arrived_bytes + self.assembly.memory_bytes()
    }
}

impl Session {
    /// Makes a flow one that sends parcels, spread over paths by `policy`. What arrived before is kept.
    pub fn carry_parcels(&mut self, id: FlowId, policy: Policy) {
        if let Some(flow) = self.flows.get_mut(&id)
            && flow.aborted.is_none()
        {
            flow.parcels.get_or_insert_default().policy = policy;
        }
    }

    /// Sends a parcel of at most [`PARCEL_BYTES_MAX`](crate::transfer::packet::PARCEL_BYTES_MAX) bytes, if a path takes it soon enough.
    ///
    /// # Errors
    /// The reason, if the flow was aborted, is none of this session or sends no parcels.
    pub fn send_parcel(&mut self, now: Instant, id: FlowId, bytes: Bytes) -> Result<(), AbortCode> {
        self.clock = now;
        let flow = self.flows.get_mut(&id).ok_or(AbortCode::Reset)?;
        if let Some(code) = flow.aborted {
            return Err(code);
        }
        let parcels = flow.parcels.as_mut().ok_or(AbortCode::Protocol)?;
        let before = parcels.queued_bytes();
        let dropped = parcels.push(now, bytes);
        self.parcels.queued_bytes = self.parcels.queued_bytes + parcels.queued_bytes() - before;
        self.counters.dropped_parcels += dropped;
        if self.parcels.queued_bytes > SESSION_QUEUE_BYTES {
            self.shorten_queue();
        }
        self.enqueue_parcels(now, id);
        Ok(())
    }

    /// Takes the flow's next parcel that arrived.
    pub fn read_parcel(&mut self, id: FlowId) -> Read {
        let Some(flow) = self.flows.get_mut(&id) else { return Read::Aborted(AbortCode::Reset) };
        if let Some(code) = flow.aborted {
            return Read::Aborted(code);
        }
        let Some(parcels) = &mut flow.parcels else { return Read::Blocked };
        let before = parcels.arrived_bytes();
        let Some(bytes) = parcels.take() else { return Read::Blocked };
        self.parcels.arrived_bytes -= before - parcels.arrived_bytes();
        Read::Bytes(bytes)
    }

    pub(super) fn handle_fragment(&mut self, now: Instant, fragment: Fragment) -> Result<(), SessionError> {
        let id = fragment.flow;
        if id == FlowId::CONTROL || (!self.flows.contains_key(&id) && !self.accept(id)?) {
            return Ok(());
        }
        let flow = self.flows.get_mut(&id).expect("is there or was accepted");
        if flow.aborted.is_some() {
            return Ok(());
        }
        let parcels = flow.parcels.get_or_insert_default();
        let number = fragment.number;
        if !parcels.is_new(number) || self.parcels.arrived_bytes > SESSION_QUEUE_BYTES {
            self.counters.discarded_parcels += 1;
            return Ok(());
        }
        let bytes = if fragment.is_whole() {
            // A copy, so that a few bytes don't keep the datagram that they came in.
            Bytes::copy_from_slice(&fragment.bytes)
        } else {
            let Some(bytes) = self.parcels.assembly.insert(now, fragment) else { return Ok(()) };
            bytes
        };
        self.counters.received_parcels += 1;
        self.counters.received_parcel_bytes += bytes.len() as u64;
        let before = parcels.arrived_bytes();
        self.counters.discarded_parcels += parcels.receive(number, bytes);
        self.parcels.arrived_bytes = self.parcels.arrived_bytes + parcels.arrived_bytes() - before;
        self.events.push_back(Event::Parcel(id));
        Ok(())
    }

    /// Lets go of all parcels of a flow that is over.
    pub(super) fn drop_parcels(&mut self, id: FlowId) {
        let Some(parcels) = self.flows.get_mut(&id).and_then(|flow| flow.parcels.take()) else { return };
        self.parcels.queued_bytes -= parcels.queued_bytes();
        self.parcels.arrived_bytes -= parcels.arrived_bytes();
        self.parcels.assembly.forget(id);
        if let Some(class) = parcels.waits_in
            && let Some(flows) = self.parcels.waiting.get_mut(&class)
        {
            flows.retain(|waiting| *waiting != id);
        }
    }

    /// Whether parcels of `class` have waited longer for a path than its chunks. Those that have waited too long are dropped first.
    pub(super) fn parcels_are_first(&mut self, now: Instant, class: Class) -> bool {
        if self.parcels.waiting.get(&class).is_none_or(VecDeque::is_empty) {
            return false;
        }
        let stale_after = self.stale_after();
        while let Some(&id) = self.parcels.waiting.get(&class).and_then(VecDeque::front) {
            let Some(parcels) = self.flows.get_mut(&id).and_then(|flow| flow.parcels.as_mut()) else { break };
            let before = parcels.queued_bytes();
            self.counters.dropped_parcels += parcels.drop_stale(now, stale_after);
            self.parcels.queued_bytes -= before - parcels.queued_bytes();
            if parcels.has_waiting() {
                let ticket = parcels.ticket;
                let chunks = self.waiting.get(&class).and_then(VecDeque::front).and_then(|id| self.flows.get(id));
                return chunks.is_none_or(|flow| ticket < flow.ticket);
            }
            self.unqueue_first(class);
        }
        false
    }

    /// Sends parcels of `class` in one datagram, or in two alike.
    pub(super) fn transmit_parcels(&mut self, now: Instant, class: Class) -> Option<Transmit> {
        let first = *self.parcels.waiting.get(&class)?.front()?;
        let policy = self.flows.get(&first)?.parcels.as_ref()?.policy;
        let pending = self.pending_parcels(class);
        let candidates = std::mem::take(&mut self.candidates);
        let chosen = self.parcels.scheduler.choose_by(policy, &candidates, pending);
        // A flow that floods gains nothing by copies, and they would take half of what all have.
        let is_copied = policy == Policy::Redundant && class == Class::Interactive;
        let copy = chosen.filter(|_| is_copied).and_then(|chosen| second_best(&candidates, chosen, pending));
        self.candidates = candidates;
        let mut writers = Writers(Vec::with_capacity(2));
        for id in [chosen, copy].into_iter().flatten() {
            let path: &Path = self.paths.get(&id)?;
            writers.0.push((id, DatagramWriter::new_in(&mut self.store, path.max_datagram_bytes, Some(path.recovery.next_seq()))));
        }
        // Where each takes its turn, each parcel has a datagram of its own.
        let is_shared = matches!(policy, Policy::Adaptive | Policy::Redundant);
        self.fill_with_parcels(now, class, &mut writers, is_shared);
        let mut transmits = writers.0.into_iter().filter(|(_, writer)| !writer.is_empty());
        let (id, writer) = transmits.next()?;
        let copies: Vec<_> = transmits.collect();
        let transmit = self.send_tracked(now, id, writer, Pieces::default());
        for (id, writer) in copies {
            let copy = self.send_tracked(now, id, writer, Pieces::default());
            self.outbox.push_back(copy);
        }
        Some(transmit)
    }

    fn fill_with_parcels(&mut self, now: Instant, class: Class, writers: &mut Writers, is_shared: bool) {
        while writers.is_empty() || (is_shared && writers.remaining() > WORTHWHILE_ROOM) {
            let Some(&id) = self.parcels.waiting.get(&class).and_then(VecDeque::front) else { return };
            let parcels = self.flows.get_mut(&id).and_then(|flow| flow.parcels.as_mut()).expect("what waits is there");
            let before = parcels.queued_bytes();
            let Some(fragment) = parcels.cut(id, writers) else {
                // Nothing that fits: a path whose datagrams are that small is none for this flow, and others may not wait for it.
                if writers.is_empty() {
                    self.unqueue_first(class);
                    self.enqueue_parcels(now, id);
                }
                return;
            };
            self.parcels.queued_bytes -= before - parcels.queued_bytes();
            let bytes = fragment.bytes.len();
            if class == Class::Interactive {
                parcels.budget.spend(bytes * writers.0.len());
                self.parcels.budget.spend(bytes * writers.0.len());
            }
            if fragment.offset == 0 {
                self.counters.sent_parcels += 1;
            }
            self.counters.sent_parcel_bytes += bytes as u64;
            writers.0.iter_mut().for_each(|(_, writer)| writer.put_fragment(&fragment));
            self.unqueue_first(class);
            self.enqueue_parcels(now, id);
        }
    }

    fn enqueue_parcels(&mut self, now: Instant, id: FlowId) {
        let rate = self.active_rate();
        let Some(parcels) = self.flows.get_mut(&id).and_then(|flow| flow.parcels.as_mut()) else { return };
        if parcels.waits_in.is_some() || !parcels.has_waiting() {
            return;
        }
        let is_within = self.parcels.budget.allows(now, rate * SESSION_SHARE) & parcels.budget.allows(now, rate * FLOW_SHARE);
        let class = if is_within { Class::Interactive } else { Class::Bulk };
        parcels.waits_in = Some(class);
        parcels.ticket = self.next_ticket;
        self.next_ticket += 1;
        self.parcels.waiting.entry(class).or_default().push_back(id);
    }

    fn unqueue_first(&mut self, class: Class) {
        let Some(id) = self.parcels.waiting.get_mut(&class).and_then(VecDeque::pop_front) else { return };
        if let Some(parcels) = self.flows.get_mut(&id).and_then(|flow| flow.parcels.as_mut()) {
            parcels.waits_in = None;
        }
    }

    /// Parcels and chunks that wait in `class` and those before it.
    fn pending_parcels(&mut self, class: Class) -> Pending {
        let mut bytes = match self.pending(class) {
            Some(Pending::Endless) => return Pending::Endless,
            Some(Pending::Bytes(bytes)) => bytes,
            None => 0,
        };
        for (place, id) in self.parcels.waiting.range(..=class).flat_map(|(_, flows)| flows).enumerate() {
            if place >= PENDING_LOOK_AHEAD {
                return Pending::Endless;
            }
            let parcels = self.flows.get(id).and_then(|flow| flow.parcels.as_ref());
            bytes += parcels.map_or(0, |parcels| parcels.queued_bytes() as u64);
        }
        Pending::Bytes(bytes)
    }

    /// Drops the oldest parcels of the flows that take most of the queue (as FQ-CoDel does, RFC 8290 §4.1.2): so many that those flows need not be
    /// looked for again with the next parcel.
    fn shorten_queue(&mut self) {
        let queued = |id: &FlowId| self.flows.get(id).and_then(|flow| flow.parcels.as_ref()).map_or(0, |parcels| parcels.queued_bytes());
        let mut fattest: BinaryHeap<_> = self.parcels.waiting.values().flatten().map(|id| (queued(id), *id)).collect();
        while self.parcels.queued_bytes > SHORTENED_BYTES
            && let Some((before, id)) = fattest.pop()
        {
            let Some(parcels) = self.flows.get_mut(&id).and_then(|flow| flow.parcels.as_mut()) else { continue };
            if parcels.drop_head() {
                self.parcels.queued_bytes -= before - parcels.queued_bytes();
                self.counters.dropped_parcels += 1;
                fattest.push((parcels.queued_bytes(), id));
            }
        }
    }

    fn active_rate(&self) -> f64 {
        self.paths.values().filter(|path| path.is_active()).map(|path| path.congestion.capacity()).sum()
    }

    fn stale_after(&self) -> Duration {
        let first_flight = FIRST_FLIGHT_BYTES / self.active_rate().max(1.0);
        Duration::from_secs_f64(first_flight.min(STALE_AFTER_MAX.as_secs_f64())).max(STALE_AFTER)
    }
}

/// One datagram, or two for two paths that get the same.
struct Writers(Vec<(PathId, DatagramWriter)>);

impl Writers {
    fn is_empty(&self) -> bool {
        self.0.iter().all(|(_, writer)| writer.is_empty()) && !self.0.is_empty()
    }

    fn remaining(&self) -> usize {
        self.0.iter().map(|(_, writer)| writer.remaining()).min().unwrap_or(0)
    }
}

impl Room for Writers {
    fn for_fragment(&self, flow: FlowId, number: u64, part: Option<(u32, u32)>) -> Option<usize> {
        self.0.iter().map(|(_, writer)| writer.fragment_room(flow, number, part)).min().flatten()
    }

    fn alone(&self, flow: FlowId, number: u64) -> usize {
        self.0.iter().map(|(_, writer)| writer.fragment_room_alone(flow, number)).min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::session::{Limits, Side};

    /// Ends in no time that anybody waits for if each parcel has the fattest flow looked for among all.
    #[test]
    fn a_flood_over_many_flows_costs_the_fat_ones_their_oldest_and_each_parcel_the_same() {
        let now = Instant::now();
        let mut session = Session::new(now, Side::Proxy, Policy::Adaptive, Limits::default());
        let flows: Vec<FlowId> = (0..Limits::default().flows).map(|_| session.open().expect("a flow")).collect();
        let parcel = |len| Bytes::from(vec![7; len]);
        for &id in &flows {
            session.carry_parcels(id, Policy::Adaptive);
            session.send_parcel(now, id, parcel(100)).expect("a flow of parcels");
        }
        let queued = |session: &Session, id| session.flows[id].parcels.as_ref().expect("a flow of parcels").queued_bytes();
        let thin = queued(&session, &flows[0]);
        for place in 0..500_000 {
            session.send_parcel(now, flows[place % 100], parcel(1000)).expect("a flow of parcels");
            assert!(session.parcels.queued_bytes <= SESSION_QUEUE_BYTES);
        }
        assert!(flows[100..].iter().all(|id| queued(&session, id) == thin));
        assert_eq!(session.parcels.queued_bytes, flows.iter().map(|id| queued(&session, id)).sum::<usize>());
    }
}
