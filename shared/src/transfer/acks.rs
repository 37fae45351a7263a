//! What has arrived of a path's tracked datagrams, and when to say so.
//!
//! An acknowledgement is due at once when a datagram arrives out of turn or after [`ACK_EVERY`] of them, else after
//! [`max_delay`], so that a slow uplink isn't filled with acknowledgements of a fast downlink. On a path that sends full
//! datagrams itself it waits for one of them to take it along, since on a modem's line a packet of its own costs 17 ms.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use super::{packet::MAX_ACK_RANGES, ranges::RangeSet};
use crate::ids::Seq;

/// What has arrived of a path's tracked datagrams.
#[derive(Debug, Default)]
pub struct Acks {
    received: RangeSet,
    largest_at: Option<Instant>,
    unacked: u32,
    /// When the first of those arrived.
    unacked_since: Option<Instant>,
    due: Option<Instant>,
    /// How long the other end knows that acknowledgements are held back.
    held_back: HeldBack,
}

/// How long a path's acknowledgements were held back lately, at most: both ends follow it, the one that holds them back and the one that
/// is told in each how long that was.
#[derive(Clone, Copy, Default, Debug)]
pub struct HeldBack(Duration);

/// Datagrams that arrive before an acknowledgement goes out at the latest.
const ACK_EVERY: u32 = 16;

/// Ranges remembered: what acknowledgements hold, and as many again for datagrams that arrive late.
const MAX_RANGES: usize = 2 * MAX_ACK_RANGES;

/// The longest that an acknowledgement is held back (RFC 9000 §18.2) to be sent by itself.
const MAX_DELAY: Duration = Duration::from_millis(25);

/// The longest that it waits for a datagram that takes it along: what a full one takes at 33.6 kbit/s, and a little.
const MAX_RIDE_DELAY: Duration = Duration::from_millis(450);

/// How much longer each acknowledgement may be held back than the other end knows: less than a path's probe timeout spares.
const RIDE_STEP: Duration = Duration::from_millis(20);

/// How long a path of the given round-trip time holds an acknowledgement back: a quarter of it, from 1 to 25 ms.
///
/// Both ends reckon it from their own measure of the same path.
pub fn max_delay(smoothed_rtt: Duration) -> Duration {
    (smoothed_rtt / 4).clamp(Duration::from_millis(1), MAX_DELAY)
}

/// What an acknowledgement says.
#[derive(Debug)]
pub struct Saying<I> {
    /// When the datagram of the highest number arrived.
    pub largest_at: Instant,
    /// How long ago that was.
    pub delay: Duration,
    /// How long ago the first arrived of those not acknowledged before.
    pub held_back: Duration,
    /// The numbers that arrived, from the highest range down.
    pub ranges: I,
}

impl HeldBack {
    /// Notes an acknowledgement that was held back for `time`.
    pub fn note(&mut self, time: Duration) {
        self.0 = time.min(MAX_RIDE_DELAY).max(self.0 * 31 / 32);
    }

    /// How long an acknowledgement of a path of the given round-trip time may be held back.
    pub fn longest(self, smoothed_rtt: Duration) -> Duration {
        max_delay(smoothed_rtt).max(self.0)
    }
}

impl Acks {
    /// Notes a tracked datagram; `false` if it had arrived before.
    pub fn on_received(&mut self, now: Instant, seq: Seq, delay: Duration) -> bool {
        if self.received.contains(seq.0) {
            return false;
        }
        let next = self.received.last().map_or(0, |range| range.end);
        self.received.insert(seq.0..seq.0 + 1);
        while self.received.len() > MAX_RANGES {
            self.received.pop_first();
        }
        if seq.0 >= next {
            self.largest_at = Some(now);
        }
        self.unacked += 1;
        self.unacked_since.get_or_insert(now);
        let in_turn = seq.0 == next;
        let due = if in_turn && self.unacked < ACK_EVERY { now + delay } else { now };
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        true
    }

    /// When an acknowledgement is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// How long an acknowledgement may wait at most for a datagram that takes it along.
    pub fn ride_delay(&self) -> Duration {
        (self.held_back.0 + RIDE_STEP).min(MAX_RIDE_DELAY)
    }

    /// What an acknowledgement sent at `now` says.
    pub fn take(&mut self, now: Instant) -> Option<Saying<impl Iterator<Item = Range<u64>> + '_>> {
        self.due = None;
        self.unacked = 0;
        let largest_at = self.largest_at?;
        let held_back = now.saturating_duration_since(self.unacked_since.take().unwrap_or(largest_at));
        self.held_back.note(held_back);
        let delay = now.saturating_duration_since(largest_at);
        Some(Saying { largest_at, delay, held_back: held_back.max(delay), ranges: self.received.iter().rev() })
    }

    /// Says again at `now` what has arrived.
    pub fn ask_again(&mut self, now: Instant) {
        if self.largest_at.is_some() {
            self.due = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_acknowledgement_says_how_long_the_first_of_it_has_waited() {
        let start = Instant::now();
        let mut acks = Acks::default();
        acks.on_received(start, Seq(0), 300 * MS);
        acks.on_received(start + 100 * MS, Seq(1), 300 * MS);
        assert_eq!(acks.take(start + 250 * MS).map(|said| (said.delay, said.held_back)), Some((150 * MS, 250 * MS)));
        acks.on_received(start + 300 * MS, Seq(2), 300 * MS);
        assert_eq!(acks.take(start + 310 * MS).map(|said| said.held_back), Some(10 * MS));
    }

    #[test]
    fn no_acknowledgement_waits_much_longer_than_the_other_end_expects() {
        let mut known = HeldBack::default();
        let (start, mut at, mut acks) = (Instant::now(), Duration::ZERO, Acks::default());
        for seq in 0..100 {
            let wait = acks.ride_delay();
            assert!(wait <= known.longest(100 * MS) + RIDE_STEP && wait <= MAX_RIDE_DELAY, "{wait:?} beside {known:?}");
            acks.on_received(start + at, Seq(seq), wait);
            at += wait;
            known.note(acks.take(start + at).unwrap().held_back);
        }
        assert_eq!(acks.ride_delay(), MAX_RIDE_DELAY);
    }
}
