//! An account, a user's or one that many spend from: what is used of the quota, whose turn it is, how many flows are open.

mod counts;
mod lent;
mod refused;
mod share;

use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

pub(super) use self::counts::WARNED_AT_PERCENT;
use self::share::Share;
pub use self::{
    counts::Used,
    refused::{Refused, Whose},
    share::Lease,
};
use super::{
    AtLimit, Limits, Quota, UnixSeconds, Way,
    shares::{ShareTicket, Sharer, Shares},
    told::ToldQuota,
};
use crate::units::Rate;

/// A user's account, for all sessions and flows of the user together; or one that several users spend from besides their own, a LAN's or the line of
/// the server itself: its quota is used up by all of them together, its rates are shared between them evenly.
#[derive(Debug)]
pub struct Account {
    whose: Whose,
    limits: Limits,
    /// When the user was added: where periods of days are counted from.
    since: UnixSeconds,
    /// The period that is counted now; without a quota, the calendar month.
    span: Range<UnixSeconds>,
    /// By the beginning of the period: a clock that was wrong for a while finds the right count again.
    used_by_period: BTreeMap<UnixSeconds, Used>,
    /// What other servers have counted; they count apart from this one.
    elsewhere_by_period: BTreeMap<UnixSeconds, Used>,
    /// What the user's relays have lent in the period that began then, as far as is known.
    lent: (UnixSeconds, Used),
    /// What this server may count, if it shares the quota with others.
    share: Share,
    /// What of the count in this period is under way still.
    undelivered: Used,
    /// Periods whose count has changed since it was last kept.
    changed: Vec<UnixSeconds>,
    is_warned: bool,
    flows: u32,
    up: Shares,
    down: Shares,
}

/// Leave to move bytes, once its turn has come. They count as used already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// How many, at least 1.
    pub bytes: u64,
    sharer: Sharer,
    ticket: ShareTicket,
    period: UnixSeconds,
}

impl Account {
    /// An account of which `used_by_period` is known from before.
    pub fn new(
        whose: Whose,
        now: Instant,
        time: UnixSeconds,
        limits: Limits,
        since: UnixSeconds,
        used_by_period: BTreeMap<UnixSeconds, Used>,
    ) -> Self {
        let (up, down) = (Shares::new(now, limits.rate_up), Shares::new(now, limits.rate_down));
        let span = span(&limits, since, time);
        let (elsewhere_by_period, changed) = (BTreeMap::new(), Vec::new());
        let mut account = Self {
            whose,
            limits,
            since,
            span,
            used_by_period,
            elsewhere_by_period,
            lent: Default::default(),
            share: Share::Whole,
            undelivered: Used::default(),
            changed,
            is_warned: false,
            flows: 0,
            up,
            down,
        };
        account.is_warned = account.is_beyond_warning();
        account
    }

    /// Follows the operator's changes, for flows that are open already as well.
    pub fn set_limits(&mut self, now: Instant, time: UnixSeconds, limits: Limits) {
        self.end_lease_of_other(limits.quota.as_ref());
        self.limits = limits;
        self.span = span(&self.limits, self.since, time);
        self.is_warned &= self.is_beyond_warning();
        self.set_rates(now);
    }

    /// What the user may spend.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The period that is counted now.
    pub fn span(&self) -> &Range<UnixSeconds> {
        &self.span
    }

    /// What its user is told of its quota, if there is one.
    pub fn told(&self) -> Option<ToldQuota> {
        let quota = self.limits.quota.as_ref()?;
        let throttle = match quota.at_limit {
            AtLimit::Refuse => None,
            AtLimit::Throttle(rate) => Some(rate.bits_per_second),
        };
        let (used_bytes, quota_bytes) = (self.counted(quota), self.allowance(quota));
        Some(ToldQuota { whose: self.whose, used_bytes, quota_bytes, resets_at: self.span.end, throttle })
    }

    /// Whether the quota is used up.
    pub fn is_exhausted(&self) -> bool {
        self.exhausted().is_some()
    }

    /// Flows open now.
    pub fn flows(&self) -> u32 {
        self.flows
    }

    /// Counts a flow in, until [`Account::close_flow`].
    ///
    /// # Errors
    /// If the quota is used up and refuses, or as many flows are open as may be.
    pub fn open_flow(&mut self, time: UnixSeconds) -> Result<(), Refused> {
        self.follow_time(time);
        if let Some(quota) = self.exhausted()
            && quota.at_limit == AtLimit::Refuse
        {
            return Err(self.used_up(quota));
        }
        if let Some(most) = self.limits.max_flows
            && self.flows >= most
        {
            return Err(Refused::TooManyFlows { whose: self.whose, most });
        }
        self.flows += 1;
        Ok(())
    }

    /// Counts a flow out.
    pub fn close_flow(&mut self) {
        self.flows = self.flows.saturating_sub(1);
    }

    /// Leave for `sharer` to move up to `bytes`, at least 1: as many as the quota has left and a turn takes.
    ///
    /// # Errors
    /// If the quota is used up and refuses.
    pub fn take(&mut self, now: Instant, time: UnixSeconds, way: Way, sharer: Sharer, bytes: u64) -> Result<Grant, Refused> {
        self.follow_time(time);
        let mut bytes = bytes.min(self.shares(way).turn_bytes());
        if let Some(quota) = &self.limits.quota {
            match quota.at_limit {
                AtLimit::Refuse if self.exhausted().is_some() => return Err(self.used_up(quota)),
                AtLimit::Refuse if quota.counts.includes(way) => bytes = bytes.min(self.left(quota)?),
                _ => {}
            }
        }
        Ok(self.grant(now, way, sharer, bytes))
    }

    /// Leave for `sharer` to move exactly `bytes`, in one piece.
    ///
    /// # Errors
    /// If the quota has fewer left and refuses.
    pub fn take_whole(&mut self, now: Instant, time: UnixSeconds, way: Way, sharer: Sharer, bytes: u64) -> Result<Grant, Refused> {
        self.follow_time(time);
        if let Some(quota) = &self.limits.quota
            && quota.at_limit == AtLimit::Refuse
        {
            if self.exhausted().is_some() {
                return Err(self.used_up(quota));
            }
            if quota.counts.includes(way) && bytes > self.left(quota)? {
                return Err(if self.has_rest() { self.used_up(quota) } else { Refused::NotYet });
            }
        }
        Ok(self.grant(now, way, sharer, bytes))
    }

    /// How long until it is worth to look whether a grant's turn has come; `None` once it has.
    pub fn wait(&mut self, now: Instant, way: Way, grant: &Grant) -> Option<Duration> {
        self.shares(way).wait(now, grant.sharer, grant.ticket)
    }

    /// Gives up a grant's turn, if that has not come.
    pub fn give_up_turn(&mut self, way: Way, grant: &Grant) {
        self.shares(way).cancel(grant.sharer, grant.ticket);
    }

    /// The most that is moved in one turn: who reads more than that has to keep it.
    pub fn turn_bytes(&mut self, way: Way) -> u64 {
        self.shares(way).turn_bytes()
    }

    /// Takes back `bytes` of a grant that did not reach their end; without the grant, of this period.
    pub fn give_back(&mut self, way: Way, bytes: u64, grant: Option<&Grant>) {
        let period = grant.map_or(self.span.start, |grant| grant.period);
        let Some(used) = self.used_by_period.get_mut(&period) else { return };
        let used = used.of(way);
        *used = used.saturating_sub(bytes);
        self.note_change(period);
    }

    fn grant(&mut self, now: Instant, way: Way, sharer: Sharer, bytes: u64) -> Grant {
        let period = self.span.start;
        self.add(period, way, bytes);
        self.set_rates(now);
        let ticket = self.shares(way).take(now, sharer, bytes);
        Grant { bytes, sharer, ticket, period }
    }

    fn follow_time(&mut self, time: UnixSeconds) {
        if !self.span.contains(&time) {
            self.span = span(&self.limits, self.since, time);
            self.is_warned = self.is_beyond_warning();
            for by_period in [&mut self.used_by_period, &mut self.elsewhere_by_period] {
                while by_period.len() > PERIODS_MAX {
                    by_period.pop_first();
                }
            }
        }
    }

    /// The rate of a direction now: beyond a quota that throttles, the least of the two.
    fn rate(&self, way: Way) -> Option<Rate> {
        let throttle = self.exhausted().and_then(|quota| match quota.at_limit {
            AtLimit::Throttle(rate) => Some(rate),
            AtLimit::Refuse => None,
        });
        throttle.into_iter().chain(self.limits.rate(way)).min()
    }

    fn set_rates(&mut self, now: Instant) {
        let (up, down) = (self.rate(Way::Up), self.rate(Way::Down));
        self.up.set_rate(now, up);
        self.down.set_rate(now, down);
    }

    fn shares(&mut self, way: Way) -> &mut Shares {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    fn exhausted(&self) -> Option<&Quota> {
        let is_used_up = |quota: &&Quota| {
            let is_share_used_up = quota.at_limit == AtLimit::Refuse && self.has_rest() && self.share != Share::Whole && self.leased() == 0;
            self.counted(quota) >= self.allowance(quota) || is_share_used_up
        };
        self.limits.quota.as_ref().filter(is_used_up)
    }
}

/// The one that is counted, and some that a clock which was wrong has left.
const PERIODS_MAX: usize = 4;

fn span(limits: &Limits, since: UnixSeconds, time: UnixSeconds) -> Range<UnixSeconds> {
    match &limits.quota {
        Some(quota) => quota.period.span(time, since),
        None => super::Period::default().span(time, since),
    }
}

#[cfg(test)]
mod tests;
