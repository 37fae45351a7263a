//! How much parcels may overtake bulk: a token bucket.

use std::time::{Duration, Instant};

/// What may still go as interactive, in bytes.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    bytes: f64,
    refilled_at: Option<Instant>,
}

/// What is saved up in silence: the time that the budget's own rate takes for it, and at least some parcels.
const SAVED: Duration = Duration::from_millis(250);
const SAVED_BYTES_MIN: f64 = 8.0 * 1024.0;

impl Budget {
    /// Whether something may go as interactive at `now`, of `rate` bytes per second.
    pub(crate) fn allows(&mut self, now: Instant, rate: f64) -> bool {
        let elapsed = self.refilled_at.map_or(SAVED, |at| now.saturating_duration_since(at));
        let most = (rate * SAVED.as_secs_f64()).max(SAVED_BYTES_MIN);
        self.bytes = if self.refilled_at.is_none() { most } else { (self.bytes + rate * elapsed.as_secs_f64()).min(most) };
        self.refilled_at = Some(now);
        self.bytes > 0.0
    }

    /// Notes that `bytes` went.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.bytes -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_sender_below_the_rate_always_may_and_one_above_gets_the_rate() {
        for (sends, allowed_at_least, allowed_at_most) in [(9_000, 1000, 1000), (40_000, 240, 280)] {
            let mut now = Instant::now();
            let mut budget = Budget::default();
            let mut allowed = 0;
            for _ in 0..1000 {
                now += Duration::from_millis(1000);
                if budget.allows(now, 10_000.0) {
                    budget.spend(sends);
                    allowed += 1;
                }
            }
            assert!((allowed_at_least..=allowed_at_most).contains(&allowed), "{sends}: {allowed}");
        }
    }
}
