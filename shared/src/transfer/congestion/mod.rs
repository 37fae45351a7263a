//! How much a path sends: congestion control for shared consumer lines.
//!
//! Each path paces at the line's capacity and corrects the pace by the queue it sees, so that the queue stands at a few
//! milliseconds: never empty, so the line never idles; never deep, so a request behind a bulk flow hardly waits.
//!
//! * The *queue* is a one-way measure: arrival time on the receiver's clock less sending time on ours, less the least such
//!   difference seen lately (as in LEDBAT, RFC 6817 §2). Queues of the reverse direction don't disturb it.
//! * The *capacity* is the delivery rate on the receiver's clock while a queue stands, since the line then decides the rate. It is a
//!   measure of what arrived, so random loss does not lower it (as in BBR, draft-ietf-ccwg-bbr).
//! * *Slow start* doubles the window each round trip and ends at the first sign of a queue (as HyStart++, RFC 9406), or of heavy loss.
//! * In the *steady* phase the pace is `capacity × (1 + (target − queue) / T)`: a proportional controller whose time constant `T` is some
//!   round trips, because it acts on a measure that is one round trip old. A window bounds what is in flight all the same.
//! * Every [`DRAIN_EVERY`] the queue is let run empty for an instant, so that the least delay is seen again.
//!
//! * A queue that somebody else keeps (TCP Cubic, BBR) would leave such a sender with nothing: while there is one, the path competes for
//!   its share ([`competition`]), and goes back as soon as nobody else keeps a queue.
//! * Paths that share a line share it equally: the queue aimed at is the shorter the faster a path is, so that of two the faster gives way.
//!
//! Bytes here are whole packets, headers included. Which bytes are sent is not decided here.

mod competition;
mod filters;
mod pacer;
#[cfg(test)]
mod sharing;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use competition::{Competition, Finding, QueueSigns};
use filters::{DelayFilter, MaxFilter, MinFilter, Rate, RateFilter};
use pacer::Pacer;

/// Congestion control of one path.
#[derive(Debug)]
pub struct Congestion {
    phase: Phase,
    /// The slow-start window, bytes.
    slow_start_window: f64,
    /// The line's rate, bytes per second; 0 until measured.
    capacity: f64,
    /// What the pace is multiplied with to make up for random loss: the lost fraction, smoothed.
    loss: f64,
    delay: DelayFilter,
    rates: RateFilter,
    min_rtt: MinFilter,
    round: Round,
    /// Rounds in a row whose queue stayed empty although nothing but the pace held the sender back.
    empty_rounds: u32,
    /// Until when the pace isn't raised, after losses that raising it caused.
    cautious_until: Option<Instant>,
    drain: Drain,
    /// The least delay known when it began, microseconds between two clocks.
    least_before_drain: i64,
    drain_pause: Duration,
    rounds: Rounds,
    /// Since when the pace has been below the capacity, and the queue then.
    braking: Option<(Instant, f64)>,
    patience: Option<Patience>,
    /// The most that the line gave lately while nobody else was seen on it.
    undisturbed: MaxFilter,
    /// The least queues of the last rounds, and what was in flight at the end of the round before.
    floors: VecDeque<Floor>,
    in_flight_before: f64,
    competition: Option<Competition>,
    /// Competitions in a row that met nobody, and the time until which there is no other.
    vain_competitions: u32,
    competes_from: Option<Instant>,
    smoothed_rtt: Duration,
    ack_delay: Duration,
    pacer: Pacer,
}

/// What an acknowledgement says about the line.
#[derive(Clone, Copy, Debug)]
pub struct AckSample {
    /// Bytes newly acknowledged.
    pub acked_bytes: u64,
    /// Bytes newly declared lost.
    pub lost_bytes: u64,
    /// Bytes newly found not to have been lost.
    pub spurious_bytes: u64,
    /// When the largest newly acknowledged datagram was sent, in microseconds on our clock, and when that was; `None` if its number is not new.
    pub largest_sent: Option<(Instant, u64)>,
    /// When it arrived, in microseconds on the receiver's clock.
    pub received_at_us: u64,
    /// The round trip it took, without the time that the acknowledgement was held back.
    pub rtt: Duration,
    /// The smoothed round-trip time.
    pub smoothed_rtt: Duration,
    /// How long acknowledgements may be held back.
    pub ack_delay: Duration,
    /// Bytes in flight now.
    pub in_flight: u64,
}

/// What held the sender back, by round trips since the path joined.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Rounds {
    /// The line: there was always something to send.
    pub full: u64,
    /// Itself, at least for a moment.
    pub free: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    SlowStart,
    Steady,
    Competing,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Drain {
    /// Not before.
    Waiting(Option<Instant>),
    /// Less is sent until then.
    Running(Instant),
    /// Enough has been held back; until then its effect is seen.
    Passing(Instant),
}

/// What a pace below the capacity should have done to a queue.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// The queue when it began, seconds.
    queue: f64,
    /// By how much the queue should have shrunk since, seconds; and up to when that was counted.
    owed: f64,
    counted: Instant,
}

/// The least queue of a round.
#[derive(Clone, Copy, Debug)]
struct Floor {
    at: Instant,
    /// Seconds.
    queue: f64,
    /// What was in flight at the ends of this round and of the one before, whose packets met the queue: the less and the more, bytes.
    in_flight: (f64, f64),
    /// What the line gave us, bytes per second.
    capacity: f64,
}

/// One round trip: from a sending until that datagram is acknowledged.
#[derive(Debug, Default)]
struct Round {
    began: Option<Instant>,
    /// At its end, bytes.
    in_flight: f64,
    acked_bytes: u64,
    lost_bytes: u64,
    lost_events: u32,
    least_queue: Option<f64>,
    is_app_limited: bool,
    best_rate: f64,
}

/// A packet of the largest size that is counted on, bytes.
const PACKET_BYTES: f64 = 1500.0;

/// RFC 6928.
const INITIAL_WINDOW_BYTES: f64 = 10.0 * PACKET_BYTES;

/// The queue aimed at: enough to bridge the jitter of timers on both ends, or two packets of a line so slow that they take longer, in seconds.
const TARGET_QUEUE: f64 = 0.004;
const TARGET_PACKETS: f64 = 2.0;

/// The multiple of the delay's jitter that is added, and the most: what a radio link's scheduler makes of an empty queue.
const JITTER_ALLOWANCE: f64 = 6.0;
const JITTER_QUEUE: f64 = 0.020;

/// The queue that the window allows above the line's own delay.
const WINDOW_QUEUE: f64 = 0.025;

/// How far the capacity follows the delivery rate within the span over which that is measured.
const CAPACITY_WEIGHT: f64 = 0.7;

/// Slow start ends at a queue of an eighth of the round trip within these bounds (RFC 9406 §4.3).
const SLOW_START_QUEUE: (f64, f64) = (0.004, 0.016);

/// The loss in one round that ends slow start, and at least so many losses.
const SLOW_START_LOSS: f64 = 0.1;
const SLOW_START_LOSSES: u32 = 4;

/// A round's loss beyond the usual that counts as an overflowing queue too short to be seen as delay.
const OVERFLOW_LOSS: f64 = 0.04;

/// Rounds without raising the pace after that, and the most time: over a long way so many rounds would leave the line idle for seconds.
const CAUTIOUS_ROUNDS: u32 = 16;
const CAUTIOUS_TIME: Duration = Duration::from_millis(500);

/// The bounds of the pace as a fraction of the capacity.
const GAIN: (f64, f64) = (0.7, 1.25);

/// The pace of rounds that follow ever more rounds with an empty queue: the line may have become faster.
const EMPTY_GAINS: [f64; 6] = [1.05, 1.05, 1.1, 1.1, 1.25, 1.25];

/// Random loss that is made up for, at most.
const MAX_LOSS: f64 = 0.2;

/// The target is for a path at this rate, bytes per second. A faster one aims at less and a slower one at more, by this power of
/// the ratio within these factors: of two paths on a line the one with more gives way until both have the same.
const TARGET_RATE: f64 = 12e6 / 8.0;
/// What is added of the least round trip: over a long one the pace corrects itself more slowly.
const TARGET_ROUND_TRIPS: f64 = 0.05;
const TARGET_EXPONENT: f64 = 0.5;
const TARGET_FACTOR: (f64, f64) = (0.5, 4.0);

/// What it is at most, packets and jitter aside: in seconds, or as a part of the round trip if that is more.
const TARGET_MAX: f64 = 0.016;
const TARGET_MAX_ROUND_TRIPS: f64 = 0.125;

/// A queue that does not shrink when the pace does is somebody else's if it is longer than so many times the target and so many seconds.
const FOREIGN_TARGETS: f64 = 3.0;
const FOREIGN_QUEUE: f64 = 0.015;

/// A queue of more targets than this is to shrink, and has if only this part of it is left.
const PATIENCE_TARGETS: f64 = 1.25;
const PATIENCE_SHRUNK: f64 = 0.7;

/// The pace of a path that competes, as a multiple of its window per round trip (RFC 9002 §7.7).
const COMPETING_PACE: f64 = 1.25;

/// A queue whose least of each round moves by so much more than our own packets in flight do is moved by somebody else. In seconds, in round
/// trips, in multiples of the target, in packets and in multiples of the delay's jitter; while the capacity varies by less than this part.
const FOREIGN_SWING: f64 = 0.015;
const FOREIGN_SWING_ROUND_TRIPS: f64 = 0.15;
const FOREIGN_SWING_TARGETS: f64 = 1.0;
const FOREIGN_SWING_PACKETS: f64 = 3.0;
const FOREIGN_SWING_JITTERS: f64 = 6.0;
const FOREIGN_SWING_CAPACITY: f64 = 0.25;
const SWING_SPAN: Duration = Duration::from_secs(4);
const SWING_ROUNDS: usize = 128;

/// The part of what the line gave before that counts as all of it.
const WHOLE_LINE: f64 = 0.9;

/// The pause after a competition that met nobody, as so few checks showed, doubled each time up to so often.
const VAIN_CHECKS: u32 = 1;
const VAIN_PAUSE: Duration = Duration::from_millis(500);
const VAIN_DOUBLINGS: u32 = 5;

/// How often the queue is let run empty, twice as rarely each time at first; the least delay is that of the last two such spans. So much more
/// than the queue is held back, in seconds; if that lowers the least delay by more than so many microseconds, it begins anew.
const DRAIN_EVERY: Duration = Duration::from_secs(10);
const FIRST_DRAIN_AFTER: Duration = Duration::from_secs(1);
const DRAIN_GAIN: f64 = 0.5;
const DRAIN_MARGIN: f64 = 0.010;
const DRAIN_FOUND_US: i64 = 1_000;

impl Congestion {
    /// A path of which only the round-trip time is known.
    pub fn new(smoothed_rtt: Duration) -> Self {
        Self {
            phase: Phase::SlowStart,
            slow_start_window: INITIAL_WINDOW_BYTES,
            capacity: 0.0,
            loss: 0.0,
            delay: DelayFilter::default(),
            rates: RateFilter::default(),
            min_rtt: MinFilter::default(),
            round: Round::default(),
            empty_rounds: 0,
            cautious_until: None,
            drain: Drain::Waiting(None),
            least_before_drain: 0,
            drain_pause: FIRST_DRAIN_AFTER,
            rounds: Rounds::default(),
            braking: None,
            patience: None,
            undisturbed: MaxFilter::default(),
            floors: VecDeque::new(),
            in_flight_before: 0.0,
            competition: None,
            vain_competitions: 0,
            competes_from: None,
            smoothed_rtt,
            ack_delay: super::acks::max_delay(smoothed_rtt),
            pacer: Pacer::default(),
        }
    }

    /// Whether `bytes` may leave now with `in_flight` bytes in flight; if only the pace forbids it, when they may.
    pub fn may_send(&mut self, now: Instant, bytes: u64, in_flight: u64) -> Result<(), Option<Instant>> {
        if in_flight > 0 && in_flight + bytes > self.window() {
            return Err(None);
        }
        let pace = self.pace();
        self.pacer.ready(now, bytes as f64, pace).map_err(Some)
    }

    /// Notes that `bytes` left.
    pub fn on_sent(&mut self, now: Instant, bytes: u64) {
        self.round.began.get_or_insert(now);
        self.pacer.spend(bytes as f64);
    }

    /// Notes that the path could have sent more with `in_flight` bytes in flight, but there was nothing for it.
    pub fn on_app_limited(&mut self, in_flight: u64) {
        self.rates.on_app_limited(in_flight);
        self.round.is_app_limited = true;
    }

    /// Works an acknowledgement in.
    pub fn on_ack(&mut self, now: Instant, sample: &AckSample) {
        self.smoothed_rtt = sample.smoothed_rtt;
        self.ack_delay = sample.ack_delay;
        self.rates.delivered += sample.acked_bytes;
        self.round.acked_bytes += sample.acked_bytes;
        self.round.lost_bytes = (self.round.lost_bytes + sample.lost_bytes).saturating_sub(sample.spurious_bytes);
        self.round.lost_events += u32::from(sample.lost_bytes > 0);
        let Some((sent_at, sent_at_us)) = sample.largest_sent else { return };
        self.min_rtt.push(sample.rtt.as_secs_f64());
        let queue = self.delay.push(sample.received_at_us as i64 - sent_at_us as i64);
        let least = self.round.least_queue.get_or_insert(queue);
        *least = least.min(queue);
        self.round.in_flight = sample.in_flight as f64;
        let rate = self.rates.push(sample.received_at_us, sent_at_us, self.rate_span());
        if let Some(rate) = rate {
            self.round.best_rate = self.round.best_rate.max(rate.bytes_per_second);
        }
        match self.phase {
            Phase::SlowStart => self.slow_start(now, sample, rate),
            Phase::Steady => self.steady(now, rate, sample.acked_bytes),
            Phase::Competing => self.compete(now, rate, sample),
        }
        if self.round.began.is_some_and(|began| sent_at >= began) {
            self.end_round(now);
        }
    }

    /// Begins anew after the path was silent: the line may be another now, or hold what was sent before.
    pub fn on_revival(&mut self) {
        self.phase = Phase::SlowStart;
        self.slow_start_window = INITIAL_WINDOW_BYTES;
        self.rates.forget();
        self.delay = DelayFilter::default();
        self.round = Round::default();
        self.braking = None;
        self.patience = None;
        self.undisturbed = MaxFilter::default();
        self.floors.clear();
        self.competition = None;
        self.pacer = Pacer::default();
    }

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

    /// The line's rate in bytes per second as far as it is known.
    pub fn capacity(&self) -> f64 {
        let guess = self.slow_start_window / self.smoothed_rtt.as_secs_f64().max(1e-3);
        if self.capacity == 0.0 { guess } else { self.capacity }
    }

    /// Whether the line's rate has been measured, not guessed.
    pub fn is_measured(&self) -> bool {
        self.phase != Phase::SlowStart
    }

    /// What has held the sender back.
    pub fn rounds(&self) -> Rounds {
        self.rounds
    }

    /// The least round-trip time seen lately.
    pub fn min_rtt(&self) -> Duration {
        self.min_rtt.least().map_or(self.smoothed_rtt, duration)
    }

    /// The queue on the way there.
    pub fn queue(&self) -> Duration {
        duration(self.delay.recent())
    }

    /// The fraction of bytes lost lately.
    pub fn loss(&self) -> f64 {
        self.loss
    }

    fn target(&self) -> f64 {
        self.target_at(self.capacity)
    }

    /// The queue that a path aims at whose line gives it `capacity`, in seconds.
    fn target_at(&self, capacity: f64) -> f64 {
        let capacity = capacity.max(1.0);
        let packets = TARGET_PACKETS * PACKET_BYTES / capacity;
        let factor = (TARGET_RATE / capacity).powf(TARGET_EXPONENT).clamp(TARGET_FACTOR.0, TARGET_FACTOR.1);
        let rtt = self.min_rtt().as_secs_f64();
        let queue = (TARGET_QUEUE + TARGET_ROUND_TRIPS * rtt) * factor;
        queue.min(TARGET_MAX.max(TARGET_MAX_ROUND_TRIPS * rtt)).max(packets) + (JITTER_ALLOWANCE * self.delay.jitter()).min(JITTER_QUEUE)
    }

    /// The time over which the delivery rate is measured: a round trip, though not with all of a deep queue in it.
    fn rate_span(&self) -> Duration {
        self.smoothed_rtt.min(self.min_rtt() * 2)
    }

    /// The pace in bytes per second.
    fn pace(&self) -> f64 {
        match self.phase {
            Phase::SlowStart => 2.0 * self.slow_start_window / self.smoothed_rtt.as_secs_f64().max(1e-3),
            Phase::Steady => self.capacity * self.gain() / (1.0 - self.loss),
            Phase::Competing => {
                let Some(competition) = &self.competition else { return self.capacity };
                let by_window = COMPETING_PACE * competition.window() / self.smoothed_rtt.as_secs_f64().max(1e-3);
                competition.gain().map_or(by_window, |gain| gain * self.capacity)
            }
        }
    }

    fn gain(&self) -> f64 {
        if matches!(self.drain, Drain::Running(_)) {
            return DRAIN_GAIN;
        }
        let is_passing = matches!(self.drain, Drain::Passing(_));
        let queue = self.delay.recent();
        let time_constant = 3.0 * self.smoothed_rtt.as_secs_f64() + 0.020;
        let gain = 1.0 + (self.target() - queue) / time_constant;
        let highest = if self.cautious_until.is_some() || is_passing { 1.0 } else { GAIN.1 };
        let probing = if self.cautious_until.is_none() && self.empty_rounds > 0 {
            EMPTY_GAINS[(self.empty_rounds as usize - 1).min(EMPTY_GAINS.len() - 1)]
        } else {
            0.0
        };
        gain.max(probing).clamp(GAIN.0, highest)
    }

    fn slow_start(&mut self, now: Instant, sample: &AckSample, rate: Option<Rate>) {
        let window_was_used = sample.in_flight + sample.acked_bytes >= (self.slow_start_window * 0.5) as u64;
        if window_was_used {
            self.slow_start_window += sample.acked_bytes as f64;
        }
        let threshold = (self.smoothed_rtt.as_secs_f64() / 8.0).clamp(SLOW_START_QUEUE.0, SLOW_START_QUEUE.1);
        let queue_stands = self.delay.is_full() && self.delay.recent() > threshold;
        let acked_and_lost = (self.round.acked_bytes + self.round.lost_bytes) as f64;
        let loses = self.round.lost_events >= SLOW_START_LOSSES && self.round.lost_bytes as f64 > SLOW_START_LOSS * acked_and_lost;
        if queue_stands || loses {
            let measured = self.round.best_rate.max(rate.map_or(0.0, |rate| rate.bytes_per_second));
            self.capacity =
                if measured > 0.0 { measured } else { self.slow_start_window / self.smoothed_rtt.as_secs_f64().max(1e-3) / 2.0 };
            self.phase = Phase::Steady;
            self.empty_rounds = 0;
            self.undisturbed.push(now, self.capacity);
            // Somebody else's queue may have hidden the least delay.
            self.drain_pause = FIRST_DRAIN_AFTER;
            self.drain = Drain::Waiting(Some(now + FIRST_DRAIN_AFTER));
        }
    }

    fn steady(&mut self, now: Instant, rate: Option<Rate>, acked_bytes: u64) {
        let queue = self.delay.recent();
        let target = self.target();
        if let Some(rate) = rate {
            let measured = rate.bytes_per_second;
            let queue_stands = queue > target / 4.0;
            let weight = weight(rate, acked_bytes, self.rate_span());
            if measured > self.capacity && !queue_stands {
                self.capacity = measured;
            } else if queue_stands && (!rate.is_app_limited || measured > self.capacity || queue > 2.0 * target) {
                self.capacity += (rate.of_busy_line(self.capacity) - self.capacity) * weight;
            }
        }
        match self.drain {
            Drain::Waiting(None) => self.drain = Drain::Waiting(Some(now + DRAIN_EVERY)),
            Drain::Waiting(Some(at)) if now >= at => {
                let enough = duration((queue + DRAIN_MARGIN) / (1.0 - DRAIN_GAIN));
                self.least_before_drain = self.delay.least();
                self.drain = Drain::Running(now + enough.min(self.smoothed_rtt * 2 + Duration::from_millis(20)));
            }
            Drain::Running(until) if now >= until => {
                self.drain = Drain::Passing(now + self.smoothed_rtt + Duration::from_millis(20));
            }
            Drain::Passing(until) if now >= until => {
                // Somebody's queue has hidden a part of ours, and may hide another.
                let found = self.least_before_drain.saturating_sub(self.delay.least());
                self.drain_pause = if found > DRAIN_FOUND_US { FIRST_DRAIN_AFTER } else { (self.drain_pause * 2).min(DRAIN_EVERY) };
                self.delay.begin_span();
                self.min_rtt.begin_span();
                self.drain = Drain::Waiting(Some(now + self.drain_pause));
            }
            _ => {}
        }
        self.look_for_others(now, queue, target);
    }

    /// A queue that does not shrink while the pace is below the capacity isn't ours, or isn't a queue. A short one is taken for the way's
    /// own delay; for the sake of a longer one the path competes.
    fn look_for_others(&mut self, now: Instant, queue: f64, target: f64) {
        if self.is_outlasted(now, queue, target) {
            self.begin_to_compete(now);
            return;
        }
        if queue < 2.0 * target && !self.round.is_app_limited {
            self.undisturbed.push(now, self.capacity);
        }
        if self.gain() > 0.95 || queue < 2.0 * target {
            self.braking = None;
            return;
        }
        let (since, queue_then) = *self.braking.get_or_insert((now, queue));
        if now.duration_since(since) < self.smoothed_rtt * 4 + Duration::from_millis(50) {
            return;
        }
        self.braking = None;
        if queue < 0.7 * queue_then {
            return;
        }
        if queue >= FOREIGN_QUEUE.max(FOREIGN_TARGETS * self.target_at(self.line_rate(now))) {
            self.begin_to_compete(now);
        } else {
            self.rebase();
        }
    }

    /// Whether a queue a little above the target has stayed although the pace should have emptied it by now, while the line gives less
    /// than before: somebody fills up what we leave, and would have it all in the end.
    fn is_outlasted(&mut self, now: Instant, queue: f64, target: f64) -> bool {
        if queue < PATIENCE_TARGETS * target || self.capacity >= WHOLE_LINE * self.line_rate(now) {
            self.patience = None;
            return false;
        }
        let (gain, rtt) = (self.gain(), self.smoothed_rtt.as_secs_f64());
        let begun = Patience { queue, owed: 0.0, counted: now };
        let patience = self.patience.get_or_insert(begun);
        if queue < PATIENCE_SHRUNK * patience.queue {
            *patience = begun;
        }
        patience.owed += (1.0 - gain) * now.saturating_duration_since(patience.counted).as_secs_f64();
        patience.counted = now;
        // What the last round trip's pace does is not seen yet.
        let is_outlasted = patience.owed > patience.queue.max(FOREIGN_QUEUE) + (1.0 - gain) * rtt;
        if is_outlasted {
            self.patience = None;
        }
        is_outlasted
    }

    /// The line's rate as far as is known, whoever uses it: bytes per second.
    fn line_rate(&self, now: Instant) -> f64 {
        self.undisturbed.most(now).unwrap_or(0.0).max(self.capacity).max(1.0)
    }

    /// Notes the least queue of a round, and competes if it swings.
    fn note_floor(&mut self, now: Instant, round: &Round) {
        let may_compete = self.competes_from.is_none_or(|at| now >= at) && matches!(self.drain, Drain::Waiting(_));
        if !may_compete {
            self.floors.clear();
        }
        let Some(queue) = round.least_queue.filter(|_| may_compete && !round.is_app_limited) else { return };
        let in_flight = (round.in_flight.min(self.in_flight_before), round.in_flight.max(self.in_flight_before));
        self.floors.push_back(Floor { at: now, queue, in_flight, capacity: self.capacity });
        while self.floors.len() > SWING_ROUNDS || self.floors.front().is_some_and(|floor| now.duration_since(floor.at) > SWING_SPAN) {
            self.floors.pop_front();
        }
        let line = self.line_rate(now);
        let swing = span(self.floors.iter().map(|floor| (floor.queue, floor.queue)));
        let own = span(self.floors.iter().map(|floor| floor.in_flight)) / self.capacity.max(1.0);
        let unsuspicious = [
            FOREIGN_SWING,
            FOREIGN_SWING_ROUND_TRIPS * self.min_rtt().as_secs_f64(),
            FOREIGN_SWING_TARGETS * self.target_at(line),
            FOREIGN_SWING_PACKETS * PACKET_BYTES / line,
            FOREIGN_SWING_JITTERS * self.delay.jitter(),
        ];
        // While the line becomes slower, or our share of it smaller, the queue grows whatever we do: that is for the other signs.
        let capacities = self.floors.iter().map(|floor| (floor.capacity, floor.capacity));
        if span(capacities) < FOREIGN_SWING_CAPACITY * self.capacity && unsuspicious.iter().all(|unsuspicious| swing - own > *unsuspicious)
        {
            self.begin_to_compete(now);
        }
    }

    fn begin_to_compete(&mut self, now: Instant) {
        // Half of what the line gave before: as if one other were there.
        let half = self.undisturbed.most(now).unwrap_or(0.0) / 2.0;
        let window = self.capacity.max(half) * self.smoothed_rtt.as_secs_f64();
        self.competition = Some(Competition::new(now, window, self.delay.recent()));
        self.phase = Phase::Competing;
    }

    fn compete(&mut self, now: Instant, rate: Option<Rate>, sample: &AckSample) {
        let span = self.rate_span();
        let Some(competition) = &mut self.competition else { return };
        if let Some(rate) = rate.filter(|_| competition.gain().is_none()) {
            let weight = weight(rate, sample.acked_bytes, span);
            self.capacity += (rate.of_busy_line(self.capacity) - self.capacity) * weight;
        }
        let queue = self.delay.recent();
        let has_whole_line = self.undisturbed.most(now).is_some_and(|most| self.capacity > WHOLE_LINE * most);
        let signs = QueueSigns { queue, none: TARGET_QUEUE, same: 0.002 + self.delay.jitter(), has_whole_line };
        let Some(finding) = competition.on_ack(now, sample, signs, self.round.is_app_limited) else { return };
        // The line could have delivered more than it was given meanwhile.
        self.rates.on_app_limited(sample.in_flight);
        match finding {
            Finding::Alone => {
                let was_in_vain = competition.checks() <= VAIN_CHECKS;
                self.vain_competitions = if was_in_vain { self.vain_competitions + 1 } else { 0 };
                self.competes_from = was_in_vain.then(|| now + VAIN_PAUSE * 2u32.pow(self.vain_competitions.min(VAIN_DOUBLINGS)));
            }
            Finding::LongerWay => self.rebase(),
        }
        self.competition = None;
        self.phase = Phase::Steady;
        self.empty_rounds = 0;
        self.floors.clear();
    }

    /// Takes the delay of now for that of the way.
    fn rebase(&mut self) {
        self.delay.rebase();
        self.min_rtt = MinFilter::default();
    }

    fn end_round(&mut self, now: Instant) {
        let round = std::mem::take(&mut self.round);
        self.round.began = Some(now);
        match self.phase {
            Phase::Steady if !round.is_app_limited => self.rounds.full += 1,
            _ => self.rounds.free += 1,
        }
        let total = (round.acked_bytes + round.lost_bytes) as f64;
        let lost = if total > 0.0 { round.lost_bytes as f64 / total } else { 0.0 };
        if self.phase == Phase::Steady && round.lost_events >= SLOW_START_LOSSES && lost > self.loss * 2.0 + OVERFLOW_LOSS {
            self.cautious_until = Some(now + (self.smoothed_rtt * CAUTIOUS_ROUNDS).min(CAUTIOUS_TIME));
            if round.best_rate > 0.0 {
                self.capacity = self.capacity.min(round.best_rate);
            }
        }
        if total >= 8.0 * PACKET_BYTES && self.phase != Phase::Competing {
            self.loss = (self.loss + (lost - self.loss) / 16.0).min(MAX_LOSS);
        }
        self.cautious_until = self.cautious_until.filter(|until| now < *until);
        if self.phase == Phase::Steady {
            self.note_floor(now, &round);
        }
        // A queue that has begun to grow is what the last rounds' pace made.
        let queue_was_empty = self.delay.recent() < self.target() / 4.0 && round.least_queue.is_some();
        let is_draining = !matches!(self.drain, Drain::Waiting(_));
        let may_probe = queue_was_empty && !round.is_app_limited && !is_draining && self.cautious_until.is_none();
        self.empty_rounds = if may_probe { self.empty_rounds + 1 } else { 0 };
        self.in_flight_before = round.in_flight;
    }
}

/// How much the capacity follows an acknowledgement of so many bytes, of which those of a `span` count for most.
fn weight(rate: Rate, acked_bytes: u64, span: Duration) -> f64 {
    (CAPACITY_WEIGHT * acked_bytes as f64 / (rate.arrival * span.as_secs_f64()).max(1.0)).min(1.0)
}

/// How far the least and the most of `ranges` are apart.
fn span(ranges: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (least, most) = ranges.fold((f64::MAX, f64::MIN), |(least, most), (low, high)| (least.min(low), most.max(high)));
    (most - least).max(0.0)
}

/// `seconds` as a duration of at most [`LONGEST`]; none if it is negative or no number.
pub(super) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.min(LONGEST)).unwrap_or_default()
}

/// No wait or queue is believed to be longer, in seconds.
const LONGEST: f64 = 3600.0;
