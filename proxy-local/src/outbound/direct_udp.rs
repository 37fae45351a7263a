//! Datagrams that take this machine's own way: those that the bypass keeps out of the session.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use bytes::Bytes;
use shared::{
    link::udp_port::UdpPort,
    target::{Host, Refusal, RefusalKind, Target},
};
use tokio::task::JoinSet;

use super::{Association, direct::RESOLVE_TIME};

/// One application's datagrams from a socket of its own, opened when the first is sent.
#[derive(Default, Debug)]
pub struct DirectAssociation {
    port: Option<UdpPort>,
    /// What names were found to be; none while one is looked up.
    addresses_by_name: HashMap<String, Vec<IpAddr>>,
    lookups: JoinSet<(Target, Bytes, Vec<IpAddr>)>,
}

/// Names remembered and lookups under way at once: an application asks for a few.
const NAMES_MAX: usize = 64;
const LOOKUPS_MAX: usize = 8;

impl DirectAssociation {
    async fn send_to(&mut self, to: SocketAddr, payload: &[u8]) {
        if self.port.is_none() {
            match UdpPort::open() {
                Ok(port) => self.port = Some(port),
                Err(error) => return tracing::warn!(%error, "no UDP port for a datagram to the LAN"),
            }
        }
        if let Some(port) = &mut self.port
            && port.takes(to)
        {
            port.send(to, payload).await;
        }
    }

    async fn send_to_first(&mut self, addresses: &[IpAddr], port: u16, payload: &[u8]) {
        if let Some(ip) = addresses.first() {
            self.send_to(SocketAddr::new(*ip, port), payload).await;
        }
    }
}

impl Association for DirectAssociation {
    async fn send(&mut self, target: Target, payload: Bytes) {
        let name = match &target.host {
            Host::Ip(ip) => return self.send_to(SocketAddr::new(*ip, target.port), &payload).await,
            Host::Name(name) => name.clone(),
        };
        if let Some(addresses) = self.addresses_by_name.get(&name).cloned() {
            return self.send_to_first(&addresses, target.port, &payload).await;
        }
        if self.lookups.len() < LOOKUPS_MAX {
            self.lookups.spawn(async move {
                let found = tokio::time::timeout(RESOLVE_TIME, tokio::net::lookup_host((name.as_str(), target.port))).await;
                let addresses = found.ok().and_then(Result::ok).map(|found| found.map(|address| address.ip()).take(1).collect());
                (target, payload, addresses.unwrap_or_default())
            });
        }
    }

    async fn receive(&mut self) -> Result<(SocketAddr, Bytes), Refusal> {
        loop {
            let port = &self.port;
            let receive = async {
                match port {
                    Some(port) => port.receive().await,
                    None => std::future::pending().await,
                }
            };
            let (target, payload, addresses) = tokio::select! {
                received = receive => return received.map_err(|error| Refusal::new(RefusalKind::General, error.to_string())),
                Some(Ok(found)) = self.lookups.join_next() => found,
            };
            if let Host::Name(name) = &target.host
                && self.addresses_by_name.len() < NAMES_MAX
            {
                self.addresses_by_name.insert(name.clone(), addresses.clone());
            }
            self.send_to_first(&addresses, target.port, &payload).await;
        }
    }
}
