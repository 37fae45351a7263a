//! Prints what the lines of a scene give: goodput, request times, stalls. See `--help` and `tests/scenes/`.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use neighbourhood::{
    bench::{Effort, Figure, Operation, measure},
    load::Span,
    neighbourhood::Plan,
    scene::Scene,
};
use shared::service::Failure;

/// Measure goodput, request times and stalls on emulated lines
#[derive(Parser, Debug)]
#[command(name = "bench")]
struct Arguments {
    /// Scenes by name, or TOML files
    #[arg(value_name = "SCENE", default_values = ["equal", "dsl", "rtt"])]
    scenes: Vec<String>,
    /// What to measure
    #[arg(long = "op", value_enum, value_delimiter = ',', default_values = ["down", "up", "idle", "load", "kill"])]
    operations: Vec<Operation>,
    /// Seconds of each transfer, start-up included
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Seconds of start-up that are not counted
    #[arg(long, default_value_t = 3)]
    warm_up: u64,
    /// Requests a run
    #[arg(long, default_value_t = 40)]
    requests: usize,
    /// Runs of which the median is printed, each with the next seed
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    runs: u64,
    /// Seed of the first run's lines
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How chunks are spread over the lines
    #[arg(long, value_enum, default_value = "adaptive")]
    scheduler: proxy_local::config::Scheduler,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    shared::service::conclude(run(Arguments::parse()).await)
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.warm_up >= arguments.seconds {
        return Err(Failure::usage("--warm-up must be shorter than --seconds").into());
    }
    let span = Span { total: Duration::from_secs(arguments.seconds), warm_up: Duration::from_secs(arguments.warm_up) };
    let effort = Effort { span, requests: arguments.requests, runs: usize::try_from(arguments.runs)? };
    let scenes = arguments.scenes.iter().map(|scene| Scene::load(scene)).collect::<Result<Vec<_>, _>>();
    for scene in scenes.map_err(|error| Failure::usage(error.to_string()))? {
        let plan = Plan { seed: arguments.seed, scheduler: arguments.scheduler, ..Plan::new(scene) };
        for &operation in &arguments.operations {
            for figure in measure(&plan, operation, effort).await? {
                print(&figure, arguments.json)?;
            }
        }
    }
    Ok(())
}

fn print(figure: &Figure, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        println!("{}", serde_json::to_string(figure)?);
        return Ok(());
    }
    let Figure { scene, figure, unit, median, runs } = figure;
    let digits = if *unit == "of the limit" { 3 } else { 1 };
    let each: Vec<String> = runs.iter().map(|run| format!("{run:.digits$}")).collect();
    let each = if runs.len() > 1 { format!("   ({})", each.join(", ")) } else { String::new() };
    println!("{scene:<14} {figure:<10} {median:>9.digits$} {unit}{each}");
    Ok(())
}
