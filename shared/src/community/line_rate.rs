//! How fast a line is, from what it carried.
//!
//! Enters: what a line carried in each second, in one direction, and whether a sender that had more to send was held back by the line.
//! Leaves: the line's rate. What carried traffic says of a line depends on that: while the line holds a sender back, its throughput *is* its
//! rate; otherwise it is no slower. Always holds: a second counts as full only if those before and after it were (a transfer seldom
//! begins or ends with a second); the rate follows a line that becomes slower or faster within some ten full seconds. Who measures, and what
//! follows from it, is left to others.

use crate::units::Rate;

/// What a line carried in one direction for about a second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Carried {
    /// Bits per second, headers included.
    pub bits_per_second: f64,
    /// Whether the line held a sender back.
    pub is_full: bool,
}

/// The rate of a line in one direction.
#[derive(Clone, Debug, Default)]
pub struct LineRate {
    /// The last two seconds.
    recent: [Option<Carried>; 2],
    bits_per_second: Option<f64>,
    full_seconds: u32,
}

impl LineRate {
    /// Takes what the line carried in the next second.
    pub fn on_carried(&mut self, next: Carried) {
        let [before, middle] = self.recent;
        self.recent = [middle, Some(next)];
        let Some(middle) = middle else { return };
        if next.is_full && middle.is_full && before.is_some_and(|before| before.is_full) {
            self.full_seconds = self.full_seconds.saturating_add(1);
            let share = (1.0 / f64::from(self.full_seconds)).max(SHARE_OF_NEWEST);
            let known = self.bits_per_second.get_or_insert(middle.bits_per_second);
            *known += (middle.bits_per_second - *known) * share;
        } else if let Some(known) = &mut self.bits_per_second
            && middle.bits_per_second > *known * FASTER
        {
            *known = middle.bits_per_second;
        }
    }

    /// The line's rate; none until it was full for some seconds.
    pub fn rate(&self) -> Option<Rate> {
        self.bits_per_second.map(|bits_per_second| Rate { bits_per_second: bits_per_second as u64 })
    }
}

/// Whether the rates differ by so much that others should know.
pub fn differs(known: Option<Rate>, now: Option<Rate>) -> bool {
    match (known, now) {
        (Some(known), Some(now)) => {
            let (known, now) = (known.bits_per_second as f64, now.bits_per_second as f64);
            (now - known).abs() > known * TOLD_CHANGE
        }
        (known, now) => known != now,
    }
}

/// The share of the newest full second: a line that halves its rate is followed to within 15 % in seven.
const SHARE_OF_NEWEST: f64 = 0.25;

/// What a line carried without being full must exceed the known rate by so much to replace it: clocks and bunched
/// acknowledgements make a second longer or shorter by some per cent.
const FASTER: f64 = 1.1;

/// A change of the rate below that is noise.
const TOLD_CHANGE: f64 = 0.03;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_line_s_rate_is_what_it_carries() {
        let mut line = LineRate::default();
        assert_eq!(line.rate(), None);
        carry(&mut line, 5, 20e6, true);
        assert!(is_about(&line, 20e6));
    }

    #[test]
    fn seconds_in_which_a_transfer_begins_or_ends_don_t_count() {
        let mut line = LineRate::default();
        for _ in 0..20 {
            carry(&mut line, 1, 3e6, true);
            carry(&mut line, 4, 20e6, true);
            carry(&mut line, 1, 9e6, true);
            carry(&mut line, 2, 0.0, false);
        }
        assert!(is_about(&line, 20e6), "{line:?}");
    }

    #[test]
    fn little_traffic_says_nothing_and_much_says_that_the_line_is_no_slower() {
        let mut line = LineRate::default();
        carry(&mut line, 9, 1e6, false);
        assert_eq!(line.rate(), None);
        carry(&mut line, 5, 20e6, true);
        carry(&mut line, 100, 1e6, false);
        assert!(is_about(&line, 20e6));
        carry(&mut line, 3, 25e6, false);
        assert!(is_about(&line, 25e6));
    }

    #[test]
    fn a_line_that_becomes_slower_or_faster_is_followed() {
        let mut line = LineRate::default();
        for rate in [20e6, 10e6, 40e6, 5e6] {
            carry(&mut line, 24, rate, true);
            assert!(is_about(&line, rate), "{line:?}");
        }
    }

    #[test]
    fn only_changes_worth_a_message_are_told() {
        let rate = |bits_per_second| Some(Rate { bits_per_second });
        assert!(differs(None, rate(1)) && differs(rate(100), rate(104)) && differs(rate(100), rate(96)));
        assert!(!differs(rate(100), rate(102)) && !differs(None, None));
    }

    fn carry(line: &mut LineRate, seconds: u32, bits_per_second: f64, is_full: bool) {
        (0..seconds).for_each(|_| line.on_carried(Carried { bits_per_second, is_full }));
    }

    fn is_about(line: &LineRate, wanted: f64) -> bool {
        line.rate().is_some_and(|rate| (rate.bits_per_second as f64 / wanted - 1.0).abs() < 0.05)
    }
}
