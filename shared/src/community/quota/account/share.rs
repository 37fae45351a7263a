//! How servers share a quota: each counts what its lease is for.

use std::{collections::BTreeMap, time::Instant};

use super::{
    super::{AtLimit, Quota, UnixSeconds},
    Account, Refused, Used,
};

/// How a quota that refuses is shared between servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Share {
    /// Not at all: this server alone counts.
    Whole,
    /// By leases, and this one has none for this period.
    None,
    /// By leases.
    Leased { period: UnixSeconds, until: u64, low_at: u64, is_rest: bool },
}

/// What a server may count of a quota before it asks again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The period that it is of.
    pub period: UnixSeconds,
    /// What this server had granted when it asked.
    pub counted: Used,
    /// What all others had.
    pub elsewhere: Used,
    /// Bytes that this server may count on top.
    pub bytes: u64,
    /// Whether that is all that is left, and nobody else has a part of it.
    pub is_rest: bool,
    /// What the user's relays had lent in the period: what that earns is part of what is left.
    pub lent: Used,
}

impl Account {
    /// Has the account share its quota with other servers, which have counted this much: from now on a quota that refuses takes a lease.
    pub fn share(&mut self, elsewhere_by_period: BTreeMap<UnixSeconds, Used>) {
        self.elsewhere_by_period = elsewhere_by_period;
        self.share = Share::None;
        self.is_warned = self.is_beyond_warning();
    }

    /// Takes a lease in place of the one before.
    pub fn set_lease(&mut self, now: Instant, lease: Lease) {
        self.elsewhere_by_period.insert(lease.period, lease.elsewhere);
        self.note_lent(lease.period, lease.lent);
        if let (Some(quota), true) = (&self.limits.quota, self.share != Share::Whole) {
            let counted = quota.counted(lease.counted);
            let (until, low_at) = (counted.saturating_add(lease.bytes), counted.saturating_add(lease.bytes / 2));
            self.share = Share::Leased { period: lease.period, until, low_at, is_rest: lease.is_rest };
        }
        self.set_rates(now);
    }

    /// A lease is of one quota: another one takes another lease.
    pub(super) fn end_lease_of_other(&mut self, quota: Option<&Quota>) {
        if self.share != Share::Whole && self.limits.quota.as_ref() != quota {
            self.share = Share::None;
        }
    }

    /// There may be more to be leased than there was.
    pub(super) fn on_more(&mut self) {
        if let Share::Leased { is_rest, .. } = &mut self.share {
            *is_rest = false;
        }
    }

    /// Whether a lease is needed, soon or now.
    pub fn is_lease_low(&self) -> bool {
        let Some(quota) = self.limits.quota.as_ref().filter(|quota| quota.at_limit == AtLimit::Refuse) else { return false };
        match self.share {
            Share::Whole => false,
            Share::None => true,
            Share::Leased { period, low_at, is_rest, .. } => {
                period != self.span.start || !is_rest && quota.counted(self.counted_here()) >= low_at
            }
        }
    }

    /// The bytes of the lease that are not used.
    pub fn leased(&self) -> u64 {
        match (self.share, &self.limits.quota) {
            (Share::Leased { period, until, .. }, Some(quota)) if period == self.span.start => {
                until.saturating_sub(quota.counted(self.counted_here()))
            }
            _ => 0,
        }
    }

    /// Whether no other server has a part of what is left.
    pub(super) fn has_rest(&self) -> bool {
        match self.share {
            Share::Whole => true,
            Share::None => false,
            Share::Leased { period, is_rest, .. } => is_rest && period == self.span.start,
        }
    }

    /// What may be counted here of a quota that is not used up.
    pub(super) fn left(&self, quota: &Quota) -> Result<u64, Refused> {
        let left = self.allowance(quota).saturating_sub(self.counted(quota));
        match self.share {
            Share::Whole => Ok(left),
            _ => match left.min(self.leased()) {
                0 => Err(Refused::NotYet),
                left => Ok(left),
            },
        }
    }
}
