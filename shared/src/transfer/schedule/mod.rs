//! Which path takes the next chunk.
//!
//! Bytes wait in their flows; a path that may send asks. The policies see the paths as [`Candidate`]s and answer which of those that
//! may send now takes the next datagram, or that none should: a faster one will carry it sooner.

mod adaptive;
mod round_robin;

use std::{
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use thiserror::Error;

use self::round_robin::RoundRobin;
use super::{congestion::duration, path::OVERHEAD_BYTES};
use crate::{
    community::weight::{LineWeight, Origin},
    ids::PathId,
};

/// How flows are served when several wait: all of a class before the next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// The session's own messages.
    Control,
    /// Flows that have sent little since they last paused.
    Interactive,
    /// The rest.
    Bulk,
}

/// How chunks are spread over paths.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Policy {
    /// To the path on which the chunk arrives first.
    #[default]
    Adaptive,
    /// By turns, as many a round as the path's weight (the patent's A B C A C for weights 2, 1, 2). As `Adaptive` while a weight is a
    /// guess, and now and then while one is measured, since only a line that is given more than its weight shows that it is faster.
    WeightedRoundRobin,
    /// By turns.
    RoundRobin,
    /// As `Adaptive`, and a copy on the next best path.
    Redundant,
}

/// A text that names no policy.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("`{0}` is not a scheduler: use adaptive, wrr, rr or redundant")]
pub struct PolicyError(String);

/// A path in service, as the scheduler sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The path.
    pub path: PathId,
    /// Turns a round.
    pub weight: LineWeight,
    /// Whether its window and pace let it send now.
    pub may_send: bool,
    /// How long from now until the first byte of a datagram sent now arrives, behind what is in flight.
    pub first_byte: Duration,
    /// Bytes per second.
    pub rate: f64,
    /// The most that a datagram holds, with all headers.
    pub datagram_bytes: u64,
}

impl Candidate {
    /// How long from now until a datagram that is sent now with as much of what is `pending` as it holds has arrived.
    pub fn arrival(&self, pending: Pending) -> Duration {
        let bytes = match pending {
            Pending::Bytes(bytes) => (bytes + OVERHEAD_BYTES).min(self.datagram_bytes),
            Pending::Endless => self.datagram_bytes,
        };
        self.first_byte + duration(bytes as f64 / self.rate)
    }
}

/// What waits to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pending {
    /// So many bytes, and as far as is known no more.
    Bytes(u64),
    /// More than any path will carry soon.
    Endless,
}

/// Picks the path of each datagram by a policy.
#[derive(Debug)]
pub struct Scheduler {
    policy: Policy,
    turns: RoundRobin,
    /// When the first turn was taken.
    began: Option<Instant>,
}

impl Scheduler {
    /// A scheduler that follows `policy`.
    pub fn new(policy: Policy) -> Self {
        Self { policy, turns: RoundRobin::default(), began: None }
    }

    /// Follows another policy from now on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The path among `candidates` that takes the next of the `pending` bytes at `now`, if any should.
    pub fn choose(&mut self, now: Instant, candidates: &[Candidate], pending: Pending) -> Option<PathId> {
        let began = *self.began.get_or_insert(now);
        let is_exploring = self.policy == Policy::WeightedRoundRobin && is_exploring(began, now, candidates);
        self.choose_by(if is_exploring { Policy::Adaptive } else { self.policy }, candidates, pending)
    }

    /// As [`Scheduler::choose`], by another policy and strictly by it; the turns are the same.
    pub fn choose_by(&mut self, policy: Policy, candidates: &[Candidate], pending: Pending) -> Option<PathId> {
        match policy {
            Policy::Adaptive | Policy::Redundant => adaptive::choose(candidates, pending),
            Policy::WeightedRoundRobin => self.turns.choose(candidates, |candidate| candidate.weight.weight.value()),
            Policy::RoundRobin => self.turns.choose(candidates, |_| 1),
        }
    }

    /// The path that takes a copy of what `original` took, if copies are the policy.
    pub fn choose_copy(&self, candidates: &[Candidate], original: PathId, pending: Pending) -> Option<PathId> {
        if self.policy == Policy::Redundant { second_best(candidates, original, pending) } else { None }
    }
}

/// Whether turns would follow weights that nobody knows, or hide that they have changed.
fn is_exploring(began: Instant, now: Instant, candidates: &[Candidate]) -> bool {
    let has = |origin| candidates.iter().any(|candidate| candidate.weight.origin == origin);
    let since = now.saturating_duration_since(began).as_millis() % EXPLORED_EVERY.as_millis();
    has(Origin::Guessed) || has(Origin::Measured) && since < EXPLORED_FOR.as_millis()
}

/// How often and for how long `wrr` leaves measured weights alone, so that lines which have become faster are measured anew: a line's
/// rate is known after some full seconds.
const EXPLORED_EVERY: Duration = Duration::from_secs(60);
const EXPLORED_FOR: Duration = Duration::from_secs(5);

/// The path other than `original` on which a copy sent now arrives first.
pub(super) fn second_best(candidates: &[Candidate], original: PathId, pending: Pending) -> Option<PathId> {
    let others = candidates.iter().filter(|candidate| candidate.path != original && candidate.may_send);
    others.min_by_key(|candidate| candidate.arrival(pending)).map(|candidate| candidate.path)
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text {
            "adaptive" => Ok(Self::Adaptive),
            "wrr" => Ok(Self::WeightedRoundRobin),
            "rr" => Ok(Self::RoundRobin),
            "redundant" => Ok(Self::Redundant),
            _ => Err(PolicyError(text.into())),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adaptive => "adaptive",
            Self::WeightedRoundRobin => "wrr",
            Self::RoundRobin => "rr",
            Self::Redundant => "redundant",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Rate;

    #[test]
    fn weights_that_are_set_give_turns_and_guesses_none() {
        let second = LineWeight::set(1);
        for (first, turns) in [(LineWeight::set(1), 5), (LineWeight::default(), 0)] {
            let mut scheduler = Scheduler::new(Policy::WeightedRoundRobin);
            let now = Instant::now();
            assert_eq!(second_of_ten(&mut scheduler, now, first, second), turns);
        }
    }

    #[test]
    fn measured_weights_give_turns_but_are_left_alone_now_and_then() {
        let mut scheduler = Scheduler::new(Policy::WeightedRoundRobin);
        let measured = LineWeight::measured(Rate { bits_per_second: 1_000_000 });
        let start = Instant::now();
        for (seconds, turns) in [(0, 0), (4, 0), (6, 5), (59, 5), (60, 0), (66, 5)] {
            assert_eq!(second_of_ten(&mut scheduler, start + Duration::from_secs(seconds), measured, measured), turns, "{seconds} s");
        }
    }

    /// How many of ten datagrams the second path gets, which is slower.
    fn second_of_ten(scheduler: &mut Scheduler, now: Instant, first: LineWeight, second: LineWeight) -> usize {
        let candidate = |path, weight, arrival_ms| Candidate {
            path: PathId(path),
            weight,
            may_send: true,
            first_byte: Duration::from_millis(arrival_ms),
            rate: 1e6,
            datagram_bytes: 1500,
        };
        let candidates = [candidate(1, first, 10), candidate(2, second, 20)];
        (0..10).filter(|_| scheduler.choose(now, &candidates, Pending::Endless) == Some(PathId(2))).count()
    }
}
