//! Several `reconst` nodes as processes on one PostgreSQL, and relays and a proxy for each LAN in this process, all on loopback.
//!
//! Each node has an address of its own in 127.0.0.0/8, since their data ports have the same numbers, and is this very program or another one
//! that calls [`serve`], so that it can be killed as a power cut does. The database is made for the cluster and goes away with the server that
//! has it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context;
use ipnet::IpNet;
use reconst::{
    Database,
    accounts::{Limits, nodes_report::NodeReport},
    nodes::NodeIdentity,
    provision::Registrar,
    state::StateDir,
};
use shared::{
    community::{
        member::Name,
        profile::Profile,
        quota::{UnixSeconds, Used},
    },
    ids::LanId,
    service::shutdown_on_signals,
    target::{Host, Target},
};
use sqlx::{AssertSqlSafe, Connection, Executor};
use tempfile::TempDir;

use crate::{
    content::ContentServer,
    load::{Client, Via},
    neighbourhood::{Proxy, take_port},
    process::Process,
    program::Program,
};

/// What a cluster is to be like.
#[derive(Clone, Default, Debug)]
pub struct ClusterPlan {
    /// Nodes.
    pub nodes: u8,
    /// LANs, at most three; the user of each spends from the account of the first one's.
    pub lans: usize,
    /// Relays of each.
    pub relays: usize,
    /// How long nodes drain when they are asked to stop.
    pub drain_seconds: u64,
    /// What the user may use.
    pub limits: Limits,
}

/// A running cluster; dropping it ends all of it at once.
pub struct Cluster {
    nodes: Vec<Node>,
    program: PathBuf,
    drain_seconds: u64,
    relays: Vec<Relay>,
    /// One a LAN.
    proxies: Vec<Proxy>,
    content: ContentServer,
    registrar: Registrar,
    directory: TempDir,
}

#[derive(Debug)]
struct Node {
    name: Name,
    ip: IpAddr,
    starts: usize,
    process: Option<Process>,
}

#[derive(Debug)]
struct Relay {
    lan: usize,
    profile: Profile,
    address: SocketAddr,
    /// None while it is started again.
    program: Option<Program<peer_relay::Running>>,
}

impl Cluster {
    /// Starts the nodes on the server of PostgreSQL at this URL, each `program` with `serve` before what [`serve`] takes, and waits until each proxy
    /// has its paths.
    ///
    /// # Errors
    /// If something does not start.
    pub async fn start(server: &str, program: &Path, plan: ClusterPlan) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("no directory for temporary files")?;
        let database = new_database(server).await?;
        let net: [u8; 2] = [rand::random_range(10..250), rand::random_range(1..250)];
        let ips: Vec<IpAddr> = (1..=plan.nodes).map(|host| Ipv4Addr::new(127, net[0], net[1], host).into()).collect();
        let login_port = take_port(&ips).context("no free UDP port for logins")?;
        let names: Vec<Name> = (0..plan.nodes).map(node_name).collect();

        let state = directory.path().join("main");
        let registrar = Registrar::init_with(&state, &[Host::Ip(ips[0])], login_port, Some(&database)).await?;
        let state_dir = StateDir::open(&state)?;
        for (name, ip) in names.iter().zip(&ips).skip(1) {
            let node = NodeIdentity { name: name.clone(), public: Target { host: Host::Ip(*ip), port: login_port } };
            // Each addition changes where profiles lead.
            Registrar::open(&state).await?.add_node(&state_dir, &database, &node, &directory.path().join(name.as_str())).await?;
        }
        registrar.accounts().close().await;
        let registrar = Registrar::open(&state).await?;
        let content = ContentServer::start((CONTENT_IP, 0).into()).await.context("no port for the content server")?;
        let nodes = names.into_iter().zip(ips.clone()).map(|(name, ip)| Node { name, ip, starts: 0, process: None }).collect();
        let (program, drain_seconds) = (program.to_owned(), plan.drain_seconds);
        let (relays, proxies) = (Vec::new(), Vec::new());
        let mut cluster = Self { nodes, program, drain_seconds, relays, proxies, content, registrar, directory };
        for (index, lan) in LANS.into_iter().enumerate().take(plan.lans) {
            let data_port = take_port(&ips).context("no free UDP port for the LAN")?;
            cluster.add_lan(index, &name(lan), data_port, &plan).await?;
        }
        for index in 0..cluster.nodes.len() {
            cluster.start_node(index)?;
        }
        for proxy in &cluster.proxies {
            proxy.wait_for_paths(plan.relays).await.with_context(|| cluster.last_words())?;
        }
        Ok(cluster)
    }

    async fn add_lan(&mut self, index: usize, lan: &Name, data_port: u16, plan: &ClusterPlan) -> anyhow::Result<()> {
        let (registrar, user) = (&self.registrar, name(USER));
        registrar.add_lan(lan, Some(LanId(15 + index as u16)), Some(data_port)).await?;
        let profile = registrar.add_user(lan, &user, &plan.limits).await?;
        if index > 0 {
            registrar.accounts().share_account(lan, &user, (&name(LANS[0]), &user)).await?;
        }
        let mut addresses = Vec::new();
        for number in 1..=plan.relays {
            let profile = registrar.add_relay(lan, &name(&format!("relay{number}"))).await?;
            let port = take_port(&[RELAY_IP]).context("no free UDP port for a relay")?;
            let address = SocketAddr::new(RELAY_IP, port);
            addresses.push(address);
            let program = Some(start_relay(profile.clone(), address).await?);
            self.relays.push(Relay { lan: index, profile, address, program });
        }
        self.proxies.push(Proxy::start(&profile, (Ipv4Addr::LOCALHOST, 0).into(), &addresses, Default::default(), None).await?);
        Ok(())
    }

    /// Starts a node, again or for the first time; nothing happens if it runs.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_node(&mut self, index: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[index];
        if node.process.is_none() {
            node.starts += 1;
            let state = self.directory.path().join(node.name.as_str());
            let log = self.directory.path().join(format!("{}-{}.log", node.name, node.starts));
            let mut command = Command::new(&self.program);
            command.arg("serve").arg(state).args([node.ip.to_string(), CONTENT_IP.to_string(), self.drain_seconds.to_string()]);
            node.process = Some(Process::start(node.name.as_str(), &mut command, &log)?);
        }
        Ok(())
    }

    /// Ends a node as a power cut does.
    pub fn kill_node(&mut self, index: usize) {
        self.nodes[index].process = None;
    }

    /// Asks a node to stop in order.
    ///
    /// # Errors
    /// If it does not run.
    pub fn terminate_node(&mut self, index: usize) -> anyhow::Result<()> {
        self.nodes[index].process.as_ref().context("it does not run")?.terminate()
    }

    /// Whether a node that was asked to stop has.
    pub fn has_stopped(&mut self, index: usize) -> bool {
        let has_stopped = self.nodes[index].process.as_mut().is_none_or(Process::has_ended);
        if has_stopped {
            self.nodes[index].process = None;
        }
        has_stopped
    }

    /// The nodes as an operator sees them.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn reports(&self) -> anyhow::Result<Vec<NodeReport>> {
        Ok(self.registrar.accounts().node_reports().await?)
    }

    /// The node that serves the first LAN, if it runs.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn serving(&self) -> anyhow::Result<Option<usize>> {
        self.serving_lan(0).await
    }

    /// The node that serves a LAN, if it runs.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn serving_lan(&self, lan: usize) -> anyhow::Result<Option<usize>> {
        let reports = self.reports().await?;
        let serving = reports.iter().find(|report| report.lans.iter().any(|name| name == LANS[lan]));
        Ok(serving.and_then(|report| self.nodes.iter().position(|node| node.name.as_str() == report.name && node.process.is_some())))
    }

    /// A node's name.
    pub fn node_name(&self, index: usize) -> &Name {
        &self.nodes[index].name
    }

    /// Whether a node has been started and not killed since.
    pub fn runs(&self, index: usize) -> bool {
        self.nodes[index].process.is_some()
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The members, to change.
    pub fn registrar(&self) -> &Registrar {
        &self.registrar
    }

    /// The first LAN's proxy.
    pub fn proxy(&self) -> &Proxy {
        &self.proxies[0]
    }

    /// Each LAN's proxy.
    pub fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    /// Limits the user, on all LANs together.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn set_limits(&self, limits: &Limits) -> anyhow::Result<()> {
        let accounts = self.registrar.accounts();
        let account = accounts.user(&name(LANS[0]), &name(USER)).await?.account;
        Ok(accounts.set_limits(account, limits).await?)
    }

    /// What the user has used of it, on all LANs together, as far as nodes have said.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn used(&self) -> anyhow::Result<Used> {
        let now = UnixSeconds(time::OffsetDateTime::now_utc().unix_timestamp());
        let report = self.registrar.accounts().user_report(&name(LANS[0]), &name(USER), now).await?;
        Ok(Used { up: report.up_bytes, down: report.down_bytes })
    }

    /// Has each node serve one LAN, as far as there are some, and waits until it does.
    ///
    /// # Errors
    /// If the database does not answer.
    pub async fn spread(&self) -> anyhow::Result<()> {
        for (lan, node) in LANS.into_iter().zip(&self.nodes).take(self.proxies.len()) {
            self.registrar.accounts().want_lan_on(&name(lan), Some(&node.name)).await?;
        }
        let begun = Instant::now();
        while self.reports().await?.iter().filter(|node| node.sessions > 0).count() < self.proxies.len().min(self.nodes.len()) {
            anyhow::ensure!(begun.elapsed() < RECOVERY_MAX, "the LANs do not spread: {}", self.last_words());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// The relays that run.
    pub fn relays(&self) -> impl Iterator<Item = &peer_relay::Running> {
        self.relays.iter().filter_map(|relay| relay.program.as_ref()).map(Program::running)
    }

    /// Ends all relays of a LAN as a power cut does and starts them again: its paths are lost and come back.
    ///
    /// # Errors
    /// If they do not start.
    pub async fn cut_paths(&mut self, lan: usize) -> anyhow::Result<()> {
        for relay in self.relays.iter_mut().filter(|relay| relay.lan == lan) {
            if let Some(program) = relay.program.take() {
                program.kill().await;
            }
            relay.program = Some(start_relay(relay.profile.clone(), relay.address).await?);
        }
        Ok(())
    }

    /// The content server.
    pub fn content(&self) -> &ContentServer {
        &self.content
    }

    /// A client of the content server through the first LAN's proxy.
    pub fn client(&self) -> Client {
        self.client_on(0)
    }

    /// A client of the content server through a LAN's proxy.
    pub fn client_on(&self, lan: usize) -> Client {
        let content = self.content.address();
        Client::new(Via::Socks5(self.proxies[lan].address()), Target { host: Host::Ip(content.ip()), port: content.port() })
    }

    /// How long it takes until a flow gets through.
    ///
    /// # Errors
    /// If none does within a minute.
    pub async fn recovery(&self) -> anyhow::Result<Duration> {
        let (begun, client) = (Instant::now(), self.client());
        while begun.elapsed() < RECOVERY_MAX {
            let tried = tokio::time::timeout(REQUEST_TIME, client.fresh_request(100)).await;
            if tried.is_ok_and(|answered| answered.is_ok()) {
                return Ok(begun.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::bail!("no flow gets through: {:?}\n{}", self.proxy().status(), self.last_words())
    }

    /// What the nodes have said last.
    pub fn last_words(&self) -> String {
        let words = |node: &Node| node.process.as_ref().map(|process| format!("{}: {}\n", node.name, process.last_words()));
        self.nodes.iter().filter_map(words).collect()
    }
}

/// Runs a node of a cluster, by the arguments that its program was given: the state directory, the node's address, the content server's, the
/// seconds that it drains for.
///
/// # Errors
/// If it does not start, or fails.
pub async fn serve(arguments: &[String]) -> anyhow::Result<()> {
    let [state, ip, content, drain_seconds] = arguments else { anyhow::bail!("serve STATE IP CONTENT SECONDS") };
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let mut config = reconst::Config::new(state, ip.parse()?);
    config.egress_allow = vec![IpNet::from(content.parse::<IpAddr>()?)];
    config.drain_time = Duration::from_secs(drain_seconds.parse()?);
    reconst::start(config, shutdown_on_signals()).await?.wait().await
}

/// The server of PostgreSQL to make clusters on, if there is one.
pub fn postgres() -> Option<String> {
    std::env::var("TRIBUTARY_TEST_POSTGRES").ok()
}

async fn new_database(server: &str) -> anyhow::Result<Database> {
    sqlx::any::install_default_drivers();
    let name = format!("cluster_{:016x}", rand::random::<u64>());
    let mut connection = sqlx::AnyConnection::connect(server).await.context("PostgreSQL does not answer")?;
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.context("no right to make databases")?;
    let (address, _) = server.rsplit_once('/').context("the URL names no database")?;
    Ok(format!("{address}/{name}").parse()?)
}

async fn start_relay(profile: Profile, address: SocketAddr) -> anyhow::Result<Program<peer_relay::Running>> {
    let mut config = peer_relay::Config::new(profile);
    config.announce.multicast = false;
    config.lines[0].lan_bind = Some(address);
    let name = config.profile.identity.name.to_string();
    Program::start(name, move |shutdown| peer_relay::start(config, shutdown)).await
}

fn node_name(index: u8) -> Name {
    match index {
        0 => name(reconst::state::FIRST_NODE),
        index => name(&format!("node{}", index + 1)),
    }
}

fn name(text: &str) -> Name {
    text.parse().expect("names here are of letters and digits")
}

/// The LANs, as many as there are to be.
const LANS: [&str; 3] = ["elm", "oak", "yew"];
const USER: &str = "user1";
const RELAY_IP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// No node's own address, to which it dials no flow.
const CONTENT_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 200, 1));
/// Far more than another node takes to take over.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// A request that was begun on a node that is dead does not hold up the next.
const REQUEST_TIME: Duration = Duration::from_secs(1);
