//! A line's weights: what its owner has set, or else what follows from the rate that was measured.
//!
//! Enters: the owner's settings, and the line's rate as `reconst` measures it from the traffic that the line carries, each way. Leaves: the
//! weights to announce, now and whenever they change. Measured rates are remembered from one run to the next. Always holds: what the
//! owner has set stays.

use serde::{Deserialize, Serialize};
use shared::{
    community::{
        line_rate::differs,
        weight::{LineWeight, Origin, Weights},
    },
    service::StateFile,
    units::Rate,
};
use tokio::sync::watch;

/// The weights of one line.
#[derive(Debug)]
pub(crate) struct LineWeights {
    settings: Weights,
    weights: watch::Sender<Weights>,
    remembered: Remembered,
    state: Option<StateFile>,
}

/// What is kept of a line, in bits per second.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Remembered {
    rate_up: Option<u64>,
    rate_down: Option<u64>,
}

impl LineWeights {
    /// The weights that follow from `settings`, in which a guess stands for what is to be measured, and from what `state` remembers.
    pub(crate) fn new(settings: Weights, state: Option<StateFile>) -> Self {
        let remembered: Remembered = state.as_ref().and_then(StateFile::load).unwrap_or_default();
        let weights = watch::Sender::new(weights(settings, remembered));
        Self { settings, weights, remembered, state }
    }

    /// The weights, now and from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<Weights> {
        self.weights.subscribe()
    }

    /// Takes the line's rates as they were measured, as far as they were. `reconst` believes the users' word for what arrived; no more
    /// can have than `most_down`.
    pub(crate) fn on_measured(&mut self, up: Option<Rate>, down: Option<Rate>, most_down: Rate) {
        let down = down.map(|rate| Rate { bits_per_second: rate.bits_per_second.min(most_down.bits_per_second) });
        let now = Remembered {
            rate_up: up.map(|rate| rate.bits_per_second).or(self.remembered.rate_up),
            rate_down: down.map(|rate| rate.bits_per_second).or(self.remembered.rate_down),
        };
        let rate = |bits: Option<u64>| bits.map(|bits_per_second| Rate { bits_per_second });
        let is_new = |before, now| differs(rate(before), rate(now));
        if is_new(self.remembered.rate_up, now.rate_up) || is_new(self.remembered.rate_down, now.rate_down) {
            self.remembered = now;
            if let Some(state) = &self.state {
                state.save(&now);
            }
        }
        let weights = weights(self.settings, self.remembered);
        self.weights.send_if_modified(|known| std::mem::replace(known, weights) != weights);
    }
}

fn weights(settings: Weights, remembered: Remembered) -> Weights {
    let weight = |setting: LineWeight, rate: Option<u64>| match rate {
        Some(bits_per_second) if setting.origin != Origin::Set => LineWeight::measured(Rate { bits_per_second }),
        _ => setting,
    };
    Weights { up: weight(settings.up, remembered.rate_up), down: weight(settings.down, remembered.rate_down) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measured_rate_gives_the_weight_and_is_remembered() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = || StateFile::new(Some(folder.path()), "line.toml");
        let mut line = LineWeights::new(Weights::default(), state());
        assert_eq!(line.watch().borrow().up.origin, Origin::Guessed);
        line.on_measured(rate(500_000), rate(36_000_000), MOST);
        let expected = Weights { up: LineWeight::measured(rate(500_000).unwrap()), down: LineWeight::measured(rate(36_000_000).unwrap()) };
        assert_eq!(*line.watch().borrow(), expected);
        assert_eq!(expected.up.weight.value(), 18);
        assert_eq!(*LineWeights::new(Weights::default(), state()).watch().borrow(), expected);
    }

    #[test]
    fn what_the_owner_has_set_stays() {
        let settings = Weights { up: LineWeight::set(2), ..Weights::default() };
        let mut line = LineWeights::new(settings, None);
        line.on_measured(rate(500_000), rate(500_000), MOST);
        let weights = *line.watch().borrow();
        assert_eq!((weights.up, weights.down.origin), (LineWeight::set(2), Origin::Measured));
    }

    #[test]
    fn no_user_makes_a_line_faster_than_what_came_through_it() {
        let mut line = LineWeights::new(Weights::default(), None);
        line.on_measured(None, rate(900_000_000), rate(500_000).unwrap());
        assert_eq!(line.watch().borrow().down.weight.value(), 18);
    }

    const MOST: Rate = Rate { bits_per_second: 1_000_000_000 };

    fn rate(bits_per_second: u64) -> Option<Rate> {
        Some(Rate { bits_per_second })
    }
}
