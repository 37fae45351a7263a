//! The quota's keeper: one account for each user who has sessions, for all of them together, and one for each LAN of theirs.
//!
//! Enters: members whose sessions begin, bytes that their flows move ([`meter`]), the operator's changes. Leaves: refusals, and the counts, kept
//! in the accounts every [`KEPT_EVERY`] in one transaction. Always holds: bytes are counted before they move. While the store does not answer,
//! quotas go on from what is known. Where several servers share the store, a quota that refuses is spent by
//! [leases](crate::accounts::leases); rates and numbers of flows hold on each server.

mod keeping;
mod lending;
pub mod meter;
mod spending;
mod user;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use shared::{
    community::quota::{Account, Limits, Refused, UnixSeconds, Used, WallClock, Whose},
    target::{Refusal, RefusalKind},
    units::Rate,
};

use tokio::sync::Notify;

use self::{
    keeping::{Kept, Reporting},
    lending::Lending,
    spending::LanAccount,
    user::Totals,
};
pub use self::{
    spending::{LanAccountReport, OpenFlow, Spending},
    user::{AccountReport, UserAccount},
};
use crate::{
    accounts::{Accounts, AccountsError, Member, MemberId, Spender, changes::Change, lan_accounts::LanKey},
    nodes::Nodes,
};

/// The accounts of the users who are here; clones share them.
#[derive(Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

struct Shared {
    accounts: Accounts,
    users: Mutex<HashMap<MemberId, Arc<UserAccount>>>,
    /// By key, since a LAN's number may be another's a moment after it was removed.
    lans: Mutex<HashMap<LanKey, Arc<LanAccount>>>,
    /// The server's own line, if its rate is known: shared between all users.
    line: Option<Arc<Mutex<Account>>>,
    /// Held while an account is read or let go, so that it is never counted twice.
    loading: tokio::sync::Mutex<()>,
    clock: Mutex<WallClock>,
    time: Arc<AtomicI64>,
    /// Since when the store has not taken the counts.
    behind_since: Mutex<Option<Instant>>,
    totals: Arc<Totals>,
    lending: Lending,
    /// The servers that share the store, if there may be others.
    nodes: Option<Nodes>,
    /// Woken when an account's lease runs low.
    lease_low: Arc<Notify>,
}

/// The figures of all accounts together.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct KeeperFigures {
    /// Users who have sessions.
    pub users: usize,
    /// Those of them whose quota is used up.
    pub users_beyond_quota: usize,
    /// LANs of theirs whose quota is used up.
    pub lans_beyond_quota: usize,
    /// Payload towards content servers since the start, in bytes.
    pub up_bytes: u64,
    /// From content servers.
    pub down_bytes: u64,
    /// Flows refused since the start.
    pub refused_flows: u64,
}

impl Keeper {
    /// A keeper without accounts for a server alone; [`Keeper::run`] has to run. The rates are those of the server's own line, shared between all
    /// users; none if it is never what is short.
    pub fn new(accounts: Accounts, rate_up: Option<Rate>, rate_down: Option<Rate>) -> Self {
        Self::of_node(accounts, rate_up, rate_down, None)
    }

    /// As [`Keeper::new`], for a server that may share the store with others.
    pub(crate) fn of_node(accounts: Accounts, rate_up: Option<Rate>, rate_down: Option<Rate>, nodes: Option<Nodes>) -> Self {
        let mut clock = WallClock::new(Instant::now(), system_time());
        let time = Arc::new(AtomicI64::new(clock.read(Instant::now(), system_time()).0));
        let line = (rate_up.is_some() || rate_down.is_some()).then(|| {
            let (now, limits) = (UnixSeconds(time.load(Ordering::Relaxed)), Limits { rate_up, rate_down, ..Limits::default() });
            Arc::new(Mutex::new(Account::new(Whose::Lan, Instant::now(), now, limits, now, BTreeMap::new())))
        });
        let shared = Shared {
            accounts,
            users: Mutex::default(),
            lans: Mutex::default(),
            line,
            loading: tokio::sync::Mutex::default(),
            clock: Mutex::new(clock),
            time,
            behind_since: Mutex::default(),
            totals: Arc::default(),
            lending: Lending::default(),
            nodes,
            lease_low: Arc::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The accounts from which `member` spends.
    ///
    /// # Errors
    /// If one is not known yet and the store does not answer.
    pub async fn spending(&self, member: &Member) -> Result<Arc<Spending>, AccountsError> {
        let (user, lan) = (self.account(member).await?, self.lan_account(member).await?);
        Ok(Arc::new(Spending { user, lan, line: self.shared.line.clone(), member: member.account }))
    }

    async fn lan_account(&self, member: &Member) -> Result<Arc<LanAccount>, AccountsError> {
        let shared = &self.shared;
        let known = || shared.lock_lans().get(&member.lan_key).cloned();
        if let Some(account) = known() {
            return Ok(account);
        }
        let _loading = shared.loading.lock().await;
        if let Some(account) = known() {
            return Ok(account);
        }
        let as_kept = async || {
            let row = shared.accounts.lan_account(member.identity.lan).await?;
            if row.key == member.lan_key { Ok(row) } else { Err(AccountsError::NoLan(member.lan_name.clone())) }
        };
        let row = as_kept().await?;
        let spender = Spender::Lan(row.key);
        let (used, elsewhere) = self.used(spender).await?;
        let mut account = Account::new(Whose::Lan, Instant::now(), shared.time(), row.limits.clone(), row.since, used);
        if let Some(elsewhere) = elsewhere {
            account.share(elsewhere);
        }
        let account = Arc::new(LanAccount::new(row, account, shared.time.clone(), shared.reporting(spender)));
        shared.lock_lans().insert(member.lan_key, account.clone());
        // What was changed before it was there told nobody.
        account.set_limits(as_kept().await?.limits);
        Ok(account)
    }

    async fn account(&self, member: &Member) -> Result<Arc<UserAccount>, AccountsError> {
        let shared = &self.shared;
        let known = || shared.lock().get(&member.account).cloned();
        if let Some(user) = known() {
            return Ok(user);
        }
        let _loading = shared.loading.lock().await;
        if let Some(user) = known() {
            return Ok(user);
        }
        let spender = Spender::User(member.account);
        let (used, elsewhere) = self.used(spender).await?;
        let mut account = Account::new(Whose::User, Instant::now(), shared.time(), member.limits.clone(), member.since, used);
        if let Some(elsewhere) = elsewhere {
            account.share(elsewhere);
        }
        let user = Arc::new(UserAccount {
            identity: member.identity.clone(),
            account: Mutex::new(account),
            time: shared.time.clone(),
            totals: shared.totals.clone(),
            reporting: shared.reporting(spender),
        });
        shared.lock().insert(member.account, user.clone());
        // What was changed before it was there told nobody.
        if let Some(limits) = shared.accounts.limits_of(&[member.account]).await?.remove(&member.account) {
            user.set_limits(limits);
        }
        self.tell_lent(std::iter::once((member.account, user.clone()))).await?;
        Ok(user)
    }

    /// What is used of an account, and where several servers may share the store what all others have counted besides.
    async fn used(&self, spender: Spender) -> Result<(UsedByPeriod, Option<UsedByPeriod>), AccountsError> {
        let (accounts, nodes) = (&self.shared.accounts, &self.shared.nodes);
        match nodes {
            None => Ok((accounts.used(spender).await?, None)),
            Some(nodes) => {
                let (here, elsewhere) = accounts.used_here_and_elsewhere(nodes.registration(), spender).await?;
                Ok((here, Some(elsewhere)))
            }
        }
    }

    /// Keeps the counts and follows the operator's changes, for ever.
    pub async fn run(self) {
        let mut changes = self.shared.accounts.changes();
        // What has not been followed yet.
        let mut due = Change::default();
        let mut tick_count = 0_u64;
        let mut ticks = tokio::time::interval(KEPT_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    self.tick().await;
                    tick_count += 1;
                    self.settle_lent(tick_count.is_multiple_of(TICKS_UNTIL_ALL_ARE_TOLD)).await;
                    if !due.is_empty() && self.follow_limits(&due).await.is_ok() {
                        due = Change::default();
                    }
                }
                () = self.shared.lease_low.notified(), if self.shared.nodes.is_some() => {
                    self.keep_those(false).await;
                    // Flows that wait ask again and again.
                    tokio::time::sleep(LEASES_APART).await;
                }
                () = self.shared.lending.added.notified() => self.settle_lent(false).await,
                change = changes.next() => {
                    due.add(&change);
                    match self.follow_limits(&due).await {
                        Ok(()) => due = Change::default(),
                        Err(error) => tracing::warn!(%error, "limits can't be read: going on with those that are known, and trying again"),
                    }
                }
            }
        }
    }

    /// The time of day that quotas go by.
    pub fn time(&self) -> UnixSeconds {
        self.shared.time()
    }

    /// For how long the counts could not be kept, if they can't.
    pub fn behind(&self) -> Option<Duration> {
        self.shared.behind_since.lock().expect("nothing panics under the lock").map(|since| since.elapsed())
    }

    /// The figures of all users together.
    pub fn figures(&self) -> KeeperFigures {
        let users: Vec<_> = self.shared.lock().values().cloned().collect();
        let totals = &self.shared.totals;
        KeeperFigures {
            users: users.len(),
            users_beyond_quota: users.iter().filter(|user| user.lock().is_exhausted()).count(),
            lans_beyond_quota: self.lans().iter().filter(|lan| lan.is_exhausted()).count(),
            up_bytes: totals.up_bytes.load(Ordering::Relaxed),
            down_bytes: totals.down_bytes.load(Ordering::Relaxed),
            refused_flows: totals.refused_flows.load(Ordering::Relaxed),
        }
    }

    /// The figures of each user who is here.
    pub fn report(&self) -> Vec<AccountReport> {
        let users: Vec<_> = self.shared.lock().values().cloned().collect();
        let mut reports: Vec<_> = users.iter().map(|user| user.report()).collect();
        reports.sort_by(|a, b| a.user.cmp(&b.user));
        reports
    }

    /// The figures of each LAN whose users are here.
    pub fn lan_report(&self) -> Vec<LanAccountReport> {
        let mut reports: Vec<_> = self.lans().iter().map(|lan| lan.report()).collect();
        reports.sort_by(|a, b| a.lan.cmp(&b.lan));
        reports
    }

    fn lans(&self) -> Vec<Arc<LanAccount>> {
        self.shared.lock_lans().values().cloned().collect()
    }

    async fn tick(&self) {
        let shared = &self.shared;
        let time = shared.clock.lock().expect("nothing panics under the lock").read(Instant::now(), system_time());
        shared.time.store(time.0, Ordering::Relaxed);
        let users: Vec<_> = shared.lock().values().cloned().collect();
        for user in users {
            if user.lock().poll_warning() {
                tracing::warn!(user = %user.identity, "80 % of the quota are used");
            }
        }
        self.lans().iter().for_each(|lan| lan.warn_in_time());
        self.keep().await;
    }

    /// Reads the limits again of the accounts here that a change touches.
    async fn follow_limits(&self, change: &Change) -> Result<(), AccountsError> {
        let shared = &self.shared;
        let is_touched = |account: &dyn Kept| change.touches_limits(account.reporting().spender);
        let lans: Vec<Arc<LanAccount>> = self.lans().into_iter().filter(|lan| is_touched(&**lan)).collect();
        if !lans.is_empty() {
            let keys: Vec<LanKey> = lans.iter().map(|lan| lan.key).collect();
            let mut limits_by_lan = shared.accounts.lan_limits_of(&keys).await?;
            lans.iter().for_each(|lan| lan.set_limits(limits_by_lan.remove(&lan.key).unwrap_or_default()));
        }
        let users: Vec<(MemberId, Arc<UserAccount>)> =
            shared.lock().iter().filter(|(_, user)| is_touched(&***user)).map(|(id, user)| (*id, user.clone())).collect();
        if !users.is_empty() {
            let ids: Vec<MemberId> = users.iter().map(|(id, _)| *id).collect();
            let mut limits_by_user = shared.accounts.limits_of(&ids).await?;
            users.iter().for_each(|(id, user)| user.set_limits(limits_by_user.remove(id).unwrap_or_default()));
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<MemberId, Arc<UserAccount>>> {
        self.users.lock().expect("nothing panics under the lock")
    }

    fn lock_lans(&self) -> MutexGuard<'_, HashMap<LanKey, Arc<LanAccount>>> {
        self.lans.lock().expect("nothing panics under the lock")
    }

    fn time(&self) -> UnixSeconds {
        UnixSeconds(self.time.load(Ordering::Relaxed))
    }

    fn reporting(&self, spender: Spender) -> Reporting {
        Reporting::new(spender, self.lease_low.clone())
    }
}

type UsedByPeriod = BTreeMap<UnixSeconds, Used>;

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

/// What an application is told.
pub fn refusal(refused: &Refused) -> Refusal {
    Refusal::new(RefusalKind::OverQuota, refused.to_string())
}

/// Since 1970; a clock before that is as wrong as one that says 1970.
fn system_time() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// A crash loses what was counted since: less than a second with the time that writing takes.
pub const KEPT_EVERY: Duration = Duration::from_millis(500);

/// 10 s: what is lent on another server hardly matters to who has much left.
const TICKS_UNTIL_ALL_ARE_TOLD: u64 = 20;

/// Between two times that leases are asked for: some hundred times the transaction's time would be the store's whole time otherwise.
const LEASES_APART: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
