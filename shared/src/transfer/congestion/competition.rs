//! Holding one's share of a line on which somebody else keeps a queue.
//!
//! A sender that keeps the queue short is left with nothing beside one that fills it, as TCP Cubic and BBR do. While such a one is there,
//! the window follows CUBIC (RFC 9438), so that both get about half. As Copa (NSDI 2018) does with its mode switching, this is left again as
//! soon as the queue shows that nobody else keeps it: now and then the pace is halved for a moment, and what is sent meanwhile meets a queue that
//! is shorter by our share of the line. If all of it was ours, the pace is halved until the queue would be empty: if it runs empty, we are alone.
//! If it is left at the same length time after time, it is no queue: the way has become longer.

use std::time::{Duration, Instant};

use super::{AckSample, PACKET_BYTES, duration};

/// The window of a path that competes.
#[derive(Debug)]
pub(super) struct Competition {
    /// Bytes.
    window: f64,
    /// The window at the last reduction, bytes.
    window_max: f64,
    /// The window that Reno would have by now, bytes.
    reno_window: f64,
    /// Since when the window has grown, and the seconds it takes to `window_max`.
    grows_since: Option<Instant>,
    origin: f64,
    /// Losses of what was sent before are of the last reduction.
    reduced_at: Option<Instant>,
    /// Our share of the line as last seen.
    share: Option<f64>,
    /// Bytes acknowledged and lost since the last check.
    acked_bytes: u64,
    lost_bytes: u64,
    /// The longest queue seen lately, seconds.
    longest_queue: f64,
    /// When the next check is due; when it may come sooner, because the queue falls; the longest queue since the last.
    check_at: Instant,
    check_at_fall: Instant,
    peak: f64,
    check: Option<Check>,
    checks: u32,
    /// The least queue of the last check that was thorough, and how many before found the same.
    floor: Option<f64>,
    same_floors: u32,
    /// Whether the last check may have found nobody else, had it been longer.
    looks_alone: bool,
}

/// The pace is halved to see whose queue it is.
#[derive(Clone, Copy, Debug)]
struct Check {
    began: Instant,
    /// The round trip and the queue then, seconds.
    rtt: f64,
    queue: f64,
    /// Until when the pace is halved, and whether it still is. What was sent until then has yet to arrive.
    until: Instant,
    holds_back: bool,
    /// The least queue that what was sent meanwhile met, seconds.
    least: f64,
    /// Whether it began because the queue fell.
    is_at_fall: bool,
    /// Whether it is long enough to empty a queue of ours alone.
    is_thorough: bool,
    /// The part of our pace at which to send.
    gain: f64,
}

/// What a check found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Finding {
    /// Nobody else keeps a queue.
    Alone,
    /// What seemed a queue stood still: the way has become longer.
    LongerWay,
}

/// The queue now, and what tells it from none.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueSigns {
    /// The queue, seconds.
    pub(super) queue: f64,
    /// What counts as none, seconds.
    pub(super) none: f64,
    /// What counts as no change, seconds.
    pub(super) same: f64,
    /// Whether we get what the line gave when nobody else was seen on it.
    pub(super) has_whole_line: bool,
}

/// RFC 9438 §4.6 and §5: the multiplicative decrease, the growth in packets a second cubed, and Reno's additive increase that goes with them.
const DECREASE: f64 = 0.7;
const GROWTH: f64 = 0.4;
const RENO_INCREASE: f64 = 3.0 * (1.0 - DECREASE) / (1.0 + DECREASE);

/// The least window.
const WINDOW_MIN_BYTES: f64 = 4.0 * PACKET_BYTES;

/// A loss while the queue is shorter than this fraction of the longest is not the queue's.
const LOSS_AT_QUEUE: f64 = 0.5;

/// What remains of the longest queue each time it is not reached again: one of minutes ago says nothing.
const LONGEST_QUEUE_KEPT: f64 = 0.998;

/// The pace while it is checked whose queue it is.
const CHECK_GAIN: f64 = 0.5;

/// A queue that a check has brought down to this fraction was ours: over a long way it never stands for long.
const EMPTIED: f64 = 0.25;

/// A queue that has fallen to this fraction is checked at once: another path may be checking, and two that compete with each other alone only
/// find out if they make room at the same time.
const FALLEN: f64 = 0.75;

/// The share of the line that is kept to, whoever came first and however slowly CUBIC converges; and the most by which one check changes the window.
const SHARE: (f64, f64) = (0.5, 0.6);
const SHARE_STEP: f64 = 2.0;

/// Who loses this part has more in flight than the queue has room for, whatever the others have.
const HEAVY_LOSS: f64 = 0.1;

/// The decrease while our share is less: packets that leave in bursts meet a full queue more often than those of a TCP that its
/// acknowledgements clock.
const DECREASE_BELOW_SHARE: f64 = 0.9;

/// A check of a deep queue holds back for so long: what it does is seen only when the queue has passed. After one that saw more than this share of
/// the line, when the queue falls, and every so many times one goes on, at less, until a queue of ours alone would be empty: two paths that
/// compete with each other alone see the queue fall, each by the other's check, and empty it together.
/// Fewer packets say nothing.
const SHORT_CHECK: Duration = Duration::from_millis(250);
const SHORT_CHECK_PACKETS: f64 = 8.0;
const ALONE: f64 = 0.8;
const THOROUGH_EVERY: u32 = 4;
const THOROUGH_GAIN: f64 = 0.25;

/// How much longer the pace is held back than a queue of ours alone takes to run empty.
const EMPTYING_MARGIN: f64 = 1.25;

/// The time between checks: the first comes soon, later ones cost a competitor's patience and a part of our share.
const CHECK_EVERY: (Duration, Duration) = (Duration::from_millis(700), Duration::from_secs(2));

/// A queue that is the same at the end of so many more thorough checks is none: somebody else's would have moved.
const SAME_FLOORS: u32 = 1;

impl Competition {
    /// Begins with a window of `bytes`; `queue` is what stands there, in seconds.
    pub(super) fn new(now: Instant, bytes: f64, queue: f64) -> Self {
        Self {
            window: bytes.max(WINDOW_MIN_BYTES),
            window_max: bytes.max(WINDOW_MIN_BYTES),
            reno_window: bytes.max(WINDOW_MIN_BYTES),
            grows_since: None,
            origin: 0.0,
            reduced_at: None,
            share: None,
            acked_bytes: 0,
            lost_bytes: 0,
            longest_queue: queue,
            check_at: now + CHECK_EVERY.0,
            check_at_fall: now + CHECK_EVERY.0,
            peak: queue,
            check: None,
            checks: 0,
            floor: None,
            same_floors: 0,
            looks_alone: false,
        }
    }

    /// Bytes that may be in flight.
    pub(super) fn window(&self) -> f64 {
        self.window
    }

    /// The part of our pace at which to send while it is checked.
    pub(super) fn gain(&self) -> Option<f64> {
        self.check.filter(|check| check.holds_back).map(|check| check.gain)
    }

    /// Whether what is acknowledged may have been sent at less than our share.
    pub(super) fn is_checking(&self) -> bool {
        self.check.is_some()
    }

    /// Works an acknowledgement in.
    pub(super) fn on_ack(&mut self, now: Instant, sample: &AckSample, signs: QueueSigns, is_app_limited: bool) -> Option<Finding> {
        self.acked_bytes += sample.acked_bytes;
        self.lost_bytes += sample.lost_bytes;
        self.longest_queue = signs.queue.max(self.longest_queue * LONGEST_QUEUE_KEPT);
        let is_new = |sent_at: Instant| self.reduced_at.is_none_or(|at| sent_at >= at);
        let is_loss = sample.lost_bytes > 0 && sample.largest_sent.is_some_and(|largest| is_new(largest.at));
        if is_loss && (signs.queue >= LOSS_AT_QUEUE * self.longest_queue || self.loses_heavily()) {
            self.reduce(now);
        } else if is_app_limited {
            self.grows_since = None;
        } else if self.check.is_none() {
            self.grow(now, sample);
        }
        self.check(now, sample, signs)
    }

    fn reduce(&mut self, now: Instant) {
        // RFC 9438 §4.7: a competitor that came later gets more room.
        self.window_max = if self.window < self.window_max { self.window * (1.0 + DECREASE) / 2.0 } else { self.window };
        let decrease = if self.share.is_some_and(|share| share < SHARE.0) { DECREASE_BELOW_SHARE } else { DECREASE };
        self.window = (self.window * decrease).max(WINDOW_MIN_BYTES);
        self.reduced_at = Some(now);
        self.grows_since = None;
    }

    fn grow(&mut self, now: Instant, sample: &AckSample) {
        let since = *self.grows_since.get_or_insert_with(|| {
            self.reno_window = self.window;
            self.origin = ((self.window_max - self.window).max(0.0) / PACKET_BYTES / GROWTH).cbrt();
            now
        });
        let seconds = (now + sample.smoothed_rtt).duration_since(since).as_secs_f64();
        let cubic = GROWTH * (seconds - self.origin).powi(3) * PACKET_BYTES + self.window_max;
        let acked = sample.acked_bytes as f64;
        self.window += (cubic.clamp(self.window, 1.5 * self.window) - self.window) / self.window * acked;
        self.reno_window += RENO_INCREASE * PACKET_BYTES * acked / self.window;
        self.window = self.window.max(self.reno_window);
    }

    fn check(&mut self, now: Instant, sample: &AckSample, signs: QueueSigns) -> Option<Finding> {
        let Some(check) = &mut self.check else {
            self.peak = self.peak.max(signs.queue);
            let is_at_fall = signs.queue < FALLEN * self.peak && now >= self.check_at_fall;
            if now >= self.check_at || is_at_fall {
                self.begin_check(now, sample.smoothed_rtt, signs.queue, is_at_fall);
            }
            return None;
        };
        check.holds_back = now < check.until;
        let sent_at = sample.largest_sent.map_or(check.began, |largest| largest.at);
        if sent_at >= check.began {
            check.least = check.least.min(signs.queue);
        } else {
            check.queue = signs.queue;
            check.least = signs.queue;
        }
        if signs.queue <= signs.none {
            return Some(Finding::Alone);
        }
        if sent_at < check.until {
            return None;
        }
        let check = *check;
        let least = check.least;
        self.check = None;
        if least <= EMPTIED * check.queue {
            return Some(Finding::Alone);
        }
        self.grows_since = self.grows_since.map(|since| since + (now - check.began));
        self.keep_to_share(&check);
        self.checks += 1;
        if check.is_at_fall {
            self.check_at = self.check_at.max(now + CHECK_EVERY.0);
        } else {
            self.check_at = now + (CHECK_EVERY.0 * self.checks).min(CHECK_EVERY.1);
        }
        self.check_at = if self.looks_alone { now } else { self.check_at };
        self.check_at_fall = now + CHECK_EVERY.0;
        self.peak = 0.0;
        if !check.is_thorough {
            return None;
        }
        self.same_floors = if self.floor.is_some_and(|floor| (floor - least).abs() <= signs.same) { self.same_floors + 1 } else { 0 };
        self.floor = Some(least);
        (signs.has_whole_line && self.same_floors >= SAME_FLOORS).then_some(Finding::LongerWay)
    }

    fn loses_heavily(&self) -> bool {
        self.lost_bytes as f64 > HEAVY_LOSS * (self.acked_bytes + self.lost_bytes) as f64
    }

    fn begin_check(&mut self, now: Instant, rtt: Duration, queue: f64, is_at_fall: bool) {
        let is_thorough = self.looks_alone || is_at_fall || self.checks % THOROUGH_EVERY == THOROUGH_EVERY - 1;
        let to_empty = |gain: f64| rtt.max(duration(EMPTYING_MARGIN * queue / (1.0 - gain))) + Duration::from_millis(20);
        let short = SHORT_CHECK.max(rtt.mul_f64(SHORT_CHECK_PACKETS * PACKET_BYTES / (CHECK_GAIN * self.window)));
        let (is_thorough, gain, time) = match to_empty(CHECK_GAIN) {
            time if time <= short => (true, CHECK_GAIN, time),
            _ if is_thorough => (true, THOROUGH_GAIN, to_empty(THOROUGH_GAIN)),
            _ => (false, CHECK_GAIN, short),
        };
        let until = now + time;
        self.check =
            Some(Check { began: now, rtt: rtt.as_secs_f64(), queue, until, holds_back: true, least: queue, is_at_fall, is_thorough, gain });
    }

    /// Follows what a check says of our share of the line: half of what we have in flight was away, and the queue that much shorter. If the
    /// other made room as well, which losses tell, our share is less than that.
    fn keep_to_share(&mut self, check: &Check) {
        let held_back = check.rtt.min((check.until - check.began).as_secs_f64());
        let most = (check.queue - check.least) / ((1.0 - check.gain) * held_back);
        self.looks_alone = most > ALONE && !self.looks_alone;
        let is_exact = !check.is_at_fall && self.reduced_at.is_none_or(|at| at < check.began);
        let loses = self.loses_heavily();
        (self.acked_bytes, self.lost_bytes) = (0, 0);
        if most < SHARE.0 && !loses {
            self.window *= (SHARE.0 / most.max(0.01)).min(SHARE_STEP);
        } else if is_exact && most > SHARE.1 {
            self.window /= (most / SHARE.1).min(SHARE_STEP);
        } else {
            return;
        }
        self.share = Some(most);
        self.window_max = self.window;
        self.grows_since = None;
    }

    /// How often it was checked whose queue it is.
    pub(super) fn checks(&self) -> u32 {
        self.checks
    }
}
