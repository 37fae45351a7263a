//! A LAN user's proxy: SOCKS and HTTP in, flows over all the neighbours' lines out.
//!
//! * [`config`]: flags and file become a valid [`Config`].
//! * [`inbound`]: what applications connect to.
//! * [`bypass`] and [`outbound`]: where a flow goes.
//! * [`discovery`] and [`known`]: the LAN's relays.
//! * [`paths`]: the session with `reconst` over the relays' lines.
//!
//! [`start`] binds everything and returns; [`Running::wait`] returns after the drain.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use serde::Serialize;
use shared::{
    community::{member::Name, profile::Profile, roster::RosterConfig},
    link::{renew::Renewal, tls::MemberVerifier},
    service::{Failure, Shutdown, StateFile, admin, bind_failure},
};
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinHandle},
};

use discovery::{Discovery, DiscoveryConfig};
use inbound::{Front, InboundStatus};
use known::{Known, Shown};
use outbound::{
    Outbound,
    placed::{Placed, PlacedLan},
    routed::Routed,
    session::SessionOutbound,
};
use paths::{PathReport, Paths, RelayProblem};

pub mod bypass;
pub mod config;
pub mod discovery;
pub mod inbound;
pub mod known;
pub mod outbound;
pub mod paths;
pub mod status;

pub use config::{Bind, Config};

/// A proxy whose sockets are bound.
#[derive(Debug)]
pub struct Running {
    listen: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    report: Report,
    reloader: Reloader,
    serving: JoinHandle<()>,
    answering: Option<AbortHandle>,
    lans: Vec<Lan>,
}

/// A LAN that this PC is a member of.
#[derive(Clone, Debug)]
struct Lan {
    name: Name,
    paths: Paths,
    known: Known,
}

/// What `status` shows.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Status {
    /// Where applications find the proxy.
    pub listen: Vec<SocketAddr>,
    /// The applications' side.
    pub inbound: InboundStatus,
    /// The LANs that this PC is a member of.
    pub lans: Vec<Name>,
    /// The paths to `reconst`, by LAN in the order in which they joined.
    pub paths: Vec<PathReport>,
    /// The relays that are known otherwise than by name.
    #[serde(flatten)]
    pub known: Shown,
    /// The relays through which there is no path, and why.
    pub problems: Vec<RelayProblem>,
}

/// Applies a configuration that was read again to a proxy that runs.
#[derive(Clone)]
pub struct Reloader(Arc<dyn Fn(Config) -> Result<(), Failure> + Send + Sync>);

/// Makes a [`Status`] whenever it is asked for.
#[derive(Clone)]
struct Report(Arc<dyn Fn() -> Status + Send + Sync>);

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (self.0)().fmt(f)
    }
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reloader")
    }
}

impl Reloader {
    /// Applies what can change while flows are open: the password, the bypass, and relays that were added. The rest waits
    /// for a restart.
    ///
    /// # Errors
    /// If `config` listens elsewhere: whether it needs a password was judged for those addresses. Nothing changes then.
    pub fn apply(&self, config: Config) -> Result<(), Failure> {
        (self.0)(config)
    }
}

/// Binds all sockets and serves until `shutdown`.
///
/// # Errors
/// If an address can't be bound.
pub async fn start(config: Config, shutdown: Shutdown) -> anyhow::Result<Running> {
    if config.profiles.is_empty() {
        return Err(Failure::usage("no profile: a proxy needs at least one LAN").into());
    }
    let (mut lans, mut placed) = (Vec::new(), Vec::new());
    for (place, profile) in config.profiles.iter().enumerate() {
        let paths = Paths::new(profile, config.scheduler.into())?;
        let renewal = paths.renewal(profile, config.profile_files.get(place).cloned(), config.renew_left_percent);
        tokio::spawn(renew(renewal, shutdown.clone()));
        for &relay in &config.relays {
            paths.add_relay(relay, true);
        }
        let known = Known::default();
        let discovery = config.discover.then(|| listen_for_relays(profile, &config)).transpose()?.flatten();
        let name = format!("proxy-{}-{}.toml", profile.identity.lan, profile.identity.name);
        let state = config.state.as_deref().and_then(|folder| StateFile::new(Some(folder), &name));
        known.follow(paths.clone(), discovery, state, shutdown.clone());
        let session = SessionOutbound::new(paths.clone(), config.early_answers, config.udp_scheduler.into(), config.tell_origin);
        placed.push(PlacedLan { name: profile.lan_name.clone(), paths: paths.clone(), session });
        lans.push(Lan { name: profile.lan_name.clone(), paths, known });
    }
    let rules = config.placement.clone();
    serve(config, Placed::new(placed, rules), lans, shutdown).await
}

/// As [`start`], with `session` in place of the session with `reconst`.
///
/// # Errors
/// If an address can't be bound.
pub async fn start_with<S: Outbound>(config: Config, session: S, shutdown: Shutdown) -> anyhow::Result<Running> {
    serve(config, session, Vec::new(), shutdown).await
}

async fn serve<S: Outbound>(config: Config, session: S, lans: Vec<Lan>, shutdown: Shutdown) -> anyhow::Result<Running> {
    let mut listeners = Vec::new();
    for bind in &config.listen {
        listeners.extend(listener(*bind, "--listen").await?);
    }
    let listen = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    let admin_listener = match config.admin {
        Some(bind) if bind.is_required => Some(admin::bind(bind.address).await?),
        Some(bind) => admin::bind(bind.address).await.ok(),
        None => None,
    };
    let admin = admin_listener.as_ref().map(TcpListener::local_addr).transpose()?;

    let routed = Routed::new(session, config.bypass());
    let front = Arc::new(Front::new(routed, config.rules(), config.limits, shutdown.clone()));
    let report = {
        let (front, listen, lans) = (Arc::clone(&front), listen.clone(), lans.clone());
        Report(Arc::new(move || Status {
            listen: listen.clone(),
            inbound: front.status(),
            lans: lans.iter().map(|lan| lan.name.clone()).collect(),
            paths: lans.iter().flat_map(|lan| lan.paths.report()).collect(),
            known: lans.iter().map(|lan| lan.known.shown()).fold(Shown::default(), Shown::and),
            problems: lans.iter().flat_map(|lan| lan.paths.problems()).collect(),
        }))
    };
    let answering = admin_listener.map(|listener| {
        let report = report.clone();
        let status = move || serde_json::to_value((report.0)()).expect("a status is plain data");
        tokio::spawn(admin::serve(listener, status, shutdown)).abort_handle()
    });
    let reloader = {
        let (front, lans) = (Arc::clone(&front), lans.clone());
        Reloader(Arc::new(move |new| reload(&front, &lans, &config.listen, new)))
    };
    tracing::info!(?listen, ?admin, "proxy ready");
    let serving = tokio::spawn(inbound::mixed::serve(listeners, front));
    Ok(Running { listen, admin, report, reloader, serving, answering, lans })
}

/// Starts, then waits for the end.
///
/// # Errors
/// As [`start`].
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    start(config, shutdown).await?.wait().await
}

impl Running {
    /// Where applications find the proxy.
    pub fn listen_addresses(&self) -> &[SocketAddr] {
        &self.listen
    }

    /// Where `status` is answered, if it is.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// What the proxy does now.
    pub fn status(&self) -> Status {
        (self.report.0)()
    }

    /// What applies a configuration that was read again.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Waits until the proxy was asked to stop and has drained.
    ///
    /// # Errors
    /// If a part of it failed.
    pub async fn wait(self) -> anyhow::Result<()> {
        let served = self.serving.await;
        if let Some(answering) = &self.answering {
            answering.abort();
        }
        for lan in &self.lans {
            lan.paths.close().await;
        }
        Ok(served?)
    }

    /// The paths to the first LAN's `reconst`: relays can be added and the lines' figures read. None under [`start_with`].
    pub fn paths(&self) -> Option<&Paths> {
        self.lans.first().map(|lan| &lan.paths)
    }
}

async fn renew(renewal: Renewal, shutdown: Shutdown) {
    tokio::select! {
        () = renewal.run() => {}
        () = shutdown.draining() => {}
    }
}

/// Listens for the relays that announce themselves; where that can't be had, `reconst` still tells of them once there is a path.
fn listen_for_relays(profile: &Profile, config: &Config) -> anyhow::Result<Option<Discovery>> {
    let verifier = MemberVerifier::new(&profile.authority_pem)?;
    let settings = DiscoveryConfig {
        listen: config.announce_listen,
        roster: RosterConfig { missed_max: config.missed_max },
        ..DiscoveryConfig::new(profile.identity.lan)
    };
    match Discovery::start(settings, verifier.clone()) {
        Ok(discovery) => Ok(Some(discovery)),
        Err(error) => {
            tracing::warn!(%error, "relays that announce themselves are not heard: name one with --relay");
            let deaf = DiscoveryConfig { listen: (Ipv4Addr::LOCALHOST, 0).into(), ..settings };
            Ok(Discovery::start(deaf, verifier).ok())
        }
    }
}

fn reload<S: Outbound>(front: &Front<Routed<S>>, lans: &[Lan], listen: &[Bind], config: Config) -> Result<(), Failure> {
    if config.listen != listen {
        return Err(Failure::config("the addresses to listen on changed: restart proxy-local for that"));
    }
    front.set_rules(config.rules());
    front.outbound().set_bypass(config.bypass());
    for lan in lans {
        config.relays.iter().for_each(|&relay| lan.paths.add_relay(relay, true));
    }
    Ok(())
}

async fn listener(bind: Bind, setting: &str) -> Result<Option<TcpListener>, Failure> {
    match TcpListener::bind(bind.address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if bind.is_required => Err(bind_failure(bind.address, setting, &error)),
        Err(error) => {
            tracing::debug!(address = %bind.address, %error, "not listening there");
            Ok(None)
        }
    }
}
