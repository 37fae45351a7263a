//! The data ports: one QUIC endpoint for each LAN.
//!
//! Enters: the LANs of the accounts, now and whenever they change. Leaves: a bound endpoint for each, handed to [`accept`], and the
//! addresses for the directory to tell. Always holds: a LAN that moves to another port is served there before relays hear of it; the
//! paths on the old port are asked to be made anew, and go on for [`LEFT_SERVED_FOR`]. A LAN that moves to another node is served on here for
//! those of its flows that are open, until their deadline.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{Endpoint, VarInt};
use shared::{
    ids::LanId,
    link::{CLOSE_DENIED, CLOSE_LEAVING, CLOSE_MOVED},
    service::{Failure, Shutdown, bind_failure},
};
use tokio::{sync::watch, task::AbortHandle, time::timeout};

use crate::{
    accept::{self, Sessions},
    accounts::{Accounts, changes::Change, registry::Lan},
    directory::DataAddresses,
    nodes::Nodes,
    sockets,
};

/// The data ports of one `reconst`.
pub(crate) struct DataPorts {
    bind: IpAddr,
    is_ephemeral: bool,
    config: quinn::ServerConfig,
    secret: Arc<[u8]>,
    sessions: Sessions,
    ports: BTreeMap<LanId, DataPort>,
    /// Ports of LANs that other nodes serve now, and what ends them.
    moved_away: BTreeMap<LanId, (DataPort, AbortHandle)>,
    /// Ports that LANs have moved away from, while paths are left on them.
    left: Vec<Endpoint>,
    addresses: watch::Sender<DataAddresses>,
}

#[derive(Clone)]
struct DataPort {
    wanted: u16,
    endpoint: Endpoint,
    address: SocketAddr,
    /// Ends the taking in of paths on this port alone.
    accepting: Shutdown,
    /// Tells its paths that the LAN has moved away.
    moved: watch::Sender<bool>,
}

impl DataPorts {
    /// No ports yet, to be bound at `bind`: at the LANs' own numbers, or wherever there is room if `is_ephemeral`.
    pub(crate) fn new(
        bind: IpAddr,
        is_ephemeral: bool,
        crypto: Arc<dyn quinn::crypto::ServerConfig>,
        secret: Arc<[u8]>,
        sessions: Sessions,
    ) -> Self {
        let mut config = quinn::ServerConfig::with_crypto(crypto);
        config
            .max_incoming(INCOMING_MAX)
            .incoming_buffer_size(INCOMING_BYTES)
            .incoming_buffer_size_total(INCOMING_BYTES * INCOMING_MAX as u64);
        let (ports, moved_away) = (BTreeMap::new(), BTreeMap::new());
        Self { bind, is_ephemeral, config, secret, sessions, ports, moved_away, left: Vec::new(), addresses: watch::Sender::default() }
    }

    /// Where each LAN is served, now and from now on.
    pub(crate) fn addresses(&self) -> watch::Receiver<DataAddresses> {
        self.addresses.subscribe()
    }

    /// Serves exactly `lans`; those whose port can't be bound are left out, and the last such failure is returned. `moved_away` says of the others
    /// how long their flows may go on here, if another node serves them.
    pub(crate) fn serve(&mut self, lans: &[Lan], moved_away: impl Fn(LanId) -> Option<Duration>) -> Result<(), Failure> {
        self.left.retain(|endpoint| endpoint.open_connections() > 0);
        let gone: Vec<LanId> = self.ports.keys().copied().filter(|id| lans.iter().all(|lan| lan.id != *id)).collect();
        for id in gone {
            let Some(port) = self.ports.remove(&id) else { continue };
            if let Some(within) = moved_away(id) {
                tracing::info!(lan = %id, seconds = within.as_secs(), "LAN served by another node: what is open here may go on");
                let end = tokio::spawn(port.clone().end_after(id, within, self.sessions.clone())).abort_handle();
                self.moved_away.insert(id, (port, end));
                continue;
            }
            port.accepting.request();
            port.endpoint.close(VarInt::from_u32(CLOSE_DENIED), b"this LAN was removed");
            tracing::info!(lan = %id, "LAN no longer served");
        }
        let mut result = Ok(());
        for lan in lans {
            if self.ports.get(&lan.id).is_some_and(|port| port.wanted == lan.data_port) {
                continue;
            }
            // One that has come back is taken up where it was left.
            let kept = self.moved_away.remove(&lan.id).and_then(|(port, end)| {
                end.abort();
                port.moved.send_replace(false);
                let is_usable = port.wanted == lan.data_port && !port.accepting.is_draining();
                if !is_usable {
                    port.endpoint.close(VarInt::from_u32(CLOSE_MOVED), b"this LAN is served on another port");
                }
                is_usable.then_some(port)
            });
            match kept.map_or_else(|| self.open(lan), Ok) {
                Ok(port) => {
                    tracing::info!(lan = %lan.id, name = %lan.name, address = %port.address, "LAN served");
                    if let Some(old) = self.ports.insert(lan.id, port) {
                        self.left.push(old.endpoint.clone());
                        tokio::spawn(old.leave());
                    }
                }
                Err(failure) => result = Err(failure),
            }
        }
        let addresses: BTreeMap<_, _> = self.ports.iter().map(|(id, port)| (*id, port.address)).collect();
        self.addresses.send_if_modified(|known| {
            let is_new = **known != addresses;
            *known = Arc::new(addresses);
            is_new
        });
        result
    }

    /// Serves the LANs of `accounts` as they change, until dropped.
    pub(crate) async fn follow(&mut self, accounts: &Accounts, nodes: Option<&Nodes>) {
        match nodes {
            Some(nodes) => self.follow_nodes(nodes).await,
            None => self.follow_alone(accounts).await,
        }
    }

    async fn follow_nodes(&mut self, nodes: &Nodes) {
        let mut view = nodes.view();
        loop {
            view.mark_unchanged();
            let served = self.serve(&nodes.lans_here(), |lan| nodes.moved_away(lan));
            if let Err(problem) = &served {
                tracing::warn!("a LAN is not served: {problem}; it is tried again");
            }
            let pause = if served.is_err() { RETRIED_AFTER } else { Duration::MAX };
            if let Ok(Err(_)) = timeout(pause, view.changed()).await {
                return;
            }
        }
    }

    async fn follow_alone(&mut self, accounts: &Accounts) {
        let mut changes = accounts.changes();
        loop {
            let problem = match accounts.lans().await {
                Ok(lans) => self.serve(&lans, |_| None).err().map(|failure| failure.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(problem) = &problem {
                tracing::warn!("a LAN is not served: {problem}; it is tried again");
            }
            let pause = if problem.is_some() { RETRIED_AFTER } else { Duration::MAX };
            let _ = timeout(pause, changes.due(true, Change::touches_lans)).await;
        }
    }

    /// Takes no more paths in.
    pub(crate) fn stop_accepting(&self) {
        for port in self.ports.values() {
            port.accepting.request();
        }
    }

    /// Closes all paths and waits, for a moment, until their other ends know.
    pub(crate) async fn close(self) {
        let moved_away = self.moved_away.into_values().map(|(port, end)| {
            end.abort();
            port.endpoint
        });
        let endpoints: Vec<Endpoint> = self.ports.into_values().map(|port| port.endpoint).chain(moved_away).chain(self.left).collect();
        for endpoint in &endpoints {
            endpoint.close(VarInt::from_u32(CLOSE_LEAVING), b"reconst is going away");
        }
        for endpoint in endpoints {
            let _ = timeout(CLOSING_TIME, endpoint.wait_idle()).await;
        }
    }

    fn open(&self, lan: &Lan) -> Result<DataPort, Failure> {
        let wanted = SocketAddr::new(self.bind, if self.is_ephemeral { 0 } else { lan.data_port });
        let failure = |error| bind_failure(wanted, &format!("LAN {}'s data port at --bind", lan.name), &error);
        let endpoint = sockets::serve_at(wanted, self.config.clone(), &self.secret).map_err(failure)?;
        let address = endpoint.local_addr().map_err(failure)?;
        let accepting = Shutdown::new();
        let moved = watch::Sender::new(false);
        tokio::spawn(accept::serve(
            endpoint.clone(),
            self.config.clone(),
            lan.id,
            self.sessions.clone(),
            accepting.clone(),
            moved.subscribe(),
        ));
        Ok(DataPort { wanted: lan.data_port, endpoint, address, accepting, moved })
    }
}

impl DataPort {
    /// Serves a port that its LAN has moved away from until its paths are gone, or for [`LEFT_SERVED_FOR`]: a relay that has not heard yet
    /// still sends here.
    async fn leave(self) {
        self.moved.send_replace(true);
        tokio::time::sleep(LEFT_SERVED_FOR).await;
        self.accepting.request();
        self.endpoint.close(VarInt::from_u32(CLOSE_MOVED), b"this LAN is served on another port");
    }

    /// Serves on for the sessions that a LAN has here when it moves to another node, at most for a time.
    async fn end_after(self, lan: LanId, within: Duration, sessions: Sessions) {
        self.moved.send_replace(true);
        tokio::time::sleep(within).await;
        self.accepting.request();
        sessions.close_lan(lan, "another server serves this LAN now");
        self.endpoint.close(VarInt::from_u32(CLOSE_MOVED), b"another server serves this LAN now");
    }
}

/// How long a port is served that its LAN has moved away from: a relay whose login is away at that moment is back by then.
const LEFT_SERVED_FOR: Duration = Duration::from_secs(60);

/// Connections that wait to be taken in, at the acceptor's own bound.
const INCOMING_MAX: usize = 512;

/// Packets that come before a handshake is taken on.
const INCOMING_BYTES: u64 = 16 * 1024;

/// A port that another program had is tried again.
const RETRIED_AFTER: Duration = Duration::from_secs(5);

/// For the last packet to go out; it is not waited for that it arrives.
const CLOSING_TIME: Duration = Duration::from_millis(500);
