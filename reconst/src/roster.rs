//! The rosters of the LANs: which relays' lines are there, as their logins and their traffic say (the patent's table 1).
//!
//! Enters: `ACTIVE` and `SHUT DOWN` of logins, the news that a line carried traffic, which counts as an `ACTIVE`, and what it carried.
//! Leaves: each LAN's lines, for its members and for people; each line's measured rate. Always holds: a line that was missed too often in a
//! row is off the roster, and so at once is one that said so. Sans-IO; logins are bounded by [`crate::directory`], and so are lines.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use serde::Serialize;
use shared::{
    community::{
        announce::LineState,
        hello::LineNumber,
        line_rate::{Carried, LineRate, differs},
        listed::ListedLine,
        login::LineActive,
        member::Name,
        weight::Weights,
    },
    ids::LanId,
    units::Rate,
};

/// A line of a relay of a LAN.
pub type LineKey = (LanId, Name, LineNumber);

/// A line's rates as measured.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Rates {
    /// From the relay to here.
    pub up: Option<Rate>,
    /// From here to the relay.
    pub down: Option<Rate>,
}

/// A line on a roster, as a person is shown it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RosterReport {
    /// The relay.
    pub relay: Name,
    /// The LAN.
    pub lan: LanId,
    /// The line, numbered within its relay.
    pub line: u8,
    /// Where it is asked for service on the LAN.
    pub addresses: Vec<SocketAddr>,
    /// `ACTIVE`s missed in a row.
    pub missed: u32,
    /// Whether it serves.
    pub state: LineState,
    /// Its weights, and where they come from.
    pub weights: Weights,
    /// Its rate to here in bits per second, once measured.
    pub rate_up: Option<u64>,
    /// Its rate from here in bits per second, once measured.
    pub rate_down: Option<u64>,
}

/// The lines of all LANs.
#[derive(Debug)]
pub struct Rosters {
    missed_max: u32,
    line_by_key: BTreeMap<LineKey, Line>,
    /// LANs whose lines have changed since they were asked for.
    changed: Vec<LanId>,
    /// Lines that have left in order, or serve no more, since they were asked for.
    left: Vec<LineKey>,
}

#[derive(Debug)]
struct Line {
    /// Its own login; an older one that is still open says nothing any more.
    login: u64,
    remote: IpAddr,
    /// What it said last; none before it has.
    active: Option<LineActive>,
    heard: Instant,
    up: LineRate,
    down: LineRate,
}

impl Rosters {
    /// Rosters without lines, which a line leaves when `missed_max` of its `ACTIVE`s in a row were missed.
    pub fn new(missed_max: u32) -> Self {
        Self { missed_max, line_by_key: BTreeMap::new(), changed: Vec::new(), left: Vec::new() }
    }

    /// Takes the login of a line.
    pub fn on_login(&mut self, now: Instant, key: LineKey, login: u64, remote: IpAddr) {
        let line = Line { login, remote, active: None, heard: now, up: LineRate::default(), down: LineRate::default() };
        self.line_by_key.insert(key, line);
    }

    /// Takes what a line says over its login.
    pub fn on_active(&mut self, now: Instant, key: &LineKey, login: u64, active: LineActive) {
        let Some(line) = self.line_by_key.get_mut(key).filter(|line| line.login == login) else { return };
        line.heard = now;
        if line.active.as_ref() == Some(&active) {
            return;
        }
        let was_paused = line.active.as_ref().is_none_or(|active| active.state == LineState::Paused);
        if !was_paused && active.state == LineState::Paused {
            self.left.push(key.clone());
        }
        line.active = Some(active);
        self.changed.push(key.0);
    }

    /// Takes a line off that has said that it is about to leave.
    pub fn on_shut_down(&mut self, key: &LineKey, login: u64) {
        if self.line_by_key.get(key).is_some_and(|line| line.login == login) {
            self.left.push(key.clone());
            self.on_logout(key, login);
        }
    }

    /// Takes a line off whose login is over. Its paths may go on.
    pub fn on_logout(&mut self, key: &LineKey, login: u64) {
        if self.line_by_key.get(key).is_some_and(|line| line.login == login) {
            self.line_by_key.remove(key);
            self.changed.push(key.0);
        }
    }

    /// Takes the news that traffic came over a line.
    pub fn on_traffic(&mut self, now: Instant, key: &LineKey) {
        if let Some(line) = self.line_by_key.get_mut(key) {
            line.heard = now;
        }
    }

    /// Takes what the line carried in the last second between here and `remotes`, the addresses that its traffic showed. Users say which line
    /// a path runs over, so that what comes from elsewhere than the line's login says nothing of the line; whether it comes from there.
    pub fn on_carried(&mut self, key: &LineKey, remote: IpAddr, up: Carried, down: Carried) -> bool {
        let line = self.line_by_key.get_mut(key).filter(|line| line.remote == remote);
        if let Some(line) = line {
            line.up.on_carried(up);
            line.down.on_carried(down);
            return true;
        }
        false
    }

    /// Whether what comes from that address comes over the line.
    pub fn is_of_line(&self, key: &LineKey, remote: IpAddr) -> bool {
        self.line_by_key.get(key).is_some_and(|line| line.remote == remote)
    }

    /// The line's rates, if they are worth telling to who knows `told`.
    pub fn news_of_rates(&self, key: &LineKey, told: Rates) -> Option<Rates> {
        let line = self.line_by_key.get(key)?;
        let now = Rates { up: line.up.rate(), down: line.down.rate() };
        (differs(told.up, now.up) || differs(told.down, now.down)).then_some(now)
    }

    /// Takes off who was missed too often.
    pub fn handle_timeout(&mut self, now: Instant) {
        let missed_max = self.missed_max;
        for (key, line) in &mut self.line_by_key {
            if line.active.is_some() && missed(now, line) > missed_max {
                tracing::info!(relay = %key.1, lan = %key.0, line = key.2.0, "relay missed for too long");
                // Should it be heard again, it says everything anew.
                line.active = None;
                self.changed.push(key.0);
            }
        }
    }

    /// The LANs whose lines have changed since this was called last.
    pub fn take_changed(&mut self) -> Vec<LanId> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        changed
    }

    /// The lines that have left in order since this was called last.
    pub fn take_left(&mut self) -> Vec<LineKey> {
        std::mem::take(&mut self.left)
    }

    /// The lines of a LAN, for its members: those that serve first.
    pub fn lines(&self, lan: LanId) -> Vec<ListedLine> {
        let listed = |(key, line): (&LineKey, &Line)| {
            let LineActive { addresses, port, weights, state, .. } = line.active.clone()?;
            Some(ListedLine { relay: key.1.clone(), line: key.2, addresses, port, weights, state })
        };
        let mut lines: Vec<_> = self.line_by_key.iter().filter(|(key, _)| key.0 == lan).filter_map(listed).collect();
        lines.sort_by_key(|line| line.state != LineState::Serving);
        lines
    }

    /// All lines, for people.
    pub fn report(&self, now: Instant) -> Vec<RosterReport> {
        let shown = |(key, line): (&LineKey, &Line)| {
            let active = line.active.as_ref()?;
            Some(RosterReport {
                relay: key.1.clone(),
                lan: key.0,
                line: key.2.0,
                addresses: active.addresses.iter().map(|&ip| SocketAddr::new(ip, active.port)).collect(),
                missed: missed(now, line),
                state: active.state,
                weights: active.weights,
                rate_up: line.up.rate().map(|rate| rate.bits_per_second),
                rate_down: line.down.rate().map(|rate| rate.bits_per_second),
            })
        };
        self.line_by_key.iter().filter_map(shown).collect()
    }
}

fn missed(now: Instant, line: &Line) -> u32 {
    let interval = Duration::from_millis(line.active.as_ref().map_or(1000, |active| active.interval_ms).into());
    // Half an interval for the way there.
    let intervals = now.saturating_duration_since(line.heard + interval / 2).as_millis() / interval.as_millis().max(1);
    u32::try_from(intervals).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_active_line_is_listed_until_it_is_missed_too_often() {
        let (mut rosters, start) = (Rosters::new(3), Instant::now());
        rosters.on_login(start, key(), 1, REMOTE);
        assert!(rosters.lines(LAN).is_empty(), "nothing is known of it yet");
        rosters.on_active(start, &key(), 1, active());
        assert_eq!((rosters.lines(LAN).len(), rosters.take_changed()), (1, vec![LAN]));
        rosters.handle_timeout(start + SECOND * 2);
        assert_eq!(rosters.report(start + SECOND * 2)[0].missed, 1);
        rosters.on_traffic(start + SECOND * 3, &key());
        rosters.handle_timeout(start + SECOND * 6);
        assert_eq!(rosters.lines(LAN).len(), 1, "traffic counts");
        rosters.handle_timeout(start + SECOND * 8);
        assert!(rosters.lines(LAN).is_empty());
        rosters.on_active(start + SECOND * 9, &key(), 1, active());
        assert_eq!(rosters.lines(LAN).len(), 1);
    }

    #[test]
    fn a_line_that_leaves_or_pauses_is_to_be_left_by_its_paths() {
        let (mut rosters, start) = (Rosters::new(3), Instant::now());
        rosters.on_login(start, key(), 1, REMOTE);
        rosters.on_active(start, &key(), 1, active());
        rosters.on_active(start, &key(), 1, LineActive { state: LineState::Paused, ..active() });
        assert_eq!(rosters.take_left(), [key()]);
        rosters.on_shut_down(&key(), 1);
        assert_eq!((rosters.take_left(), rosters.lines(LAN).len()), (vec![key()], 0));
    }

    #[test]
    fn an_older_login_says_nothing_any_more() {
        let (mut rosters, start) = (Rosters::new(3), Instant::now());
        rosters.on_login(start, key(), 1, REMOTE);
        rosters.on_login(start, key(), 2, REMOTE);
        rosters.on_active(start, &key(), 2, active());
        rosters.on_active(start, &key(), 1, LineActive { port: 1, ..active() });
        rosters.on_shut_down(&key(), 1);
        rosters.on_logout(&key(), 1);
        assert_eq!(rosters.lines(LAN)[0].port, active().port);
    }

    #[test]
    fn only_traffic_over_the_line_measures_it() {
        let (mut rosters, start) = (Rosters::new(3), Instant::now());
        rosters.on_login(start, key(), 1, REMOTE);
        let carried = Carried { bits_per_second: 1e6, is_full: true };
        let elsewhere: IpAddr = [198, 51, 100, 9].into();
        assert!((0..5).all(|_| !rosters.on_carried(&key(), elsewhere, carried, carried)));
        assert_eq!(rosters.news_of_rates(&key(), Rates::default()), None);
        assert!((0..5).all(|_| rosters.on_carried(&key(), REMOTE, carried, carried)));
        let rates = rosters.news_of_rates(&key(), Rates::default()).expect("measured");
        assert_eq!(rates.up, Some(Rate { bits_per_second: 1_000_000 }));
        assert_eq!(rosters.news_of_rates(&key(), rates), None, "told once");
    }

    const LAN: LanId = LanId(15);
    const SECOND: Duration = Duration::from_secs(1);
    const REMOTE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 3));

    fn key() -> LineKey {
        (LAN, "ann".parse().expect("a name"), LineNumber(1))
    }

    fn active() -> LineActive {
        LineActive {
            addresses: vec![[10, 0, 1, 3].into()],
            port: 7654,
            weights: Weights::default(),
            state: LineState::Serving,
            interval_ms: 1000,
        }
    }
}
