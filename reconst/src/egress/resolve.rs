//! Names to addresses, by the system's resolver (`getaddrinfo`, ordered as RFC 6724 says).

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, ToSocketAddrs},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use shared::{
    community::member::Identity,
    target::{Refusal, RefusalKind},
};
use tokio::{sync::Semaphore, time::timeout};

/// The system's resolver within bounds.
#[derive(Debug)]
pub(super) struct Resolver {
    permits: Arc<Semaphore>,
    shares: Mutex<Shares>,
}

/// What one user may look up at once.
pub(super) type Share = Arc<Semaphore>;

/// The shares that are in use.
#[derive(Default, Debug)]
struct Shares {
    share_by_user: HashMap<Identity, Weak<Semaphore>>,
    /// How many there may be before those are let go that are in use no more.
    most: usize,
}

impl Resolver {
    pub(super) fn new() -> Self {
        Self { permits: Arc::new(Semaphore::new(LOOKUPS_MAX)), shares: Mutex::default() }
    }

    /// The share of a user, the same whoever asks as long as anybody holds it.
    pub(super) fn share_of(&self, user: &Identity) -> Share {
        let mut shares = self.shares.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(share) = shares.share_by_user.get(user).and_then(Weak::upgrade) {
            return share;
        }
        if shares.share_by_user.len() >= shares.most {
            shares.share_by_user.retain(|_, share| share.strong_count() > 0);
            shares.most = 2 * shares.share_by_user.len() + LOOKUPS_MAX;
        }
        let share = unused_share();
        shares.share_by_user.insert(user.clone(), Arc::downgrade(&share));
        share
    }

    /// The addresses of `name`, at most [`ADDRESSES_MAX`], looked up at the cost of a `share`.
    ///
    /// A lookup can't be cancelled: it keeps its permit until the system answers, however early the flow gave up.
    pub(super) async fn lookup(&self, name: &str, share: &Share) -> Result<Vec<IpAddr>, Refusal> {
        let ask = |host: &str| (host, 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).take(ADDRESSES_MAX).collect());
        self.lookup_by(name, share, ask).await
    }

    async fn lookup_by(
        &self,
        name: &str,
        share: &Share,
        ask: impl FnOnce(&str) -> io::Result<Vec<IpAddr>> + Send + 'static,
    ) -> Result<Vec<IpAddr>, Refusal> {
        let lookup = async {
            let of_user = Arc::clone(share).acquire_owned().await.expect("the semaphore is never closed");
            let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
            let host = name.to_owned();
            let looking = tokio::task::spawn_blocking(move || {
                let _permits = (of_user, permit);
                ask(&host)
            });
            looking.await.map_err(io::Error::other).flatten()
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

/// A share of which nothing is in use.
pub(super) fn unused_share() -> Share {
    Arc::new(Semaphore::new(LOOKUPS_PER_USER))
}

/// Half of tokio's blocking threads: a name server that answers no one must not stop what else runs there.
const LOOKUPS_MAX: usize = 256;

/// An eighth of it: who asks for names whose servers never answer, his own perhaps, must not keep others from theirs. A browser's page needs some twenty.
const LOOKUPS_PER_USER: usize = LOOKUPS_MAX / 8;

/// Two rounds of `getaddrinfo`'s own 5 s, the waiting for a permit included.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// More than any content server needs to be reached.
const ADDRESSES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use shared::{community::member::Role, ids::LanId};

    use super::*;

    #[tokio::test]
    async fn a_local_name_resolves() {
        let addresses = Resolver::new().lookup("localhost", &unused_share()).await.expect("every system knows it");
        assert!(addresses.iter().all(IpAddr::is_loopback), "{addresses:?}");
    }

    #[tokio::test]
    async fn permits_come_back() {
        let (resolver, share) = (Resolver::new(), unused_share());
        for _ in 0..3 {
            resolver.lookup("localhost", &share).await.expect("every system knows it");
        }
        assert_eq!((resolver.permits.available_permits(), share.available_permits()), (LOOKUPS_MAX, LOOKUPS_PER_USER));
    }

    #[tokio::test]
    async fn a_user_whose_lookups_get_no_answer_leaves_others_theirs() {
        let (resolver, share) = (Arc::new(Resolver::new()), unused_share());
        let answered = Arc::new(Barrier::new(LOOKUPS_PER_USER + 1));
        for _ in 0..LOOKUPS_MAX {
            let (resolver, share, answered) = (resolver.clone(), share.clone(), answered.clone());
            let ask = move |_: &str| {
                answered.wait();
                Ok(Vec::new())
            };
            tokio::spawn(async move { resolver.lookup_by("silent.test", &share, ask).await });
        }
        while share.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        resolver.lookup("localhost", &unused_share()).await.expect("every system knows it");
        share.close();
        answered.wait();
    }

    #[test]
    fn a_user_has_one_share_and_those_in_use_no_more_are_let_go() {
        let resolver = Resolver::new();
        let user = |number: usize| Identity { role: Role::User, lan: LanId(15), name: format!("user-{number}").parse().expect("a name") };
        let first = resolver.share_of(&user(0));
        assert!(Arc::ptr_eq(&first, &resolver.share_of(&user(0))));
        for number in 1..10 * LOOKUPS_MAX {
            resolver.share_of(&user(number));
        }
        assert!(resolver.shares.lock().expect("no panic").share_by_user.len() <= LOOKUPS_MAX + 2);
        assert!(Arc::ptr_eq(&first, &resolver.share_of(&user(0))));
    }
}
