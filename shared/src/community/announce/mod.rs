//! What a relay says of itself on the LAN: `ACTIVE` and `SHUT DOWN`.
//!
//! Enters: a relay's state. Leaves: the packet that announces it, signed. Whom a listener believes is [`listener`]'s; sockets, signatures and who is
//! still there ([`super::roster`]) are left to others. An announcement is a hint: only an authenticated path carries traffic.

mod listener;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::BufMut;
use serde::Serialize;

pub use self::listener::{Heard, Listener, ListenerCounters, RELAYS_MAX, VERIFICATIONS_PER_SECOND};
use super::{
    hello::{CERTIFICATE_MAX_BYTES, LineNumber, SIGNATURE_MAX_BYTES, VERSION, put_ip, take_ip},
    weight::Weights,
};
use crate::{
    ids::LanId,
    wire::{self, WireError},
};

/// One relay's state, as it announces it to one LAN from one of its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announcement {
    /// Whether the relay serves or leaves.
    pub kind: AnnouncementKind,
    /// The LAN it is meant for.
    pub lan: LanId,
    /// The relay's address on the LAN, from which the announcement is sent.
    pub address: IpAddr,
    /// Orders its announcements.
    pub stamp: Stamp,
    /// When it was sent, by the relay's clock, in seconds since 1970.
    pub sent_unix_secs: u64,
    /// The time to the next one, in milliseconds, 1 to 65,535.
    pub interval_ms: u16,
    /// Its lines, at most [`LINES_MAX`]; none in a `SHUT DOWN`.
    pub lines: Vec<AnnouncedLine>,
}

/// What an announcement says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AnnouncementKind {
    /// The relay is there.
    Active,
    /// The relay is about to leave: its paths drain.
    ShutDown,
}

/// The order of one relay's announcements: a later one has a greater stamp.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Stamp {
    /// When the relay started, by its clock, in milliseconds since 1970.
    pub epoch: u64,
    /// Counts its announcements since.
    pub sequence: u64,
}

/// One line of an announcement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnnouncedLine {
    /// Its number, 1 to 255.
    pub number: LineNumber,
    /// Its port on the LAN, 1 to 65,535.
    pub port: u16,
    /// Its weights.
    pub weights: Weights,
    /// Whether it serves.
    pub state: LineState,
}

/// Whether a line serves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LineState {
    /// It does.
    Serving = 1,
    /// Its owner has taken it back for now.
    Paused = 2,
    /// It does not reach `reconst` at the moment.
    Down = 3,
}

impl Announcement {
    /// The announcement's packet; `sign` signs with the key of `certificate`.
    ///
    /// # Panics
    /// If it has more than [`LINES_MAX`] lines: a relay is not configured with more.
    pub fn encode(&self, certificate: &[u8], sign: impl FnOnce(&[u8]) -> Vec<u8>) -> Vec<u8> {
        assert!(self.lines.len() <= LINES_MAX, "a relay has at most LINES_MAX lines");
        let mut out = Vec::with_capacity(1024);
        out.put_u8(match self.kind {
            AnnouncementKind::Active => ACTIVE,
            AnnouncementKind::ShutDown => SHUT_DOWN,
        });
        out.put_u8(VERSION);
        out.put_u16(self.lan.0);
        put_ip(&mut out, self.address);
        out.put_u64(self.stamp.epoch);
        out.put_u64(self.stamp.sequence);
        out.put_u64(self.sent_unix_secs);
        out.put_u16(self.interval_ms);
        out.put_u8(self.lines.len() as u8);
        for line in &self.lines {
            out.put_u8(line.number.0);
            out.put_u16(line.port);
            line.weights.encode(&mut out);
            out.put_u8(line.state as u8);
        }
        wire::put_bytes(&mut out, certificate);
        let signature = sign(&in_context(&out));
        wire::put_bytes(&mut out, &signature);
        out
    }
}

/// An announcement as read, with what it takes to verify it.
struct Unverified<'a> {
    announcement: Announcement,
    signed: &'a [u8],
    certificate: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Unverified<'a> {
    fn decode(packet: &'a [u8]) -> Result<Self, WireError> {
        let mut input = packet;
        let kind = match wire::take_u8(&mut input)? {
            ACTIVE => AnnouncementKind::Active,
            SHUT_DOWN => AnnouncementKind::ShutDown,
            _ => return Err(WireError::Value("message type")),
        };
        if wire::take_u8(&mut input)? != VERSION {
            return Err(WireError::Value("version"));
        }
        let lan = LanId(wire::take_u16(&mut input)?);
        let address = take_ip(&mut input)?;
        let stamp = Stamp { epoch: take_u64(&mut input)?, sequence: take_u64(&mut input)? };
        let sent_unix_secs = take_u64(&mut input)?;
        let interval_ms = match wire::take_u16(&mut input)? {
            0 => return Err(WireError::Value("interval")),
            interval_ms => interval_ms,
        };
        let count = usize::from(wire::take_u8(&mut input)?);
        if count > LINES_MAX {
            return Err(WireError::Value("number of lines"));
        }
        let lines = (0..count).map(|_| AnnouncedLine::decode(&mut input)).collect::<Result<_, _>>()?;
        let certificate = wire::take_bytes(&mut input, CERTIFICATE_MAX_BYTES, "certificate")?;
        let signed = &packet[..packet.len() - input.len()];
        let signature = wire::take_bytes(&mut input, SIGNATURE_MAX_BYTES, "signature")?;
        if !input.is_empty() {
            return Err(WireError::Value("end"));
        }
        let announcement = Announcement { kind, lan, address, stamp, sent_unix_secs, interval_ms, lines };
        Ok(Self { announcement, signed, certificate, signature })
    }
}

impl LineState {
    /// Takes a state off the front of `input`.
    ///
    /// # Errors
    /// If `input` is empty or it is none.
    pub(super) fn decode(input: &mut &[u8]) -> Result<Self, WireError> {
        Ok(match wire::take_u8(input)? {
            1 => Self::Serving,
            2 => Self::Paused,
            3 => Self::Down,
            _ => return Err(WireError::Value("line state")),
        })
    }
}

impl AnnouncedLine {
    fn decode(input: &mut &[u8]) -> Result<Self, WireError> {
        let number = match wire::take_u8(input)? {
            0 => return Err(WireError::Value("line number")),
            number => LineNumber(number),
        };
        let port = match wire::take_u16(input)? {
            0 => return Err(WireError::Value("port")),
            port => port,
        };
        let weights = Weights::decode(input)?;
        let state = LineState::decode(input)?;
        Ok(Self { number, port, weights, state })
    }
}

/// The seconds since 1970 at `clock`, 0 for a clock that stands before.
pub fn unix_secs(clock: SystemTime) -> u64 {
    clock.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn in_context(signed: &[u8]) -> Vec<u8> {
    [CONTEXT, signed].concat()
}

fn take_u64(input: &mut &[u8]) -> Result<u64, WireError> {
    wire::take_array(input).map(u64::from_be_bytes)
}

/// The port on which announcements are listened for.
pub const ANNOUNCE_PORT: u16 = 7653;

/// The group that announcements are sent to: of the block for use within an organisation (RFC 2365).
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 255, 76, 54);

/// Its twin on IPv6: link-local and of nobody's registration (RFC 4291 §2.7), ending in `trib`.
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x7472, 0x6962);

/// The most lines of one relay: with the longest certificate and signature they fit the least MTU of IPv6 (1,280 bytes). A PC with more
/// runs a second relay, which has a profile of its own.
pub const LINES_MAX: usize = 8;

/// Told apart from everything else that a member's key signs.
const CONTEXT: &[u8] = b"tributary announcement 1\0";

const ACTIVE: u8 = 0x10;
const SHUT_DOWN: u8 = 0x11;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::community::hello::is_quic;

    #[test]
    fn the_longest_announcement_fits_an_ipv6_packet_and_is_no_quic() {
        let line = AnnouncedLine { number: LineNumber(1), port: 7654, weights: Weights::default(), state: LineState::Serving };
        let longest = Announcement {
            kind: AnnouncementKind::Active,
            lan: LanId(15),
            address: "fe80::1".parse().unwrap(),
            stamp: Stamp { epoch: 1000, sequence: 1 },
            sent_unix_secs: 1_000_100,
            interval_ms: 1000,
            lines: vec![line; LINES_MAX],
        };
        let packet = longest.encode(&[0; CERTIFICATE_MAX_BYTES], |_| vec![0; SIGNATURE_MAX_BYTES]);
        assert!(packet.len() <= 1280 - 48 && !is_quic(packet[0]), "{}", packet.len());
    }
}
