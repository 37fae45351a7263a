//! A set of `u64` kept as disjoint half-open ranges.

use std::{collections::BTreeMap, ops::Range};

/// Disjoint, non-adjacent, non-empty ranges in ascending order.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct RangeSet {
    end_by_start: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds `range`; an empty one changes nothing.
    pub fn insert(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        if let Some((&before_start, &before_end)) = self.end_by_start.range(..=start).next_back()
            && before_end >= start
        {
            if before_end >= end {
                return;
            }
            start = before_start;
        }
        while let Some((&next_start, &next_end)) = self.end_by_start.range(start..=end).next() {
            end = end.max(next_end);
            self.end_by_start.remove(&next_start);
        }
        self.end_by_start.insert(start, end);
    }

    /// Takes `range` out.
    pub fn remove(&mut self, range: Range<u64>) {
        let Range { start, end } = range;
        if start >= end {
            return;
        }
        if let Some((&before_start, &before_end)) = self.end_by_start.range(..start).next_back()
            && before_end > start
        {
            self.end_by_start.insert(before_start, start);
            if before_end > end {
                self.end_by_start.insert(end, before_end);
                return;
            }
        }
        while let Some((&next_start, &next_end)) = self.end_by_start.range(start..end).next() {
            self.end_by_start.remove(&next_start);
            if next_end > end {
                self.end_by_start.insert(end, next_end);
            }
        }
    }

    /// Whether `value` is in the set.
    pub fn contains(&self, value: u64) -> bool {
        self.end_by_start.range(..=value).next_back().is_some_and(|(_, &end)| end > value)
    }

    /// The lowest range.
    pub fn first(&self) -> Option<Range<u64>> {
        self.end_by_start.first_key_value().map(|(&start, &end)| start..end)
    }

    /// The highest range.
    pub fn last(&self) -> Option<Range<u64>> {
        self.end_by_start.last_key_value().map(|(&start, &end)| start..end)
    }

    /// Takes the lowest range out.
    pub fn pop_first(&mut self) -> Option<Range<u64>> {
        self.end_by_start.pop_first().map(|(start, end)| start..end)
    }

    /// The ranges from the lowest up.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Range<u64>> + '_ {
        self.end_by_start.iter().map(|(&start, &end)| start..end)
    }

    /// The parts of `range` that are not in the set, from the lowest up.
    pub fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        if let Some((_, &end)) = self.end_by_start.range(..=at).next_back() {
            at = at.max(end);
        }
        for (&start, &end) in self.end_by_start.range(range.start..range.end.max(range.start)) {
            if start > at {
                gaps.push(at..start);
            }
            at = at.max(end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// The number of ranges.
    pub fn len(&self) -> usize {
        self.end_by_start.len()
    }

    /// Whether the set holds nothing.
    pub fn is_empty(&self) -> bool {
        self.end_by_start.is_empty()
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.end_by_start.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_range_set_is_the_set_of_its_values(steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..60), probe in (0u64..60, 0u64..30)) {
            let mut ranges = RangeSet::default();
            let mut values = BTreeSet::new();
            for (insert, start, len) in steps {
                if insert {
                    ranges.insert(start..start + len);
                    values.extend(start..start + len);
                } else {
                    ranges.remove(start..start + len);
                    values.retain(|value| !(start..start + len).contains(value));
                }
                let flat: BTreeSet<u64> = ranges.iter().flatten().collect();
                prop_assert_eq!(&flat, &values);
                let pairs: Vec<_> = ranges.iter().collect();
                prop_assert!(pairs.windows(2).all(|pair| pair[0].end < pair[1].start), "adjacent ranges are one range");
            }
            let (start, len) = probe;
            let gaps: Vec<u64> = ranges.gaps(start..start + len).into_iter().flatten().collect();
            let expected: Vec<u64> = (start..start + len).filter(|value| !values.contains(value)).collect();
            prop_assert_eq!(gaps, expected);
            prop_assert_eq!(ranges.contains(start), values.contains(&start));
        }
    }
}
