//! The session with one LAN's `reconst` and its paths: one through each line of each relay that is known.
//!
//! Enters: relays, from the command line or as they announce themselves. Leaves: a session whose flows go over whatever paths are up.
//! Each relay has a task that asks it for service, connects through it, joins the session, and does so again when the path has ended
//! or is dead. Two addresses that lead to the same line make one path. If `reconst` has lost the session, a new one begins; if another of its
//! servers serves the LAN from now on, flows that are open go on in the session before.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use quinn::{ClientConfig, ConnectionIdGenerator, Endpoint, TokioRuntime};
use rand::RngExt;
use shared::{
    community::{
        hello::{HelloRefusal, LineNumber},
        member::Name,
        profile::Profile,
        weight::LineWeight,
    },
    ids::{LanId, PathId, SessionId},
    link::{
        CLOSE_OVER,
        credentials::Credentials,
        join::{self, JoinError},
        lan::{self, HelloError},
        path_socket::PathSocket,
        renew::{Connections, Renewal},
        session::{KEPT_WITHOUT_PATHS, SessionHandle},
        tls::{MemberVerifier, PATH_ALPN, SERVER_NAME, TlsError},
        transport,
    },
    transfer::{
        control::AbortCode,
        join::{JoinRequest, SessionSecret},
        path::PathState,
        schedule::Policy,
        session::{Limits, Side},
    },
};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::{net::UdpSocket, sync::mpsc, task::AbortHandle};

use keeper::{Joined, Order};
use lifetime::{is_abandoned, is_carried, outlast};

pub use report::{PathReport, RelayProblem, Route};

mod keeper;
mod lifetime;
mod report;

/// The paths of one LAN; clones share them. The tasks end with [`Paths::close`].
#[derive(Clone)]
pub struct Paths {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Paths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paths").field("lan", &self.inner.lan).finish_non_exhaustive()
    }
}

struct Inner {
    lan: LanId,
    credentials: Credentials,
    connections: Connections,
    verifier: MemberVerifier,
    crypto: Arc<dyn quinn::crypto::ClientConfig>,
    policy: Policy,
    state: Mutex<State>,
}

struct State {
    session: Current,
    keepers: HashMap<SocketAddr, Keeper>,
    lease_by_line: HashMap<LineKey, u64>,
    next_lease: u64,
    routes: HashMap<PathId, Route>,
    endpoints: HashMap<PathId, Endpoint>,
    last_problem: HashMap<SocketAddr, Problem>,
}

/// The session that new paths join.
#[derive(Clone)]
struct Current {
    handle: SessionHandle,
    id: SessionId,
    secret: SessionSecret,
    incarnation: Option<u64>,
    next_path: u32,
}

struct Keeper {
    task: AbortHandle,
    orders: mpsc::Sender<Order>,
    /// Whether the relay was named on the command line; such a one is never given up.
    is_configured: bool,
}

/// A line, whatever address leads to it.
type LineKey = (Name, LineNumber);

/// Why there is no path through a relay.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Problem {
    text: String,
    /// Whether it was `reconst` that said no, itself or through a relay that it has told.
    is_refusal: bool,
}

/// Why a path did not come up.
#[derive(Debug, Error)]
enum PathError {
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("can't open a UDP socket: {0}")]
    Socket(#[from] io::Error),
    #[error("can't connect through the relay: {0}")]
    Connect(#[from] quinn::ConnectError),
    #[error("relay {0} serves, but reconst does not answer through it: the relay's line may be down")]
    NoAnswer(SocketAddr),
    #[error("reconst does not take the connection: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("another path already runs over line {} of relay {}", .0.1.0, .0.0)]
    SameLine(LineKey),
}

/// The right to be the one path over a line.
struct LineLease {
    inner: Arc<Inner>,
    key: LineKey,
    number: u64,
}

impl Paths {
    /// A session of the member of `profile` without paths.
    ///
    /// # Errors
    /// If the profile's certificates or key can't be used.
    pub fn new(profile: &Profile, policy: Policy) -> Result<Self, TlsError> {
        let state = State {
            session: Current::new(policy, 0),
            keepers: HashMap::new(),
            lease_by_line: HashMap::new(),
            next_lease: 0,
            routes: HashMap::new(),
            endpoints: HashMap::new(),
            last_problem: HashMap::new(),
        };
        let credentials = Credentials::new(profile)?;
        let first = state.session.clone();
        let inner = Arc::new(Inner {
            lan: profile.identity.lan,
            crypto: credentials.client_crypto(&profile.authority_pem, PATH_ALPN)?,
            credentials,
            connections: Connections::default(),
            verifier: MemberVerifier::new(&profile.authority_pem)?,
            policy,
            state: Mutex::new(state),
        });
        tokio::spawn(inner.clone().end_when_abandoned(first));
        Ok(Self { inner })
    }

    /// What renews the certificate of `profile`, in its `file` too, over these paths, which then use the new one.
    pub fn renewal(&self, profile: &Profile, file: Option<PathBuf>, left_percent: u8) -> Renewal {
        let (credentials, connections) = (self.inner.credentials.clone(), self.inner.connections.clone());
        Renewal { profile: profile.clone(), file, left_percent, credentials, connections }
    }

    /// The session to open flows in, now.
    pub fn session(&self) -> SessionHandle {
        self.inner.lock().session.handle.clone()
    }

    /// Keeps a path through the relay at `address` up from now on. One that `is_configured` stays whatever the roster says.
    pub fn add_relay(&self, address: SocketAddr, is_configured: bool) {
        let mut state = self.inner.lock();
        if let Some(keeper) = state.keepers.get_mut(&address) {
            keeper.is_configured |= is_configured;
            return;
        }
        if state.keepers.len() >= MAX_RELAYS {
            tracing::warn!(%address, "too many relays: this one is not used");
            return;
        }
        let (orders, received) = mpsc::channel(ORDERS_MAX);
        let task = tokio::spawn(keeper::keep(self.inner.clone(), address, received)).abort_handle();
        state.keepers.insert(address, Keeper { task, orders, is_configured });
    }

    /// Leaves the path through the relay at `address`, which has left the roster: what is under way is awaited. A relay that was
    /// configured is asked again later on, another one is let go.
    pub fn remove_relay(&self, address: SocketAddr) {
        let mut state = self.inner.lock();
        match state.keepers.get(&address) {
            Some(keeper) if keeper.is_configured => drop(keeper.orders.try_send(Order::Leave)),
            Some(_) => {
                let Some(keeper) = state.keepers.remove(&address) else { return };
                // Should its orders not be read, it ends all the same: there will be no more.
                let _ = keeper.orders.try_send(Order::End);
                state.last_problem.remove(&address);
            }
            None => (),
        }
    }

    /// Follows a change of a line's weight towards `reconst`.
    pub fn set_weight_up(&self, line: &(Name, LineNumber), weight: LineWeight) {
        let state = self.inner.lock();
        let over_line = state.routes.iter().filter(|(_, route)| (route.relay.as_str(), route.line) == (line.0.as_str(), line.1.0));
        for (&path, _) in over_line {
            state.session.handle.set_weight(path, weight);
        }
    }

    /// Has every path that is not in service, or falls out of it just now, tried anew at once: the network has changed, or this PC has slept.
    pub fn retry(&self) {
        for keeper in self.inner.lock().keepers.values() {
            let _ = keeper.orders.try_send(Order::Retry);
        }
    }

    /// How loaded the session is: open flows per bit per second of its paths; none without a path in service.
    pub fn load(&self) -> Option<f64> {
        let session = self.session();
        let active = session.path_status().into_iter().filter(|path| path.state == PathState::Active);
        let rates: Vec<f64> = active.map(|path| path.capacity.unwrap_or(UNKNOWN_CAPACITY)).collect();
        (!rates.is_empty()).then(|| (session.open_flows() + 1) as f64 / rates.iter().sum::<f64>())
    }

    /// The paths that have joined.
    pub fn report(&self) -> Vec<PathReport> {
        let state = self.inner.lock();
        let statuses = state.session.handle.path_status();
        statuses.iter().filter_map(|status| Some(PathReport::new(state.routes.get(&status.path)?.clone(), status))).collect()
    }

    /// The relays through which no path is up, and why.
    pub fn problems(&self) -> Vec<RelayProblem> {
        let state = self.inner.lock();
        let mut problems: Vec<_> =
            state.last_problem.iter().map(|(&address, problem)| RelayProblem { address, problem: problem.text.clone() }).collect();
        problems.sort_by_key(|problem| problem.address);
        problems
    }

    /// Why no flow can be opened and waiting is of no use: every relay was tried, and `reconst` refuses this user.
    pub fn refusal(&self) -> Option<String> {
        let state = self.inner.lock();
        let is_hopeless = !state.keepers.is_empty()
            && state.keepers.keys().all(|address| state.last_problem.get(address).is_some_and(|problem| problem.is_refusal));
        if !is_hopeless {
            return None;
        }
        state.last_problem.values().next().map(|problem| problem.text.clone())
    }

    /// Ends the session and all paths, and lets `reconst` know.
    pub async fn close(&self) {
        let endpoints: Vec<Endpoint> = {
            let mut state = self.inner.lock();
            // Before the keepers, who would say no more than that a path is over.
            state.session.handle.close(AbortCode::SessionLost, CLOSE_OVER, b"proxy-local stops");
            for (_, keeper) in state.keepers.drain() {
                keeper.task.abort();
            }
            state.endpoints.values().cloned().collect()
        };
        let idle = async {
            for endpoint in &endpoints {
                endpoint.wait_idle().await;
            }
        };
        let _ = tokio::time::timeout(CLOSING_TIME, idle).await;
    }
}

impl Current {
    fn new(policy: Policy, next_path: u32) -> Self {
        let limits = Limits { keep_alive: Some(KEEP_ALIVE), ..Limits::default() };
        let handle = SessionHandle::new(Side::Proxy, policy, limits);
        if policy != Policy::default() {
            handle.ask_policy(policy);
        }
        Self { handle, id: SessionId(rand::rng().random()), secret: SessionSecret(rand::rng().random()), incarnation: None, next_path }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under the lock")
    }

    /// Asks the relay for service, connects through it and joins the session.
    async fn connect(self: &Arc<Self>, address: SocketAddr, moving: Option<SessionId>) -> Result<Joined, PathError> {
        let socket = UdpSocket::from_std(udp_socket(address.ip())?)?;
        let welcome = lan::request_service(&socket, address, LineNumber::ANY, &self.credentials.signer(), &self.verifier, self.lan).await?;
        let line = self.lease_line((welcome.relay.name.clone(), welcome.line))?;
        let mut endpoint_config = transport::path_endpoint();
        endpoint_config.cid_generator(no_connection_ids);
        let socket = PathSocket::new(socket.into_std()?)?;
        let endpoint = Endpoint::new_with_abstract_socket(endpoint_config, None, socket, Arc::new(TokioRuntime))?;
        let mut config = ClientConfig::new(self.crypto.clone());
        config.transport_config(transport::path_transport(address));
        let connecting = endpoint.connect_with(config, address, SERVER_NAME)?;
        let connection = tokio::time::timeout(CONNECT_TIME, connecting).await.map_err(|_| PathError::NoAnswer(address))??;

        let (id, session, request) = {
            let mut state = self.lock();
            let current = &mut state.session;
            let id = PathId(current.next_path);
            current.next_path += 1;
            let request = JoinRequest {
                session: current.id,
                secret: current.secret,
                path: id,
                incarnation: current.incarnation,
                weight_down: welcome.weights.down,
                line: welcome.line.0,
                relay: welcome.relay.name.to_string(),
            };
            (id, current.handle.clone(), request)
        };
        let joined = tokio::time::timeout(CONNECT_TIME, join::request(&connection, &request)).await;
        let incarnation = match joined.map_err(|_| PathError::NoAnswer(address))? {
            Err(JoinError::UnknownSession) => {
                self.on_unknown(request.session, moving);
                return Err(JoinError::UnknownSession.into());
            }
            result => result?,
        };
        let mut state = self.lock();
        if state.session.id != request.session || *state.session.incarnation.get_or_insert(incarnation) != incarnation {
            drop(state);
            self.on_unknown(request.session, moving);
            return Err(JoinError::UnknownSession.into());
        }
        state.endpoints.insert(id, endpoint);
        state.routes.insert(id, Route { relay: request.relay, address, line: welcome.line.0 });
        state.last_problem.remove(&address);
        drop(state);
        Ok(Joined::new(id, connection, session, request.session, welcome.weights.up, line))
    }

    fn lease_line(self: &Arc<Self>, key: LineKey) -> Result<LineLease, PathError> {
        let mut state = self.lock();
        if state.lease_by_line.contains_key(&key) {
            return Err(PathError::SameLine(key));
        }
        let number = state.next_lease;
        state.next_lease += 1;
        state.lease_by_line.insert(key.clone(), number);
        Ok(LineLease { inner: self.clone(), key, number })
    }

    /// Begins a new session in place of one that has flows and that nothing has carried for [`KEPT_WITHOUT_PATHS`].
    async fn end_when_abandoned(self: Arc<Self>, session: Current) {
        let mut count = session.handle.path_count();
        while is_abandoned(&mut count, KEPT_WITHOUT_PATHS).await {
            if session.handle.open_flows() > 0 {
                return self.begin_anew(session.id);
            }
            // Flows are opened on what is carried.
            let _ = count.wait_for(|count| count.active > 0 || count.is_closed).await;
        }
    }

    /// Begins a new session in place of `lost`, whose flows break.
    fn begin_anew(self: &Arc<Self>, lost: SessionId) {
        if let Some(old) = self.replace_session(lost) {
            tracing::warn!("the session is over: its flows break, a new one begins");
            old.close(AbortCode::SessionLost, CLOSE_OVER, b"the session is lost");
        }
    }

    /// Follows the news that the server at the end of a relay's line does not know `session`. If its own server has asked to move, a new session
    /// begins there, and this one ends with its flows. Else, as long as other paths carry it, that relay does not know yet where the LAN is served.
    fn on_unknown(self: &Arc<Self>, session: SessionId, moving: Option<SessionId>) {
        if moving == Some(session) {
            if let Some(old) = self.replace_session(session) {
                tracing::info!("another server of reconst takes over: open flows go on where they are, new ones go there");
                tokio::spawn(outlast(old));
            }
        } else if !self.has_active_path(session) {
            self.begin_anew(session);
        }
    }

    fn has_active_path(&self, session: SessionId) -> bool {
        let current = self.lock().session.clone();
        current.id == session && is_carried(&current.handle)
    }

    fn replace_session(self: &Arc<Self>, old: SessionId) -> Option<SessionHandle> {
        let mut state = self.lock();
        if state.session.id != old {
            return None;
        }
        let next = Current::new(self.policy, state.session.next_path);
        tokio::spawn(self.clone().end_when_abandoned(next.clone()));
        let old = std::mem::replace(&mut state.session, next);
        state.routes.clear();
        Some(old.handle)
    }

    /// Remembers why there is no path through the relay at `address`; gives whether that is news.
    fn note_problem(&self, address: SocketAddr, error: &PathError) -> bool {
        let is_refusal = matches!(
            error,
            PathError::Join(JoinError::Refused(_)) | PathError::Hello(HelloError::Refused { refusal: HelloRefusal::Removed, .. })
        );
        let problem = Problem { text: error.to_string(), is_refusal };
        self.lock().last_problem.insert(address, problem.clone()) != Some(problem)
    }
}

impl LineLease {
    /// Lets another path have the line while this one is dead.
    fn release(&self) {
        let mut state = self.inner.lock();
        if state.lease_by_line.get(&self.key) == Some(&self.number) {
            state.lease_by_line.remove(&self.key);
        }
    }
}

impl Drop for LineLease {
    fn drop(&mut self) {
        self.release();
    }
}

/// A socket for one path, as the LAN side of a relay sees it.
fn udp_socket(relay: IpAddr) -> io::Result<std::net::UdpSocket> {
    let (domain, any): (Domain, IpAddr) =
        if relay.is_ipv4() { (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()) } else { (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()) };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    // The system may grant less; then a burst that finds the process asleep is lost sooner.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(any, 0).into())?;
    Ok(socket.into())
}

/// One socket carries one connection, so that packets to it need no connection id.
fn no_connection_ids() -> Box<dyn ConnectionIdGenerator> {
    Box::new(quinn_proto::RandomConnectionIdGenerator::new(0))
}

/// How often an idle path is pinged, so that one that has died is known before a flow needs it, and the relay keeps it admitted.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How long a handshake through a relay may take: ten of its round trips over a modem.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long the last words of this program's connections may take to leave.
const CLOSING_TIME: Duration = Duration::from_millis(200);

/// What a path is taken to carry before it has been measured, bytes per second: a slow DSL line.
const UNKNOWN_CAPACITY: f64 = 250_000.0;

/// Orders that a keeper has not read yet; it reads them at once.
const ORDERS_MAX: usize = 8;

/// Relays used at once.
const MAX_RELAYS: usize = 64;

/// What is asked of the system for each socket: 1 Gbit/s for 32 ms.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
