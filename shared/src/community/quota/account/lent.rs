//! What an account has earned by what its user's relays lend.

use std::time::Instant;

use super::{
    super::{Quota, UnixSeconds},
    Account, Used,
};

impl Account {
    /// Tells what the user's relays have lent in the period that began then, for flows that are open already as well.
    pub fn set_lent(&mut self, now: Instant, period: UnixSeconds, lent: Used) {
        let allowance = |account: &Self| account.limits.quota.as_ref().map_or(0, |quota| account.allowance(quota));
        let before = allowance(self);
        self.note_lent(period, lent);
        if allowance(self) > before {
            self.on_more();
        }
        self.set_rates(now);
    }

    /// In a period it only grows: what is less was read before.
    pub(super) fn note_lent(&mut self, period: UnixSeconds, lent: Used) {
        let known = if self.lent.0 == period { self.lent.1 } else { Used::default() };
        self.lent = (period, Used { up: lent.up.max(known.up), down: lent.down.max(known.down) });
    }

    /// What the user's relays have lent in the period that is counted now, as far as is known.
    pub fn lent(&self) -> Used {
        let (period, lent) = self.lent;
        if period == self.span.start { lent } else { Used::default() }
    }

    pub(super) fn allowance(&self, quota: &Quota) -> u64 {
        quota.allowance(self.lent())
    }
}
