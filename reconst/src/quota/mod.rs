//! The quota's keeper: one account for each user who has sessions, for all of them together, and one for each LAN of theirs.
//!
//! Enters: members whose sessions begin, bytes that their flows move ([`meter`]), the operator's changes. Leaves: refusals, and the counts, kept
//! in the accounts every [`KEPT_EVERY`] in one transaction. Always holds: bytes are counted before they move. While the store does not answer,
//! quotas go on from what is known. Where several servers share the store, a quota that refuses is spent by
//! [leases](crate::accounts::leases); rates and numbers of flows hold on each server.

pub mod meter;
mod spending;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;
use shared::{
    community::{
        member::Identity,
        quota::{Account, AtLimit, Grant, Limits, Refused, SharedAccount, Sharer, UnixSeconds, WallClock, Way},
    },
    ids::LanId,
    target::{Refusal, RefusalKind},
    units::Rate,
};

use tokio::sync::Notify;

use self::spending::LanAccount;
pub use self::spending::{LanAccountReport, OpenFlow, Spending};
use crate::{
    accounts::{
        Accounts, AccountsError, Count, Member, MemberId,
        lan_accounts::LanCount,
        leases::{Asks, UsageReport},
    },
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
    lans: Mutex<HashMap<LanId, Arc<LanAccount>>>,
    /// The server's own line, if its rate is known: shared between all users.
    line: Option<Arc<Mutex<SharedAccount>>>,
    /// Held while an account is read or let go, so that it is never counted twice.
    loading: tokio::sync::Mutex<()>,
    clock: Mutex<WallClock>,
    time: Arc<AtomicI64>,
    /// Since when the store has not taken the counts.
    behind_since: Mutex<Option<Instant>>,
    totals: Arc<Totals>,
    /// The servers that share the store, if there may be others.
    nodes: Option<Nodes>,
    /// Woken when an account's lease runs low.
    lease_low: Arc<Notify>,
}

/// What has moved since the start, of all users.
#[derive(Default)]
struct Totals {
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
    refused_flows: AtomicU64,
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

/// A user's account and who it is.
pub struct UserAccount {
    identity: Identity,
    account: Mutex<Account>,
    time: Arc<AtomicI64>,
    totals: Arc<Totals>,
    lease_low: Arc<Notify>,
    /// How often in a row it had nothing to report.
    idle_ticks: AtomicU32,
}

/// A user's figures.
#[derive(Clone, Debug, Serialize)]
pub struct AccountReport {
    /// The user.
    pub user: String,
    /// Flows open now.
    pub flows: u32,
    /// Bytes that the user's applications sent in this period.
    pub up_bytes: u64,
    /// Bytes that they got.
    pub down_bytes: u64,
    /// Bytes that the user may move, if there is a limit.
    pub quota_bytes: Option<u64>,
    /// Flows that the user may have open, if there is a limit.
    pub max_flows: Option<u32>,
    /// When the count begins anew, seconds since 1970.
    pub resets_at: i64,
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
            Arc::new(Mutex::new(SharedAccount::new(Instant::now(), now, limits, now, BTreeMap::new())))
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
        let (user, lan) = (self.account(member).await?, self.lan_account(member.identity.lan).await?);
        Ok(Arc::new(Spending { user, lan, line: self.shared.line.clone(), sharer: Sharer(member.account.0) }))
    }

    async fn lan_account(&self, lan: LanId) -> Result<Arc<LanAccount>, AccountsError> {
        let shared = &self.shared;
        let known = || shared.lock_lans().get(&lan).cloned();
        if let Some(account) = known() {
            return Ok(account);
        }
        let _loading = shared.loading.lock().await;
        if let Some(account) = known() {
            return Ok(account);
        }
        let account = Arc::new(LanAccount::new(shared.accounts.lan_account(lan).await?, shared.time.clone()));
        shared.lock_lans().insert(lan, account.clone());
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
        let account = |used| Account::new(Instant::now(), shared.time(), member.limits.clone(), member.since, used);
        let account = match &shared.nodes {
            None => account(shared.accounts.used(member.account).await?),
            Some(nodes) => {
                let (here, elsewhere) = shared.accounts.used_here_and_elsewhere(nodes.registration(), member.account).await?;
                let mut account = account(here);
                account.share(elsewhere);
                account
            }
        };
        let user = Arc::new(UserAccount {
            identity: member.identity.clone(),
            account: Mutex::new(account),
            time: shared.time.clone(),
            totals: shared.totals.clone(),
            lease_low: shared.lease_low.clone(),
            idle_ticks: AtomicU32::new(0),
        });
        user.lease_low.notify_one();
        shared.lock().insert(member.account, user.clone());
        Ok(user)
    }

    /// Keeps the counts and follows the operator's changes, for ever.
    pub async fn run(self) {
        let mut changes = self.shared.accounts.changes();
        let mut ticks = tokio::time::interval(KEPT_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.tick().await,
                () = self.shared.lease_low.notified(), if self.shared.nodes.is_some() => {
                    self.keep_shared(false).await;
                    // Flows that wait ask again and again.
                    tokio::time::sleep(LEASES_APART).await;
                }
                changed = changes.changed() => match changed {
                    Ok(()) => self.follow_limits().await,
                    Err(_) => std::future::pending().await,
                },
            }
        }
    }

    /// Keeps the counts that have changed and lets go of the accounts of users who have left.
    pub async fn keep(&self) {
        if self.shared.nodes.is_some() {
            self.keep_shared(true).await;
            self.keep_lans().await;
            self.let_lans_go().await;
            return;
        }
        let shared = &self.shared;
        let users: Vec<(MemberId, Arc<UserAccount>)> = shared.lock().iter().map(|(id, user)| (*id, user.clone())).collect();
        let mut counts: Vec<Count> = Vec::new();
        for (id, user) in &users {
            counts.extend(user.lock().poll_changes().into_iter().map(|(period, used)| (*id, period, used)));
        }
        if !counts.is_empty() {
            let kept = shared.accounts.keep_used(&counts).await;
            if kept.is_err() {
                let user_by_id: HashMap<_, _> = users.iter().map(|(id, user)| (*id, user)).collect();
                counts.iter().for_each(|(id, period, _)| user_by_id[id].lock().on_not_kept([*period]));
            }
            self.note_whether_kept(kept);
        }
        drop(users);
        self.keep_lans().await;
        self.let_lans_go().await;
        let _loading = shared.loading.lock().await;
        shared.lock().retain(|_, user| Arc::strong_count(user) > 1 || user.lock().has_changes());
    }

    async fn let_lans_go(&self) {
        let _loading = self.shared.loading.lock().await;
        self.shared.lock_lans().retain(|_, lan| Arc::strong_count(lan) > 1 || lan.has_changes());
    }

    async fn keep_lans(&self) {
        let lans: Vec<Arc<LanAccount>> = self.shared.lock_lans().values().cloned().collect();
        let changes: Vec<_> = lans.iter().flat_map(|lan| lan.poll_changes().into_iter().map(move |change| (lan, change))).collect();
        if changes.is_empty() {
            return;
        }
        let counts: Vec<LanCount> = changes.iter().map(|(_, (count, _))| *count).collect();
        let kept = self.shared.accounts.add_lan_used(&counts).await;
        for (lan, (count, used)) in &changes {
            match &kept {
                Ok(()) => lan.on_kept(count.period, *used),
                Err(_) => lan.on_not_kept(count.period),
            }
        }
        self.note_whether_kept(kept);
    }

    /// As [`Keeper::keep`] where several servers share the store: of all accounts, or only those whose leases run low.
    async fn keep_shared(&self, is_of_all: bool) {
        let shared = &self.shared;
        let Some(nodes) = &shared.nodes else { return };
        let users: Vec<(MemberId, Arc<UserAccount>)> = shared.lock().iter().map(|(id, user)| (*id, user.clone())).collect();
        let reports: Vec<UsageReport> = users.iter().filter_map(|(id, user)| user.usage_report(*id, is_of_all)).collect();
        if !reports.is_empty() {
            let user_by_id: HashMap<_, _> = users.iter().map(|(id, user)| (*id, user)).collect();
            let kept =
                match tokio::time::timeout(REPORT_TIME, shared.accounts.report_usage(nodes.registration(), &reports, nodes.is_alone()))
                    .await
                {
                    Ok(kept) => kept,
                    Err(_) => Err(AccountsError::Database(sqlx::Error::PoolTimedOut)),
                };
            match &kept {
                Ok(leases) => leases.iter().for_each(|(id, lease)| user_by_id[id].lock().set_lease(Instant::now(), *lease)),
                Err(_) => {
                    for report in &reports {
                        user_by_id[&report.user].lock().on_not_kept(report.counts.iter().map(|(period, _)| *period));
                    }
                }
            }
            self.note_whether_kept(kept.map(drop));
        }
        drop(users);
        if is_of_all {
            let _loading = shared.loading.lock().await;
            let is_in_use = |user: &Arc<UserAccount>| Arc::strong_count(user) > 1 || user.lock().has_changes() || user.lock().leased() > 0;
            shared.lock().retain(|_, user| is_in_use(user));
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

    async fn follow_limits(&self) {
        let shared = &self.shared;
        let users: Vec<(MemberId, Arc<UserAccount>)> = shared.lock().iter().map(|(id, user)| (*id, user.clone())).collect();
        if users.is_empty() {
            return;
        }
        self.follow_lan_limits().await;
        let ids: Vec<MemberId> = users.iter().map(|(id, _)| *id).collect();
        let limits_by_user = match shared.accounts.limits_of(&ids).await {
            Ok(limits) => limits,
            Err(error) => {
                tracing::warn!(%error, "limits can't be read: going on with those that are known");
                return;
            }
        };
        for (id, user) in users {
            let limits = limits_by_user.get(&id).cloned().unwrap_or_default();
            user.set_limits(limits);
        }
    }

    async fn follow_lan_limits(&self) {
        match self.shared.accounts.all_lan_limits().await {
            Ok(limits) => self.lans().iter().for_each(|lan| lan.set_limits(limits.get(&lan.key).cloned().unwrap_or_default())),
            Err(error) => tracing::warn!(%error, "LANs' limits can't be read: going on with those that are known"),
        }
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

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<MemberId, Arc<UserAccount>>> {
        self.users.lock().expect("nothing panics under the lock")
    }

    fn lock_lans(&self) -> MutexGuard<'_, HashMap<LanId, Arc<LanAccount>>> {
        self.lans.lock().expect("nothing panics under the lock")
    }

    fn time(&self) -> UnixSeconds {
        UnixSeconds(self.time.load(Ordering::Relaxed))
    }
}

impl UserAccount {
    /// What is to be reported to the store, if anything: always what has changed, and whether a lease is wanted.
    fn usage_report(&self, id: MemberId, is_tick: bool) -> Option<UsageReport> {
        let mut account = self.lock();
        if !is_tick && !account.is_lease_low() {
            return None;
        }
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
            wants_lease: !(is_idle && is_tick) && quota.at_limit == AtLimit::Refuse,
            quota,
        });
        Some(UsageReport { user: id, counts, asks })
    }

    /// Takes a grant; asks for a lease if it runs low.
    fn take(&self, take: impl FnOnce(&mut Account) -> Result<Grant, Refused>) -> Result<Grant, Refused> {
        let mut account = self.lock();
        let taken = take(&mut account);
        if account.is_lease_low() {
            self.lease_low.notify_one();
        }
        taken
    }

    /// Notes bytes that have moved.
    fn on_moved(&self, way: Way, bytes: usize) {
        let total = match way {
            Way::Up => &self.totals.up_bytes,
            Way::Down => &self.totals.down_bytes,
        };
        total.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn set_limits(&self, limits: Limits) {
        let mut account = self.lock();
        if *account.limits() != limits {
            tracing::info!(user = %self.identity, "limits changed");
            account.set_limits(Instant::now(), self.time(), limits);
        }
    }

    fn report(&self) -> AccountReport {
        let account = self.lock();
        let used = account.used();
        AccountReport {
            user: self.identity.to_string(),
            flows: account.flows(),
            up_bytes: used.up,
            down_bytes: used.down,
            quota_bytes: account.limits().quota.as_ref().map(|quota| quota.size.bytes),
            max_flows: account.limits().max_flows,
            resets_at: account.span().end.0,
        }
    }

    fn time(&self) -> UnixSeconds {
        UnixSeconds(self.time.load(Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().expect("nothing panics under the lock")
    }
}

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

/// Between two times that leases are asked for: some hundred times the transaction's time would be the store's whole time otherwise.
const LEASES_APART: Duration = Duration::from_millis(20);

/// A store that takes longer does not answer.
const REPORT_TIME: Duration = Duration::from_secs(5);

/// Two seconds: who pauses for longer gives up the lease, so that others may have it.
const IDLE_TICKS: u32 = 4;

#[cfg(test)]
mod tests {
    use shared::{
        community::{member::Role, quota::Quota},
        units::Size,
    };

    use super::*;
    use crate::{accounts::testing, provision::Registrar};

    #[tokio::test]
    async fn a_quota_holds_while_the_store_does_not_answer() {
        let (registrar, _scratch) = testing::registrar().await;
        let member = user_with_quota(&registrar, 1000).await;
        let keeper = Keeper::new(registrar.accounts().clone(), None, None);
        let account = keeper.account(&member).await.expect("an account");
        assert_eq!(take(&account, 600), Some(600));
        registrar.accounts().close().await;
        keeper.keep().await;
        assert!(keeper.behind().is_some());
        assert_eq!((take(&account, 600), take(&account, 600)), (Some(400), None));
        assert!(keeper.account(&member).await.is_ok(), "another PC of the same user");
    }

    #[tokio::test]
    async fn what_was_kept_outlives_the_keeper() {
        let (registrar, _scratch) = testing::registrar().await;
        let member = user_with_quota(&registrar, 1000).await;
        let keeper = Keeper::new(registrar.accounts().clone(), None, None);
        let account = keeper.account(&member).await.expect("an account");
        take(&account, 600);
        keeper.keep().await;
        take(&account, 100);
        keeper.keep().await;
        let account = Keeper::new(registrar.accounts().clone(), None, None).account(&member).await.expect("an account");
        assert_eq!((take(&account, 600), take(&account, 600)), (Some(300), None));
    }

    #[tokio::test]
    async fn what_a_lan_may_spend_counts_for_all_its_users() {
        let (registrar, _scratch) = testing::registrar().await;
        let limits = Limits { quota: Some(Quota::of(Size { bytes: 1000 })), max_flows: Some(2), ..Limits::default() };
        registrar.accounts().set_lan_limits(&name("elm"), &limits).await.expect("a LAN");
        let (ann, bob) = (user_with_quota(&registrar, 5000).await, user(&registrar, "bob", &Limits::default()).await);
        let keeper = Keeper::new(registrar.accounts().clone(), None, None);
        let (ann, bob) = (keeper.spending(&ann).await.expect("an account"), keeper.spending(&bob).await.expect("an account"));
        let moved = |spending: &Arc<Spending>, bytes| spending.take(Way::Down, bytes).ok().map(|granted| granted.bytes);
        assert_eq!((moved(&ann, 700), moved(&bob, 700), moved(&ann, 1)), (Some(700), Some(300), None));
        let refused = bob.open_flow().err().expect("used up").to_string();
        assert!(refused.contains("your LAN may use"), "{refused}");
        assert_eq!(ann.user.lock().used().down, 700, "what the LAN refuses is not the user's");
        keeper.keep().await;
        let report = registrar.accounts().lan_report(&name("elm"), keeper.time()).await.expect("a LAN");
        assert_eq!((report.down_bytes, report.used_percent), (1000, Some(100)));

        let again = Keeper::new(registrar.accounts().clone(), None, None);
        let limits = Limits { quota: Some(Quota::of(Size { bytes: 1600 })), ..limits };
        registrar.accounts().set_lan_limits(&name("elm"), &limits).await.expect("a LAN");
        let ann = again.spending(&user(&registrar, "cid", &Limits::default()).await).await.expect("an account");
        let _flows = (ann.open_flow().expect("the first"), ann.open_flow().expect("the second"));
        assert!(ann.open_flow().err().expect("too many").to_string().contains("as many as your LAN may have"));
        assert_eq!(ann.user.lock().flows(), 2, "what the LAN refuses is not the user's");
        assert_eq!(moved(&ann, 2000), Some(600), "what was kept outlives the keeper");
    }

    #[tokio::test]
    async fn an_account_is_one_as_long_as_anybody_spends_from_it() {
        let (registrar, _scratch) = testing::registrar().await;
        let member = user_with_quota(&registrar, 1000).await;
        let keeper = Keeper::new(registrar.accounts().clone(), None, None);
        let account = keeper.account(&member).await.expect("an account");
        keeper.keep().await;
        assert!(Arc::ptr_eq(&account, &keeper.account(&member).await.expect("an account")));
        drop(account);
        keeper.keep().await;
        assert!(keeper.report().is_empty());
    }

    #[tokio::test]
    async fn a_member_is_one_still_while_the_store_does_not_answer() {
        let (registrar, _scratch) = testing::registrar().await;
        let (elm, ann, bob) = (name("elm"), name("ann"), name("bob"));
        let certificate = |profile: shared::community::profile::Profile| {
            shared::link::tls::certificate("certificate", &profile.certificate_pem).expect("PEM")
        };
        let limits = Limits::default();
        let ann = certificate(registrar.add_user(&elm, &ann, &limits).await.expect("a user"));
        let bob = certificate(registrar.add_user(&elm, &bob, &limits).await.expect("a user"));
        let accounts = registrar.accounts();
        let known = accounts.authorise(&ann, Role::User).await.expect("a member");
        accounts.close().await;
        assert_eq!(accounts.authorise(&ann, Role::User).await.expect("known from before"), known);
        assert!(accounts.authorise(&ann, Role::Relay).await.is_err(), "in another role");
        assert!(accounts.authorise(&bob, Role::User).await.is_err(), "never seen");
    }

    async fn user_with_quota(registrar: &Registrar, bytes: u64) -> Member {
        user(registrar, "ann", &Limits { quota: Some(Quota::of(Size { bytes })), ..Limits::default() }).await
    }

    async fn user(registrar: &Registrar, user: &str, limits: &Limits) -> Member {
        let profile = registrar.add_user(&name("elm"), &name(user), limits).await.expect("a user");
        let certificate = shared::link::tls::certificate("certificate", &profile.certificate_pem).expect("PEM");
        registrar.accounts().authorise(&certificate, Role::User).await.expect("a member")
    }

    fn take(account: &UserAccount, bytes: u64) -> Option<u64> {
        account.lock().take(Instant::now(), account.time(), Way::Down, bytes).ok().map(|grant| grant.bytes)
    }

    fn name(text: &str) -> shared::community::member::Name {
        text.parse().expect("a name")
    }
}
