//! The time of day, for a server whose clock may jump.

use std::time::{Duration, Instant};

use super::UnixSeconds;

/// The time of day that quotas go by.
///
/// It runs with the monotonic clock and follows the system's clock through small steps. A step larger than [`STEP`] is believed only once
/// the system's clock has gone on from there for [`BELIEVED_AFTER`]: a clock that jumps and jumps back changes nothing.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    read_at: Instant,
    time: Duration,
    /// The system's clock after a jump: since when, and what it says beyond this one.
    jump: Option<(Instant, i64)>,
}

impl WallClock {
    /// A clock that begins with what the system says at `now`, since 1970.
    pub fn new(now: Instant, system: Duration) -> Self {
        Self { read_at: now, time: system, jump: None }
    }

    /// The time at `now`, when the system's clock says `system`.
    pub fn read(&mut self, now: Instant, system: Duration) -> UnixSeconds {
        self.time += now.saturating_duration_since(self.read_at);
        self.read_at = self.read_at.max(now);
        let ahead = system.as_secs() as i64 - self.time.as_secs() as i64;
        if ahead.unsigned_abs() <= STEP.as_secs() {
            self.time = system;
            self.jump = None;
        } else {
            match self.jump {
                Some((since, jump)) if (ahead - jump).unsigned_abs() <= STEP.as_secs() => {
                    if now.saturating_duration_since(since) >= BELIEVED_AFTER {
                        self.time = system;
                        self.jump = None;
                    }
                }
                _ => self.jump = Some((now, ahead)),
            }
        }
        UnixSeconds(self.time.as_secs() as i64)
    }
}

/// What time synchronisation corrects in one go, a leap second, the pause of a virtual machine that moves.
const STEP: Duration = Duration::from_secs(5);

/// Long enough that an operator's slip is mended or noticed, short enough that a server which started with a wrong clock counts in the right
/// period soon.
const BELIEVED_AFTER: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    const MONTH: u64 = 31 * 86_400;

    #[test]
    fn a_clock_that_jumps_and_jumps_back_changes_nothing() {
        let (mut clock, begun) = clock();
        for second in 1..7200_u64 {
            let is_off = second % 3000 > 100;
            let system = second + if is_off { MONTH } else { 0 };
            assert_eq!(clock.read(begun + secs(second), secs(1_000_000 + system)), at(second));
        }
    }

    #[test]
    fn a_clock_that_stays_where_it_was_set_is_believed() {
        let (mut clock, begun) = clock();
        assert_eq!(clock.read(begun + secs(1), secs(1_000_001 + MONTH)), at(1));
        assert_eq!(clock.read(begun + secs(3000), secs(1_003_000 + MONTH)), at(3000));
        assert_eq!(clock.read(begun + secs(3601), secs(1_003_601 + MONTH)), at(3601 + MONTH));
        assert_eq!(clock.read(begun + secs(3602), secs(1_003_602 + MONTH)), at(3602 + MONTH));
    }

    #[test]
    fn small_corrections_are_followed_in_both_directions() {
        let (mut clock, begun) = clock();
        assert_eq!(clock.read(begun + secs(10), secs(1_000_013)), at(13));
        assert_eq!(clock.read(begun + secs(11), secs(1_000_010)), at(10));
    }

    fn clock() -> (WallClock, Instant) {
        let begun = Instant::now();
        (WallClock::new(begun, secs(1_000_000)), begun)
    }

    fn at(seconds: u64) -> UnixSeconds {
        UnixSeconds(1_000_000 + seconds as i64)
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }
}
