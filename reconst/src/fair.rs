//! What is fair of a line that several users fill: to each the same, and of that to each of a user's paths.
//!
//! Enters: how fast each path that its line holds back has sent in the last second. Leaves: the rate that is fair for it. A path goes by that in what
//! queue it aims at, no more: so what one of them can't use, since something else holds it back, the others have.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use shared::ids::PathId;

use crate::accounts::MemberId;

/// A path: its session's incarnation, and its number in that.
pub(crate) type PathKey = (u64, PathId);

/// A path that its line holds back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filling<L> {
    pub(crate) line: L,
    pub(crate) path: PathKey,
    /// Whose flows it carries.
    pub(crate) account: MemberId,
    /// What it sends, headers included.
    pub(crate) bytes_per_second: f64,
}

/// What is fair for paths whose lines others fill as well, in bytes per second.
#[derive(Default)]
pub(crate) struct FairRates {
    pub(crate) up: HashMap<PathKey, u64>,
    pub(crate) down: HashMap<PathKey, u64>,
}

/// The same for one of a session's paths, as far as there is something to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FairRate {
    pub(crate) path: PathId,
    pub(crate) up: Option<u64>,
    pub(crate) down: Option<u64>,
}

impl FairRates {
    /// What to tell each session after it was told what was fair `before`: of a path that was concerned then and is no more, that nothing is known.
    pub(crate) fn news_after(&self, before: &Self) -> HashMap<u64, Vec<FairRate>> {
        let paths: BTreeSet<&PathKey> = [self, before].iter().flat_map(|rates| rates.up.keys().chain(rates.down.keys())).collect();
        let mut rates_by_session: HashMap<u64, Vec<FairRate>> = HashMap::new();
        for path in paths {
            let rate = FairRate { path: path.1, up: self.up.get(path).copied(), down: self.down.get(path).copied() };
            rates_by_session.entry(path.0).or_default().push(rate);
        }
        rates_by_session
    }
}

/// What is fair for each path that is not its line's only one, in bytes per second.
pub(crate) fn fair_rates<L: Ord>(paths: impl IntoIterator<Item = Filling<L>>) -> HashMap<PathKey, u64> {
    let mut paths_by_line: BTreeMap<L, Vec<(PathKey, MemberId, f64)>> = BTreeMap::new();
    for Filling { line, path, account, bytes_per_second } in paths {
        paths_by_line.entry(line).or_default().push((path, account, bytes_per_second));
    }
    let mut fair_by_path = HashMap::new();
    for paths in paths_by_line.into_values().filter(|paths| paths.len() > 1) {
        let all: f64 = paths.iter().map(|(.., bytes_per_second)| bytes_per_second).sum();
        let mut paths_by_account: BTreeMap<MemberId, f64> = BTreeMap::new();
        for (_, account, _) in &paths {
            *paths_by_account.entry(*account).or_default() += 1.0;
        }
        let users = paths_by_account.len() as f64;
        fair_by_path.extend(paths.iter().map(|(path, account, _)| (*path, (all / users / paths_by_account[account]) as u64)));
    }
    fair_by_path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_is_due_the_same_and_each_of_a_user_s_paths() {
        let fair = fair_rates([path("a", 1, 7, 600.0), path("a", 2, 8, 100.0), path("a", 3, 8, 200.0)]);
        assert_eq!(fair, [((1, PathId(0)), 450), ((2, PathId(0)), 225), ((3, PathId(0)), 225)].into());
    }

    #[test]
    fn nobody_is_told_of_a_line_that_is_filled_by_one_path() {
        assert_eq!(fair_rates([path("a", 1, 7, 600.0), path("b", 2, 8, 100.0)]), [].into());
    }

    #[test]
    fn a_path_that_has_its_line_for_itself_again_is_told_so() {
        let key = |session| (session, PathId(3));
        let before = FairRates { up: [(key(1), 50)].into(), down: [(key(2), 70)].into() };
        let now = FairRates { up: [(key(2), 60)].into(), down: [].into() };
        let rate = |up, down| vec![FairRate { path: PathId(3), up, down }];
        assert_eq!(now.news_after(&before), [(1, rate(None, None)), (2, rate(Some(60), None))].into());
        assert_eq!(FairRates::default().news_after(&FairRates::default()), [].into());
    }

    fn path(line: &str, session: u64, account: i64, bytes_per_second: f64) -> Filling<&str> {
        Filling { line, path: (session, PathId(0)), account: MemberId(account), bytes_per_second }
    }
}
