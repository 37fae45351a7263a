//! The data port of a LAN: paths in, flows out to content servers.
//!
//! Enters: QUIC connections through the LAN's relays. A connection is a path of a user's session once its certificate is that of a
//! member of this LAN and it has joined; until then it costs little, and never for longer than 15 s. Leaves: the bytes of
//! each flow to and from its content server. A session without paths is kept for [`KEPT_WITHOUT_PATHS`] so that its flows go on,
//! unless its proxy has ended it.

mod over_lines;
mod report;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use quinn::VarInt;
use rand::RngExt;
use rustls::pki_types::CertificateDer;
use shared::{
    community::{
        hello::LineNumber,
        listed::{self, ListedLine},
        member::{Identity, Name, Role},
        quota::{
            Way,
            told::{self, ToldQuota},
        },
    },
    ids::{LanId, PathId, SessionId},
    link::{
        CLOSE_DENIED, CLOSE_LEAVING, CLOSE_MOVED, CLOSE_OVER, CLOSE_PROTOCOL, join, open,
        pipe::metered_pipe,
        session::{KEPT_WITHOUT_PATHS, SessionHandle},
        stream::FlowStream,
        tls,
        transport::path_transport,
        udp_port::UdpPort,
    },
    service::Shutdown,
    target::{Refusal, RefusalKind, Target},
    transfer::{
        control::{AbortCode, Leaving},
        join::{JoinReply, JoinRequest, SessionSecret},
        open::RequestKind,
        path::PathStatus,
        schedule::Policy,
        session::{Limits, Side},
    },
};
use tokio::{
    io::AsyncWriteExt,
    sync::{Semaphore, watch},
};

pub use self::{
    over_lines::{PathOverLine, SessionOverLines},
    report::{SessionPlace, SessionReport},
};
use crate::{
    accounts::{Accounts, Denied, MemberId, changes::Changes, lan_accounts::LanKey},
    dedicated::{DedicatedPorts, Holder, Noted, Protocol},
    egress::{Egress, udp},
    enrol::Enroller,
    fair::FairRate,
    quota::{
        Keeper, Spending,
        meter::{FlowMeter, ParcelMeter},
    },
    roster::LineKey,
};

/// The sessions of all LANs served here, and what their flows need; clones share it.
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    accounts: Accounts,
    keeper: Keeper,
    egress: Egress,
    enroller: Enroller,
    policy: Policy,
    udp_idle: Duration,
    sessions: Mutex<HashMap<SessionKey, Entry>>,
    open_flows: AtomicUsize,
    open_udp_flows: AtomicUsize,
    dedicated: DedicatedPorts,
}

/// A session's name counts only together with the member that it belongs to.
type SessionKey = (Identity, SessionId);

#[derive(Clone)]
struct Entry {
    handle: SessionHandle,
    secret: SessionSecret,
    incarnation: u64,
    lan_name: Name,
    lines: Arc<Mutex<BTreeMap<PathId, (LineKey, IpAddr)>>>,
    /// From which the session's flows are spent.
    account: Arc<Mutex<Arc<Spending>>>,
    /// What its user was told of quotas last.
    told_quotas: Arc<Mutex<Vec<ToldQuota>>>,
}

/// How long a connection may take to become a path: ten round trips of a modem line.
const JOIN_TIME: Duration = Duration::from_secs(15);

/// How long after a move the paths are asked to be made anew.
const MOVE_TOLD_AFTER: Duration = Duration::from_secs(1);

/// How long a path through a relay that was removed may go on with what is under way, if the proxy does not close it before.
const LEFT_WITHIN: Duration = Duration::from_secs(3);

/// How long a flow may take to say where it goes.
const REQUEST_TIME: Duration = Duration::from_secs(60);

/// Connections of one data port that are not paths yet; beyond half of it they must show that their address is theirs (RFC 9000 §8.1.2).
const JOINING_MAX: usize = 512;

/// Sessions of one user at once: a user's few PCs, each started anew a few times within [`KEPT_WITHOUT_PATHS`].
const SESSIONS_PER_USER: usize = 32;

/// Paths of one session at once.
const PATHS_PER_SESSION: usize = 64;

impl Sessions {
    /// No sessions yet.
    pub(crate) fn new(
        accounts: Accounts,
        keeper: Keeper,
        egress: Egress,
        enroller: Enroller,
        dedicated: DedicatedPorts,
        policy: Policy,
        udp_idle: Duration,
    ) -> Self {
        let inner = Inner {
            accounts,
            keeper,
            egress,
            enroller,
            policy,
            udp_idle,
            sessions: Mutex::default(),
            open_flows: AtomicUsize::new(0),
            open_udp_flows: AtomicUsize::new(0),
            dedicated,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Begins a session, as its first path does.
    #[cfg(test)]
    pub(crate) async fn begin(&self, member: &crate::accounts::Member, request: &JoinRequest) {
        let account = self.inner.keeper.spending(member).await.expect("the store answers");
        let key = (member.identity.clone(), request.session);
        assert!(self.inner.find_or_begin(&key, request, account).is_ok(), "one session more");
    }

    /// The figures of the paths of `user`, over all its sessions.
    pub fn paths_of(&self, user: &Identity) -> Vec<PathStatus> {
        let handles: Vec<_> = self.inner.lock().iter().filter(|(key, _)| key.0 == *user).map(|(_, entry)| entry.handle.clone()).collect();
        handles.iter().flat_map(SessionHandle::path_status).collect()
    }

    /// All sessions by incarnation, with their LANs.
    pub fn incarnations(&self) -> Vec<(u64, LanId)> {
        self.inner.lock().iter().map(|(key, entry)| (entry.incarnation, key.0.lan)).collect()
    }

    /// Tells a session its LAN's roster, and goes by the weights in it.
    pub fn tell_lines(&self, incarnation: u64, lan: LanId, lines: &[ListedLine]) {
        let entry = self.inner.lock().values().find(|entry| entry.incarnation == incarnation).cloned();
        let Some(entry) = entry else { return };
        for (path, (key, _)) in entry.lines() {
            let line = lines.iter().find(|line| (lan, &line.relay, line.line) == (key.0, &key.1, key.2));
            if let Some(line) = line {
                entry.handle.set_weight(path, line.weights.down);
            }
        }
        entry.handle.tell_roster(listed::encode(lines).into());
    }

    /// Has paths go by what is fair for them, by their sessions' incarnations, and tells it to their other ends.
    pub(crate) fn set_fair_rates(&self, rates_by_session: &HashMap<u64, Vec<FairRate>>) {
        if rates_by_session.is_empty() {
            return;
        }
        let entries: Vec<_> = self.inner.lock().values().cloned().collect();
        for entry in entries {
            for rate in rates_by_session.get(&entry.incarnation).into_iter().flatten() {
                entry.handle.set_fair_rates(rate.path, rate.down, rate.up);
            }
        }
    }

    /// Tells each session what its user may use and has, if that is news.
    pub fn tell_quotas(&self) {
        let entries: Vec<_> = self.inner.lock().values().cloned().collect();
        for entry in entries {
            let now = entry.account().told();
            let mut told = entry.told_quotas.lock().expect("nothing panics under the lock");
            if now.len() != told.len() || now.iter().zip(&*told).any(|(now, before)| now.is_news_after(before)) {
                entry.handle.tell_quotas(told::encode(&now).into());
                *told = now;
            }
        }
    }

    /// Has all paths over a line left in order.
    pub fn leave_line(&self, line: &LineKey) {
        let entries: Vec<_> = self.inner.lock().values().cloned().collect();
        for entry in entries {
            for (path, _) in entry.lines().into_iter().filter(|(_, (key, _))| key == line) {
                entry.handle.leave_path(path, Leaving::Ends);
            }
        }
    }

    /// The ports that the flows have.
    pub fn dedicated_ports(&self) -> &DedicatedPorts {
        &self.inner.dedicated
    }

    /// The number of flows that are open now.
    pub fn open_flows(&self) -> usize {
        self.inner.open_flows.load(Ordering::Relaxed)
    }

    /// Those of them that are UDP.
    pub fn open_udp_flows(&self) -> usize {
        self.inner.open_udp_flows.load(Ordering::Relaxed)
    }

    /// Those of them that may come to an end soon: a UDP flow has none of its own.
    pub fn finishing_flows(&self) -> usize {
        self.open_flows().saturating_sub(self.open_udp_flows())
    }

    /// Ends the sessions of a LAN at once.
    pub(crate) fn close_lan(&self, lan: LanId, reason: &str) {
        let entries: Vec<_> = self.inner.lock().extract_if(|key, _| key.0.lan == lan).collect();
        for (_, entry) in entries {
            entry.handle.close(AbortCode::SessionLost, CLOSE_LEAVING, reason.as_bytes());
        }
    }

    /// Ends every session at once.
    pub fn close(&self, reason: &str) {
        let entries: Vec<_> = self.inner.lock().drain().collect();
        for (_, entry) in entries {
            entry.handle.close(AbortCode::SessionLost, CLOSE_LEAVING, reason.as_bytes());
        }
    }
}

/// Takes the paths of `lan` in on `endpoint`, by `config`, until `shutdown`. The flows that are open then go on until the caller closes the
/// sessions.
/// Once the LAN has `moved` away from this endpoint, its paths are asked to be made anew.
pub async fn serve(
    endpoint: quinn::Endpoint,
    config: quinn::ServerConfig,
    lan: LanId,
    sessions: Sessions,
    shutdown: Shutdown,
    moved: watch::Receiver<bool>,
) {
    let joining = Arc::new(Semaphore::new(JOINING_MAX));
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = shutdown.draining() => break,
        };
        let Some(incoming) = incoming else { return };
        if joining.available_permits() < JOINING_MAX / 2 && !incoming.remote_address_validated() && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        let Ok(permit) = joining.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (inner, moved) = (sessions.inner.clone(), moved.clone());
        let config = config.clone();
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            match tokio::time::timeout(JOIN_TIME, inner.join(incoming, config, lan)).await {
                Ok(Ok(Some(path))) => {
                    drop(permit);
                    path.run(remote, moved).await;
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::debug!(%remote, "no path: {error:#}"),
                Err(_) => tracing::debug!(%remote, "no path: joining took too long"),
            }
        });
    }
}

/// A connection that has joined its session.
struct Path {
    inner: Arc<Inner>,
    certificate: CertificateDer<'static>,
    key: SessionKey,
    member: (MemberId, LanKey),
    /// Its relay, if the store has answered.
    relay: Option<MemberId>,
    /// Since before those were looked up.
    changes: Changes,
    entry: Entry,
    connection: quinn::Connection,
    request: JoinRequest,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionKey, Entry>> {
        self.sessions.lock().expect("nothing panics under the lock")
    }

    /// Makes a path of a connection; `None` if it was turned away with an answer.
    async fn join(self: Arc<Self>, incoming: quinn::Incoming, mut config: quinn::ServerConfig, lan: LanId) -> anyhow::Result<Option<Path>> {
        config.transport_config(path_transport(incoming.remote_address()));
        let connection = incoming.accept_with(Arc::new(config))?.await?;
        let certificate = tls::peer_certificate(&connection).context("the connection has no certificate")?;
        let (request, mut answer) = match join::receive(&connection).await {
            Ok(received) => received,
            Err(error) => {
                connection.close(VarInt::from_u32(CLOSE_PROTOCOL), error.to_string().as_bytes());
                return Err(error.into());
            }
        };
        let changes = self.accounts.changes();
        let authorised = self.accounts.authorise(&certificate, Role::User).await.map_err(|denied| denied.to_string());
        let member = authorised
            .and_then(|member| if member.identity.lan == lan { Ok(member) } else { Err(format!("this port serves LAN {lan}, not yours")) });
        let member = match member {
            Ok(member) => member,
            Err(reason) => {
                tracing::info!(remote = %connection.remote_address(), %reason, "path refused");
                join::turn_away(&connection, answer, CLOSE_DENIED, &JoinReply::Refused { reason }).await;
                return Ok(None);
            }
        };
        let relay = match self.check_relay(lan, &request.relay).await {
            Ok(relay) => relay,
            Err(reason) => {
                tracing::info!(remote = %connection.remote_address(), %reason, "path refused");
                join::turn_away(&connection, answer, CLOSE_DENIED, &JoinReply::Refused { reason }).await;
                return Ok(None);
            }
        };
        let account = match self.keeper.spending(&member).await {
            Ok(account) => account,
            Err(error) => {
                tracing::error!(user = %member.identity, %error, "path refused");
                let reason = "reconst can't look up what you have used: try again in a moment".into();
                join::turn_away(&connection, answer, CLOSE_DENIED, &JoinReply::Refused { reason }).await;
                return Ok(None);
            }
        };
        let (key, member) = ((member.identity, request.session), (member.id, member.lan_key));
        let entry = match self.find_or_begin(&key, &request, account) {
            Ok(entry) => entry,
            Err(reply) => {
                join::turn_away(&connection, answer, CLOSE_DENIED, &reply).await;
                return Ok(None);
            }
        };
        join::answer(&mut answer, &JoinReply::Joined { incarnation: entry.incarnation }).await?;
        Ok(Some(Path { inner: self, certificate, key, member, relay, changes, entry, connection, request }))
    }

    /// The relay of that name, if paths may run through it, and if the store answers; if they may not, why.
    async fn check_relay(&self, lan: LanId, relay: &str) -> Result<Option<MemberId>, String> {
        match self.accounts.relay(lan, relay).await {
            Ok(None) => Err(format!("{relay} is no relay of LAN {lan} any more: ask its owner, or reconst's operator")),
            Ok(relay) => Ok(relay),
            // Not knowing is no reason to break what works.
            Err(error) => {
                tracing::warn!(%error, "relays can't be looked up");
                Ok(None)
            }
        }
    }

    /// The session that `request` names, begun if it may be; else the reply that turns the path away.
    fn find_or_begin(self: &Arc<Self>, key: &SessionKey, request: &JoinRequest, account: Arc<Spending>) -> Result<Entry, JoinReply> {
        let refused = |reason: &str| JoinReply::Refused { reason: reason.into() };
        let mut sessions = self.lock();
        if let Some(entry) = sessions.get(key) {
            if entry.secret != request.secret || request.incarnation.is_some_and(|incarnation| incarnation != entry.incarnation) {
                return Err(JoinReply::Unknown);
            }
            let paths = entry.handle.path_status();
            if paths.len() >= PATHS_PER_SESSION {
                return Err(refused("the session has as many paths as it may have"));
            }
            if paths.iter().any(|path| path.path == request.path) {
                return Err(refused("the session has a path of that number"));
            }
            return Ok(entry.clone());
        }
        if request.incarnation.is_some() {
            return Err(JoinReply::Unknown);
        }
        if sessions.keys().filter(|(user, _)| *user == key.0).count() >= SESSIONS_PER_USER {
            return Err(refused("the user has as many sessions as one may have"));
        }
        let handle = SessionHandle::new(Side::Reconst, self.policy, Limits::default());
        account.add_session(&handle);
        let entry = Entry {
            handle: handle.clone(),
            secret: request.secret,
            incarnation: rand::rng().random_range(1..=u64::MAX),
            lan_name: account.lan_name().clone(),
            lines: Arc::default(),
            account: Arc::new(Mutex::new(account)),
            told_quotas: Arc::default(),
        };
        sessions.insert(key.clone(), entry.clone());
        drop(sessions);
        tracing::info!(user = %key.0, "session begins");
        tokio::spawn(self.clone().serve_flows(entry.clone(), key.clone()));
        tokio::spawn(self.clone().end_when_abandoned(handle, key.clone()));
        Ok(entry)
    }

    /// Takes the flows of a session until it is closed.
    async fn serve_flows(self: Arc<Self>, entry: Entry, key: SessionKey) {
        while let Some(stream) = entry.handle.accept().await {
            let inner = self.clone();
            let ((user, session), account) = (key.clone(), entry.account());
            tokio::spawn(async move {
                inner.open_flows.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = inner.serve_flow(stream, &user, session, &account).await {
                    tracing::debug!(%user, "flow ended: {error:#}");
                }
                inner.open_flows.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }

    /// Carries one flow to its content server and back.
    async fn serve_flow(&self, mut stream: FlowStream, user: &Identity, session: SessionId, account: &Arc<Spending>) -> anyhow::Result<()> {
        let request = tokio::time::timeout(REQUEST_TIME, open::read_request(&mut stream)).await??;
        let _counted = match account.open_flow() {
            Ok(counted) => counted,
            Err(refusal) => return refuse(stream, refusal).await,
        };
        let lan_name = account.lan_name().clone();
        let holder = Holder { user: user.clone(), lan_name, session, flow: stream.id(), origin: request.origin };
        match request.kind {
            RequestKind::Tcp(target) => self.serve_tcp(stream, target, holder, account).await,
            RequestKind::Udp(policy) => self.serve_udp(stream, policy, holder, account).await,
        }
    }

    async fn serve_tcp(&self, mut stream: FlowStream, target: Target, holder: Holder, account: &Arc<Spending>) -> anyhow::Result<()> {
        let socket = match self.egress.connect(&target).await {
            Ok(socket) => socket,
            Err(refusal) => return refuse(stream, refusal).await,
        };
        open::write_answer(&mut stream, &Ok(())).await?;
        let id = stream.id();
        let port = self.dedicated.hold(holder, Protocol::Tcp, socket.local_addr()?.port(), Some(target.clone()));
        let (up, down) = FlowMeter::pair(account, &stream.watch());
        let aborted = stream.aborted();
        // The pipe's socket is the content server's, so that what it reads there goes down.
        let carried = metered_pipe(socket, Noted::new(stream, port), down, up, aborted).await?;
        tracing::debug!(%target, %id, up = carried.down, down = carried.up, "flow over");
        Ok(())
    }

    async fn serve_udp(&self, mut stream: FlowStream, policy: Policy, holder: Holder, account: &Arc<Spending>) -> anyhow::Result<()> {
        self.open_udp_flows.fetch_add(1, Ordering::Relaxed);
        let ended = self.carry_udp(&mut stream, policy, holder, account).await;
        self.open_udp_flows.fetch_sub(1, Ordering::Relaxed);
        ended?;
        read_to_end(&mut stream).await;
        Ok(())
    }

    async fn carry_udp(&self, stream: &mut FlowStream, policy: Policy, holder: Holder, account: &Arc<Spending>) -> anyhow::Result<()> {
        let parcels = stream.carry_parcels(policy);
        let opened = UdpPort::open().and_then(|port| Ok((port.number()?, port)));
        let answer = match &opened {
            Ok(_) => Ok(()),
            Err(error) => Err(Refusal::new(RefusalKind::General, format!("reconst has no UDP port left: {error}"))),
        };
        open::write_answer(stream, &answer).await?;
        if let Ok((number, port)) = opened {
            let usage = self.dedicated.hold(holder, Protocol::Udp, number, None);
            let meters = (ParcelMeter::new(account.clone(), Way::Up), ParcelMeter::new(account.clone(), Way::Down));
            let ended = udp::carry(&self.egress, stream, parcels, port, &usage, meters, self.udp_idle).await?;
            tracing::debug!(id = %stream.id(), port = number, ?ended, "UDP flow over");
            stream.shutdown().await?;
        }
        Ok(())
    }

    /// Ends a session once it has been without paths for [`KEPT_WITHOUT_PATHS`].
    async fn end_when_abandoned(self: Arc<Self>, session: SessionHandle, key: SessionKey) {
        let mut count = session.path_count();
        loop {
            // The first path joins right after the session begins.
            let returned =
                tokio::time::timeout(KEPT_WITHOUT_PATHS, count.wait_for(|count| count.joined > 0 || count.is_closed)).await.is_ok();
            if !returned || session.is_closed() {
                break;
            }
            let is_gone = count.wait_for(|count| count.joined == 0 || count.is_closed).await.is_err();
            if is_gone || session.is_closed() {
                break;
            }
        }
        self.lock().remove(&key);
        session.close(AbortCode::SessionLost, CLOSE_LEAVING, b"the session was without paths for too long");
        tracing::info!(user = %key.0, "session ends");
    }
}

impl Entry {
    fn lines(&self) -> BTreeMap<PathId, (LineKey, IpAddr)> {
        self.lines.lock().expect("nothing panics under the lock").clone()
    }

    fn account(&self) -> Arc<Spending> {
        self.account.lock().expect("nothing panics under the lock").clone()
    }

    fn set_account(&self, account: Arc<Spending>) {
        let mut known = self.account.lock().expect("nothing panics under the lock");
        if !account.is_of_the_accounts_of(&known) {
            account.add_session(&self.handle);
        }
        *known = account;
    }

    fn note_line(&self, path: PathId, line: Option<(LineKey, IpAddr)>) {
        let mut lines = self.lines.lock().expect("nothing panics under the lock");
        match line {
            Some(line) => lines.insert(path, line),
            None => lines.remove(&path),
        };
    }
}

impl Path {
    async fn run(self, remote: SocketAddr, mut moved: watch::Receiver<bool>) {
        let id = self.request.path;
        if let Ok(name) = self.request.relay.parse() {
            let key = (self.key.0.lan, name, LineNumber(self.request.line));
            self.entry.note_line(id, Some((key, remote.ip().to_canonical())));
        }
        // Relays hear a moment later where the LAN is served now, and a path that is made anew is to find it.
        let leave_if_moved = async {
            if moved.wait_for(|moved| *moved).await.is_ok() {
                tokio::time::sleep(MOVE_TOLD_AFTER).await;
                self.entry.handle.leave_path(id, Leaving::Moves);
            }
        };
        tokio::select! {
            () = self.run_until_over(remote) => {}
            () = async { leave_if_moved.await; std::future::pending().await } => {}
            () = self.renewed() => {}
        }
        self.entry.note_line(id, None);
    }

    async fn run_until_over(&self, remote: SocketAddr) {
        let (user, relay, line) = (&self.key.0, &self.request.relay, self.request.line);
        tracing::info!(%user, %relay, line, %remote, "path up");
        let running = self.entry.handle.run_path(self.request.path, self.connection.clone(), self.request.weight_down);
        tokio::select! {
            ended = running => {
                tracing::info!(%user, %relay, line, %remote, "path ended: {ended}");
                if is_over(&ended) {
                    self.entry.handle.close(AbortCode::SessionLost, CLOSE_LEAVING, b"the proxy has ended the session");
                }
            }
            denied = self.denied() => {
                tracing::info!(%user, %relay, line, %remote, "session ended: {denied}");
                self.entry.handle.close(AbortCode::SessionLost, CLOSE_DENIED, denied.to_string().as_bytes());
            }
            reason = self.left_with_its_relay() => {
                tracing::info!(%user, %relay, line, %remote, "path closed: {reason}");
                self.connection.close(VarInt::from_u32(CLOSE_MOVED), reason.as_bytes());
            }
        }
    }

    /// Renews the user's certificate when asked to.
    async fn renewed(&self) {
        self.inner.enroller.serve_member(&self.connection, &self.certificate).await;
        // That the path has ended, and why, is another's to see.
        std::future::pending().await
    }

    /// Waits until the relay is none of the LAN any more, has the path left, and waits until that has had its time; gives why.
    async fn left_with_its_relay(&self) -> String {
        let (mut changes, mut relay, lan) = (self.changes.clone(), self.relay, self.member.1);
        let reason = loop {
            changes.due(relay.is_some(), |change| relay.is_some_and(|relay| change.touches_member(relay, lan))).await;
            match self.inner.check_relay(self.key.0.lan, &self.request.relay).await {
                Ok(known) => relay = known,
                Err(reason) => break reason,
            }
        };
        self.entry.handle.leave_path(self.request.path, Leaving::Ends);
        tokio::time::sleep(LEFT_WITHIN).await;
        reason
    }

    /// Waits until the user is none of the LAN any more.
    async fn denied(&self) -> Denied {
        let (mut changes, mut is_answered, (member, lan)) = (self.changes.clone(), true, self.member);
        loop {
            changes.due(is_answered, |change| change.touches_member(member, lan)).await;
            let account = match self.inner.accounts.authorise_again(&self.certificate, Role::User).await {
                Ok(member) => self.inner.keeper.spending(&member).await.ok(),
                Err(Denied::Unavailable(_)) => None,
                Err(denied) => return denied,
            };
            is_answered = account.is_some();
            if let Some(account) = account {
                self.entry.set_account(account);
            }
        }
    }
}

/// Whether the proxy has ended the session with this path: it has let go of its flows.
fn is_over(ended: &quinn::ConnectionError) -> bool {
    matches!(ended, quinn::ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(CLOSE_OVER))
}

/// Answers a flow with a refusal.
async fn refuse(mut stream: FlowStream, refusal: Refusal) -> anyhow::Result<()> {
    open::write_answer(&mut stream, &Err(refusal)).await?;
    read_to_end(&mut stream).await;
    Ok(())
}

/// Reads a refused flow to its end, so that it ends in order; what it says is of no interest.
async fn read_to_end(stream: &mut FlowStream) {
    let mut sink = tokio::io::sink();
    let _: Result<io::Result<u64>, _> = tokio::time::timeout(REQUEST_TIME, tokio::io::copy(stream, &mut sink)).await;
}
