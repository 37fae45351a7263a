//! Which addresses flows may go to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::{own::OwnNetwork, special};

/// The rule for one look at an address.
pub(super) struct Policy<'a> {
    /// What the operator opens beyond the globally reachable.
    pub(super) allowed: &'a [IpNet],
    /// The addresses of this host and the networks they are in.
    pub(super) own: &'a [OwnNetwork],
    /// TCP sockets for the operator alone.
    pub(super) own_listeners: &'a [SocketAddr],
}

impl Policy<'_> {
    /// Whether a flow may go to `address`; if not, why not.
    ///
    /// An IPv6 address that carries an IPv4 one must pass with both. This host's own addresses are open only if an entry names exactly
    /// them, or they are loopback and an entry lies within loopback: a network opened for an office must not open the server itself.
    pub(super) fn check(&self, address: SocketAddr) -> Result<(), String> {
        let ip = address.ip().to_canonical();
        if self.own_listeners.iter().any(|own| own.port() == address.port() && (own.ip() == ip || own.ip().is_unspecified())) {
            return Err("that is reconst's own".into());
        }
        self.check_ip(ip)?;
        if let IpAddr::V6(v6) = ip
            && let Some(v4) = embedded_v4(v6)
        {
            self.check_ip(v4.into()).map_err(|reason| format!("{v4} within is refused: {reason}"))?;
        }
        Ok(())
    }

    fn check_ip(&self, ip: IpAddr) -> Result<(), String> {
        let is_loopback = ip.is_loopback();
        if is_loopback || self.own.iter().any(|own| own.address == ip) {
            let names_it = |entry: &&IpNet| entry.addr() == ip && entry.prefix_len() == entry.max_prefix_len();
            let opens_loopback = |entry: &&IpNet| is_loopback && entry.network().is_loopback() && entry.contains(&ip);
            if self.allowed.iter().any(|entry| names_it(&entry) || opens_loopback(&entry)) {
                return Ok(());
            }
            let what = special::purpose_unless_global(ip).unwrap_or("reconst's own address");
            return Err(format!("it is {what}, on reconst's own host"));
        }
        if is_never_a_destination(ip) {
            return Err("it is no single host's address".into());
        }
        if self.allowed.iter().any(|entry| entry.contains(&ip)) {
            return Ok(());
        }
        if let Some(purpose) = special::purpose_unless_global(ip) {
            return Err(format!("it is {purpose}; reconst's operator can open it with --egress-allow"));
        }
        if self.own.iter().any(|own| own.network.contains(&ip)) {
            return Err("it is a neighbour of reconst in its own network; reconst's operator can open it with --egress-allow".into());
        }
        Ok(())
    }
}

/// Not even an entry for everything opens these: on Linux a connection to the unspecified address reaches this host.
fn is_never_a_destination(ip: IpAddr) -> bool {
    ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// The IPv4 address that packets to `ip` would end at, in some network or other: IPv4-compatible (RFC 4291 §2.5.5.1), IPv4-translated
/// (RFC 2765), NAT64 (RFC 6052), 6to4 (RFC 3056), ISATAP (RFC 5214). IPv4-mapped is IPv4 by now; Teredo is denied as a whole.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => v4(high, low),
        [0, 0, 0, 0, 0xffff, 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => v4(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_denied_in_whatever_form() {
        for denied in [
            "127.0.0.1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "64:ff9b::a00:1",
            "2a00::5efe:10.0.0.1",
            "2a00::200:5efe:192.168.1.1",
            "2001:0:1:2:3:4:5:6",
            "::ffff:10.0.0.1",
            "0.0.0.0",
            "::",
        ] {
            assert!(check(denied, &[]).is_err(), "{denied}");
        }
        for allowed in ["1.1.1.1", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::1", "2a00::5efe:1.1.1.1", "2606:4700::1111"] {
            assert_eq!(check(allowed, &[]), Ok(()), "{allowed}");
        }
    }

    #[test]
    fn an_entry_opens_what_it_contains() {
        for (allowed, destination) in [
            ("10.0.0.0/8", "10.1.2.3"),
            ("10.0.0.0/8", "::ffff:10.1.2.3"),
            ("127.0.0.0/8", "127.0.0.1"),
            ("127.0.0.1/32", "127.0.0.1"),
            ("::1/128", "::1"),
            ("203.0.113.0/24", "203.0.113.10"),
            ("198.51.101.0/24", "198.51.101.9"),
            ("fd00::/8", "fd00::1"),
        ] {
            assert_eq!(check(destination, &[allowed]), Ok(()), "{allowed} {destination}");
        }
        assert!(check("11.0.0.1", &["10.0.0.0/8"]).is_ok());
        assert!(check("192.168.0.1", &["10.0.0.0/8"]).is_err());
        assert!(check("64:ff9b::a00:1", &["64:ff9b::/96"]).is_err(), "the form alone opens no private address");
        assert!(check("64:ff9b::a00:1", &["10.0.0.0/8"]).is_ok());
    }

    #[test]
    fn the_server_itself_takes_an_entry_of_its_own() {
        for (allowed, destination) in
            [("198.51.101.0/24", "198.51.101.7"), ("0.0.0.0/0", "127.0.0.1"), ("0.0.0.0/0", "198.51.101.7"), ("::/0", "::1")]
        {
            assert!(check(destination, &[allowed]).is_err(), "{allowed} {destination}");
        }
        assert_eq!(check("198.51.101.7", &["198.51.101.7/32"]), Ok(()));
    }

    #[test]
    fn neighbours_in_the_servers_network_are_denied_unless_opened() {
        assert!(check("198.51.101.9", &[]).is_err());
        assert_eq!(check("198.51.102.9", &[]), Ok(()));
    }

    #[test]
    fn no_entry_opens_what_is_no_host() {
        for destination in ["0.0.0.0", "224.0.0.1", "255.255.255.255"] {
            assert!(check(destination, &["0.0.0.0/0"]).is_err(), "{destination}");
        }
        assert!(check("::", &["::/0"]).is_err());
    }

    #[test]
    fn a_listener_of_the_operator_is_denied_on_its_port_alone() {
        let listener = "127.0.0.1:9090".parse().expect("an address");
        let policy = Policy { allowed: &["127.0.0.0/8".parse().expect("a network")], own: &[], own_listeners: &[listener] };
        assert!(policy.check(listener).is_err());
        assert!(policy.check("[::ffff:127.0.0.1]:9090".parse().expect("an address")).is_err());
        assert_eq!(policy.check("127.0.0.1:9091".parse().expect("an address")), Ok(()));
    }

    /// On a host 198.51.101.7/24.
    fn check(destination: &str, allowed: &[&str]) -> Result<(), String> {
        let own =
            [OwnNetwork { address: "198.51.101.7".parse().expect("an address"), network: "198.51.101.0/24".parse().expect("a network") }];
        let allowed: Vec<IpNet> = allowed.iter().map(|text| text.parse().expect("a network")).collect();
        let policy = Policy { allowed: &allowed, own: &own, own_listeners: &[] };
        policy.check(SocketAddr::new(destination.parse().expect("an address"), 443))
    }
}
