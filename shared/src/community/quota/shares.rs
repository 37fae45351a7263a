//! One direction of a rate that many users share: each gets the same part of it, whatever the number of its flows.
//!
//! Between users by start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996, §2), which, unlike rounds of a fixed quantum, is fair for
//! turns of any size; a user's own tickets come due in the order in which they were taken, so that flows that each hold one at a time get the
//! same. A user who has nothing to move takes nothing from the others, and earns little for later: [`SLACK`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::shaper::{BURST, nanobits, turn_bytes};
use crate::units::Rate;

/// Who shares, by a number of the caller's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Sharer(pub i64);

/// A place in the line of one sharer; later ones have larger numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ShareTicket(u64);

/// The line of one direction. Amounts are in nanobits.
#[derive(Debug)]
pub(super) struct Shares {
    rate: Option<Rate>,
    /// What may pass now; negative while the last that passed takes its time.
    credit: i128,
    counted_at: Instant,
    /// The start tag of what passed last; once nobody waits, the finish tag.
    virtual_time: u128,
    next: ShareTicket,
    lines: BTreeMap<Sharer, Line>,
    /// The start tags of those who wait.
    waiting: BTreeSet<(u128, Sharer)>,
}

#[derive(Debug, Default)]
struct Line {
    tickets: VecDeque<Waiting>,
    /// What all its tickets together are for.
    issued: u128,
    /// The start tag of the first ticket; without one, the finish tag of the last that passed.
    tag: u128,
}

#[derive(Debug)]
struct Waiting {
    ticket: ShareTicket,
    amount: u128,
    /// What the sharer's tickets before it are for.
    ahead: u128,
}

impl Shares {
    /// A line that nobody waits in.
    pub(super) fn new(now: Instant, rate: Option<Rate>) -> Self {
        Self { rate, credit: 0, counted_at: now, virtual_time: 0, next: ShareTicket(0), lines: BTreeMap::new(), waiting: BTreeSet::new() }
    }

    /// Follows a change of the rate; none lets everyone pass.
    pub(super) fn set_rate(&mut self, now: Instant, rate: Option<Rate>) {
        if rate == self.rate {
            return;
        }
        self.pass(now);
        self.rate = rate;
        if rate.is_none() {
            self.lines.clear();
            self.waiting.clear();
            (self.credit, self.virtual_time) = (0, 0);
        }
    }

    /// A ticket for `bytes`.
    pub(super) fn take(&mut self, now: Instant, sharer: Sharer, bytes: u64) -> ShareTicket {
        let ticket = self.next;
        self.next.0 += 1;
        if self.rate.is_none() {
            return ticket;
        }
        self.pass(now);
        self.forget_idle();
        let (amount, now_tag) = (nanobits(bytes), self.virtual_time);
        let earliest = now_tag.saturating_sub(self.slack());
        let line = self.lines.entry(sharer).or_insert_with(|| Line { tag: now_tag, ..Line::default() });
        if line.tickets.is_empty() {
            line.tag = line.tag.max(earliest);
            self.waiting.insert((line.tag, sharer));
        }
        line.tickets.push_back(Waiting { ticket, amount, ahead: line.issued });
        line.issued += amount;
        ticket
    }

    /// How long until it is worth to look whether a ticket's turn has come; `None` once it has.
    pub(super) fn wait(&mut self, now: Instant, sharer: Sharer, ticket: ShareTicket) -> Option<Duration> {
        let rate = self.rate?;
        self.pass(now);
        let line = self.lines.get(&sharer)?;
        let own = line.tickets[line.find(ticket)?].ahead - line.tickets.front()?.ahead;
        let others = if own == 0 {
            let before = self.waiting.range(..(line.tag, sharer)).take(LOOKED_AT).map(|(_, other)| self.lines[other].tickets[0].amount);
            before.sum()
        } else {
            // Half of what it is if all who wait go on to: each look brings it nearer, and none sleeps past its turn for long.
            own * (self.waiting.len() as u128 - 1) / 2
        };
        let ahead = i128::try_from(own + others).unwrap_or(i128::MAX).saturating_sub(self.credit).max(1);
        let nanoseconds = ahead.unsigned_abs().div_ceil(u128::from(rate.bits_per_second));
        Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }

    /// Gives up a ticket whose turn may not have come.
    pub(super) fn cancel(&mut self, sharer: Sharer, ticket: ShareTicket) {
        let Some(line) = self.lines.get_mut(&sharer) else { return };
        let Some(index) = line.find(ticket) else { return };
        line.tickets.remove(index);
        if line.tickets.is_empty() {
            self.waiting.remove(&(line.tag, sharer));
        }
    }

    /// The most that one ticket should be for.
    pub(super) fn turn_bytes(&self) -> u64 {
        turn_bytes(self.rate)
    }

    /// Lets pass what time has come for, in the order of the start tags.
    fn pass(&mut self, now: Instant) {
        let Some(rate) = self.rate else { return };
        let bits_per_second = i128::from(rate.bits_per_second);
        let elapsed = i128::try_from(now.saturating_duration_since(self.counted_at).as_nanos()).unwrap_or(i128::MAX);
        self.counted_at = self.counted_at.max(now);
        self.credit = self.credit.saturating_add(elapsed.saturating_mul(bits_per_second));
        while self.credit >= 0
            && let Some((tag, sharer)) = self.waiting.pop_first()
        {
            let line = self.lines.get_mut(&sharer).expect("who waits has a line");
            let Waiting { amount, .. } = line.tickets.pop_front().expect("who waits has a ticket");
            self.credit = self.credit.saturating_sub_unsigned(amount);
            self.virtual_time = self.virtual_time.max(tag);
            line.tag = tag + amount;
            if !line.tickets.is_empty() {
                self.waiting.insert((line.tag, sharer));
            } else if self.waiting.is_empty() {
                self.virtual_time = self.virtual_time.max(line.tag);
            }
        }
        // Whatever was not used within a burst is forgone.
        self.credit = self.credit.min(bits_per_second * BURST.as_nanos() as i128);
    }

    /// How far behind the others a sharer may be and get it back.
    fn slack(&self) -> u128 {
        self.rate.map_or(0, |rate| u128::from(rate.bits_per_second) * SLACK.as_nanos())
    }

    /// Lets go of those whose past makes no difference any more, once they are the most.
    fn forget_idle(&mut self) {
        if self.lines.len() > 2 * self.waiting.len() + IDLE_MAX {
            let earliest = self.virtual_time.saturating_sub(self.slack());
            self.lines.retain(|_, line| !line.tickets.is_empty() || line.tag > earliest);
        }
    }
}

impl Line {
    fn find(&self, ticket: ShareTicket) -> Option<usize> {
        self.tickets.binary_search_by_key(&ticket, |waiting| waiting.ticket).ok()
    }
}

/// A user with one flow is late for its next turn whenever a timer or a thread is: it loses nothing by that.
const SLACK: Duration = Duration::from_millis(20);

/// Those who went before, in looking when a turn will come.
const LOOKED_AT: usize = 64;

/// Lines of nobody who waits that are kept at least.
const IDLE_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_with_a_thousand_flows_gets_no_more_than_one_with_one() {
        // A flow that is 5 ms late after each turn of 64 KiB has no more than a tenth of a gigabit.
        for (late_us, rates) in [(900, &[2_000_000, 20_000_000, 1_000_000_000][..]), (5_000, &[2_000_000, 20_000_000])] {
            for rate in rates.iter().copied() {
                let passed = run(rate, &[1000, 1, 30], Duration::from_micros(late_us));
                let all: f64 = passed.iter().sum();
                assert!((0.98..1.02).contains(&(all / rate as f64)), "{rate} bit/s, {late_us} µs late: {passed:?}");
                for part in passed.iter().map(|user| user / all * 3.0) {
                    assert!((0.97..1.03).contains(&part), "{rate} bit/s, {late_us} µs late: {passed:?}");
                }
            }
        }
    }

    #[test]
    fn what_one_does_not_take_the_others_have() {
        let passed = run(20_000_000, &[1, 0, 0], Duration::from_micros(900));
        assert!((0.99..1.01).contains(&(passed[0] / 20e6)), "{passed:?}");
    }

    #[test]
    fn flows_of_a_user_take_turns() {
        let begun = Instant::now();
        let mut shares = Shares::new(begun, Some(rate(8_000)));
        let tickets: Vec<_> = (0..10).map(|_| shares.take(begun, ANN, 1000)).collect();
        for (index, ticket) in tickets.iter().enumerate() {
            let due = begun + Duration::from_secs(index as u64);
            if index > 0 {
                assert!(shares.wait(due - Duration::from_millis(1), ANN, *ticket).is_some(), "{index}");
            }
            assert_eq!(shares.wait(due, ANN, *ticket), None, "{index}");
        }
    }

    #[test]
    fn a_turn_given_up_is_the_next_ones() {
        let begun = Instant::now();
        let mut shares = Shares::new(begun, Some(rate(8_000)));
        let tickets: Vec<_> = (0..3).map(|_| shares.take(begun, ANN, 1000)).collect();
        shares.cancel(ANN, tickets[1]);
        assert_eq!(shares.wait(begun + Duration::from_secs(1), ANN, tickets[2]), None);
    }

    #[test]
    fn without_a_rate_nobody_waits() {
        let begun = Instant::now();
        let mut shares = Shares::new(begun, Some(rate(8_000)));
        shares.take(begun, ANN, 1_000_000);
        let ticket = shares.take(begun, BOB, 1_000_000);
        let next = shares.take(begun, BOB, 1_000_000);
        assert!(shares.wait(begun, BOB, next).is_some());
        shares.set_rate(begun, None);
        assert_eq!((shares.wait(begun, BOB, ticket), shares.wait(begun, BOB, next)), (None, None));
        shares.set_rate(begun, Some(rate(8_000)));
        assert_eq!(shares.wait(begun, BOB, next), None, "what was let pass stays so");
    }

    #[test]
    fn those_who_have_left_are_forgotten() {
        let begun = Instant::now();
        let mut shares = Shares::new(begun, Some(rate(1_000_000_000)));
        for user in 0..10_000 {
            let now = begun + Duration::from_millis(user as u64);
            let ticket = shares.take(now, Sharer(user), 60_000);
            assert!(shares.wait(now + Duration::from_millis(1), Sharer(user), ticket).is_none());
        }
        assert!(shares.lines.len() < 300, "{}", shares.lines.len());
    }

    /// Bits per second that each user passes, who has so many flows, when every wait ends `late`.
    fn run(bits_per_second: u64, flows_by_user: &[usize], late: Duration) -> Vec<f64> {
        const SECONDS: u64 = 10;
        let begun = Instant::now();
        let mut shares = Shares::new(begun, Some(rate(bits_per_second)));
        let turn = shares.turn_bytes();
        let mut passed = vec![0.0; flows_by_user.len()];
        let mut wakes = BTreeSet::new();
        let mut number = 0;
        for (user, flows) in flows_by_user.iter().enumerate() {
            for _ in 0..*flows {
                wakes.insert((begun, number, user, shares.take(begun, Sharer(user as i64), turn)));
                number += 1;
            }
        }
        while let Some((at, number, user, ticket)) = wakes.pop_first() {
            if at >= begun + Duration::from_secs(SECONDS) {
                break;
            }
            let sharer = Sharer(user as i64);
            let (next, ticket) = match shares.wait(at, sharer, ticket) {
                Some(wait) => (at + wait.max(Duration::from_micros(100)) + late, ticket),
                None => {
                    passed[user] += turn as f64 * 8.0 / SECONDS as f64;
                    (at + Duration::from_micros(20), shares.take(at + Duration::from_micros(20), sharer, turn))
                }
            };
            wakes.insert((next, number, user, ticket));
        }
        passed
    }

    fn rate(bits_per_second: u64) -> Rate {
        Rate { bits_per_second }
    }

    const ANN: Sharer = Sharer(1);
    const BOB: Sharer = Sharer(2);
}
