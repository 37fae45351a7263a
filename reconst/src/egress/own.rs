//! The addresses of this host, which flows must not reach.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use if_addrs::IfAddr;
use ipnet::IpNet;
use tokio::sync::Mutex;

/// One address of this host and the network on that interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OwnNetwork {
    pub(super) address: IpAddr,
    pub(super) network: IpNet,
}

/// The addresses as they were read last.
#[derive(Default, Debug)]
pub(super) struct OwnAddresses {
    read: Mutex<Option<Read>>,
}

#[derive(Debug)]
struct Read {
    at: Instant,
    networks: Arc<[OwnNetwork]>,
}

impl OwnAddresses {
    /// The addresses, at most [`FRESH_FOR`] old; the ones before if the system does not tell.
    pub(super) async fn current(&self) -> Arc<[OwnNetwork]> {
        let mut read = self.read.lock().await;
        if let Some(read) = &*read
            && read.at.elapsed() < FRESH_FOR
        {
            return read.networks.clone();
        }
        let networks = match if_addrs::get_if_addrs() {
            Ok(interfaces) => interfaces.iter().map(|interface| own_network(&interface.addr)).collect(),
            Err(error) => {
                tracing::warn!(%error, "can't list this host's addresses");
                read.as_ref().map(|read| read.networks.clone()).unwrap_or_default()
            }
        };
        *read = Some(Read { at: Instant::now(), networks: Arc::clone(&networks) });
        networks
    }
}

fn own_network(interface: &IfAddr) -> OwnNetwork {
    let (address, prefix_len) = match interface {
        IfAddr::V4(v4) => (IpAddr::V4(v4.ip), v4.prefixlen),
        IfAddr::V6(v6) => (IpAddr::V6(v6.ip), v6.prefixlen),
    };
    let network = IpNet::new(address, prefix_len).unwrap_or_else(|_| IpNet::from(address));
    OwnNetwork { address, network: network.trunc() }
}

/// Reading costs a few system calls; an address that has just been added is covered this late.
const FRESH_FOR: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn loopback_is_among_the_own_addresses() {
        let own = OwnAddresses::default().current().await;
        assert!(own.iter().any(|own| own.address.is_loopback() && own.network.contains(&own.address)), "{own:?}");
    }
}
