//! Who else keeps a queue on the line: what tells it, and when a path competes for its share and stops.

use std::time::{Duration, Instant};

use super::{
    AckSample, Congestion, PACKET_BYTES, Phase, Round,
    capacity::{Drain, weight},
    competition::{Competition, Finding, QueueSigns},
    filters::{MinFilter, Rate},
    pace::TARGET_QUEUE,
};

/// What a pace below the capacity should have done to a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// When it began.
    since: Instant,
    /// The queue then, or what it grew to by what had been sent before, seconds.
    queue: f64,
    /// By how much the queue should have shrunk since, seconds; and up to when that was counted.
    owed: f64,
    counted: Instant,
    /// The same at the ends of the last two rounds.
    before: [(Instant, f64); 2],
}

impl Patience {
    fn new(now: Instant, queue: f64) -> Self {
        Self { since: now, queue, owed: 0.0, counted: now, before: [(now, 0.0); 2] }
    }

    pub(super) fn end_round(&mut self) {
        self.before = [self.before[1], (self.counted, self.owed)];
    }

    /// What was owed at `then`, a round trip ago: what came of it is seen now.
    fn owed_at(&self, then: Instant) -> f64 {
        let [(from, less), (to, more)] = self.before;
        let part = then.saturating_duration_since(from).as_secs_f64() / (to - from).as_secs_f64().max(1e-6);
        less + (more - less) * part.min(1.0)
    }
}

/// The least queue of a round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    at: Instant,
    /// Seconds.
    queue: f64,
    /// What was in flight at the ends of this round and of the one before, whose packets met the queue: the less and the more, bytes.
    in_flight: (f64, f64),
    /// What the line gave us, bytes per second.
    capacity: f64,
}

/// A queue that does not shrink when the pace does is somebody else's if it is longer than so many times the target and so many seconds.
const FOREIGN_TARGETS: f64 = 3.0;
const FOREIGN_QUEUE: f64 = 0.015;

/// A queue of more targets than this is to shrink, and has if only this part of it is left. Who has less than a part of the line waits for
/// less: since the target grows as that falls, a queue that grows no faster would never be too long.
const PATIENCE_TARGETS: f64 = 1.25;
const PATIENCE_TARGETS_OF_LESS: f64 = 1.05;
const LESS_OF_LINE: f64 = 0.4;
const PATIENCE_SHRUNK: f64 = 0.7;

/// Nor is a queue waited for that is so many times what a path which had all of the line would aim at, unless those who keep it are known.
const PATIENCE_OF_LINE: f64 = 1.15;

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

impl Congestion {
    /// A queue that does not shrink while the pace is below the capacity isn't ours, or isn't a queue. A short one is taken for the way's
    /// own delay; for the sake of a longer one the path competes.
    pub(super) fn look_for_others(&mut self, now: Instant, queue: f64, target: f64) {
        if self.is_outlasted(now, queue, target) {
            self.begin_to_compete(now);
            return;
        }
        if queue < 2.0 * target && !self.round.is_app_limited {
            self.undisturbed.push(now, self.capacity.min(self.round.capacity));
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
        let part = self.capacity / self.line_rate(now);
        let targets = if part < LESS_OF_LINE { PATIENCE_TARGETS_OF_LESS } else { PATIENCE_TARGETS };
        // Who has next to nothing of a line aims at so long a queue that it would be content with somebody else's.
        let target = if self.fair_rate.is_some() { target } else { target.min(PATIENCE_OF_LINE * self.target_at(self.line_rate(now))) };
        if queue < targets * target || part >= WHOLE_LINE {
            self.patience = None;
            return false;
        }
        let gain = self.gain();
        let begun = Patience::new(now, queue);
        let patience = self.patience.get_or_insert(begun);
        if now.duration_since(patience.since) <= self.smoothed_rtt {
            patience.queue = patience.queue.max(queue);
        }
        if queue < PATIENCE_SHRUNK * patience.queue {
            *patience = begun;
        }
        patience.owed += (1.0 - gain) * now.saturating_duration_since(patience.counted).as_secs_f64();
        patience.counted = now;
        let is_outlasted =
            now.checked_sub(self.smoothed_rtt).is_some_and(|then| patience.owed_at(then) > patience.queue.max(FOREIGN_QUEUE));
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
    pub(super) fn note_floor(&mut self, now: Instant, round: &Round) {
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

    pub(super) fn begin_to_compete(&mut self, now: Instant) {
        // Half of what the line gave before: as if one other were there.
        let half = self.undisturbed.most(now).unwrap_or(0.0) / 2.0;
        let window = self.capacity.max(half) * self.smoothed_rtt.as_secs_f64();
        self.competition = Some(Competition::new(now, window, self.delay.recent()));
        self.phase = Phase::Competing;
    }

    pub(super) fn compete(&mut self, now: Instant, rate: Option<Rate>, sample: &AckSample) {
        let span = self.rate_span();
        let Some(competition) = &mut self.competition else { return };
        if let Some(rate) = rate.filter(|_| !competition.is_checking()) {
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
}

/// How far the least and the most of `ranges` are apart.
fn span(ranges: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (least, most) = ranges.fold((f64::MAX, f64::MIN), |(least, most), (low, high)| (least.min(low), most.max(high)));
    (most - least).max(0.0)
}
