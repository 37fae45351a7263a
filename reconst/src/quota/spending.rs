//! What a flow is spent from: its user's account, its LAN's, and the server's own line.
//!
//! Always holds: a byte is granted by all of them or by none.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use shared::{
    community::{
        member::Name,
        quota::{Account, Grant, Limits, Refused, Sharer, UnixSeconds, Way, told::ToldQuota},
    },
    link::session::SessionHandle,
    target::Refusal,
};

use super::{
    UserAccount,
    keeping::{Kept, Reporting},
    refusal,
};
use crate::accounts::{
    MemberId,
    lan_accounts::{LanAccountRow, LanKey},
};

/// The accounts that a user's flows in one LAN are spent from.
pub struct Spending {
    pub(super) user: Arc<UserAccount>,
    pub(super) lan: Arc<LanAccount>,
    /// The server's own line, if it has a rate.
    pub(super) line: Option<Arc<Mutex<Account>>>,
    /// Whose share of those two is spent.
    pub(super) member: MemberId,
}

/// What all users of a LAN spend from.
pub(super) struct LanAccount {
    pub(super) key: LanKey,
    name: Name,
    account: Mutex<Account>,
    time: Arc<AtomicI64>,
    reporting: Reporting,
}

/// Leave of all accounts to move bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    /// How many.
    pub(super) bytes: u64,
    user: Grant,
    lan: Grant,
    line: Option<Grant>,
}

/// A flow that is counted among its user's and its LAN's, until dropped.
pub struct OpenFlow {
    spending: Arc<Spending>,
}

/// A LAN's figures.
#[derive(Clone, Debug, Serialize)]
pub struct LanAccountReport {
    /// The LAN's name.
    pub lan: String,
    /// Flows open now.
    pub flows: u32,
    /// Bytes that its users' applications sent in this period.
    pub up_bytes: u64,
    /// Bytes that they got.
    pub down_bytes: u64,
    /// Bytes that they may move together, if there is a limit.
    pub quota_bytes: Option<u64>,
    /// When the count begins anew, seconds since 1970.
    pub resets_at: i64,
}

impl Spending {
    /// Has a session's flows be spent from here: what of them is under way is not kept as used.
    pub fn add_session(&self, session: &SessionHandle) {
        self.reportings().for_each(|reporting| reporting.add_session(session));
    }

    fn reportings(&self) -> impl Iterator<Item = &Reporting> {
        [&self.user.reporting, &self.lan.reporting].into_iter()
    }

    /// The user's account.
    pub fn user(&self) -> MemberId {
        self.member
    }

    /// The name of the LAN.
    pub fn lan_name(&self) -> &Name {
        &self.lan.name
    }

    /// Whether both are spent from the same accounts.
    pub fn is_of_the_accounts_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.user, &other.user) && Arc::ptr_eq(&self.lan, &other.lan)
    }

    /// Counts a flow in, until it is dropped.
    ///
    /// # Errors
    /// The refusal that the application gets, if a quota is used up or too many flows are open.
    pub fn open_flow(self: &Arc<Self>) -> Result<OpenFlow, Refusal> {
        self.count_flow().map_err(|refused| {
            self.user.totals.refused_flows.fetch_add(1, Ordering::Relaxed);
            refusal(&refused)
        })?;
        Ok(OpenFlow { spending: self.clone() })
    }

    fn count_flow(&self) -> Result<(), Refused> {
        let time = self.user.time();
        self.user.lock().open_flow(time)?;
        let opened = self.lan.lock().open_flow(time);
        opened.inspect_err(|_| self.user.lock().close_flow())
    }

    /// How one more flow is known to the accounts.
    pub(super) fn next_sharer(&self) -> Sharer {
        Sharer { user: self.member.0, flow: FLOWS.fetch_add(1, Ordering::Relaxed) }
    }

    /// Leave for a flow to move up to `bytes`, at least 1.
    pub(super) fn take(&self, way: Way, sharer: Sharer, bytes: u64) -> Result<Granted, Refused> {
        let bytes = bytes.min(self.turn_bytes(way));
        let take = |account: &mut Account, now, time, bytes| account.take(now, time, way, sharer, bytes);
        self.take_by(way, sharer, bytes, take)
    }

    /// Leave for a flow to move exactly `bytes`, in one piece.
    pub(super) fn take_whole(&self, way: Way, sharer: Sharer, bytes: u64) -> Result<Granted, Refused> {
        let take = |account: &mut Account, now, time, bytes| account.take_whole(now, time, way, sharer, bytes);
        self.take_by(way, sharer, bytes, take)
    }

    fn take_by(
        &self,
        way: Way,
        sharer: Sharer,
        bytes: u64,
        take: impl Fn(&mut Account, Instant, UnixSeconds, u64) -> Result<Grant, Refused>,
    ) -> Result<Granted, Refused> {
        let (now, time) = (Instant::now(), self.user.time());
        let user = self.user.take(|account| take(account, now, time, bytes))?;
        let lan = self.lan.take(|account| take(account, now, time, user.bytes));
        let lan = lan.inspect_err(|_| give_up(&mut self.user.lock(), way, user.bytes, &user))?;
        if lan.bytes < user.bytes {
            self.user.lock().give_back(way, user.bytes - lan.bytes, Some(&user));
        }
        let line = self.line().and_then(|mut line| line.take_whole(now, time, way, sharer, lan.bytes).ok());
        self.reportings().for_each(|reporting| reporting.on_granted(way, lan.bytes));
        Ok(Granted { bytes: lan.bytes, user, lan, line })
    }

    /// How long until it is worth to look whether the turn has come; `None` once it has.
    pub(super) fn wait(&self, way: Way, granted: &Granted) -> Option<Duration> {
        let now = Instant::now();
        let user = self.user.lock().wait(now, way, &granted.user);
        let lan = self.lan.lock().wait(now, way, &granted.lan);
        let line = self.line().zip(granted.line.as_ref()).and_then(|(mut line, grant)| line.wait(now, way, grant));
        user.into_iter().chain(lan).chain(line).max()
    }

    /// Takes back what of a grant has not moved.
    pub(super) fn give_back(&self, way: Way, granted: Granted) {
        self.reportings().for_each(|reporting| reporting.on_settled(way, granted.bytes));
        give_up(&mut self.user.lock(), way, granted.bytes, &granted.user);
        give_up(&mut self.lan.lock(), way, granted.bytes, &granted.lan);
        if let (Some(mut line), Some(grant)) = (self.line(), &granted.line) {
            give_up(&mut line, way, granted.bytes, grant);
        }
    }

    /// Takes back bytes that have moved and will not reach their end.
    pub(super) fn give_back_undelivered(&self, way: Way, bytes: u64) {
        self.user.lock().give_back(way, bytes, None);
        self.lan.lock().give_back(way, bytes, None);
    }

    /// The most that is moved in one turn: who reads more than that has to keep it.
    pub(super) fn turn_bytes(&self, way: Way) -> u64 {
        let of_line = self.line().map_or(u64::MAX, |mut line| line.turn_bytes(way));
        self.user.lock().turn_bytes(way).min(self.lan.lock().turn_bytes(way)).min(of_line)
    }

    /// What the user is told of its quota and the LAN's.
    pub fn told(&self) -> Vec<ToldQuota> {
        let (user, lan) = (self.user.lock().told(), self.lan.lock().told());
        user.into_iter().chain(lan).collect()
    }

    /// Notes bytes that have moved.
    pub(super) fn on_moved(&self, way: Way, bytes: usize) {
        self.user.on_moved(way, bytes);
        self.reportings().for_each(|reporting| reporting.on_settled(way, bytes as u64));
    }

    fn line(&self) -> Option<MutexGuard<'_, Account>> {
        self.line.as_ref().map(|line| line.lock().expect("nothing panics under the lock"))
    }
}

impl Drop for OpenFlow {
    fn drop(&mut self) {
        self.spending.user.lock().close_flow();
        self.spending.lan.lock().close_flow();
    }
}

impl LanAccount {
    pub(super) fn new(row: LanAccountRow, account: Account, time: Arc<AtomicI64>, reporting: Reporting) -> Self {
        Self { key: row.key, name: row.name, account: Mutex::new(account), time, reporting }
    }

    /// Takes a grant; asks for a lease if it runs low.
    fn take(&self, take: impl FnOnce(&mut Account) -> Result<Grant, Refused>) -> Result<Grant, Refused> {
        let mut account = self.lock();
        let taken = take(&mut account);
        self.reporting.ask_if_low(&account);
        taken
    }

    pub(super) fn set_limits(&self, limits: Limits) {
        let mut account = self.lock();
        if *account.limits() != limits {
            tracing::info!(lan = %self.name, "limits changed");
            account.set_limits(Instant::now(), UnixSeconds(self.time.load(Ordering::Relaxed)), limits);
        }
    }

    #[cfg(test)]
    pub(super) fn limits(&self) -> Limits {
        self.lock().limits().clone()
    }

    pub(super) fn is_exhausted(&self) -> bool {
        self.lock().is_exhausted()
    }

    /// Tells the log once a period that the quota is used up nearly.
    pub(super) fn warn_in_time(&self) {
        if self.lock().poll_warning() {
            tracing::warn!(lan = %self.name, "80 % of the LAN's quota are used");
        }
    }

    pub(super) fn report(&self) -> LanAccountReport {
        let account = self.lock();
        let used = account.used();
        LanAccountReport {
            lan: self.name.to_string(),
            flows: account.flows(),
            up_bytes: used.up,
            down_bytes: used.down,
            quota_bytes: account.limits().quota.as_ref().map(|quota| quota.size.bytes),
            resets_at: account.span().end.0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().expect("nothing panics under the lock")
    }
}

impl Kept for LanAccount {
    fn reporting(&self) -> &Reporting {
        &self.reporting
    }

    fn with(&self, look: &mut dyn FnMut(&mut Account)) {
        look(&mut self.lock());
    }
}

/// Takes back `bytes` of a grant, and its turn if that has not come.
fn give_up(account: &mut Account, way: Way, bytes: u64, grant: &Grant) {
    account.give_back(way, bytes, Some(grant));
    account.give_up_turn(way, grant);
}

/// The flows that have been, of all users.
static FLOWS: AtomicU64 = AtomicU64::new(0);
