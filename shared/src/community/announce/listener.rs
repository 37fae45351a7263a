//! Whom of those who announce themselves on the LAN a member believes.
//!
//! Enters: packets as heard, with the address they came from. Leaves: announcements that a relay of this LAN really made just now. What
//! always holds: one that is forged, altered, passed on from another address, repeated, older than the last or of another LAN changes
//! nothing and is counted ([`ListenerCounters`]); nobody's packets cost more than [`VERIFICATIONS_PER_SECOND`] signature checks, and
//! memory is bounded by the members there are, at most [`RELAYS_MAX`].

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;

use super::{Announcement, Stamp, Unverified, in_context, unix_secs};
use crate::{
    community::member::{Identity, Role},
    ids::LanId,
};

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
    /// Since it was refilled.
    verified_by_source: HashMap<IpAddr, u32>,
    refilled: Option<Instant>,
    counters: ListenerCounters,
}

impl Listener {
    /// A listener for the relays of `lan`.
    pub fn new(lan: LanId) -> Self {
        Self {
            lan,
            last_stamp_by_relay: BTreeMap::new(),
            relay_by_certificate: HashMap::new(),
            verifications_left: VERIFICATIONS_PER_SECOND,
            verified_by_source: HashMap::new(),
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
        if !self.may_verify(now, from.ip()) {
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

    fn may_verify(&mut self, now: Instant, source: IpAddr) -> bool {
        if self.refilled.is_none_or(|refilled| now.saturating_duration_since(refilled) >= Duration::from_secs(1)) {
            self.refilled = Some(now);
            self.verifications_left = VERIFICATIONS_PER_SECOND;
            self.verified_by_source.clear();
        }
        if self.verifications_left == 0 {
            return false;
        }
        let of_source = self.verified_by_source.entry(source).or_default();
        let may = *of_source < VERIFICATIONS_PER_SOURCE;
        if may {
            *of_source += 1;
            self.verifications_left -= 1;
        }
        may
    }
}

fn is_of_this_time(clock: SystemTime, sent_unix_secs: u64) -> bool {
    unix_secs(clock).abs_diff(sent_unix_secs) <= CLOCK_TOLERANCE_SECS
}

/// The most relays that a listener knows apart; only certificates of the LAN's authority count.
pub const RELAYS_MAX: usize = 1024;

/// Two Ed25519 verifications each take about 0.2 ms on a small PC: at most 4 % of it, and 200 relays heard every second.
pub const VERIFICATIONS_PER_SECOND: u32 = 200;

/// Of them from one address, so that one PC that floods the LAN leaves the others heard: a few relays that announce themselves twice a
/// second. Who sends from many addresses can still use up all.
const VERIFICATIONS_PER_SOURCE: u32 = 20;

/// How far two members' clocks may be apart: a PC set to local time instead of UTC still takes part. Within it, an announcement that
/// was recorded before this listener started can name a relay that has left, and no path comes of it.
const CLOCK_TOLERANCE_SECS: u64 = 24 * 60 * 60;

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::UNIX_EPOCH};

    use proptest::prelude::*;

    use super::{
        super::{AnnouncedLine, AnnouncementKind, LineState},
        *,
    };
    use crate::community::{
        hello::{LineNumber, VERSION},
        weight::Weights,
    };

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
        let flood = |ear: &mut Ear, host: u8| {
            let from = SocketAddr::new(Ipv4Addr::new(10, 0, 1, host).into(), 50000);
            for sequence in 0..1000 {
                let announcement = Announcement { address: from.ip(), ..active(sequence) };
                ear.hear(from, &packet(&announcement, "stranger"));
            }
        };
        flood(&mut ear, 66);
        assert_eq!(ear.verified, VERIFICATIONS_PER_SOURCE);
        assert!(ear.hear(RELAY, &packet(&active(1), "ann")).is_some(), "who does not flood is heard");
        (100..200).for_each(|host| flood(&mut ear, host));
        assert_eq!(ear.verified, VERIFICATIONS_PER_SECOND);
        ear.now += Duration::from_secs(1);
        assert!(ear.hear(RELAY, &packet(&active(2), "ann")).is_some());
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
