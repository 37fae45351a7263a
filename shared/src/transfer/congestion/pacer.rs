//! The pace put into practice.

use std::time::{Duration, Instant};

use super::{PACKET_BYTES, duration};

/// A token bucket: what the pace allows, saved up for at most a timer's tick.
#[derive(Debug, Default)]
pub(super) struct Pacer {
    tokens: f64,
    refilled_at: Option<Instant>,
}

/// What may leave at once: the pace of this time, at least so many packets of the length that is sent. Timers tick in milliseconds and fire
/// late on a busy machine; what they let pass would be lost otherwise.
const BURST: Duration = Duration::from_millis(4);
const BURST_PACKETS: f64 = 2.0;

/// The least wait: a fraction of a byte that is lacking would round to none at all, and the timer would never rest.
const LEAST_WAIT: Duration = Duration::from_micros(1);

impl Pacer {
    pub(super) fn ready(&mut self, now: Instant, bytes: f64, pace: f64) -> Result<(), Instant> {
        let burst = (pace * BURST.as_secs_f64()).max(BURST_PACKETS * PACKET_BYTES.max(bytes));
        let elapsed = self.refilled_at.map_or(BURST, |at| now.saturating_duration_since(at));
        self.tokens = (self.tokens + pace * elapsed.as_secs_f64()).min(burst);
        self.refilled_at = Some(now);
        if self.tokens >= bytes.min(burst) {
            return Ok(());
        }
        let wait = duration((bytes - self.tokens) / pace.max(1.0));
        Err(now + wait.max(LEAST_WAIT))
    }

    pub(super) fn spend(&mut self, bytes: f64) {
        self.tokens -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_any_length_keep_the_pace_though_timers_are_late() {
        for bytes in [1500.0, 9000.0] {
            let (start, pace) = (Instant::now(), 1e6);
            let (mut now, mut pacer, mut sent) = (start, Pacer::default(), 0.0);
            while now < start + Duration::from_secs(2) {
                match pacer.ready(now, bytes, pace) {
                    Ok(()) => {
                        pacer.spend(bytes);
                        sent += bytes;
                    }
                    Err(at) => now = at + Duration::from_millis(1),
                }
            }
            assert!((1.98e6..2.03e6).contains(&sent), "{sent} of packets of {bytes}");
        }
    }

    #[test]
    fn a_pacer_that_lacks_a_fraction_of_a_byte_waits() {
        let now = Instant::now();
        let mut pacer = Pacer { tokens: 1500.0 - 1e-9, refilled_at: Some(now) };
        assert!(pacer.ready(now, 1500.0, 1e9).is_err_and(|at| at > now));
    }
}
