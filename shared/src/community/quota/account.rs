//! One user's account: what is used of the quota, whose turn it is, how many flows are open.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    AtLimit, Limits, Quota, UnixSeconds, Way,
    shaper::{Shaper, Ticket},
    told::ToldQuota,
};
use crate::units::{Rate, Size};

/// A user's account, for all sessions and flows of the user together.
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
    /// Periods whose count has changed since it was last kept.
    changed: Vec<UnixSeconds>,
    is_warned: bool,
    flows: u32,
    up: Shaper,
    down: Shaper,
}

/// Bytes of payload that were moved.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Used {
    /// Towards content servers.
    pub up: u64,
    /// From content servers.
    pub down: u64,
}

/// Leave to move bytes, once the ticket's turn has come. They count as used already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// How many, at least 1.
    pub bytes: u64,
    /// The place in the line of its direction.
    pub ticket: Ticket,
    period: UnixSeconds,
}

/// Why nothing is granted; the sentence is for the user.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The quota is used up.
    #[error("the {size} that {whose} may use{which} are used up; the count begins anew on {resets}")]
    UsedUp {
        /// Whose quota.
        whose: Whose,
        /// The quota.
        size: Size,
        /// Which bytes it counts, for people.
        which: &'static str,
        /// When the next period begins, in the quota's time zone.
        resets: String,
    },
    /// As many flows are open as may be.
    #[error("{most} connections are open at once, which is as many as {whose} may have")]
    TooManyFlows {
        /// Whose flows.
        whose: Whose,
        /// How many.
        most: u32,
    },
}

/// Who spends from an account, as its user calls it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// The user alone.
    User,
    /// All users of the LAN.
    Lan,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "you",
            Self::Lan => "your LAN",
        })
    }
}

impl Account {
    /// A user's account of which `used_by_period` is known from before.
    pub fn new(now: Instant, time: UnixSeconds, limits: Limits, since: UnixSeconds, used_by_period: BTreeMap<UnixSeconds, Used>) -> Self {
        Self::of(Whose::User, now, time, limits, since, used_by_period)
    }

    pub(super) fn of(
        whose: Whose,
        now: Instant,
        time: UnixSeconds,
        limits: Limits,
        since: UnixSeconds,
        used_by_period: BTreeMap<UnixSeconds, Used>,
    ) -> Self {
        let (up, down) = (Shaper::new(now, limits.rate_up), Shaper::new(now, limits.rate_down));
        let span = span(&limits, since, time);
        let mut account = Self { whose, limits, since, span, used_by_period, changed: Vec::new(), is_warned: false, flows: 0, up, down };
        account.is_warned = account.is_beyond_warning();
        account
    }

    /// Follows the operator's changes, for flows that are open already as well.
    pub fn set_limits(&mut self, now: Instant, time: UnixSeconds, limits: Limits) {
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
        let (used_bytes, quota_bytes) = (self.counted(quota), quota.size.bytes);
        Some(ToldQuota { whose: self.whose, used_bytes, quota_bytes, resets_at: self.span.end, throttle })
    }

    /// What is used of it.
    pub fn used(&self) -> Used {
        self.used_by_period.get(&self.span.start).copied().unwrap_or_default()
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

    /// Leave to move up to `bytes`, at least 1: as many as the quota has left and a turn takes.
    ///
    /// # Errors
    /// If the quota is used up and refuses.
    pub fn take(&mut self, now: Instant, time: UnixSeconds, way: Way, bytes: u64) -> Result<Grant, Refused> {
        self.follow_time(time);
        let mut bytes = bytes.min(self.shaper(way).turn_bytes());
        if let Some(quota) = &self.limits.quota {
            let left = quota.size.bytes.saturating_sub(self.counted(quota));
            match quota.at_limit {
                AtLimit::Refuse if left == 0 => return Err(self.used_up(quota)),
                AtLimit::Refuse if quota.counts.includes(way) => bytes = bytes.min(left),
                _ => {}
            }
        }
        Ok(self.grant(now, way, bytes))
    }

    /// Leave to move exactly `bytes`, in one piece.
    ///
    /// # Errors
    /// If the quota has fewer left and refuses.
    pub fn take_whole(&mut self, now: Instant, time: UnixSeconds, way: Way, bytes: u64) -> Result<Grant, Refused> {
        self.follow_time(time);
        if let Some(quota) = &self.limits.quota
            && quota.at_limit == AtLimit::Refuse
        {
            let left = quota.size.bytes.saturating_sub(self.counted(quota));
            if left == 0 || quota.counts.includes(way) && bytes > left {
                return Err(self.used_up(quota));
            }
        }
        Ok(self.grant(now, way, bytes))
    }

    /// How long until a grant's turn; `None` once it has come.
    pub fn wait(&mut self, now: Instant, way: Way, ticket: Ticket) -> Option<Duration> {
        self.shaper(way).wait(now, ticket)
    }

    /// The most that is moved in one turn: who reads more than that has to keep it.
    pub fn turn_bytes(&mut self, way: Way) -> u64 {
        self.shaper(way).turn_bytes()
    }

    /// Takes back `bytes` of a grant that did not reach their end; without the grant, of this period.
    pub fn give_back(&mut self, way: Way, bytes: u64, grant: Option<Grant>) {
        let period = grant.map_or(self.span.start, |grant| grant.period);
        let Some(used) = self.used_by_period.get_mut(&period) else { return };
        let used = used.of(way);
        *used = used.saturating_sub(bytes);
        self.note_change(period);
    }

    /// Whether it is time to tell that [`WARNED_AT_PERCENT`] are used; true once a period.
    pub fn poll_warning(&mut self) -> bool {
        let is_due = !self.is_warned && self.is_beyond_warning();
        self.is_warned |= is_due;
        is_due
    }

    /// The counts that have changed since the last call, to be kept.
    pub fn poll_changes(&mut self) -> Vec<(UnixSeconds, Used)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().filter_map(|period| Some((period, *self.used_by_period.get(&period)?))).collect()
    }

    /// Whether [`Account::poll_changes`] would give some.
    pub fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Takes counts back that could not be kept: the next [`Account::poll_changes`] gives them again, as they are then.
    pub fn on_not_kept(&mut self, periods: impl IntoIterator<Item = UnixSeconds>) {
        periods.into_iter().for_each(|period| self.note_change(period));
    }

    fn grant(&mut self, now: Instant, way: Way, bytes: u64) -> Grant {
        let period = self.span.start;
        self.add(period, way, bytes);
        self.set_rates(now);
        let ticket = self.shaper(way).take(now, bytes);
        Grant { bytes, ticket, period }
    }

    fn follow_time(&mut self, time: UnixSeconds) {
        if !self.span.contains(&time) {
            self.span = span(&self.limits, self.since, time);
            self.is_warned = self.is_beyond_warning();
            while self.used_by_period.len() > PERIODS_MAX {
                self.used_by_period.pop_first();
            }
        }
    }

    /// The rate of a direction now: beyond a quota that throttles, the least of the two.
    pub(super) fn rate(&self, way: Way) -> Option<Rate> {
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

    fn shaper(&mut self, way: Way) -> &mut Shaper {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    fn add(&mut self, period: UnixSeconds, way: Way, bytes: u64) {
        *self.used_by_period.entry(period).or_default().of(way) += bytes;
        self.note_change(period);
    }

    fn note_change(&mut self, period: UnixSeconds) {
        if !self.changed.contains(&period) {
            self.changed.push(period);
        }
    }

    fn counted(&self, quota: &Quota) -> u64 {
        quota.counted(self.used())
    }

    fn exhausted(&self) -> Option<&Quota> {
        self.limits.quota.as_ref().filter(|quota| self.counted(quota) >= quota.size.bytes)
    }

    fn is_beyond_warning(&self) -> bool {
        self.limits.quota.as_ref().is_some_and(|quota| quota.percent(self.used()) >= WARNED_AT_PERCENT)
    }

    fn used_up(&self, quota: &Quota) -> Refused {
        let which = match quota.counts {
            super::Counts::Up => " for uploads",
            super::Counts::Down => " for downloads",
            super::Counts::Both => "",
        };
        Refused::UsedUp { whose: self.whose, size: quota.size, which, resets: quota.period.zone.text(self.span.end) }
    }
}

impl Used {
    fn of(&mut self, way: Way) -> &mut u64 {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

/// Late enough to be worth a word, early enough to act on it.
pub(super) const WARNED_AT_PERCENT: u64 = 80;

/// The one that is counted, and some that a clock which was wrong has left.
const PERIODS_MAX: usize = 4;

fn span(limits: &Limits, since: UnixSeconds, time: UnixSeconds) -> Range<UnixSeconds> {
    match &limits.quota {
        Some(quota) => quota.period.span(time, since),
        None => super::Period::default().span(time, since),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::community::quota::{Counts, Length, Period};

    #[test]
    fn no_more_is_granted_than_the_quota_has() {
        let mut account = Bench::new(limits(100_000, Counts::Both));
        let mut granted = 0;
        while let Ok(grant) = account.take(if granted % 2 == 0 { Way::Up } else { Way::Down }, 7_001) {
            granted += grant.bytes;
        }
        assert_eq!(granted, 100_000);
        assert!(matches!(account.account.open_flow(NOW), Err(Refused::UsedUp { .. })));
    }

    #[test]
    fn what_is_not_counted_moves_until_the_rest_is_used_up() {
        let mut account = Bench::new(limits(1000, Counts::Down));
        assert_eq!(account.take(Way::Up, 5000).expect("not counted").bytes, 5000);
        assert_eq!(account.take(Way::Down, 5000).expect("all that is left").bytes, 1000);
        assert!(account.take(Way::Up, 1).is_err(), "a user without quota has no flows");
    }

    #[test]
    fn a_datagram_passes_whole_or_not_at_all() {
        let mut account = Bench::new(limits(1000, Counts::Both));
        assert_eq!(account.account.take_whole(account.now, NOW, Way::Up, 600).expect("a quota").bytes, 600);
        assert!(account.account.take_whole(account.now, NOW, Way::Down, 401).is_err());
        assert_eq!(account.account.take_whole(account.now, NOW, Way::Down, 400).expect("the rest").bytes, 400);
        assert!(account.account.take_whole(account.now, NOW, Way::Up, 0).is_err(), "nothing is left");
    }

    #[test]
    fn what_is_given_back_can_be_used() {
        let mut account = Bench::new(limits(1000, Counts::Both));
        let grant = account.take(Way::Down, 1000).expect("a quota");
        assert!(account.take(Way::Down, 1).is_err());
        account.account.give_back(Way::Down, 400, Some(grant));
        assert_eq!(account.take(Way::Down, 1000).expect("given back").bytes, 400);
    }

    #[test]
    fn the_refusal_says_what_is_used_up_and_when_it_begins_anew() {
        let mut limits = limits(1000, Counts::Down);
        limits.quota.as_mut().expect("a quota").period.zone = "Europe/Berlin".parse().expect("a zone");
        let mut account = Bench::new(limits);
        account.take(Way::Down, 1000).expect("a quota");
        let refused = account.account.open_flow(NOW).expect_err("used up");
        let said = "the 1.0 kB that you may use for downloads are used up; the count begins anew on 2026-12-01 00:00 Europe/Berlin";
        assert_eq!(refused.to_string(), said);
    }

    #[test]
    fn a_new_period_counts_anew_and_a_clock_set_back_finds_the_old_count() {
        let mut account = Bench::new(limits(1000, Counts::Both));
        account.take(Way::Down, 1000).expect("a quota");
        let next_month = account.account.span().end;
        assert_eq!(account.account.take(account.now, next_month, Way::Down, 300).expect("a new period").bytes, 300);
        assert!(account.take(Way::Down, 1).is_err(), "the first month's quota is used up still");
        assert_eq!(account.account.take(account.now, next_month, Way::Down, 1000).expect("the rest").bytes, 700);
    }

    #[test]
    fn a_user_beyond_the_quota_is_throttled_where_that_is_wanted() {
        let mut limits = limits(1000, Counts::Both);
        limits.quota.as_mut().expect("a quota").at_limit = AtLimit::Throttle(Rate { bits_per_second: 8_000 });
        let mut account = Bench::new(limits);
        let first = account.take(Way::Down, 1000).expect("a quota");
        assert_eq!(account.account.wait(account.now, Way::Down, first.ticket), None);
        account.take(Way::Down, 1000).expect("goes on, throttled");
        let next = account.take(Way::Down, 1000).expect("goes on, throttled");
        assert!(account.account.wait(account.now, Way::Down, next.ticket).is_some_and(|wait| wait > Duration::from_millis(500)));
        account.account.open_flow(NOW).expect("throttled, not refused");
    }

    #[test]
    fn flows_are_counted_in_and_out() {
        let mut account = Bench::new(Limits { max_flows: Some(2), ..Limits::default() }).account;
        account.open_flow(NOW).expect("the first");
        account.open_flow(NOW).expect("the second");
        assert_eq!(account.open_flow(NOW), Err(Refused::TooManyFlows { whose: Whose::User, most: 2 }));
        account.close_flow();
        account.open_flow(NOW).expect("one was closed");
    }

    #[test]
    fn a_warning_comes_once_a_period() {
        let mut account = Bench::new(limits(1000, Counts::Both));
        account.take(Way::Down, 799).expect("a quota");
        assert!(!account.account.poll_warning());
        account.take(Way::Down, 1).expect("a quota");
        assert!(account.account.poll_warning());
        account.take(Way::Down, 1).expect("a quota");
        assert!(!account.account.poll_warning());
        let next_month = account.account.span().end;
        account.account.take(account.now, next_month, Way::Down, 900).expect("a new period");
        assert!(account.account.poll_warning());
    }

    #[test]
    fn what_was_not_kept_is_given_again() {
        let mut account = Bench::new(limits(1000, Counts::Both));
        account.take(Way::Down, 10).expect("a quota");
        let changes = account.account.poll_changes();
        assert_eq!(changes.iter().map(|(_, used)| used.down).collect::<Vec<_>>(), [10]);
        assert_eq!(account.account.poll_changes(), []);
        account.account.on_not_kept(changes.into_iter().map(|(period, _)| period));
        account.take(Way::Down, 5).expect("a quota");
        assert_eq!(account.account.poll_changes().iter().map(|(_, used)| used.down).collect::<Vec<_>>(), [15]);
    }

    #[test]
    fn a_larger_quota_takes_effect_at_once() {
        let mut account = Bench::new(limits(1000, Counts::Both));
        account.take(Way::Down, 1000).expect("a quota");
        account.account.set_limits(account.now, NOW, limits(5000, Counts::Both));
        assert_eq!(account.take(Way::Down, 9000).expect("more quota").bytes, 4000);
    }

    /// 2026-11-24 08:00 UTC.
    const NOW: UnixSeconds = UnixSeconds(1_795_507_200);

    struct Bench {
        account: Account,
        now: Instant,
    }

    impl Bench {
        fn new(limits: Limits) -> Self {
            let now = Instant::now();
            Self { account: Account::new(now, NOW, limits, NOW, BTreeMap::new()), now }
        }

        fn take(&mut self, way: Way, bytes: u64) -> Result<Grant, Refused> {
            self.account.take(self.now, NOW, way, bytes)
        }
    }

    fn limits(bytes: u64, counts: Counts) -> Limits {
        let period = Period { length: Length::default(), ..Period::default() };
        let quota = Quota { size: Size { bytes }, counts, period, at_limit: AtLimit::Refuse };
        Limits { quota: Some(quota), ..Limits::default() }
    }
}
