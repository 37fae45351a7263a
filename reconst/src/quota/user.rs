//! One user's account here: what flows take from it, and what of it the store is told.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Instant,
};

use super::keeping::{Kept, Reporting};
use serde::Serialize;
use shared::community::{
    member::Identity,
    quota::{Account, Grant, Limits, Refused, UnixSeconds, Way},
};

/// A user's account and who it is.
pub struct UserAccount {
    pub(super) identity: Identity,
    pub(super) account: Mutex<Account>,
    pub(super) time: Arc<AtomicI64>,
    pub(super) totals: Arc<Totals>,
    pub(super) reporting: Reporting,
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
    /// Bytes on top of that for what the user's relays have lent, if it earns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub earned_bytes: Option<u64>,
    /// Flows that the user may have open, if there is a limit.
    pub max_flows: Option<u32>,
    /// When the count begins anew, seconds since 1970.
    pub resets_at: i64,
}

/// What has moved since the start, of all users.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) up_bytes: AtomicU64,
    pub(super) down_bytes: AtomicU64,
    pub(super) refused_flows: AtomicU64,
}

impl UserAccount {
    /// Takes a grant; asks for a lease if it runs low.
    pub(super) fn take(&self, take: impl FnOnce(&mut Account) -> Result<Grant, Refused>) -> Result<Grant, Refused> {
        let mut account = self.lock();
        let taken = take(&mut account);
        self.reporting.ask_if_low(&account);
        taken
    }

    /// Notes bytes that have moved.
    pub(super) fn on_moved(&self, way: Way, bytes: usize) {
        let total = match way {
            Way::Up => &self.totals.up_bytes,
            Way::Down => &self.totals.down_bytes,
        };
        total.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn set_limits(&self, limits: Limits) {
        let mut account = self.lock();
        if *account.limits() != limits {
            tracing::info!(user = %self.identity, "limits changed");
            account.set_limits(Instant::now(), self.time(), limits);
        }
    }

    /// The period whose lending is earned by, if any.
    pub(super) fn earns_in(&self) -> Option<UnixSeconds> {
        let account = self.lock();
        account.limits().quota.as_ref()?.earning?;
        Some(account.span().start)
    }

    pub(super) fn report(&self) -> AccountReport {
        let account = self.lock();
        let (used, quota) = (account.used(), account.limits().quota.as_ref());
        AccountReport {
            user: self.identity.to_string(),
            flows: account.flows(),
            up_bytes: used.up,
            down_bytes: used.down,
            quota_bytes: quota.map(|quota| quota.size.bytes),
            earned_bytes: quota.filter(|quota| quota.earning.is_some()).map(|quota| quota.earned(account.lent())),
            max_flows: account.limits().max_flows,
            resets_at: account.span().end.0,
        }
    }

    pub(super) fn time(&self) -> UnixSeconds {
        UnixSeconds(self.time.load(Ordering::Relaxed))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().expect("nothing panics under the lock")
    }
}

impl Kept for UserAccount {
    fn reporting(&self) -> &Reporting {
        &self.reporting
    }

    fn with(&self, look: &mut dyn FnMut(&mut Account)) {
        look(&mut self.lock());
    }
}
