//! When a queue has stood for so long that its sender does not see it any more.
//!
//! Enters: how long each packet waited, as it leaves. Leaves: whether the queue is to be emptied. The ends of a path hold their queue
//! at a few milliseconds above the least delay they know. When a user's share falls faster than they brake, what stands then may pass
//! for the line's own delay, and stays. Dropping a packet now and then (CoDel, RFC 8289) does not help: these ends make up for random
//! loss, and the delay does not change. Emptying the queue once shows them the line as it is, and they hold their few
//! milliseconds again; it costs what waited.

use std::time::{Duration, Instant};

/// One queue, watched.
#[derive(Clone, Copy, Default, Debug)]
pub struct Standing {
    since: Option<Instant>,
}

impl Standing {
    /// Whether all that waits behind the packet that leaves `now`, having waited for `waited`, is to be dropped, because no packet has
    /// waited for less than `target` for [`INTERVAL`].
    pub fn must_empty(&mut self, now: Instant, waited: Duration, target: Duration) -> bool {
        if waited < target {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let has_stood = now.saturating_duration_since(since) >= INTERVAL;
        if has_stood {
            self.since = None;
        }
        has_stood
    }
}

/// How long a queue may stand: some round trips of a slow line, within which a sender that sees it has answered. With 500 ms a line of
/// 200 ms lost 2.5 % of its packets to queues that were about to go by themselves.
pub const INTERVAL: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(30);

    #[test]
    fn a_queue_that_is_short_now_and_then_is_left_alone() {
        let (mut standing, start) = (Standing::default(), Instant::now());
        for step in 0..10_000 {
            let waited = if step % 1400 == 0 { 1 } else { 300 };
            let now = start + Duration::from_millis(step);
            assert!(!standing.must_empty(now, Duration::from_millis(waited), TARGET));
        }
    }

    #[test]
    fn a_queue_that_stands_is_emptied_once_an_interval() {
        let (mut standing, start) = (Standing::default(), Instant::now());
        let emptied = (0..10_000).filter(|&step| standing.must_empty(start + Duration::from_millis(step), 2 * TARGET, TARGET)).count();
        assert_eq!(emptied, 6);
    }
}
