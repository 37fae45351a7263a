//! What an account grants, refuses and counts.

use super::*;
use crate::{
    community::quota::{Counts, Earning, Length, Period},
    units::Size,
};

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
    assert_eq!(account.account.take_whole(account.now, NOW, Way::Up, ANN, 600).expect("a quota").bytes, 600);
    assert!(account.account.take_whole(account.now, NOW, Way::Down, ANN, 401).is_err());
    assert_eq!(account.account.take_whole(account.now, NOW, Way::Down, ANN, 400).expect("the rest").bytes, 400);
    assert!(account.account.take_whole(account.now, NOW, Way::Up, ANN, 0).is_err(), "nothing is left");
}

#[test]
fn what_is_given_back_can_be_used() {
    let mut account = Bench::new(limits(1000, Counts::Both));
    let grant = account.take(Way::Down, 1000).expect("a quota");
    assert!(account.take(Way::Down, 1).is_err());
    account.account.give_back(Way::Down, 400, Some(&grant));
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
    assert_eq!(account.account.take(account.now, next_month, Way::Down, ANN, 300).expect("a new period").bytes, 300);
    assert!(account.take(Way::Down, 1).is_err(), "the first month's quota is used up still");
    assert_eq!(account.account.take(account.now, next_month, Way::Down, ANN, 1000).expect("the rest").bytes, 700);
}

#[test]
fn a_user_beyond_the_quota_is_throttled_where_that_is_wanted() {
    let mut limits = limits(1000, Counts::Both);
    limits.quota.as_mut().expect("a quota").at_limit = AtLimit::Throttle(Rate { bits_per_second: 8_000 });
    let mut account = Bench::new(limits);
    let first = account.take(Way::Down, 1000).expect("a quota");
    assert_eq!(account.account.wait(account.now, Way::Down, &first), None);
    account.take(Way::Down, 1000).expect("goes on, throttled");
    let next = account.take(Way::Down, 1000).expect("goes on, throttled");
    assert!(account.account.wait(account.now, Way::Down, &next).is_some_and(|wait| wait > Duration::from_millis(500)));
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
    account.account.take(account.now, next_month, Way::Down, ANN, 900).expect("a new period");
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
    account.account.give_back(Way::Down, 100, Some(&grant));
    assert_eq!(account.account.leased(), 700);
    let counted = account.account.counted_here();
    account.lease(counted, 0, 0, false);
    assert_eq!((account.account.leased(), account.take(Way::Down, 1)), (0, Err(Refused::NotYet)));
}

#[test]
fn another_quota_takes_another_lease() {
    let mut account = Bench::new(limits(1000, Counts::Both));
    account.account.share(BTreeMap::new());
    account.lease(Used::default(), 0, 1000, true);
    account.take(Way::Down, 1000).expect("the rest");
    assert!(account.account.open_flow(NOW).is_err() && !account.account.is_lease_low());
    account.account.set_limits(account.now, NOW, limits(5000, Counts::Both));
    account.account.open_flow(NOW).expect("more quota");
    assert!(account.account.is_lease_low());
    let counted = account.account.counted_here();
    account.lease(counted, 0, 4000, true);
    assert_eq!(account.take(Way::Down, 9000).expect("a lease").bytes, 4000);
}

#[test]
fn what_is_under_way_is_granted_and_not_kept() {
    let mut account = Bench::new(limits(1000, Counts::Both));
    account.take(Way::Down, 1000).expect("a quota");
    account.account.set_undelivered(Used { up: 0, down: 300 });
    assert_eq!((account.account.counted_here().down, account.account.delivered_here().down), (1000, 700));
    assert!(account.take(Way::Down, 1).is_err(), "it is granted");
    let kept = |account: &mut Bench| account.account.poll_changes().iter().map(|(_, used)| used.down).collect::<Vec<_>>();
    assert_eq!(kept(&mut account), [700]);
    account.account.set_undelivered(Used::default());
    assert_eq!((kept(&mut account), kept(&mut account)), (vec![1000], vec![]));
}

#[test]
fn a_quota_grows_with_what_is_lent_and_only_in_that_period() {
    let mut account = Bench::new(earning(1000, Counts::Down, 50, Some(600)));
    account.take(Way::Down, 1000).expect("a quota");
    assert!(account.account.open_flow(NOW).is_err());
    account.lend(Used { up: 9000, down: 300 });
    account.account.open_flow(NOW).expect("150 were earned: what counts is what the quota counts");
    assert_eq!(account.take(Way::Down, 9000).expect("what was earned").bytes, 150);
    let refused = account.take(Way::Down, 1).expect_err("used up").to_string();
    let said = "the 1.1 kB that you may use for downloads, 150 B of them earned by lending, are used up; the count begins anew on";
    assert!(refused.starts_with(said), "{refused}");
    account.lend(Used { up: 0, down: 9000 });
    assert_eq!(account.take(Way::Down, 9000).expect("the most that is earned").bytes, 450);
    assert_eq!(account.account.told().map(|told| (told.used_bytes, told.quota_bytes)), Some((1600, 1600)));
    let next_month = account.account.span().end;
    let granted = account.account.take(account.now, next_month, Way::Down, ANN, 9000).expect("a new period").bytes;
    assert_eq!(granted, 1000, "nothing is earned in it yet");
}

#[test]
fn what_is_lent_lifts_the_throttle() {
    let mut limits = earning(1000, Counts::Both, 100, None);
    limits.quota.as_mut().expect("a quota").at_limit = AtLimit::Throttle(Rate { bits_per_second: 8_000 });
    let mut account = Bench::new(limits);
    account.take(Way::Down, 1000).expect("a quota");
    account.take(Way::Down, 1000).expect("goes on, throttled");
    let waits = account.take(Way::Down, 1000).expect("goes on, throttled");
    assert!(account.account.wait(account.now, Way::Down, &waits).is_some());
    account.lend(Used { up: 2000, down: 2000 });
    assert_eq!(account.account.wait(account.now, Way::Down, &waits), None);
}

#[test]
fn what_is_lent_is_spent_by_lease() {
    let mut account = Bench::new(earning(1000, Counts::Both, 50, None));
    account.account.share(BTreeMap::new());
    account.lease(Used::default(), 0, 1000, true);
    account.take(Way::Down, 1000).expect("the rest");
    assert!(account.account.open_flow(NOW).is_err() && !account.account.is_lease_low());
    account.lend(Used { up: 0, down: 800 });
    account.account.open_flow(NOW).expect("there is more");
    assert_eq!(account.take(Way::Down, 1), Err(Refused::NotYet), "which may be with another server");
    assert!(account.account.is_lease_low());
    let counted = account.account.counted_here();
    account.lease(counted, 250, 150, true);
    assert_eq!(account.take(Way::Down, 9000).expect("a lease").bytes, 150);
    assert!(matches!(account.take(Way::Down, 1), Err(Refused::UsedUp { .. })));
}

#[test]
fn all_users_of_a_lan_use_its_quota_up() {
    let mut account = Bench::of_lan(limits(1000, Counts::Both));
    let mut take = |sharer, bytes| account.account.take(account.now, NOW, Way::Down, sharer, bytes);
    assert_eq!(take(ANN, 600).expect("a quota").bytes, 600);
    assert_eq!(take(BOB, 600).expect("a quota").bytes, 400);
    let refused = take(ANN, 1).expect_err("used up").to_string();
    assert!(refused.starts_with("the 1.0 kB that your LAN may use are used up"), "{refused}");
}

#[test]
fn a_throttled_quota_is_shared_like_a_rate() {
    let mut limits = limits(1000, Counts::Both);
    limits.quota.as_mut().expect("a quota").at_limit = AtLimit::Throttle(Rate { bits_per_second: 8000 });
    let mut account = Bench::of_lan(limits);
    account.take(Way::Down, 1000).expect("the quota");
    let many: Vec<_> = (0..9).map(|_| account.take(Way::Down, 1000).expect("throttled")).collect();
    let one = account.account.take(account.now, NOW, Way::Down, BOB, 1000).expect("throttled");
    let later = account.now + Duration::from_millis(2100);
    assert_eq!(account.account.wait(later, Way::Down, &one), None, "it is not behind all of the other's");
    assert!(account.account.wait(later, Way::Down, &many[8]).is_some());
}

#[test]
fn a_turn_that_is_given_up_is_the_next_ones() {
    let mut account = Bench::new(Limits { rate_up: Some(Rate { bits_per_second: 8000 }), ..Limits::default() });
    let [first, waits] = [0; 2].map(|_| account.take(Way::Up, 1000).expect("no quota"));
    account.account.give_back(Way::Up, 1000, Some(&waits));
    account.account.give_up_turn(Way::Up, &waits);
    let next = account.take(Way::Up, 1000).expect("no quota");
    assert_eq!(account.account.wait(account.now, Way::Up, &first), None);
    assert_eq!(account.account.wait(account.now + Duration::from_millis(1010), Way::Up, &next), None);
    assert_eq!(account.account.used().up, 2000);
}

const ANN: Sharer = Sharer { user: 1, flow: 1 };
const BOB: Sharer = Sharer { user: 2, flow: 1 };

/// 2026-11-24 08:00 UTC.
const NOW: UnixSeconds = UnixSeconds(1_795_507_200);

struct Bench {
    account: Account,
    now: Instant,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let now = Instant::now();
        Self { account: Account::new(Whose::User, now, NOW, limits, NOW, BTreeMap::new()), now }
    }

    fn of_lan(limits: Limits) -> Self {
        let now = Instant::now();
        Self { account: Account::new(Whose::Lan, now, NOW, limits, NOW, BTreeMap::new()), now }
    }

    fn take(&mut self, way: Way, bytes: u64) -> Result<Grant, Refused> {
        self.account.take(self.now, NOW, way, ANN, bytes)
    }

    fn lend(&mut self, lent: Used) {
        let period = self.account.span().start;
        self.account.set_lent(self.now, period, lent);
    }

    fn lease(&mut self, counted: Used, elsewhere_down: u64, bytes: u64, is_rest: bool) {
        let elsewhere = Used { up: 0, down: elsewhere_down };
        let period = self.account.span().start;
        self.account.set_lease(self.now, Lease { period, counted, elsewhere, bytes, is_rest, lent: self.account.lent() });
    }
}

fn limits(bytes: u64, counts: Counts) -> Limits {
    let period = Period { length: Length::default(), ..Period::default() };
    let quota = Quota { size: Size { bytes }, counts, period, at_limit: AtLimit::Refuse, earning: None };
    Limits { quota: Some(quota), ..Limits::default() }
}

fn earning(bytes: u64, counts: Counts, percent: u64, at_most: Option<u64>) -> Limits {
    let mut limits = limits(bytes, counts);
    let earning = Earning { percent: percent.try_into().expect("a part"), at_most: at_most.map(|bytes| Size { bytes }) };
    limits.quota.as_mut().expect("a quota").earning = Some(earning);
    limits
}
