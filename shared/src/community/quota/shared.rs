//! An account that several users spend from besides their own: a LAN's, or the line of the server itself.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    Account, Grant, Limits, Refused, UnixSeconds, Used, Way,
    account::Whose,
    shares::{ShareTicket, Sharer, Shares},
};

/// An account of many: its quota is used up by all of them together, its rates are shared between them evenly.
#[derive(Debug)]
pub struct SharedAccount {
    account: Account,
    up: Shares,
    down: Shares,
}

/// Leave to move bytes, once the turn of its user has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedGrant {
    grant: Grant,
    sharer: Sharer,
    ticket: ShareTicket,
}

impl SharedAccount {
    /// An account of which `used_by_period` is known from before.
    pub fn new(now: Instant, time: UnixSeconds, limits: Limits, since: UnixSeconds, used_by_period: BTreeMap<UnixSeconds, Used>) -> Self {
        let account = Account::of(Whose::Lan, now, time, limits, since, used_by_period);
        let (up, down) = (Shares::new(now, account.rate(Way::Up)), Shares::new(now, account.rate(Way::Down)));
        Self { account, up, down }
    }

    /// What is counted: its limits, its use, its flows.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The same, to count. Rates are followed by the next grant.
    pub fn account_mut(&mut self) -> &mut Account {
        &mut self.account
    }

    /// Follows the operator's changes, for those who wait as well.
    pub fn set_limits(&mut self, now: Instant, time: UnixSeconds, limits: Limits) {
        self.account.set_limits(now, time, limits);
        self.set_rates(now);
    }

    /// As [`Account::take`], for a flow of `sharer`.
    ///
    /// # Errors
    /// If the quota is used up and refuses.
    pub fn take(&mut self, now: Instant, time: UnixSeconds, way: Way, sharer: Sharer, bytes: u64) -> Result<SharedGrant, Refused> {
        let grant = self.account.take(now, time, way, bytes)?;
        Ok(self.granted(now, way, sharer, grant))
    }

    /// As [`Account::take_whole`], for a flow of `sharer`.
    ///
    /// # Errors
    /// If the quota has fewer left and refuses.
    pub fn take_whole(&mut self, now: Instant, time: UnixSeconds, way: Way, sharer: Sharer, bytes: u64) -> Result<SharedGrant, Refused> {
        let grant = self.account.take_whole(now, time, way, bytes)?;
        Ok(self.granted(now, way, sharer, grant))
    }

    /// How long until it is worth to look whether a grant's turn has come; `None` once it has.
    pub fn wait(&mut self, now: Instant, way: Way, grant: &SharedGrant) -> Option<Duration> {
        self.shares(way).wait(now, grant.sharer, grant.ticket)
    }

    /// The most that is moved in one turn.
    pub fn turn_bytes(&mut self, way: Way) -> u64 {
        self.shares(way).turn_bytes()
    }

    /// Takes back `bytes` of a grant that did not reach their end, and its turn if that has not come; without the grant, of this period.
    pub fn give_back(&mut self, way: Way, bytes: u64, grant: Option<SharedGrant>) {
        if let Some(SharedGrant { sharer, ticket, .. }) = grant {
            self.shares(way).cancel(sharer, ticket);
        }
        self.account.give_back(way, bytes, grant.map(|grant| grant.grant));
    }

    fn granted(&mut self, now: Instant, way: Way, sharer: Sharer, grant: Grant) -> SharedGrant {
        self.set_rates(now);
        let ticket = self.shares(way).take(now, sharer, grant.bytes);
        SharedGrant { grant, sharer, ticket }
    }

    fn set_rates(&mut self, now: Instant) {
        let (up, down) = (self.account.rate(Way::Up), self.account.rate(Way::Down));
        self.up.set_rate(now, up);
        self.down.set_rate(now, down);
    }

    fn shares(&mut self, way: Way) -> &mut Shares {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

impl SharedGrant {
    /// How many bytes, at least 1.
    pub fn bytes(&self) -> u64 {
        self.grant.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        community::quota::Quota,
        units::{Rate, Size},
    };

    #[test]
    fn all_users_together_use_the_quota_up() {
        let limits = Limits { quota: Some(Quota::of(Size { bytes: 1000 })), ..Limits::default() };
        let (now, mut account) = account(limits);
        let mut take = |sharer, bytes| account.take(now, NOW, Way::Down, Sharer(sharer), bytes);
        assert_eq!(take(1, 600).expect("a quota").bytes(), 600);
        assert_eq!(take(2, 600).expect("a quota").bytes(), 400);
        let refused = take(1, 1).expect_err("used up").to_string();
        assert!(refused.starts_with("the 1.0 kB that your LAN may use are used up"), "{refused}");
    }

    #[test]
    fn a_throttled_quota_is_shared_like_a_rate() {
        let mut quota = Quota::of(Size { bytes: 1000 });
        quota.at_limit = crate::community::quota::AtLimit::Throttle(Rate { bits_per_second: 8000 });
        let (now, mut account) = account(Limits { quota: Some(quota), ..Limits::default() });
        account.take(now, NOW, Way::Down, Sharer(1), 1000).expect("the quota");
        let many: Vec<_> = (0..9).map(|_| account.take(now, NOW, Way::Down, Sharer(1), 1000).expect("throttled")).collect();
        let one = account.take(now, NOW, Way::Down, Sharer(2), 1000).expect("throttled");
        let later = now + Duration::from_secs(2);
        assert_eq!(account.wait(later, Way::Down, &one), None, "it is not behind all of the other's");
        assert!(account.wait(later, Way::Down, &many[8]).is_some());
    }

    #[test]
    fn what_is_given_back_counts_for_nobody() {
        let (now, mut account) = account(Limits { rate_up: Some(Rate { bits_per_second: 8000 }), ..Limits::default() });
        let first = account.take(now, NOW, Way::Up, Sharer(1), 1000).expect("no quota");
        let waits = account.take(now, NOW, Way::Up, Sharer(1), 1000).expect("no quota");
        account.give_back(Way::Up, 1000, Some(waits));
        let next = account.take(now, NOW, Way::Up, Sharer(1), 1000).expect("no quota");
        assert_eq!(account.wait(now, Way::Up, &first), None);
        assert_eq!(account.wait(now + Duration::from_secs(1), Way::Up, &next), None);
        assert_eq!(account.account().used().up, 2000);
    }

    const NOW: UnixSeconds = UnixSeconds(1_795_507_200);

    fn account(limits: Limits) -> (Instant, SharedAccount) {
        let now = Instant::now();
        (now, SharedAccount::new(now, NOW, limits, NOW, BTreeMap::new()))
    }
}
