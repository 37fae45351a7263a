//! The relay's login at `reconst` over one line.
//!
//! Enters: the profile and the line. Leaves: where the paths of the relay's LAN are served ([`Upstream`]), now and whenever `reconst`
//! moves it, to another of its servers as well; the line's rates as `reconst` measures them. Meanwhile `reconst` is told that the line is there, which its traffic says as
//! well, and that it is about to leave. Always holds: the login runs over the line itself, so that what it reaches the line reaches; a connection that ends is
//! made again, sooner or later by chance so that the relays of a LAN don't come all at once. Once known, the address stays known while
//! the login is away: the paths find out for themselves whether the line carries them. It is forgotten only when `reconst` says that this is
//! no relay of its any more.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use quinn::{ConnectionError, VarInt};
use shared::{
    community::{
        hello::LineNumber,
        login::{CloseCode, DataAddress, Frames, FromReconst, FromRelay, LineActive, Placement, VERSION},
        member::CertificateMark,
        profile::Profile,
    },
    ids::LanId,
    link::{credentials::Credentials, renew::Connections, tls::TlsError},
    service::{NetworkChange, NetworkWatch, Shutdown},
    target::Target,
    units::Rate,
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, timeout},
};

use crate::{
    announcer::LineToAnnounce,
    client::{CarriedStatus, Common},
    line::WanBinding,
    servers::Servers,
    way::{CONNECT_TIME, Problem, Reached, Way, explain},
    weights::LineWeights,
};

/// What the login says of the line.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Upstream {
    /// Where the LAN's paths are served, once known.
    pub data: Option<SocketAddr>,
    /// Where the login was last made, once it was.
    pub login: Option<SocketAddr>,
    /// Whether the login stands right now.
    pub is_logged_in: bool,
    /// Why the last one ended, or did not come about; for a person.
    pub problem: Option<String>,
    /// Certificates that make nobody a user any more, though their time is not over.
    pub removed: Arc<BTreeSet<CertificateMark>>,
    /// Whether paths that lead elsewhere than to `data` are lost.
    pub is_data_all: bool,
}

/// Logs in and stays logged in.
pub(crate) struct Login {
    way: Way,
    /// Where a renewal finds the login's connection.
    connections: Connections,
    reconst: Vec<Target>,
    lan: LanId,
    line: LineNumber,
    upstream: watch::Sender<Upstream>,
    /// The connection that stands.
    standing: watch::Sender<Option<quinn::Connection>>,
}

/// The line that a login is about.
pub(crate) struct LoginLine {
    /// As it is announced on the LAN too.
    pub(crate) announced: LineToAnnounce,
    /// The addresses at which it is reached on the LAN.
    pub(crate) addresses: watch::Receiver<Vec<IpAddr>>,
    /// Where its weights come from.
    pub(crate) weights: LineWeights,
    /// What it carries.
    pub(crate) common: Arc<Common>,
    /// The time between two words that it is there.
    pub(crate) interval: Duration,
    /// When it is about to leave.
    pub(crate) shutdown: Shutdown,
}

impl Login {
    /// A login of the relay of `profile` over `line`, with the credentials that it has then, and where to read what comes of it. While it
    /// stands it is one of the connections.
    ///
    /// # Errors
    /// If the profile's certificates or key can't be used.
    pub(crate) fn new(
        profile: &Profile,
        (credentials, connections): (&Credentials, &Connections),
        line: LineNumber,
        binding: WanBinding,
    ) -> Result<(Self, watch::Receiver<Upstream>), TlsError> {
        let way = Way::new(profile, credentials, binding)?;
        let (upstream, receiver) = watch::channel(Upstream::default());
        let login = Self {
            way,
            connections: connections.clone(),
            reconst: profile.reconst.clone(),
            lan: profile.identity.lan,
            line,
            upstream,
            standing: watch::Sender::default(),
        };
        Ok((login, receiver))
    }

    /// The connection, whenever one stands.
    pub(crate) fn standing(&self) -> watch::Receiver<Option<quinn::Connection>> {
        self.standing.subscribe()
    }

    /// Keeps the relay logged in until the future is dropped.
    pub(crate) async fn run(self, mut line: LoginLine) {
        let mut pause = PAUSE_MIN;
        let mut network = NetworkWatch::new();
        let Some(first) = self.reconst.first().cloned() else { return };
        let mut servers = Servers::new(self.reconst.clone(), first);
        loop {
            let ended = self.log_in(&mut line, &mut servers).await;
            let was_logged_in = self.upstream.borrow().is_logged_in;
            let (target, problem) = match ended {
                Ok(Moves) => {
                    tracing::info!(line = self.line.0, to = %servers.current(), "logging in where the LAN is served");
                    self.upstream.send_modify(|upstream| upstream.is_logged_in = false);
                    continue;
                }
                Err(Problem { target, error, .. }) => (target, format!("{error:#}")),
            };
            if self.upstream.borrow().problem.as_ref() == Some(&problem) {
                tracing::debug!(line = self.line.0, reconst = %target, problem, "still not logged in");
            } else {
                tracing::warn!(line = self.line.0, reconst = %target, problem, "not logged in");
            }
            self.upstream.send_modify(|upstream| {
                upstream.is_logged_in = false;
                upstream.problem = Some(problem);
            });
            pause = if was_logged_in { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
            // A server that was not tried lately is tried at once.
            let failed_ago = servers.on_failed(Instant::now());
            let wait = failed_ago.map_or(Duration::ZERO, |ago| pause.mul_f64(rand::random_range(0.5..1.0)).saturating_sub(ago));
            tokio::select! {
                () = tokio::time::sleep(wait) => (),
                // The line may be there again.
                _ = network.changed() => pause = PAUSE_MIN,
            }
        }
    }

    async fn log_in(&self, line: &mut LoginLine, servers: &mut Servers) -> Result<Moves, Problem> {
        let reached = self.way.first_of(servers.in_order()).await;
        servers.on_answered(reached.as_ref().ok().map(|reached| &reached.target), Instant::now());
        let Reached { target, address, connection } = reached?;
        self.standing.send_replace(Some(connection.clone()));
        let ended = self.stay(&connection, address, line, servers).await;
        self.standing.send_replace(None);
        if is_denied(&connection) {
            // Who is no relay any more carries for nobody.
            self.upstream.send_modify(|upstream| (upstream.data, upstream.login) = (None, None));
        }
        // Said to `reconst` if the line still works, so that it need not find out.
        connection.close(VarInt::from_u32(CloseCode::Leaving.code()), b"");
        ended.map_err(|error| Problem { target, has_answered: true, error })
    }

    async fn stay(
        &self,
        connection: &quinn::Connection,
        reached: SocketAddr,
        line: &mut LoginLine,
        servers: &mut Servers,
    ) -> anyhow::Result<Moves> {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| explain(&error))?;
        let mut login = Vec::new();
        FromRelay::Login { version: VERSION, line: self.line.0 }.encode(&mut login);
        send.write_all(&login).await.context("reconst closed the login")?;
        let _standing = self.connections.enter(connection.clone());
        let mut frames = Frames::default();
        let mut bytes = [0; 2048];
        let mut tick = tokio::time::interval(line.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut weights, shutdown) = (line.announced.weights.clone(), line.shutdown.clone());
        let mut network = NetworkWatch::new();
        let mut traffic = Traffic::new(line);
        let mut hold = line.announced.hold.clone();
        let mut told = None;
        let mut is_leaving = false;
        let mut is_all = false;
        let mut answers = Answers::new(connection, line);
        let mut look = tokio::time::interval(ANSWERS_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_due = tokio::select! {
                read = receive.read(&mut bytes) => {
                    match read {
                        Ok(Some(len)) => frames.handle_bytes(&bytes[..len]),
                        Ok(None) => bail!("reconst ended the login"),
                        Err(quinn::ReadError::ConnectionLost(error)) => return Err(explain(&error)),
                        Err(error) => return Err(error.into()),
                    }
                    while let Some(frame) = frames.poll_frame()? {
                        match FromReconst::decode(&frame)? {
                            Some(FromReconst::Serving(placements)) => {
                                self.take(placements, reached, is_all).await?;
                                if servers.improve(Instant::now()) {
                                    return Ok(Moves);
                                }
                            }
                            Some(FromReconst::Nodes(nodes)) => {
                                is_all = nodes.is_only_here;
                                servers.on_told(nodes.logins);
                            }
                            Some(FromReconst::LineRate { up, down }) => line.weights.on_measured(up, down, traffic.most_down()),
                            Some(FromReconst::Removed(certificates)) => {
                                self.upstream.send_modify(|upstream| upstream.removed = Arc::new(certificates.into_iter().collect()));
                            }
                            None => (),
                        }
                    }
                    false
                }
                // What asks for no answer says nothing of the server: while none comes, this does.
                _ = tick.tick() => !traffic.has_come_up(line) || told != Some(line.active()) || answers.silent_for() > line.interval,
                _ = look.tick() => {
                    answers.look(connection, line);
                    if servers.has_others() && answers.silent_for() > SILENT_MAX.max(line.interval * 2) {
                        bail!("reconst at {reached} does not answer any more");
                    }
                    if servers.improve(Instant::now()) {
                        return Ok(Moves);
                    }
                    false
                }
                Ok(()) = weights.changed() => true,
                Ok(()) = hold.changed() => true,
                Ok(()) = line.addresses.changed() => true,
                () = shutdown.draining(), if !is_leaving => {
                    is_leaving = true;
                    let mut message = Vec::new();
                    FromRelay::ShutDown.encode(&mut message);
                    send.write_all(&message).await.context("reconst closed the login")?;
                    false
                }
                change = network.changed() => {
                    // What was sent on a socket whose address is gone is lost: better now than after the time that a silent line is given.
                    if change == NetworkChange::Slept {
                        bail!("this PC has slept");
                    }
                    false
                }
            };
            if is_due && !is_leaving && self.upstream.borrow().is_logged_in {
                let mut message = Vec::new();
                let active = line.active();
                FromRelay::Active(active.clone()).encode(&mut message);
                told = Some(active);
                send.write_all(&message).await.context("reconst closed the login")?;
            }
        }
    }

    async fn take(&self, placements: Vec<Placement>, reached: SocketAddr, is_data_all: bool) -> anyhow::Result<()> {
        let Some(placement) = placements.into_iter().find(|placement| placement.lan == self.lan) else {
            bail!("reconst does not serve LAN {}", self.lan)
        };
        let data = match placement.data {
            DataAddress::Here(port) => SocketAddr::new(reached.ip(), port),
            DataAddress::Elsewhere(target) => {
                timeout(CONNECT_TIME, self.way.resolve(&target)).await.context("the name server does not answer")??
            }
        };
        if self.upstream.borrow().data != Some(data) || !self.upstream.borrow().is_logged_in {
            tracing::info!(line = self.line.0, lan = %self.lan, %data, "logged in to reconst");
        }
        self.upstream.send_modify(|upstream| {
            let removed = Arc::clone(&upstream.removed);
            *upstream = Upstream { data: Some(data), login: Some(reached), is_logged_in: true, problem: None, removed, is_data_all };
        });
        Ok(())
    }
}

impl LoginLine {
    fn active(&self) -> LineActive {
        LineActive {
            addresses: self.addresses.borrow().clone(),
            port: self.announced.lan_address.port(),
            weights: *self.announced.weights.borrow(),
            state: self.announced.state(),
            interval_ms: u16::try_from(self.interval.as_millis()).unwrap_or(u16::MAX).max(1),
        }
    }
}

/// What ends a login in order: there is a better server.
struct Moves;

/// When something came from the server last, be it for users.
struct Answers {
    packets: u64,
    at: Instant,
}

impl Answers {
    fn new(connection: &quinn::Connection, line: &LoginLine) -> Self {
        Self { packets: Self::packets(connection, line), at: Instant::now() }
    }

    fn look(&mut self, connection: &quinn::Connection, line: &LoginLine) {
        let packets = Self::packets(connection, line);
        if packets != self.packets {
            *self = Self { packets, at: Instant::now() };
        }
    }

    fn silent_for(&self) -> Duration {
        self.at.elapsed()
    }

    fn packets(connection: &quinn::Connection, line: &LoginLine) -> u64 {
        connection.stats().udp_rx.datagrams + line.common.totals.status().down.packets
    }
}

/// What a line carries, looked at once an interval.
struct Traffic {
    seen: CarriedStatus,
    at: Instant,
    /// The most that came down, in bits per second; what was long ago counts less.
    most_down: f64,
}

impl Traffic {
    fn new(line: &LoginLine) -> Self {
        Self { seen: line.common.totals.status(), at: Instant::now(), most_down: 0.0 }
    }

    /// Whether packets went up since the last look, which tells `reconst` that the line is there.
    fn has_come_up(&mut self, line: &LoginLine) -> bool {
        let (now, seen) = (Instant::now(), line.common.totals.status());
        let seconds = now.saturating_duration_since(self.at).as_secs_f64().max(1e-3);
        let packets = seen.down.packets - self.seen.down.packets;
        let bits = (seen.down.bytes - self.seen.down.bytes + packets * HEADER_BYTES) as f64 * 8.0;
        self.most_down = (self.most_down * FORGOTTEN).max(bits / seconds);
        let has_come_up = seen.up.packets > self.seen.up.packets;
        (self.seen, self.at) = (seen, now);
        has_come_up
    }

    fn most_down(&self) -> Rate {
        Rate { bits_per_second: (self.most_down * CLOCK_TOLERANCE) as u64 }
    }
}

/// Whether `reconst` has ended the connection because this is no relay of its any more.
fn is_denied(connection: &quinn::Connection) -> bool {
    let Some(ConnectionError::ApplicationClosed(close)) = connection.close_reason() else { return false };
    CloseCode::from_code(close.error_code.into_inner()) == Some(CloseCode::Denied)
}

/// A server that has not answered for so long is left for another one, if there is one; what is said every second is answered at once, and the
/// queue of a line that carries something moves. A mistake costs a login, and no path.
const SILENT_MAX: Duration = Duration::from_secs(2);

/// How often that is looked at.
const ANSWERS_LOOK: Duration = Duration::from_millis(250);

/// IPv4's and UDP's headers.
const HEADER_BYTES: u64 = 28;

/// What is left of the most that came down after an interval in which less did: half in a minute or so.
const FORGOTTEN: f64 = 0.99;

/// `reconst`'s second is not quite this PC's, nor does it begin with it.
const CLOCK_TOLERANCE: f64 = 1.1;

/// The pause before the next attempt, doubled with each that fails; a random part of it is left off.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
