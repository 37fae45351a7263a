//! The lines' driver: what the sessions' paths say of the lines they run over, and what the sessions are told of them.
//!
//! Once a second: which lines carried traffic, how much, and whether they held a sender back, goes into the [`Rosters`]; a LAN's roster
//! that has changed goes to its sessions, and the lines' weights with it; what the lines have lent goes to the quota's keeper. At once: a line that
//! leaves is left by its paths.

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
        let mut measured_at = Instant::now();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let now = Instant::now();
                    let seconds = now.saturating_duration_since(measured_at).as_secs_f64();
                    measured_at = now;
                    let over_lines = sessions.over_lines();
                    self.measure(now, seconds, &over_lines, &mut seen_by_path);
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

    fn measure(&self, now: Instant, seconds: f64, sessions: &[SessionOverLines], seen_by_path: &mut HashMap<(u64, u32), Seen>) {
        let mut second_by_line: BTreeMap<(&LineKey, IpAddr), Second> = BTreeMap::new();
        let mut seen_now = HashMap::with_capacity(seen_by_path.len());
        for (incarnation, path) in sessions.iter().flat_map(|session| session.paths.iter().map(|path| (session.incarnation, path))) {
            let Some((line, remote)) = &path.line else { continue };
            let id = (incarnation, path.status.path.0);
            let now_seen = Seen::of(&path.status);
            let before = seen_by_path.get(&id).copied().unwrap_or(now_seen);
            let second = second_by_line.entry((line, *remote)).or_default();
            second.up_bytes += now_seen.received_bytes.saturating_sub(before.received_bytes);
            second.down_bytes += now_seen.acked_bytes.saturating_sub(before.acked_bytes);
            let (full, free) = (now_seen.full - before.full, now_seen.free - before.free);
            second.is_full_down |= full > 0 && full >= free;
            second.is_full_up |= now_seen.told_full > before.told_full;
            seen_now.insert(id, now_seen);
        }
        *seen_by_path = seen_now;
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
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
