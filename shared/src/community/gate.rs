//! How often something may happen.

use std::time::{Duration, Instant};

/// Lets through one event an interval, and a burst after a pause.
#[derive(Clone, Copy, Default, Debug)]
pub struct Gate {
    /// When the events let through so far would be over if they had come evenly (the generic cell rate algorithm, ITU-T I.371).
    due: Option<Instant>,
}

impl Gate {
    /// Whether an event may happen `now`, which then counts.
    ///
    /// # Panics
    /// If `burst` is 0.
    pub fn take(&mut self, now: Instant, interval: Duration, burst: u32) -> bool {
        let due = self.due.map_or(now, |due| due.max(now));
        if due.duration_since(now) > interval * (burst - 1) {
            return false;
        }
        self.due = Some(due + interval);
        true
    }
}
