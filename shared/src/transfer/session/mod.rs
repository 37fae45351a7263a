//! A session: flows in, datagrams out, over all paths; the same core on both ends.
//!
//! The contract: feed it with the `handle_*` and flow methods, then drain [`Session::poll_transmit`] and [`Session::poll_event`]
//! until both are empty, then call [`Session::handle_timeout`] no later than [`Session::poll_timeout`]. It holds that
//! * every byte that a flow takes comes out at the other end once and in order, whatever the paths do, or the flow is aborted;
//! * every parcel of a UDP flow comes out at most once, whole, and soon;
//! * memory is bounded: per flow by its credit, per session by [`Limits`];
//! * nothing a peer sends panics; what breaks the rules ends the flow, or with [`SessionError`] the session.
//!
//! It opens no path and knows no socket: the driver adds paths that are authenticated and removes those that are gone. What arrives is
//! worked in by `receive`, what leaves is taken up by `intake` and put together by `transmit`; `parcels` does both for
//! UDP flows, and `timeouts` judges what does not arrive.

mod intake;
mod parcels;
mod receive;
mod terms;
mod timeouts;
mod transmit;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    time::Instant,
};

use bytes::{Bytes, BytesMut};

use self::{
    intake::WriterLine,
    parcels::ParcelTraffic,
    transmit::{CREDIT_DELAY, UNSENT},
};
use super::{
    control::{AbortCode, Leaving, MessageReader},
    flow::Flow,
    packet::{DatagramReader, Frame},
    path::{DATAGRAM_BYTES_MIN, Path, PathInfo, PathState, PathStatus},
    ranges::RangeSet,
    schedule::{Candidate, Class, Policy, Scheduler},
};
use crate::{
    community::weight::LineWeight,
    ids::{FlowId, PathId},
    wire::VARINT_MAX,
};

pub use self::terms::{Event, Limits, Read, SessionCounters, SessionError, Side, Transmit};

/// One end of a session.
#[derive(Debug)]
pub struct Session {
    side: Side,
    limits: Limits,
    epoch: Instant,
    /// The latest time that a caller has told.
    clock: Instant,
    /// Boxed, since a node of the map has room for eleven and a session two or three.
    paths: BTreeMap<PathId, Box<Path>>,
    flows: BTreeMap<FlowId, Flow>,
    control_in: MessageReader,
    next_flow: u64,
    closed: RangeSet,
    /// Flows with something to send, by class.
    waiting: BTreeMap<Class, VecDeque<FlowId>>,
    /// Flows whose applications wait to be asked for bytes.
    line: WriterLine,
    /// The place that the next flow to wait gets.
    next_ticket: u64,
    parcels: ParcelTraffic,
    /// Flows that owe the other end a word about credit and when it is told at the latest, and aborts to tell.
    credit_owed: BTreeSet<FlowId>,
    credit_due: Option<Instant>,
    aborts_owed: VecDeque<(FlowId, AbortCode)>,
    /// Paths that the other end is to leave.
    leaves_owed: BTreeMap<PathId, Leaving>,
    /// Paths whose lines hold this end back.
    fulls_owed: BTreeSet<PathId>,
    /// The other end's fair rates on its paths, bytes per second.
    fair_rates_owed: BTreeMap<PathId, u64>,
    /// How the other end is to spread chunks.
    policy_owed: Option<Policy>,
    /// The LAN's roster to tell, the newest.
    roster_owed: Option<Bytes>,
    /// The LAN's roster as it was told.
    roster: Bytes,
    /// The user's quotas to tell, the newest.
    quotas_owed: Option<Bytes>,
    /// The user's quotas as they were told.
    quotas: Bytes,
    /// Credit given beyond the flows' initial windows.
    grown: u64,
    /// Bytes written and not yet acknowledged, of all flows but the control flow.
    retained: u64,
    scheduler: Scheduler,
    candidates: Vec<Candidate>,
    /// The memory of the next datagrams.
    store: BytesMut,
    /// What each flow takes ahead of what is sent, in bytes, as it was when the paths were looked at.
    unsent_limit: u64,
    /// What a bulk flow sends before it is another's turn, in bytes, likewise.
    turn_max: u64,
    /// When that was.
    looked_at: Option<Instant>,
    /// Datagrams that left their path before the driver asked: copies.
    outbox: VecDeque<Transmit>,
    events: VecDeque<Event>,
    /// When a path that only its pace holds back may send what waits.
    paced_until: Option<Instant>,
    counters: SessionCounters,
}

/// A carrier's room below which it is asked again.
const CARRIER_LOW: usize = 64 << 10;

/// Flow 0's window: the most control bytes that the other end may lack. The receiver reads them at once, so that it needs no credit.
const CONTROL_WINDOW: u64 = 256 << 10;

impl Session {
    /// A session without paths.
    pub fn new(now: Instant, side: Side, policy: Policy, limits: Limits) -> Self {
        let mut control = Flow::new(CONTROL_WINDOW);
        control.send.on_credit(VARINT_MAX);
        let flows = BTreeMap::from([(FlowId::CONTROL, control)]);
        Self {
            side,
            limits,
            epoch: now,
            clock: now,
            paths: BTreeMap::new(),
            flows,
            control_in: MessageReader::default(),
            next_flow: 1,
            closed: RangeSet::default(),
            waiting: BTreeMap::new(),
            line: WriterLine::default(),
            next_ticket: 0,
            parcels: ParcelTraffic::new(policy),
            credit_owed: BTreeSet::new(),
            credit_due: None,
            aborts_owed: VecDeque::new(),
            leaves_owed: BTreeMap::new(),
            fulls_owed: BTreeSet::new(),
            fair_rates_owed: BTreeMap::new(),
            policy_owed: None,
            roster_owed: None,
            roster: Bytes::new(),
            quotas_owed: None,
            quotas: Bytes::new(),
            grown: 0,
            retained: 0,
            scheduler: Scheduler::new(policy),
            candidates: Vec::new(),
            store: BytesMut::new(),
            unsent_limit: UNSENT.0,
            turn_max: 0,
            looked_at: None,
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            paced_until: None,
            counters: SessionCounters::default(),
        }
    }

    /// Adds a path that the driver has authenticated. Its number must be new to the session: a path that has it is removed.
    pub fn add_path(&mut self, now: Instant, id: PathId, info: PathInfo) {
        self.remove_path(id);
        self.paths.insert(id, Box::new(Path::new(now, id, info)));
        self.events.push_back(Event::Path(id, PathState::Active));
    }

    /// Removes a path that is gone; what it held goes out elsewhere.
    pub fn remove_path(&mut self, id: PathId) {
        let Some(mut path) = self.paths.remove(&id) else { return };
        self.leaves_owed.remove(&id);
        self.fulls_owed.remove(&id);
        self.fair_rates_owed.remove(&id);
        let pieces = path.recovery.give_up();
        self.requeue(&pieces);
    }

    /// Leaves a path in order: nothing new goes out on it as long as there is another, what is under way is awaited, and the other end
    /// is told to do the same.
    pub fn leave_path(&mut self, id: PathId, why: Leaving) {
        if let Some(path) = self.paths.get_mut(&id)
            && !path.is_leaving
        {
            path.is_leaving = true;
            self.leaves_owed.insert(id, why);
        }
    }

    /// Tells the other end that the path's line has held this end back lately.
    pub fn tell_full(&mut self, id: PathId) {
        if self.paths.contains_key(&id) {
            self.fulls_owed.insert(id);
        }
    }

    /// Goes by the rate, bytes per second, that is fair for what this end sends on a path; `None` if none is known.
    pub fn set_fair_rate(&mut self, id: PathId, rate: Option<u64>) {
        if let Some(path) = self.paths.get_mut(&id) {
            path.congestion.set_fair_rate(rate.map(|rate| rate as f64));
        }
    }

    /// Tells the other end, which is a proxy, the rate that is fair for what it sends on a path; `None` if none is known.
    pub fn tell_fair_rate(&mut self, id: PathId, rate: Option<u64>) {
        if self.paths.contains_key(&id) {
            self.fair_rates_owed.insert(id, rate.unwrap_or(0).min(VARINT_MAX));
        }
    }

    /// Tells the other end, which is a proxy, its LAN's roster, as [`crate::community::listed`] writes it.
    pub fn tell_roster(&mut self, lines: Bytes) {
        self.roster_owed = Some(lines);
    }

    /// Tells the other end, which is a proxy, its user's quotas, as [`crate::community::quota::told`] writes them.
    pub fn tell_quotas(&mut self, quotas: Bytes) {
        self.quotas_owed = Some(quotas);
    }

    /// The user's quotas as the other end has told them; empty before it has.
    pub fn quotas(&self) -> Bytes {
        self.quotas.clone()
    }

    /// Asks the other end, which is `reconst`, to spread chunks by `policy`.
    pub fn ask_policy(&mut self, policy: Policy) {
        self.policy_owed = Some(policy);
    }

    /// The LAN's roster as the other end has told it; empty before it has.
    pub fn roster(&self) -> Bytes {
        self.roster.clone()
    }

    /// Follows a change of the path's largest datagram.
    pub fn set_max_datagram(&mut self, id: PathId, bytes: usize) {
        if let Some(path) = self.paths.get_mut(&id) {
            path.max_datagram_bytes = bytes.max(DATAGRAM_BYTES_MIN);
        }
    }

    /// Tells how many bytes of datagrams the path's carrier takes now; what goes out is taken off it. Until it is told, it takes any number.
    pub fn set_carrier_room(&mut self, id: PathId, bytes: usize) {
        if let Some(path) = self.paths.get_mut(&id) {
            path.carrier_room = bytes;
        }
    }

    /// The next path behind `after` whose carrier may take no more, as far as has been told.
    pub fn short_of_room(&self, after: Option<PathId>) -> Option<PathId> {
        let behind = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        self.paths.range(behind).find(|(_, path)| path.carrier_room < CARRIER_LOW).map(|(id, _)| *id)
    }

    /// Follows a change of the path's weight.
    pub fn set_weight(&mut self, id: PathId, weight: LineWeight) {
        if let Some(path) = self.paths.get_mut(&id) {
            path.weight = weight;
        }
    }

    /// Opens a flow; `None` if as many are open as the limit allows. Only [`Side::Proxy`] does.
    pub fn open(&mut self) -> Option<FlowId> {
        debug_assert_eq!(self.side, Side::Proxy);
        if self.flows.len() > self.limits.flows {
            return None;
        }
        let id = FlowId(self.next_flow);
        self.next_flow += 1;
        self.flows.insert(id, Flow::new(self.limits.initial_window));
        self.counters.flows += 1;
        Some(id)
    }

    /// Ends the outgoing half of a flow behind what was written.
    pub fn finish(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id)
            && flow.aborted.is_none()
        {
            flow.send.finish();
            self.enqueue(id);
        }
    }

    /// Takes the next bytes of a flow, at most `max`. Of one that was aborted, what had come in order is read first.
    pub fn read(&mut self, id: FlowId, max: usize) -> Read {
        let growth_left = self.limits.window_growth.saturating_sub(self.grown);
        let longest_rtt = self.paths.values().map(|path| path.recovery.rtt().smoothed()).max().unwrap_or_default();
        let Some(flow) = self.flows.get_mut(&id) else { return Read::Aborted(AbortCode::Reset) };
        let Some(bytes) = flow.receive.read(max) else {
            return match flow.aborted {
                Some(code) => Read::Aborted(code),
                None if flow.receive.is_consumed() => Read::End,
                None => Read::Blocked,
            };
        };
        self.counters.read_bytes += bytes.len() as u64;
        if flow.aborted.is_some() {
            return Read::Bytes(bytes);
        }
        self.grown += flow.give_credit(self.clock, longest_rtt, self.limits.max_window, growth_left);
        if flow.owes_credit {
            self.credit_owed.insert(id);
            self.credit_due.get_or_insert(self.clock + CREDIT_DELAY);
        }
        Read::Bytes(bytes)
    }

    /// Whether a flow was aborted, or is none of this session.
    pub fn is_aborted(&self, id: FlowId) -> bool {
        self.flows.get(&id).is_none_or(|flow| flow.aborted.is_some())
    }

    /// Lets go of a flow: the session finishes it alone if both halves were brought to their end, else aborts it.
    pub fn release(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.is_released = true;
        if flow.aborted.is_none() && !(flow.send.is_finished() && flow.receive.is_consumed()) {
            self.retained -= flow.send.retained();
            flow.abort(AbortCode::Reset);
            self.drop_parcels(id);
            self.aborts_owed.push_back((id, AbortCode::Reset));
        }
        self.forget_if_over(id);
    }

    /// Aborts every flow, on this end alone: the session is over.
    pub fn abort_all(&mut self, code: AbortCode) {
        let ids: Vec<FlowId> = self.flows.keys().copied().collect();
        for id in ids {
            self.abort_flow(id, code);
        }
    }

    /// Works a datagram in that arrived by `path`.
    ///
    /// # Errors
    /// If the other end broke the rules in a way that the session can't go on.
    pub fn handle_datagram(&mut self, now: Instant, path: PathId, datagram: Bytes) -> Result<(), SessionError> {
        self.clock = now;
        let len = datagram.len() as u64;
        let (frames, seq) = DatagramReader::new(datagram)?;
        let mut is_taken = true;
        let mut flow_bytes = 0;
        let mut parcels = 0;
        for frame in frames {
            match frame? {
                Frame::Ping => {}
                Frame::Ack(ack) => self.handle_ack(now, &ack),
                Frame::Chunk(chunk) => {
                    flow_bytes += chunk.bytes.len() as u64;
                    is_taken &= self.handle_chunk(chunk)?;
                }
                Frame::Fragment(fragment) => {
                    flow_bytes += fragment.bytes.len() as u64;
                    parcels += 1;
                    self.handle_fragment(now, fragment)?;
                }
            }
        }
        let Some(path) = self.paths.get_mut(&path) else { return Ok(()) };
        path.counters.received_datagrams += 1;
        path.counters.received_bytes += len;
        path.counters.received_flow_bytes += flow_bytes;
        path.counters.received_parcels += parcels;
        path.on_heard(now, seq.is_some());
        if let Some(seq) = seq
            && is_taken
        {
            let delay = path.ack_delay();
            if !path.acks.on_received(now, seq, delay) {
                path.acks.ask_again(now);
            }
        }
        Ok(())
    }

    /// Gives the next datagram to send at `now`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        self.clock = now;
        if let Some(transmit) = self.outbox.pop_front() {
            return Some(transmit);
        }
        self.put_control_together(now);
        self.transmit_ack(now).or_else(|| self.transmit_ping(now)).or_else(|| self.transmit_chunks(now))
    }

    /// Gives the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The figures of each path.
    pub fn path_status(&self) -> Vec<PathStatus> {
        self.paths.values().map(|path| path.status()).collect()
    }

    /// The session's figures.
    pub fn counters(&self) -> SessionCounters {
        self.counters
    }

    /// The number of flows open now.
    pub fn open_flows(&self) -> usize {
        self.flows.len() - 1
    }

    /// Bytes written to a flow that the other end has not acknowledged, or never will since the flow was aborted.
    pub fn undelivered(&self, id: FlowId) -> u64 {
        self.flows.get(&id).map_or(0, Flow::undelivered)
    }

    /// The same of all flows together.
    pub fn undelivered_bytes(&self) -> u64 {
        self.retained
    }

    /// Whether any path is in service.
    pub fn has_active_path(&self) -> bool {
        self.paths.values().any(|path| path.is_active())
    }

    /// The memory that received and unsent flow bytes take, bookkeeping included.
    pub fn memory_bytes(&self) -> u64 {
        let of_flows: u64 = self.flows.values().map(|flow| flow.receive.memory_bytes() + flow.send.retained()).sum();
        of_flows + self.parcels.memory_bytes() as u64
    }
}
