//! Probes of a line's queues, over its login.
//!
//! Enters: a standing login. Leaves: the queue that each echo says stands on the way up and on the way down. Always holds: probes are
//! sent only while the line carries something, and take a fiftieth of that at most. An echo bears the time at which `reconst` had the
//! probe, on a clock of its own; what is above the least seen lately on each way is queue, as long as the round trip says so too, which
//! no drift of a clock disturbs. What a queue means is for [`shared::share::yielding`].

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use shared::community::probe::{Echo, Probe};

/// The queues of one line, as probes meet them.
#[derive(Debug)]
pub(crate) struct Queues {
    started: Instant,
    up: Least,
    down: Least,
    round_trip: Least,
}

/// What one probe met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Met {
    pub(crate) up: Duration,
    pub(crate) down: Duration,
}

impl Queues {
    pub(crate) fn new(now: Instant) -> Self {
        Self { started: now, up: Least::new(CLOCK_SPAN_US), down: Least::new(CLOCK_SPAN_US), round_trip: Least::new(ROUND_TRIP_SPAN_US) }
    }

    /// The next probe's datagram.
    pub(crate) fn probe(&self, now: Instant) -> Bytes {
        Probe { sent_us: self.micros(now) }.encode()
    }

    /// What a datagram of `reconst` says, if it is an echo.
    pub(crate) fn on_datagram(&mut self, now: Instant, datagram: &[u8]) -> Option<Met> {
        let Echo { sent_us, received_us } = Echo::decode(datagram).ok()?;
        let (now_us, sent_us, received_us) = (self.micros(now) as i64, i64::try_from(sent_us).ok()?, i64::try_from(received_us).ok()?);
        if sent_us > now_us {
            return None;
        }
        let up = self.up.above(now_us, received_us.wrapping_sub(sent_us));
        let down = self.down.above(now_us, now_us.wrapping_sub(received_us));
        let round_trip = self.round_trip.above(now_us, now_us - sent_us);
        let queue = |way: i64| Duration::from_micros(way.min(round_trip).max(0) as u64);
        Some(Met { up: queue(up), down: queue(down) })
    }

    fn micros(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_micros() as u64
    }
}

/// The least of the values of a span and of the one before.
#[derive(Debug)]
struct Least {
    span_us: i64,
    spans: VecDeque<(i64, i64)>,
}

impl Least {
    fn new(span_us: i64) -> Self {
        Self { span_us, spans: VecDeque::new() }
    }

    /// Takes a value; gives by how much it is above the least.
    fn above(&mut self, now_us: i64, value: i64) -> i64 {
        match self.spans.back_mut() {
            Some((began, least)) if now_us - *began < self.span_us => *least = (*least).min(value),
            _ => self.spans.push_back((now_us, value)),
        }
        if self.spans.len() > 2 {
            self.spans.pop_front();
        }
        value - self.spans.iter().map(|(_, least)| *least).min().unwrap_or(value)
    }
}

/// The pause before the next probe of a line that carries `bytes_per_second`: a fiftieth of that, within bounds.
pub(crate) fn pause(bytes_per_second: f64) -> Duration {
    Duration::from_secs_f64((PROBE_BYTES * 50.0 / bytes_per_second.max(1.0)).clamp(PAUSE.0, PAUSE.1))
}

/// A probe's and its acknowledgement's share of a packet each way, with all headers.
const PROBE_BYTES: f64 = 120.0;

/// The bounds of the pause in seconds: often enough for the queue of a second ago, never a burden.
const PAUSE: (f64, f64) = (0.1, 2.0);

/// How long two clocks are trusted not to drift by milliseconds; a quartz is off by 20 µs a second at worst.
const CLOCK_SPAN_US: i64 = 120_000_000;

/// How long a least round trip counts: an owner's download may queue for as long.
const ROUND_TRIP_SPAN_US: i64 = 600_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_seen_on_its_way_alone_whatever_the_other_clock_says() {
        let start = Instant::now();
        let mut queues = Queues::new(start);
        let mut meet = |at_ms: u64, up_ms: u64, down_ms: u64| {
            let received_us = 77_000_000_000 + (at_ms + up_ms) * 1000;
            let echo = Echo { sent_us: at_ms * 1000, received_us }.encode();
            queues.on_datagram(start + Duration::from_millis(at_ms + up_ms + down_ms), &echo).expect("an echo")
        };
        assert_eq!(meet(0, 20, 30), Met { up: Duration::ZERO, down: Duration::ZERO });
        assert_eq!(meet(1000, 20, 130), Met { up: Duration::ZERO, down: Duration::from_millis(100) });
        assert_eq!(meet(2000, 60, 30), Met { up: Duration::from_millis(40), down: Duration::ZERO });
    }

    #[test]
    fn what_is_no_echo_says_nothing() {
        let start = Instant::now();
        let mut queues = Queues::new(start);
        assert_eq!(queues.on_datagram(start, b"hello"), None);
        assert_eq!(queues.on_datagram(start, &Echo { sent_us: u64::MAX, received_us: 1 }.encode()), None);
    }
}
