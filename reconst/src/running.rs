//! Starting all the parts, and ending them in order.

use std::{
    fs::File,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::{Endpoint, VarInt};
use serde_json::json;
use shared::{
    ids::LanId,
    link::{
        CLOSE_LEAVING,
        tls::{PATH_ALPN, login_port_crypto, server_crypto},
    },
    service::{
        Exit, Failure, Notice, Shutdown,
        admin::{self, Page},
        bind_failure, notify,
    },
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use crate::{
    Config,
    accept::Sessions,
    accounts::{Accounts, nodes::Load},
    api::{self, Api},
    data_ports::DataPorts,
    dedicated::DedicatedPorts,
    directory::{self, DataAddresses, Directory},
    egress::Egress,
    enrol::Enroller,
    lines::Lines,
    metrics::Figures,
    nodes::{Beating, NodeIdentity, Nodes},
    provision::{self, Registrar},
    quota::Keeper,
    records::{Records, Writer},
    sockets,
    state::{FIRST_NODE, StateDir},
};

/// A `reconst` whose ports are bound and served.
pub struct Running {
    accounts: Accounts,
    keeper: Keeper,
    sessions: Sessions,
    directory: Directory,
    login_endpoint: Endpoint,
    login_address: SocketAddr,
    api_address: Option<SocketAddr>,
    data_addresses: watch::Receiver<DataAddresses>,
    /// Gives the ports back once it is time to drain.
    serving_lans: JoinHandle<DataPorts>,
    following: JoinHandle<()>,
    following_lines: JoinHandle<()>,
    lines: Lines,
    crediting: JoinHandle<()>,
    keeping: JoinHandle<()>,
    /// Tells the other servers that this one is there.
    beating: Option<JoinHandle<()>>,
    nodes: Option<Nodes>,
    records: Option<Writer>,
    drain_time: Duration,
    shutdown: Shutdown,
    /// That no other `reconst` runs on the same state.
    _claim: File,
}

/// Starts `reconst`; all its sockets are bound when this returns.
///
/// # Errors
/// If the state can't be used or an address can't be bound.
pub async fn start(config: Config, shutdown: Shutdown) -> anyhow::Result<Running> {
    let state = StateDir::open(&config.state_dir)?;
    let kept = state.database()?;
    let accounts = Accounts::open(config.database.as_ref().unwrap_or(&kept)).await.map_err(Failure::from)?;
    let claim = state.claim()?;
    let identity = state.node()?;
    let login_port = match (config.login_port_override, &identity) {
        (Some(port), _) => port,
        (None, Some(node)) => node.public.port,
        (None, None) => provision::login_port(&accounts).await?,
    };
    provision::renew_server_certificate(&state, &accounts, identity.as_ref().map(|node| &node.name)).await?;
    let (authority, server) = (state.authority_pem()?, state.server_certificate()?);
    let unusable = |error| Failure::new(Exit::Data, format!("the certificates in {}: {error}", config.state_dir.display()));
    let enroller = Enroller::new(accounts.clone(), state.authority()?);

    let admin = match config.admin {
        Some(address) => Some(admin::bind(address).await?),
        None => None,
    };
    let admin_address = admin.as_ref().map(|listener| listener.local_addr()).transpose()?;
    let api_listener = match config.api {
        Some(address) => Some(api::bind(address).await?),
        None => None,
    };
    let api_address = api_listener.as_ref().map(|listener| listener.local_addr()).transpose()?;
    let egress = Egress::new(config.egress_allow, admin_address.into_iter().chain(api_address).collect());
    let (records, writer) = match &config.records {
        Some(records) => {
            let failure = |error| Failure::config(format!("--records {}: {error}", records.directory.display()));
            let (records, writer) = Records::start(records).map_err(failure)?;
            (Some(records), Some(writer))
        }
        None => (None, None),
    };
    let nodes = match accounts.takes_several_nodes() {
        true => Some(join_nodes(&accounts, identity, config.capacity_bits_per_second).await?),
        false => None,
    };
    let (nodes, beating) = nodes.unzip();
    let keeper = Keeper::of_node(accounts.clone(), config.rate_up, config.rate_down, nodes.clone());
    let (dedicated, udp_idle) = (DedicatedPorts::recorded(records), config.udp_idle);
    let sessions = Sessions::new(accounts.clone(), keeper.clone(), egress, enroller.clone(), dedicated, config.scheduler, udp_idle);

    let secret = state.shared_secret()?;
    let login_at = SocketAddr::new(config.bind, login_port);
    let login_failure = |error| bind_failure(login_at, "--bind", &error);
    let login_crypto = login_port_crypto(&authority, &server.certificate_pem, &server.key_pem).map_err(unusable)?;
    let login_endpoint = sockets::serve_at(login_at, directory::server_config(login_crypto), &secret).map_err(login_failure)?;
    let login_address = login_endpoint.local_addr().map_err(login_failure)?;

    let path_crypto = server_crypto(&authority, &server.certificate_pem, &server.key_pem, PATH_ALPN).map_err(unusable)?;
    let mut data_ports = DataPorts::new(config.bind, config.has_ephemeral_data_ports, path_crypto, secret, sessions.clone());
    let lans = match &nodes {
        Some(nodes) => nodes.lans_here(),
        None => accounts.lans().await.map_err(Failure::from)?,
    };
    data_ports.serve(&lans, |_| None)?;
    if lans.is_empty() && nodes.is_none() {
        tracing::warn!("there is no LAN to serve yet: add one with `reconst lan add NAME --state {}`", config.state_dir.display());
    }
    let data_addresses = data_ports.addresses();
    let lines = Lines::new(config.missed_max);
    let directory = Directory::new(accounts.clone(), data_addresses.clone(), nodes.clone(), lines.clone(), enroller);
    let following_lines = tokio::spawn(lines.clone().follow(sessions.clone(), keeper.clone()));
    let crediting = tokio::spawn({
        let (lines, accounts, keeper) = (lines.clone(), accounts.clone(), keeper.clone());
        async move {
            loop {
                tokio::time::sleep(CREDITED_EVERY).await;
                credit(&lines, &accounts, &keeper).await;
            }
        }
    });
    tracing::info!(login = %login_address, lans = lans.len(), "reconst serves");

    tokio::spawn(directory.clone().serve(login_endpoint.clone(), shutdown.clone()));
    if let Some(listener) = admin {
        let (sessions, keeper, directory) = (sessions.clone(), keeper.clone(), directory.clone());
        let (data_addresses, nodes) = (data_addresses.clone(), nodes.clone());
        let page = move |path: &str| match path {
            "/status" => Some(Page::Json(status(&sessions, &keeper, &directory, &data_addresses, login_address))),
            "/flows" => Some(Page::Json(json!(sessions.dedicated_ports().report()))),
            "/metrics" => Some(Page::Text(figures(&sessions, &keeper, &directory, &data_addresses, nodes.as_ref()).text())),
            "/readyz" => Some(match keeper.behind() {
                None => Page::Text("ready\n".into()),
                Some(behind) => Page::Unwell(format!("the member database has not answered for {} s\n", behind.as_secs())),
            }),
            _ => None,
        };
        tokio::spawn(admin::serve_pages(listener, page, shutdown.clone()));
    }
    if let Some(listener) = api_listener {
        let figures = {
            let (sessions, keeper, directory) = (sessions.clone(), keeper.clone(), directory.clone());
            let (data_addresses, nodes) = (data_addresses.clone(), nodes.clone());
            move || figures(&sessions, &keeper, &directory, &data_addresses, nodes.as_ref())
        };
        let api = Api {
            registrar: Registrar::of(&state, accounts.clone())?.acting_as("api"),
            sessions: sessions.clone(),
            keeper: keeper.clone(),
            figures: Box::new(figures),
            token: state.api_token()?,
        };
        tokio::spawn(api::serve(listener, Arc::new(api), shutdown.clone()));
    }
    let following = tokio::spawn({
        let (accounts, directory, shutdown) = (accounts.clone(), directory.clone(), shutdown.clone());
        let is_too_old = async move {
            let error = accounts.follow_changes().await;
            tracing::error!("{error}: stopping");
            if !shutdown.is_draining() {
                shutdown.request();
            }
        };
        async move {
            tokio::join!(is_too_old, directory.follow_removed());
        }
    });
    let keeping = tokio::spawn(keeper.clone().run());
    let beating = nodes.clone().zip(beating).map(|(nodes, beating)| {
        let (keeper, sessions) = (keeper.clone(), sessions.clone());
        let mut seen = (Instant::now(), 0, 0.0);
        let load = move || load(&keeper, &sessions, &mut seen);
        tokio::spawn(nodes.run(beating, load, shutdown.clone()))
    });
    let serving_lans = tokio::spawn({
        let (accounts, nodes, shutdown, drain_time) = (accounts.clone(), nodes.clone(), shutdown.clone(), config.drain_time);
        async move {
            let drained = async {
                shutdown.draining().await;
                if let Some(nodes) = &nodes {
                    nodes.hand_over(drain_time).await;
                }
            };
            tokio::select! {
                () = data_ports.follow(&accounts, nodes.as_ref()) => {}
                () = drained => {}
            }
            if let Some(nodes) = &nodes {
                let _ = data_ports.serve(&nodes.lans_here(), |lan| nodes.moved_away(lan));
            }
            data_ports.stop_accepting();
            data_ports
        }
    });
    Ok(Running {
        accounts,
        keeper,
        sessions,
        directory,
        login_endpoint,
        login_address,
        api_address,
        data_addresses,
        serving_lans,
        following,
        following_lines,
        lines,
        crediting,
        keeping,
        beating,
        nodes,
        records: writer,
        drain_time: config.drain_time,
        shutdown,
        _claim: claim,
    })
}

impl Running {
    /// Where relays log in.
    pub fn login_addr(&self) -> SocketAddr {
        self.login_address
    }

    /// Where the paths of `lan` are served, if they are.
    pub fn data_addr(&self, lan: LanId) -> Option<SocketAddr> {
        self.data_addresses.borrow().get(&lan).copied()
    }

    /// Where the admin API is, if it is.
    pub fn api_addr(&self) -> Option<SocketAddr> {
        self.api_address
    }

    /// The sessions and their figures.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The relays that are logged in.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// What `reconst status` shows.
    pub fn status(&self) -> serde_json::Value {
        status(&self.sessions, &self.keeper, &self.directory, &self.data_addresses, self.login_address)
    }

    /// Waits for the shutdown, lets open flows finish for a while, and ends everything.
    ///
    /// # Errors
    /// If a part of it failed.
    pub async fn wait(self) -> anyhow::Result<()> {
        self.shutdown.draining().await;
        notify(Notice::Stopping);
        let data_ports = self.serving_lans.await?;
        tokio::select! {
            () = flows_are_over(&self.sessions, self.drain_time) => {}
            () = self.shutdown.stopping() => {}
        }
        self.following_lines.abort();
        self.lines.note_lent(&self.sessions.over_lines(), &self.keeper);
        self.sessions.close("reconst is going away");
        self.login_endpoint.close(VarInt::from_u32(CLOSE_LEAVING), b"reconst is going away");
        data_ports.close().await;
        let _ = timeout(CLOSING_TIME, self.login_endpoint.wait_idle()).await;
        self.following.abort();
        self.crediting.abort();
        credit(&self.lines, &self.accounts, &self.keeper).await;
        self.keeping.abort();
        self.keeper.keep().await;
        if let Err(error) = self.keeper.keep_lent().await {
            tracing::warn!(%error, "the last that relays have lent can't be kept");
        }
        if let (Some(nodes), Some(beating)) = (self.nodes, self.beating) {
            beating.abort();
            nodes.leave().await;
        }
        self.accounts.close().await;
        if let Some(writer) = self.records {
            let _ = tokio::task::spawn_blocking(|| writer.end()).await;
        }
        tracing::info!("reconst has stopped");
        Ok(())
    }
}

/// Registers this server beside the others; the one that `init` made is at the first public address.
async fn join_nodes(
    accounts: &Accounts,
    identity: Option<NodeIdentity>,
    capacity_bits_per_second: u64,
) -> Result<(Nodes, Beating), Failure> {
    let identity = match identity {
        Some(identity) => identity,
        None => {
            let public = provision::public(accounts).await?.into_iter().next();
            let public =
                public.ok_or_else(|| Failure::new(Exit::Data, "the member database has no public address: restore it from a backup"))?;
            NodeIdentity { name: FIRST_NODE.parse().expect("a name"), public }
        }
    };
    Ok(Nodes::join(accounts, identity, capacity_bits_per_second).await?)
}

/// What this server carries, smoothed; `seen` is when it was looked at and the bytes until then.
fn load(keeper: &Keeper, sessions: &Sessions, seen: &mut (Instant, u64, f64)) -> Load {
    let figures = keeper.figures();
    let (now, bytes) = (Instant::now(), figures.up_bytes + figures.down_bytes);
    let seconds = now.duration_since(seen.0).as_secs_f64().max(1e-3);
    let rate = (bytes - seen.1) as f64 * 8.0 / seconds;
    let smoothed = seen.2 + (rate - seen.2) * (seconds / LOAD_OVER.as_secs_f64()).min(1.0);
    *seen = (now, bytes, smoothed);
    Load { bits_per_second: smoothed as u64, sessions: sessions.incarnations().len() as u64 }
}

/// Keeps what the relays have carried.
async fn credit(lines: &Lines, accounts: &Accounts, keeper: &Keeper) {
    let carried = lines.take_carried();
    if carried.is_empty() {
        return;
    }
    if let Err(error) = accounts.credit(&carried, keeper.time()).await {
        tracing::warn!(%error, "what relays have carried can't be kept: trying again");
        lines.give_back_carried(carried);
    }
}

async fn flows_are_over(sessions: &Sessions, at_most: Duration) {
    let begun = Instant::now();
    while sessions.finishing_flows() > 0 && begun.elapsed() < at_most {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn figures(
    sessions: &Sessions,
    keeper: &Keeper,
    directory: &Directory,
    data_addresses: &watch::Receiver<DataAddresses>,
    nodes: Option<&Nodes>,
) -> Figures {
    let (kept, reports) = (keeper.figures(), sessions.report());
    Figures {
        lans: data_addresses.borrow().len(),
        lines: directory.report().len(),
        sessions: reports.len(),
        paths: reports.iter().map(|session| session.paths).sum(),
        flows: sessions.open_flows(),
        udp_flows: sessions.open_udp_flows(),
        users: kept.users,
        users_beyond_quota: kept.users_beyond_quota,
        lans_beyond_quota: kept.lans_beyond_quota,
        up_bytes: kept.up_bytes,
        down_bytes: kept.down_bytes,
        refused_flows: kept.refused_flows,
        dropped_records: sessions.dedicated_ports().dropped_records(),
        nodes: nodes.map_or(1, |nodes| nodes.view().borrow().nodes.iter().filter(|node| node.is_alive()).count()),
        behind_seconds: keeper.behind().map_or(0, |behind| behind.as_secs()),
    }
}

fn status(
    sessions: &Sessions,
    keeper: &Keeper,
    directory: &Directory,
    data_addresses: &watch::Receiver<DataAddresses>,
    login_address: SocketAddr,
) -> serde_json::Value {
    json!({
        "login": login_address,
        "lans": data_addresses.borrow().iter().map(|(lan, address)| json!({ "lan": lan, "data": address })).collect::<Vec<_>>(),
        "relays": directory.report(),
        "roster": directory.roster(),
        "sessions": sessions.report(),
        "accounts": keeper.report(),
        "lan_accounts": keeper.lan_report(),
        "counts_not_kept_for_seconds": keeper.behind().map(|behind| behind.as_secs()),
        "open_flows": sessions.open_flows(),
    })
}

/// For the last packet to go out; it is not waited for that it arrives.
const CLOSING_TIME: Duration = Duration::from_millis(500);

/// A server's load is that of the last minute: a single download moves no LAN.
const LOAD_OVER: Duration = Duration::from_secs(60);

/// What a crash loses of the relays' credit.
const CREDITED_EVERY: Duration = Duration::from_secs(10);

/// How often a drain looks whether flows are left.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
