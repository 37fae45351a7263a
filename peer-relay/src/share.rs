//! How much of a line its owner shares.
//!
//! A packet is let through or not, at the owner's rate each way; what is not is lost, and the ends' congestion control keeps to the
//! rate. All clients of a line share its rates: whose packet goes first when there is too much is left to whoever arrives first.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use shared::units::Rate;

use crate::batch::Packets;

/// The most that the owner of a line shares of it; `None` is all there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShareConfig {
    /// From the LAN to `reconst`.
    pub up: Option<Rate>,
    /// From `reconst` to the LAN.
    pub down: Option<Rate>,
}

/// A direction of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// From the LAN to `reconst`.
    Up,
    /// From `reconst` to the LAN.
    Down,
}

/// The owner's limits of one line at work.
#[derive(Debug)]
pub(crate) struct Share {
    up: Option<Policer>,
    down: Option<Policer>,
}

impl Share {
    pub(crate) fn new(config: ShareConfig) -> Self {
        Self { up: config.up.map(Policer::new), down: config.down.map(Policer::new) }
    }

    /// The packets from the front of `packets` that may go `now`, and how many may not.
    pub(crate) fn admit<'a>(&self, direction: Direction, now: Instant, packets: Packets<'a>) -> (Packets<'a>, u64) {
        let policer = match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        };
        let Some(policer) = policer else { return (packets, 0) };
        let admitted = policer.admit(now, packets);
        let admitted_bytes = (admitted as usize * packets.stride).min(packets.contents.len());
        (Packets { contents: &packets.contents[..admitted_bytes], ..packets }, packets.count() - admitted)
    }
}

/// A token bucket (as a virtual queue: the generic cell rate algorithm, ITU-T I.371), counting packets as they are on the line.
#[derive(Debug)]
struct Policer {
    rate: Rate,
    burst: Duration,
    /// When the line would have carried everything let through so far.
    drained: Mutex<Option<Instant>>,
}

impl Policer {
    fn new(rate: Rate) -> Self {
        Self { rate, burst: BURST.max(time_of(rate, BURST_MIN_BYTES)), drained: Mutex::new(None) }
    }

    fn admit(&self, now: Instant, packets: Packets<'_>) -> u64 {
        let mut guard = self.drained.lock().expect("nothing panics while it is held");
        let mut drained = guard.map_or(now, |drained| drained.max(now));
        let mut admitted = 0;
        for packet in packets.contents.chunks(packets.stride) {
            let after = drained + time_of(self.rate, packet.len() + HEADER_BYTES);
            if after.duration_since(now) > self.burst {
                break;
            }
            drained = after;
            admitted += 1;
        }
        *guard = Some(drained);
        admitted
    }
}

fn time_of(rate: Rate, bytes: usize) -> Duration {
    Duration::from_nanos((bytes as u64).saturating_mul(8_000_000_000) / rate.bits_per_second.max(1))
}

/// What may go at once after a pause: the standing queue that congestion control keeps on a line, and as much again.
const BURST: Duration = Duration::from_millis(50);

/// On slow lines, ten full packets.
const BURST_MIN_BYTES: usize = 15_000;

/// IPv4's and UDP's headers.
const HEADER_BYTES: usize = 28;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_shared_whole_loses_nothing() {
        let packets = Packets { contents: &[0; 60_000], stride: 1_200, ecn: None };
        let (admitted, lost) = Share::new(ShareConfig::default()).admit(Direction::Up, Instant::now(), packets);
        assert_eq!((admitted.count(), lost), (50, 0));
    }

    #[test]
    fn the_directions_have_their_own_rates() {
        let share = Share::new(ShareConfig { up: Some("100k".parse().unwrap()), down: None });
        let packets = Packets { contents: &[0; 60_000], stride: 1_200, ecn: None };
        let now = Instant::now();
        assert!(share.admit(Direction::Up, now, packets).1 > 0);
        assert_eq!(share.admit(Direction::Down, now, packets).1, 0);
    }

    proptest! {
        #[test]
        fn over_any_time_no_more_passes_than_the_rate_and_one_burst(
            kilobits in 50u64..100_000, steps in prop::collection::vec((0u64..20_000, 1usize..60_000, 100usize..1_500), 1..200),
        ) {
            let rate = Rate { bits_per_second: kilobits * 1000 };
            let share = Share::new(ShareConfig { up: Some(rate), down: None });
            let start = Instant::now();
            let (mut now, mut passed_bits) = (start, 0);
            for (pause_us, bytes, stride) in steps {
                now += Duration::from_micros(pause_us);
                let contents = vec![0; bytes];
                let packets = Packets { contents: &contents, stride: stride.min(bytes), ecn: None };
                let (admitted, lost) = share.admit(Direction::Up, now, packets);
                let count = if admitted.contents.is_empty() { 0 } else { admitted.count() };
                prop_assert_eq!(count + lost, packets.count());
                passed_bits += (admitted.contents.len() + HEADER_BYTES * count as usize) as u128 * 8;
            }
            let burst = BURST.max(time_of(rate, BURST_MIN_BYTES));
            let limit = u128::from(rate.bits_per_second) * (now - start + burst).as_nanos() / 1_000_000_000;
            // Each packet's time is rounded down to a nanosecond.
            prop_assert!(passed_bits <= limit + 10_000, "{passed_bits} of {limit}");
        }
    }
}
