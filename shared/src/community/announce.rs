//! What a relay says of itself on the LAN: `ACTIVE` and `SHUT DOWN`.
//!
//! Enters: packets as heard, with the address they came from. Leaves: announcements that a relay of this LAN really made just now. What
//! always holds: one that is forged, altered, passed on from another address, repeated, older than the last or of another LAN changes
//! nothing and is counted ([`ListenerCounters`]); nobody's packets cost more than [`VERIFICATIONS_PER_SECOND`] signature checks, and
//! memory is bounded by the members there are, at most [`RELAYS_MAX`]. An announcement is a hint: only an authenticated path carries
//! traffic. Sockets, signatures and who is still there ([`super::roster`]) are left to others.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::BufMut;
use serde::Serialize;

use super::{
    hello::{CERTIFICATE_MAX_BYTES, LineNumber, SIGNATURE_MAX_BYTES, VERSION, put_ip, take_ip},
    member::{Identity, Role},
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

/// An announcement that a relay of this LAN really made, newer than all before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heard {
    /// The relay.
    pub relay: Identity,
    /// The address it is reached at, scope included; the port is the announcement's own.
    pub from: SocketAddr,
    /// What it says.
    pub announcement: Announcement,
}

/// What has become of the packets heard, each counted since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct ListenerCounters {
    /// New announcements of this LAN's relays.
    pub accepted: u64,
    /// No announcements.
    pub malformed: u64,
    /// Of other LANs, or this member's own.
    pub foreign: u64,
    /// Repeated, older than the last, or from another time.
    pub stale: u64,
    /// Signed by no relay of this LAN, altered, or sent from another address than the one signed.
    pub forged: u64,
    /// More than may be verified or remembered.
    pub excess: u64,
}

/// Tells the announcements of one LAN's relays from everything else.
#[derive(Debug)]
pub struct Listener {
    lan: LanId,
    last_stamp_by_relay: BTreeMap<Identity, Stamp>,
    /// So that repeats are dropped before their signature is looked at. One certificate a relay: the newest.
    relay_by_certificate: HashMap<Vec<u8>, Identity>,
    verifications_left: u32,
    refilled: Option<Instant>,
    counters: ListenerCounters,
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

impl Listener {
    /// A listener for the relays of `lan`.
    pub fn new(lan: LanId) -> Self {
        Self {
            lan,
            last_stamp_by_relay: BTreeMap::new(),
            relay_by_certificate: HashMap::new(),
            verifications_left: VERIFICATIONS_PER_SECOND,
            refilled: None,
            counters: ListenerCounters::default(),
        }
    }

    /// Takes a packet heard `from` an address at `clock`; `verify` is given certificate, message and signature and says whose they are.
    pub fn handle_packet(
        &mut self,
        now: Instant,
        clock: SystemTime,
        from: SocketAddr,
        packet: &[u8],
        verify: impl FnOnce(&[u8], &[u8], &[u8]) -> Option<Identity>,
    ) -> Option<Heard> {
        let Ok(Unverified { announcement, signed, certificate, signature }) = Unverified::decode(packet) else {
            self.counters.malformed += 1;
            return None;
        };
        if announcement.lan != self.lan {
            self.counters.foreign += 1;
            return None;
        }
        let known = self.relay_by_certificate.get(&certificate);
        let last = known.and_then(|relay| self.last_stamp_by_relay.get(relay));
        if last.is_some_and(|last| announcement.stamp <= *last) || !is_of_this_time(clock, announcement.sent_unix_secs) {
            self.counters.stale += 1;
            return None;
        }
        if announcement.address != from.ip().to_canonical() {
            self.counters.forged += 1;
            return None;
        }
        if !self.may_verify(now) {
            self.counters.excess += 1;
            return None;
        }
        let relay = verify(&certificate, &in_context(signed), &signature);
        let Some(relay) = relay.filter(|relay| relay.role == Role::Relay && relay.lan == self.lan) else {
            self.counters.forged += 1;
            return None;
        };
        self.remember(relay, certificate, from, announcement)
    }

    /// What has become of the packets heard.
    pub fn counters(&self) -> ListenerCounters {
        self.counters
    }

    fn remember(&mut self, relay: Identity, certificate: Vec<u8>, from: SocketAddr, announcement: Announcement) -> Option<Heard> {
        match self.last_stamp_by_relay.get(&relay) {
            Some(last) if announcement.stamp <= *last => {
                self.counters.stale += 1;
                return None;
            }
            None if self.last_stamp_by_relay.len() >= RELAYS_MAX => {
                self.counters.excess += 1;
                return None;
            }
            _ => (),
        }
        self.last_stamp_by_relay.insert(relay.clone(), announcement.stamp);
        if self.relay_by_certificate.get(&certificate) != Some(&relay) {
            self.relay_by_certificate.retain(|_, other| *other != relay);
            self.relay_by_certificate.insert(certificate, relay.clone());
        }
        self.counters.accepted += 1;
        Some(Heard { relay, from, announcement })
    }

    fn may_verify(&mut self, now: Instant) -> bool {
        if self.refilled.is_none_or(|refilled| now.saturating_duration_since(refilled) >= Duration::from_secs(1)) {
            self.refilled = Some(now);
            self.verifications_left = VERIFICATIONS_PER_SECOND;
        }
        let may = self.verifications_left > 0;
        self.verifications_left = self.verifications_left.saturating_sub(1);
        may
    }
}

/// The seconds since 1970 at `clock`, 0 for a clock that stands before.
pub fn unix_secs(clock: SystemTime) -> u64 {
    clock.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn is_of_this_time(clock: SystemTime, sent_unix_secs: u64) -> bool {
    unix_secs(clock).abs_diff(sent_unix_secs) <= CLOCK_TOLERANCE_SECS
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

/// The most relays that a listener knows apart; only certificates of the LAN's authority count.
pub const RELAYS_MAX: usize = 1024;

/// Two Ed25519 verifications each take about 0.2 ms on a small PC: at most 4 % of it, and 200 relays heard every second.
pub const VERIFICATIONS_PER_SECOND: u32 = 200;

/// How far two members' clocks may be apart: a PC set to local time instead of UTC still takes part. Within it, an announcement that
/// was recorded before this listener started can name a relay that has left, and no path comes of it.
const CLOCK_TOLERANCE_SECS: u64 = 24 * 60 * 60;

/// Told apart from everything else that a member's key signs.
const CONTEXT: &[u8] = b"tributary announcement 1\0";

const ACTIVE: u8 = 0x10;
const SHUT_DOWN: u8 = 0x11;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::community::hello::is_quic;

    #[test]
    fn a_relay_of_the_lan_is_heard() {
        let mut ear = Ear::new();
        let heard = ear.hear(RELAY, &packet(&active(1), "ann")).expect("heard");
        assert_eq!((heard.relay, heard.announcement), (member("ann"), active(1)));
    }

    #[test]
    fn repeated_older_and_outdated_announcements_change_nothing() {
        let mut ear = Ear::new();
        assert!(ear.hear(RELAY, &packet(&active(5), "ann")).is_some());
        assert!(ear.hear(RELAY, &packet(&active(5), "ann")).is_none());
        assert!(ear.hear(RELAY, &packet(&active(4), "ann")).is_none());
        let other_day = Announcement { sent_unix_secs: active(9).sent_unix_secs - 2 * CLOCK_TOLERANCE_SECS, ..active(9) };
        assert!(ear.hear(RELAY, &packet(&other_day, "ann")).is_none());
        assert_eq!(ear.listener.counters(), ListenerCounters { accepted: 1, stale: 3, ..Default::default() });
        assert_eq!(ear.verified, 1, "none of them was worth a signature check");
        let restarted = Announcement { stamp: Stamp { epoch: 1001, sequence: 0 }, ..active(0) };
        assert!(ear.hear(RELAY, &packet(&restarted, "ann")).is_some());
    }

    #[test]
    fn forged_altered_and_foreign_announcements_change_nothing() {
        let mut ear = Ear::new();
        for (from, announcement, name) in
            [(RELAY, active(1), "stranger"), (RELAY, active(1), "user"), ("10.0.1.66:7653".parse().unwrap(), active(1), "ann")]
        {
            assert!(ear.hear(from, &packet(&announcement, name)).is_none(), "{from} {name}");
        }
        let mut altered = packet(&active(1), "ann");
        altered[12] ^= 1;
        assert!(ear.hear(RELAY, &altered).is_none());
        assert!(ear.hear(RELAY, &packet(&Announcement { lan: LanId(16), ..active(1) }, "ann")).is_none());
        assert_eq!(ear.listener.counters(), ListenerCounters { forged: 4, foreign: 1, ..Default::default() });
        assert!(ear.hear(RELAY, &packet(&active(1), "ann")).is_some(), "and the relay itself is still heard");
    }

    #[test]
    fn a_flood_is_not_verified_beyond_its_share() {
        let mut ear = Ear::new();
        for sequence in 0..1000 {
            ear.hear(RELAY, &packet(&active(sequence), "stranger"));
        }
        assert_eq!(ear.verified, VERIFICATIONS_PER_SECOND);
        ear.now += Duration::from_secs(1);
        assert!(ear.hear(RELAY, &packet(&active(1), "ann")).is_some());
    }

    #[test]
    fn the_longest_announcement_fits_an_ipv6_packet_and_is_no_quic() {
        let line = active(1).lines[0];
        let longest = Announcement { address: "fe80::1".parse().unwrap(), lines: vec![line; LINES_MAX], ..active(1) };
        let packet = longest.encode(&[0; CERTIFICATE_MAX_BYTES], |_| vec![0; SIGNATURE_MAX_BYTES]);
        assert!(packet.len() <= 1280 - 48 && !is_quic(packet[0]), "{}", packet.len());
    }

    proptest! {
        #[test]
        fn random_packets_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1300), kind in 0x10u8..0x12) {
            let mut ear = Ear::new();
            prop_assert!(ear.hear(RELAY, &bytes).is_none());
            let mut begun = vec![kind, VERSION, 0, 15];
            begun.extend(bytes);
            prop_assert!(ear.hear(RELAY, &begun).is_none());
        }

        #[test]
        fn an_altered_byte_anywhere_is_noticed(position in any::<prop::sample::Index>(), change in 1u8..) {
            let mut ear = Ear::new();
            let mut packet = packet(&active(1), "ann");
            let position = position.index(packet.len());
            packet[position] ^= change;
            prop_assert!(ear.hear(RELAY, &packet).is_none());
        }
    }

    const RELAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 1, 3)), 50000);

    /// A listener and its driver, in which a certificate is its member's name and a signature the message's digest.
    struct Ear {
        listener: Listener,
        now: Instant,
        verified: u32,
    }

    impl Ear {
        fn new() -> Self {
            Self { listener: Listener::new(LanId(15)), now: Instant::now(), verified: 0 }
        }

        fn hear(&mut self, from: SocketAddr, packet: &[u8]) -> Option<Heard> {
            let verified = &mut self.verified;
            self.listener.handle_packet(
                self.now,
                UNIX_EPOCH + Duration::from_secs(1_000_000),
                from,
                packet,
                |certificate, message, signature| {
                    *verified += 1;
                    match std::str::from_utf8(certificate).ok()? {
                        name @ ("ann" | "user") if digest(message) == signature => Some(member(name)),
                        _ => None,
                    }
                },
            )
        }
    }

    fn active(sequence: u64) -> Announcement {
        Announcement {
            kind: AnnouncementKind::Active,
            lan: LanId(15),
            address: RELAY.ip(),
            stamp: Stamp { epoch: 1000, sequence },
            sent_unix_secs: 1_000_100,
            interval_ms: 1000,
            lines: vec![AnnouncedLine { number: LineNumber(1), port: 7654, weights: Weights::default(), state: LineState::Serving }],
        }
    }

    fn packet(announcement: &Announcement, name: &str) -> Vec<u8> {
        announcement.encode(name.as_bytes(), digest)
    }

    fn digest(message: &[u8]) -> Vec<u8> {
        ring::digest::digest(&ring::digest::SHA256, message).as_ref().to_vec()
    }

    fn member(name: &str) -> Identity {
        let role = if name == "user" { Role::User } else { Role::Relay };
        Identity { name: name.parse().expect("a name"), role, lan: LanId(15) }
    }
}
