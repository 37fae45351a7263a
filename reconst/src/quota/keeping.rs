//! The counts on their way into the store, and leases on their way back: of users and LANs alike.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use shared::{
    community::quota::{Account, AtLimit, Used, Way},
    link::session::SessionHandle,
};
use tokio::sync::Notify;

use super::Keeper;
use crate::accounts::{
    AccountsError, Count, Spender,
    leases::{Asks, UsageReport},
};

/// An account whose counts are kept in the store.
pub(super) trait Kept: Send + Sync {
    /// What the store is told of it.
    fn reporting(&self) -> &Reporting;

    /// Looks at the account, or changes it.
    fn with(&self, look: &mut dyn FnMut(&mut Account));
}

/// What the store is told of an account, and asked for.
pub(super) struct Reporting {
    pub(super) spender: Spender,
    lease_low: Arc<Notify>,
    /// How often in a row it had nothing to report.
    idle_ticks: AtomicU32,
    /// Whose flows are spent from it.
    sessions: Mutex<Vec<SessionHandle>>,
    /// Bytes granted that have not moved, up and down.
    waiting_up: AtomicU64,
    waiting_down: AtomicU64,
}

impl Reporting {
    /// Of an account that may need a lease at once.
    pub(super) fn new(spender: Spender, lease_low: Arc<Notify>) -> Self {
        lease_low.notify_one();
        Self {
            spender,
            lease_low,
            idle_ticks: AtomicU32::new(0),
            sessions: Mutex::default(),
            waiting_up: AtomicU64::new(0),
            waiting_down: AtomicU64::new(0),
        }
    }

    /// Has a session's flows spend from it.
    pub(super) fn add_session(&self, session: &SessionHandle) {
        self.sessions.lock().expect("nothing panics under the lock").push(session.clone());
    }

    /// Notes bytes that were granted.
    pub(super) fn on_granted(&self, way: Way, bytes: u64) {
        self.waiting(way).fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that of those so many have moved, or were given back.
    pub(super) fn on_settled(&self, way: Way, bytes: u64) {
        self.waiting(way).fetch_sub(bytes, Ordering::Relaxed);
    }

    fn waiting(&self, way: Way) -> &AtomicU64 {
        match way {
            Way::Up => &self.waiting_up,
            Way::Down => &self.waiting_down,
        }
    }

    /// What was granted and is not delivered: a crash loses it. What is on its way to a content server is the kernel's already.
    fn undelivered(&self) -> Used {
        let mut sessions = self.sessions.lock().expect("nothing panics under the lock");
        sessions.retain(|session| !session.is_closed());
        let in_sessions: u64 = sessions.iter().map(SessionHandle::undelivered_bytes).sum();
        let waiting = |way| self.waiting(way).load(Ordering::Relaxed);
        Used { up: waiting(Way::Up), down: waiting(Way::Down) + in_sessions }
    }

    /// Asks for a lease if it runs low.
    pub(super) fn ask_if_low(&self, account: &Account) {
        if account.is_lease_low() {
            self.lease_low.notify_one();
        }
    }

    /// What is to be reported to the store, if anything: always what has changed, and whether a lease is wanted.
    fn usage_report(&self, account: &mut Account, is_tick: bool) -> Option<UsageReport> {
        let counts = account.poll_changes();
        if !counts.is_empty() {
            self.idle_ticks.store(0, Ordering::Relaxed);
        } else if is_tick {
            self.idle_ticks.fetch_add(1, Ordering::Relaxed);
        }
        let is_idle = self.idle_ticks.load(Ordering::Relaxed) > IDLE_TICKS;
        let quota = account.limits().quota.clone();
        // Who is idle has given up the lease once and asks for one when something moves.
        let is_silent = counts.is_empty() && is_tick && (!is_idle || account.leased() == 0);
        if is_silent {
            return None;
        }
        let asks = quota.map(|quota| Asks {
            period: account.span().start,
            counted: account.counted_here(),
            undelivered: account.counted_here().less(account.delivered_here()),
            wants_lease: !(is_idle && is_tick) && quota.at_limit == AtLimit::Refuse,
            quota,
        });
        Some(UsageReport { spender: self.spender, counts, asks })
    }
}

impl Keeper {
    /// Keeps the counts that have changed and lets go of the accounts of users who have left.
    pub async fn keep(&self) {
        self.keep_those(true).await;
        let _loading = self.shared.loading.lock().await;
        self.shared.lock().retain(|_, user| is_in_use(user));
        self.shared.lock_lans().retain(|_, lan| is_in_use(lan));
    }

    /// Keeps the counts of all accounts, or only of those whose leases run low, and takes leases for them.
    pub(super) async fn keep_those(&self, is_of_all: bool) {
        let shared = &self.shared;
        let kept_by_spender: HashMap<Spender, Arc<dyn Kept>> =
            self.kept().into_iter().map(|account| (account.reporting().spender, account)).collect();
        let report = |account: &Arc<dyn Kept>| {
            let mut is_due = is_of_all;
            account.with(&mut |counts| is_due |= counts.is_lease_low());
            if !is_due {
                return None;
            }
            let (undelivered, mut report) = (account.reporting().undelivered(), None);
            account.with(&mut |counts| {
                counts.set_undelivered(undelivered);
                report = account.reporting().usage_report(counts, is_of_all);
            });
            report
        };
        let reports: Vec<UsageReport> = kept_by_spender.values().filter_map(report).collect();
        if reports.is_empty() {
            return;
        }
        let kept = match &shared.nodes {
            None => {
                let counts = reports.iter().flat_map(|report| report.counts.iter().map(|(period, used)| (report.spender, *period, *used)));
                let counts: Vec<Count> = counts.collect();
                shared.accounts.keep_used(&counts).await.map(|()| HashMap::new())
            }
            Some(nodes) => {
                let reporting = shared.accounts.report_usage(nodes.registration(), &reports, nodes.is_alone());
                tokio::time::timeout(REPORT_TIME, reporting).await.unwrap_or(Err(AccountsError::Database(sqlx::Error::PoolTimedOut)))
            }
        };
        match &kept {
            Ok(leases) => {
                leases
                    .iter()
                    .for_each(|(spender, lease)| kept_by_spender[spender].with(&mut |counts| counts.set_lease(Instant::now(), *lease)));
            }
            Err(_) => {
                for UsageReport { spender, counts, .. } in &reports {
                    kept_by_spender[spender].with(&mut |account| account.on_not_kept(counts.iter().map(|(period, _)| *period)));
                }
            }
        }
        self.note_whether_kept(kept.map(drop));
    }

    fn kept(&self) -> Vec<Arc<dyn Kept>> {
        let users = self.shared.lock().values().map(|user| user.clone() as Arc<dyn Kept>).collect::<Vec<_>>();
        let lans = self.shared.lock_lans().values().map(|lan| lan.clone() as Arc<dyn Kept>).collect::<Vec<_>>();
        users.into_iter().chain(lans).collect()
    }

    fn note_whether_kept(&self, kept: Result<(), AccountsError>) {
        let mut behind_since = self.shared.behind_since.lock().expect("nothing panics under the lock");
        match kept {
            Ok(()) if behind_since.take().is_some() => tracing::info!("the member database answers again: all counts are kept"),
            Ok(()) => {}
            Err(error) if behind_since.is_none() => {
                tracing::error!(%error, "counts can't be kept: quotas go on from what is known, and what a crash loses grows");
                *behind_since = Some(Instant::now());
            }
            Err(_) => {}
        }
    }
}

/// Whether somebody spends from an account, or the store does not know all of it.
fn is_in_use<A: Kept>(account: &Arc<A>) -> bool {
    let mut has_to_be_told = false;
    account.with(&mut |counts| has_to_be_told = counts.has_changes() || counts.leased() > 0);
    has_to_be_told || Arc::strong_count(account) > 1
}

/// A store that takes longer does not answer.
pub(super) const REPORT_TIME: Duration = Duration::from_secs(5);

/// Two seconds: who pauses for longer gives up the lease, so that others may have it.
const IDLE_TICKS: u32 = 4;
