//! Earliest arrival with waiting.
//!
//! The path with the earliest arrival takes the chunk. If that one can't send now, the next may, unless the faster ones will have
//! delivered all that is pending before it could deliver this one chunk: then waiting is sooner (as in ECF, CoNEXT 2017, and BLEST,
//! IFIP Networking 2016, with the sum over all faster paths in place of one).

use super::{Candidate, Pending};
use crate::ids::PathId;

pub(super) fn choose(candidates: &[Candidate], pending: Pending) -> Option<PathId> {
    let best = candidates.iter().filter(|candidate| candidate.may_send).min_by_key(|candidate| candidate.arrival(pending))?;
    let Pending::Bytes(bytes) = pending else { return Some(best.path) };
    let arrival = best.arrival(pending);
    let carried = |faster: &Candidate| faster.rate * arrival.saturating_sub(faster.arrival(pending)).as_secs_f64();
    (candidates.iter().map(carried).sum::<f64>() < bytes as f64).then_some(best.path)
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
        let near = candidate(1, true, 30, 2e6);
        let far = candidate(2, true, 31, 2e6);
        assert_eq!(choose(&[far, near], Pending::Bytes(1)), Some(PathId(1)));
    }

    #[test]
    fn a_question_takes_the_short_way_and_a_full_datagram_the_wide_one() {
        let short = candidate(1, true, 6, 1e5);
        let wide = candidate(2, true, 16, 3e6);
        assert_eq!(choose(&[short, wide], Pending::Bytes(100)), Some(PathId(1)));
        assert_eq!(choose(&[short, wide], Pending::Endless), Some(PathId(2)));
    }

    fn candidate(path: u32, may_send: bool, first_byte_ms: u64, rate: f64) -> Candidate {
        let first_byte = Duration::from_millis(first_byte_ms);
        Candidate { path: PathId(path), weight: Default::default(), may_send, first_byte, rate, datagram_bytes: 1500 }
    }
}
