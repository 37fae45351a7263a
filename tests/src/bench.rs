//! The benchmark: what one user gets out of a scene's lines, each figure the median of some runs.
//!
//! It measures and prints; it never judges.

use std::time::Duration;

use serde::Serialize;

use crate::{
    load::{Bulk, Client, Latencies, Span},
    neighbourhood::{Neighbourhood, Plan},
    scene::Way,
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
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Of each transfer, and how much of it is start-up.
    pub span: Span,
    /// Requests of a run.
    pub requests: usize,
    /// Runs, each in a neighbourhood of its own with the next seed.
    pub runs: usize,
}

/// One figure of one scene.
#[derive(Clone, PartialEq, Serialize, Debug)]
pub struct Figure {
    /// The scene's name.
    pub scene: String,
    /// What was measured.
    pub figure: &'static str,
    /// The unit of the values.
    pub unit: &'static str,
    /// The median of the runs.
    pub median: f64,
    /// Each run.
    pub runs: Vec<f64>,
}

/// A value of one run.
struct Reading {
    figure: &'static str,
    unit: &'static str,
    value: f64,
}

/// Measures an operation on the plan's scene.
///
/// # Errors
/// If a neighbourhood does not come up, or a transfer breaks or arrives changed.
pub async fn measure(plan: &Plan, operation: Operation, effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let mut runs = Vec::new();
    for run in 0..effort.runs {
        let plan = Plan { seed: plan.seed.wrapping_add(run as u64), ..plan.clone() };
        let neighbourhood = Neighbourhood::start(plan).await?;
        runs.push(operation.run(&neighbourhood, effort).await?);
        neighbourhood.stop().await?;
    }
    let first = runs.first().map_or(&[][..], Vec::as_slice);
    let figures = first.iter().enumerate().map(|(index, reading)| {
        let values: Vec<f64> = runs.iter().map(|readings| readings[index].value).collect();
        Figure { scene: plan.scene.name.clone(), figure: reading.figure, unit: reading.unit, median: median(&values), runs: values }
    });
    Ok(figures.collect())
}

impl Operation {
    async fn run(self, neighbourhood: &Neighbourhood, effort: Effort) -> anyhow::Result<Vec<Reading>> {
        let client = neighbourhood.client();
        match self {
            Self::Down => {
                Ok(goodput("down", "down rate", &client.download_for(effort.span).await?, neighbourhood.scene().limit(Way::Down)))
            }
            Self::Up => Ok(goodput("up", "up rate", &client.upload_for(effort.span).await?, neighbourhood.scene().limit(Way::Up))),
            Self::Idle => {
                let times = client.fresh_requests(effort.requests, REQUEST_BYTES, IDLE_PAUSE).await?;
                Ok(latency(["idle p50", "idle p95"], &times))
            }
            Self::Load => {
                let times = under_load(&client, effort).await?;
                Ok(latency(["load p50", "load p95"], &times))
            }
            Self::Kill => {
                let dies = async {
                    tokio::time::sleep(effort.span.warm_up + effort.span.total.saturating_sub(effort.span.warm_up) / 3).await;
                    neighbourhood.line(0).set_out(true);
                };
                let (bulk, ()) = tokio::join!(client.download_for(effort.span), dies);
                Ok(vec![Reading { figure: "stall", unit: "ms", value: milliseconds(bulk?.longest_gap) }])
            }
        }
    }
}

/// Requests beside a download that began a warm-up earlier.
async fn under_load(client: &Client, effort: Effort) -> anyhow::Result<Latencies> {
    let endless = Span { total: ENDLESS, warm_up: Duration::ZERO };
    let requests = async {
        tokio::time::sleep(effort.span.warm_up).await;
        client.fresh_requests(effort.requests, REQUEST_BYTES, LOAD_PAUSE).await
    };
    tokio::select! {
        bulk = client.download_for(endless) => Err(bulk.err().map_or_else(|| anyhow::anyhow!("the download ended"), Into::into)),
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

fn median(values: &[f64]) -> f64 {
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
