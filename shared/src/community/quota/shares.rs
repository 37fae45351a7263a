//! One direction of a rate that is shared: between users first, then between each one's flows, evenly.
//!
//! Who wants to pass takes a ticket and waits for its turn ([`Turns`]): bytes wait where they are. So a user with a thousand flows gets no more than
//! one with one, and a request or a call beside downloads goes before them, as long as it takes less than its share. Who has nothing to move takes
//! nothing from the others, and earns little for later: [`SLACK`]. A change of the rate applies to those who wait already.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::turns::Turns;
use crate::units::Rate;

/// Who shares, by numbers of the caller's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Sharer {
    /// The user.
    pub user: i64,
    /// Which of the user's flows.
    pub flow: u64,
}

/// A place in the line of one sharer; later ones have larger numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ShareTicket(u64);

/// The line of one direction. Amounts are in billionths of a bit, of which a rate in bits per second gives a whole number in a nanosecond.
#[derive(Debug)]
pub(super) struct Shares {
    rate: Option<Rate>,
    /// What may pass now; negative while the last that passed takes its time.
    credit: i128,
    counted_at: Instant,
    next: ShareTicket,
    users: Turns<i64>,
    lines: BTreeMap<i64, Line>,
}

/// A user's flows.
#[derive(Debug, Default)]
struct Line {
    flows: Turns<u64>,
    tickets: BTreeMap<u64, VecDeque<(ShareTicket, u128)>>,
}

impl Shares {
    /// A line that nobody waits in.
    pub(super) fn new(now: Instant, rate: Option<Rate>) -> Self {
        Self { rate, credit: 0, counted_at: now, next: ShareTicket(0), users: Turns::default(), lines: BTreeMap::new() }
    }

    /// Follows a change of the rate; none lets everyone pass.
    pub(super) fn set_rate(&mut self, now: Instant, rate: Option<Rate>) {
        if rate == self.rate {
            return;
        }
        self.pass(now);
        self.rate = rate;
        if rate.is_none() {
            (self.users, self.lines, self.credit) = (Turns::default(), BTreeMap::new(), 0);
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
        let slack = self.slack();
        let line = self.lines.entry(sharer.user).or_default();
        line.flows.enter(sharer.flow, slack);
        line.tickets.entry(sharer.flow).or_default().push_back((ticket, amount_of(bytes)));
        if line.flows.forget_idle(slack) {
            line.tickets.retain(|flow, _| line.flows.knows(*flow));
        }
        self.users.enter(sharer.user, slack);
        if self.users.forget_idle(slack) {
            self.lines.retain(|user, _| self.users.knows(*user));
        }
        ticket
    }

    /// How long until it is worth to look whether a ticket's turn has come, at the soonest; `None` once it has.
    pub(super) fn wait(&mut self, now: Instant, sharer: Sharer, ticket: ShareTicket) -> Option<Duration> {
        let rate = self.rate?;
        self.pass(now);
        let line = self.lines.get(&sharer.user)?;
        let tickets = line.tickets.get(&sharer.flow)?;
        let index = position(tickets, ticket)?;
        let of_flow: u128 = tickets.range(..index).map(|(_, amount)| amount).sum();
        let of_flows: u128 = line.flows.before(sharer.flow).take(LOOKED_AT).map(|flow| line.next_of(flow)).sum();
        let others = self.users.before(sharer.user).take(LOOKED_AT).filter_map(|user| self.lines.get(&user));
        let of_others: u128 = others.map(Line::next).sum();
        let ahead = i128::try_from(of_flow + of_flows + of_others).unwrap_or(i128::MAX).saturating_sub(self.credit).max(1);
        let nanoseconds = ahead.unsigned_abs().div_ceil(pace(rate));
        Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }

    /// Gives up a ticket whose turn may not have come.
    pub(super) fn cancel(&mut self, sharer: Sharer, ticket: ShareTicket) {
        let Some(line) = self.lines.get_mut(&sharer.user) else { return };
        let Some(tickets) = line.tickets.get_mut(&sharer.flow) else { return };
        let Some(index) = position(tickets, ticket) else { return };
        tickets.remove(index);
        if tickets.is_empty() {
            line.flows.leave(sharer.flow);
        }
        if line.flows.first().is_none() {
            self.users.leave(sharer.user);
        }
    }

    /// The most that one ticket should be for, so that turns come often enough.
    pub(super) fn turn_bytes(&self) -> u64 {
        let Some(rate) = self.rate else { return TURN_BYTES.1 };
        (rate.bits_per_second / 8 / 1000).saturating_mul(TURN.as_millis() as u64).clamp(TURN_BYTES.0, TURN_BYTES.1)
    }

    /// Lets pass what time has come for.
    fn pass(&mut self, now: Instant) {
        let Some(rate) = self.rate else { return };
        let pace = pace(rate) as i128;
        let elapsed = i128::try_from(now.saturating_duration_since(self.counted_at).as_nanos()).unwrap_or(i128::MAX);
        self.counted_at = self.counted_at.max(now);
        self.credit = self.credit.saturating_add(elapsed.saturating_mul(pace));
        while self.credit >= 0
            && let Some(user) = self.users.first()
        {
            let (amount, has_more) = self.lines.get_mut(&user).map_or((0, false), Line::pass);
            self.users.pass_first(amount, has_more);
            self.credit = self.credit.saturating_sub_unsigned(amount);
        }
        // Whatever was not used within a burst is forgone.
        self.credit = self.credit.min(pace * BURST.as_nanos() as i128);
    }

    /// How far behind the others a sharer may be and get it back.
    fn slack(&self) -> u128 {
        self.rate.map_or(0, |rate| pace(rate) * SLACK.as_nanos())
    }
}

impl Line {
    /// Lets the first ticket pass; gives what it is for, and whether there are more.
    fn pass(&mut self) -> (u128, bool) {
        let first = self.flows.first().and_then(|flow| self.tickets.get_mut(&flow));
        let Some((tickets, (_, amount))) = first.and_then(|tickets| tickets.pop_front().map(|ticket| (tickets, ticket))) else {
            return (0, false);
        };
        self.flows.pass_first(amount, !tickets.is_empty());
        (amount, self.flows.first().is_some())
    }

    /// What the first ticket is for.
    fn next(&self) -> u128 {
        self.flows.first().map_or(0, |flow| self.next_of(flow))
    }

    /// What a flow's first ticket is for.
    fn next_of(&self, flow: u64) -> u128 {
        self.tickets.get(&flow).and_then(VecDeque::front).map_or(0, |(_, amount)| *amount)
    }
}

fn position(tickets: &VecDeque<(ShareTicket, u128)>, ticket: ShareTicket) -> Option<usize> {
    tickets.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()
}

fn amount_of(bytes: u64) -> u128 {
    u128::from(bytes) * 8 * 1_000_000_000
}

/// What passes in the long run, in amounts a nanosecond: so much less than the rate that with a burst no more than that passes within [`HELD_WITHIN`].
fn pace(rate: Rate) -> u128 {
    let thousandths = 1000 - 1000 * BURST.as_millis() / HELD_WITHIN.as_millis();
    (u128::from(rate.bits_per_second) * thousandths / 1000).max(1)
}

/// What may pass at once after a pause. Less loses rate whenever a timer or a thread is late, more is a queue on the user's line.
const BURST: Duration = Duration::from_millis(20);

/// Who measures a rate for less time may find a burst more.
const HELD_WITHIN: Duration = Duration::from_secs(10);

/// A flow is late for its next turn whenever a timer or a thread is: it loses nothing by that.
const SLACK: Duration = Duration::from_millis(20);

/// How often each of a few flows gets its turn.
const TURN: Duration = Duration::from_millis(4);

/// From a datagram's worth, below which a turn costs more than it carries, to what the flows' pipes move in one piece.
const TURN_BYTES: (u64, u64) = (1200, 64 << 10);

/// Those who went before, in looking when a turn will come.
const LOOKED_AT: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_flow_that_always_wants_more_gets_the_rate() {
        for (bits_per_second, late_us) in [(56_000, 0), (5_000_000, 900), (5_000_000, 15_000), (1_000_000_000, 900)] {
            let passed = run(bits_per_second, &[1], Duration::from_micros(late_us))[0][0];
            let part = passed / bits_per_second as f64;
            // The last turn may have begun just before the end.
            let turn =
                Shares::new(Instant::now(), Some(rate(bits_per_second))).turn_bytes() as f64 * 8.0 / (bits_per_second * SECONDS) as f64;
            assert!((0.99..1.0 + turn).contains(&part), "{bits_per_second} bit/s, {late_us} µs late: {part}");
        }
    }

    #[test]
    fn flows_of_a_user_share_evenly() {
        let flows = &run(20_000_000, &[100], Duration::from_millis(1))[0];
        let (least, most) = flows.iter().fold((f64::MAX, 0.0_f64), |(least, most), flow| (least.min(*flow), most.max(*flow)));
        assert!((0.99..1.005).contains(&(flows.iter().sum::<f64>() / 20e6)), "{flows:?}");
        let turn = Shares::new(Instant::now(), Some(rate(20_000_000))).turn_bytes() as f64 * 8.0 / SECONDS as f64;
        assert!(most - least <= 2.0 * turn, "{least} to {most}");
    }

    #[test]
    fn a_user_with_a_thousand_flows_gets_no_more_than_one_with_one() {
        // A flow that is 5 ms late after each turn of 64 KiB has no more than a tenth of a gigabit.
        for (late_us, rates) in [(900, &[2_000_000, 20_000_000, 1_000_000_000][..]), (5_000, &[2_000_000, 20_000_000])] {
            for rate in rates.iter().copied() {
                let passed: Vec<f64> =
                    run(rate, &[1000, 1, 30], Duration::from_micros(late_us)).iter().map(|flows| flows.iter().sum()).collect();
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
        assert!((0.99..1.01).contains(&(passed[0][0] / 20e6)), "{passed:?}");
    }

    #[test]
    fn a_flow_that_wants_little_goes_before_those_that_always_want_more() {
        // Of the same user, and of another one with as many.
        for others in [ANN, BOB] {
            let begun = Instant::now();
            let mut shares = Shares::new(begun, Some(rate(8_000_000)));
            let mut taken = VecDeque::new();
            for flow in 0..100 {
                let sharer = Sharer { flow, ..others };
                taken.push_back((sharer, shares.take(begun, sharer, 1000)));
            }
            for ms in 1..2000 {
                let now = begun + Duration::from_millis(ms);
                while let Some(index) = taken.iter().position(|(sharer, ticket)| shares.wait(now, *sharer, *ticket).is_none()) {
                    let (sharer, _) = taken.remove(index).expect("found");
                    taken.push_back((sharer, shares.take(now, sharer, 1000)));
                }
                // 200 B each 40 ms are 40 kbit/s, where each of 101 flows may have 79; a turn is 1 ms. It comes after the first round.
                if ms > 100 && ms % 40 == 0 {
                    let call = Sharer { flow: 1000, ..ANN };
                    let ticket = shares.take(now, call, 200);
                    let soon = now + Duration::from_millis(2);
                    assert_eq!(shares.wait(soon, call, ticket), None, "at {ms} ms");
                }
            }
        }
    }

    #[test]
    fn one_flow_after_another_does_not_keep_a_long_one_from_its_turns() {
        for (others, turns_of_each) in [(1, 1), (6, 1), (6, 2), (20, 1), (20, 3)] {
            let mut now = Instant::now();
            let mut shares = Shares::new(now, Some(rate(8_000_000)));
            let (mut passed_long, mut passed_short, mut next_flow) = (0, 0, others + 1);
            let mut taken: Vec<_> =
                (0..=others).map(|flow| (shares.take(now, Sharer { flow, ..ANN }, 1000), flow, turns_of_each)).collect();
            for _ in 0..20_000 {
                now += Duration::from_micros(500);
                for (ticket, flow, turns_left) in &mut taken {
                    if shares.wait(now, Sharer { flow: *flow, ..ANN }, *ticket).is_some() {
                        continue;
                    }
                    if *flow == 0 {
                        passed_long += 1;
                    } else {
                        passed_short += 1;
                        *turns_left -= 1;
                        if *turns_left == 0 {
                            (*flow, *turns_left) = (next_flow, turns_of_each);
                            next_flow += 1;
                        }
                    }
                    *ticket = shares.take(now, Sharer { flow: *flow, ..ANN }, 1000);
                }
            }
            let part = passed_long as f64 * others as f64 / f64::from(passed_short);
            assert!(part > 0.4, "beside {others} with {turns_of_each} turns each: {part} of what each of those has");
            let known = shares.lines[&ANN.user].tickets.len();
            assert!(known < 1500, "{known} flows are known");
        }
    }

    #[test]
    fn tickets_of_a_flow_come_due_in_their_order() {
        let begun = Instant::now();
        let mut shares = Shares::new(begun, Some(rate(8_000)));
        let tickets: Vec<_> = (0..10).map(|_| shares.take(begun, ANN, SECOND_BYTES)).collect();
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
        let tickets: Vec<_> = (0..3).map(|_| shares.take(begun, ANN, SECOND_BYTES)).collect();
        shares.cancel(ANN, tickets[1]);
        let other = Sharer { flow: 2, ..ANN };
        let cancelled = shares.take(begun, other, SECOND_BYTES);
        shares.cancel(other, cancelled);
        assert_eq!(shares.wait(begun + Duration::from_secs(1), ANN, tickets[2]), None);
        let alone = shares.take(begun + Duration::from_secs(1), BOB, SECOND_BYTES);
        shares.cancel(BOB, alone);
        let next = shares.take(begun + Duration::from_secs(1), other, SECOND_BYTES);
        assert_eq!(shares.wait(begun + Duration::from_secs(2), other, next), None);
    }

    #[test]
    fn a_change_of_rate_moves_those_who_wait() {
        let begun = Instant::now();
        let mut shares = Shares::new(begun, Some(rate(8_000)));
        shares.take(begun, ANN, 1000 * SECOND_BYTES);
        let ticket = shares.take(begun, BOB, 1000);
        assert_eq!(shares.wait(begun, BOB, ticket), Some(Duration::from_secs(1000)));
        shares.set_rate(begun, Some(rate(8_000_000)));
        assert_eq!(shares.wait(begun, BOB, ticket), Some(Duration::from_secs(1)));
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
    fn a_pause_earns_no_more_than_a_burst() {
        let begun = Instant::now();
        let mut shares = Shares::new(begun, Some(rate(8_000_000)));
        let later = begun + Duration::from_secs(100);
        shares.take(later, ANN, 20 * SECOND_BYTES);
        let next = shares.take(later, ANN, 1);
        assert_eq!(shares.wait(later, ANN, next), None, "20 ms' worth");
        let next = shares.take(later, ANN, 1);
        assert!(shares.wait(later, ANN, next).is_some());
    }

    #[test]
    fn those_who_have_left_are_forgotten() {
        let begun = Instant::now();
        let mut shares = Shares::new(begun, Some(rate(1_000_000_000)));
        for number in 0..20_000 {
            let now = begun + Duration::from_millis(number);
            let sharer = if number % 2 == 0 { Sharer { user: number as i64, flow: 0 } } else { Sharer { flow: number, ..ANN } };
            let ticket = shares.take(now, sharer, 60_000);
            assert!(shares.wait(now + Duration::from_millis(1), sharer, ticket).is_none());
        }
        assert!(shares.lines.len() < 300, "{}", shares.lines.len());
        assert!(shares.lines.values().all(|line| line.tickets.len() < 300));
    }

    /// Bits per second that each flow of each user passes, who has so many, when every wait ends `late`.
    fn run(bits_per_second: u64, flows_by_user: &[usize], late: Duration) -> Vec<Vec<f64>> {
        let begun = Instant::now();
        let mut shares = Shares::new(begun, Some(rate(bits_per_second)));
        let turn = shares.turn_bytes();
        let mut passed: Vec<Vec<f64>> = flows_by_user.iter().map(|flows| vec![0.0; *flows]).collect();
        let mut wakes = BTreeSet::new();
        for (user, flows) in flows_by_user.iter().enumerate() {
            for flow in 0..*flows {
                let sharer = Sharer { user: user as i64, flow: flow as u64 };
                wakes.insert((begun, sharer, shares.take(begun, sharer, turn)));
            }
        }
        while let Some((at, sharer, ticket)) = wakes.pop_first() {
            if at >= begun + Duration::from_secs(SECONDS) {
                break;
            }
            let (next, ticket) = match shares.wait(at, sharer, ticket) {
                Some(wait) => (at + wait.max(Duration::from_micros(100)) + late, ticket),
                None => {
                    passed[sharer.user as usize][sharer.flow as usize] += turn as f64 * 8.0 / SECONDS as f64;
                    (at + Duration::from_micros(20), shares.take(at + Duration::from_micros(20), sharer, turn))
                }
            };
            wakes.insert((next, sharer, ticket));
        }
        passed
    }

    fn rate(bits_per_second: u64) -> Rate {
        Rate { bits_per_second }
    }

    const ANN: Sharer = Sharer { user: 1, flow: 1 };
    const BOB: Sharer = Sharer { user: 2, flow: 1 };
    const SECONDS: u64 = 10;
    /// What passes in a second at 8 kbit/s.
    const SECOND_BYTES: u64 = 998;
}
