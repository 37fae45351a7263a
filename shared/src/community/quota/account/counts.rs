//! What an account has counted, by the beginning of the period, to be kept by the caller.

use super::{
    super::{Quota, UnixSeconds, Way},
    Account,
};

/// Bytes of payload that were moved.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Used {
    /// Towards content servers.
    pub up: u64,
    /// From content servers.
    pub down: u64,
}

impl Account {
    /// What is used of it, here and as far as is known elsewhere.
    pub fn used(&self) -> Used {
        let (here, elsewhere) = (self.counted_here(), self.elsewhere_by_period.get(&self.span.start).copied().unwrap_or_default());
        Used { up: here.up + elsewhere.up, down: here.down + elsewhere.down }
    }

    /// What this server has counted in the period that is counted now.
    pub fn counted_here(&self) -> Used {
        self.used_by_period.get(&self.span.start).copied().unwrap_or_default()
    }

    /// What of that has been delivered, as far as is known: what a crash of this server is not to lose.
    pub fn delivered_here(&self) -> Used {
        self.counted_here().less(self.undelivered)
    }

    /// Tells how much of what was granted is under way still.
    pub fn set_undelivered(&mut self, undelivered: Used) {
        if self.undelivered != undelivered {
            self.undelivered = undelivered;
            self.note_change(self.span.start);
        }
    }

    /// Whether it is time to tell that [`WARNED_AT_PERCENT`] are used; true once a period.
    pub fn poll_warning(&mut self) -> bool {
        let is_due = !self.is_warned && self.is_beyond_warning();
        self.is_warned |= is_due;
        is_due
    }

    /// Whether that much is used.
    pub fn is_beyond_warning(&self) -> bool {
        self.limits.quota.as_ref().is_some_and(|quota| quota.percent(self.used(), self.lent()) >= WARNED_AT_PERCENT)
    }

    /// The counts that have changed since the last call, to be kept: what was delivered.
    pub fn poll_changes(&mut self) -> Vec<(UnixSeconds, Used)> {
        let changed = std::mem::take(&mut self.changed);
        let delivered = |period| match self.used_by_period.get(&period)? {
            _ if period == self.span.start => Some((period, self.delivered_here())),
            used => Some((period, *used)),
        };
        changed.into_iter().filter_map(delivered).collect()
    }

    /// Whether [`Account::poll_changes`] would give some.
    pub fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Takes counts back that could not be kept: the next [`Account::poll_changes`] gives them again, as they are then.
    pub fn on_not_kept(&mut self, periods: impl IntoIterator<Item = UnixSeconds>) {
        periods.into_iter().for_each(|period| self.note_change(period));
    }

    pub(super) fn add(&mut self, period: UnixSeconds, way: Way, bytes: u64) {
        *self.used_by_period.entry(period).or_default().of(way) += bytes;
        self.note_change(period);
    }

    pub(super) fn note_change(&mut self, period: UnixSeconds) {
        if !self.changed.contains(&period) {
            self.changed.push(period);
        }
    }

    pub(super) fn counted(&self, quota: &Quota) -> u64 {
        quota.counted(self.used())
    }
}

impl Used {
    /// What is left of it without `other`.
    pub fn less(self, other: Self) -> Self {
        Self { up: self.up.saturating_sub(other.up), down: self.down.saturating_sub(other.down) }
    }

    pub(super) fn of(&mut self, way: Way) -> &mut u64 {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

/// Late enough to be worth a word, early enough to act on it.
pub(in crate::community::quota) const WARNED_AT_PERCENT: u64 = 80;
