//! The lines' driver: what the sessions' paths say of the lines they run over, and what the sessions are told of them.
//!
//! Once a second: which lines carried traffic, how much, and whether they held a sender back, goes into the [`Rosters`]; a LAN's roster
//! that has changed goes to its sessions, and the lines' weights with it; what is fair for each of the paths that fill a line together goes to
//! those; what the lines have lent goes to the quota's keeper. At once: a line that leaves is left by its paths.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use shared::{
    community::{line_rate::Carried, member::Name, quota::Used},
    ids::LanId,
    transfer::path::{OVERHEAD_BYTES, PathStatus},
};
use tokio::{sync::Notify, time::MissedTickBehavior};

use crate::{
    accept::{SessionOverLines, Sessions},
    accounts::ledger,
    fair::{FairRates, Filling, PathKey, fair_rates},
    lending::Lending,
    quota::Keeper,
    roster::{LineKey, Rosters},
};

/// The rosters, shared by the logins that feed them and the driver that reads them.
#[derive(Clone, Debug)]
pub struct Lines {
    rosters: Arc<Mutex<Rosters>>,
    changed: Arc<Notify>,
    /// By relay, since it was last taken.
    carried: Arc<Mutex<ledger::Carried>>,
    lending: Arc<Mutex<Lending>>,
}

/// What a path's counters said a second ago.
#[derive(Clone, Copy, Default)]
struct Seen {
    received_bytes: u64,
    acked_bytes: u64,
    full: u64,
    free: u64,
    told_full: u64,
    is_full_up: bool,
    is_full_down: bool,
}

/// A line's second.
#[derive(Clone, Copy, Default)]
struct Second {
    up_bytes: u64,
    down_bytes: u64,
    is_full_up: bool,
    is_full_down: bool,
}

impl Lines {
    /// No lines yet; they leave the roster after `missed_max` missed `ACTIVE`s in a row.
    pub fn new(missed_max: u32) -> Self {
        let rosters = Arc::new(Mutex::new(Rosters::new(missed_max)));
        Self { rosters, changed: Arc::default(), carried: Arc::default(), lending: Arc::default() }
    }

    /// Takes what the relays have carried since it was last taken.
    pub(crate) fn take_carried(&self) -> ledger::Carried {
        std::mem::take(&mut *self.lock_carried())
    }

    /// Gives back what was taken and could not be kept.
    pub(crate) fn give_back_carried(&self, carried: ledger::Carried) {
        let mut all = self.lock_carried();
        for (relay, bytes) in carried {
            add(&mut all, relay, bytes);
        }
    }

    fn lock_carried(&self) -> MutexGuard<'_, ledger::Carried> {
        self.carried.lock().expect("nothing panics under the lock")
    }

    /// Changes the rosters, and tells the driver.
    pub fn with<T>(&self, change: impl FnOnce(&mut Rosters) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_one();
        result
    }

    /// The rosters, to read.
    pub fn lock(&self) -> MutexGuard<'_, Rosters> {
        self.rosters.lock().expect("nothing panics under the lock")
    }

    /// Follows the lines of `sessions` until dropped.
    pub(crate) async fn follow(self, sessions: Sessions, keeper: Keeper) {
        let mut tick = tokio::time::interval(SECOND);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen_by_path = HashMap::new();
        let mut told_by_session: HashMap<u64, u64> = HashMap::new();
        let mut version_by_lan: BTreeMap<LanId, u64> = BTreeMap::new();
        let mut fair_before = FairRates::default();
        let mut measured_at = Instant::now();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let now = Instant::now();
                    let seconds = now.saturating_duration_since(measured_at).as_secs_f64();
                    measured_at = now;
                    let over_lines = sessions.over_lines();
                    let fair = self.measure(now, seconds, &over_lines, &mut seen_by_path);
                    sessions.set_fair_rates(&fair.news_after(&fair_before));
                    fair_before = fair;
                    self.note_lent(&over_lines, &keeper);
                    for lan in self.lock().take_changed() {
                        *version_by_lan.entry(lan).or_default() += 1;
                    }
                    self.tell(&sessions, &version_by_lan, &mut told_by_session);
                    sessions.tell_quotas();
                }
                () = self.changed.notified() => {
                    let left = self.lock().take_left();
                    left.iter().for_each(|key| sessions.leave_line(key));
                }
            }
        }
    }

    /// Tells the keeper what the lines have lent since it was told last.
    pub(crate) fn note_lent(&self, sessions: &[SessionOverLines], keeper: &Keeper) {
        let mut lending = self.lending.lock().expect("nothing panics under the lock");
        let rosters = self.lock();
        keeper.lend(lending.look(sessions, |key, remote| rosters.is_of_line(key, remote)));
    }

    /// Notes what the paths say of the lines; gives what is fair for those of them that fill a line together.
    fn measure(&self, now: Instant, seconds: f64, sessions: &[SessionOverLines], seen_by_path: &mut HashMap<PathKey, Seen>) -> FairRates {
        let mut second_by_line: BTreeMap<(&LineKey, IpAddr), Second> = BTreeMap::new();
        let mut seen_now = HashMap::with_capacity(seen_by_path.len());
        let (mut filling_up, mut filling_down) = (Vec::new(), Vec::new());
        for (session, path) in sessions.iter().flat_map(|session| session.paths.iter().map(move |path| (session, path))) {
            let Some((line, remote)) = &path.line else { continue };
            let key = (session.incarnation, path.status.path);
            let mut seen = Seen::of(&path.status);
            let before = seen_by_path.get(&key).copied().unwrap_or(seen);
            let (up_bytes, down_bytes) = seen.bytes_since(&before);
            seen.note_fullness(&before);
            let second = second_by_line.entry((line, *remote)).or_default();
            second.up_bytes += up_bytes;
            second.down_bytes += down_bytes;
            second.is_full_up |= seen.is_full_up;
            second.is_full_down |= seen.is_full_down;
            let filling = |bytes: u64| Filling {
                line: (line, *remote),
                path: key,
                account: session.account,
                bytes_per_second: bytes as f64 / seconds.max(0.1),
            };
            // One that pauses for a moment is not forgotten at once.
            filling_up.extend((seen.is_full_up || before.is_full_up).then(|| filling(up_bytes)));
            filling_down.extend((seen.is_full_down || before.is_full_down).then(|| filling(down_bytes)));
            seen_now.insert(key, seen);
        }
        *seen_by_path = seen_now;
        self.note(now, seconds, second_by_line);
        FairRates { up: fair_rates(filling_up), down: fair_rates(filling_down) }
    }

    /// Notes the lines' second.
    fn note(&self, now: Instant, seconds: f64, second_by_line: BTreeMap<(&LineKey, IpAddr), Second>) {
        let mut rosters = self.lock();
        for ((key, remote), second) in second_by_line {
            if second.up_bytes > 0 {
                rosters.on_traffic(now, key);
            }
            let carried = |bytes: u64, is_full| Carried { bits_per_second: bytes as f64 * 8.0 / seconds.max(0.1), is_full };
            let (up, down) = (carried(second.up_bytes, second.is_full_up), carried(second.down_bytes, second.is_full_down));
            if rosters.on_carried(key, remote, up, down) && second.up_bytes + second.down_bytes > 0 {
                let bytes = Used { up: second.up_bytes, down: second.down_bytes };
                add(&mut self.lock_carried(), (key.0, key.1.clone()), bytes);
            }
        }
        rosters.handle_timeout(now);
    }

    /// Tells each session its LAN's roster if that is another than it was told last.
    fn tell(&self, sessions: &Sessions, version_by_lan: &BTreeMap<LanId, u64>, told_by_session: &mut HashMap<u64, u64>) {
        let mut told_now = HashMap::new();
        let mut lines_by_lan = BTreeMap::new();
        for (incarnation, lan) in sessions.incarnations() {
            let version = version_by_lan.get(&lan).copied().unwrap_or(0);
            told_now.insert(incarnation, version);
            if told_by_session.get(&incarnation).copied().unwrap_or(0) == version {
                continue;
            }
            let lines = lines_by_lan.entry(lan).or_insert_with(|| self.lock().lines(lan));
            sessions.tell_lines(incarnation, lan, lines);
        }
        *told_by_session = told_now;
    }
}

fn add(carried: &mut ledger::Carried, relay: (LanId, Name), bytes: Used) {
    let sum = carried.entry(relay).or_default();
    sum.up += bytes.up;
    sum.down += bytes.down;
}

impl Seen {
    fn of(status: &PathStatus) -> Self {
        Self {
            received_bytes: status.counters.received_bytes + status.counters.received_datagrams * OVERHEAD_BYTES,
            acked_bytes: status.counters.acked_bytes,
            full: status.rounds.full,
            free: status.rounds.free,
            told_full: status.counters.told_full,
            is_full_up: false,
            is_full_down: false,
        }
    }

    fn bytes_since(&self, before: &Self) -> (u64, u64) {
        (self.received_bytes.saturating_sub(before.received_bytes), self.acked_bytes.saturating_sub(before.acked_bytes))
    }

    /// Whether the line has held its sender back since `before`.
    fn note_fullness(&mut self, before: &Self) {
        let (full, free) = (self.full.saturating_sub(before.full), self.free.saturating_sub(before.free));
        self.is_full_down = full > 0 && full >= free;
        self.is_full_up = self.told_full > before.told_full;
    }
}

const SECOND: Duration = Duration::from_secs(1);
