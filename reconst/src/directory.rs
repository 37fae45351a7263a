//! The directory: relays log in here and learn where their LAN's paths are served.
//!
//! Enters: logins as [`shared::community::login`] words them. Leaves: each relay's LAN's data port, at once and whenever it moves; the
//! certificates of users who were removed, so that they are served no more; a refusal with a reason for who is no relay any more, also in the middle of a login. Those who come to be members go to `enrol`. Always
//! holds: handshakes, logins and logins of one relay are bounded. What the relay says of its line goes to the [roster](crate::roster), what
//! is measured of the line comes back from it.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use quinn::{IdleTimeout, RecvStream, SendStream, TransportConfig, VarInt};
use serde::Serialize;
use shared::{
    community::{
        hello::LineNumber,
        login::{self, CloseCode, DataAddress, Frames, FromReconst, FromRelay, Placement},
        member::{CertificateMark, Role},
        probe::{DATAGRAMS_BYTES, Echo, Probe},
    },
    ids::LanId,
    link::tls,
    service::Shutdown,
};
use tokio::{sync::watch, time::timeout};

use crate::{
    accounts::{
        Accounts, Denied, Member, MemberId,
        changes::{Change, Changes},
    },
    backlog::Backlog,
    enrol::Enroller,
    lines::Lines,
    nodes::{Direction, Nodes},
    roster::{LineKey, Rates, RosterReport},
};

/// Where each LAN's paths are served now.
pub type DataAddresses = Arc<BTreeMap<LanId, SocketAddr>>;

/// The logins that stand; clones share them.
#[derive(Clone)]
pub struct Directory {
    shared: Arc<Shared>,
}

struct Shared {
    accounts: Accounts,
    data_addresses: watch::Receiver<DataAddresses>,
    /// The other servers, if there may be some.
    nodes: Option<Nodes>,
    enroller: Enroller,
    lines: Lines,
    /// The certificates of each LAN that make nobody a user any more.
    removed: watch::Sender<BTreeMap<LanId, Vec<CertificateMark>>>,
    logins: Mutex<Logins>,
}

#[derive(Default, Debug)]
struct Logins {
    next: u64,
    standing: HashMap<u64, (MemberId, LoginReport)>,
}

/// A login's figures.
#[derive(Clone, Serialize, Debug)]
pub struct LoginReport {
    /// The relay.
    pub relay: String,
    /// The LAN.
    pub lan: LanId,
    /// The line, numbered within its relay.
    pub line: u8,
    /// The address that the line shows.
    pub remote: SocketAddr,
}

impl Directory {
    /// A directory of `data_addresses` here and what the other `nodes` serve, with no logins yet.
    pub(crate) fn new(
        accounts: Accounts,
        data_addresses: watch::Receiver<DataAddresses>,
        nodes: Option<Nodes>,
        lines: Lines,
        enroller: Enroller,
    ) -> Self {
        let (removed, logins) = (watch::Sender::default(), Mutex::default());
        Self { shared: Arc::new(Shared { accounts, data_addresses, nodes, lines, enroller, removed, logins }) }
    }

    /// Follows who is removed, so that relays hear of it, until dropped: looked up once for all logins.
    pub(crate) async fn follow_removed(self) {
        let mut changes = self.shared.accounts.changes();
        loop {
            let removed = self.shared.accounts.removed_certificates().await;
            let is_answered = removed.is_ok();
            match removed {
                Ok(removed) => {
                    self.shared.removed.send_if_modified(|known| {
                        let is_modified = *known != removed;
                        *known = removed;
                        is_modified
                    });
                }
                Err(error) => tracing::warn!(%error, "relays can't be told who was removed"),
            }
            changes.due(is_answered, Change::touches_members).await;
        }
    }

    /// The logins that stand, by LAN and relay.
    pub fn report(&self) -> Vec<LoginReport> {
        let mut report: Vec<_> = self.shared.lock().standing.values().map(|(_, report)| report.clone()).collect();
        report.sort_by(|a, b| (a.lan, &a.relay, a.line).cmp(&(b.lan, &b.relay, b.line)));
        report
    }

    /// The lines on the rosters, for people.
    pub fn roster(&self) -> Vec<RosterReport> {
        self.shared.lines.lock().report(Instant::now())
    }

    /// Takes logins in on `endpoint` until `shutdown`. Those that stand go on until the endpoint is closed.
    pub async fn serve(self, endpoint: quinn::Endpoint, shutdown: Shutdown) {
        let backlog = Backlog::new(HANDSHAKES_MAX);
        loop {
            let incoming = tokio::select! {
                incoming = endpoint.accept() => incoming,
                () = shutdown.draining() => return,
            };
            let Some(incoming) = incoming else { return };
            let Some((incoming, mut place)) = backlog.admit(incoming) else { continue };
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move {
                let remote = incoming.remote_address();
                let begun = tokio::select! {
                    begun = shared.let_in(incoming) => begun,
                    () = place.given_up() => Err(anyhow!("its place went to another's")),
                };
                drop(place);
                let ended = match begun {
                    Ok(Some(login)) => login.keep().await,
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                };
                if let Err(error) = ended {
                    tracing::debug!(%remote, "login over: {error:#}");
                }
            });
        }
    }
}

impl Shared {
    /// Where a relay of that LAN is to go now, if that is known.
    fn direction(&self, lan: LanId) -> Option<Direction> {
        let here = self.data_addresses.borrow().get(&lan).map(SocketAddr::port);
        match &self.nodes {
            Some(nodes) => nodes.direction(lan, here),
            None => here.map(|port| Direction { data: DataAddress::Here(port), nodes: login::Nodes::default() }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Logins> {
        self.logins.lock().expect("nothing panics under the lock")
    }

    /// Makes a login of a connection; `None` once a stranger's was served: strangers hold their place in the backlog to the end.
    async fn let_in(self: Arc<Self>, incoming: quinn::Incoming) -> anyhow::Result<Option<Box<Login>>> {
        let begun = timeout(LOGIN_TIME, Arc::clone(&self).begin(incoming)).await;
        match begun.unwrap_or_else(|_| Err(anyhow!("it took too long")))? {
            Begun::Login(login) => Ok(Some(login)),
            Begun::Stranger(connection) => {
                self.enroller.serve_stranger(connection).await?;
                Ok(None)
            }
        }
    }

    /// Makes a login of a connection, by who it is and its first message, unless it is a stranger's.
    async fn begin(self: Arc<Self>, incoming: quinn::Incoming) -> anyhow::Result<Begun> {
        let connection = incoming.await?;
        if tls::protocol(&connection).as_deref() == Some(tls::ENROL_ALPN) {
            return Ok(Begun::Stranger(connection));
        }
        let remote = connection.remote_address();
        let certificate = tls::peer_certificate(&connection).context("a login without a certificate")?;
        let changes = self.accounts.changes();
        let member = match self.accounts.authorise(&certificate, Role::Relay).await {
            Ok(member) => member,
            Err(denied) => {
                tracing::info!(%remote, reason = %denied, "login refused");
                close_denied(&connection, &denied);
                bail!("{denied}");
            }
        };
        let (send, mut receive) = connection.accept_bi().await?;
        let mut frames = Frames::default();
        let line = loop {
            match next_message(&mut receive, &mut frames).await {
                Ok(FromRelay::Login { line, .. }) => break line,
                Ok(FromRelay::Active(_) | FromRelay::ShutDown) => {}
                Err(error) => {
                    close(&connection, CloseCode::Protocol, "that is no login");
                    return Err(error);
                }
            }
        };
        let report = LoginReport { relay: member.identity.name.to_string(), lan: member.identity.lan, line, remote };
        let Some(key) = self.enter(member.id, report) else {
            close(&connection, CloseCode::Busy, "too many logins stand already");
            bail!("too many logins");
        };
        tracing::info!(relay = %member.identity, line, %remote, "relay logged in");
        let line = (member.identity.lan, member.identity.name.clone(), LineNumber(line));
        self.lines.with(|rosters| rosters.on_login(Instant::now(), line.clone(), key, remote.ip().to_canonical()));
        Ok(Begun::Login(Box::new(Login { shared: self, key, line, member, changes, certificate, connection, send, receive, frames })))
    }

    fn enter(&self, member: MemberId, report: LoginReport) -> Option<u64> {
        let mut logins = self.lock();
        let of_this_member = logins.standing.values().filter(|(id, _)| *id == member).count();
        if logins.standing.len() >= LOGINS_MAX || of_this_member >= LOGINS_PER_RELAY {
            return None;
        }
        let key = logins.next;
        logins.next += 1;
        logins.standing.insert(key, (member, report));
        Some(key)
    }
}

/// What a connection has become.
enum Begun {
    Login(Box<Login>),
    /// Somebody who wants to become a member.
    Stranger(quinn::Connection),
}

/// A relay that is logged in; leaves the list when dropped.
struct Login {
    shared: Arc<Shared>,
    key: u64,
    line: LineKey,
    member: Member,
    /// Since before the member was looked up.
    changes: Changes,
    certificate: rustls::pki_types::CertificateDer<'static>,
    connection: quinn::Connection,
    send: SendStream,
    receive: RecvStream,
    frames: Frames,
}

impl Login {
    async fn keep(self: Box<Self>) -> anyhow::Result<()> {
        let (enroller, connection, certificate) = (self.shared.enroller.clone(), self.connection.clone(), self.certificate.clone());
        let renewing = async {
            enroller.serve_member(&connection, &certificate).await;
            // That the login has ended, and why, is another's to see.
            std::future::pending().await
        };
        tokio::select! {
            ended = self.keep_informed() => ended,
            () = renewing => Ok(()),
        }
    }

    async fn keep_informed(mut self: Box<Self>) -> anyhow::Result<()> {
        let mut data_addresses = self.shared.data_addresses.clone();
        // Without other servers nothing changes there.
        let (_nobody, alone) = watch::channel(Arc::default());
        let mut view = self.shared.nodes.as_ref().map_or(alone, Nodes::view);
        let (mut changes, mut is_answered) = (self.changes.clone(), true);
        let (member, lan) = (self.member.id, self.member.lan_key);
        // It ends with the connection.
        tokio::spawn(echo(self.connection.clone(), Instant::now()));
        let mut removed = self.shared.removed.subscribe();
        let (mut told, mut told_removed) = (None, Vec::new());
        let mut told_rates = Rates::default();
        let mut tick = tokio::time::interval(RATES_INTERVAL);
        loop {
            data_addresses.mark_unchanged();
            view.mark_unchanged();
            let direction = self.shared.direction(self.member.identity.lan);
            if let Some(direction) = direction.filter(|direction| told.as_ref() != Some(direction)) {
                timeout(SEND_TIME, self.tell(&direction)).await.context("the relay does not read")??;
                told = Some(direction);
            }
            let now_removed = removed.borrow_and_update().get(&self.member.identity.lan).cloned().unwrap_or_default();
            if now_removed != told_removed {
                let mut message = Vec::new();
                FromReconst::Removed(now_removed.clone()).encode(&mut message);
                timeout(SEND_TIME, self.send.write_all(&message)).await.context("the relay does not read")??;
                told_removed = now_removed;
            }
            tokio::select! {
                message = next_message(&mut self.receive, &mut self.frames) => self.take(message?),
                _ = tick.tick() => {
                    let news = self.shared.lines.lock().news_of_rates(&self.line, told_rates);
                    if let Some(rates) = news {
                        let mut message = Vec::new();
                        FromReconst::LineRate { up: rates.up, down: rates.down }.encode(&mut message);
                        timeout(SEND_TIME, self.send.write_all(&message)).await.context("the relay does not read")??;
                        told_rates = rates;
                    }
                }
                changed = data_addresses.changed() => changed.context("reconst stops")?,
                changed = view.changed() => changed.context("reconst stops")?,
                changed = removed.changed() => changed.context("reconst stops")?,
                () = changes.due(is_answered, |change| change.touches_member(member, lan)) => {
                    is_answered = self.check_still_a_member().await?;
                }
            }
        }
    }

    fn take(&self, message: FromRelay) {
        let now = Instant::now();
        match message {
            // Once is enough.
            FromRelay::Login { .. } => (),
            FromRelay::Active(active) => self.shared.lines.with(|rosters| rosters.on_active(now, &self.line, self.key, active)),
            FromRelay::ShutDown => self.shared.lines.with(|rosters| rosters.on_shut_down(&self.line, self.key)),
        }
    }

    async fn tell(&mut self, direction: &Direction) -> anyhow::Result<()> {
        let mut message = Vec::new();
        if !direction.nodes.logins.is_empty() {
            FromReconst::Nodes(direction.nodes.clone()).encode(&mut message);
        }
        let placement = Placement { lan: self.member.identity.lan, data: direction.data.clone() };
        FromReconst::Serving(vec![placement]).encode(&mut message);
        Ok(self.send.write_all(&message).await?)
    }

    /// Whether the store has answered that it is.
    async fn check_still_a_member(&self) -> anyhow::Result<bool> {
        match self.shared.accounts.authorise_again(&self.certificate, Role::Relay).await {
            Ok(_) => Ok(true),
            Err(Denied::Unavailable(_)) => Ok(false),
            Err(denied) => {
                tracing::info!(relay = %self.member.identity, reason = %denied, "login ended");
                close_denied(&self.connection, &denied);
                bail!("{denied}")
            }
        }
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        self.shared.lock().standing.remove(&self.key);
        self.shared.lines.with(|rosters| rosters.on_logout(&self.line, self.key));
    }
}

/// Answers a relay's probes, so that it sees its line's queues.
async fn echo(connection: quinn::Connection, started: Instant) {
    while let Ok(datagram) = connection.read_datagram().await {
        if let Ok(Probe { sent_us }) = Probe::decode(&datagram) {
            let received_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            let _ = connection.send_datagram(Echo { sent_us, received_us }.encode());
        }
    }
}

/// The next message that this version knows. Nothing that was read is lost if the future is dropped.
async fn next_message(receive: &mut RecvStream, frames: &mut Frames) -> anyhow::Result<FromRelay> {
    let mut bytes = [0; 2048];
    loop {
        while let Some(frame) = frames.poll_frame()? {
            if let Some(message) = FromRelay::decode(&frame)? {
                return Ok(message);
            }
        }
        let len = receive.read(&mut bytes).await?.context("the relay logged out")?;
        frames.handle_bytes(&bytes[..len]);
    }
}

fn close_denied(connection: &quinn::Connection, denied: &Denied) {
    let code = if matches!(denied, Denied::Unavailable(_)) { CloseCode::Busy } else { CloseCode::Denied };
    close(connection, code, &denied.to_string());
}

fn close(connection: &quinn::Connection, code: CloseCode, reason: &str) {
    connection.close(VarInt::from_u32(code.code()), reason.as_bytes());
}

/// The settings of the login port: small, since a login carries a few hundred bytes an hour.
pub(crate) fn server_config(crypto: Arc<dyn quinn::crypto::ServerConfig>) -> quinn::ServerConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(WINDOW_BYTES.into())
        .crypto_buffer_size(CRYPTO_BUFFER_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAMS_BYTES))
        .datagram_send_buffer_size(DATAGRAMS_BYTES);
    let mut config = quinn::ServerConfig::with_crypto(crypto);
    config.transport_config(Arc::new(transport)).max_incoming(HANDSHAKES_MAX).incoming_buffer_size(INCOMING_BYTES);
    config.incoming_buffer_size_total(INCOMING_BYTES * HANDSHAKES_MAX as u64);
    config
}

/// Handshakes at a time. After a power cut in town, relays retry.
const HANDSHAKES_MAX: usize = 256;

/// Logins at a time, 20 KB each or so.
const LOGINS_MAX: usize = 16_384;

/// A relay's lines, and some whose old connection has not timed out yet.
const LOGINS_PER_RELAY: usize = 64;

/// For handshake and first message: several round trips of a modem line with some lost.
const LOGIN_TIME: Duration = Duration::from_secs(15);

/// A relay that does not take a few bytes for this long is cut off: it comes again.
const SEND_TIME: Duration = Duration::from_secs(30);

/// How often a relay is told its line's rates if they have changed: a weight need not follow faster, and a modem's line has other uses.
const RATES_INTERVAL: Duration = Duration::from_secs(2);

/// Twice what a relay waits, so that it is the relay that finds its line down.
const IDLE_MS: u32 = 30_000;

/// The login's own, and a request for renewal.
const STREAMS_MAX: u32 = 2;

/// Two frames of the longest.
const WINDOW_BYTES: u32 = 32 * 1024;

/// A handshake with certificates of Ed25519 is below 2 KB.
const CRYPTO_BUFFER_BYTES: usize = 16 * 1024;

/// Packets that come before a handshake is taken on.
const INCOMING_BYTES: u64 = 16 * 1024;
