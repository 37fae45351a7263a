//! How much a path sends: congestion control for shared consumer lines.
//!
//! Each path paces at the line's capacity and corrects the pace by the queue it sees, so that the queue stands at a few
//! milliseconds: never empty, so the line never idles; never deep, so a request behind a bulk flow hardly waits.
//!
//! * The *queue* is a one-way measure: arrival time on the receiver's clock less sending time on ours, less the least such
//!   difference seen lately (as in LEDBAT, RFC 6817 §2), and less what the datagram itself takes longer on the line for its size. Queues of the reverse direction don't disturb it.
//! * The *capacity* is the delivery rate on the receiver's clock while a queue stands, since the line then decides the rate. It is a
//!   measure of what arrived, so random loss does not lower it (as in BBR, draft-ietf-ccwg-bbr).
//! * *Slow start* doubles the window each round trip and ends at the first sign of a queue (as HyStart++, RFC 9406), or of heavy loss.
//! * In the *steady* phase the pace is `capacity × (1 + (target − queue) / T)`: a proportional controller whose time constant `T` is some
//!   round trips, because it acts on a measure that is one round trip old. A window bounds what is in flight all the same.
//! * Every so often ([`capacity`]) the queue is let run empty for an instant, so that the least delay is seen again.
//!
//! * A queue that somebody else keeps (TCP Cubic, BBR) would leave such a sender with nothing: while there is one, the path competes for
//!   its share ([`competition`]), and goes back as soon as nobody else keeps a queue.
//! * Paths that share a line share it equally: the queue aimed at is the shorter the faster a path is, so that of two the faster gives way.
//!   One that comes to a line which others fill over a long way takes its part of it at once ([`joining`]). Where `reconst` knows what each has
//!   of a line and says so ([`Congestion::set_fair_rate`]), they go by that.
//!
//! Bytes here are whole packets, headers included. Which bytes are sent is not decided here.

mod capacity;
mod competition;
mod filters;
mod joining;
mod others;
mod pace;
mod pacer;
#[cfg(test)]
mod sharing;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use capacity::{Drain, FIRST_DRAIN_AFTER, SLOW_START_LOSSES};
use competition::Competition;
use filters::{Delay, DelayFilter, MaxFilter, MinFilter, RateFilter};
use joining::Joining;
use others::{Floor, Patience};
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
    /// The least delay known when it began.
    least_before_drain: Option<Delay>,
    drain_pause: Duration,
    rounds: Rounds,
    /// Since when the pace has been below the capacity, and the queue then.
    braking: Option<(Instant, f64)>,
    patience: Option<Patience>,
    /// The most that the line gave lately while nobody else was seen on it.
    undisturbed: MaxFilter,
    joining: Option<Joining>,
    /// See [`Self::set_fair_rate`].
    fair_rate: Option<f64>,
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
    /// The largest newly acknowledged datagram; `None` if its number is not new.
    pub largest_sent: Option<LargestSent>,
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

/// The largest newly acknowledged datagram.
#[derive(Clone, Copy, Debug)]
pub struct LargestSent {
    /// When it was sent.
    pub at: Instant,
    /// The same in microseconds on our clock.
    pub at_us: u64,
    /// Its size.
    pub bytes: u64,
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

/// One round trip: from a sending until that datagram is acknowledged.
#[derive(Debug, Default)]
struct Round {
    began: Option<Instant>,
    /// The line's rate when it began, bytes per second; 0 if that was not measured yet.
    capacity: f64,
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

/// A round's loss beyond the usual that counts as an overflowing queue too short to be seen as delay.
const OVERFLOW_LOSS: f64 = 0.04;

/// Rounds without raising the pace after that, and the most time: over a long way so many rounds would leave the line idle for seconds.
const CAUTIOUS_ROUNDS: u32 = 16;
const CAUTIOUS_TIME: Duration = Duration::from_millis(500);

/// Random loss that is made up for, at most.
const MAX_LOSS: f64 = 0.2;

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
            least_before_drain: None,
            drain_pause: FIRST_DRAIN_AFTER,
            rounds: Rounds::default(),
            braking: None,
            patience: None,
            undisturbed: MaxFilter::default(),
            joining: None,
            fair_rate: None,
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

    /// Goes by the rate that is the path's fair share of a line which others fill as well, in bytes per second; `None` if none are known to.
    pub fn set_fair_rate(&mut self, rate: Option<f64>) {
        self.fair_rate = rate.filter(|rate| *rate >= 1.0);
    }

    /// Notes that `bytes` left, with `in_flight` bytes in flight before them.
    pub fn on_sent(&mut self, now: Instant, bytes: u64, in_flight: u64) {
        if in_flight == 0 {
            self.rates.on_idle();
        }
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
        let Some(largest) = sample.largest_sent else { return };
        self.min_rtt.push(sample.rtt.as_secs_f64());
        let delay = Delay { us: sample.received_at_us as i64 - largest.at_us as i64, bytes: largest.bytes };
        let queue = self.delay.push(delay, self.capacity);
        let least = self.round.least_queue.get_or_insert(queue);
        *least = least.min(queue);
        self.round.in_flight = sample.in_flight as f64;
        let rate = self.rates.push(sample.received_at_us, largest.at_us, self.rate_span());
        if let Some(rate) = rate {
            self.round.best_rate = self.round.best_rate.max(rate.bytes_per_second);
        }
        match self.phase {
            Phase::SlowStart => self.slow_start(now, sample, rate),
            Phase::Steady => self.steady(now, rate, sample.acked_bytes),
            Phase::Competing => self.compete(now, rate, sample),
        }
        if self.round.began.is_some_and(|began| largest.at >= began) {
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
        self.joining = None;
        self.floors.clear();
        self.competition = None;
        self.pacer = Pacer::default();
    }

    /// The line's rate in bytes per second as far as it is known.
    pub fn capacity(&self) -> f64 {
        let guess = self.slow_start_window / self.smoothed_rtt.as_secs_f64().max(1e-3);
        if self.capacity == 0.0 { guess } else { self.capacity }
    }

    /// The fair rate that was told, in bytes per second.
    pub fn fair_rate(&self) -> Option<f64> {
        self.fair_rate
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

    fn end_round(&mut self, now: Instant) {
        let round = std::mem::take(&mut self.round);
        self.round.began = Some(now);
        self.round.capacity = if self.is_measured() { self.capacity } else { 0.0 };
        if let Some(patience) = &mut self.patience {
            patience.end_round();
        }
        if let Some(joining) = &mut self.joining {
            joining.end_round();
        }
        match self.phase {
            Phase::Steady if !round.is_app_limited => self.rounds.full += 1,
            _ => self.rounds.free += 1,
        }
        let total = (round.acked_bytes + round.lost_bytes) as f64;
        let lost = if total > 0.0 { round.lost_bytes as f64 / total } else { 0.0 };
        if self.phase == Phase::Steady && round.lost_events >= SLOW_START_LOSSES && lost > self.loss * 2.0 + OVERFLOW_LOSS {
            self.cautious_until = Some(now + (self.smoothed_rtt * CAUTIOUS_ROUNDS).min(CAUTIOUS_TIME));
            self.joining = None;
            if round.best_rate > 0.0 {
                self.capacity = self.capacity.min(round.best_rate);
            }
        }
        if total >= 8.0 * PACKET_BYTES && self.phase != Phase::Competing {
            self.loss = (self.loss + (lost - self.loss) / 16.0).min(MAX_LOSS);
        }
        self.cautious_until = self.cautious_until.filter(|until| now < *until);
        // One that began in slow start had less in flight then than at the ends of the rounds.
        if self.phase == Phase::Steady && round.capacity > 0.0 {
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

/// `seconds` as a duration of at most [`LONGEST`]; none if it is negative or no number.
pub(super) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.min(LONGEST)).unwrap_or_default()
}

/// No wait or queue is believed to be longer, in seconds.
const LONGEST: f64 = 3600.0;
