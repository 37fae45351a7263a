//! How fast a path sends and how much it has in flight, by the queue that it sees.

use std::time::Duration;

use super::{
    Congestion, PACKET_BYTES, Phase,
    capacity::{DRAIN_GAIN, Drain},
    competition::Competition,
};

/// The queue aimed at, at [`TARGET_RATE`]: enough to bridge the jitter of timers on both ends. At least two packets of a line so slow that they
/// take longer. In seconds.
pub(super) const TARGET_QUEUE: f64 = 0.004;
const TARGET_PACKETS: f64 = 2.0;

/// The multiple of the delay's jitter that is added, and the most: what a radio link's scheduler makes of an empty queue. Not of the jitter
/// that senders' timers and packets between packets make: of two paths on a line the faster has more of it, would aim at more and keep it.
const JITTER_ALLOWANCE: f64 = 6.0;
const JITTER_QUEUE: f64 = 0.020;
const TIMER_TICK: f64 = 0.001;

/// The queue that the window allows above the line's own delay.
const WINDOW_QUEUE: f64 = 0.025;

/// The bounds of the pace as a fraction of the capacity.
const GAIN: (f64, f64) = (0.7, 1.25);

/// The pace of rounds that follow ever more rounds with an empty queue: the line may have become faster.
const EMPTY_GAINS: [f64; 6] = [1.05, 1.05, 1.1, 1.1, 1.25, 1.25];

/// The target is for a path at this rate, bytes per second. A faster one aims at less and a slower one at more, by this power of
/// the ratio within these factors: of two paths on a line the one with more gives way until both have the same.
const TARGET_RATE: f64 = 12e6 / 8.0;
/// What is added of the least round trip: over a long one the pace corrects itself more slowly.
const TARGET_ROUND_TRIPS: f64 = 0.06;
const TARGET_EXPONENT: f64 = 0.5;
const TARGET_FACTOR: (f64, f64) = (0.2, 8.0);

/// The power of fair to own rate that the queue aimed at is multiplied with, within these factors, where the fair rate is known. Not more than
/// so many times another rate is believed: the path may be held back elsewhere.
const FAIR_EXPONENT: f64 = 2.0;
const FAIR_FACTOR: (f64, f64) = (0.25, 4.0);
const FAIR_RANGE: f64 = 4.0;

/// What it comes near to, packets and jitter aside: in seconds, or as a part of the round trip if that is more. Paths that aimed at the
/// very same would not become equal.
const TARGET_MAX: f64 = 0.020;
const TARGET_MAX_ROUND_TRIPS: f64 = 0.17;

/// The time in which the pace is to correct the queue, in round trips and seconds. What it does is seen a round trip and some acknowledgements
/// later: in much less it would swing.
const CORRECTION_ROUND_TRIPS: f64 = 1.5;
const CORRECTION_TIME: f64 = 0.020;

/// Of the line a path that joins others seems to have at least so much, for this.
const JOINING_PART: f64 = 0.1;

/// The delivery rate of half a round trip says as much as that of a whole one if it is so long.
const RATE_SPAN: Duration = Duration::from_millis(40);

/// The pace of a path that competes, as a multiple of its window per round trip (RFC 9002 §7.7).
const COMPETING_PACE: f64 = 1.25;

impl Congestion {
    /// Bytes that may be in flight.
    pub fn window(&self) -> u64 {
        match self.phase {
            Phase::SlowStart => self.slow_start_window as u64,
            Phase::Steady => {
                let held_back = self.ack_delay.as_secs_f64();
                let queue = WINDOW_QUEUE.max(2.0 * self.target());
                let span = self.min_rtt.least().unwrap_or(self.smoothed_rtt.as_secs_f64()) + held_back + queue;
                (self.capacity * span / (1.0 - self.loss) + 3.0 * PACKET_BYTES) as u64
            }
            Phase::Competing => self.competition.as_ref().map_or(0.0, Competition::window) as u64,
        }
    }

    /// The queue aimed at, in seconds.
    ///
    /// By its delay alone a path knows its share of the line only roughly: the least that it has seen, from which it reckons the queue, may have
    /// held some of another's, or of the jitter. Who knows what is fair aims at what a path at that rate would, and at so much less or more that
    /// such an error makes little difference.
    pub(super) fn target(&self) -> f64 {
        let Some(fair) = self.fair_rate else { return self.target_at(self.capacity) };
        let capacity = self.capacity.max(1.0);
        let fair = fair.clamp(capacity / FAIR_RANGE, capacity * FAIR_RANGE);
        let jitter = self.jitter_allowance(fair);
        let queue = self.target_at(fair) - jitter;
        let factor = (fair / capacity).powf(FAIR_EXPONENT).clamp(FAIR_FACTOR.0, FAIR_FACTOR.1);
        (queue * factor).min(self.most_queue().max(queue)) + jitter
    }

    /// The queue that a path aims at while it joins others.
    pub(super) fn joining_target(&self) -> f64 {
        TARGET_MAX_ROUND_TRIPS * self.min_rtt().as_secs_f64() + self.jitter_allowance(self.capacity.max(1.0))
    }

    /// The queue that a path aims at whose line gives it `capacity`, in seconds.
    pub(super) fn target_at(&self, capacity: f64) -> f64 {
        let capacity = capacity.max(1.0);
        let packets = TARGET_PACKETS * PACKET_BYTES / capacity;
        let factor = (TARGET_RATE / capacity).powf(TARGET_EXPONENT).clamp(TARGET_FACTOR.0, TARGET_FACTOR.1);
        let rtt = self.min_rtt().as_secs_f64();
        let queue = (TARGET_QUEUE + TARGET_ROUND_TRIPS * rtt) * factor;
        let most = self.most_queue();
        let bounded = queue * most / queue.hypot(most);
        bounded.max(packets) + self.jitter_allowance(capacity)
    }

    fn most_queue(&self) -> f64 {
        TARGET_MAX.max(TARGET_MAX_ROUND_TRIPS * self.min_rtt().as_secs_f64())
    }

    fn jitter_allowance(&self, capacity: f64) -> f64 {
        let own_jitter = (TIMER_TICK + PACKET_BYTES / capacity) / 3.0;
        let jitter = (self.delay.jitter() - own_jitter).max(0.0);
        (JITTER_ALLOWANCE * jitter).min(JITTER_QUEUE)
    }

    /// The time over which the delivery rate is measured: half a round trip or a whole short one, though not with all of a deep queue in it. In
    /// slow start a whole one: what is left of somebody's burst allowance would pass for the line's rate.
    pub(super) fn rate_span(&self) -> Duration {
        let round_trip = self.smoothed_rtt.min(self.min_rtt() * 2);
        if self.phase == Phase::SlowStart { round_trip } else { round_trip.min(RATE_SPAN.max(round_trip / 2)) }
    }

    /// The time in which the pace is to correct the queue, in seconds.
    pub(super) fn correction(&self) -> f64 {
        CORRECTION_ROUND_TRIPS * self.smoothed_rtt.as_secs_f64() + CORRECTION_TIME
    }

    /// The pace in bytes per second.
    pub(super) fn pace(&self) -> f64 {
        match self.phase {
            Phase::SlowStart => 2.0 * self.slow_start_window / self.smoothed_rtt.as_secs_f64().max(1e-3),
            Phase::Steady => self.capacity * self.gain() / (1.0 - self.loss),
            Phase::Competing => {
                let Some(competition) = &self.competition else { return self.capacity };
                let by_window = competition.window() / self.smoothed_rtt.as_secs_f64().max(1e-3);
                competition.gain().unwrap_or(COMPETING_PACE) * by_window
            }
        }
    }

    pub(super) fn gain(&self) -> f64 {
        if matches!(self.drain, Drain::Running(_)) {
            return DRAIN_GAIN;
        }
        let is_passing = matches!(self.drain, Drain::Passing(_));
        let queue = self.delay.recent();
        let (target, part) = match &self.joining {
            // The part of the line that we don't have doesn't follow.
            Some(joining) => (self.joining_target(), joining.part().max(JOINING_PART)),
            None => (self.target(), 1.0),
        };
        let gain = 1.0 + (target - queue) / (part * self.correction());
        let highest = if self.cautious_until.is_some() || is_passing { 1.0 } else { GAIN.1 };
        let probing = if self.cautious_until.is_none() && self.empty_rounds > 0 {
            EMPTY_GAINS[(self.empty_rounds as usize - 1).min(EMPTY_GAINS.len() - 1)]
        } else {
            0.0
        };
        gain.max(probing).clamp(GAIN.0, highest)
    }
}
