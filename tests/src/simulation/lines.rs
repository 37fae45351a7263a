//! Sets of lines, from a command line or drawn from a seed.

use std::{str::FromStr, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use shared::units::Rate;
use thiserror::Error;

use crate::{
    line::{Conditions, Loss},
    scene::{Scene, SceneLine},
};

/// Lines as a person writes them: `DOWN/UP/RTT` and what is special about them, as in `25M/10M/20,jitter=5,loss=1,x4`.
///
/// Times are in milliseconds, loss in per cent. After a comma: `jitter=`, `reorder`, `loss=`, `burst=` (packets in a row), `queue=`,
/// `mtu=`, `xN` (so many of them).
#[derive(Clone, PartialEq, Debug)]
pub struct LineSpec {
    /// What each is like.
    pub line: SceneLine,
    /// How many there are.
    pub count: usize,
}

/// A text that describes no line.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{0}` is not a line: write DOWN/UP/RTT-MS with options behind commas, as in 25M/10M/20,jitter=5,loss=1,queue=500,mtu=1420,x4")]
pub struct LineSpecError(String);

impl FromStr for LineSpec {
    type Err = LineSpecError;

    fn from_str(text: &str) -> Result<Self, LineSpecError> {
        parse(text).ok_or_else(|| LineSpecError(text.into()))
    }
}

/// A set of two to six lines whose rates differ by up to [`RATE_SPREAD`] and whose round trips by up to [`RTT_SPREAD`]; some have
/// jitter, some lose 1 % of their packets, some queue for two seconds.
pub fn drawn(seed: u64) -> Scene {
    let mut random = StdRng::seed_from_u64(seed);
    let count = random.random_range(2..=6);
    let lines = (0..count).map(|_| drawn_line(&mut random)).collect();
    Scene { name: format!("seed {seed}"), description: format!("{count} lines drawn from seed {seed}."), lines }
}

fn drawn_line(random: &mut StdRng) -> SceneLine {
    let down = log_uniform(random, LEAST_RATE, LEAST_RATE * RATE_SPREAD);
    let up = down / random.random_range(1.0..8.0);
    let rtt_ms = log_uniform(random, LEAST_RTT_MS, LEAST_RTT_MS * RTT_SPREAD);
    let jitter_ms = if random.random_bool(0.4) { random.random_range(0.0..0.2) * rtt_ms } else { 0.0 };
    let loss = if random.random_bool(0.3) { Loss { fraction: 0.01, burst_packets: 1.0 } } else { Loss::NONE };
    let queue_ms = if random.random_bool(0.3) { 2000.0 } else { random.random_range(60.0..300.0) };
    let may_reorder = random.random_bool(0.2);
    let way = |rate: f64| Conditions {
        jitter: milliseconds(jitter_ms),
        may_reorder,
        loss,
        ..conditions(Rate { bits_per_second: rate as u64 }, rtt_ms, queue_ms)
    };
    SceneLine { up: way(up), down: way(down) }
}

/// A number between `least` and `most`, each doubling as likely as any other.
pub(super) fn log_uniform(random: &mut StdRng, least: f64, most: f64) -> f64 {
    random.random_range(least.ln()..most.ln()).exp()
}

fn parse(text: &str) -> Option<LineSpec> {
    let mut parts = text.split(',');
    let mut main = parts.next()?.split('/');
    let down: Rate = main.next()?.parse().ok()?;
    let up: Rate = main.next()?.parse().ok()?;
    let rtt_ms = number(main.next()?.trim_end_matches("ms"))?;
    if main.next().is_some() {
        return None;
    }
    let mut queue_ms = Conditions::QUEUE.as_secs_f64() * 1e3;
    let mut common = conditions(down, rtt_ms, queue_ms);
    let mut count = 1;
    for part in parts {
        match part.split_once('=') {
            None if part == "reorder" => common.may_reorder = true,
            None => count = part.strip_prefix('x')?.parse().ok().filter(|count| (1..=LINES_MAX).contains(count))?,
            Some(("jitter", value)) => common.jitter = milliseconds(number(value)?),
            Some(("loss", value)) => common.loss.fraction = number(value).filter(|percent| *percent <= 90.0)? / 100.0,
            Some(("burst", value)) => common.loss.burst_packets = number(value)?.max(1.0),
            Some(("queue", value)) => queue_ms = number(value)?,
            Some(("mtu", value)) => common.mtu_bytes = value.parse().ok().filter(|bytes| (576..=9000).contains(bytes))?,
            Some(_) => return None,
        }
    }
    let way = |rate| Conditions { rate, queue_bytes: Conditions::queue_bytes(rate, milliseconds(queue_ms)), ..common };
    Some(LineSpec { line: SceneLine { up: way(up), down: way(down) }, count })
}

fn conditions(rate: Rate, rtt_ms: f64, queue_ms: f64) -> Conditions {
    let steady = Conditions::steady(rate, milliseconds(rtt_ms / 2.0));
    Conditions { queue_bytes: Conditions::queue_bytes(rate, milliseconds(queue_ms)), ..steady }
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number| (0.0..=60_000.0).contains(number))
}

fn milliseconds(milliseconds: f64) -> Duration {
    Duration::from_secs_f64(milliseconds / 1e3)
}

const LEAST_RATE: f64 = 2e6;
const RATE_SPREAD: f64 = 20.0;
const LEAST_RTT_MS: f64 = 5.0;
const RTT_SPREAD: f64 = 40.0;

/// Far more than anybody has.
const LINES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_was_written() {
        let LineSpec { line, count } = "25M/10M/20,jitter=5,loss=1,queue=500,mtu=1420,reorder,x4".parse().unwrap();
        assert_eq!(count, 4);
        assert_eq!((line.down.rate.bits_per_second, line.up.rate.bits_per_second), (25_000_000, 10_000_000));
        assert_eq!((line.down.delay, line.up.jitter), (milliseconds(10.0), milliseconds(5.0)));
        assert_eq!((line.down.queue_bytes, line.down.mtu_bytes), (25_000_000 / 16, 1420));
        assert!(line.up.may_reorder && line.up.loss.fraction == 0.01);
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for text in ["", "25M", "25M/10M", "25M/10M/20/3", "25M/10M/x", "25M/10M/20,loss", "25M/10M/20,loss=91", "25M/10M/20,x0"] {
            assert!(text.parse::<LineSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_seed_draws_the_same_lines_again_and_another_others() {
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7).lines, drawn(8).lines);
    }
}
