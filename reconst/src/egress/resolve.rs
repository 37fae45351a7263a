//! Names to addresses, by the system's resolver (`getaddrinfo`, ordered as RFC 6724 says).

use std::{
    net::{IpAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use shared::target::{Refusal, RefusalKind};
use tokio::{sync::Semaphore, time::timeout};

/// The system's resolver within bounds.
#[derive(Debug)]
pub(super) struct Resolver {
    permits: Arc<Semaphore>,
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self { permits: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }

    /// The addresses of `name`, at most [`ADDRESSES_MAX`].
    ///
    /// A lookup can't be cancelled: it keeps its permit until the system answers, however early the flow gave up.
    pub(super) async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, Refusal> {
        let lookup = async {
            let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
            let host = name.to_owned();
            let looking = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                (host.as_str(), 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).take(ADDRESSES_MAX).collect())
            });
            looking.await.map_err(std::io::Error::other).flatten()
        };
        match timeout(LOOKUP_TIMEOUT, lookup).await {
            Ok(Ok(addresses)) => Ok(addresses),
            // The system's resolver tells that no name server answers in words alone (EAI_AGAIN).
            Ok(Err(error)) if error.to_string().contains("Temporary failure") => {
                Err(Refusal::new(RefusalKind::TimedOut, format!("reconst's name server does not answer for {name}: try again in a moment")))
            }
            Ok(Err(error)) => Err(Refusal::new(RefusalKind::NameNotFound, format!("{name} does not resolve: {error}"))),
            Err(_) => {
                let seconds = LOOKUP_TIMEOUT.as_secs();
                Err(Refusal::new(RefusalKind::TimedOut, format!("resolving {name} took longer than {seconds} s")))
            }
        }
    }
}

/// Half of tokio's blocking threads: a name server that answers no one must not stop what else runs there.
const LOOKUPS_MAX: usize = 256;

/// Two rounds of `getaddrinfo`'s own 5 s, the waiting for a permit included.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// More than any content server needs to be reached.
const ADDRESSES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_local_name_resolves() {
        let addresses = Resolver::new().lookup("localhost").await.expect("every system knows it");
        assert!(addresses.iter().all(IpAddr::is_loopback), "{addresses:?}");
    }

    #[tokio::test]
    async fn permits_come_back() {
        let resolver = Resolver::new();
        for _ in 0..3 {
            resolver.lookup("localhost").await.expect("every system knows it");
        }
        assert_eq!(resolver.permits.available_permits(), LOOKUPS_MAX);
    }
}
