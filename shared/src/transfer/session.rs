//! A session: flows in, datagrams out, over all paths; the same core on both ends.
//!
//! The contract: feed it with the `handle_*` and flow methods, then drain [`Session::poll_transmit`] and [`Session::poll_event`]
//! until both are empty, then call [`Session::handle_timeout`] no later than [`Session::poll_timeout`]. It holds that
//! * every byte that a flow takes comes out at the other end once and in order, whatever the paths do, or the flow is aborted;
//! * memory is bounded: per flow by its credit, per session by [`Limits`];
//! * nothing a peer sends panics; what breaks the rules ends the flow, or with [`SessionError`] the session.
//!
//! It opens no path and knows no socket: the driver adds paths that are authenticated and removes those that are gone.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use thiserror::Error;

use super::{
    congestion::AckSample,
    control::{AbortCode, Message, MessageReader},
    flow::Flow,
    packet::{Ack, Chunk, DatagramReader, DatagramWriter, Frame},
    path::{OVERHEAD_BYTES, Path, PathInfo, PathState, PathStatus},
    ranges::RangeSet,
    recovery::{AckOutcome, Pieces},
    reorder::ReorderError,
    schedule::{Candidate, Class, Pending, Policy, Scheduler},
    send_buffer::Piece,
};
use crate::{
    ids::{FlowId, PathId},
    wire::{VARINT_MAX, WireError},
};

/// Which end of a session this is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// `proxy-local`: opens flows and paths.
    Proxy,
    /// `reconst`.
    Reconst,
}

/// What a session may take up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Flows at once. Too few refuse a browser's many tabs; each costs at most its window.
    pub flows: usize,
    /// The credit that a flow begins with, in bytes, on both ends: part of the protocol. Smaller stalls the first round trips.
    pub initial_window: u64,
    /// The credit that a flow grows to. Below the sum of the rates × the longest round trip, it caps a flow's rate.
    pub max_window: u64,
    /// The credit that all flows together get beyond their initial windows.
    pub window_growth: u64,
    /// The time without tracked datagrams after which an idle path is pinged; `None` leaves it to the other end.
    pub keep_alive: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: 4096, initial_window: 256 << 10, max_window: 16 << 20, window_growth: 128 << 20, keep_alive: None }
    }
}

/// A session can't go on: the other end broke the rules.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum SessionError {
    /// A datagram that can't be read.
    #[error("the other end sent a malformed datagram: {0}")]
    Malformed(#[from] WireError),
    /// The control flow overran its window or was ended.
    #[error("the other end broke the control flow: {0}")]
    Control(ReorderError),
    /// Flow numbers far apart.
    #[error("the other end's flow numbers are too far apart")]
    FlowNumbers,
}

/// A datagram to send.
#[derive(Debug)]
pub struct Transmit {
    /// The path that takes it.
    pub path: PathId,
    /// Its bytes, at most what the path takes.
    pub datagram: Bytes,
}

/// What the driver is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The other end opened a flow.
    Opened(FlowId),
    /// There is something to read, the end or an abort included.
    Readable(FlowId),
    /// There is room to write, or the flow is aborted.
    Writable(FlowId),
    /// A path's state changed.
    Path(PathId, PathState),
}

/// What a read gives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Read {
    /// The next bytes.
    Bytes(Bytes),
    /// Nothing yet.
    Blocked,
    /// The flow's end.
    End,
    /// The flow was aborted.
    Aborted(AbortCode),
}

/// A session's figures.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SessionCounters {
    /// Flow bytes acknowledged by the other end, each once.
    pub delivered_bytes: u64,
    /// Flow bytes read by the application, each once.
    pub read_bytes: u64,
    /// Flows opened.
    pub flows: u64,
}

/// One end of a session.
#[derive(Debug)]
pub struct Session {
    side: Side,
    limits: Limits,
    epoch: Instant,
    /// The latest time that a caller has told.
    clock: Instant,
    paths: BTreeMap<PathId, Path>,
    flows: BTreeMap<FlowId, Flow>,
    control_in: MessageReader,
    next_flow: u64,
    closed: RangeSet,
    /// Flows with something to send, by class.
    waiting: BTreeMap<Class, VecDeque<FlowId>>,
    /// Flows that owe the other end a word about credit, and aborts to tell.
    credit_owed: BTreeSet<FlowId>,
    aborts_owed: VecDeque<(FlowId, AbortCode)>,
    /// Credit given beyond the flows' initial windows.
    grown: u64,
    scheduler: Scheduler,
    candidates: Vec<Candidate>,
    /// Datagrams that left their path before the driver asked: copies.
    outbox: VecDeque<Transmit>,
    events: VecDeque<Event>,
    /// When a path that only its pace holds back may send what waits.
    paced_until: Option<Instant>,
    counters: SessionCounters,
}

/// Flow 0's window: the most control bytes that the other end may lack. The receiver reads them at once, so that it needs no credit.
const CONTROL_WINDOW: u64 = 256 << 10;

/// Control bytes written ahead of what has been sent: little, so that what is owed is put together late.
const CONTROL_AHEAD: u64 = 4 << 10;

/// Room in a datagram below which no further chunk is put into it.
const WORTHWHILE_ROOM: usize = 64;

/// Gaps in the numbers of closed flows, per flow that may be open: honest numbers have one a flow. And at least, since the other end may
/// open more flows than this one takes.
const CLOSED_GAPS_PER_FLOW: usize = 2;
const CLOSED_GAPS_MIN: usize = 8192;

/// Bytes that a flow takes from the application ahead of what is sent.
const UNSENT: (u64, u64) = (256 << 10, 4 << 20);

/// Waiting flows looked at for how much is pending; more than that is a lot.
const PENDING_LOOK_AHEAD: usize = 32;

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
            credit_owed: BTreeSet::new(),
            aborts_owed: VecDeque::new(),
            grown: 0,
            scheduler: Scheduler::new(policy),
            candidates: Vec::new(),
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            paced_until: None,
            counters: SessionCounters::default(),
        }
    }

    /// Adds a path that the driver has authenticated. Its number must be new to the session.
    pub fn add_path(&mut self, now: Instant, id: PathId, info: PathInfo) {
        self.paths.insert(id, Path::new(now, id, info));
        self.events.push_back(Event::Path(id, PathState::Active));
    }

    /// Removes a path that is gone; what it held goes out elsewhere.
    pub fn remove_path(&mut self, id: PathId) {
        let Some(mut path) = self.paths.remove(&id) else { return };
        let pieces = path.recovery.give_up();
        self.requeue(&pieces);
    }

    /// Follows a change of the path's largest datagram.
    pub fn set_max_datagram(&mut self, id: PathId, bytes: usize) {
        if let Some(path) = self.paths.get_mut(&id) {
            path.max_datagram_bytes = bytes;
        }
    }

    /// Follows a change of the path's weight.
    pub fn set_weight(&mut self, id: PathId, weight: u32) {
        if let Some(path) = self.paths.get_mut(&id) {
            path.weight = weight.max(1);
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

    /// Takes as many of `bytes` as there is room for; 0 means that [`Event::Writable`] will tell of room.
    ///
    /// # Errors
    /// The reason, if the flow was aborted or is none of this session.
    pub fn write(&mut self, id: FlowId, bytes: &[u8]) -> Result<usize, AbortCode> {
        let unsent_limit = self.unsent_limit();
        let flow = self.flows.get_mut(&id).ok_or(AbortCode::Reset)?;
        if let Some(code) = flow.aborted {
            return Err(code);
        }
        if flow.send.is_finished() {
            return Err(AbortCode::Protocol);
        }
        let room = unsent_limit.saturating_sub(flow.send.unsent()) as usize;
        let taken = bytes.len().min(room);
        flow.send.write(&bytes[..taken]);
        flow.writer_waits = taken < bytes.len();
        self.enqueue(id);
        Ok(taken)
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

    /// Takes the next bytes of a flow, at most `max`.
    pub fn read(&mut self, id: FlowId, max: usize) -> Read {
        let growth_left = self.limits.window_growth.saturating_sub(self.grown);
        let longest_rtt = self.paths.values().map(|path| path.recovery.rtt().smoothed()).max().unwrap_or_default();
        let Some(flow) = self.flows.get_mut(&id) else { return Read::Aborted(AbortCode::Reset) };
        if let Some(code) = flow.aborted {
            return Read::Aborted(code);
        }
        let Some(bytes) = flow.receive.read(max) else {
            return if flow.receive.is_consumed() { Read::End } else { Read::Blocked };
        };
        self.counters.read_bytes += bytes.len() as u64;
        self.grown += flow.give_credit(self.clock, longest_rtt, self.limits.max_window, growth_left);
        if flow.owes_credit {
            self.credit_owed.insert(id);
        }
        Read::Bytes(bytes)
    }

    /// Lets go of a flow: the session finishes it alone if both halves were brought to their end, else aborts it.
    pub fn release(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.is_released = true;
        if flow.aborted.is_none() && !(flow.send.is_finished() && flow.receive.is_consumed()) {
            flow.abort(AbortCode::Reset);
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
        for frame in frames {
            match frame? {
                Frame::Ping => {}
                Frame::Ack(ack) => self.handle_ack(now, &ack),
                Frame::Chunk(chunk) => {
                    flow_bytes += chunk.bytes.len() as u64;
                    is_taken &= self.handle_chunk(chunk)?;
                }
            }
        }
        let Some(path) = self.paths.get_mut(&path) else { return Ok(()) };
        path.counters.received_datagrams += 1;
        path.counters.received_bytes += len;
        path.counters.received_flow_bytes += flow_bytes;
        path.on_heard(now);
        if let Some(seq) = seq
            && is_taken
        {
            let delay = super::acks::max_delay(path.recovery.rtt().smoothed());
            if !path.acks.on_received(now, seq, delay) {
                path.acks.ask_again(now);
            }
        }
        Ok(())
    }

    /// Gives the next datagram to send at `now`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        if let Some(transmit) = self.outbox.pop_front() {
            return Some(transmit);
        }
        self.put_control_together();
        self.transmit_ack(now).or_else(|| self.transmit_ping(now)).or_else(|| self.transmit_chunks(now))
    }

    /// Gives the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Session::handle_timeout`] is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let of_path = |path: &Path| {
            let probe_timeout = if path.is_active() { path.recovery.probe_timeout_at() } else { None };
            [path.acks.due(), path.recovery.loss_at(), probe_timeout, path.ping_at(self.limits.keep_alive)].into_iter().flatten().min()
        };
        self.paths.values().filter_map(of_path).chain(self.paced_until).min()
    }

    /// Does what is due at `now`. What it leads to comes out of [`Session::poll_transmit`].
    pub fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<PathId> = self.paths.keys().copied().collect();
        for id in due {
            let Some(path) = self.paths.get_mut(&id) else { continue };
            if path.recovery.loss_at().is_some_and(|at| at <= now) {
                let outcome = path.recovery.on_loss_timeout(now);
                self.settle(now, id, outcome, None);
            }
            let Some(path) = self.paths.get_mut(&id) else { continue };
            if path.is_active() && path.recovery.probe_timeout_at().is_some_and(|at| at <= now) {
                let pieces = path.become_suspect(now);
                self.events.push_back(Event::Path(id, PathState::Suspect));
                self.requeue(&pieces);
            }
        }
    }

    /// The figures of each path.
    pub fn path_status(&self) -> Vec<PathStatus> {
        self.paths.values().map(Path::status).collect()
    }

    /// The session's figures.
    pub fn counters(&self) -> SessionCounters {
        self.counters
    }

    /// The number of flows open now.
    pub fn open_flows(&self) -> usize {
        self.flows.len() - 1
    }

    /// Whether any path is in service.
    pub fn has_active_path(&self) -> bool {
        self.paths.values().any(Path::is_active)
    }

    /// The memory that received and unsent flow bytes take, bookkeeping included.
    pub fn memory_bytes(&self) -> u64 {
        self.flows.values().map(|flow| flow.receive.memory_bytes() + flow.send.retained()).sum()
    }

    fn handle_chunk(&mut self, chunk: Chunk) -> Result<bool, SessionError> {
        let id = chunk.flow;
        if !self.flows.contains_key(&id) && !self.accept(id)? {
            return Ok(true);
        }
        let flow = self.flows.get_mut(&id).expect("is there or was accepted");
        if flow.aborted.is_some() {
            return Ok(true);
        }
        match flow.receive.insert(chunk.offset, chunk.bytes, chunk.fin) {
            Ok(is_readable) => {
                if id == FlowId::CONTROL {
                    self.read_control()?;
                } else if is_readable {
                    self.events.push_back(Event::Readable(id));
                }
                Ok(true)
            }
            Err(ReorderError::TooManyPieces) => Ok(false),
            Err(error) if id == FlowId::CONTROL => Err(SessionError::Control(error)),
            Err(_) => {
                self.abort_flow(id, AbortCode::Protocol);
                self.aborts_owed.push_back((id, AbortCode::Protocol));
                Ok(true)
            }
        }
    }

    /// Opens a flow that the other end speaks of for the first time; `false` if it is over already or can't be opened.
    fn accept(&mut self, id: FlowId) -> Result<bool, SessionError> {
        if self.side == Side::Proxy || self.closed.contains(id.0) {
            return Ok(false);
        }
        if self.closed.len() > self.closed_gaps_limit() {
            return Err(SessionError::FlowNumbers);
        }
        if self.flows.len() > self.limits.flows {
            self.closed.insert(id.0..id.0 + 1);
            self.aborts_owed.push_back((id, AbortCode::TooManyFlows));
            return Ok(false);
        }
        self.flows.insert(id, Flow::new(self.limits.initial_window));
        self.counters.flows += 1;
        self.events.push_back(Event::Opened(id));
        Ok(true)
    }

    fn closed_gaps_limit(&self) -> usize {
        (self.limits.flows * CLOSED_GAPS_PER_FLOW).max(CLOSED_GAPS_MIN)
    }

    fn read_control(&mut self) -> Result<(), SessionError> {
        let control = self.flows.get_mut(&FlowId::CONTROL).expect("flow 0 is always there");
        if control.receive.is_complete() {
            return Err(SessionError::Control(ReorderError::EndMoved));
        }
        while let Some(bytes) = control.receive.read(usize::MAX) {
            self.control_in.push(&bytes);
        }
        let consumed = control.receive.consumed();
        control.receive.raise_limit(consumed + CONTROL_WINDOW);
        while let Some(message) = self.control_in.next_message()? {
            match message {
                Message::Credit { flow: id, limit } => {
                    if let Some(flow) = self.flows.get_mut(&id) {
                        flow.send.on_credit(limit);
                        self.enqueue(id);
                    }
                }
                Message::Abort { flow, code } => {
                    if self.flows.contains_key(&flow) {
                        self.abort_flow(flow, code);
                    } else if self.side == Side::Reconst && self.closed.len() <= self.closed_gaps_limit() {
                        self.closed.insert(flow.0..flow.0 + 1);
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends a flow on this end and tells the application.
    fn abort_flow(&mut self, id: FlowId, code: AbortCode) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        if id == FlowId::CONTROL || flow.aborted.is_some() {
            return;
        }
        flow.abort(code);
        self.events.push_back(Event::Readable(id));
        self.events.push_back(Event::Writable(id));
        self.forget_if_over(id);
    }

    fn forget_if_over(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get(&id) else { return };
        if !flow.is_released || !flow.is_over() {
            return;
        }
        self.grown -= flow.window - self.limits.initial_window;
        self.flows.remove(&id);
        self.credit_owed.remove(&id);
        if self.side == Side::Reconst {
            self.closed.insert(id.0..id.0 + 1);
        }
    }

    fn handle_ack(&mut self, now: Instant, ack: &Ack) {
        let Some(path) = self.paths.get_mut(&ack.path) else { return };
        let outcome = path.recovery.on_ack(now, ack);
        if outcome.acked_bytes > 0 && path.on_sign_of_life(now) {
            self.events.push_back(Event::Path(ack.path, PathState::Active));
        }
        self.settle(now, ack.path, outcome, Some(ack));
    }

    /// Works in what an acknowledgement or a timer decided about a path's datagrams.
    fn settle(&mut self, now: Instant, id: PathId, outcome: AckOutcome, ack: Option<&Ack>) {
        let Some(path) = self.paths.get_mut(&id) else { return };
        path.counters.lost_datagrams += outcome.lost_datagrams;
        let rtt = path.recovery.rtt();
        let sample = AckSample {
            acked_bytes: outcome.acked_bytes,
            lost_bytes: outcome.lost_bytes,
            spurious_bytes: outcome.spurious_bytes,
            largest_sent: outcome.largest_sent_at.map(|at| (at, at.saturating_duration_since(self.epoch).as_micros() as u64)),
            received_at_us: ack.map_or(0, |ack| ack.received_at_us),
            rtt: rtt.latest(),
            smoothed_rtt: rtt.smoothed(),
            in_flight: path.recovery.in_flight_bytes(),
        };
        path.congestion.on_ack(now, &sample);
        for piece in &outcome.acked {
            self.on_piece_acked(piece);
        }
        self.requeue(&outcome.lost);
    }

    fn on_piece_acked(&mut self, piece: &Piece) {
        let Some(flow) = self.flows.get_mut(&piece.flow) else { return };
        let freed = flow.send.on_acked(piece);
        if piece.flow != FlowId::CONTROL {
            self.counters.delivered_bytes += freed;
        }
        self.forget_if_over(piece.flow);
    }

    fn requeue(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            if let Some(flow) = self.flows.get_mut(&piece.flow)
                && flow.aborted.is_none()
            {
                flow.send.on_lost(piece);
                self.enqueue(piece.flow);
            }
        }
    }

    /// Puts a flow among those that wait for a path, if it has something to send.
    fn enqueue(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        if flow.queued.is_some() || !flow.send.has_piece() {
            return;
        }
        let class = if id == FlowId::CONTROL { Class::Control } else { flow.class() };
        flow.queued = Some(class);
        self.waiting.entry(class).or_default().push_back(id);
    }

    /// Writes what is owed into the control flow, as late as possible, so that it is said once.
    fn put_control_together(&mut self) {
        if self.credit_owed.is_empty() && self.aborts_owed.is_empty() {
            return;
        }
        let control = &self.flows[&FlowId::CONTROL].send;
        if control.unsent() > CONTROL_AHEAD || control.retained() > CONTROL_WINDOW - 2 * CONTROL_AHEAD {
            return;
        }
        let mut bytes = Vec::new();
        while bytes.len() < CONTROL_AHEAD as usize
            && let Some((flow, code)) = self.aborts_owed.pop_front()
        {
            Message::Abort { flow, code }.encode(&mut bytes);
        }
        while bytes.len() < CONTROL_AHEAD as usize
            && let Some(id) = self.credit_owed.pop_first()
        {
            if let Some(flow) = self.flows.get_mut(&id)
                && std::mem::take(&mut flow.owes_credit)
            {
                Message::Credit { flow: id, limit: flow.receive.limit() }.encode(&mut bytes);
            }
        }
        let control = self.flows.get_mut(&FlowId::CONTROL).expect("flow 0 is always there");
        control.send.write(&bytes);
        self.enqueue(FlowId::CONTROL);
    }

    fn transmit_ack(&mut self, now: Instant) -> Option<Transmit> {
        let id = self.paths.values().find(|path| path.acks.due().is_some_and(|due| due <= now))?.id;
        let carrier = self.fastest_active().filter(|_| !self.paths[&id].is_active());
        let path = self.paths.get_mut(&id).expect("found above");
        let mut writer = DatagramWriter::new(path.max_datagram_bytes, None);
        let (received_at, ranges) = path.acks.take()?;
        let received_at_us = received_at.saturating_duration_since(self.epoch).as_micros() as u64;
        let delay_us = now.saturating_duration_since(received_at).as_micros() as u64;
        writer.put_ack(id, received_at_us, delay_us, ranges);
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

    fn transmit_ping(&mut self, now: Instant) -> Option<Transmit> {
        let keep_alive = self.limits.keep_alive;
        let id = self.paths.values().find(|path| path.ping_at(keep_alive).is_some_and(|at| at <= now))?.id;
        let path = self.paths.get_mut(&id).expect("found above");
        let mut writer = DatagramWriter::new(path.max_datagram_bytes, Some(path.recovery.next_seq()));
        writer.put_ping();
        if path.on_ping_sent(now) {
            self.events.push_back(Event::Path(id, PathState::Dead));
        }
        Some(self.send_tracked(now, id, writer, Pieces::default()))
    }

    fn transmit_chunks(&mut self, now: Instant) -> Option<Transmit> {
        self.look_at_paths(now);
        let classes = [Class::Control, Class::Interactive, Class::Bulk];
        for class in classes {
            let Some(pending) = self.pending(class) else { continue };
            let candidates = std::mem::take(&mut self.candidates);
            let chosen = self.scheduler.choose(&candidates, pending);
            let copy = chosen.and_then(|chosen| self.scheduler.choose_copy(&candidates, chosen));
            self.candidates = candidates;
            let Some(chosen) = chosen else { continue };
            if let Some((transmit, pieces)) = self.fill_datagram(now, chosen, class) {
                if let Some(copy) = copy {
                    self.send_copy(now, copy, &pieces);
                }
                return Some(transmit);
            }
        }
        let idle: Vec<(PathId, Duration)> = self.candidates.iter().filter(|c| c.may_send).map(|c| (c.path, c.arrival)).collect();
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

    /// Renews the scheduler's view of the paths, and when the first of those that only their pace holds back may send.
    fn look_at_paths(&mut self, now: Instant) {
        self.paced_until = None;
        self.candidates.clear();
        let something_waits = self.waiting.values().any(|flows| !flows.is_empty());
        for path in self.paths.values_mut().filter(|path| path.is_active()) {
            let (candidate, paced_until) = path.candidate(now);
            self.candidates.push(candidate);
            if something_waits && let Some(at) = paced_until {
                self.paced_until = Some(self.paced_until.map_or(at, |earlier| earlier.min(at)));
            }
        }
    }

    /// What waits in `class` and those before it; `None` if nothing waits in `class` itself.
    fn pending(&mut self, class: Class) -> Option<Pending> {
        if self.waiting.get(&class).is_none_or(VecDeque::is_empty) {
            return None;
        }
        let unsent_limit = self.unsent_limit();
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
    fn fill_datagram(&mut self, now: Instant, id: PathId, class: Class) -> Option<(Transmit, Pieces)> {
        let path = self.paths.get(&id)?;
        let mut writer = DatagramWriter::new(path.max_datagram_bytes, Some(path.recovery.next_seq()));
        let mut pieces = Pieces::default();
        let unsent_limit = self.unsent_limit();
        while writer.is_empty() || writer.remaining() > WORTHWHILE_ROOM {
            let Some(flow_id) = self.waiting.get_mut(&class).and_then(VecDeque::pop_front) else { break };
            let Some(flow) = self.flows.get_mut(&flow_id) else { continue };
            flow.queued = None;
            let offset = flow.send.next_offset();
            let whole = writer.chunk_room(flow_id, offset, false).unwrap_or(0);
            if let Some(piece) = flow.send.cut(flow_id, whole) {
                // The last chunk of a datagram needs no length.
                let length_given = whole - piece.len as usize > WORTHWHILE_ROOM;
                writer
                    .put_chunk(flow_id, piece.offset, piece.fin, piece.len as usize, length_given, |out| flow.send.copy_into(&piece, out));
                flow.on_sent(now, u64::from(piece.len));
                pieces.push(piece);
                if flow.writer_waits && flow.send.unsent() < unsent_limit / 2 {
                    flow.writer_waits = false;
                    self.events.push_back(Event::Writable(flow_id));
                }
            }
            self.enqueue(flow_id);
        }
        if writer.is_empty() {
            return None;
        }
        Some((self.send_tracked(now, id, writer, pieces.clone()), pieces))
    }

    /// Sends what is late on another path on idle path `id`, where it arrives after `arrival`.
    fn reinject(&mut self, now: Instant, id: PathId, arrival: Duration) -> Option<Transmit> {
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

    fn send_copy(&mut self, now: Instant, id: PathId, pieces: &Pieces) {
        let (transmit, _) = self.send_again(now, id, pieces);
        self.outbox.extend(transmit);
    }

    /// Sends what the other end still lacks of `pieces` on path `id`, as far as one datagram takes it; gives the rest of them as well.
    fn send_again(&mut self, now: Instant, id: PathId, pieces: &Pieces) -> (Option<Transmit>, Vec<Piece>) {
        let mut left = Vec::new();
        let Some(path) = self.paths.get(&id) else { return (None, pieces.iter().collect()) };
        let mut writer = DatagramWriter::new(path.max_datagram_bytes, Some(path.recovery.next_seq()));
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
        if let Some(path) = self.paths.get_mut(&id) {
            path.counters.reinjected_bytes += bytes;
        }
        (Some(self.send_tracked(now, id, writer, sent)), left)
    }

    fn send_tracked(&mut self, now: Instant, id: PathId, writer: DatagramWriter, pieces: Pieces) -> Transmit {
        let datagram = writer.finish();
        let path = self.paths.get_mut(&id).expect("the caller has looked it up");
        let bytes = datagram.len() as u64 + OVERHEAD_BYTES;
        let due = now + path.arrival(bytes);
        path.recovery.on_sent(now, bytes as u32, due, pieces);
        path.congestion.on_sent(now, bytes);
        path.on_tracked_sent(now);
        self.count_sent(id, datagram.len());
        Transmit { path: id, datagram }
    }

    fn count_sent(&mut self, id: PathId, bytes: usize) {
        if let Some(path) = self.paths.get_mut(&id) {
            path.counters.sent_datagrams += 1;
            path.counters.sent_bytes += bytes as u64;
        }
    }

    fn fastest_active(&self) -> Option<PathId> {
        self.paths.values().filter(|path| path.is_active()).min_by_key(|path| path.congestion.min_rtt()).map(|path| path.id)
    }

    /// Bytes that a flow takes ahead of what is sent: what the paths carry in the time that the longest takes, twice, so that a path's
    /// delay can be weighed against what is pending.
    fn unsent_limit(&self) -> u64 {
        let active = || self.paths.values().filter(|path| path.is_active());
        let rate: f64 = active().map(|path| path.congestion.capacity()).sum();
        let longest = active().map(|path| path.congestion.min_rtt()).max().unwrap_or_default();
        ((rate * longest.as_secs_f64()) as u64).clamp(UNSENT.0, UNSENT.1)
    }
}
