//! Prints what the lines of a scene give: goodput, request times, stalls. See `--help` and `tests/scenes/`.

use std::{process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use neighbourhood::{
    bench::{
        Effort, Figure, Operation,
        hosts::{self, HostsPlan},
        measure,
    },
    hosts::{missing, sweep, systems::System},
    load::{CongestionControl, Span},
    neighbourhood::Plan,
    process::end_with_programs,
    scene::Scene,
    simulation::lines::drawn,
};
use shared::service::Failure;

/// Measure goodput, request times and stalls on emulated lines
#[derive(Parser, Debug)]
#[command(name = "bench")]
struct Arguments {
    /// Scenes by name, or TOML files [default: equal dsl rtt]
    #[arg(value_name = "SCENE")]
    scenes: Vec<String>,
    /// What to measure
    #[arg(long = "op", value_enum, value_delimiter = ',', default_values = ["down", "up", "idle", "load", "kill"])]
    operations: Vec<Operation>,
    /// So many sets of lines drawn at random (rates 20:1, RTT 40:1, jitter, 1 % loss on some, 2 s queues on some)
    #[arg(long, value_name = "N", default_value_t = 0)]
    seeds: u64,
    /// Seconds of each transfer, start-up included
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Seconds of start-up that are not counted
    #[arg(long, default_value_t = 3)]
    warm_up: u64,
    /// Requests a run
    #[arg(long, default_value_t = 40)]
    requests: usize,
    /// Lines that fall silent in `--op kills`
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Runs of which the median is printed, each with the next seed
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    runs: u64,
    /// Seed of the first run's lines, and of the first set of `--seeds`
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How chunks are spread over the lines
    #[arg(long, value_enum, default_value = "adaptive")]
    scheduler: proxy_local::config::Scheduler,
    /// Processes on hosts of their own (network namespaces, as root), and other systems on the same lines
    #[arg(long)]
    namespaces: bool,
    /// What to measure there; what this machine lacks is skipped
    #[arg(long = "system", value_enum, value_delimiter = ',', default_values = ["tributary", "mptcp", "tcp", "aggligator"], requires = "namespaces")]
    systems: Vec<System>,
    /// What plain TCP and MPTCP send with
    #[arg(long, value_enum, default_value = "cubic", requires = "namespaces")]
    congestion_control: CongestionControl,
    /// Take each line away in turn, and measure without it too
    #[arg(long, requires = "namespaces")]
    without_one: bool,
    /// How two users share the lines
    #[arg(long, requires = "namespaces")]
    two_users: bool,
    /// How Tributary and one plain TCP flow share each scene's first line
    #[arg(long, requires = "namespaces")]
    beside_tcp: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    shared::service::conclude(run(&arguments))
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.warm_up >= arguments.seconds {
        return Err(Failure::usage("--warm-up must be shorter than --seconds").into());
    }
    let span = Span { total: Duration::from_secs(arguments.seconds), warm_up: Duration::from_secs(arguments.warm_up) };
    let effort = Effort { span, requests: arguments.requests, kills: arguments.kills, runs: usize::try_from(arguments.runs)? };
    let scenes = scenes(arguments)?;
    if arguments.namespaces {
        return run_on_hosts(arguments, scenes, effort);
    }
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        for scene in scenes {
            let plan = Plan { seed: arguments.seed, scheduler: arguments.scheduler, ..Plan::new(scene) };
            for &operation in &arguments.operations {
                print(&measure(&plan, operation, effort).await?, arguments.json)?;
            }
        }
        Ok(())
    })
}

fn run_on_hosts(arguments: &Arguments, scenes: Vec<Scene>, effort: Effort) -> anyhow::Result<()> {
    if let Some(what) = missing() {
        println!("nothing measured: {what}");
        return Ok(());
    }
    sweep();
    end_with_programs()?;
    let mut systems = arguments.systems.clone();
    systems.retain(|system| {
        let missing = system.missing();
        if let Some(what) = &missing {
            eprintln!("without {}: {what}", system.name());
        }
        missing.is_none()
    });
    for scene in scenes {
        let plan = HostsPlan {
            scene: scene.clone(),
            seed: arguments.seed,
            congestion_control: arguments.congestion_control,
            proxy_arguments: vec!["--scheduler".into(), scheduler_name(arguments.scheduler)],
        };
        if arguments.two_users || arguments.beside_tcp {
            if arguments.two_users {
                print(&hosts::measure_two_users(&plan, effort)?, arguments.json)?;
            }
            if arguments.beside_tcp {
                let first_line = Scene { name: format!("{} line 1", scene.name), lines: scene.lines[..1].to_vec(), ..scene };
                print(&hosts::measure_beside_tcp(&HostsPlan { scene: first_line, ..plan }, effort)?, arguments.json)?;
            }
            continue;
        }
        for &system in &systems {
            match hosts::measure(&plan, system, &arguments.operations, effort) {
                Ok(figures) => print(&figures, arguments.json)?,
                // What others lack is no reason to measure nothing more.
                Err(error) if system != System::Tributary => {
                    eprintln!("without {} on {}: {error:#}", system.name(), scene.name);
                    continue;
                }
                Err(error) => return Err(error),
            }
            let count = scene.lines.len();
            if arguments.without_one && system == System::Tributary && count > 1 {
                for index in 0..count {
                    let mut fewer = scene.clone();
                    fewer.lines.remove(index);
                    fewer.name = format!("{} less {}", scene.name, index + 1);
                    let plan = HostsPlan { scene: fewer, ..plan.clone() };
                    print(&hosts::measure(&plan, system, &arguments.operations, effort)?, arguments.json)?;
                }
            }
        }
    }
    Ok(())
}

fn scenes(arguments: &Arguments) -> anyhow::Result<Vec<Scene>> {
    let mut scenes = Vec::new();
    for name in &arguments.scenes {
        scenes.push(Scene::load(name).map_err(|error| Failure::usage(error.to_string()))?);
    }
    scenes.extend((0..arguments.seeds).map(|place| drawn(arguments.seed + place)));
    if scenes.is_empty() {
        for name in ["equal", "dsl", "rtt"] {
            scenes.push(Scene::load(name)?);
        }
    }
    Ok(scenes)
}

fn scheduler_name(scheduler: proxy_local::config::Scheduler) -> String {
    scheduler.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn print(figures: &[Figure], as_json: bool) -> anyhow::Result<()> {
    for figure in figures {
        figure.print(as_json)?;
    }
    Ok(())
}
