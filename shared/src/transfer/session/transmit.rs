//! What a session sends: acknowledgements and pings when they are due, chunks when a path may send, late ones again on another path.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{CONTROL_WINDOW, Event, Session, Transmit};
use crate::{
    ids::{FlowId, PathId},
    transfer::{
        control::Message,
        packet::DatagramWriter,
        path::{OVERHEAD_BYTES, PathState},
        recovery::Pieces,
        schedule::{Class, Pending},
        send_buffer::Piece,
    },
};

impl Session {
    /// Puts a flow among those that wait for a path, if it has something to send.
    pub(super) fn enqueue(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        if flow.queued.is_some() || !flow.send.has_piece() {
            return;
        }
        let class = if id == FlowId::CONTROL { Class::Control } else { flow.class() };
        flow.queued = Some(class);
        flow.ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.entry(class).or_default().push_back(id);
    }

    /// Writes what is owed into the control flow, as late as possible, so that it is said once.
    pub(super) fn put_control_together(&mut self, now: Instant) {
        let tells_credit = self.credit_due.is_some_and(|due| due <= now) || self.credit_owed.len() >= CREDITS_AT_ONCE;
        if !tells_credit
            && self.aborts_owed.is_empty()
            && self.leaves_owed.is_empty()
            && self.fulls_owed.is_empty()
            && self.fair_rates_owed.is_empty()
            && self.roster_owed.is_none()
            && self.quotas_owed.is_none()
            && self.policy_owed.is_none()
        {
            return;
        }
        if !self.control_takes_more() {
            return;
        }
        let has_room = self.flows[&FlowId::CONTROL].send.retained() < CONTROL_WINDOW / 2;
        let mut bytes = Vec::new();
        while bytes.len() < CONTROL_AHEAD as usize
            && let Some((path, why)) = self.leaves_owed.pop_first()
        {
            Message::Leave { path, why }.encode(&mut bytes);
        }
        while bytes.len() < CONTROL_AHEAD as usize
            && let Some(path) = self.fulls_owed.pop_first()
        {
            Message::Full { path }.encode(&mut bytes);
        }
        while bytes.len() < CONTROL_AHEAD as usize
            && let Some((path, rate)) = self.fair_rates_owed.pop_first()
        {
            Message::FairRate { path, rate }.encode(&mut bytes);
        }
        if let Some(policy) = self.policy_owed.take() {
            Message::Policy { policy }.encode(&mut bytes);
        }
        while bytes.len() < CONTROL_AHEAD as usize
            && let Some((flow, code)) = self.aborts_owed.pop_front()
        {
            Message::Abort { flow, code }.encode(&mut bytes);
        }
        while tells_credit
            && bytes.len() < CONTROL_AHEAD as usize
            && let Some(id) = self.credit_owed.pop_first()
        {
            if let Some(flow) = self.flows.get_mut(&id)
                && std::mem::take(&mut flow.owes_credit)
            {
                Message::Credit { flow: id, limit: flow.receive.limit() }.encode(&mut bytes);
            }
        }
        if self.credit_owed.is_empty() {
            self.credit_due = None;
        }
        if has_room && let Some(lines) = self.roster_owed.take() {
            Message::Roster { lines }.encode(&mut bytes);
        }
        if has_room && let Some(quotas) = self.quotas_owed.take() {
            Message::Quotas { quotas }.encode(&mut bytes);
        }
        let control = self.flows.get_mut(&FlowId::CONTROL).expect("flow 0 is always there");
        control.send.write(&bytes);
        self.enqueue(FlowId::CONTROL);
    }

    fn control_takes_more(&self) -> bool {
        let control = &self.flows[&FlowId::CONTROL].send;
        control.unsent() <= CONTROL_AHEAD && control.retained() <= CONTROL_WINDOW - 2 * CONTROL_AHEAD
    }

    /// When credit is told at the latest, if the control flow takes it.
    pub(super) fn credit_told_at(&self) -> Option<Instant> {
        self.credit_due.filter(|_| self.control_takes_more())
    }

    pub(super) fn transmit_ack(&mut self, now: Instant) -> Option<Transmit> {
        let id = self.paths.values().find(|path| path.acks.due().is_some_and(|due| due <= now))?.id;
        let carrier = self.fastest_active().filter(|_| !self.paths[&id].is_active());
        let path = self.paths.get_mut(&id).expect("found above");
        let mut writer = DatagramWriter::new_in(&mut self.store, path.max_datagram_bytes, None);
        path.put_ack(now, self.epoch, &mut writer);
        let datagram = writer.finish();
        if let Some(carrier) = carrier
            && self.paths[&carrier].max_datagram_bytes >= datagram.len()
        {
            self.count_sent(carrier, datagram.len());
            self.outbox.push_back(Transmit { path: carrier, datagram: datagram.clone() });
        }
        self.count_sent(id, datagram.len());
        Some(Transmit { path: id, datagram })
    }

    pub(super) fn transmit_ping(&mut self, now: Instant) -> Option<Transmit> {
        let id = self.paths.values().find(|path| self.ping_at(path).is_some_and(|at| at <= now))?.id;
        let path = self.paths.get_mut(&id).expect("found above");
        let mut writer = DatagramWriter::new_in(&mut self.store, path.max_datagram_bytes, Some(path.recovery.next_seq()));
        writer.put_ping();
        if path.on_ping_sent(now) {
            self.events.push_back(Event::Path(id, PathState::Dead));
        }
        Some(self.send_tracked(now, id, writer, Pieces::default()))
    }

    pub(super) fn transmit_chunks(&mut self, now: Instant) -> Option<Transmit> {
        self.look_at_paths(now);
        self.call_writers(now);
        let classes = [Class::Control, Class::Interactive, Class::Bulk];
        for class in classes {
            let sent = if self.parcels_are_first(now, class) {
                self.transmit_parcels(now, class).or_else(|| self.transmit_pieces(now, class))
            } else {
                self.transmit_pieces(now, class).or_else(|| self.transmit_parcels(now, class))
            };
            if sent.is_some() {
                return sent;
            }
        }
        let idle: Vec<(PathId, Duration)> =
            self.candidates.iter().filter(|c| c.may_send).map(|c| (c.path, c.arrival(Pending::Endless))).collect();
        for (id, arrival) in idle {
            if let Some(path) = self.paths.get_mut(&id) {
                let in_flight = path.recovery.in_flight_bytes();
                path.congestion.on_app_limited(in_flight);
            }
            if let Some(transmit) = self.reinject(now, id, arrival) {
                return Some(transmit);
            }
        }
        None
    }

    /// Sends what the flows of `class` have to send, and a copy of it if that is the policy.
    fn transmit_pieces(&mut self, now: Instant, class: Class) -> Option<Transmit> {
        let pending = self.pending(class)?;
        let candidates = std::mem::take(&mut self.candidates);
        let chosen = self.scheduler.choose(now, &candidates, pending);
        let copy = chosen.and_then(|chosen| self.scheduler.choose_copy(&candidates, chosen, pending));
        self.candidates = candidates;
        let (transmit, pieces) = self.fill_datagram(now, chosen?, class)?;
        if let Some(copy) = copy {
            self.send_copy(now, copy, &pieces);
        }
        Some(transmit)
    }

    /// Renews the scheduler's view of the paths, and when the first of those that only their pace holds back may send.
    pub(super) fn look_at_paths(&mut self, now: Instant) {
        if self.looked_at.replace(now) != Some(now) {
            self.renew_limits();
        }
        self.paced_until = None;
        self.candidates.clear();
        let something_waits = self.waiting.values().any(|flows| !flows.is_empty()) || self.parcels.something_waits();
        let any_stays = self.paths.values().any(|path| path.is_staying());
        for path in self.paths.values_mut().filter(|path| if any_stays { path.is_staying() } else { path.is_active() }) {
            let (candidate, paced_until) = path.candidate(now);
            self.candidates.push(candidate);
            if something_waits && let Some(at) = paced_until {
                self.paced_until = Some(self.paced_until.map_or(at, |earlier| earlier.min(at)));
            }
        }
    }

    /// What waits in `class` and those before it; `None` if nothing waits in `class` itself.
    pub(super) fn pending(&mut self, class: Class) -> Option<Pending> {
        if self.waiting.get(&class).is_none_or(VecDeque::is_empty) {
            return None;
        }
        if class == Class::Bulk && self.writers_wait_in_line() {
            return Some(Pending::Endless);
        }
        let unsent_limit = self.unsent_limit;
        let mut bytes = 0;
        let waiting = self.waiting.range(..=class).flat_map(|(_, flows)| flows);
        for (place, id) in waiting.enumerate() {
            let Some(flow) = self.flows.get(id) else { continue };
            if flow.is_backlogged(unsent_limit) || place >= PENDING_LOOK_AHEAD {
                return Some(Pending::Endless);
            }
            bytes += flow.send.ready() + WORTHWHILE_ROOM as u64;
        }
        Some(Pending::Bytes(bytes))
    }

    /// Fills a datagram for path `id` from the flows of `class` that wait, one after the other.
    pub(super) fn fill_datagram(&mut self, now: Instant, id: PathId, class: Class) -> Option<(Transmit, Pieces)> {
        let path = self.paths.get(&id)?;
        let mut writer = DatagramWriter::new_in(&mut self.store, path.max_datagram_bytes, Some(path.recovery.next_seq()));
        let takes_ack = path.ack_rides(now);
        if takes_ack && let Some(path) = self.paths.get_mut(&id) {
            path.put_ack(now, self.epoch, &mut writer);
        }
        let mut pieces = Pieces::default();
        while pieces.is_empty() || writer.remaining() > WORTHWHILE_ROOM {
            let Some(flow_id) = self.next_in_turn(now, id, class) else { break };
            let Some(flow) = self.flows.get_mut(&flow_id) else { continue };
            flow.queued = None;
            let mut keeps_turn = false;
            let offset = flow.send.next_offset();
            let whole = writer.chunk_room(flow_id, offset, false).unwrap_or(0);
            if let Some(piece) = flow.send.cut(flow_id, whole) {
                // The last chunk of a datagram needs no length.
                let length_given = whole - piece.len as usize > WORTHWHILE_ROOM;
                writer
                    .put_chunk(flow_id, piece.offset, piece.fin, piece.len as usize, length_given, |out| flow.send.copy_into(&piece, out));
                flow.on_sent(now, u64::from(piece.len));
                keeps_turn = class == Class::Bulk && flow.keeps_turn(now, id, u64::from(piece.len), self.turn_max);
                pieces.push(piece);
                self.offer_room(flow_id);
            }
            if keeps_turn && let Some(flow) = self.flows.get_mut(&flow_id) {
                flow.queued = Some(class);
                self.waiting.entry(class).or_default().push_front(flow_id);
            } else {
                self.enqueue(flow_id);
            }
        }
        if pieces.is_empty() {
            if takes_ack && let Some(path) = self.paths.get_mut(&id) {
                path.acks.ask_again(now);
            }
            return None;
        }
        Some((self.send_tracked(now, id, writer, pieces.clone()), pieces))
    }

    /// Takes the next flow of `class` for path `path` from those that wait. One whose turn another path carries is left to that path as long as
    /// there are others, so that what the other end reads at once is in order.
    fn next_in_turn(&mut self, now: Instant, path: PathId, class: Class) -> Option<FlowId> {
        let Self { waiting, flows, paths, .. } = self;
        let waiting = waiting.get_mut(&class)?;
        let is_free = |id: &FlowId| flows.get(id).is_none_or(|flow| !flow.is_in_turn_elsewhere(now, path));
        let place = waiting.iter().take(paths.len()).position(is_free).unwrap_or(0);
        waiting.remove(place)
    }

    /// Sends what is late on another path on idle path `id`, where it arrives after `arrival`.
    pub(super) fn reinject(&mut self, now: Instant, id: PathId, arrival: Duration) -> Option<Transmit> {
        let others: Vec<PathId> = self.paths.values().filter(|path| path.id != id && path.is_active()).map(|path| path.id).collect();
        for other in others {
            let pieces = self.paths.get_mut(&other).and_then(|path| path.take_late(now, arrival));
            let Some(pieces) = pieces else { continue };
            let (transmit, left) = self.send_again(now, id, &pieces);
            // Their first path no longer answers for them.
            self.requeue(&left);
            if transmit.is_some() {
                return transmit;
            }
        }
        None
    }

    pub(super) fn send_copy(&mut self, now: Instant, id: PathId, pieces: &Pieces) {
        let (transmit, _) = self.send_again(now, id, pieces);
        self.outbox.extend(transmit);
    }

    /// Sends what the other end still lacks of `pieces` on path `id`, as far as one datagram takes it; gives the rest of them as well.
    pub(super) fn send_again(&mut self, now: Instant, id: PathId, pieces: &Pieces) -> (Option<Transmit>, Vec<Piece>) {
        let mut left = Vec::new();
        let Some(path) = self.paths.get(&id) else { return (None, pieces.iter().collect()) };
        let mut writer = DatagramWriter::new_in(&mut self.store, path.max_datagram_bytes, Some(path.recovery.next_seq()));
        let mut sent = Pieces::default();
        let mut bytes = 0;
        let mut pieces = pieces.iter().peekable();
        while let Some(piece) = pieces.next() {
            let Some(flow) = self.flows.get(&piece.flow).filter(|flow| flow.aborted.is_none()) else { continue };
            let Some(mut piece) = flow.send.missing_part(&piece) else { continue };
            let length_given = pieces.peek().is_some();
            let room = writer.chunk_room(piece.flow, piece.offset, length_given).filter(|room| *room > 0 || piece.len == 0);
            let Some(room) = room else {
                left.push(piece);
                continue;
            };
            if piece.len as usize > room {
                let taken = room as u32;
                left.push(Piece { offset: piece.offset + u64::from(taken), len: piece.len - taken, ..piece });
                piece = Piece { len: taken, fin: false, ..piece };
            }
            writer.put_chunk(piece.flow, piece.offset, piece.fin, piece.len as usize, length_given, |out| {
                flow.send.copy_into(&piece, out);
            });
            bytes += u64::from(piece.len);
            sent.push(piece);
        }
        if writer.is_empty() {
            return (None, left);
        }
        let transmit = self.send_tracked(now, id, writer, sent);
        if let Some(path) = self.paths.get_mut(&id) {
            path.counters.reinjected_bytes += bytes;
            path.recovery.on_copy_sent();
        }
        (Some(transmit), left)
    }

    pub(super) fn send_tracked(&mut self, now: Instant, id: PathId, writer: DatagramWriter, pieces: Pieces) -> Transmit {
        let datagram = writer.finish();
        let path = self.paths.get_mut(&id).expect("the caller has looked it up");
        let bytes = datagram.len() as u64 + OVERHEAD_BYTES;
        let due = now + path.arrival(now, bytes);
        path.congestion.on_sent(now, bytes, path.recovery.in_flight_bytes());
        path.recovery.on_sent(now, bytes as u32, due, pieces);
        path.on_tracked_sent(now);
        self.count_sent(id, datagram.len());
        Transmit { path: id, datagram }
    }

    pub(super) fn count_sent(&mut self, id: PathId, bytes: usize) {
        if let Some(path) = self.paths.get_mut(&id) {
            path.counters.sent_datagrams += 1;
            path.counters.sent_bytes += bytes as u64;
            path.carrier_room = path.carrier_room.saturating_sub(bytes + CARRIER_OVERHEAD_BYTES);
        }
    }

    /// A flow takes ahead of what is sent what the paths carry in the time that the longest takes, so that a path's delay can be weighed
    /// against what is pending. A bulk flow's turn is short in time, and long enough that its other end reads more than one chunk at once.
    fn renew_limits(&mut self) {
        let active = self.paths.values().filter(|path| path.is_active());
        let (rate, longest) = active.fold((0.0, Duration::ZERO), |(rate, longest), path| {
            (rate + path.congestion.capacity(), longest.max(path.congestion.min_rtt()))
        });
        self.unsent_limit = ((rate * longest.as_secs_f64()) as u64).clamp(UNSENT.0, UNSENT.1);
        self.turn_max = ((rate * TURN.as_secs_f64()) as u64).min(TURN_BYTES_MAX);
    }

    pub(super) fn fastest_active(&self) -> Option<PathId> {
        self.paths
            .values()
            .filter(|path| path.is_active())
            .min_by_key(|path| (path.is_leaving, path.congestion.min_rtt()))
            .map(|path| path.id)
    }
}

/// Control bytes written ahead of what has been sent: little, so that what is owed is put together late.
const CONTROL_AHEAD: u64 = 4 << 10;

/// How long credit is owed before it is told, unless that of so many flows is: with many flows at once the messages share a datagram and the
/// processor time that one costs. Short beside what the window of a flow lasts, of which a quarter is told at once.
pub(super) const CREDIT_DELAY: Duration = Duration::from_millis(1);
const CREDITS_AT_ONCE: usize = 32;

/// What a datagram takes of its carrier's room besides its own bytes, at least: a handle on it.
const CARRIER_OVERHEAD_BYTES: usize = 32;

/// Room in a datagram below which no further chunk is put into it.
pub(super) const WORTHWHILE_ROOM: usize = 64;

/// Bytes that a flow takes from the application ahead of what is sent.
pub(super) const UNSENT: (u64, u64) = (256 << 10, 4 << 20);

/// How long a bulk flow's turn is at most, and how many bytes: what a socket takes at once.
const TURN: Duration = Duration::from_millis(1);
const TURN_BYTES_MAX: u64 = 64 << 10;

/// Waiting flows looked at for how much is pending; more than that is a lot.
pub(super) const PENDING_LOOK_AHEAD: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::{
        path::PathInfo,
        schedule::Policy,
        session::{Limits, Side},
    };

    #[test]
    fn a_path_that_says_to_take_hardly_a_byte_holds_nobody_up() {
        let now = Instant::now();
        let mut session = Session::new(now, Side::Proxy, Policy::Adaptive, Limits::default());
        session.add_path(now, PathId(1), PathInfo { weight: Default::default(), max_datagram_bytes: 3, rtt: Duration::from_millis(10) });
        let flow = session.open().expect("a flow");
        assert_eq!(session.write(flow, b"any"), Ok(3));
        session.set_max_datagram(PathId(1), 0);
        assert!(session.poll_transmit(now).is_some());
    }
}
