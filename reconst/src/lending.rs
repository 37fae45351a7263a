//! What lines lend: of the payload that a session's flows have moved, the part that each relay's lines have carried.
//!
//! Enters: each session's payload, and what each of its paths has carried, headers and repetitions included. Leaves: payload, split as the paths
//! have carried. Always holds: no more is lent than was moved, and by a line only what has come from the address of its login. What moves while
//! nothing is carried, such as the last of an upload that waits for its content server, is split with what is carried next.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use shared::{community::quota::Used, ids::PathId, transfer::path::PathStatus};

use crate::{accept::SessionOverLines, accounts::lent::Lent, roster::LineKey};

/// What was seen of each session, by its incarnation.
#[derive(Default, Debug)]
pub(crate) struct Lending {
    seen_by_session: HashMap<u64, Seen>,
}

#[derive(Default, Debug)]
struct Seen {
    /// What of its payload was split.
    split: Used,
    carried_by_path: BTreeMap<PathId, Used>,
}

impl Lending {
    /// What was lent since the last look; `is_of_line` says whether what comes from that address comes over the line.
    pub(crate) fn look(&mut self, sessions: &[SessionOverLines], is_of_line: impl Fn(&LineKey, IpAddr) -> bool) -> Lent {
        let mut before = std::mem::take(&mut self.seen_by_session);
        let mut lent = Lent::new();
        for session in sessions {
            let mut seen = before.remove(&session.incarnation).unwrap_or_default();
            let moved = session.payload.less(seen.split);
            let carried = seen.carried_by(session);
            let all = carried.iter().fold(Used::default(), |sum, bytes| Used { up: sum.up + bytes.up, down: sum.down + bytes.down });
            for (path, carried) in session.paths.iter().zip(carried) {
                let part = Used { up: part(moved.up, carried.up, all.up), down: part(moved.down, carried.down, all.down) };
                let Some((key, remote)) = &path.line else { continue };
                if part != Used::default() && is_of_line(key, *remote) {
                    let sum = lent.entry((key.0, key.1.clone(), session.account)).or_default();
                    sum.up += part.up;
                    sum.down += part.down;
                }
            }
            let split = |payload, split, all| if all > 0 { payload } else { split };
            seen.split =
                Used { up: split(session.payload.up, seen.split.up, all.up), down: split(session.payload.down, seen.split.down, all.down) };
            self.seen_by_session.insert(session.incarnation, seen);
        }
        lent
    }
}

impl Seen {
    /// What each path has carried since it was seen last.
    fn carried_by(&mut self, session: &SessionOverLines) -> Vec<Used> {
        let before = std::mem::take(&mut self.carried_by_path);
        let carried = |status: &PathStatus| {
            let now = Used { up: status.counters.received_bytes, down: status.counters.acked_bytes };
            self.carried_by_path.insert(status.path, now);
            now.less(before.get(&status.path).copied().unwrap_or_default())
        };
        session.paths.iter().map(|path| &path.status).map(carried).collect()
    }
}

/// The part of `bytes` that is to the whole as `carried` to `all`, rounded down.
fn part(bytes: u64, carried: u64, all: u64) -> u64 {
    let part = u128::from(bytes) * u128::from(carried) / u128::from(all.max(1));
    u64::try_from(part).unwrap_or(bytes).min(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shared::{
        community::{hello::LineNumber, weight::LineWeight},
        ids::LanId,
        transfer::path::{PathCounters, PathState},
    };

    use super::*;
    use crate::{accept::PathOverLine, accounts::MemberId};

    #[test]
    fn payload_is_split_as_lines_have_carried_and_no_more_is_lent_than_moved() {
        let mut lending = Lending::default();
        let lent = look(&mut lending, &[session(1, (1000, 100), &[("pc", (3000, 10)), ("box", (1000, 0))])]);
        assert_eq!(lent, [("box", 7, 250, 0), ("pc", 7, 750, 100)]);
        let lent = look(&mut lending, &[session(1, (1000, 103), &[("pc", (3000, 20)), ("box", (2000, 20))])]);
        assert_eq!(lent, [("box", 7, 0, 2), ("pc", 7, 0, 1)], "what has moved since, rounded down");
        assert_eq!(look(&mut lending, &[session(1, (1000, 103), &[("pc", (9000, 900))])]), [], "headers and repetitions are none");
    }

    #[test]
    fn what_moves_while_nothing_is_carried_is_split_with_what_is_carried_next() {
        let mut lending = Lending::default();
        assert_eq!(look(&mut lending, &[session(1, (500, 0), &[])]), []);
        assert_eq!(look(&mut lending, &[session(1, (600, 0), &[("pc", (1, 0))])]), [("pc", 7, 600, 0)]);
        assert_eq!(look(&mut lending, &[]), [], "the session is over");
    }

    #[test]
    fn a_line_lends_nothing_of_what_comes_from_elsewhere_or_over_no_line() {
        let mut lending = Lending::default();
        let mut session = session(1, (1000, 0), &[("pc", (500, 0)), ("liar", (300, 0)), ("box", (200, 0))]);
        session.paths[2].line = None;
        assert_eq!(look(&mut lending, &[session]), [("pc", 7, 500, 0)]);
    }

    #[test]
    fn sessions_of_one_user_lend_together_and_those_of_two_apart() {
        let mut lending = Lending::default();
        let mut other = session(3, (30, 0), &[("pc", (1, 0))]);
        other.account = MemberId(8);
        let sessions = [session(1, (10, 0), &[("pc", (1, 0))]), session(2, (20, 0), &[("pc", (1, 0))]), other];
        assert_eq!(look(&mut lending, &sessions), [("pc", 7, 30, 0), ("pc", 8, 30, 0)]);
    }

    fn look(lending: &mut Lending, sessions: &[SessionOverLines]) -> Vec<(&'static str, i64, u64, u64)> {
        let lent = lending.look(sessions, |key, _| key.1.as_str() != "liar");
        let known = |relay: &str| ["pc", "box", "liar"].into_iter().find(|name| *name == relay).expect("one of the test's");
        lent.into_iter().map(|((_, relay, user), bytes)| (known(relay.as_str()), user.0, bytes.up, bytes.down)).collect()
    }

    /// A session of the user 7, what it has moved up and down, and what the paths over each relay have carried.
    fn session(incarnation: u64, (up, down): (u64, u64), paths: &[(&str, (u64, u64))]) -> SessionOverLines {
        let path = |(number, (relay, (up, down))): (u32, &(&str, (u64, u64)))| {
            let counters = PathCounters { received_bytes: *up, acked_bytes: *down, ..PathCounters::default() };
            let status = PathStatus {
                path: PathId(number),
                state: PathState::Active,
                is_leaving: false,
                weight: LineWeight::default(),
                rtt: Duration::ZERO,
                min_rtt: Duration::ZERO,
                queue: Duration::ZERO,
                capacity: None,
                fair_rate: None,
                loss: 0.0,
                in_flight_bytes: 0,
                rounds: Default::default(),
                counters,
            };
            let line = ((LanId(15), relay.parse().expect("a name"), LineNumber(1)), IpAddr::from([127, 0, 0, 1]));
            PathOverLine { line: Some(line), status }
        };
        let paths = (0..).zip(paths).map(path).collect();
        SessionOverLines { incarnation, account: MemberId(7), payload: Used { up, down }, paths }
    }
}
