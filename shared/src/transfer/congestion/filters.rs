//! What acknowledgements say of a line: its delay, the least of something, its delivery rate.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::PACKET_BYTES;

/// How long a datagram was under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delay {
    /// Arrival less sending, microseconds between two clocks of unknown difference.
    pub(super) us: i64,
    /// Its size: a slow line takes longer for more.
    pub(super) bytes: u64,
}

impl Delay {
    /// How much longer it was under way than `other`, in seconds, on a line of `rate` bytes per second had both been of a size.
    fn above(self, other: Self, rate: f64) -> f64 {
        let by_size = if rate > 0.0 { (self.bytes as f64 - other.bytes as f64) / rate } else { 0.0 };
        (self.us - other.us) as f64 / 1e6 - by_size
    }
}

/// One-way delay above the least seen lately.
#[derive(Debug, Default)]
pub(super) struct DelayFilter {
    /// The least of the span before and of this one.
    span_before: Option<Delay>,
    span_now: Option<Delay>,
    recent: VecDeque<Delay>,
    /// The mean difference between a sample and the one before, seconds, smoothed.
    jitter: f64,
    /// The line's rate, bytes per second; 0 if it is not known.
    rate: f64,
}

/// Samples of which the least counts: one that met a busy machine doesn't look like a queue.
const RECENT_SAMPLES: usize = 4;

impl DelayFilter {
    /// Adds a sample, and what is known of the line's `rate`; gives its queue in seconds.
    pub(super) fn push(&mut self, delay: Delay, rate: f64) -> f64 {
        self.rate = rate;
        self.span_now = Some(self.span_now.map_or(delay, |least| self.lesser(least, delay)));
        if let Some(before) = self.recent.back() {
            self.jitter += (delay.above(*before, rate).abs() - self.jitter) / 32.0;
        }
        if self.recent.len() == RECENT_SAMPLES {
            self.recent.pop_front();
        }
        self.recent.push_back(delay);
        self.queue_of(delay)
    }

    /// The least queue of the last few samples, in seconds.
    pub(super) fn recent(&self) -> f64 {
        self.least_recent().map_or(0.0, |least| self.queue_of(least))
    }

    /// What a datagram waited for others, in seconds: none if its sample is older than the spans that count and less than the least of them.
    pub(super) fn queue_of(&self, delay: Delay) -> f64 {
        self.least().map_or(0.0, |least| delay.above(least, self.rate).max(0.0))
    }

    pub(super) fn jitter(&self) -> f64 {
        self.jitter
    }

    pub(super) fn is_full(&self) -> bool {
        self.recent.len() == RECENT_SAMPLES
    }

    pub(super) fn begin_span(&mut self) {
        self.span_before = self.span_now.take();
    }

    pub(super) fn rebase(&mut self) {
        self.span_before = None;
        self.span_now = self.least_recent();
    }

    pub(super) fn least(&self) -> Option<Delay> {
        match (self.span_before, self.span_now) {
            (Some(before), Some(now)) => Some(self.lesser(before, now)),
            (before, now) => before.or(now),
        }
    }

    fn least_recent(&self) -> Option<Delay> {
        self.recent.iter().copied().reduce(|least, delay| self.lesser(least, delay))
    }

    fn lesser(&self, one: Delay, other: Delay) -> Delay {
        if other.above(one, self.rate) < 0.0 { other } else { one }
    }
}

/// The least of the span before and of this one.
#[derive(Debug, Default)]
pub(super) struct MinFilter {
    span_before: Option<f64>,
    span_now: Option<f64>,
}

impl MinFilter {
    pub(super) fn push(&mut self, value: f64) {
        self.span_now = Some(self.span_now.map_or(value, |least| least.min(value)));
    }

    pub(super) fn begin_span(&mut self) {
        self.span_before = self.span_now.take();
    }

    pub(super) fn least(&self) -> Option<f64> {
        match (self.span_before, self.span_now) {
            (Some(before), Some(now)) => Some(before.min(now)),
            (before, now) => before.or(now),
        }
    }
}

/// The most of the span before and of this one.
#[derive(Debug, Default)]
pub(super) struct MaxFilter {
    span_before: Option<f64>,
    span_now: Option<(Instant, f64)>,
}

/// A span of [`MaxFilter`]: what the line gave longer ago than two of them says nothing.
const MOST_SPAN: Duration = Duration::from_secs(20);

impl MaxFilter {
    pub(super) fn push(&mut self, now: Instant, value: f64) {
        match &mut self.span_now {
            Some((since, most)) if now.saturating_duration_since(*since) < MOST_SPAN => *most = most.max(value),
            span => {
                self.span_before = span.filter(|(since, _)| now.saturating_duration_since(*since) < 2 * MOST_SPAN).map(|(_, most)| most);
                *span = Some((now, value));
            }
        }
    }

    pub(super) fn most(&self, now: Instant) -> Option<f64> {
        let (_, most) = self.span_now.filter(|(since, _)| now.saturating_duration_since(*since) < 3 * MOST_SPAN)?;
        Some(self.span_before.map_or(most, |before| before.max(most)))
    }
}

/// The delivery rate over the last round trip, on the receiver's clock.
#[derive(Debug, Default)]
pub(super) struct RateFilter {
    /// Bytes delivered so far.
    pub(super) delivered: u64,
    /// Until so many bytes are delivered the sender was short of data at times.
    app_limited_until: u64,
    points: VecDeque<RatePoint>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct RatePoint {
    received_at_us: u64,
    sent_at_us: u64,
    delivered: u64,
}

/// How fast packets were delivered, bytes per second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// At which the packets were sent or arrived, whichever is slower: what came at once after a standstill is no sign of a faster line.
    pub(super) bytes_per_second: f64,
    /// At which they arrived: from a queue that shrinks they come faster than they were sent, at the line's rate.
    pub(super) arrival: f64,
    pub(super) is_app_limited: bool,
}

impl Rate {
    /// What it says of a line whose rate was thought to be `capacity`, and which was not idle.
    pub(super) fn of_busy_line(&self, capacity: f64) -> f64 {
        capacity.clamp(self.bytes_per_second, self.arrival)
    }
}

/// A rate is measured over at least this many bytes and seconds: fewer say more of timers than of the line.
const RATE_BYTES: u64 = 4 * PACKET_BYTES as u64;
const RATE_SPAN_US: u64 = 8_000;

/// Points remembered, at most.
const RATE_POINTS: usize = 256;

impl RateFilter {
    pub(super) fn push(&mut self, received_at_us: u64, sent_at_us: u64, span: Duration) -> Option<Rate> {
        if self.points.back().is_some_and(|last| received_at_us <= last.received_at_us) {
            return None;
        }
        let point = RatePoint { received_at_us, sent_at_us, delivered: self.delivered };
        self.points.push_back(point);
        let span_us = (span.as_micros() as u64).max(RATE_SPAN_US);
        while self.points.len() > 2 {
            let second = self.points[1];
            let is_enough = received_at_us - second.received_at_us >= span_us && point.delivered - second.delivered >= RATE_BYTES;
            if !is_enough && self.points.len() <= RATE_POINTS {
                break;
            }
            self.points.pop_front();
        }
        let first = self.points[0];
        let arrival_us = received_at_us - first.received_at_us;
        let elapsed_us = arrival_us.max(sent_at_us.saturating_sub(first.sent_at_us));
        let bytes = point.delivered - first.delivered;
        if bytes < RATE_BYTES || elapsed_us < RATE_SPAN_US / 2 {
            return None;
        }
        let over = |span_us: u64| bytes as f64 * 1e6 / span_us as f64;
        let is_app_limited = first.delivered < self.app_limited_until;
        Some(Rate { bytes_per_second: over(elapsed_us), arrival: over(arrival_us), is_app_limited })
    }

    /// The path was idle until now: what was delivered before says nothing of the rate at which the line will deliver what follows (as in
    /// draft-cheng-iccrg-delivery-rate-estimation §3.2).
    pub(super) fn on_idle(&mut self) {
        self.points.clear();
    }

    /// Forgets what was measured; the line may be another now.
    pub(super) fn forget(&mut self) {
        *self = Self { delivered: self.delivered, ..Self::default() };
    }

    pub(super) fn on_app_limited(&mut self, in_flight: u64) {
        self.app_limited_until = self.delivered + in_flight.max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delay(us: i64, bytes: u64) -> Delay {
        Delay { us, bytes }
    }

    #[test]
    fn no_queue_is_less_than_none_though_its_samples_are_older_than_the_spans() {
        let mut filter = DelayFilter::default();
        filter.push(delay(1_000, 1500), 0.0);
        filter.begin_span();
        filter.push(delay(5_000, 1500), 0.0);
        filter.begin_span();
        assert_eq!(filter.recent(), 0.0);
    }

    #[test]
    fn what_a_datagram_takes_for_its_size_is_no_queue() {
        let modem = 7_000.0;
        let mut filter = DelayFilter::default();
        assert_eq!(filter.push(delay(90_000, 70), modem), 0.0);
        // 1,400 bytes more are 200 ms more.
        assert!(filter.push(delay(290_000, 1_470), modem).abs() < 1e-9);
        assert!((filter.push(delay(390_000, 1_470), modem) - 0.1).abs() < 1e-9);
        // The large one that met no queue is not less than the small one that met none.
        assert!((filter.push(delay(140_000, 70), modem) - 0.05).abs() < 1e-9);
    }
}
