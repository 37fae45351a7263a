//! The driver of a session: the core behind a lock, its paths' connections, a timer, the tasks that wait for its flows.
//!
//! Whoever changes the core drains it before letting go of the lock: datagrams go to their connections (in order, since the lock is
//! held), tasks whose flows moved are woken afterwards. The timer task does the same when the core asks for it.

mod lock;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};

use super::stream::FlowStream;
use crate::{
    community::weight::LineWeight,
    ids::{FlowId, PathId},
    transfer::{
        control::{AbortCode, Leaving},
        path::{DATAGRAM_BYTES_MIN, PathInfo, PathState, PathStatus},
        schedule::Policy,
        session::{Event, Limits, Session, SessionCounters, Side},
    },
};

/// How long a session that no path carries is kept, on both ends, for its flows to go on: a laptop carried from one room to another, a router
/// that restarts. `reconst` counts from when the connections are over, `proxy-local` from when the last path is silent, and so gives up first.
pub const KEPT_WITHOUT_PATHS: Duration = Duration::from_secs(300);

/// A session of this process; clones share it. It ends by [`SessionHandle::close`].
#[derive(Clone)]
pub struct SessionHandle {
    shared: Arc<Shared>,
}

struct Shared {
    terms: Terms,
    state: Mutex<State>,
    /// Tells the timer task that the core's timeout has moved closer, or that the session is closed.
    timer_moved: Notify,
    /// The number of paths in service and joined; tells who waits for one.
    paths: watch::Sender<PathCount>,
}

/// What a core is made by.
struct Terms {
    side: Side,
    policy: Policy,
    limits: Limits,
}

/// How many paths a session has.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PathCount {
    /// Joined, in whatever state.
    pub joined: usize,
    /// In service.
    pub active: usize,
    /// Whether the session is closed: there will be no more.
    pub is_closed: bool,
}

pub(super) struct State {
    pub(super) core: Session,
    connections: BTreeMap<PathId, quinn::Connection>,
    wakers_by_flow: HashMap<FlowId, FlowWakers>,
    opened: VecDeque<FlowId>,
    acceptor: Option<Waker>,
    /// The joined paths that the other end asks to leave.
    leaving: watch::Sender<BTreeMap<PathId, Leaving>>,
    /// The LAN's roster as the other end has told it.
    roster: watch::Sender<Bytes>,
    /// The user's quotas as the other end has told them.
    quotas: watch::Sender<Bytes>,
    is_closed: bool,
    timer_at: Option<Instant>,
}

#[derive(Default)]
struct FlowWakers {
    reader: Option<Waker>,
    writer: Option<Waker>,
    parcel_reader: Option<Waker>,
    /// Dropped when the flow is aborted.
    watcher: Option<oneshot::Sender<Infallible>>,
}

impl SessionHandle {
    /// A session without paths. Its timer task runs until it is closed.
    pub fn new(side: Side, policy: Policy, limits: Limits) -> Self {
        let terms = Terms { side, policy, limits };
        let state = State {
            core: terms.core(),
            connections: BTreeMap::new(),
            wakers_by_flow: HashMap::new(),
            opened: VecDeque::new(),
            acceptor: None,
            leaving: watch::Sender::default(),
            roster: watch::Sender::default(),
            quotas: watch::Sender::default(),
            is_closed: false,
            timer_at: None,
        };
        let shared = Arc::new(Shared { terms, state: Mutex::new(state), timer_moved: Notify::new(), paths: watch::Sender::default() });
        tokio::spawn(run_timer(shared.clone()));
        Self { shared }
    }

    /// Carries the session's datagrams over `connection`, which has joined as path `id`, until the connection ends.
    pub async fn run_path(&self, id: PathId, connection: quinn::Connection, weight: LineWeight) -> quinn::ConnectionError {
        let max_datagram_bytes = connection.max_datagram_size().unwrap_or(DATAGRAM_BYTES_MIN);
        let info = PathInfo { weight, max_datagram_bytes, rtt: connection.rtt() };
        self.with(|state, now| {
            state.connections.insert(id, connection.clone());
            state.core.add_path(now, id, info);
            state.core.set_carrier_room(id, connection.datagram_send_buffer_space());
        });
        let _leave = Leave { session: self, id };
        let mut batch = Vec::with_capacity(BATCH_DATAGRAMS);
        loop {
            match connection.read_datagram().await {
                Ok(datagram) => batch.push(datagram),
                Err(error) => return error,
            }
            while batch.len() < BATCH_DATAGRAMS
                && let Poll::Ready(Ok(datagram)) = std::pin::pin!(connection.read_datagram()).poll(&mut Context::from_waker(Waker::noop()))
            {
                batch.push(datagram);
            }
            let max_datagram_bytes = connection.max_datagram_size().unwrap_or(DATAGRAM_BYTES_MIN);
            let broken = self.with(|state, now| {
                state.core.set_max_datagram(id, max_datagram_bytes);
                batch.drain(..).find_map(|datagram| state.core.handle_datagram(now, id, datagram).err())
            });
            if let Some(error) = broken {
                tracing::warn!(%id, "session closed: {error}");
                self.close(AbortCode::Protocol, super::CLOSE_PROTOCOL, error.to_string().as_bytes());
            }
        }
    }

    /// Opens a flow; `None` if too many are open or the session is closed.
    pub fn open(&self) -> Option<FlowStream> {
        let id = self.with(|state, _| if state.is_closed { None } else { state.core.open() })?;
        Some(FlowStream::new(self.clone(), id))
    }

    /// Waits for the next flow that the other end opens; `None` once the session is closed.
    pub async fn accept(&self) -> Option<FlowStream> {
        let id = std::future::poll_fn(|context| {
            let mut state = self.lock();
            match state.opened.pop_front() {
                Some(id) => Poll::Ready(Some(id)),
                None if state.is_closed => Poll::Ready(None),
                None => {
                    state.acceptor = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await?;
        Some(FlowStream::new(self.clone(), id))
    }

    /// Ends the session: its flows are aborted with `code`, its connections closed with `close_code` and `reason`.
    pub fn close(&self, code: AbortCode, close_code: u32, reason: &[u8]) {
        let (connections, wakers) = {
            let mut state = self.lock();
            if state.is_closed {
                return;
            }
            state.is_closed = true;
            state.core.abort_all(code);
            let mut wakers: Vec<Waker> = state.acceptor.take().into_iter().collect();
            for flow in std::mem::take(&mut state.wakers_by_flow).into_values() {
                wakers.extend(flow.reader);
                wakers.extend(flow.writer);
                wakers.extend(flow.parcel_reader);
            }
            (std::mem::take(&mut state.connections), wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
        self.shared.timer_moved.notify_one();
        self.shared.paths.send_replace(PathCount { is_closed: true, ..PathCount::default() });
        for connection in connections.into_values() {
            connection.close(quinn::VarInt::from_u32(close_code), reason);
        }
    }

    /// Whether the session has been closed.
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// How many paths there are, now and whenever that changes.
    pub fn path_count(&self) -> watch::Receiver<PathCount> {
        self.shared.paths.subscribe()
    }

    /// The state of a path; `None` if it is not joined.
    pub fn path_state(&self, id: PathId) -> Option<PathState> {
        self.lock().core.path_status().into_iter().find(|path| path.path == id).map(|path| path.state)
    }

    /// Leaves a path in order, on both ends: what is under way on it is awaited, nothing more goes out while there is another path.
    pub fn leave_path(&self, id: PathId, why: Leaving) {
        self.with(|state, _| state.core.leave_path(id, why));
    }

    /// Waits until the other end asks to leave path `id`.
    pub async fn asked_to_leave(&self, id: PathId) -> Leaving {
        let mut leaving = self.lock().leaving.subscribe();
        let why = leaving.wait_for(|leaving| leaving.contains_key(&id)).await.map(|leaving| leaving[&id]);
        match why {
            Ok(why) => why,
            Err(_) => std::future::pending().await,
        }
    }

    /// The LAN's roster, now and whenever the other end tells a new one; empty before it has.
    pub fn roster(&self) -> watch::Receiver<Bytes> {
        self.lock().roster.subscribe()
    }

    /// The user's quotas, now and whenever the other end tells new ones; empty before it has.
    pub fn quotas(&self) -> watch::Receiver<Bytes> {
        self.lock().quotas.subscribe()
    }

    /// Tells the other end, a proxy, its user's quotas.
    pub fn tell_quotas(&self, quotas: Bytes) {
        self.with(|state, _| state.core.tell_quotas(quotas));
    }

    /// Asks the other end, `reconst`, to spread chunks by `policy`.
    pub fn ask_policy(&self, policy: Policy) {
        self.with(|state, _| state.core.ask_policy(policy));
    }

    /// Tells the other end, a proxy, its LAN's roster.
    pub fn tell_roster(&self, lines: Bytes) {
        self.with(|state, _| state.core.tell_roster(lines));
    }

    /// Tells the other end that a path's line has held this end back lately.
    pub fn tell_full(&self, id: PathId) {
        self.with(|state, _| state.core.tell_full(id));
    }

    /// Goes by the rates, bytes per second, that are fair on a path: for what this end sends, and, once told, for what the other end does.
    pub fn set_fair_rates(&self, id: PathId, own: Option<u64>, others: Option<u64>) {
        self.with(|state, _| {
            state.core.set_fair_rate(id, own);
            state.core.tell_fair_rate(id, others);
        });
    }

    /// Follows a change of a path's weight.
    pub fn set_weight(&self, id: PathId, weight: LineWeight) {
        self.with(|state, _| state.core.set_weight(id, weight));
    }

    /// The figures of each path.
    pub fn path_status(&self) -> Vec<PathStatus> {
        self.lock().core.path_status()
    }

    /// The session's figures.
    pub fn counters(&self) -> SessionCounters {
        self.lock().core.counters()
    }

    /// The number of flows open now.
    pub fn open_flows(&self) -> usize {
        self.lock().core.open_flows()
    }

    /// Bytes written to a flow that the other end has not acknowledged, or never will since the flow was aborted.
    pub(super) fn undelivered(&self, id: FlowId) -> u64 {
        self.lock().core.undelivered(id)
    }

    /// Whether a flow takes a good part of what it may be given at once.
    pub(super) fn has_room(&self, id: FlowId) -> bool {
        self.lock().core.has_room(id)
    }

    /// The same of all flows that are not aborted.
    pub fn undelivered_bytes(&self) -> u64 {
        self.lock().core.undelivered_bytes()
    }

    /// Changes the core, then drains it.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut State, Instant) -> T) -> T {
        let now = Instant::now();
        let mut woken = Vec::new();
        let (result, count, timer_is_closer) = {
            let mut state = self.lock();
            let result = change(&mut state, now);
            let count = state.drain(now, &mut woken);
            (result, count, state.move_timer())
        };
        self.after_drain(count, timer_is_closer, woken);
        result
    }

    fn after_drain(&self, count: Option<PathCount>, timer_is_closer: bool, woken: Vec<Waker>) {
        if timer_is_closer {
            self.shared.timer_moved.notify_one();
        }
        if let Some(count) = count {
            self.shared.paths.send_if_modified(|old| std::mem::replace(old, count) != count);
        }
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Terms {
    fn core(&self) -> Session {
        Session::new(Instant::now(), self.side, self.policy, self.limits)
    }
}

impl State {
    pub(super) fn wait_to_read(&mut self, id: FlowId, context: &Context<'_>) {
        self.wakers_by_flow.entry(id).or_default().reader = Some(context.waker().clone());
    }

    pub(super) fn wait_to_write(&mut self, id: FlowId, context: &Context<'_>) {
        self.wakers_by_flow.entry(id).or_default().writer = Some(context.waker().clone());
    }

    pub(super) fn wait_for_parcel(&mut self, id: FlowId, context: &Context<'_>) {
        self.wakers_by_flow.entry(id).or_default().parcel_reader = Some(context.waker().clone());
    }

    /// Has the flow's abort, or the session's end, drop what the receiver waits for. The one before waits no more.
    pub(super) fn watch_for_abort(&mut self, id: FlowId) -> oneshot::Receiver<Infallible> {
        let (sender, receiver) = oneshot::channel();
        if !self.is_closed && !self.core.is_aborted(id) {
            self.wakers_by_flow.entry(id).or_default().watcher = Some(sender);
        }
        receiver
    }

    pub(super) fn release(&mut self, id: FlowId) {
        self.core.release(id);
        self.wakers_by_flow.remove(&id);
    }

    /// Sends what the core has to send and collects whom to wake; gives the paths' count if one changed its state.
    fn drain(&mut self, now: Instant, woken: &mut Vec<Waker>) -> Option<PathCount> {
        if self.is_closed {
            return None;
        }
        loop {
            while let Some(transmit) = self.core.poll_transmit(now) {
                if let Some(connection) = self.connections.get(&transmit.path)
                    && let Err(quinn::SendDatagramError::TooLarge) = connection.send_datagram(transmit.datagram)
                {
                    // The MTU has shrunk since the core was told: this datagram counts as lost, the next ones fit.
                    self.core.set_max_datagram(transmit.path, connection.max_datagram_size().unwrap_or(DATAGRAM_BYTES_MIN));
                }
            }
            if !self.ask_for_room() {
                break;
            }
        }
        let mut paths_changed = false;
        while let Some(event) = self.core.poll_event() {
            match event {
                Event::Opened(id) => {
                    self.opened.push_back(id);
                    woken.extend(self.acceptor.take());
                }
                Event::Readable(id) => woken.extend(self.wakers_by_flow.get_mut(&id).and_then(|flow| flow.reader.take())),
                Event::Writable(id) => woken.extend(self.wakers_by_flow.get_mut(&id).and_then(|flow| flow.writer.take())),
                Event::Roster => drop(self.roster.send_replace(self.core.roster())),
                Event::Quotas => drop(self.quotas.send_replace(self.core.quotas())),
                Event::Leave(id, why) => self.leaving.send_modify(|leaving| {
                    leaving.insert(id, why);
                }),
                Event::Parcel(id) => woken.extend(self.wakers_by_flow.get_mut(&id).and_then(|flow| flow.parcel_reader.take())),
                Event::Aborted(id) => drop(self.wakers_by_flow.get_mut(&id).and_then(|flow| flow.watcher.take())),
                Event::Path(id, path_state) => {
                    tracing::debug!(%id, ?path_state, "path");
                    paths_changed = true;
                }
            }
        }
        paths_changed.then(|| self.count_paths())
    }

    /// Tells the core what the connections take that it thinks full; gives whether one of them takes more.
    fn ask_for_room(&mut self) -> bool {
        let (mut after, mut has_room) = (None, false);
        while let Some(id) = self.core.short_of_room(after) {
            // One that is gone takes, and loses, anything.
            let room = self.connections.get(&id).map_or(usize::MAX, quinn::Connection::datagram_send_buffer_space);
            self.core.set_carrier_room(id, room);
            has_room |= self.core.short_of_room(after) != Some(id);
            after = Some(id);
        }
        has_room
    }

    fn count_paths(&self) -> PathCount {
        let active = self.core.path_status().iter().filter(|path| path.state == PathState::Active).count();
        PathCount { joined: self.connections.len(), active, is_closed: self.is_closed }
    }

    /// Follows the core's timeout; whether the timer task sleeps too long now.
    fn move_timer(&mut self) -> bool {
        let wanted = self.core.poll_timeout();
        let is_closer = match (wanted, self.timer_at) {
            (Some(wanted), Some(armed)) => wanted < armed,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if is_closer {
            self.timer_at = wanted;
        }
        is_closer
    }
}

/// Takes a path out of its session when its connection has ended, or nobody runs it any more.
struct Leave<'a> {
    session: &'a SessionHandle,
    id: PathId,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let count = self.session.with(|state, _| {
            state.connections.remove(&self.id);
            state.core.remove_path(self.id);
            state.leaving.send_if_modified(|leaving| leaving.remove(&self.id).is_some());
            state.count_paths()
        });
        self.session.shared.paths.send_if_modified(|old| std::mem::replace(old, count) != count);
    }
}

async fn run_timer(shared: Arc<Shared>) {
    let session = SessionHandle { shared };
    loop {
        let wake_at = {
            let mut woken = Vec::new();
            let now = Instant::now();
            let mut state = session.lock();
            if state.is_closed {
                return;
            }
            state.core.handle_timeout(now);
            let count = state.drain(now, &mut woken);
            let wake_at = state.core.poll_timeout();
            state.timer_at = wake_at;
            drop(state);
            session.after_drain(count, false, woken);
            wake_at
        };
        let sleep_until = wake_at.unwrap_or_else(|| Instant::now() + IDLE_TICK).into();
        tokio::select! {
            () = tokio::time::sleep_until(sleep_until) => {}
            () = session.shared.timer_moved.notified() => {}
        }
    }
}

/// Datagrams worked in under one lock.
const BATCH_DATAGRAMS: usize = 64;

/// The timer task's sleep when the core asks for nothing.
const IDLE_TICK: Duration = Duration::from_secs(60);
