//! How far a line is lent while its owner uses it.
//!
//! Enters: the queue that probes of the line see, and what the relay forwards. Leaves: the most that is lent for now, if the owner needs the
//! line. The paths' congestion control keeps its queue short by itself and leaves what others take without queueing. What it can't
//! is give way to a transfer that fills the queue: it would take its fair part. So: a queue that stands while the relay carries less
//! than the line has shown to carry isn't the relay's. Then the rate is halved, again and again, down to the part that is lent in any
//! case; once the queue is gone it grows back. A queue that is gone as soon as the rate is halved was the relay's: the line is slower than
//! was thought. Users who take no more than that part are left to share by congestion control. Always holds: without a queue of others'
//! nothing is limited. Each direction is one [`Yielding`].

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::units::Rate;

/// One direction of a line.
#[derive(Debug)]
pub struct Yielding {
    /// The part of the line that is lent in any case.
    least: f64,
    /// The limit now, bytes per second.
    limit: Option<f64>,
    /// What was carried when the limit began, bytes per second, and when that was.
    limited: Option<(Instant, f64)>,
    /// Since when no more than the least is lent.
    least_since: Option<Instant>,
    /// Since when more than that has been carried beside a queue of others'.
    excess_since: Option<Instant>,
    probes: VecDeque<(Instant, Duration)>,
    /// What was carried in the last steps, bytes, and in how many seconds.
    steps: VecDeque<(f64, f64)>,
    /// The most carried over [`STEPS`] steps, lately and in the span before, bytes per second.
    best_now: f64,
    best_before: f64,
    span_began: Instant,
    step_began: Instant,
    carried_before: u64,
    /// Since when no queue of others' has been seen.
    calm_since: Option<Instant>,
}

impl Yielding {
    /// A direction of which nothing is known, that has carried `carried` bytes; the part `least` of it, 0 to 1, is lent in any case.
    pub fn new(now: Instant, carried: u64, least: f64) -> Self {
        Self {
            least,
            limit: None,
            limited: None,
            least_since: None,
            excess_since: None,
            probes: VecDeque::new(),
            steps: VecDeque::new(),
            best_now: 0.0,
            best_before: 0.0,
            span_began: now,
            step_began: now,
            carried_before: carried,
            calm_since: None,
        }
    }

    /// Takes the queue that a probe met.
    pub fn on_probe(&mut self, now: Instant, queue: Duration) {
        self.probes.push_back((now, queue));
        while self.probes.len() > PROBES_MAX || self.probes.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            self.probes.pop_front();
        }
    }

    /// Whether [`Yielding::limit`] is due to be asked for again.
    pub fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.step_began) >= STEP
    }

    /// The most that is lent from now on; `carried` is what the relay has forwarded so far. Ask once a [`STEP`].
    pub fn limit(&mut self, now: Instant, carried: u64) -> Option<Rate> {
        let elapsed = now.saturating_duration_since(self.step_began).as_secs_f64().max(1e-3);
        self.steps.push_back((carried.saturating_sub(self.carried_before) as f64, elapsed));
        if self.steps.len() > STEPS {
            self.steps.pop_front();
        }
        (self.step_began, self.carried_before) = (now, carried);
        if now.saturating_duration_since(self.span_began) >= SPAN {
            (self.best_before, self.best_now, self.span_began) = (self.best_now, 0.0, now);
        }
        let rate = self.rate();
        // A limit says nothing of the line.
        if self.limit.is_none() && self.steps.len() == STEPS {
            self.best_now = self.best_now.max(rate);
        }
        let best = self.best_now.max(self.best_before);
        let least = (best * self.least).max(LEAST_BYTES);
        let is_foreign = self.queue(now).is_some_and(|queue| queue > QUEUE + packets_time(best)) && rate < FULL * best;
        if is_foreign {
            self.calm_since = None;
            self.hold_back(now, rate, least);
        } else {
            self.excess_since = None;
            let calm_since = *self.calm_since.get_or_insert(now);
            match self.limited.take() {
                Some((began, rate)) if now.saturating_duration_since(began) <= ONES_OWN => {
                    (self.best_before, self.best_now) = (0.0, rate);
                    self.limit = None;
                }
                _ if now.saturating_duration_since(calm_since) >= CALM => {
                    self.limit = self.limit.map(|limit| limit * GROWTH).filter(|limit| *limit < 2.0 * best);
                }
                _ => {}
            }
        }
        self.limit.map(|bytes_per_second| Rate { bits_per_second: (bytes_per_second * 8.0) as u64 })
    }

    /// Halves what is lent, down to the least. The least is not held for long if that is what is carried in any case: the paths' congestion
    /// control shares better without a limit, and is held back again if it takes more.
    fn hold_back(&mut self, now: Instant, rate: f64, least: f64) {
        if rate <= EXCESS * least {
            self.excess_since = None;
        }
        let excess_since = *self.excess_since.get_or_insert(now);
        match self.limit {
            None if now.saturating_duration_since(excess_since) < PATIENCE.mul_f64(self.least) => {}
            Some(limit) if limit <= least => {
                let since = *self.least_since.get_or_insert(now);
                if now.saturating_duration_since(since) >= HOLD {
                    (self.limit, self.least_since, self.limited) = (None, None, None);
                }
            }
            limit => {
                self.limited.get_or_insert((now, rate));
                self.limit = Some((limit.unwrap_or(f64::INFINITY).min(rate) / 2.0).max(least));
                self.least_since = None;
            }
        }
    }

    /// What was carried in the last steps, bytes per second.
    fn rate(&self) -> f64 {
        let (bytes, seconds) = self.steps.iter().fold((0.0, 0.0), |sum, step| (sum.0 + step.0, sum.1 + step.1));
        bytes / f64::max(seconds, 1e-3)
    }

    /// The queue that stood all the time lately, if enough probes have come.
    fn queue(&self, now: Instant) -> Option<Duration> {
        let lately = self.probes.iter().filter(|(at, _)| now.duration_since(*at) <= WINDOW);
        (lately.clone().count() >= PROBES_MIN).then(|| lately.map(|(_, queue)| *queue).min()).flatten()
    }
}

/// The time of a few full packets, which the paths' queues take on slow lines.
fn packets_time(bytes_per_second: f64) -> Duration {
    Duration::from_secs_f64((4.0 * 1500.0 / bytes_per_second.max(1.0)).min(2.0))
}

/// How often the limit is thought over.
pub const STEP: Duration = Duration::from_millis(250);

/// A queue has to stand for so long; a burst's is gone sooner. Fewer probes than that say nothing.
const WINDOW: Duration = Duration::from_millis(750);
const PROBES_MIN: usize = 4;
const PROBES_MAX: usize = 64;

/// The queue that the paths' own congestion control may leave: its target with the most that it allows for jitter, and a little.
const QUEUE: Duration = Duration::from_millis(30);

/// Steps over which a rate is taken: in a round trip or two more goes into the line's queue than the line carries.
const STEPS: usize = 4;

/// Who carries this part of the best seen has the line to himself: the queue is his own.
const FULL: f64 = 0.75;

/// Who carries no more than this multiple of what is lent in any case is not held back.
const EXCESS: f64 = 1.3;

/// So long times the part that is lent in any case it is waited for the paths to share by themselves: 4 s for half, not for a twentieth.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long no more than the least is lent without looking whether more would be taken.
const HOLD: Duration = Duration::from_secs(4);

/// A queue that goes so soon after the rate was halved was the relay's own: a transfer of others would have kept it.
const ONES_OWN: Duration = Duration::from_millis(750);

/// How long the best is remembered: a span and the one before.
const SPAN: Duration = Duration::from_secs(60);

/// What is lent in any case, bytes per second, so that probes of other paths' ends and small requests go on.
const LEAST_BYTES: f64 = 4_000.0;

/// After this time without a queue the limit grows, by this factor a step: a twentieth becomes all in 4 s.
const CALM: Duration = Duration::from_millis(750);
const GROWTH: f64 = 1.25;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_of_ones_own_limits_nothing() {
        let mut line = Line::new();
        for step in 0..400 {
            assert_eq!(line.step(step, 1_000_000.0, 200), None);
        }
    }

    #[test]
    fn a_queue_of_the_owners_takes_the_line_within_seconds_and_gives_it_back() {
        for (least, left) in [(0.05, 70_000.0), (0.5, 510_000.0)] {
            let mut line = Line::with_least(least);
            (0..40).for_each(|step| assert_eq!(line.step(step, 1_000_000.0, 5), None));
            // The owner's download takes half, then whatever it is left.
            let mut rate: f64 = 700_000.0;
            for step in 40..64 {
                rate = line.step(step, rate, 120).map_or(rate * 1.02, |limit| limit.bits_per_second as f64 / 8.0).min(700_000.0);
            }
            assert!(rate < left && rate >= least * 990_000.0, "{rate}");
            let given_back = (64..94).find(|&step| {
                let limit = line.step(step, rate, 3);
                rate = limit.map_or(1_000_000.0, |limit| limit.bits_per_second as f64 / 8.0);
                limit.is_none()
            });
            assert!(given_back.is_some_and(|step| step < 89), "{given_back:?}");
        }
    }

    #[test]
    fn what_goes_into_the_queue_at_once_is_not_what_the_line_carries() {
        let mut line = Line::new();
        // A path begins at twice what the line carries, and its queue stays for a while.
        for step in 0..40 {
            let rate = if step % 20 == 5 { 2_000_000.0 } else { 1_000_000.0 };
            assert_eq!(line.step(step, rate, 60), None, "{step}");
        }
    }

    #[test]
    fn a_line_that_has_become_slower_is_not_the_owners_for_long() {
        let mut line = Line::new();
        (0..40).for_each(|step| assert_eq!(line.step(step, 1_000_000.0, 60), None));
        let mut limit = None;
        let limited = (40..240).filter(|&step| {
            let lent = limit.map_or(400_000.0, |limit: Rate| limit.bits_per_second as f64 / 8.0).min(400_000.0);
            limit = line.step(step, lent, if lent < 400_000.0 { 2 } else { 60 });
            limit.is_some()
        });
        assert!(limited.count() < 12);
    }

    #[test]
    fn a_queue_that_comes_and_goes_is_nobodys() {
        let mut line = Line::new();
        (0..40).for_each(|step| assert_eq!(line.step(step, 1_000_000.0, 5), None));
        (40..200).for_each(|step| assert_eq!(line.step(step, 500_000.0, if step % 2 == 0 { 150 } else { 5 }), None));
    }

    struct Line {
        yielding: Yielding,
        start: Instant,
        carried: f64,
    }

    impl Line {
        fn new() -> Self {
            Self::with_least(0.05)
        }

        fn with_least(least: f64) -> Self {
            let start = Instant::now();
            Self { yielding: Yielding::new(start, 0, least), start, carried: 0.0 }
        }

        fn step(&mut self, step: u32, bytes_per_second: f64, queue_ms: u64) -> Option<Rate> {
            let now = self.start + STEP * (step + 1);
            (0..4).for_each(|probe| self.yielding.on_probe(now - STEP / 4 * probe, Duration::from_millis(queue_ms)));
            self.carried += bytes_per_second * STEP.as_secs_f64();
            self.yielding.limit(now, self.carried as u64)
        }
    }
}
