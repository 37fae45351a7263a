//! Earliest arrival with waiting.
//!
//! The path with the earliest arrival takes the chunk. If that one can't send now, the next may, unless the faster ones will have
//! delivered all that is pending before it could deliver this one chunk: then waiting is sooner (as in ECF, CoNEXT 2017, and BLEST,
//! IFIP Networking 2016, with the sum over all faster paths in place of one).

use super::{Candidate, Pending};
use crate::ids::PathId;

pub(super) fn choose(candidates: &[Candidate], pending: Pending) -> Option<PathId> {
    let best = candidates.iter().filter(|candidate| candidate.may_send).min_by_key(|candidate| candidate.arrival)?;
    let Pending::Bytes(pending) = pending else { return Some(best.path) };
    let faster = candidates.iter().filter(|candidate| candidate.arrival < best.arrival);
    let sooner: f64 = faster.map(|candidate| candidate.rate * (best.arrival - candidate.arrival).as_secs_f64()).sum();
    (sooner < pending as f64).then_some(best.path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_few_bytes_wait_for_the_fast_path_and_many_do_not() {
        let fast = candidate(1, false, 12, 4e6);
        let slow = candidate(2, true, 80, 4e6);
        assert_eq!(choose(&[fast, slow], Pending::Bytes(16_000)), None);
        assert_eq!(choose(&[fast, slow], Pending::Bytes(400_000)), Some(PathId(2)));
        assert_eq!(choose(&[fast, slow], Pending::Endless), Some(PathId(2)));
    }

    #[test]
    fn the_earliest_arrival_wins() {
        let near = candidate(1, true, 30, 1e5);
        let far = candidate(2, true, 31, 1e7);
        assert_eq!(choose(&[far, near], Pending::Bytes(1)), Some(PathId(1)));
    }

    fn candidate(path: u32, may_send: bool, arrival_ms: u64, rate: f64) -> Candidate {
        Candidate { path: PathId(path), weight: Default::default(), may_send, arrival: Duration::from_millis(arrival_ms), rate }
    }
}
