//! Which of a flow's latest parcels have arrived (as in IPsec's anti-replay window, RFC 4303 §3.4.3).

/// The numbers seen among the latest [`WINDOW`].
#[derive(Debug, Default)]
pub(super) struct Window {
    /// One more than the highest number seen.
    end: u64,
    /// A bit for each of the latest numbers, by the number modulo [`WINDOW`]; none until the first.
    seen: Vec<u64>,
}

/// Numbers remembered; what is older counts as seen. 100 Mbit/s of 1,200-byte parcels over paths whose delays differ by 0.7 s.
pub(super) const WINDOW: u64 = 8192;

impl Window {
    pub(super) fn is_new(&self, number: u64) -> bool {
        if number >= self.end {
            return true;
        }
        let (word, bit) = place(number);
        self.end - number <= WINDOW && self.seen[word] & bit == 0
    }

    pub(super) fn mark(&mut self, number: u64) {
        if self.seen.is_empty() {
            self.seen = vec![0; (WINDOW / 64) as usize];
        }
        if number >= self.end {
            if number - self.end >= WINDOW {
                self.seen.fill(0);
            } else {
                for skipped in self.end..number {
                    let (word, bit) = place(skipped);
                    self.seen[word] &= !bit;
                }
            }
            self.end = number + 1;
        } else if self.end - number > WINDOW {
            return;
        }
        let (word, bit) = place(number);
        self.seen[word] |= bit;
    }
}

fn place(number: u64) -> (usize, u64) {
    let index = number % WINDOW;
    ((index / 64) as usize, 1 << (index % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_remembers_what_a_set_does_within_its_reach(numbers in prop::collection::vec(prop_oneof![0..40_000u64, 0..300u64, Just(1 << 61)], 1..300)) {
            let mut window = Window::default();
            let mut seen = BTreeSet::new();
            for number in numbers {
                let end = seen.last().map_or(0, |last| last + 1);
                let is_old = number + WINDOW < end;
                prop_assert_eq!(window.is_new(number), !is_old && !seen.contains(&number), "{}", number);
                window.mark(number);
                seen.insert(number);
            }
        }
    }
}
