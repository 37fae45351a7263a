//! Weighted round-robin, interleaved: each path's turns are spread over the round as evenly as its weight allows.
//!
//! A path that is served moves ahead by the reciprocal of its weight (stride scheduling, Waldspurger and Weihl 1995); the one that is
//! furthest behind has the turn. For the patent's weights 2, 1, 2 that is its A B C A C. A path whose turn it is and that can't send
//! lets others go first, but no further than [`AHEAD_TURNS`]: then all wait for it, or the shares would not be the weights.

use std::collections::BTreeMap;

use super::Candidate;
use crate::ids::PathId;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    /// How far each path has come, in [`TURN`]s over its weight. The furthest behind among those in service is at 0.
    progress_by_path: BTreeMap<PathId, u64>,
}

impl RoundRobin {
    /// The path that takes the next turn, if one may.
    ///
    /// Candidates are in ascending order of path; a path out of service is not among them and so loses no turn of the others.
    pub(super) fn choose(&mut self, candidates: &[Candidate], weight: impl Fn(&Candidate) -> u16) -> Option<PathId> {
        let least = candidates.iter().map(|candidate| self.progress(candidate.path)).min()?;
        // One that is new, or was away, begins with those furthest behind; it does not catch up.
        self.progress_by_path.retain(|path, _| candidates.binary_search_by_key(path, |candidate| candidate.path).is_ok());
        for candidate in candidates {
            let progress = self.progress_by_path.entry(candidate.path).or_insert(least);
            *progress = progress.saturating_sub(least);
        }
        let total: u64 = candidates.iter().map(|candidate| u64::from(weight(candidate).max(1))).sum();
        let furthest = AHEAD_TURNS * TURN / total;
        let sending = candidates.iter().filter(|candidate| candidate.may_send);
        let chosen = sending.min_by_key(|candidate| (self.progress(candidate.path), candidate.path))?;
        let progress = self.progress_by_path.get_mut(&chosen.path)?;
        if *progress > furthest {
            return None;
        }
        *progress += TURN / u64::from(weight(chosen).max(1));
        Some(chosen.path)
    }

    fn progress(&self, path: PathId) -> u64 {
        self.progress_by_path.get(&path).copied().unwrap_or(u64::MAX)
    }
}

/// What a path of weight 1 moves ahead by with each turn: divided by the greatest weight it is still exact to 1 in 65,536.
const TURN: u64 = 1 << 32;

/// The turns of all paths together that one may be behind. Over a few hundred turns the shares are the weights to within some per cent; much
/// fewer, and every path idles whenever another is short of window for an instant.
const AHEAD_TURNS: u64 = 64;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::community::weight::LineWeight;

    #[test]
    fn weights_2_1_2_give_the_order_of_the_patent() {
        let candidates = [candidate(1, 2, true), candidate(2, 1, true), candidate(3, 2, true)];
        let mut turns = RoundRobin::default();
        let order: Vec<u32> = (0..10).filter_map(|_| turns.choose(&candidates, weight)).map(|path| path.0).collect();
        assert_eq!(order, [1, 2, 3, 1, 3, 1, 2, 3, 1, 3]);
    }

    #[test]
    fn a_busy_path_is_waited_for_in_the_end_and_an_absent_one_is_not() {
        let mut turns = RoundRobin::default();
        let both = |may_send| [candidate(1, 1, true), candidate(2, 1, may_send)];
        let alone = (0..1000).take_while(|_| turns.choose(&both(false), weight) == Some(PathId(1))).count() as u64;
        assert_eq!(alone, AHEAD_TURNS / 2 + 1);
        assert!((0..alone).all(|_| turns.choose(&both(true), weight) == Some(PathId(2))), "it gets the turns that it missed");
        assert_eq!(turns.choose(&both(true)[..1], weight), Some(PathId(1)));
        assert_eq!(turns.choose(&both(true)[1..], weight), Some(PathId(2)));
        assert_eq!(turns.choose(&[], weight), None);
    }

    #[test]
    fn a_path_that_comes_back_gets_its_share_and_no_more() {
        let mut turns = RoundRobin::default();
        let both = [candidate(1, 1, true), candidate(2, 1, true)];
        (0..500).for_each(|_| assert!(turns.choose(&both[..1], weight).is_some()));
        let second = (0..100).filter(|_| turns.choose(&both, weight) == Some(PathId(2))).count();
        assert!((49..=51).contains(&second), "{second}");
    }

    proptest! {
        #[test]
        fn shares_are_the_weights_whoever_is_busy_at_times(
            weights in prop::collection::vec(1u16..200, 1..6), busy in prop::collection::vec(0u8..255, 50..500),
        ) {
            let mut turns = RoundRobin::default();
            let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
            let mut taken = vec![0u64; weights.len()];
            for mask in busy.iter().cycle().take(20_000) {
                let candidates: Vec<_> =
                    weights.iter().enumerate().map(|(path, &weight)| candidate(path as u32, weight, mask >> path & 1 == 0)).collect();
                if let Some(path) = turns.choose(&candidates, weight) {
                    taken[path.0 as usize] += 1;
                }
            }
            let all: u64 = taken.iter().sum();
            for (taken, weight) in taken.iter().zip(&weights) {
                let share = all as f64 * f64::from(*weight) / total as f64;
                prop_assert!((*taken as f64 - share).abs() <= AHEAD_TURNS as f64 + 2.0, "{taken} for {share}");
            }
        }
    }

    fn weight(candidate: &Candidate) -> u16 {
        candidate.weight.weight.value()
    }

    fn candidate(path: u32, weight: u16, may_send: bool) -> Candidate {
        Candidate {
            path: PathId(path),
            weight: LineWeight::set(weight),
            may_send,
            first_byte: Duration::ZERO,
            rate: 1.0,
            datagram_bytes: 1500,
        }
    }
}
