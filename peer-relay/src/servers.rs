//! Which of `reconst`'s servers to log in at.
//!
//! Enters: the profile's addresses, those that `reconst` tells, and what became of each login. Leaves: the order in which to try them, and a better
//! one than the current. Always holds: a server that failed comes after those that did not, and one that failed lately is not gone back to
//! though it would be better.

use std::time::{Duration, Instant};

use shared::target::Target;

#[derive(Debug)]
pub(crate) struct Servers {
    profile: Vec<Target>,
    told: Vec<Target>,
    current: Target,
    failures: Vec<Failed>,
}

/// A server that has failed and not answered since.
#[derive(Debug)]
struct Failed {
    target: Target,
    at: Instant,
    /// How long it is not gone back to though it would be better.
    shunned_for: Duration,
}

impl Servers {
    /// The servers of a profile, which lists one at least.
    pub(crate) fn new(profile: Vec<Target>, first: Target) -> Self {
        Self { profile, told: Vec::new(), current: first, failures: Vec::new() }
    }

    /// The one to log in at.
    pub(crate) fn current(&self) -> &Target {
        &self.current
    }

    /// All of them in the order in which to try them: the current one, then those that never failed, then those that failed longest ago.
    pub(crate) fn in_order(&self) -> Vec<Target> {
        let mut others: Vec<&Target> = self.all().filter(|target| **target != self.current).collect();
        others.sort_by_key(|target| self.failed_at(target));
        std::iter::once(&self.current).chain(others).cloned().collect()
    }

    /// Whether there are others.
    pub(crate) fn has_others(&self) -> bool {
        self.all().any(|target| *target != self.current)
    }

    /// Takes what `reconst` says, the best first.
    pub(crate) fn on_told(&mut self, logins: Vec<Target>) {
        self.told = logins;
        let known: Vec<Target> = self.all().cloned().collect();
        self.failures.retain(|failed| known.contains(&failed.target));
    }

    /// Goes to a better server than the current, if there is one that did not fail lately; whether it did.
    pub(crate) fn improve(&mut self, now: Instant) -> bool {
        let Some(best) = self.told.first().filter(|best| **best != self.current) else { return false };
        if self.failed(best).is_some_and(|failed| now.saturating_duration_since(failed.at) < failed.shunned_for) {
            return false;
        }
        self.current = best.clone();
        true
    }

    /// Goes to the one that has answered, if one has; those before it in the order have not. If none has, [`Servers::on_failed`] has to follow.
    pub(crate) fn on_answered(&mut self, answered: Option<&Target>, now: Instant) {
        let silent = self.in_order().into_iter().take_while(|target| Some(target) != answered);
        for silent in silent.skip(usize::from(answered.is_none())) {
            self.note_failure(silent, now);
        }
        if let Some(answered) = answered {
            self.failures.retain(|failed| failed.target != *answered);
            self.current = answered.clone();
        }
    }

    /// Goes to another server since the current one has failed, or its login is over; gives how long ago that one failed, if it did.
    pub(crate) fn on_failed(&mut self, now: Instant) -> Option<Duration> {
        self.note_failure(self.current.clone(), now);
        // The first of those that failed longest ago, or never.
        if let Some(next) = self.all().min_by_key(|target| self.failed_at(target)).cloned() {
            self.current = next;
        }
        self.failed_at(&self.current).map(|at| now.saturating_duration_since(at))
    }

    fn note_failure(&mut self, failed: Target, now: Instant) {
        match self.failures.iter_mut().find(|known| known.target == failed) {
            Some(known) => (known.at, known.shunned_for) = (now, (known.shunned_for * 2).min(SHUNNED_FOR_MAX)),
            None => self.failures.push(Failed { target: failed, at: now, shunned_for: SHUNNED_FOR }),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Target> {
        self.told.iter().chain(self.profile.iter().filter(|target| !self.told.contains(target)))
    }

    fn failed_at(&self, target: &Target) -> Option<Instant> {
        self.failed(target).map(|failed| failed.at)
    }

    fn failed(&self, target: &Target) -> Option<&Failed> {
        self.failures.iter().find(|failed| failed.target == *target)
    }
}

/// How long a login stands where it is though a better server, which could not be reached, is said to be there; twice as long each time that it
/// fails again, since each try costs a login.
const SHUNNED_FOR: Duration = Duration::from_secs(60);
const SHUNNED_FOR_MAX: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_is_tried_before_one_is_tried_again() {
        let (mut servers, start) = (servers(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!((servers.on_failed(at(0)), servers.current().clone()), (None, target("b")));
        assert_eq!((servers.on_failed(at(1)), servers.current().clone()), (Some(Duration::from_secs(1)), target("a")));
        servers.on_told(vec![target("c"), target("a"), target("b")]);
        assert_eq!((servers.on_failed(at(2)), servers.current().clone()), (None, target("c")));
    }

    #[test]
    fn a_better_server_is_gone_to_unless_it_failed_lately() {
        let (mut servers, start) = (servers(), Instant::now());
        assert!(!servers.improve(start), "nothing was told");
        servers.on_told(vec![target("c"), target("a")]);
        assert!(servers.improve(start) && *servers.current() == target("c"));
        assert!(!servers.improve(start), "it is there");
        servers.on_failed(start);
        assert_eq!(*servers.current(), target("a"));
        assert!(!servers.improve(start + Duration::from_secs(1)));
        assert!(servers.improve(start + SHUNNED_FOR));
    }

    #[test]
    fn those_that_did_not_answer_come_last() {
        let (mut servers, start) = (servers(), Instant::now());
        servers.on_told(vec![target("a"), target("b"), target("c"), target("d")]);
        servers.on_answered(Some(&target("c")), start);
        assert_eq!(servers.in_order(), [target("c"), target("d"), target("a"), target("b")]);
        assert!(!servers.improve(start), "it has just failed");
        assert!(servers.improve(start + SHUNNED_FOR) && *servers.current() == target("a"));
        let start = start + SHUNNED_FOR;
        servers.on_answered(Some(&target("c")), start);
        assert!(!servers.improve(start + SHUNNED_FOR), "it has failed again");
        assert!(servers.improve(start + SHUNNED_FOR * 2));
        servers.on_answered(Some(&target("a")), start);
        servers.on_failed(start);
        servers.on_answered(Some(&target("b")), start);
        assert!(servers.improve(start + SHUNNED_FOR), "it had answered");
        servers.on_answered(None, start);
        assert_eq!(servers.on_failed(start), Some(Duration::ZERO));
        assert_eq!(servers.in_order(), [target("a"), target("b"), target("c"), target("d")]);
    }

    #[test]
    fn one_server_is_tried_again_and_again() {
        let mut servers = Servers::new(vec![target("a")], target("a"));
        assert!(!servers.has_others());
        assert_eq!(servers.on_failed(Instant::now()), Some(Duration::ZERO));
        assert_eq!(*servers.current(), target("a"));
    }

    fn servers() -> Servers {
        Servers::new(vec![target("a"), target("b")], target("a"))
    }

    fn target(host: &str) -> Target {
        format!("{host}.isp.example:10000").parse().expect("a target")
    }
}
