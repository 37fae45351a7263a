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
    accounts::{Accounts, Claim},
    api::{self, Api},
    data_ports::DataPorts,
    dedicated::DedicatedPorts,
    directory::{self, DataAddresses, Directory},
    egress::Egress,
    enrol::Enroller,
    lines::Lines,
    metrics::Figures,
    provision::{self, Registrar},
    quota::Keeper,
    records::{Records, Writer},
    sockets,
    state::StateDir,
};

/// A `reconst` whose ports are bound and served.
pub struct Running {
    accounts: Accounts,
    keeper: Keeper,
    sessions: Sessions,
    directory: Directory,
    login_endpoint: Endpoint,
    login_address: SocketAddr,
    admin_address: Option<SocketAddr>,
    api_address: Option<SocketAddr>,
    data_addresses: watch::Receiver<DataAddresses>,
    /// Gives the ports back once it is time to drain.
    serving_lans: JoinHandle<DataPorts>,
    following: JoinHandle<()>,
    following_lines: JoinHandle<()>,
    lines: Lines,
    crediting: JoinHandle<()>,
    keeping: JoinHandle<()>,
    records: Option<Writer>,
    drain_time: Duration,
    shutdown: Shutdown,
    /// That no other `reconst` keeps counts for the same members.
    _claims: (File, Option<Claim>),
}

/// Starts `reconst`; all its sockets are bound when this returns.
///
/// # Errors
/// If the state can't be used or an address can't be bound.
pub async fn start(config: Config, shutdown: Shutdown) -> anyhow::Result<Running> {
    let state = StateDir::open(&config.state_dir)?;
    let kept = state.database()?;
    let accounts = Accounts::open(config.database.as_ref().unwrap_or(&kept)).await.map_err(Failure::from)?;
    let claims = (state.claim()?, accounts.claim().await.map_err(Failure::from)?);
    provision::renew_server_certificate(&state, &accounts).await?;
    let (authority, server) = (state.authority_pem()?, state.server_certificate()?);
    let unusable = |error| Failure::new(Exit::Data, format!("the certificates in {}: {error}", config.state_dir.display()));
    let enroller = Enroller::new(accounts.clone(), state.authority()?, provision::public(&accounts).await?);

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
    let keeper = Keeper::new(accounts.clone(), config.rate_up, config.rate_down);
    let (dedicated, udp_idle) = (DedicatedPorts::recorded(records), config.udp_idle);
    let sessions = Sessions::new(accounts.clone(), keeper.clone(), egress, enroller.clone(), dedicated, config.scheduler, udp_idle);

    let login_port = match config.login_port_override {
        Some(port) => port,
        None => provision::login_port(&accounts).await?,
    };
    let login_at = SocketAddr::new(config.bind, login_port);
    let login_failure = |error| bind_failure(login_at, "--bind", &error);
    let login_crypto = login_port_crypto(&authority, &server.certificate_pem, &server.key_pem).map_err(unusable)?;
    let login_endpoint = sockets::serve_at(login_at, directory::server_config(login_crypto)).map_err(login_failure)?;
    let login_address = login_endpoint.local_addr().map_err(login_failure)?;

    let path_crypto = server_crypto(&authority, &server.certificate_pem, &server.key_pem, PATH_ALPN).map_err(unusable)?;
    let mut data_ports = DataPorts::new(config.bind, config.has_ephemeral_data_ports, path_crypto, sessions.clone());
    let lans = accounts.lans().await.map_err(Failure::from)?;
    data_ports.serve(&lans)?;
    if lans.is_empty() {
        tracing::warn!("there is no LAN to serve yet: add one with `reconst lan add NAME --state {}`", config.state_dir.display());
    }
    let data_addresses = data_ports.addresses();
    let lines = Lines::new(config.missed_max);
    let directory = Directory::new(accounts.clone(), data_addresses.clone(), lines.clone(), enroller);
    let following_lines = tokio::spawn(lines.clone().follow(sessions.clone()));
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
        let data_addresses = data_addresses.clone();
        let page = move |path: &str| match path {
            "/status" => Some(Page::Json(status(&sessions, &keeper, &directory, &data_addresses, login_address))),
            "/flows" => Some(Page::Json(json!(sessions.dedicated_ports().report()))),
            "/metrics" => Some(Page::Text(figures(&sessions, &keeper, &directory, &data_addresses).text())),
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
            let data_addresses = data_addresses.clone();
            move || figures(&sessions, &keeper, &directory, &data_addresses)
        };
        let api = Api {
            registrar: Registrar::of(&state, accounts.clone()).await?.acting_as("api"),
            sessions: sessions.clone(),
            keeper: keeper.clone(),
            figures: Box::new(figures),
            token: state.api_token()?,
        };
        tokio::spawn(api::serve(listener, Arc::new(api), shutdown.clone()));
    }
    let following = tokio::spawn({
        let (accounts, directory) = (accounts.clone(), directory.clone());
        async move {
            tokio::join!(accounts.follow_changes(), directory.follow_removed());
        }
    });
    let keeping = tokio::spawn(keeper.clone().run());
    let serving_lans = tokio::spawn({
        let (accounts, shutdown) = (accounts.clone(), shutdown.clone());
        async move {
            tokio::select! {
                () = data_ports.follow(&accounts) => {}
                () = shutdown.draining() => {}
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
        admin_address,
        api_address,
        data_addresses,
        serving_lans,
        following,
        following_lines,
        lines,
        crediting,
        keeping,
        records: writer,
        drain_time: config.drain_time,
        shutdown,
        _claims: claims,
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

    /// Where `status` is answered, if it is.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_address
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
        self.sessions.close("reconst is going away");
        self.login_endpoint.close(VarInt::from_u32(CLOSE_LEAVING), b"reconst is going away");
        data_ports.close().await;
        let _ = timeout(CLOSING_TIME, self.login_endpoint.wait_idle()).await;
        self.following.abort();
        self.following_lines.abort();
        self.crediting.abort();
        credit(&self.lines, &self.accounts, &self.keeper).await;
        self.keeping.abort();
        self.keeper.keep().await;
        self.accounts.close().await;
        if let Some(writer) = self.records {
            let _ = tokio::task::spawn_blocking(|| writer.end()).await;
        }
        tracing::info!("reconst has stopped");
        Ok(())
    }
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

fn figures(sessions: &Sessions, keeper: &Keeper, directory: &Directory, data_addresses: &watch::Receiver<DataAddresses>) -> Figures {
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

/// What a crash loses of the relays' credit.
const CREDITED_EVERY: Duration = Duration::from_secs(10);

/// How often a drain looks whether flows are left.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
