//! What is measured on the hosts of a [`Street`]: Tributary, and what else would use the same lines.
//!
//! Each is started on fresh hosts and reached through a [`Client`]; Tributary and aggligator run as processes of their own.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use shared::target::{Host as TargetHost, Target};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{
    Host,
    street::{CONTENT, ISP, Street, line_address, peer_address},
};
use crate::{
    content::ContentServer,
    load::{Client, CongestionControl, Via},
    process::{Process, find_on_path, missing_program, programs_dir},
    scene::{Scene, SceneLine, Way},
    simulation::measure::request_by_tcp,
};

/// A way to use lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum System {
    /// The three programs, on hosts of their own
    Tributary,
    /// The kernel's MPTCP from end to end, one subflow a line
    Mptcp,
    /// Plain TCP on the line that is best for what is measured
    Tcp,
    /// agg-tunnel of aggligator-util, if it is on the PATH
    Aggligator,
}

/// A system that runs on a street; dropping it ends it.
pub struct Running {
    // In the order in which they end.
    processes: Vec<Process>,
    clients: Vec<Clients>,
    client_runtimes: Vec<Runtime>,
    content_runtime: Option<Runtime>,
    _content: ContentServer,
    directory: TempDir,
}

/// What a home reaches the content server with. Only of plain TCP are they different: it takes the line that is best for each.
#[derive(Clone, Debug)]
pub struct Clients {
    /// For downloads.
    pub down: Client,
    /// For uploads.
    pub up: Client,
    /// For small requests.
    pub quick: Client,
}

impl Clients {
    fn all(client: Client) -> Self {
        Self { down: client.clone(), up: client.clone(), quick: client }
    }
}

impl System {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tributary => "Tributary",
            Self::Mptcp => "kernel MPTCP",
            Self::Tcp => "TCP, best line",
            Self::Aggligator => "aggligator",
        }
    }

    /// What this machine lacks for it; `None` if nothing.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Tributary => missing_program(),
            Self::Mptcp if !Path::new("/proc/sys/net/mptcp").exists() => Some("this kernel has no MPTCP".into()),
            Self::Aggligator if find_on_path("agg-tunnel").is_none() => {
                Some("agg-tunnel is not on the PATH: cargo install aggligator-util".into())
            }
            Self::Mptcp | Self::Tcp | Self::Aggligator => None,
        }
    }

    /// Starts it on a street and waits until it serves. Plain TCP and MPTCP send with this congestion control; aggligator with the
    /// kernel's default.
    ///
    /// # Errors
    /// If a part of it does not start, with its last words.
    pub fn start(self, street: &Street, control: CongestionControl, extra: &[String]) -> anyhow::Result<Running> {
        let directory = tempfile::tempdir()?;
        let content_runtime = street.content().runtime(1)?;
        let is_multipath = self == Self::Mptcp;
        let starts = async move {
            let address = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), CONTENT_PORT);
            ContentServer::start_with(address, control, is_multipath).await
        };
        let content = content_runtime.block_on(content_runtime.spawn(starts))?.context("the content server does not start")?;
        let client_runtimes = street.homes().iter().map(|home| home.runtime(2)).collect::<Result<_, _>>()?;
        let mut running = Running {
            processes: Vec::new(),
            clients: Vec::new(),
            client_runtimes,
            content_runtime: Some(content_runtime),
            _content: content,
            directory,
        };
        match self {
            Self::Tributary => start_tributary(street, &mut running, extra)?,
            Self::Mptcp => start_mptcp(street, &mut running, control)?,
            Self::Tcp => start_tcp(street, &mut running, control),
            Self::Aggligator => start_aggligator(street, &mut running)?,
        }
        Ok(running)
    }
}

impl Running {
    /// The clients of each home.
    pub fn clients(&self) -> &[Clients] {
        &self.clients
    }

    /// Runs a client's future at the first home.
    ///
    /// # Errors
    /// The future's own.
    pub fn at_home<T, F>(&self, future: F) -> anyhow::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
    {
        let runtime = &self.client_runtimes[0];
        runtime.block_on(runtime.spawn(future))?
    }

    /// Runs a future at each home, all at once.
    ///
    /// # Errors
    /// That of the first home whose future failed.
    pub fn at_homes<T, F>(&self, future: impl Fn(Clients) -> F) -> anyhow::Result<Vec<T>>
    where
        T: Send + 'static,
        F: Future<Output = anyhow::Result<T>> + Send + 'static,
    {
        let all = self.client_runtimes.iter().zip(&self.clients);
        let tasks: Vec<_> = all.map(|(runtime, clients)| (runtime, runtime.spawn(future(clients.clone())))).collect();
        tasks.into_iter().map(|(runtime, task)| runtime.block_on(task)?).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for runtime in self.client_runtimes.drain(..).chain(self.content_runtime.take()) {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

fn start_tributary(street: &Street, running: &mut Running, extra: &[String]) -> anyhow::Result<()> {
    let directory = running.directory.path().to_owned();
    let members = enrol(&directory, street)?;
    let mut reconst = Command::new(programs_dir().join("reconst"));
    reconst.args(["run", "--state"]).arg(&members.state).args(["--bind", &ISP.to_string(), "--egress-allow", "203.0.113.0/24"]);
    let reconst = street.isp().start("reconst", &mut reconst, &directory.join("reconst.log"))?;
    running.processes.push(reconst);
    let mut known = Vec::new();
    for (index, (peer, profile)) in street.peers().iter().zip(&members.relays).enumerate() {
        let address = SocketAddr::new(peer_address(index), RELAY_PORT);
        known.extend(["--relay".to_owned(), address.to_string()]);
        let weight = |way| weight(street.scene(), &street.scene().lines[index], way).to_string();
        let mut relay = Command::new(programs_dir().join("peer-relay"));
        relay.args(["run", "--profile"]).arg(profile).args(["--lan-bind", &address.to_string(), "--wan-interface", "wan0"]);
        relay.args(["--weight-up", &weight(Way::Up), "--weight-down", &weight(Way::Down)]);
        let relay = peer.start("peer-relay", &mut relay, &directory.join(format!("relay{index}.log")))?;
        running.processes.push(relay);
    }
    let mut waits = Vec::new();
    for (index, (home, profile)) in street.homes().iter().zip(&members.users).enumerate() {
        let mut proxy = Command::new(programs_dir().join("proxy-local"));
        proxy.args(["run", "--profile"]).arg(profile).args(["--listen", PROXY, "--admin", PROXY_ADMIN]).args(&known).args(extra);
        let log = directory.join(format!("proxy{index}.log"));
        let proxy = home.start("proxy-local", &mut proxy, &log)?;
        waits.push(home);
        running.processes.push(proxy);
        running.clients.push(Clients::all(Client::new(Via::Socks5(PROXY.parse()?), content_target())));
    }
    for home in waits {
        wait_for_paths(home, street.peers().len()).map_err(|error| {
            let words: Vec<String> = running.processes.iter().map(Process::last_words).collect();
            error.context(words.join("\n"))
        })?;
    }
    Ok(())
}

/// The files that the members of a LAN were given.
struct Members {
    state: PathBuf,
    relays: Vec<PathBuf>,
    users: Vec<PathBuf>,
}

fn enrol(directory: &Path, street: &Street) -> anyhow::Result<Members> {
    let state = directory.join("reconst");
    let reconst = |arguments: &[&str], profile: Option<&Path>| -> anyhow::Result<()> {
        let mut command = Command::new(programs_dir().join("reconst"));
        command.args(arguments).arg("--state").arg(&state);
        if let Some(profile) = profile {
            command.arg("--profile").arg(profile);
        }
        let output = command.output()?;
        ensure!(output.status.success(), "reconst {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    reconst(&["init", "--public", &ISP.to_string()], None)?;
    reconst(&["lan", "add", "elm", "--id", "15"], None)?;
    let mut members = Members { state: state.clone(), relays: Vec::new(), users: Vec::new() };
    for (kind, count, profiles) in
        [("relay", street.peers().len(), &mut members.relays), ("user", street.homes().len(), &mut members.users)]
    {
        for number in 1..=count {
            let name = format!("{kind}{number}");
            let profile = directory.join(format!("{name}.toml"));
            reconst(&[kind, "add", &name, "--lan", "elm"], Some(&profile))?;
            profiles.push(profile);
        }
    }
    Ok(members)
}

/// Waits until the proxy of a home has so many paths in service.
fn wait_for_paths(home: &Host, count: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIME;
    loop {
        let mut status = Command::new(programs_dir().join("proxy-local"));
        status.args(["status", "--json", "--admin", PROXY_ADMIN]);
        let output = home.within(|| status.output())?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let paths = answer["paths"].as_array().map_or(&[][..], Vec::as_slice);
        if paths.iter().filter(|path| path["state"] == "active").count() >= count {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "of {count} paths there are: {answer}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn start_mptcp(street: &Street, running: &mut Running, control: CongestionControl) -> anyhow::Result<()> {
    let count = street.peers().len();
    for host in [&street.homes()[0], street.content()] {
        host.ip(&format!("mptcp limits set subflow {} add_addr_accepted {}", count.min(SUBFLOWS_MAX), count.min(SUBFLOWS_MAX)))?;
    }
    let home = &street.homes()[0];
    for index in 1..count.min(SUBFLOWS_MAX + 1) {
        home.ip(&format!("mptcp endpoint add {} dev up{} subflow", line_address(index), index + 1))?;
    }
    // Every connection begins on the first line, as the host's default route says.
    running.clients.push(Clients::all(Client::new(Via::Multipath(line_address(0), control), content_target())));
    Ok(())
}

fn start_tcp(street: &Street, running: &mut Running, control: CongestionControl) {
    let scene = street.scene();
    let client = |line: usize| Client::new(Via::From(line_address(line), control), content_target());
    let quickest = (0..scene.lines.len()).min_by_key(|&index| request_by_tcp(&scene.lines[index])).unwrap_or(0);
    let (down, up) = (client(scene.best_line(Way::Down)), client(scene.best_line(Way::Up)));
    running.clients.push(Clients { down, up, quick: client(quickest) });
}

fn start_aggligator(street: &Street, running: &mut Running) -> anyhow::Result<()> {
    let directory = running.directory.path().to_owned();
    let program = find_on_path("agg-tunnel").context("agg-tunnel is not on the PATH")?;
    let home = &street.homes()[0];
    for index in 0..street.peers().len() {
        // It finds its lines by the interfaces that have a default route.
        home.ip(&format!("route add default via 10.0.{}.1 dev up{} metric {}", 101 + index, index + 1, 100 + index))?;
    }
    let port = CONTENT_PORT.to_string();
    let mut server = Command::new(&program);
    server.args(["server", "-n", "-p", &port, "--tcp", AGGLIGATOR_PORT]);
    running.processes.push(street.content().start("agg-tunnel server", &mut server, &directory.join("server.log"))?);
    let mut client = Command::new(&program);
    client.args(["client", "-n", "-p", &format!("{port}:{port}"), "--tcp", &format!("{CONTENT}:{AGGLIGATOR_PORT}")]);
    client.args(["--tcp-link-filter", "interface-ip"]);
    running.processes.push(home.start("agg-tunnel client", &mut client, &directory.join("client.log"))?);
    let local = Target { host: TargetHost::Ip([127, 0, 0, 1].into()), port: CONTENT_PORT };
    let probe = Client::new(Via::Direct, local);
    running.clients.push(Clients::all(probe.clone()));
    running.at_home(async move {
        let deadline = Instant::now() + START_TIME;
        while let Err(error) = probe.fresh_request(1000).await {
            ensure!(Instant::now() < deadline, "aggligator does not serve: {error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // It adds its links one after another.
        tokio::time::sleep(Duration::from_secs(3)).await;
        Ok(())
    })
}

/// A line's weight among those of its scene, as its owner would give it.
fn weight(scene: &Scene, line: &SceneLine, way: Way) -> u16 {
    let best = scene.lines[scene.best_line(way)].conditions(way).rate.bits_per_second as f64;
    ((line.conditions(way).rate.bits_per_second as f64 / best * 100.0).round() as u16).max(1)
}

fn content_target() -> Target {
    Target { host: TargetHost::Ip(CONTENT), port: CONTENT_PORT }
}

const CONTENT_PORT: u16 = 9000;
const AGGLIGATOR_PORT: &str = "5800";
const RELAY_PORT: u16 = 7654;
const PROXY: &str = "127.0.0.1:1080";
const PROXY_ADMIN: &str = "127.0.0.1:1081";
/// The kernel's own limit.
const SUBFLOWS_MAX: usize = 8;
/// Far more than the handshakes over the slowest line take.
const START_TIME: Duration = Duration::from_secs(40);
