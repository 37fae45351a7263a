//! Where a flow wants to go, and why it could not.

use std::{fmt, net::IpAddr, str::FromStr};

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

impl Target {
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
