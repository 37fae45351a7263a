//! Which path takes the next chunk.
//!
//! Bytes wait in their flows; a path that may send asks. The policies see the paths as [`Candidate`]s and answer which of those that
//! may send now takes the next datagram, or that none should: a faster one will carry it sooner.

mod adaptive;
mod round_robin;

use std::{fmt, str::FromStr, time::Duration};

use thiserror::Error;

use self::round_robin::RoundRobin;
use crate::ids::PathId;

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
    /// By turns, as many a round as the path's weight (the patent's A B C A C for weights 2, 1, 2).
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
    pub weight: u32,
    /// Whether its window and pace let it send now.
    pub may_send: bool,
    /// How long from now until a chunk sent now arrives, behind what is in flight.
    pub arrival: Duration,
    /// Bytes per second.
    pub rate: f64,
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
}

impl Scheduler {
    /// A scheduler that follows `policy`.
    pub fn new(policy: Policy) -> Self {
        Self { policy, turns: RoundRobin::default() }
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The path among `candidates` that takes the next of the `pending` bytes now, if any should.
    pub fn choose(&mut self, candidates: &[Candidate], pending: Pending) -> Option<PathId> {
        match self.policy {
            Policy::Adaptive | Policy::Redundant => adaptive::choose(candidates, pending),
            Policy::WeightedRoundRobin => self.turns.choose(candidates, |candidate| candidate.weight),
            Policy::RoundRobin => self.turns.choose(candidates, |_| 1),
        }
    }

    /// The path that takes a copy of what `original` took, if copies are the policy.
    pub fn choose_copy(&self, candidates: &[Candidate], original: PathId) -> Option<PathId> {
        if self.policy != Policy::Redundant {
            return None;
        }
        let others = candidates.iter().filter(|candidate| candidate.path != original && candidate.may_send);
        others.min_by_key(|candidate| candidate.arrival).map(|candidate| candidate.path)
    }
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
