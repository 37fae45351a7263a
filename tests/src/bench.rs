//! The benchmark: what one user gets out of a scene's lines, each figure the median of some runs.
//!
//! It measures and prints; it never judges.

pub mod hosts;

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use shared::units::Rate;

use crate::{
    line::Conditions,
    load::{Bulk, Client, Latencies, Span},
    neighbourhood::{Neighbourhood, Plan},
    scene::{Scene, SceneLine, Way},
};

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Operation {
    /// Goodput of one download, as a fraction of the lines' limit
    Down,
    /// Goodput of one upload, as a fraction of the lines' limit
    Up,
    /// Time of a 16 KB request on a connection of its own while nothing else goes on
    Idle,
    /// The same while a download goes on
    Load,
    /// The longest time without a byte of a download after its first line has died in silence
    Kill,
    /// The same of many downloads, the lines dying in turn: median and worst
    Kills,
    /// The longest time without a byte of a download after its best line's rate has halved
    Halve,
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Of each transfer, and how much of it is start-up.
    pub span: Span,
    /// Requests of a run.
    pub requests: usize,
    /// Lines that fall silent in [`Operation::Kills`].
    pub kills: usize,
    /// Runs, each in a neighbourhood of its own with the next seed.
    pub runs: usize,
}

/// One figure of one scene.
#[derive(Clone, PartialEq, Serialize, Debug)]
pub struct Figure {
    /// The scene's name.
    pub scene: String,
    /// What used the lines.
    pub system: &'static str,
    /// What was measured.
    pub figure: &'static str,
    /// The unit of the values.
    pub unit: &'static str,
    /// The median of the runs.
    pub median: f64,
    /// Each run.
    pub runs: Vec<f64>,
}

impl Figure {
    /// Prints the figure as a line for people, or as JSON.
    ///
    /// # Errors
    /// If it has a value that JSON has no word for.
    pub fn print(&self, as_json: bool) -> anyhow::Result<()> {
        if as_json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        let Self { scene, system, figure, unit, median, runs } = self;
        let digits = if matches!(*unit, "ms" | "Mbit/s" | "MB") { 1 } else { 3 };
        let each: Vec<String> = runs.iter().map(|run| format!("{run:.digits$}")).collect();
        let each = if runs.len() > 1 { format!("   ({})", each.join(", ")) } else { String::new() };
        println!("{scene:<14} {system:<15} {figure:<26} {median:>9.digits$} {unit}{each}");
        Ok(())
    }
}

/// A value of one run.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Reading {
    /// What was measured.
    pub figure: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// How much.
    pub value: f64,
}

/// What an operation is run on: clients of some system, over some lines.
#[derive(Clone)]
pub struct Ground {
    /// What downloads.
    pub down: Client,
    /// What uploads.
    pub up: Client,
    /// What makes small requests.
    pub quick: Client,
    /// The lines.
    pub scene: Scene,
    /// Does something to the line of an index.
    pub afflict: Arc<dyn Fn(usize, Trouble) + Send + Sync>,
}

/// What may happen to a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// It falls silent.
    Silent,
    /// Its rate is half of what it was, both ways.
    Halved,
    /// It is as in the scene again.
    Over,
}

impl Trouble {
    /// What a line of a scene is like with this trouble, up and down.
    pub fn on(self, line: &SceneLine) -> (Conditions, Conditions) {
        let with = |conditions: Conditions| match self {
            Self::Silent => Conditions { is_out: true, ..conditions },
            Self::Halved => Conditions { rate: Rate { bits_per_second: conditions.rate.bits_per_second / 2 }, ..conditions },
            Self::Over => conditions,
        };
        (with(line.up), with(line.down))
    }
}

/// Measures an operation on the plan's scene, in this process.
///
/// # Errors
/// If a neighbourhood does not come up, or a transfer breaks or arrives changed.
pub async fn measure(plan: &Plan, operation: Operation, effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let mut runs = Vec::new();
    for run in 0..effort.runs {
        let plan = Plan { seed: plan.seed.wrapping_add(run as u64), ..plan.clone() };
        let neighbourhood = Neighbourhood::start(plan).await?;
        runs.push(operation.run(&Ground::of(&neighbourhood), effort).await?);
        neighbourhood.stop().await?;
    }
    Ok(figures(&plan.scene.name, "Tributary", &runs))
}

/// The figures of a scene out of the readings of some runs, each of the same operations.
pub fn figures(scene: &str, system: &'static str, runs: &[Vec<Reading>]) -> Vec<Figure> {
    let first = runs.first().map_or(&[][..], Vec::as_slice);
    let figures = first.iter().map(|&Reading { figure, unit, .. }| {
        let of_run = |readings: &Vec<Reading>| readings.iter().find(|reading| reading.figure == figure).map(|reading| reading.value);
        let values: Vec<f64> = runs.iter().filter_map(of_run).collect();
        Figure { scene: scene.into(), system, figure, unit, median: median(&values), runs: values }
    });
    figures.collect()
}

impl Ground {
    fn of(neighbourhood: &Neighbourhood) -> Self {
        let client = neighbourhood.client();
        let scene = neighbourhood.scene().clone();
        let lines = neighbourhood.lines().to_vec();
        let afflict = {
            let scene = scene.clone();
            move |index: usize, trouble: Trouble| lines[index].change(|up, down| (*up, *down) = trouble.on(&scene.lines[index]))
        };
        Self { down: client.clone(), up: client.clone(), quick: client, scene, afflict: Arc::new(afflict) }
    }

    fn set(&self, line: usize, trouble: Trouble) {
        (self.afflict)(line, trouble);
    }
}

impl Operation {
    /// Runs the operation once.
    ///
    /// # Errors
    /// If a transfer breaks or arrives changed.
    pub async fn run(self, ground: &Ground, effort: Effort) -> anyhow::Result<Vec<Reading>> {
        match self {
            Self::Down => Ok(goodput("down", "down rate", &ground.down.download_for(effort.span).await?, ground.scene.limit(Way::Down))),
            Self::Up => Ok(goodput("up", "up rate", &ground.up.upload_for(effort.span).await?, ground.scene.limit(Way::Up))),
            Self::Idle => {
                let times = ground.quick.fresh_requests(effort.requests, REQUEST_BYTES, IDLE_PAUSE).await?;
                Ok(latency(["idle p50", "idle p95"], &times))
            }
            Self::Load => {
                let times = under_load(ground, effort).await?;
                Ok(latency(["load p50", "load p95"], &times))
            }
            Self::Kill => {
                let bulk = troubled(ground, 0, Trouble::Silent, effort.span).await?;
                Ok(vec![Reading { figure: "stall", unit: "ms", value: milliseconds(bulk.longest_gap) }])
            }
            Self::Kills => kills(ground, effort.kills).await,
            Self::Halve => {
                let best = ground.scene.best_line(Way::Down);
                let bulk = troubled(ground, best, Trouble::Halved, effort.span).await?;
                ground.set(best, Trouble::Over);
                Ok(vec![Reading { figure: "stall at half rate", unit: "ms", value: milliseconds(bulk.longest_gap) }])
            }
        }
    }
}

/// A download in whose counted part, a third in, a line gets into trouble.
async fn troubled(ground: &Ground, line: usize, trouble: Trouble, span: Span) -> anyhow::Result<Bulk> {
    let begins = async {
        tokio::time::sleep(span.warm_up + span.total.saturating_sub(span.warm_up) / 3).await;
        ground.set(line, trouble);
    };
    let (bulk, ()) = tokio::join!(ground.down.download_for(span), begins);
    Ok(bulk?)
}

/// One line after another falls silent during a download, and comes back after it.
async fn kills(ground: &Ground, count: usize) -> anyhow::Result<Vec<Reading>> {
    let mut stalls = Vec::new();
    let mut parts_of_bound = Vec::new();
    for kill in 0..count {
        let index = kill % ground.scene.lines.len();
        let stall = milliseconds(troubled(ground, index, Trouble::Silent, KILL_SPAN).await?.longest_gap);
        ground.set(index, Trouble::Over);
        let line = &ground.scene.lines[index];
        let rtt = line.up.delay + line.down.delay;
        stalls.push(stall);
        parts_of_bound.push(stall / milliseconds(2 * rtt + KILL_GRACE));
        tokio::time::sleep(KILL_PAUSE).await;
    }
    let worst = |values: &[f64]| values.iter().copied().fold(f64::NAN, f64::max);
    Ok(vec![
        Reading { figure: "kill stall", unit: "ms", value: median(&stalls) },
        Reading { figure: "kill stall worst", unit: "ms", value: worst(&stalls) },
        Reading { figure: "kill stall by bound", unit: "of 2 RTT + 100 ms", value: median(&parts_of_bound) },
        Reading { figure: "kill stall by bound worst", unit: "of 2 RTT + 100 ms", value: worst(&parts_of_bound) },
    ])
}

/// Requests beside a download that began a warm-up earlier, over the same lines.
async fn under_load(ground: &Ground, effort: Effort) -> anyhow::Result<Latencies> {
    let endless = Span { total: ENDLESS, warm_up: Duration::ZERO };
    let requests = async {
        tokio::time::sleep(effort.span.warm_up).await;
        ground.down.fresh_requests(effort.requests, REQUEST_BYTES, LOAD_PAUSE).await
    };
    tokio::select! {
        bulk = ground.down.download_for(endless) => Err(bulk.err().map_or_else(|| anyhow::anyhow!("the download ended"), Into::into)),
        times = requests => Ok(times?),
    }
}

fn goodput(figure: &'static str, rate: &'static str, bulk: &Bulk, limit: f64) -> Vec<Reading> {
    vec![
        Reading { figure, unit: "of the limit", value: bulk.goodput / limit },
        Reading { figure: rate, unit: "Mbit/s", value: bulk.goodput / 1e6 },
    ]
}

fn latency([p50, p95]: [&'static str; 2], times: &Latencies) -> Vec<Reading> {
    [(p50, 0.5), (p95, 0.95)].map(|(figure, part)| Reading { figure, unit: "ms", value: milliseconds(times.quantile(part)) }).into()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}

/// A small page's worth: more than TCP's first window.
const REQUEST_BYTES: u64 = 16_000;
/// Between requests, so that each meets idle lines.
const IDLE_PAUSE: Duration = Duration::from_millis(50);
/// Between requests beside a download.
const LOAD_PAUSE: Duration = Duration::from_millis(100);
/// Long enough to notice a stall of seconds; the first seconds fill the lines.
const KILL_SPAN: Span = Span { total: Duration::from_millis(6_000), warm_up: Duration::from_millis(2_500) };
/// Beyond two round trips, what a stall may take.
const KILL_GRACE: Duration = Duration::from_millis(100);
/// For a line that is back to be in use again.
const KILL_PAUSE: Duration = Duration::from_millis(2_500);
/// Longer than any requests take.
const ENDLESS: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_the_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
