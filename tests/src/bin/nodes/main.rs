//! Measures what several servers on one PostgreSQL hold: how fast another takes over from one that is killed, what a quota lets through meanwhile.
//! See `--help`.

mod overshoot;
mod traffic;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use neighbourhood::{
    cluster::{Cluster, ClusterPlan, postgres, serve},
    load::LoadError,
    process::end_with_programs,
};
use tokio::task::JoinSet;

/// Kill and drain nodes under load and print a table of recovery times; run it by .ci/with-postgres
#[derive(Parser, Debug)]
#[command(name = "nodes")]
struct Arguments {
    /// What to measure
    #[arg(value_enum, default_value = "kills")]
    what: What,
    #[command(flatten)]
    overshoot: overshoot::Plan,
    /// How long, in seconds
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// How often the node that serves is killed, in seconds
    #[arg(long, default_value_t = 20)]
    every: u64,
    /// How long a killed node stays away, in seconds
    #[arg(long, default_value_t = 8)]
    away: u64,
    /// Nodes
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// Nodes that are dead all the while, though members know them
    #[arg(long, default_value_t = 0)]
    dead: u8,
    /// Flows at once
    #[arg(long, default_value_t = 10)]
    flows: u64,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum What {
    /// Recovery times
    Kills,
    /// What flows get beyond a quota
    Overshoot,
}

/// What became of flows.
#[derive(Default, Debug)]
struct Flows {
    exact: AtomicU64,
    failed: AtomicU64,
    wrong: AtomicU64,
    is_over: AtomicBool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let is_node = arguments.next().is_some_and(|first| first == "serve");
    shared::service::conclude(if is_node { run_node(arguments.collect()) } else { run(Arguments::parse()) })
}

#[tokio::main]
async fn run_node(arguments: Vec<String>) -> anyhow::Result<()> {
    serve(&arguments).await
}

#[tokio::main]
async fn run(arguments: Arguments) -> anyhow::Result<()> {
    end_with_programs()?;
    let server = postgres().context("no PostgreSQL: run this by .ci/with-postgres")?;
    match arguments.what {
        What::Kills => kills(&arguments, &server).await,
        What::Overshoot => {
            let mut cluster = Cluster::start(&server, &std::env::current_exe()?, plan(&arguments, 3)).await?;
            overshoot::overshoot(&mut cluster, &arguments.overshoot).await
        }
    }
}

/// Kills the node that serves, again and again, and measures until a flow gets through.
async fn kills(arguments: &Arguments, server: &str) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(server, &std::env::current_exe()?, plan(arguments, 1)).await?;
    anyhow::ensure!(arguments.dead.saturating_add(2) <= arguments.nodes, "two nodes have to be left");
    for dead in (0..cluster.node_count()).rev().take(arguments.dead.into()) {
        cluster.kill_node(dead);
    }
    cluster.recovery().await?;
    let flows = Arc::new(Flows::default());
    let mut load = JoinSet::new();
    for number in 0..arguments.flows {
        let (client, flows) = (cluster.client(), Arc::clone(&flows));
        load.spawn(async move {
            let mut seed = number;
            while !flows.is_over.load(Ordering::Relaxed) {
                seed += SEED_STEP;
                let ended = if number % 2 == 0 { client.download(FLOW, seed).await.map(drop) } else { client.upload(FLOW, seed).await };
                let counter = match ended {
                    Ok(()) => &flows.exact,
                    Err(LoadError::Broken(..) | LoadError::Connect(_)) => &flows.failed,
                    Err(error) => {
                        println!("WRONG: {error}");
                        &flows.wrong
                    }
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    println!("kill at | node | served again after");
    println!("---: | --- | ---:");
    let begun = Instant::now();
    let mut recoveries = Vec::new();
    while begun.elapsed() < Duration::from_secs(arguments.seconds) {
        let next = Duration::from_secs(arguments.every * (recoveries.len() as u64 + 1));
        tokio::time::sleep(next.saturating_sub(begun.elapsed())).await;
        let Some(serving) = cluster.serving().await? else { continue };
        cluster.kill_node(serving);
        let recovery = cluster.recovery().await?;
        println!("{:.0} s | {} | {:.2} s", begun.elapsed().as_secs_f64(), cluster.node_name(serving), recovery.as_secs_f64());
        recoveries.push(recovery);
        tokio::time::sleep(Duration::from_secs(arguments.away)).await;
        cluster.start_node(serving)?;
    }
    flows.is_over.store(true, Ordering::Relaxed);
    while tokio::time::timeout(FLOWS_END, load.join_next()).await.context("a flow hangs")?.is_some() {}
    recoveries.sort();
    let (exact, failed, wrong) = (&flows.exact, &flows.failed, &flows.wrong);
    println!(
        "{} kills: served again after {:.2} s (median), {:.2} s (worst); flows: {exact:?} byte-exact, {failed:?} failed cleanly, {wrong:?} wrong",
        recoveries.len(),
        recoveries[recoveries.len() / 2].as_secs_f64(),
        recoveries[recoveries.len() - 1].as_secs_f64(),
    );
    anyhow::ensure!(wrong.load(Ordering::Relaxed) == 0, "flows ended wrongly");
    Ok(())
}

fn plan(arguments: &Arguments, lans: usize) -> ClusterPlan {
    ClusterPlan { nodes: arguments.nodes, lans, relays: 2, drain_seconds: 20, ..Default::default() }
}

/// Seeds of different flows never meet.
const SEED_STEP: u64 = 1000;

/// A second's worth or so.
const FLOW: u64 = 20_000_000;

/// For the last flows.
const FLOWS_END: Duration = Duration::from_secs(60);
