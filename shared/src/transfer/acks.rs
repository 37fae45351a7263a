//! What has arrived of a path's tracked datagrams, and when to say so.
//!
//! An acknowledgement is due at once when a datagram arrives out of turn or after [`ACK_EVERY`] of them, else after
//! [`max_delay`], so that a slow uplink isn't filled with acknowledgements of a fast downlink.

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
    due: Option<Instant>,
}

/// Datagrams that arrive before an acknowledgement goes out at the latest.
const ACK_EVERY: u32 = 16;

/// Ranges remembered: what acknowledgements hold, and as many again for datagrams that arrive late.
const MAX_RANGES: usize = 2 * MAX_ACK_RANGES;

/// The longest that an acknowledgement is held back (RFC 9000 §18.2).
pub const MAX_DELAY: Duration = Duration::from_millis(25);

/// How long a path of the given round-trip time holds an acknowledgement back: a quarter of it, from 1 to 25 ms.
///
/// Both ends reckon it from their own measure of the same path.
pub fn max_delay(smoothed_rtt: Duration) -> Duration {
    (smoothed_rtt / 4).clamp(Duration::from_millis(1), MAX_DELAY)
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
        let in_turn = seq.0 == next;
        let due = if in_turn && self.unacked < ACK_EVERY { now + delay } else { now };
        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        true
    }

    /// When an acknowledgement is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What an acknowledgement sent at `now` says: when the largest arrived and the ranges from the highest down.
    pub fn take(&mut self) -> Option<(Instant, impl Iterator<Item = Range<u64>> + '_)> {
        self.due = None;
        self.unacked = 0;
        self.largest_at.map(|at| (at, self.received.iter().rev()))
    }

    /// Says again at `now` what has arrived.
    pub fn ask_again(&mut self, now: Instant) {
        if self.largest_at.is_some() {
            self.due = Some(now);
        }
    }
}
