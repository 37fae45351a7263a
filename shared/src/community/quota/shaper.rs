//! One direction of a user's rate: who wants to pass takes a ticket and waits for its turn.
//!
//! Tickets are numbered in bits. The count of bits that may have passed grows with the rate, and a ticket is due when it has reached the
//! ticket. So turns come in the order in which they were taken: flows that each hold one ticket at a time share the rate evenly, however
//! many they are, and a change of the rate applies to those who wait already.

use std::time::{Duration, Instant};

use crate::units::Rate;

/// A place in the line.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ticket(u128);

/// The line of one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shaper {
    rate: Option<Rate>,
    /// What all tickets together are for.
    issued: u128,
    /// What may have passed by `counted_at`.
    passed: u128,
    counted_at: Instant,
}

impl Shaper {
    /// A line that nobody waits in.
    pub(super) fn new(now: Instant, rate: Option<Rate>) -> Self {
        Self { rate, issued: 0, passed: 0, counted_at: now }
    }

    /// Follows a change of the rate; none lets everyone pass.
    pub(super) fn set_rate(&mut self, now: Instant, rate: Option<Rate>) {
        if rate != self.rate {
            self.count(now);
            self.rate = rate;
        }
    }

    /// A ticket for `bytes`.
    pub(super) fn take(&mut self, now: Instant, bytes: u64) -> Ticket {
        self.count(now);
        let ticket = Ticket(self.issued);
        self.issued += nanobits(bytes);
        ticket
    }

    /// How long until a ticket's turn, to the nanosecond; `None` once it has come.
    pub(super) fn wait(&mut self, now: Instant, ticket: Ticket) -> Option<Duration> {
        let rate = self.rate?;
        self.count(now);
        let ahead = ticket.0.checked_sub(self.passed).filter(|ahead| *ahead > 0)?;
        let nanoseconds = ahead.div_ceil(u128::from(rate.bits_per_second));
        Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
    }

    /// The most that one ticket should be for, so that turns come often enough: a few milliseconds' worth.
    pub(super) fn turn_bytes(&self) -> u64 {
        turn_bytes(self.rate)
    }

    /// Whatever was not used within [`BURST`] is forgone.
    fn count(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.counted_at).as_nanos();
        self.counted_at = self.counted_at.max(now);
        self.passed = match self.rate {
            Some(rate) => {
                let bits_per_second = u128::from(rate.bits_per_second);
                let ceiling = self.issued + bits_per_second * BURST.as_nanos();
                (self.passed + elapsed.saturating_mul(bits_per_second)).min(ceiling)
            }
            None => self.issued,
        };
    }
}

/// Bits, in billionths: what a rate in bits per second gives in a nanosecond is a whole number of them.
pub(super) fn nanobits(bytes: u64) -> u128 {
    u128::from(bytes) * 8 * 1_000_000_000
}

/// The most that one ticket should be for at this rate.
pub(super) fn turn_bytes(rate: Option<Rate>) -> u64 {
    let Some(rate) = rate else { return TURN_BYTES.1 };
    (rate.bits_per_second / 8 / 1000).saturating_mul(TURN.as_millis() as u64).clamp(TURN_BYTES.0, TURN_BYTES.1)
}

/// What may pass at once after a pause. Less loses rate whenever a timer or a thread is late, more is a queue on the user's line.
pub(super) const BURST: Duration = Duration::from_millis(20);

/// How often each of a few flows gets its turn.
const TURN: Duration = Duration::from_millis(4);

/// From a datagram's worth, below which a turn costs more than it carries, to what the flows' pipes move in one piece.
const TURN_BYTES: (u64, u64) = (1200, 64 << 10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_that_always_wants_more_gets_the_rate() {
        for (rate, late_us) in [(56_000, 0), (5_000_000, 900), (5_000_000, 15_000), (1_000_000_000, 1000)] {
            let passed = run(rate, 1, Duration::from_micros(late_us))[0] as f64 * 8.0 / SECONDS as f64;
            let part = passed / rate as f64;
            // The last turn may have begun just before the end.
            let turn = TURN_BYTES.0 as f64 * 8.0 / (rate * SECONDS) as f64;
            assert!((0.99..1.005 + turn).contains(&part), "{rate} bit/s, {late_us} µs late: {part}");
        }
    }

    #[test]
    fn many_flows_share_evenly() {
        let passed = run(20_000_000, 100, Duration::from_millis(1));
        let (least, most) = (passed.iter().min().expect("some"), passed.iter().max().expect("some"));
        assert!(most - least <= Shaper::new(Instant::now(), Some(rate(20_000_000))).turn_bytes(), "{least} to {most}");
    }

    #[test]
    fn a_change_of_rate_moves_those_who_wait() {
        let begun = Instant::now();
        let mut shaper = Shaper::new(begun, Some(rate(8_000)));
        shaper.take(begun, 1_000_000);
        let ticket = shaper.take(begun, 1000);
        assert_eq!(shaper.wait(begun, ticket), Some(Duration::from_secs(1000)));
        shaper.set_rate(begun, Some(rate(8_000_000)));
        assert_eq!(shaper.wait(begun, ticket), Some(Duration::from_secs(1)));
        shaper.set_rate(begun, None);
        assert_eq!(shaper.wait(begun, ticket), None);
        shaper.set_rate(begun, Some(rate(8_000)));
        assert_eq!(shaper.wait(begun, ticket), None, "what was let pass stays so");
    }

    #[test]
    fn a_pause_earns_no_more_than_a_burst() {
        let begun = Instant::now();
        let mut shaper = Shaper::new(begun, Some(rate(8_000_000)));
        let later = begun + Duration::from_secs(100);
        shaper.take(later, 20_000);
        let next = shaper.take(later, 1);
        assert_eq!(shaper.wait(later, next), None, "20 ms' worth");
        let next = shaper.take(later, 1);
        assert!(shaper.wait(later, next).is_some());
    }

    /// What each of `flows` passes in [`SECONDS`] when every wait ends `late`.
    fn run(bits_per_second: u64, flows: usize, late: Duration) -> Vec<u64> {
        let begun = Instant::now();
        let mut shaper = Shaper::new(begun, Some(rate(bits_per_second)));
        let turn = shaper.turn_bytes();
        let mut passed = vec![0; flows];
        let mut wakes: Vec<_> = (0..flows).map(|flow| (begun, flow, shaper.take(begun, turn))).collect();
        loop {
            wakes.sort_by_key(|(at, ..)| *at);
            let (at, flow, ticket) = wakes.remove(0);
            if at >= begun + Duration::from_secs(SECONDS) {
                return passed;
            }
            if let Some(wait) = shaper.wait(at, ticket) {
                wakes.push((at + wait + late, flow, ticket));
            } else {
                passed[flow] += turn;
                wakes.push((at, flow, shaper.take(at, turn)));
            }
        }
    }

    fn rate(bits_per_second: u64) -> Rate {
        Rate { bits_per_second }
    }

    const SECONDS: u64 = 10;
}
