//! A neighbour's relay: lends its line to the users of its LAN, opaque packet by opaque packet.
//!
//! A packet's way: [`forward`] takes it from the LAN port and looks up who sent it, a [`lane`] keeps to the
//! owner's limits, [`client`] sends it to `reconst` over the [`mod@line`] and brings the answers back. Beside that way, [`forward`]'s judge
//! admits users, [`strangers`] carries those who want to become members to the login port, [`login`] asks
//! `reconst` where the LAN is served, [`announcer`] tells the LAN. The relay holds no key of a user's path, keeps no data, and forwards to
//! nothing but its `reconst`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use serde::Serialize;
use shared::{
    community::{
        hello::{AdmissionConfig, LineNumber},
        weight::Weights,
    },
    link::{
        credentials::Credentials,
        renew::{Connections, Renewal},
        tls::MemberVerifier,
    },
    service::{Exit, Failure, Shutdown, admin},
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

mod announcer;
mod batch;
mod client;
mod command;
mod config;
mod forward;
mod giving_way;
mod lane;
mod line;
mod login;
mod owner;
mod probe;
mod servers;
mod share;
mod store;
mod strangers;
mod way;
mod weights;

pub use announcer::AnnounceConfig;
pub use client::{CarriedStatus, DirectionStatus};
pub use command::Arguments;
pub use config::{Config, LineConfig};
pub use line::{DEFAULT_PORT, WanBinding};
pub use login::Upstream;
pub use share::{GiveWay, LaneStatus, ShareConfig, ShareStatus};

use announcer::{Announcer, LineToAnnounce};
use batch::BatchSocket;
use client::Common;
use forward::{Forwarder, Judge, Register};
use login::{Login, LoginLine};
use owner::Owner;
use share::Share;
use store::Store;
use strangers::Strangers;
use weights::LineWeights;

/// A relay at work. Dropping it stops it at once.
#[derive(Debug)]
pub struct Running {
    lines: Vec<Arc<RunningLine>>,
    admin_address: Option<SocketAddr>,
    control_path: Option<PathBuf>,
    tasks: JoinSet<()>,
    announcer: Option<AbortHandle>,
    drain: Duration,
    shutdown: Shutdown,
}

#[derive(Debug)]
pub(crate) struct RunningLine {
    number: LineNumber,
    lan_address: SocketAddr,
    common: Arc<Common>,
    register: Arc<Register>,
    upstream: watch::Receiver<Upstream>,
    weights: watch::Receiver<Weights>,
    owner: Arc<Owner>,
}

/// A relay's state, as `status` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Status {
    /// Its lines.
    pub lines: Vec<LineStatus>,
}

/// A line's state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LineStatus {
    /// Its number.
    pub line: u8,
    /// Where users reach it.
    pub lan_address: SocketAddr,
    /// Where the LAN's paths are served, once known.
    pub reconst: Option<SocketAddr>,
    /// Whether it is logged in to `reconst`.
    pub is_logged_in: bool,
    /// Why not, or why not the last time.
    pub problem: Option<String>,
    /// Its weights, and where they come from.
    pub weights: Weights,
    /// Why its owner holds it back, if so.
    pub held: Option<String>,
    /// What it has carried in this month of its cap, headers included.
    pub month_bytes: u64,
    /// What it may carry a month, if there is a cap.
    pub cap_bytes: Option<u64>,
    /// When it is shared.
    pub hours: String,
    /// Everything it has carried.
    pub carried: CarriedStatus,
    /// The owner's limits at work.
    pub share: ShareStatus,
    /// Packets dropped because their sender is not served.
    pub dropped_of_strangers: u64,
    /// Those who wanted to become members and were carried to `reconst`.
    pub strangers_carried: u64,
    /// Requests for service granted.
    pub admitted: u64,
    /// Requests for service refused, or not looked at for want of time.
    pub refused: u64,
    /// Who it serves.
    pub clients: Vec<ClientStatus>,
}

/// A client's state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ClientStatus {
    /// Its address on the LAN.
    pub address: SocketAddr,
    /// The user.
    pub user: String,
    /// What has been carried for it since it was admitted.
    pub carried: CarriedStatus,
}

/// Starts a relay: its LAN ports are bound when this returns, its lines log in behind it.
///
/// # Errors
/// If a port or a line can't be had, or the profile's certificates can't be used.
pub async fn start(config: Config, shutdown: Shutdown) -> anyhow::Result<Running> {
    config.check()?;
    let unusable = |error| Failure::new(Exit::Data, format!("the profile is not usable: {error}; ask whoever runs reconst for a new one"));
    let (credentials, connections) = (Credentials::new(&config.profile).map_err(unusable)?, Connections::default());
    let verifier = MemberVerifier::new(&config.profile.authority_pem).map_err(unusable)?;
    let store = config.state.as_ref().map(|directory| Store::open(directory, &config.profile.identity)).transpose()?.map(Arc::new);
    let start = Start { config: &config, store, shutdown: &shutdown };
    let (mut tasks, mut lines, mut to_announce) = (JoinSet::new(), Vec::new(), Vec::new());
    let addresses = watch::Sender::default();
    for (line, default_port) in config.lines.iter().zip(config.first_port..) {
        let (login, upstream) =
            Login::new(&config.profile, (&credentials, &connections), line.number, line.wan.clone()).map_err(unusable)?;
        let weights = LineWeights::new(line.weights, config.state_file(line.number));
        let (credentials, verifier) = (credentials.clone(), verifier.clone());
        let judge = Judge { credentials, verifier, weights: weights.watch(), upstream: upstream.clone() };
        let running = start_line(&start, line, default_port, judge, upstream, &mut tasks)?;
        let announced = LineToAnnounce {
            number: line.number,
            lan_address: running.lan_address,
            wan: line.wan.clone(),
            weights: weights.watch(),
            upstream: running.upstream.clone(),
            hold: running.owner.hold(),
        };
        let (interval, common) = (config.announce.interval, Arc::clone(&running.common));
        if let Some(least) = line.share.give_way.least() {
            tasks.spawn(giving_way::run(Arc::clone(&common), line.share.clone(), least, login.standing()));
        }
        let addresses = addresses.subscribe();
        tasks.spawn(login.run(LoginLine {
            announced: announced.clone(),
            addresses,
            weights,
            common,
            interval,
            shutdown: shutdown.clone(),
        }));
        tracing::info!(relay = %config.profile.identity, line = line.number.0, lan = %running.lan_address, wan = %line.wan, "line lent");
        lines.push(Arc::new(running));
        to_announce.push(announced);
    }
    let admin_address = match config.admin {
        Some(address) => {
            let listener = admin::bind(address).await?;
            let bound = listener.local_addr()?;
            let status = lines.clone();
            let status = move || serde_json::to_value(status_of(&status)).expect("numbers and texts are valid JSON");
            tasks.spawn(admin::serve(listener, status, shutdown.clone()));
            Some(bound)
        }
        None => None,
    };
    let control_path = command::serve(&config.control, &lines, &mut tasks, &shutdown)?;
    let (profile, file, left_percent) = (config.profile, config.profile_file, config.renew_left_percent);
    let renewal = Renewal { profile, file, left_percent, credentials: credentials.clone(), connections };
    tasks.spawn(renewal.run());
    let announcer = Announcer::new(config.announce, credentials, to_announce, addresses);
    let announcer = Some(tasks.spawn(announcer.run(shutdown.clone())));
    Ok(Running { lines, admin_address, control_path, tasks, announcer, drain: config.drain, shutdown })
}

/// Runs a relay for each LAN that it is a member of, until `shutdown` asks them to stop and they have drained.
///
/// # Errors
/// As [`start`], for any of them.
pub async fn run_all(configs: Vec<Config>, shutdown: Shutdown) -> anyhow::Result<()> {
    let mut relays = JoinSet::new();
    for config in configs {
        let running = start(config, shutdown.clone()).await?;
        relays.spawn(running.wait());
    }
    while let Some(ended) = relays.join_next().await {
        ended.context("a relay failed")??;
    }
    Ok(())
}

/// Runs a relay until `shutdown` asks it to stop and it has drained.
///
/// # Errors
/// As [`start`].
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    start(config, shutdown).await?.wait().await
}

impl Running {
    /// Where users reach the first line.
    pub fn lan_addr(&self) -> SocketAddr {
        self.lines[0].lan_address
    }

    /// Where users reach each line, in the order of the configuration.
    pub fn lan_addrs(&self) -> Vec<SocketAddr> {
        self.lines.iter().map(|line| line.lan_address).collect()
    }

    /// Where `status` is answered, if anywhere.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// The Unix socket at which it takes its owner's commands, if any.
    pub fn control_path(&self) -> Option<&Path> {
        self.control_path.as_deref()
    }

    /// Takes a line back, all of them if none is named, for so long if it is not for good.
    ///
    /// # Errors
    /// If there is no such line.
    pub fn pause(&self, line: Option<u8>, span: Option<Duration>) -> Result<(), String> {
        command::pause(&self.lines, line, span)
    }

    /// Shares a line again, all of them if none is named.
    ///
    /// # Errors
    /// If there is no such line.
    pub fn resume(&self, line: Option<u8>) -> Result<(), String> {
        command::resume(&self.lines, line)
    }

    /// The relay's state.
    pub fn status(&self) -> Status {
        status_of(&self.lines)
    }

    /// What the login over each line says, in the order of the configuration; to wait for it.
    pub fn upstreams(&self) -> Vec<watch::Receiver<Upstream>> {
        self.lines.iter().map(|line| line.upstream.clone()).collect()
    }

    /// Waits until the relay is asked to stop, and drains it: announces its leave and goes on forwarding for a while, or until nobody
    /// sends any more.
    ///
    /// # Errors
    /// If a part of the relay ends by itself.
    pub async fn wait(mut self) -> anyhow::Result<()> {
        let shutdown = self.shutdown.clone();
        let ends = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.context("a part of the relay failed")?;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            ended = ends => ended?,
            () = shutdown.draining() => (),
        }
        tracing::info!(seconds = self.drain.as_secs_f64(), "draining");
        tokio::select! {
            () = drained(&self.lines, self.announcer.as_ref()) => (),
            () = tokio::time::sleep(self.drain) => (),
            () = shutdown.stopping() => (),
        }
        self.tasks.shutdown().await;
        Ok(())
    }
}

/// What the lines of a relay have in common when they start.
struct Start<'a> {
    config: &'a Config,
    store: Option<Arc<Store>>,
    shutdown: &'a Shutdown,
}

fn start_line(
    start: &Start<'_>,
    line: &LineConfig,
    default_port: u16,
    judge: Judge,
    upstream: watch::Receiver<Upstream>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<RunningLine> {
    let Start { config, store, shutdown } = start;
    let shutdown = Shutdown::clone(shutdown);
    let weights = judge.weights.clone();
    let lan = Arc::new(BatchSocket::new(line::open_lan(line.lan_bind, default_port)?)?);
    let lan_address = lan.local_addr()?;
    let share = Share::new(&line.share, Instant::now());
    let common = Arc::new(Common { lan, binding: line.wan.clone(), share, totals: Arc::default() });
    let register = Arc::new(Register::default());
    let admission = AdmissionConfig {
        also_reached_as: config.also_reached_as.clone(),
        clients_max: config.clients_max,
        idle: config.client_idle,
        ..AdmissionConfig::new(config.profile.identity.lan, line.number)
    };
    let owner = Arc::new(Owner::new(line.number, line.share.terms.clone(), Arc::clone(&common), store.clone()));
    let hold = owner.hold();
    let strangers = Strangers::new(Arc::clone(&common), config.carries_strangers, &rand::random());
    let forwarder =
        Forwarder::new(Arc::clone(&common), admission, strangers, upstream.clone(), hold, judge, Arc::clone(&register), shutdown)?;
    tasks.spawn(forwarder.run());
    let watching = Arc::clone(&owner);
    tasks.spawn(async move { watching.run().await });
    let pumped = Arc::clone(&common);
    tasks.spawn(async move { pumped.share.pump().await });
    Ok(RunningLine { number: line.number, lan_address, common, register, upstream, weights, owner })
}

/// Waits until the announcer has said goodbye and no packet has come for [`QUIET`].
async fn drained(lines: &[Arc<RunningLine>], announcer: Option<&AbortHandle>) {
    let packets = || lines.iter().map(|line| line.common.totals.packets()).sum::<u64>();
    let mut before = packets();
    loop {
        tokio::time::sleep(QUIET).await;
        let after = packets();
        if after == before && announcer.is_none_or(AbortHandle::is_finished) {
            return;
        }
        before = after;
    }
}

fn status_of(lines: &[Arc<RunningLine>]) -> Status {
    Status { lines: lines.iter().map(|line| line.status()).collect() }
}

impl RunningLine {
    fn status(&self) -> LineStatus {
        let Upstream { data, is_logged_in, problem, .. } = self.upstream.borrow().clone();
        let counters = *self.register.counters.lock().expect("nothing panics while it is held");
        let clients = self.register.clients.lock().expect("nothing panics while it is held");
        LineStatus {
            line: self.number.0,
            lan_address: self.lan_address,
            reconst: data,
            is_logged_in,
            problem,
            weights: *self.weights.borrow(),
            held: self.owner.hold().borrow().map(owner::describe),
            month_bytes: self.owner.month_bytes(),
            cap_bytes: self.owner.terms().cap.map(|cap| cap.size.bytes),
            hours: self.owner.terms().hours.to_string(),
            carried: self.common.totals.status(),
            share: self.common.share.status(),
            dropped_of_strangers: counters.strangers,
            strangers_carried: counters.strangers_carried,
            admitted: counters.admission.admitted,
            refused: counters.admission.refused + counters.unjudged,
            clients: clients
                .iter()
                .map(|(address, (member, carried))| ClientStatus {
                    address: *address,
                    user: member.name.to_string(),
                    carried: carried.status(),
                })
                .collect(),
        }
    }
}

/// While paths drain they are never silent for this long.
const QUIET: Duration = Duration::from_millis(500);
