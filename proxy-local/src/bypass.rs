//! Which destinations stay out of the session: this host, and the LAN's own.
//!
//! A host is asked for as the application wrote it; nothing is resolved here. So a public name with a LAN address goes
//! through the session, where `reconst` refuses private addresses. Directly go
//! * addresses of this host, of the subnets its interfaces are on, loopback, link-local and multicast;
//! * `localhost`, names of one label, and names under `.local`, `.localhost` and `.home.arpa` (RFC 6762, 6761, 8375): no
//!   public resolver knows them;
//! * the networks and domains that the settings add.

use std::{
    net::IpAddr,
    str::FromStr,
    sync::Mutex,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use shared::target::Host;
use thiserror::Error;

/// A destination that the settings add: a network, or a domain with all below it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exception {
    /// All addresses of a network.
    Network(IpNet),
    /// A domain and all names below it, in lower case.
    Domain(String),
}

/// A text that is neither network nor domain.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("`{0}` is neither a network (192.168.0.0/16) nor a domain (example.org)")]
pub struct ExceptionError(String);

/// Decides which destinations go direct.
#[derive(Debug)]
pub struct Bypass {
    /// `None` if everything goes through the session.
    rules: Option<Rules>,
}

#[derive(Debug)]
struct Rules {
    exceptions: Vec<Exception>,
    interfaces: Mutex<Interfaces>,
}

/// The networks this machine is on, when last looked at.
#[derive(Debug)]
struct Interfaces {
    networks: Vec<IpNet>,
    read_at: Option<Instant>,
}

impl Bypass {
    /// Sends everything through the session.
    pub fn off() -> Self {
        Self { rules: None }
    }

    /// Sends this host's, the LAN's and the `exceptions`' destinations directly.
    pub fn on(exceptions: Vec<Exception>) -> Self {
        Self { rules: Some(Rules { exceptions, interfaces: Mutex::new(Interfaces { networks: Vec::new(), read_at: None }) }) }
    }

    /// Whether a flow to `host` goes direct.
    pub fn goes_direct(&self, host: &Host) -> bool {
        let Some(rules) = &self.rules else { return false };
        match host {
            Host::Name(name) => is_local_name(name) || rules.exceptions.iter().any(|exception| exception.has_name(name)),
            Host::Ip(ip) => {
                is_local_address(*ip) || rules.exceptions.iter().any(|exception| exception.has_ip(*ip)) || rules.is_on_link(*ip)
            }
        }
    }
}

impl Rules {
    fn is_on_link(&self, ip: IpAddr) -> bool {
        let mut interfaces = self.interfaces.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if interfaces.read_at.is_none_or(|read_at| read_at.elapsed() >= REFRESH_AFTER) {
            match interface_networks() {
                Ok(networks) => interfaces.networks = networks,
                Err(error) => tracing::warn!(%error, "the network interfaces can't be listed: LAN destinations may not bypass the session"),
            }
            interfaces.read_at = Some(Instant::now());
        }
        interfaces.networks.iter().any(|network| network.contains(&ip))
    }
}

impl Exception {
    /// Whether it holds `host`, as the application wrote it.
    pub fn has(&self, host: &Host) -> bool {
        match host {
            Host::Name(name) => self.has_name(name),
            Host::Ip(ip) => self.has_ip(*ip),
        }
    }

    fn has_name(&self, name: &str) -> bool {
        matches!(self, Self::Domain(domain) if is_under(name, domain))
    }

    fn has_ip(&self, ip: IpAddr) -> bool {
        matches!(self, Self::Network(network) if network.contains(&ip))
    }
}

impl FromStr for Exception {
    type Err = ExceptionError;

    fn from_str(text: &str) -> Result<Self, ExceptionError> {
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        match Host::parse(text.strip_prefix("*.").unwrap_or(text)) {
            Ok(Host::Name(domain)) => Ok(Self::Domain(domain)),
            Ok(Host::Ip(ip)) => Ok(Self::Network(ip.into())),
            Err(_) => Err(ExceptionError(text.chars().take(80).collect())),
        }
    }
}

fn is_local_name(name: &str) -> bool {
    !name.contains('.') || ["localhost", "local", "home.arpa"].iter().any(|domain| is_under(name, domain))
}

fn is_under(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn is_local_address(ip: IpAddr) -> bool {
    ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        }
}

/// The subnets of the interfaces that are up. A tunnel that claims everything (prefix 0) is a route, not a subnet.
fn interface_networks() -> std::io::Result<Vec<IpNet>> {
    let networks = if_addrs::get_if_addrs()?.into_iter().map(|interface| {
        let prefix_len = match &interface.addr {
            if_addrs::IfAddr::V4(v4) => v4.prefixlen,
            if_addrs::IfAddr::V6(v6) => v6.prefixlen,
        };
        IpNet::new(interface.ip(), prefix_len).ok()
    });
    Ok(networks.flatten().filter(|network| network.prefix_len() > 0).collect())
}

/// Listing the interfaces takes some 100 µs; a laptop that changes networks is followed within seconds.
const REFRESH_AFTER: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text).expect("a host")
    }

    #[test]
    fn this_host_and_names_that_only_the_lan_knows_go_direct() {
        let bypass = Bypass::on(Vec::new());
        for direct in ["localhost", "127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "printer", "nas.local", "a.b.home.arpa", "fe80::1"] {
            assert!(bypass.goes_direct(&host(direct)), "{direct}");
        }
        for far in ["example.org", "a.notlocal.org", "local.example", "a.xlocal", "203.0.113.10", "2001:db8::1"] {
            assert!(!bypass.goes_direct(&host(far)), "{far}");
        }
    }

    #[test]
    fn this_machines_own_addresses_go_direct() {
        let bypass = Bypass::on(Vec::new());
        for interface in if_addrs::get_if_addrs().expect("interfaces") {
            assert!(bypass.goes_direct(&Host::Ip(interface.ip())), "{}", interface.ip());
        }
    }

    #[test]
    fn exceptions_add_networks_and_domains() {
        let bypass = Bypass::on(["10.8.0.0/16", "corp.example", "2001:db8::/32"].map(|text| text.parse().expect("an exception")).into());
        for direct in ["10.8.255.1", "corp.example", "a.corp.example", "2001:db8:ffff::1"] {
            assert!(bypass.goes_direct(&host(direct)), "{direct}");
        }
        for far in ["10.9.0.1", "notcorp.example", "2001:db9::1"] {
            assert!(!bypass.goes_direct(&host(far)), "{far}");
        }
    }

    #[test]
    fn off_sends_even_localhost_through_the_session() {
        assert!(!Bypass::off().goes_direct(&host("localhost")));
    }

    #[test]
    fn an_exception_is_a_network_an_address_or_a_domain() {
        for text in ["10.0.0.0/8", "1.2.3.4", "2001:db8::/32", "example.org", "*.example.org"] {
            assert!(text.parse::<Exception>().is_ok(), "{text}");
        }
        for text in ["1.2.3.4/33", "1.2.3.4/", "a/b", "*", ""] {
            assert!(text.parse::<Exception>().is_err(), "{text}");
        }
    }
}
