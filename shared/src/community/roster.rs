//! The roster: which relays' lines are there, the patent's table 1.
//!
//! Enters: announcements that [`super::announce::Listener`] let through, and the news that a relay's traffic came. Leaves: the lines
//! that serve right now. Always holds: an `ACTIVE` adds, enough missed ones in a row remove, traffic counts as an announce, `SHUT DOWN`
//! removes at once; a relay heard from several addresses stays at the one it was first heard from for as long as it is heard from
//! there. Trying the paths is left to others.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    announce::{AnnouncedLine, AnnouncementKind, Heard, LINES_MAX, LineState, RELAYS_MAX},
    hello::LineNumber,
    member::Identity,
    weight::Weights,
};

/// How long a relay stays that is not heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RosterConfig {
    /// The announcements in a row that must be missed. Default 3; with 1 a lost packet takes a relay off, with many a dead one is tried
    /// for long.
    pub missed_max: u32,
}

impl Default for RosterConfig {
    fn default() -> Self {
        Self { missed_max: 3 }
    }
}

/// A line of a relay that serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelayLine {
    /// The relay.
    pub relay: Identity,
    /// The line's number with it.
    pub line: LineNumber,
    /// Where on the LAN it is asked for service.
    pub address: SocketAddr,
    /// Its weights.
    pub weights: Weights,
}

/// What makes a line the same line, wherever it is reached and whatever its weights.
pub type LineKey = (Identity, LineNumber);

/// A relay on the roster, as a person is shown it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RosterEntry {
    /// The relay.
    pub relay: Identity,
    /// The address it was last heard from.
    pub address: SocketAddr,
    /// The announcements missed in a row.
    pub missed: u32,
    /// Its lines, serving or not.
    pub lines: Vec<AnnouncedLine>,
}

/// The relays of a LAN that are there.
#[derive(Debug, Default)]
pub struct Roster {
    config: RosterConfig,
    entry_by_relay: BTreeMap<Identity, Entry>,
}

#[derive(Debug)]
struct Entry {
    from: SocketAddr,
    heard: Instant,
    interval: Duration,
    lines: Vec<AnnouncedLine>,
}

impl Roster {
    /// An empty roster.
    pub fn new(config: RosterConfig) -> Self {
        Self { config, entry_by_relay: BTreeMap::new() }
    }

    /// Takes an announcement.
    pub fn handle_heard(&mut self, now: Instant, heard: Heard) {
        let Heard { relay, from, announcement } = heard;
        if announcement.kind == AnnouncementKind::ShutDown {
            self.entry_by_relay.remove(&relay);
            return;
        }
        let interval = Duration::from_millis(announcement.interval_ms.into());
        let lines: Vec<_> = announcement.lines.into_iter().take(LINES_MAX).collect();
        let has_room = self.entry_by_relay.len() < RELAYS_MAX;
        match self.entry_by_relay.get_mut(&relay) {
            // A PC with several addresses on the LAN is heard from each: paths must not hop between them with every announcement.
            Some(entry) if entry.from.ip() != from.ip() && !is_missed(now, entry, self.config.missed_max) => entry.lines = lines,
            Some(entry) => *entry = Entry { from, heard: now, interval, lines },
            None if has_room => {
                self.entry_by_relay.insert(relay, Entry { from, heard: now, interval, lines });
            }
            None => (),
        }
    }

    /// Takes the news that traffic came from `relay`, which counts as an announce.
    pub fn on_traffic(&mut self, now: Instant, relay: &Identity) {
        if let Some(entry) = self.entry_by_relay.get_mut(relay) {
            entry.heard = entry.heard.max(now);
        }
    }

    /// Takes off the roster who has not been heard for too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        let missed_max = self.config.missed_max;
        self.entry_by_relay.retain(|_, entry| !is_missed(now, entry, missed_max));
    }

    /// When [`Roster::handle_timeout`] is due next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.entry_by_relay.values().map(|entry| deadline(entry, self.config.missed_max)).min()
    }

    /// The lines that can be asked, in the order of their relays and numbers. One that is down is among them: its relay has lost its login, which says
    /// nothing of the paths that are up, and will have it again.
    pub fn lines(&self) -> Vec<RelayLine> {
        let askable = |line: &&AnnouncedLine| line.state != LineState::Paused;
        let mut lines: Vec<_> = self
            .entry_by_relay
            .iter()
            .flat_map(|(relay, entry)| {
                entry.lines.iter().filter(askable).map(|line| RelayLine {
                    relay: relay.clone(),
                    line: line.number,
                    address: with_port(entry.from, line.port),
                    weights: line.weights,
                })
            })
            .collect();
        lines.sort_by_key(RelayLine::key);
        lines.dedup_by(|a, b| a.key() == b.key());
        lines
    }

    /// All relays on the roster, in the order of their names.
    pub fn entries(&self, now: Instant) -> Vec<RosterEntry> {
        let shown = |(relay, entry): (&Identity, &Entry)| RosterEntry {
            relay: relay.clone(),
            address: entry.from,
            missed: missed(now, entry),
            lines: entry.lines.clone(),
        };
        self.entry_by_relay.iter().map(shown).collect()
    }
}

impl RelayLine {
    /// What makes it the same line.
    pub fn key(&self) -> LineKey {
        (self.relay.clone(), self.line)
    }
}

/// What happened between two states of the roster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A line is there that was not, or is reached elsewhere or weighs otherwise than before.
    Up(RelayLine),
    /// A line is there no longer.
    Gone(LineKey),
}

/// What happened between `before` and `after`, both as [`Roster::lines`] gives them.
pub fn changes(before: &[RelayLine], after: &[RelayLine]) -> Vec<Change> {
    let line_by_key = |lines: &[RelayLine]| lines.iter().map(|line| (line.key(), line.clone())).collect::<BTreeMap<_, _>>();
    let (before, after) = (line_by_key(before), line_by_key(after));
    let gone = before.keys().filter(|key| !after.contains_key(key)).cloned().map(Change::Gone);
    let up = after.iter().filter(|(key, line)| before.get(key) != Some(line)).map(|(_, line)| Change::Up(line.clone()));
    gone.chain(up).collect()
}

fn deadline(entry: &Entry, missed_max: u32) -> Instant {
    // Half an interval more: the last announcement to be missed may be a little late.
    entry.heard + entry.interval * missed_max + entry.interval / 2
}

fn is_missed(now: Instant, entry: &Entry, missed_max: u32) -> bool {
    now >= deadline(entry, missed_max)
}

fn missed(now: Instant, entry: &Entry) -> u32 {
    let intervals = (now.saturating_duration_since(entry.heard) + entry.interval / 2).as_millis() / entry.interval.as_millis().max(1);
    u32::try_from(intervals).unwrap_or(u32::MAX).saturating_sub(1)
}

/// `from` with another port: the scope of a link-local address stays.
fn with_port(mut from: SocketAddr, port: u16) -> SocketAddr {
    from.set_port(port);
    from
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        community::{
            announce::{Announcement, Stamp},
            member::Role,
        },
        ids::LanId,
    };

    #[test]
    fn three_missed_announces_take_a_relay_off_and_two_do_not() {
        let (mut roster, start) = (Roster::default(), Instant::now());
        roster.handle_heard(start, active("ann", ADDRESS));
        roster.handle_timeout(start + INTERVAL * 3);
        assert_eq!(roster.lines().len(), 1);
        assert_eq!(roster.entries(start + INTERVAL * 3)[0].missed, 2);
        let due = roster.poll_timeout().expect("a relay is there");
        assert!(due > start + INTERVAL * 3 && due < start + INTERVAL * 4);
        roster.handle_timeout(due);
        assert!(roster.lines().is_empty());
        assert_eq!(roster.poll_timeout(), None);
    }

    #[test]
    fn traffic_counts_as_an_announce() {
        let (mut roster, start) = (Roster::default(), Instant::now());
        roster.handle_heard(start, active("ann", ADDRESS));
        roster.on_traffic(start + INTERVAL * 3, &relay("ann"));
        roster.handle_timeout(start + INTERVAL * 5);
        assert_eq!(roster.lines().len(), 1);
        roster.on_traffic(start, &relay("bob"));
        assert_eq!(roster.lines().len(), 1, "traffic alone puts nobody on the roster");
    }

    #[test]
    fn shut_down_takes_a_relay_off_at_once() {
        let (mut roster, start) = (Roster::default(), Instant::now());
        roster.handle_heard(start, active("ann", ADDRESS));
        let mut leaving = active("ann", ADDRESS);
        leaving.announcement.kind = AnnouncementKind::ShutDown;
        roster.handle_heard(start, leaving);
        assert!(roster.lines().is_empty());
    }

    #[test]
    fn a_relay_with_two_addresses_stays_at_one_and_is_followed_when_that_falls_silent() {
        let (mut roster, start) = (Roster::default(), Instant::now());
        roster.handle_heard(start, active("ann", ADDRESS));
        roster.handle_heard(start, active("ann", OTHER_ADDRESS));
        assert_eq!(roster.lines()[0].address, "10.0.1.3:7654".parse().unwrap());
        roster.handle_heard(start + INTERVAL * 4, active("ann", OTHER_ADDRESS));
        assert_eq!(roster.lines()[0].address, "10.0.1.103:7654".parse().unwrap());
    }

    #[test]
    fn a_line_that_its_owner_paused_is_not_offered_and_one_that_is_down_is() {
        let mut roster = Roster::default();
        let mut heard = active("ann", ADDRESS);
        let line = heard.announcement.lines[0];
        heard.announcement.lines.push(AnnouncedLine { number: LineNumber(2), state: LineState::Paused, ..line });
        heard.announcement.lines.push(AnnouncedLine { number: LineNumber(3), state: LineState::Down, ..line });
        roster.handle_heard(Instant::now(), heard);
        assert_eq!(roster.lines().iter().map(|line| line.line).collect::<Vec<_>>(), [LineNumber(1), LineNumber(3)]);
    }

    proptest! {
        #[test]
        fn changes_lead_from_one_state_to_the_other(events in prop::collection::vec((0u8..4, 0u8..5, 1u16..3), 0..60)) {
            let (mut roster, mut now) = (Roster::default(), Instant::now());
            let mut followed: Vec<RelayLine> = Vec::new();
            for (kind, name, port) in events {
                let name = format!("r{name}");
                let mut heard = active(&name, ADDRESS);
                heard.announcement.lines[0].port = port;
                match kind {
                    0 => roster.handle_heard(now, heard),
                    1 => {
                        heard.announcement.kind = AnnouncementKind::ShutDown;
                        roster.handle_heard(now, heard);
                    }
                    2 => roster.on_traffic(now, &relay(&name)),
                    _ => {
                        now += INTERVAL * 2;
                        roster.handle_timeout(now);
                    }
                }
                for change in changes(&followed, &roster.lines()) {
                    match change {
                        Change::Gone(key) => followed.retain(|line| line.key() != key),
                        Change::Up(line) => {
                            followed.retain(|other| other.key() != line.key());
                            followed.push(line);
                        }
                    }
                }
                followed.sort_by_key(RelayLine::key);
                prop_assert_eq!(&followed, &roster.lines());
                prop_assert_eq!(roster.poll_timeout().is_none(), roster.lines().is_empty());
            }
        }
    }

    const INTERVAL: Duration = Duration::from_secs(1);
    const ADDRESS: &str = "10.0.1.3:50000";
    const OTHER_ADDRESS: &str = "10.0.1.103:50000";

    fn relay(name: &str) -> Identity {
        Identity { name: name.parse().expect("a name"), role: Role::Relay, lan: LanId(15) }
    }

    fn active(name: &str, from: &str) -> Heard {
        let from: SocketAddr = from.parse().expect("an address");
        let line = AnnouncedLine { number: LineNumber(1), port: 7654, weights: Weights::default(), state: LineState::Serving };
        let announcement = Announcement {
            kind: AnnouncementKind::Active,
            lan: LanId(15),
            address: from.ip(),
            stamp: Stamp { epoch: 0, sequence: 0 },
            sent_unix_secs: 0,
            interval_ms: 1000,
            lines: vec![line],
        };
        Heard { relay: relay(name), from, announcement }
    }
}
