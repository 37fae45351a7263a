//! A neighbourhood: content server, `reconst`, emulated lines, a relay on each, and proxies, all on this machine's loopback
//! and in this process.
//!
//! Line N answers at 127.0.N.1 on the ports that `reconst` has on 127.0.0.1, and relay N's profile says that `reconst` is
//! there, so the programs need no setting of their own to be put behind a line. How proxies find relays is the [`Plan`]'s choice. Everything that is kept lies in a directory that goes away with the neighbourhood.

mod ports;
mod proxy;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use ipnet::IpNet;
use shared::{
    community::{
        member::Name,
        profile::Profile,
        weight::{LineWeight, Weights},
    },
    ids::LanId,
    target::{Host, Target},
    transfer::schedule::Policy,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

pub use proxy::Proxy;
pub(crate) use proxy::proxy_config;

pub(crate) use ports::take_port;

use crate::{
    content::ContentServer,
    line::{LineHandle, Lines},
    load::{Client, Via},
    program::Program,
    scene::{Scene, SceneLine, Way},
};

/// A running neighbourhood; dropping it ends all of it at once.
pub struct Neighbourhood {
    scene: Scene,
    proxy: Proxy,
    relays: Vec<Relay>,
    /// `None` only while it is killed and not yet started again.
    reconst: Option<Program<reconst::Running>>,
    scheduler: Policy,
    udp_idle: Option<Duration>,
    lines: Vec<LineHandle>,
    _line_thread: Lines,
    content: ContentServer,
    registrar: reconst::provision::Registrar,
    user: Profile,
    announce_to: SocketAddr,
    directory: TempDir,
}

/// What a neighbourhood is to be like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its lines.
    pub scene: Scene,
    /// Where its first proxy listens; port 0 takes any.
    pub listen: SocketAddr,
    /// What the lines' randomness follows from.
    pub seed: u64,
    /// How its proxies spread chunks, and datagrams.
    pub scheduler: proxy_local::config::Scheduler,
    /// See `scheduler`.
    pub udp_scheduler: proxy_local::config::Scheduler,
    /// How long a UDP flow may carry nothing, if not as usual.
    pub udp_idle: Option<Duration>,
    /// How its proxies find relays.
    pub finding: Finding,
    /// Whether the relays' weights are measured, in place of set by their lines' rates.
    pub measures: bool,
    /// What the owners of the first lines share of them; all others share everything.
    pub shares: Vec<peer_relay::ShareConfig>,
    /// The relays that run from the start. The first proxy finds all; the others are for [`Neighbourhood::start_relay`].
    pub relays_at_start: usize,
}

/// How a proxy finds relays.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Finding {
    /// It is told of each by name.
    #[default]
    Named,
    /// It is told of the first by name; of the others `reconst` tells.
    Told,
    /// They announce themselves; by unicast, since loopback may have no multicast. Only the first proxy hears them.
    Heard,
}

/// A `peer-relay` of the neighbourhood, running or not.
#[derive(Debug)]
struct Relay {
    profile: Profile,
    /// Kept from its first start, so that it comes back where it was.
    address: SocketAddr,
    weights: Weights,
    /// Where it announces itself.
    announces_to: Option<SocketAddr>,
    share: peer_relay::ShareConfig,
    /// Where it keeps what it has carried.
    state: PathBuf,
    program: Option<Program<peer_relay::Running>>,
}

impl Plan {
    /// All of a scene's lines in use, any port, the default scheduler.
    pub fn new(scene: Scene) -> Self {
        let relays_at_start = scene.lines.len();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (scheduler, udp_scheduler) = Default::default();
        Self {
            scene,
            listen,
            seed: 1,
            scheduler,
            udp_scheduler,
            udp_idle: None,
            finding: Finding::default(),
            measures: false,
            shares: Vec::new(),
            relays_at_start,
        }
    }
}

impl Neighbourhood {
    /// Builds a neighbourhood and waits until its proxy has a path over each relay that runs.
    ///
    /// # Errors
    /// If a port is taken, a program does not start, or a path does not come up in time.
    pub async fn start(plan: Plan) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("no directory for temporary files")?;
        let line_ips: Vec<IpAddr> = (1..=plan.scene.lines.len()).map(line_ip).collect();
        let ports = Ports::take(&line_ips).context("no free UDP ports for reconst and the lines")?;
        let content = ContentServer::start((CONTENT_IP, 0).into()).await.context("no port for the content server")?;

        let state = state_dir(&directory);
        let registrar = reconst::provision::Registrar::init(&state, &[Host::Ip(RECONST_IP)], ports.login).await?;
        let lan = name("elm");
        registrar.add_lan(&lan, Some(LanId(15)), Some(ports.data)).await?;
        let user = registrar.add_user(&lan, &name("user1"), &reconst::accounts::Limits::default()).await?;
        let scheduler = plan.scheduler.into();
        let reconst = start_reconst(&state, content.address().ip(), scheduler, plan.udp_idle).await?;

        let announce_port = take_port(&[RELAY_IP]).context("no free UDP port for announcements")?;
        let announce_to = SocketAddr::new(RELAY_IP, announce_port);
        let line_thread = Lines::start().context("no thread for the lines")?;
        let mut lines = Vec::new();
        let mut relays = Vec::new();
        for (index, (line, ip)) in plan.scene.lines.iter().zip(line_ips).enumerate() {
            let handle = line_thread.add(ip, line.up, line.down, plan.seed.wrapping_mul(LINES_SEEDED).wrapping_add(index as u64));
            for port in [ports.login, ports.data] {
                let opened = handle.open(SocketAddr::new(RECONST_IP, port));
                opened.with_context(|| format!("line {} can't use port {port} at {ip}", index + 1))?;
            }
            let profile = registrar.add_relay(&lan, &name(&format!("relay{}", index + 1))).await?;
            let profile = Profile { reconst: vec![Target { host: Host::Ip(ip), port: ports.login }], ..profile };
            let port = take_port(&[RELAY_IP]).context("no free UDP port for a relay")?;
            relays.push(Relay {
                profile,
                address: SocketAddr::new(RELAY_IP, port),
                weights: if plan.measures { Weights::default() } else { weights(&plan.scene, line) },
                announces_to: (plan.finding == Finding::Heard).then_some(announce_to),
                share: plan.shares.get(index).cloned().unwrap_or_default(),
                state: directory.path().join("relays"),
                program: None,
            });
            lines.push(handle);
        }
        for relay in relays.iter_mut().take(plan.relays_at_start) {
            relay.start().await?;
        }
        let named = match plan.finding {
            Finding::Named => relays.len(),
            Finding::Told => 1,
            Finding::Heard => 0,
        };
        let named: Vec<SocketAddr> = relays.iter().take(named).map(|relay| relay.address).collect();
        let hears_at = (plan.finding != Finding::Named).then_some(announce_to);
        let proxy = Proxy::start(&user, plan.listen, &named, (plan.scheduler, plan.udp_scheduler), hears_at).await?;
        let neighbourhood = Self {
            scene: plan.scene,
            proxy,
            relays,
            reconst: Some(reconst),
            scheduler,
            udp_idle: plan.udp_idle,
            lines,
            _line_thread: line_thread,
            content,
            registrar,
            user,
            announce_to,
            directory,
        };
        neighbourhood.proxy.wait_for_paths(plan.relays_at_start).await?;
        Ok(neighbourhood)
    }

    /// The scene that it was built from.
    pub fn scene(&self) -> &Scene {
        &self.scene
    }

    /// The content server.
    pub fn content(&self) -> &ContentServer {
        &self.content
    }

    /// The line of this index.
    pub fn line(&self, index: usize) -> &LineHandle {
        &self.lines[index]
    }

    /// All lines.
    pub fn lines(&self) -> &[LineHandle] {
        &self.lines
    }

    /// The first proxy.
    pub fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// The members, to add to and remove from.
    pub fn registrar(&self) -> &reconst::provision::Registrar {
        &self.registrar
    }

    /// The first user's profile.
    pub fn user(&self) -> &Profile {
        &self.user
    }

    /// A client of the content server through the first proxy's SOCKS5.
    pub fn client(&self) -> Client {
        self.client_of(Via::Socks5(self.proxy.address()))
    }

    /// A client of the content server by this way.
    pub fn client_of(&self, via: Via) -> Client {
        let content = self.content.address();
        Client::new(via, Target { host: Host::Ip(content.ip()), port: content.port() })
    }

    /// Another proxy of `user` over these relays only, on a port of its own. Its paths may not be up yet.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn add_proxy(&self, user: &Profile, relays: &[usize]) -> anyhow::Result<Proxy> {
        let known: Vec<SocketAddr> = relays.iter().map(|&index| self.relays[index].address).collect();
        Proxy::start(user, (Ipv4Addr::LOCALHOST, 0).into(), &known, Default::default(), None).await
    }

    /// Ends a relay as a power cut does; nothing happens if it does not run.
    pub async fn kill_relay(&mut self, index: usize) {
        if let Some(program) = self.relays[index].program.take() {
            program.kill().await;
        }
    }

    /// Starts a relay, again or for the first time, at its address; nothing happens if it runs.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start_relay(&mut self, index: usize) -> anyhow::Result<()> {
        self.relays[index].start().await
    }

    /// Lets a relay that does not run come back at another port of its PC, as after a change of its configuration.
    ///
    /// # Errors
    /// If there is no free port.
    pub fn move_relay(&mut self, index: usize) -> anyhow::Result<()> {
        let port = take_port(&[RELAY_IP]).context("no free UDP port for a relay")?;
        self.relays[index].address.set_port(port);
        Ok(())
    }

    /// A relay's profile, which leads over its line.
    pub fn relay_profile(&self, index: usize) -> &Profile {
        &self.relays[index].profile
    }

    /// A relay's state, if it runs.
    pub fn relay_status(&self, index: usize) -> Option<peer_relay::Status> {
        self.relays[index].program.as_ref().map(|program| program.running().status())
    }

    /// What `reconst` shows of itself, if it runs.
    pub fn reconst(&self) -> Option<&reconst::Running> {
        self.reconst.as_ref().map(Program::running)
    }

    /// Where its first proxy hears announcements, if it does.
    pub fn announce_address(&self) -> SocketAddr {
        self.announce_to
    }

    /// Adds a second LAN, whose data port is open on each line, and waits until it is served.
    ///
    /// # Errors
    /// If no port is free, or there is such a LAN.
    pub async fn add_lan(&self, lan: &Name, id: LanId) -> anyhow::Result<()> {
        let port = self.open_port()?;
        self.registrar.add_lan(lan, Some(id), Some(port)).await?;
        while self.reconst().is_some_and(|reconst| reconst.data_addr(id).is_none()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// A port of `reconst`'s that is free and open on each line.
    fn open_port(&self) -> anyhow::Result<u16> {
        let ips: Vec<IpAddr> = self.lines.iter().map(LineHandle::ip).chain([RECONST_IP]).collect();
        let port = take_port(&ips).context("no free UDP port for the LAN")?;
        for line in &self.lines {
            line.open(SocketAddr::new(RECONST_IP, port))?;
        }
        Ok(port)
    }

    /// Moves the LAN to another data port, which is opened on each line first.
    ///
    /// # Errors
    /// If no port is free, or `reconst` does not know the LAN.
    pub async fn move_data_port(&self) -> anyhow::Result<u16> {
        let port = self.open_port()?;
        self.registrar.move_lan(&name("elm"), port).await?;
        Ok(port)
    }

    /// A relay, if it runs: to ask and to command it.
    pub fn relay(&self, index: usize) -> Option<&peer_relay::Running> {
        self.relays[index].program.as_ref().map(Program::running)
    }

    /// Where a relay is or will be.
    pub fn relay_address(&self, index: usize) -> SocketAddr {
        self.relays[index].address
    }

    /// Asks a relay to drain, and waits; nothing happens if it does not run.
    ///
    /// # Errors
    /// If it fails to drain in time.
    pub async fn stop_relay(&mut self, index: usize) -> anyhow::Result<()> {
        match self.relays[index].program.take() {
            Some(program) => program.stop(peer_relay::Running::wait).await,
            None => Ok(()),
        }
    }

    /// Asks a relay to drain, and waits elsewhere until it has; nothing happens if it does not run. It may be started again at once, at another
    /// port.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn drain_relay(&mut self, index: usize) {
        if let Some(program) = self.relays[index].program.take() {
            tokio::spawn(program.stop(peer_relay::Running::wait));
            self.move_relay(index).expect("a PC has free ports");
        }
    }

    /// Ends `reconst` as a power cut does; nothing happens if it does not run.
    pub async fn kill_reconst(&mut self) {
        if let Some(program) = self.reconst.take() {
            program.kill().await;
        }
    }

    /// Starts `reconst` again on the state that it left; nothing happens if it runs.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start_reconst(&mut self) -> anyhow::Result<()> {
        if self.reconst.is_none() {
            let (state, content) = (state_dir(&self.directory), self.content.address().ip());
            self.reconst = Some(start_reconst(&state, content, self.scheduler, self.udp_idle).await?);
        }
        Ok(())
    }

    /// Ends everything as SIGTERM does: proxy, relays, `reconst`.
    ///
    /// # Errors
    /// If a program fails to drain in time.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.proxy.stop().await?;
        let relays = self.relays.into_iter().filter_map(|relay| relay.program);
        let mut stops: JoinSet<_> = relays.map(|program| program.stop(peer_relay::Running::wait)).collect();
        while let Some(stopped) = stops.join_next().await {
            stopped??;
        }
        match self.reconst {
            Some(program) => program.stop(reconst::Running::wait).await,
            None => Ok(()),
        }
    }
}

impl Relay {
    async fn start(&mut self) -> anyhow::Result<()> {
        if self.program.is_none() {
            let mut config = peer_relay::Config::new(self.profile.clone());
            config.announce.multicast = false;
            config.announce.unicast = self.announces_to.into_iter().collect();
            config.drain = RELAY_DRAIN_TIME;
            config.state = Some(self.state.clone());
            for line in &mut config.lines {
                line.lan_bind = Some(self.address);
                line.weights = self.weights;
                line.share = self.share.clone();
            }
            let name = self.profile.identity.name.to_string();
            self.program = Some(Program::start(name, move |shutdown| peer_relay::start(config, shutdown)).await?);
        }
        Ok(())
    }
}

/// The ports that `reconst` takes, free on its own address and on each line's.
struct Ports {
    login: u16,
    data: u16,
}

impl Ports {
    fn take(line_ips: &[IpAddr]) -> Option<Self> {
        let ips: Vec<IpAddr> = line_ips.iter().copied().chain([RECONST_IP]).collect();
        Some(Self { login: take_port(&ips)?, data: take_port(&ips)? })
    }
}

fn state_dir(directory: &TempDir) -> PathBuf {
    directory.path().join("reconst")
}

fn line_ip(number: usize) -> IpAddr {
    Ipv4Addr::new(127, 0, u8::try_from(number).expect("a scene has at most 64 lines"), 1).into()
}

fn name(text: &str) -> Name {
    text.parse().expect("names here are of letters and digits")
}

/// A `reconst` that reaches this content server beside what it always does.
async fn start_reconst(
    state: &Path,
    content: IpAddr,
    scheduler: Policy,
    udp_idle: Option<Duration>,
) -> anyhow::Result<Program<reconst::Running>> {
    let mut config = reconst::Config::new(state, RECONST_IP);
    config.egress_allow = vec![IpNet::from(content)];
    config.scheduler = scheduler;
    config.udp_idle = udp_idle.unwrap_or(config.udp_idle);
    config.drain_time = DRAIN_TIME;
    Program::start("reconst", move |shutdown| reconst::start(config, shutdown)).await
}

/// The weights of a line among those of its scene.
fn weights(scene: &Scene, line: &SceneLine) -> Weights {
    let weight = |way| {
        let best = scene.lines[scene.best_line(way)].conditions(way).rate.bits_per_second as f64;
        let part = line.conditions(way).rate.bits_per_second as f64 / best;
        LineWeight::set((part * WEIGHT_OF_BEST).round() as u16)
    };
    Weights { up: weight(Way::Up), down: weight(Way::Down) }
}

const RECONST_IP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const RELAY_IP: IpAddr = RECONST_IP;
/// Not `reconst`'s own address, to which it dials no flow.
const CONTENT_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 200, 1));
/// What is open when a neighbourhood ends is nobody's.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// As long as a relay forwards once it is to stop: proxies leave its paths meanwhile.
const RELAY_DRAIN_TIME: Duration = Duration::from_secs(3);
/// Fine enough that rates of 50:1 are told apart.
const WEIGHT_OF_BEST: f64 = 100.0;
/// Spreads seeds so that neighbourhoods of neighbouring seeds share no line's.
const LINES_SEEDED: u64 = 1_000;
