//! The relays that are known, from all sources, and the paths through them.
//!
//! Enters: the lines of relays that are heard on the LAN ([`crate::discovery`]), the LAN's roster as `reconst` tells it over the session, the
//! addresses that served in an earlier run, changes of this PC's network. Leaves: [`Paths`] that try and leave relays as they come and go, with
//! their weights; the roster for people. Always holds: a line that is heard on the LAN is asked where it is heard, another one at every
//! address that `reconst` knows of it; what is remembered is tried until `reconst` says what there is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shared::{
    community::{
        announce::{LineState, ListenerCounters},
        hello::LineNumber,
        listed::{self, ListedLine},
        member::Name,
        quota::{
            Zone,
            told::{self, ToldQuota},
        },
        roster::{Change, RelayLine, changes},
        weight::{LineWeight, Weights},
    },
    ids::PathId,
    service::{NetworkWatch, Shutdown, StateFile},
    transfer::congestion::Rounds,
    units::Size,
};
use tokio::{sync::watch, time::MissedTickBehavior};

use crate::{discovery::Discovery, paths::Paths};

/// The relays of one LAN as they are known now; clones share it.
#[derive(Clone, Default, Debug)]
pub struct Known {
    shown: Arc<Mutex<Shown>>,
}

/// What `status` shows of the relays.
#[derive(Clone, Default, PartialEq, Debug, Serialize)]
pub struct Shown {
    /// Their lines.
    pub roster: Vec<KnownLine>,
    /// What has become of the announcements heard.
    pub announcements: ListenerCounters,
    /// What the user may use and has, as `reconst` tells.
    pub quotas: Vec<KnownQuota>,
}

/// A quota, as a person is shown it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct KnownQuota {
    /// `you` or `your LAN`.
    pub whose: String,
    /// Bytes that are used of it, to a per cent.
    pub used_bytes: u64,
    /// Bytes that may be used in the period.
    pub quota_bytes: u64,
    /// How much is used, in per cent rounded down.
    pub used_percent: u64,
    /// The rate once it is used up; nothing if flows are refused then.
    pub throttle_bits_per_second: Option<u64>,
    /// When the count begins anew, seconds since 1970, UTC.
    pub resets_at: i64,
    /// The same, for people.
    pub resets: String,
}

/// A line of a relay, as a person is shown it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct KnownLine {
    /// The relay.
    pub relay: Name,
    /// The line's number with it.
    pub line: u8,
    /// Where it is asked for service, as far as is known the best first.
    pub addresses: Vec<SocketAddr>,
    /// `lan` if it is heard there, `reconst` if only that knows it.
    pub source: &'static str,
    /// Announcements missed in a row.
    pub missed: u32,
    /// Whether it serves.
    pub state: LineState,
    /// Its weights, and where they come from.
    pub weights: Weights,
}

/// What is kept from one run to the next.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
struct Remembered {
    /// Addresses of relays through which there was a path.
    relays: BTreeSet<SocketAddr>,
}

/// Follows what is known of one LAN's relays.
struct Follower {
    paths: Paths,
    known: Known,
    discovery: Option<Discovery>,
    heard: Vec<RelayLine>,
    /// The roster that `reconst` told last, as it came and as it reads.
    told: (Bytes, Vec<ListedLine>),
    /// The quotas that it told last, likewise.
    told_quotas: (Bytes, Vec<ToldQuota>),
    state: Option<StateFile>,
    remembered: Remembered,
    followed: BTreeSet<SocketAddr>,
    weight_by_line: BTreeMap<(Name, LineNumber), LineWeight>,
    received_by_address: BTreeMap<SocketAddr, u64>,
    fullness: Fullness,
}

/// Which paths' lines hold this end back.
#[derive(Default)]
struct Fullness {
    last_by_path: BTreeMap<PathId, (Rounds, bool)>,
}

impl Known {
    /// What is known now.
    pub fn shown(&self) -> Shown {
        self.shown.lock().expect("nothing panics while it is held").clone()
    }

    /// Has `paths` use the relays that become known until `shutdown`: those heard by `discovery` and those that `reconst` tells of, unless
    /// `discovery` is none and only those that were configured are wanted.
    pub fn follow(&self, paths: Paths, discovery: Option<Discovery>, state: Option<StateFile>, shutdown: Shutdown) {
        let state = state.filter(|_| discovery.is_some());
        let mut follower = Follower {
            paths,
            known: self.clone(),
            heard: Vec::new(),
            told: Default::default(),
            told_quotas: Default::default(),
            remembered: state.as_ref().and_then(StateFile::load).unwrap_or_default(),
            state,
            followed: BTreeSet::new(),
            weight_by_line: BTreeMap::new(),
            received_by_address: BTreeMap::new(),
            fullness: Fullness::default(),
            discovery,
        };
        tokio::spawn(async move {
            tokio::select! {
                () = follower.run() => (),
                () = shutdown.draining() => (),
            }
        });
    }
}

impl Shown {
    /// Both LANs' relays.
    pub(crate) fn and(mut self, other: Self) -> Self {
        let ListenerCounters { accepted, malformed, foreign, stale, forged, excess } = other.announcements;
        let own = &mut self.announcements;
        own.accepted += accepted;
        own.malformed += malformed;
        own.foreign += foreign;
        own.stale += stale;
        own.forged += forged;
        own.excess += excess;
        self.roster.extend(other.roster);
        self.quotas.extend(other.quotas);
        self
    }
}

impl Follower {
    async fn run(&mut self) {
        let mut lines = match &self.discovery {
            Some(discovery) => discovery.lines(),
            None => watch::Sender::default().subscribe(),
        };
        let mut network = NetworkWatch::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Ok(()) = lines.changed() => {
                    let heard = lines.borrow_and_update().clone();
                    self.handle_heard(heard);
                }
                _ = tick.tick() => {
                    self.note_traffic();
                    self.fullness.tell(&self.paths);
                    self.remember();
                    self.read_told();
                    self.read_told_quotas();
                }
                change = network.changed() => {
                    tracing::info!(?change, "the network is another: paths are tried anew");
                    self.paths.retry();
                }
            }
            if self.discovery.is_some() {
                self.use_all();
            }
            self.show();
        }
    }

    fn handle_heard(&mut self, heard: Vec<RelayLine>) {
        for change in changes(&self.heard, &heard) {
            match &change {
                Change::Up(line) if self.heard.iter().any(|known| (known.key(), known.address) == (line.key(), line.address)) => {
                    tracing::debug!(relay = %line.relay.name, line = line.line.0, weights = ?line.weights, "a relay's line has other weights");
                }
                Change::Up(line) => tracing::info!(relay = %line.relay.name, line = line.line.0, address = %line.address, "relay found"),
                Change::Gone((relay, line)) => tracing::info!(relay = %relay.name, line = line.0, "relay gone"),
            }
        }
        for line in self.heard.iter().filter(|line| heard.iter().all(|other| other.address != line.address)) {
            self.paths.remove_relay(line.address);
            self.followed.remove(&line.address);
        }
        self.heard = heard;
    }

    /// Reads the roster that `reconst` tells, if it is a new one.
    fn read_told(&mut self) {
        let bytes = self.paths.session().roster().borrow().clone();
        if bytes.is_empty() || bytes == self.told.0 {
            return;
        }
        match listed::decode(&bytes) {
            Ok(lines) => self.told = (bytes, lines),
            Err(error) => tracing::debug!(%error, "reconst told a roster that can't be read"),
        }
    }

    /// Reads the quotas that `reconst` tells, if they are new ones, and warns in time.
    fn read_told_quotas(&mut self) {
        let bytes = self.paths.session().quotas().borrow().clone();
        if bytes == self.told_quotas.0 {
            return;
        }
        let quotas = match told::decode(&bytes) {
            Ok(quotas) => quotas,
            Err(error) => {
                tracing::debug!(%error, "reconst told quotas that can't be read");
                return;
            }
        };
        for quota in &quotas {
            let is_warned = |before: &ToldQuota| {
                (before.whose, before.resets_at) == (quota.whose, quota.resets_at)
                    && before.is_beyond_warning()
                    && (before.percent() >= 100) == (quota.percent() >= 100)
            };
            if quota.is_beyond_warning() && !self.told_quotas.1.iter().any(is_warned) {
                let KnownQuota { whose, used_percent, resets, .. } = KnownQuota::from(quota);
                let size = Size { bytes: quota.quota_bytes };
                tracing::warn!("{used_percent} % of the {size} that {whose} may use are used; the count begins anew on {resets}");
            }
        }
        self.told_quotas = (bytes, quotas);
    }

    fn is_heard(&self, line: &ListedLine) -> bool {
        self.heard.iter().any(|heard| (&heard.relay.name, heard.line) == (&line.relay, line.line))
    }

    /// Tries and leaves relays, and weighs their lines, by all that is known.
    fn use_all(&mut self) {
        let told = self.told.1.iter().filter(|line| line.state == LineState::Serving && !self.is_heard(line));
        let mut wanted: BTreeSet<SocketAddr> = self.heard.iter().map(|line| line.address).collect();
        wanted.extend(told.flat_map(ListedLine::socket_addresses));
        if self.told.0.is_empty() {
            wanted.extend(&self.remembered.relays);
        }
        for address in self.followed.difference(&wanted) {
            self.paths.remove_relay(*address);
        }
        for address in wanted.difference(&self.followed) {
            self.paths.add_relay(*address, false);
        }
        self.followed = wanted;

        let heard = self.heard.iter().map(|line| ((line.relay.name.clone(), line.line), line.weights.up));
        let told = self.told.1.iter().map(|line| ((line.relay.clone(), line.line), line.weights.up));
        // What is heard counts before what is told.
        let weight_by_line: BTreeMap<_, _> = told.chain(heard).collect();
        for (line, weight) in &weight_by_line {
            if self.weight_by_line.get(line) != Some(weight) {
                self.paths.set_weight_up(line, *weight);
            }
        }
        self.weight_by_line = weight_by_line;
    }

    /// Takes traffic over a relay for an announcement.
    fn note_traffic(&mut self) {
        let Some(discovery) = &self.discovery else { return };
        let mut received = BTreeMap::new();
        for report in self.paths.report() {
            *received.entry(report.route.address).or_default() += report.down_bytes;
        }
        for line in &self.heard {
            let (before, now) = (self.received_by_address.get(&line.address), received.get(&line.address));
            if now > before && now != Some(&0) {
                discovery.on_traffic(&line.relay);
            }
        }
        self.received_by_address = received;
    }

    /// Keeps the addresses through which there is a path, as long as there is any.
    fn remember(&mut self) {
        let Some(state) = &self.state else { return };
        let relays: BTreeSet<_> = self.paths.report().into_iter().map(|report| report.route.address).take(REMEMBERED_MAX).collect();
        let remembered = Remembered { relays };
        if !remembered.relays.is_empty() && remembered != self.remembered {
            state.save(&remembered);
            self.remembered = remembered;
        }
    }

    fn show(&self) {
        let entries = self.discovery.as_ref().map(Discovery::entries).unwrap_or_default();
        let heard = entries.into_iter().flat_map(|entry| {
            let of_line = move |line: shared::community::announce::AnnouncedLine| KnownLine {
                relay: entry.relay.name.clone(),
                line: line.number.0,
                addresses: vec![SocketAddr::new(entry.address.ip(), line.port)],
                source: "lan",
                missed: entry.missed,
                state: line.state,
                weights: line.weights,
            };
            entry.lines.into_iter().map(of_line)
        });
        let mut roster: Vec<KnownLine> = heard.collect();
        let told = self.told.1.iter().filter(|line| roster.iter().all(|known| (&known.relay, known.line) != (&line.relay, line.line.0)));
        let told: Vec<_> = told
            .map(|line| KnownLine {
                relay: line.relay.clone(),
                line: line.line.0,
                addresses: line.socket_addresses().collect(),
                source: "reconst",
                missed: 0,
                state: line.state,
                weights: line.weights,
            })
            .collect();
        roster.extend(told);
        roster.sort_by(|a, b| (&a.relay, a.line).cmp(&(&b.relay, b.line)));
        let announcements = self.discovery.as_ref().map(Discovery::counters).unwrap_or_default();
        *self.known.shown.lock().expect("nothing panics while it is held") =
            Shown { roster, announcements, quotas: self.told_quotas.1.iter().map(KnownQuota::from).collect() };
    }
}

impl From<&ToldQuota> for KnownQuota {
    fn from(quota: &ToldQuota) -> Self {
        Self {
            whose: quota.whose.to_string(),
            used_bytes: quota.used_bytes,
            quota_bytes: quota.quota_bytes,
            used_percent: quota.percent(),
            throttle_bits_per_second: quota.throttle,
            resets_at: quota.resets_at.0,
            resets: Zone::default().text(quota.resets_at),
        }
    }
}

impl Fullness {
    /// Tells `reconst` which lines have held this end back for the last two ticks.
    fn tell(&mut self, paths: &Paths) {
        let session = paths.session();
        let mut now_by_path = BTreeMap::new();
        for status in session.path_status() {
            let (before, was_full) = self.last_by_path.get(&status.path).copied().unwrap_or((status.rounds, false));
            let is_full = is_full(before, status.rounds);
            if is_full && was_full {
                session.tell_full(status.path);
            }
            now_by_path.insert(status.path, (status.rounds, is_full));
        }
        self.last_by_path = now_by_path;
    }
}

/// Whether the line held the sender back for most of the time between two counts.
fn is_full(before: Rounds, now: Rounds) -> bool {
    let (full, free) = (now.full.saturating_sub(before.full), now.free.saturating_sub(before.free));
    full > 0 && full >= free
}

/// How often traffic, fullness and the roster told are looked at: within the usual interval of announcements.
const TICK: Duration = Duration::from_secs(1);

/// Addresses remembered: any one that still serves leads to all others.
const REMEMBERED_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_full_if_it_held_the_sender_back_most_of_the_time() {
        let rounds = |full, free| Rounds { full, free };
        assert!(is_full(rounds(5, 5), rounds(8, 6)));
        assert!(!is_full(rounds(5, 5), rounds(6, 8)) && !is_full(rounds(5, 5), rounds(5, 5)));
    }
}
