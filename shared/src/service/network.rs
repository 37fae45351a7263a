//! Notices that this PC's network is another: an address or interface came or went, or the PC has slept.
//!
//! What waits for a timer then need not wait any longer. Asked often rather than told by the system, which each system does in its own way.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use self::clocks::Clocks;

/// Watches this PC's network.
#[derive(Debug)]
pub struct NetworkWatch {
    addresses: BTreeSet<(String, IpAddr)>,
    clocks: Clocks,
}

/// What was noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetworkChange {
    /// Addresses came or went.
    Addresses,
    /// The PC has slept for a while.
    Slept,
}

impl NetworkWatch {
    /// Watches from now on.
    pub fn new() -> Self {
        Self { addresses: addresses(), clocks: Clocks::read() }
    }

    /// Waits for the next change.
    pub async fn changed(&mut self) -> NetworkChange {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = Clocks::read();
            let before = std::mem::replace(&mut self.clocks, now);
            let addresses = addresses();
            let are_new = addresses != self.addresses;
            self.addresses = addresses;
            if now.have_slept_since(before) {
                return NetworkChange::Slept;
            }
            if are_new {
                return NetworkChange::Addresses;
            }
        }
    }
}

impl Default for NetworkWatch {
    fn default() -> Self {
        Self::new()
    }
}

fn addresses() -> BTreeSet<(String, IpAddr)> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces.into_iter().map(|interface| (interface.name.clone(), interface.ip())).collect()
}

/// How often it is looked: a list of the interfaces takes some microseconds.
const INTERVAL: Duration = Duration::from_secs(1);

/// What shows that the PC has slept: of Linux's two clocks that nobody sets, one goes on meanwhile and the other does not.
#[cfg(target_os = "linux")]
mod clocks {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    /// How long the PC has slept since it was started, as far as the clocks tell, which can't be read in the same instant.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct Clocks {
        pub(super) at_least: Duration,
        pub(super) at_most: Duration,
    }

    impl Clocks {
        pub(super) fn read() -> Self {
            let (before, with_sleep, after) = (time(ClockId::Monotonic), time(ClockId::Boottime), time(ClockId::Monotonic));
            Self { at_least: with_sleep.saturating_sub(after), at_most: with_sleep.saturating_sub(before) }
        }

        /// However long this program was left waiting.
        pub(super) fn have_slept_since(self, before: Self) -> bool {
            self.at_least.saturating_sub(before.at_most) > NOTICED
        }
    }

    fn time(clock: ClockId) -> Duration {
        let time = clock_gettime(clock);
        Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
    }

    /// Paths and logins outlast a shorter sleep.
    pub(super) const NOTICED: Duration = Duration::from_secs(3);
}

/// What shows that the PC has slept: more time passed than was waited for. The monotonic clock stands still while some systems sleep, the other
/// may be set: one of them shows it, and a clock that was set costs no more than an attempt that was not needed.
#[cfg(not(target_os = "linux"))]
mod clocks {
    use std::time::{Duration, Instant, SystemTime};

    #[derive(Clone, Copy, Debug)]
    pub(super) struct Clocks {
        monotonic: Instant,
        real: SystemTime,
    }

    impl Clocks {
        pub(super) fn read() -> Self {
            Self { monotonic: Instant::now(), real: SystemTime::now() }
        }

        pub(super) fn have_slept_since(self, before: Self) -> bool {
            let monotonic = self.monotonic.saturating_duration_since(before.monotonic);
            let real = self.real.duration_since(before.real).unwrap_or_default();
            monotonic.max(real) > super::INTERVAL + STOOD_STILL
        }
    }

    /// A busy PC leaves no program waiting for so long, and connections outlast a shorter sleep.
    const STOOD_STILL: Duration = Duration::from_secs(30);
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_told_from_waiting_however_long_that_was() {
        let slept = |seconds| Duration::from_secs(seconds);
        let before = Clocks { at_least: slept(100), at_most: slept(100) };
        // A program that was stopped for a minute between one clock and the next.
        assert!(!Clocks { at_least: slept(40), at_most: slept(160) }.have_slept_since(before));
        assert!(Clocks { at_least: slept(104), at_most: slept(104) }.have_slept_since(before));
        assert!(!Clocks { at_least: slept(101), at_most: slept(101) }.have_slept_since(before), "shorter than a path is given");
        assert!(!Clocks::read().have_slept_since(Clocks::read()));
    }
}
