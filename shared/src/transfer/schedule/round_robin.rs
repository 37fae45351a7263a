//! Interleaved weighted round-robin: in the n-th cycle of a round, each path whose weight is at least n takes a turn.

use super::Candidate;
use crate::ids::PathId;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct RoundRobin {
    /// The cycle of the round, from 0.
    cycle: u32,
    /// The path that took the last turn.
    last: Option<PathId>,
}

impl RoundRobin {
    /// The path whose turn it is, if it may send now: the turn is not given away, or the shares would not be the weights.
    ///
    /// Candidates are in ascending order of path; a path out of service is not among them and so loses no turn of the others.
    pub(super) fn choose(&mut self, candidates: &[Candidate], weight: impl Fn(&Candidate) -> u32) -> Option<PathId> {
        let highest = candidates.iter().map(&weight).max()?.max(1);
        for _ in 0..=highest {
            let in_turn =
                |candidate: &&Candidate| weight(candidate).max(1) > self.cycle && self.last.is_none_or(|last| candidate.path > last);
            if let Some(candidate) = candidates.iter().find(in_turn) {
                if !candidate.may_send {
                    return None;
                }
                self.last = Some(candidate.path);
                return Some(candidate.path);
            }
            self.cycle = (self.cycle + 1) % highest;
            self.last = None;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn weights_2_1_2_give_the_order_of_the_patent() {
        let candidates = [candidate(1, 2, true), candidate(2, 1, true), candidate(3, 2, true)];
        let mut turns = RoundRobin::default();
        let order: Vec<u32> = (0..10).filter_map(|_| turns.choose(&candidates, |c| c.weight)).map(|path| path.0).collect();
        assert_eq!(order, [1, 2, 3, 1, 3, 1, 2, 3, 1, 3]);
    }

    #[test]
    fn a_busy_path_keeps_its_turn_and_an_absent_one_has_none() {
        let mut turns = RoundRobin::default();
        let both = |may_send| [candidate(1, 1, true), candidate(2, 1, may_send)];
        assert_eq!(turns.choose(&both(true), |c| c.weight), Some(PathId(1)));
        assert_eq!(turns.choose(&both(false), |c| c.weight), None);
        assert_eq!(turns.choose(&both(false), |c| c.weight), None);
        assert_eq!(turns.choose(&both(true), |c| c.weight), Some(PathId(2)));
        assert_eq!(turns.choose(&both(true)[1..], |c| c.weight), Some(PathId(2)));
        assert_eq!(turns.choose(&[], |c| c.weight), None);
    }

    fn candidate(path: u32, weight: u32, may_send: bool) -> Candidate {
        Candidate { path: PathId(path), weight, may_send, arrival: Duration::ZERO, rate: 1.0 }
    }
}
