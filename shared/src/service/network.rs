//! Notices that this PC's network is another: an address or interface came or went, or the PC has slept.
//!
//! What waits for a timer then need not wait any longer. Asked often rather than told by the system, which each system does in its own way.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

/// Watches this PC's network.
#[derive(Debug)]
pub struct NetworkWatch {
    addresses: BTreeSet<(String, IpAddr)>,
    clocks: (Instant, SystemTime),
}

/// What was noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetworkChange {
    /// Addresses came or went.
    Addresses,
    /// The PC, or this program, stood still for a while.
    Slept,
}

impl NetworkWatch {
    /// Watches from now on.
    pub fn new() -> Self {
        Self { addresses: addresses(), clocks: (Instant::now(), SystemTime::now()) }
    }

    /// Waits for the next change.
    pub async fn changed(&mut self) -> NetworkChange {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = (Instant::now(), SystemTime::now());
            let before = std::mem::replace(&mut self.clocks, now);
            let addresses = addresses();
            let are_new = addresses != self.addresses;
            self.addresses = addresses;
            if has_slept(before, now) {
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

/// Whether more time passed than was waited for. The monotonic clock stands still while some systems sleep, the other may be set: one of them
/// shows it, and a clock that was set costs no more than an attempt that was not needed.
fn has_slept(before: (Instant, SystemTime), now: (Instant, SystemTime)) -> bool {
    let monotonic = now.0.saturating_duration_since(before.0);
    let real = now.1.duration_since(before.1).unwrap_or_default();
    monotonic.max(real) > INTERVAL + STOOD_STILL
}

fn addresses() -> BTreeSet<(String, IpAddr)> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces.into_iter().map(|interface| (interface.name.clone(), interface.ip())).collect()
}

/// How often it is looked: a list of the interfaces takes some microseconds.
const INTERVAL: Duration = Duration::from_secs(1);

/// A busy PC leaves no program waiting for so long, and connections outlast a shorter sleep.
const STOOD_STILL: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_in_either_clock_is_sleep_and_a_late_timer_is_not() {
        let before = (Instant::now(), SystemTime::now());
        let after = |monotonic: u64, real: u64| (before.0 + Duration::from_secs(monotonic), before.1 + Duration::from_secs(real));
        assert!(has_slept(before, after(1, 600)) && has_slept(before, after(600, 1)));
        assert!(!has_slept(before, after(1, 1)) && !has_slept(before, after(25, 25)));
        assert!(!has_slept(before, (before.0 + INTERVAL, before.1 - Duration::from_secs(3600))), "a clock set back");
    }
}
