//! Taking one's part of a line that others already fill.
//!
//! Slow start ends at the first sign of a queue, and on a line that others fill there is one as soon as a path sends a tenth of it. From there it
//! would become equal only by aiming at a somewhat longer queue than they do: over 160 ms, in a minute. So it goes on for a while, more
//! gently, as does the conservative slow start of RFC 9406 §4.2, and keeps as much of a queue as a path may at most: the others give way to that.
//!
//! When to stop follows from how much they do. A path that sees a queue beyond the one it aims at lowers its rate by that over the
//! time in which it corrects the queue, each time it measures its rate anew: the integral of this is the logarithm of what they have
//! lost, whatever the line's rate and their number. A path alone keeps that queue as well, for some round trips.

use std::time::{Duration, Instant};

use super::Congestion;

/// How far a path has joined those that it shares the line with.
#[derive(Debug)]
pub(super) struct Joining {
    /// Minus the logarithm of what the others have kept, and up to when that was counted.
    yielded: f64,
    counted: Instant,
    rounds: u32,
}

/// Until the others have kept e^-0.5 of the line, six tenths: with one other that is nearly half for each, with more of them already too much.
const YIELDED: f64 = 0.5;

/// Round trips after which to stop in any case: what is seen is no queue of others that give way.
const ROUNDS: u32 = 64;

/// What is measured of a rate is worked in after so many round trips: one to see it, half of one to average it, in part.
const FOLLOWS_AFTER_ROUND_TRIPS: f64 = 1.25;

/// The least round trip of a path that joins others so. Over a short way paths become equal soon enough, and the others would take such a queue for
/// somebody's who competes.
const LEAST_RTT: Duration = Duration::from_millis(60);

/// The part of the line that one is taken to have in the beginning.
const LEAST_PART: f64 = 0.05;

impl Joining {
    pub(super) fn new(now: Instant) -> Self {
        Self { yielded: 0.0, counted: now, rounds: 0 }
    }

    /// Our part of the line.
    pub(super) fn part(&self) -> f64 {
        (1.0 - (-self.yielded).exp()).max(LEAST_PART)
    }

    /// Counts what the others yield to a queue that is longer by `excess` than what they aim at, which they correct within `correction`, both in seconds.
    pub(super) fn count(&mut self, now: Instant, excess: f64, correction: f64, rtt: Duration) {
        let follows_after = FOLLOWS_AFTER_ROUND_TRIPS * rtt.as_secs_f64().max(1e-3);
        let elapsed = now.saturating_duration_since(self.counted).as_secs_f64();
        self.yielded += excess.max(0.0) / correction * elapsed / follows_after;
        self.counted = now;
    }

    pub(super) fn end_round(&mut self) {
        self.rounds += 1;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.yielded >= YIELDED || self.rounds >= ROUNDS
    }
}

impl Congestion {
    /// Begins to join at the end of slow start, with so many bytes in flight.
    pub(super) fn begin_to_join(&mut self, now: Instant, in_flight: u64) {
        let joining = Joining::new(now);
        if self.min_rtt() >= LEAST_RTT && self.joins_at(joining.part()) {
            self.joining = Some(joining);
            // That is more than the window from now on, and for a while holds the sender back.
            self.rates.on_app_limited(in_flight);
        }
    }

    /// Notes what the others have yielded to a queue, and stops when that is enough.
    pub(super) fn join(&mut self, now: Instant, queue: f64) {
        let Some(part) = self.joining.as_ref().map(Joining::part) else { return };
        let others_aim_at = self.target_at(self.capacity * (1.0 - part) / part);
        let (correction, joins) = (self.correction(), self.joins_at(part));
        if let Some(joining) = &mut self.joining {
            joining.count(now, queue - others_aim_at, correction, self.smoothed_rtt);
            if joining.has_ended() || !joins {
                self.joining = None;
            }
        }
    }

    /// Whether a path that has this part of the line keeps more of a queue while it joins than a path that has all of it.
    fn joins_at(&self, part: f64) -> bool {
        self.joining_target() > self.target_at(self.capacity / part)
    }
}
