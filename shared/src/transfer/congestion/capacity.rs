//! What a line gives: slow start, the delivery rate while a queue stands, and the queue let run empty now and then.

use std::time::{Duration, Instant};

use super::{AckSample, Congestion, PACKET_BYTES, Phase, duration, filters::Rate};

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Drain {
    /// Not before.
    Waiting(Option<Instant>),
    /// Less is sent until then.
    Running(Instant),
    /// Enough has been held back; until then its effect is seen.
    Passing(Instant),
}

/// How far the capacity follows the delivery rate within the span over which that is measured.
const CAPACITY_WEIGHT: f64 = 1.5;

/// Slow start ends at a queue of an eighth of the round trip within these bounds (RFC 9406 §4.3).
const SLOW_START_QUEUE: (f64, f64) = (0.004, 0.016);

/// The loss in one round that ends slow start, and at least so many losses.
const SLOW_START_LOSS: f64 = 0.1;
pub(super) const SLOW_START_LOSSES: u32 = 4;

/// How often the queue is let run empty, twice as rarely each time at first; the least delay is that of the last two such spans. So much more
/// than the queue is held back, in seconds; if that lowers the least delay by more than so many seconds and packets, it begins anew.
const DRAIN_EVERY: Duration = Duration::from_secs(10);
pub(super) const FIRST_DRAIN_AFTER: Duration = Duration::from_secs(1);
pub(super) const DRAIN_GAIN: f64 = 0.5;
const DRAIN_MARGIN: f64 = 0.010;
const DRAIN_FOUND: f64 = 0.001;
const DRAIN_FOUND_PACKETS: f64 = 0.25;

impl Congestion {
    pub(super) fn slow_start(&mut self, now: Instant, sample: &AckSample, rate: Option<Rate>) {
        let window_was_used = sample.in_flight + sample.acked_bytes >= (self.slow_start_window * 0.5) as u64;
        if window_was_used {
            self.slow_start_window += sample.acked_bytes as f64;
        }
        let threshold = (self.smoothed_rtt.as_secs_f64() / 8.0).clamp(SLOW_START_QUEUE.0, SLOW_START_QUEUE.1);
        let queue_stands = self.delay.is_full() && self.delay.recent() > threshold;
        let acked_and_lost = (self.round.acked_bytes + self.round.lost_bytes) as f64;
        let loses = self.round.lost_events >= SLOW_START_LOSSES && self.round.lost_bytes as f64 > SLOW_START_LOSS * acked_and_lost;
        // What a path that hardly sends meets is somebody else's queue, or jitter; its rate says nothing of the line.
        if window_was_used && (queue_stands || loses) {
            let measured = self.round.best_rate.max(rate.map_or(0.0, |rate| rate.bytes_per_second));
            self.capacity =
                if measured > 0.0 { measured } else { self.slow_start_window / self.smoothed_rtt.as_secs_f64().max(1e-3) / 2.0 };
            self.phase = Phase::Steady;
            if !loses {
                self.begin_to_join(now, sample.in_flight);
            }
            self.empty_rounds = 0;
            if measured > 0.0 {
                self.undisturbed.push(now, measured);
            }
            // Somebody else's queue may have hidden the least delay.
            self.drain_pause = FIRST_DRAIN_AFTER;
            self.drain = Drain::Waiting(Some(now + FIRST_DRAIN_AFTER));
        }
    }

    pub(super) fn steady(&mut self, now: Instant, rate: Option<Rate>, acked_bytes: u64) {
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
        self.join(now, queue);
        match self.drain {
            Drain::Waiting(None) => self.drain = Drain::Waiting(Some(now + DRAIN_EVERY)),
            Drain::Waiting(Some(at)) if now >= at && self.joining.is_none() => {
                let enough = duration((queue + DRAIN_MARGIN) / (1.0 - DRAIN_GAIN));
                self.least_before_drain = self.delay.least();
                self.drain = Drain::Running(now + enough.min(self.smoothed_rtt * 2 + Duration::from_millis(20)));
            }
            Drain::Running(until) if now >= until => {
                self.drain = Drain::Passing(now + self.smoothed_rtt + Duration::from_millis(20));
            }
            Drain::Passing(until) if now >= until => {
                // Somebody's queue has hidden a part of ours, and may hide another.
                let found = self.least_before_drain.map_or(0.0, |before| self.delay.queue_of(before));
                self.drain_pause = if found > DRAIN_FOUND.max(DRAIN_FOUND_PACKETS * PACKET_BYTES / self.capacity.max(1.0)) {
                    FIRST_DRAIN_AFTER
                } else {
                    (self.drain_pause * 2).min(DRAIN_EVERY)
                };
                self.delay.begin_span();
                self.min_rtt.begin_span();
                self.drain = Drain::Waiting(Some(now + self.drain_pause));
            }
            _ => {}
        }
        self.look_for_others(now, queue, target.max(self.target_at(self.capacity)));
    }
}

/// How much the capacity follows an acknowledgement of so many bytes, of which those of a `span` count for most.
pub(super) fn weight(rate: Rate, acked_bytes: u64, span: Duration) -> f64 {
    (CAPACITY_WEIGHT * acked_bytes as f64 / (rate.arrival * span.as_secs_f64()).max(1.0)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::{super::LargestSent, *};

    #[test]
    fn what_slow_start_guesses_is_not_what_the_line_gave() {
        let start = Instant::now();
        let mut congestion = Congestion::new(Duration::from_millis(340));
        // Too few bytes for a rate: a modem's first packets, each of which waits for the one before.
        for number in 0..5 {
            acknowledge(&mut congestion, (start, Duration::ZERO), Duration::from_millis(340 + 175 * number), (1228, 15_000));
        }
        assert_eq!(congestion.phase, Phase::Steady);
        assert!(congestion.capacity > 0.0);
        assert_eq!(congestion.undisturbed.most(start), None);
    }

    #[test]
    fn a_path_that_hardly_sends_does_not_leave_slow_start() {
        let start = Instant::now();
        let mut congestion = Congestion::new(Duration::from_millis(11));
        for number in 0..200 {
            // The way's jitter looks like a queue for a while.
            let rtt = Duration::from_millis(if number < 100 { 11 } else { 16 });
            acknowledge(&mut congestion, (start, Duration::from_millis(100 * number)), rtt, (100, 0));
        }
        assert_eq!(congestion.phase, Phase::SlowStart);
    }

    /// Acknowledges a packet of some bytes, sent so long after a start, that took `rtt`, with others in flight.
    fn acknowledge(congestion: &mut Congestion, (start, sent): (Instant, Duration), rtt: Duration, (bytes, in_flight): (u64, u64)) {
        congestion.on_ack(
            start + sent + rtt,
            &AckSample {
                acked_bytes: bytes,
                lost_bytes: 0,
                spurious_bytes: 0,
                largest_sent: Some(LargestSent { at: start + sent, at_us: sent.as_micros() as u64, bytes }),
                received_at_us: (sent + rtt).as_micros() as u64,
                rtt,
                smoothed_rtt: rtt,
                ack_delay: Duration::from_millis(25),
                in_flight,
            },
        );
    }
}
