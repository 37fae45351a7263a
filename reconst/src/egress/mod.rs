//! The way out: from a flow's target to a socket at the content server, for [`udp`] flows to one that reaches many.
//!
//! Enters: a [`Target`]. Leaves: a connected socket, or a [`Refusal`] that the application is told. Always holds: a name is resolved
//! once and a socket goes to an address that the policy has passed, so that no answer of a name server given later can redirect it; the
//! time and the number of lookups and attempts are bounded. Carrying bytes is left to the flow's driver.

mod own;
mod policy;
mod resolve;
mod special;
mod tcp;
pub(crate) mod udp;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;
use shared::{
    community::member::Identity,
    target::{Host, Refusal, RefusalKind, Target},
};
use tokio::net::TcpStream;

use self::{
    own::OwnAddresses,
    policy::Policy,
    resolve::{Resolver, Share, unused_share},
};

/// The way out of one `reconst`; clones share its bounds.
#[derive(Clone, Debug)]
pub struct Egress {
    shared: Arc<Shared>,
    /// What may be looked up at once by whoever goes this way.
    lookups: Share,
}

#[derive(Debug)]
struct Shared {
    resolver: Resolver,
    own: OwnAddresses,
    allowed: Vec<IpNet>,
    own_listeners: Vec<SocketAddr>,
}

impl Egress {
    /// A way out to what is globally reachable, and to `allowed` besides; never to `own_listeners`, the TCP sockets that this `reconst`
    /// listens on for its operator.
    pub fn new(allowed: Vec<IpNet>, own_listeners: Vec<SocketAddr>) -> Self {
        Self {
            shared: Arc::new(Shared { resolver: Resolver::new(), own: OwnAddresses::default(), allowed, own_listeners }),
            lookups: unused_share(),
        }
    }

    /// The way of one user, who looks up so many names at once that others can as well.
    pub fn of_user(&self, user: &Identity) -> Self {
        Self { shared: Arc::clone(&self.shared), lookups: self.shared.resolver.share_of(user) }
    }

    /// A TCP connection to `target`: without delay (Nagle) and with keepalive.
    ///
    /// # Errors
    /// The refusal that the application gets: the name unknown, the destination denied, or the failure of the attempt that came closest.
    pub async fn connect(&self, target: &Target) -> Result<TcpStream, Refusal> {
        let addresses = self.resolve(target).await?;
        tcp::connect(&addresses).await.map_err(|error| tcp::refusal(target, &error))
    }

    /// The addresses that a socket for `target` may go to, best first; never none.
    ///
    /// # Errors
    /// If the name does not resolve, or all that it resolves to is denied.
    pub async fn resolve(&self, target: &Target) -> Result<Vec<SocketAddr>, Refusal> {
        if DENIED_PORTS.contains(&target.port) {
            let reason = format!("reconst does not forward to port {}: mail between servers is not what it is for", target.port);
            return Err(Refusal::new(RefusalKind::Denied, reason));
        }
        let resolved: Vec<IpAddr> = match &target.host {
            Host::Ip(ip) => vec![*ip],
            Host::Name(name) => self.shared.resolver.lookup(name, &self.lookups).await?,
        };
        let own = self.shared.own.current().await;
        let policy = Policy { allowed: &self.shared.allowed, own: &own, own_listeners: &self.shared.own_listeners };
        let mut allowed = Vec::new();
        let mut denied = None;
        for ip in resolved {
            let address = SocketAddr::new(ip.to_canonical(), target.port);
            match policy.check(address) {
                Ok(()) if allowed.contains(&address) => {}
                Ok(()) => allowed.push(address),
                Err(reason) => denied = Some((address.ip(), reason)),
            }
        }
        match denied {
            _ if !allowed.is_empty() => Ok(allowed),
            Some((ip, reason)) => Err(Refusal::new(RefusalKind::Denied, format!("reconst does not forward to {ip}: {reason}"))),
            None => Err(Refusal::new(RefusalKind::NameNotFound, format!("{} has no address", target.host))),
        }
    }
}

/// SMTP between servers: open relays for it get a whole network's addresses onto blocklists. Mail programs use 465 and 587.
const DENIED_PORTS: [u16; 1] = [25];

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_is_allowed_is_connected_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let target = Target { host: Host::parse("127.0.0.1").expect("a host"), port: listener.local_addr().expect("bound").port() };
        let refusal = Egress::new(vec![], vec![]).connect(&target).await.expect_err("loopback");
        assert_eq!(refusal.kind, RefusalKind::Denied);
        assert!(refusal.reason.contains("RFC 1122"), "{refusal}");

        let egress = loopback_egress();
        let (client, accepted) = tokio::join!(egress.connect(&target), listener.accept());
        let client = client.expect("an allowed destination");
        assert_eq!(client.local_addr().expect("connected"), accepted.expect("a connection").1);
        assert!(client.nodelay().expect("a socket"));
    }

    #[tokio::test]
    async fn a_name_is_judged_by_what_it_resolves_to() {
        let target: Target = "localhost:9".parse().expect("a target");
        assert_eq!(Egress::new(vec![], vec![]).connect(&target).await.expect_err("loopback").kind, RefusalKind::Denied);
        let odd_notation = Target { host: Host::Name("0x7f.1".into()), port: 9 };
        assert_ne!(Egress::new(vec![], vec![]).connect(&odd_notation).await.expect_err("loopback").kind, RefusalKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_closed_port_is_a_refused_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let target = Target { host: Host::parse("127.0.0.1").expect("a host"), port: listener.local_addr().expect("bound").port() };
        drop(listener);
        assert_eq!(loopback_egress().connect(&target).await.expect_err("a closed port").kind, RefusalKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn the_mail_port_and_the_own_listeners_stay_shut() {
        let mail: Target = "127.0.0.1:25".parse().expect("a target");
        assert_eq!(loopback_egress().connect(&mail).await.expect_err("mail").kind, RefusalKind::Denied);
        let admin = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port").local_addr().expect("bound");
        let egress = Egress::new(vec!["127.0.0.0/8".parse().expect("a network")], vec![admin]);
        let target = Target { host: Host::Ip(admin.ip()), port: admin.port() };
        assert_eq!(egress.connect(&target).await.expect_err("the operator's own").kind, RefusalKind::Denied);
    }

    fn loopback_egress() -> Egress {
        Egress::new(vec!["127.0.0.0/8".parse().expect("a network")], vec![])
    }
}
