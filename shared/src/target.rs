//! Where a flow wants to go, and why it could not.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use bytes::{Buf, BufMut};
use thiserror::Error;

use crate::wire::{self, WireError};

/// The content server that an application asked for: a host and a port, for TCP and UDP alike.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    /// The host, by name or by address.
    pub host: Host,
    /// The port, 1 to 65535.
    pub port: u16,
}

/// A host by name, which only `reconst` resolves, or by address.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Host {
    /// A name in lower case without its trailing dot: 1 to 253 bytes of letters, digits, `-`, `_` and dots.
    Name(String),
    /// An address; IPv4 in an IPv6 form (RFC 4291 §2.5.5.2) is kept as IPv4.
    Ip(IpAddr),
}

/// A host or target that can't be one.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum TargetError {
    /// Neither an address nor a name.
    #[error("`{0}` is neither an IP address nor a host name")]
    Host(String),
    /// No port, or port 0.
    #[error("`{0}` has no port from 1 to 65535")]
    Port(String),
}

/// Why a flow was not opened, as `reconst` tells `proxy-local` and as each inbound protocol puts it to the application.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum RefusalKind {
    /// Anything else.
    General = 1,
    /// A rule forbids the destination (the egress policy, the user's own).
    Denied = 2,
    /// The name does not resolve.
    NameNotFound = 3,
    /// No route to the destination's network.
    NetworkUnreachable = 4,
    /// No route to the host.
    HostUnreachable = 5,
    /// The host answered that nothing listens there.
    ConnectionRefused = 6,
    /// The host did not answer in time.
    TimedOut = 7,
    /// Quota used up, or too many flows at once.
    OverQuota = 8,
    /// No path to `reconst` is up.
    NoPath = 9,
}

/// A flow that was not opened: the kind, and a sentence for a person.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{reason}")]
pub struct Refusal {
    /// What the inbound protocol's reply code follows from.
    pub kind: RefusalKind,
    /// One sentence, at most [`Refusal::REASON_MAX`] bytes.
    pub reason: String,
}

impl Host {
    /// A host from what an application wrote: an address (also in brackets) or a name.
    ///
    /// # Errors
    /// [`TargetError::Host`] if it is neither.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let bare = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Self::Ip(ip.to_canonical()));
        }
        let name = bare.strip_suffix('.').unwrap_or(bare);
        let label_is_valid =
            |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if name.len() > 253 || !name.split('.').all(label_is_valid) {
            return Err(TargetError::Host(text.chars().take(64).collect()));
        }
        Ok(Self::Name(name.to_ascii_lowercase()))
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Ip(address.ip().to_canonical()), port: address.port() }
    }
}

impl Target {
    /// The address, unless the host is a name.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }

    /// Appends the target in the protocol's form.
    pub fn encode(&self, out: &mut impl BufMut) {
        match &self.host {
            Host::Ip(IpAddr::V4(ip)) => {
                out.put_u8(4);
                out.put_slice(&ip.octets());
            }
            Host::Ip(IpAddr::V6(ip)) => {
                out.put_u8(6);
                out.put_slice(&ip.octets());
            }
            Host::Name(name) => {
                out.put_u8(1);
                wire::put_bytes(out, name.as_bytes());
            }
        }
        out.put_u16(self.port);
    }

    /// Takes a target off the front of `input`.
    ///
    /// # Errors
    /// If `input` ends first or holds what can't be a target.
    pub fn decode(input: &mut impl Buf) -> Result<Self, WireError> {
        let host = match wire::take_u8(input)? {
            4 => Host::Ip(IpAddr::from(wire::take_array::<4>(input)?)),
            6 => Host::Ip(IpAddr::from(wire::take_array::<16>(input)?).to_canonical()),
            1 => {
                let name = String::from_utf8(wire::take_bytes(input, 253, "host name")?).map_err(|_| WireError::Value("host name"))?;
                Host::parse(&name).map_err(|_| WireError::Value("host name"))?
            }
            _ => return Err(WireError::Value("host kind")),
        };
        match wire::take_u16(input)? {
            0 => Err(WireError::Value("port")),
            port => Ok(Self { host, port }),
        }
    }
}

impl Refusal {
    /// The longest reason that is sent, in bytes.
    pub const REASON_MAX: usize = 255;

    /// A refusal with a reason, cut to [`Refusal::REASON_MAX`].
    pub fn new(kind: RefusalKind, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        reason.truncate(reason.floor_char_boundary(Self::REASON_MAX));
        Self { kind, reason }
    }
}

impl TryFrom<u8> for RefusalKind {
    type Error = WireError;

    fn try_from(code: u8) -> Result<Self, WireError> {
        Ok(match code {
            1 => Self::General,
            2 => Self::Denied,
            3 => Self::NameNotFound,
            4 => Self::NetworkUnreachable,
            5 => Self::HostUnreachable,
            6 => Self::ConnectionRefused,
            7 => Self::TimedOut,
            8 => Self::OverQuota,
            9 => Self::NoPath,
            _ => return Err(WireError::Value("refusal")),
        })
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| TargetError::Port(text.into()))?;
        let port = port.parse().ok().filter(|&port| port != 0).ok_or_else(|| TargetError::Port(text.into()))?;
        Ok(Self { host: Host::parse(host)?, port })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target() -> impl Strategy<Value = Target> {
        let name = "[a-z0-9_-]{1,63}(\\.[a-z0-9_-]{1,63}){0,2}";
        let host = prop_oneof![
            name.prop_filter_map("an address", |name| Host::parse(&name).ok()),
            any::<[u8; 4]>().prop_map(|ip| Host::Ip(ip.into())),
            any::<[u8; 16]>().prop_map(|ip| Host::Ip(IpAddr::from(ip).to_canonical())),
        ];
        (host, 1..=u16::MAX).prop_map(|(host, port)| Target { host, port })
    }

    proptest! {
        #[test]
        fn a_target_comes_back_from_the_wire_and_from_text(target in target()) {
            let mut out = Vec::new();
            target.encode(&mut out);
            prop_assert_eq!(Target::decode(&mut &out[..]), Ok(target.clone()));
            prop_assert_eq!(Target::decode(&mut &out[..out.len() - 1]), Err(WireError::Short));
            prop_assert_eq!(target.to_string().parse(), Ok(target));
        }

        #[test]
        fn random_bytes_are_a_valid_target_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(target) = Target::decode(&mut &bytes[..]) {
                let mut out = Vec::new();
                target.encode(&mut out);
                prop_assert_eq!(Target::decode(&mut &out[..]), Ok(target));
            }
        }
    }

    #[test]
    fn an_ipv4_address_has_one_form() {
        let plain = Host::parse("10.0.1.1");
        assert_eq!(Host::parse("::ffff:10.0.1.1"), plain);
        assert_eq!(Host::parse("[::ffff:a00:101]"), plain);
        let mapped: [u8; 19] = [6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 1, 1, 0, 80];
        assert_eq!(Target::decode(&mut &mapped[..]).map(|target| target.host), Ok(plain.expect("an address")));
    }

    #[test]
    fn a_name_has_one_form() {
        assert_eq!(Host::parse("Example.ORG."), Host::parse("example.org"));
    }

    #[test]
    fn what_can_not_be_a_host_or_port_is_refused() {
        let long_label = "a".repeat(64);
        let long_name = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join(".");
        for host in ["", ".", "a..b", ".a", "a b", "a/b", "a@b", "ä.org", "a\0", "[::1", "fe80::1%eth0", &long_label, &long_name] {
            assert!(Host::parse(host).is_err(), "{host}");
        }
        for target in ["example.org", "example.org:0", "example.org:65536", "example.org:", ":80", "example.org:+80x"] {
            assert!(target.parse::<Target>().is_err(), "{target}");
        }
        for bytes in [&[4, 1, 2, 3, 4, 0, 0][..], &[5, 1, 2, 3, 4, 0, 80], &[1, 0, 0, 80], &[1, 2, b'a', b'/', 0, 80]] {
            assert!(matches!(Target::decode(&mut &bytes[..]), Err(WireError::Value(_))), "{bytes:?}");
        }
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let refusal = Refusal::new(RefusalKind::General, "ä".repeat(200));
        assert_eq!(refusal.reason.len(), Refusal::REASON_MAX - 1);
        for code in 0..=u8::MAX {
            if let Ok(kind) = RefusalKind::try_from(code) {
                assert_eq!(kind as u8, code);
            }
        }
    }
}
