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
    /// What other servers have counted; they count apart from this one.
    elsewhere_by_period: BTreeMap<UnixSeconds, Used>,
    /// What this server may count, if it shares the quota with others.
    share: Share,
    /// Periods whose count has changed since it was last kept.
    changed: Vec<UnixSeconds>,
    is_warned: bool,
    flows: u32,
    up: Shaper,
    down: Shaper,
}

/// How a quota that refuses is shared between servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Share {
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
    /// What this server had counted when it asked.
    pub counted: Used,
    /// What all others had.
    pub elsewhere: Used,
    /// Bytes that this server may count on top.
    pub bytes: u64,
    /// Whether that is all that is left, and nobody else has a part of it.
    pub is_rest: bool,
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
    /// The server's share is used up while others have a part of what is left: more is asked for.
    #[error("the quota is nearly used up, and its last bytes are with another server: try again in a moment")]
    NotYet,
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
        let (elsewhere_by_period, changed) = (BTreeMap::new(), Vec::new());
        let mut account = Self {
            whose,
            limits,
            since,
            span,
            used_by_period,
            elsewhere_by_period,
            share: Share::Whole,
            changed,
            is_warned: false,
            flows: 0,
            up,
            down,
        };
        account.is_warned = account.is_beyond_warning();
        account
    }

    /// Has the account share its quota with other servers, which have counted this much: from now on a quota that refuses takes a lease.
    pub fn share(&mut self, elsewhere_by_period: BTreeMap<UnixSeconds, Used>) {
        self.elsewhere_by_period = elsewhere_by_period;
        self.share = Share::None;
        self.is_warned = self.is_beyond_warning();
    }

    /// Takes a lease in place of the one before.
    pub fn set_lease(&mut self, now: Instant, lease: Lease) {
        self.elsewhere_by_period.insert(lease.period, lease.elsewhere);
        if let (Some(quota), true) = (&self.limits.quota, self.share != Share::Whole) {
            let counted = quota.counted(lease.counted);
            let (until, low_at) = (counted.saturating_add(lease.bytes), counted.saturating_add(lease.bytes / 2));
            self.share = Share::Leased { period: lease.period, until, low_at, is_rest: lease.is_rest };
        }
        self.set_rates(now);
    }

    /// What this server has counted in the period that is counted now.
    pub fn counted_here(&self) -> Used {
        self.used_by_period.get(&self.span.start).copied().unwrap_or_default()
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

    /// What is used of it, here and as far as is known elsewhere.
    pub fn used(&self) -> Used {
        let (here, elsewhere) = (self.counted_here(), self.elsewhere_by_period.get(&self.span.start).copied().unwrap_or_default());
        Used { up: here.up + elsewhere.up, down: here.down + elsewhere.down }
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
            match quota.at_limit {
                AtLimit::Refuse if self.exhausted().is_some() => return Err(self.used_up(quota)),
                AtLimit::Refuse if quota.counts.includes(way) => bytes = bytes.min(self.left(quota)?),
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
            if self.exhausted().is_some() {
                return Err(self.used_up(quota));
            }
            if quota.counts.includes(way) && bytes > self.left(quota)? {
                return Err(if self.has_rest() { self.used_up(quota) } else { Refused::NotYet });
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
            for by_period in [&mut self.used_by_period, &mut self.elsewhere_by_period] {
                while by_period.len() > PERIODS_MAX {
                    by_period.pop_first();
                }
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
        let is_used_up = |quota: &&Quota| {
            let is_share_used_up = quota.at_limit == AtLimit::Refuse && self.has_rest() && self.share != Share::Whole && self.leased() == 0;
            self.counted(quota) >= quota.size.bytes || is_share_used_up
        };
        self.limits.quota.as_ref().filter(is_used_up)
    }

    /// Whether no other server has a part of what is left.
    fn has_rest(&self) -> bool {
        match self.share {
            Share::Whole => true,
            Share::None => false,
            Share::Leased { period, is_rest, .. } => is_rest && period == self.span.start,
        }
    }

    /// What may be counted here of a quota that is not used up.
    fn left(&self, quota: &Quota) -> Result<u64, Refused> {
        let left = quota.size.bytes.saturating_sub(self.counted(quota));
        match self.share {
            Share::Whole => Ok(left),
            _ => match left.min(self.leased()) {
                0 => Err(Refused::NotYet),
                left => Ok(left),
            },
        }
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

    #[test]
    fn no_server_counts_more_than_its_lease() {
        let mut account = Bench::new(limits(10_000, Counts::Both));
        account.account.share(BTreeMap::from([(account.account.span().start, Used { up: 0, down: 5000 })]));
        assert!(account.account.is_lease_low());
        assert_eq!(account.take(Way::Down, 100), Err(Refused::NotYet), "no lease yet");
        account.lease(Used::default(), 5000, 600, false);
        assert_eq!(account.take(Way::Down, 9000).expect("a lease").bytes, 600);
        assert_eq!(account.take(Way::Up, 1), Err(Refused::NotYet), "others have a part of what is left");
        account.account.open_flow(NOW).expect("the quota is not used up");
        let counted = account.account.counted_here();
        account.lease(counted, 5200, 4200, true);
        assert_eq!(account.take(Way::Down, 9000).expect("the rest").bytes, 4200);
        assert!(matches!(account.take(Way::Down, 1), Err(Refused::UsedUp { .. })));
        assert!(account.account.open_flow(NOW).is_err());
        assert_eq!(account.account.used(), Used { up: 0, down: 10_000 });
    }

    #[test]
    fn a_lease_that_is_given_up_leaves_nothing_to_count() {
        let mut account = Bench::new(limits(10_000, Counts::Both));
        account.account.share(BTreeMap::new());
        account.lease(Used::default(), 0, 1000, false);
        let grant = account.take(Way::Down, 400).expect("a lease");
        account.account.give_back(Way::Down, 100, Some(grant));
        assert_eq!(account.account.leased(), 700);
        let counted = account.account.counted_here();
        account.lease(counted, 0, 0, false);
        assert_eq!((account.account.leased(), account.take(Way::Down, 1)), (0, Err(Refused::NotYet)));
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

        fn lease(&mut self, counted: Used, elsewhere_down: u64, bytes: u64, is_rest: bool) {
            let elsewhere = Used { up: 0, down: elsewhere_down };
            let period = self.account.span().start;
            self.account.set_lease(self.now, Lease { period, counted, elsewhere, bytes, is_rest });
        }
    }

    fn limits(bytes: u64, counts: Counts) -> Limits {
        let period = Period { length: Length::default(), ..Period::default() };
        let quota = Quota { size: Size { bytes }, counts, period, at_limit: AtLimit::Refuse };
        Limits { quota: Some(quota), ..Limits::default() }
    }
}
