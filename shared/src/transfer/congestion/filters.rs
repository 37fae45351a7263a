//! What acknowledgements say of a line: its delay, the least of something, its delivery rate.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::PACKET_BYTES;

/// One-way delay above the least seen lately.
#[derive(Debug, Default)]
pub(super) struct DelayFilter {
    /// Arrival less sending, microseconds between two clocks of unknown difference: the least of the span before and of this one.
    span_before: Option<i64>,
    span_now: Option<i64>,
    recent: VecDeque<i64>,
    /// The mean difference between a sample and the one before, microseconds, smoothed.
    jitter_us: f64,
}

/// Samples of which the least counts: one that met a busy machine doesn't look like a queue.
const RECENT_SAMPLES: usize = 4;

impl DelayFilter {
    /// Adds a sample; gives its queue in seconds.
    pub(super) fn push(&mut self, delay_us: i64) -> f64 {
        self.span_now = Some(self.span_now.map_or(delay_us, |least| least.min(delay_us)));
        if let Some(before) = self.recent.back() {
            self.jitter_us += ((delay_us - before).abs() as f64 - self.jitter_us) / 32.0;
        }
        if self.recent.len() == RECENT_SAMPLES {
            self.recent.pop_front();
        }
        self.recent.push_back(delay_us);
        (delay_us - self.least()) as f64 / 1e6
    }

    /// The least queue of the last few samples, in seconds.
    pub(super) fn recent(&self) -> f64 {
        // A sample may be older than the spans that count, and less than the least of them.
        self.recent.iter().min().map_or(0.0, |&delay_us| (delay_us - self.least()).max(0) as f64 / 1e6)
    }

    pub(super) fn jitter(&self) -> f64 {
        self.jitter_us / 1e6
    }

    pub(super) fn is_full(&self) -> bool {
        self.recent.len() == RECENT_SAMPLES
    }

    pub(super) fn begin_span(&mut self) {
        self.span_before = self.span_now.take();
    }

    pub(super) fn rebase(&mut self) {
        self.span_before = None;
        self.span_now = self.recent.iter().min().copied();
    }

    pub(super) fn least(&self) -> i64 {
        match (self.span_before, self.span_now) {
            (Some(before), Some(now)) => before.min(now),
            (before, now) => before.or(now).unwrap_or(0),
        }
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

    #[test]
    fn no_queue_is_less_than_none_though_its_samples_are_older_than_the_spans() {
        let mut delay = DelayFilter::default();
        delay.push(1_000);
        delay.begin_span();
        delay.push(5_000);
        delay.begin_span();
        assert_eq!(delay.recent(), 0.0);
    }
}
