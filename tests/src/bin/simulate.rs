//! Prints what lines give in virtual time: both session cores, no clock, no machine noise. See `--help` and `tests/scenes/`.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Parser;
use neighbourhood::{
    scene::{Scene, Way},
    simulation::{
        call::CallTrial,
        lines::{LineSpec, drawn},
        measure::{LineOutcome, Outcome, Trial, request_by_tcp},
    },
};
use shared::{service::Failure, transfer::schedule::Policy};

/// Simulate transfers and requests over lines, in virtual time
#[derive(Parser, Debug)]
#[command(name = "simulate")]
struct Arguments {
    /// Scenes by name, or TOML files
    #[arg(value_name = "SCENE")]
    scenes: Vec<String>,
    /// A line: DOWN/UP/RTT-MS with options behind commas, as in 25M/10M/20,jitter=5,loss=1,burst=3,queue=500,mtu=1420,reorder,x4
    #[arg(long = "line", value_name = "SPEC")]
    lines: Vec<LineSpec>,
    /// So many sets of lines drawn at random (rates 20:1, RTT 40:1, jitter, 1 % loss on some, 2 s queues on some)
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The seed of the first set, and of the lines' randomness
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds that count
    #[arg(long, default_value_t = 12.0, value_parser = seconds)]
    seconds: f64,
    /// Seconds before that
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    warm_up: f64,
    /// Silence this line (from 1) in mid-transfer
    #[arg(long, value_name = "LINE")]
    kill: Option<usize>,
    /// When, in seconds
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    kill_at: f64,
    /// How chunks are spread: adaptive, wrr, rr or redundant
    #[arg(long, default_value_t = Policy::Adaptive)]
    scheduler: Policy,
    /// What timers are rounded up to, in milliseconds; 0 for exact ones
    #[arg(long, default_value_t = 0.0, value_parser = seconds)]
    timer_ms: f64,
    /// Take each line away in turn, and say what that changes
    #[arg(long)]
    without: bool,
    /// What a call of 64 kbit/s beside an upload hears instead, by each way to spread its datagrams
    #[arg(long)]
    call: bool,
    /// One row a scene, not one a line
    #[arg(long)]
    brief: bool,
}

/// The four runs over one set of lines.
struct Figures {
    down: Outcome,
    up: Outcome,
    idle: Outcome,
    load: Outcome,
    by_tcp: Duration,
}

fn main() -> ExitCode {
    shared::service::conclude(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let scenes = scenes(arguments)?;
    let is_brief = arguments.brief || arguments.seeds.is_some_and(|count| count > 1);
    let mut all = Vec::new();
    if is_brief {
        print_head();
    }
    for scene in &scenes {
        if let Some(kill) = arguments.kill
            && !(1..=scene.lines.len()).contains(&kill)
        {
            return Err(Failure::usage(format!("--kill {kill}: {} has lines 1 to {}", scene.name, scene.lines.len())).into());
        }
        if arguments.call {
            print_call(arguments, scene)?;
            continue;
        }
        let figures = measure(arguments, scene)?;
        if is_brief {
            print_row(scene, &figures);
        } else {
            print_scene(scene, &figures);
        }
        if arguments.without {
            print_without(arguments, scene, &figures)?;
        }
        all.push(figures);
    }
    if is_brief && all.len() > 1 {
        print_summary(&all);
    }
    Ok(())
}

fn scenes(arguments: &Arguments) -> anyhow::Result<Vec<Scene>> {
    let mut scenes: Vec<Scene> = Vec::new();
    for name in &arguments.scenes {
        scenes.push(Scene::load(name).map_err(|error| Failure::usage(error.to_string()))?);
    }
    if !arguments.lines.is_empty() {
        let lines = arguments.lines.iter().flat_map(|spec| std::iter::repeat_n(spec.line, spec.count)).collect();
        scenes.push(Scene { name: "lines".into(), description: "As given.".into(), lines });
    }
    scenes.extend((0..arguments.seeds.unwrap_or(0)).map(|place| drawn(arguments.seed + place)));
    if scenes.is_empty() {
        for name in ["equal", "dsl", "rtt"] {
            scenes.push(Scene::load(name).context("built in")?);
        }
    }
    Ok(scenes)
}

fn print_call(arguments: &Arguments, scene: &Scene) -> anyhow::Result<()> {
    println!("{}: {}", scene.name, scene.description);
    println!(
        "  {:<10} {:>8} {:>9} {:>9} {:>9} {:>8} {:>14}",
        "datagrams", "lost/%", "p50/ms", "p99/ms", "max/ms", "gap/ms", "upload/Mbit/s"
    );
    for policy in [Policy::Adaptive, Policy::WeightedRoundRobin, Policy::Redundant] {
        let kill = arguments.kill.map(|line| line - 1);
        let trial = CallTrial { has_bulk: true, kill, seed: arguments.seed, ..CallTrial::new(scene.lines.clone(), policy) };
        let outcome = trial.run().with_context(|| format!("the core failed over {} with seed {}", scene.name, arguments.seed))?;
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        println!(
            "  {:<10} {:>8.3} {:>9.1} {:>9.1} {:>9.1} {:>8.1} {:>14.2}",
            policy.to_string(),
            outcome.lost() * 100.0,
            millis(outcome.delay(0.5)),
            millis(outcome.delay(0.99)),
            millis(outcome.delay(1.0)),
            millis(outcome.longest_gap),
            outcome.bulk_bytes as f64 * 8.0 / 1e6 / trial.lasts.as_secs_f64()
        );
    }
    Ok(())
}

fn measure(arguments: &Arguments, scene: &Scene) -> anyhow::Result<Figures> {
    let trial = |bulk, with_requests: bool| {
        let trial = Trial {
            requests_every: with_requests.then_some(REQUESTS_EVERY),
            policy: arguments.scheduler,
            seed: arguments.seed,
            warm_up: Duration::from_secs_f64(arguments.warm_up),
            span: Duration::from_secs_f64(arguments.seconds),
            kill: arguments.kill.map(|line| (line - 1, Duration::from_secs_f64(arguments.kill_at))),
            timer_tick: Duration::from_secs_f64(arguments.timer_ms / 1e3),
            ..Trial::new(scene.lines.clone(), bulk)
        };
        trial.run().with_context(|| format!("the core failed over {} with seed {}", scene.name, arguments.seed))
    };
    let by_tcp = scene.lines.iter().map(request_by_tcp).min().expect("a scene has lines");
    Ok(Figures {
        down: trial(Some(Way::Down), false)?,
        up: trial(Some(Way::Up), false)?,
        idle: trial(None, true)?,
        load: trial(Some(Way::Down), true)?,
        by_tcp,
    })
}

fn print_scene(scene: &Scene, figures: &Figures) {
    println!("{}: {}", scene.name, scene.description);
    for (name, outcome) in [("down", &figures.down), ("up", &figures.up)] {
        println!(
            "  {name:<4}  {:.3} of the limit ({:.2} of {:.2} Mbit/s)   longest gap {:.0} ms   sent twice {:.2} %",
            outcome.efficiency(),
            outcome.goodput_bits / 1e6,
            outcome.limit_bits / 1e6,
            milliseconds(outcome.longest_gap),
            outcome.reinjected * 100.0,
        );
    }
    for (name, outcome) in [("idle", &figures.idle), ("load", &figures.load)] {
        print_requests(name, outcome, figures.by_tcp);
    }
    println!(
        "  line  way    rate/Mbit  rtt/ms  used   queue/ms mean   max   capacity least  mean  most   dropped   lost  found  est/%  suspect"
    );
    for (place, line) in scene.lines.iter().enumerate() {
        for (way, name, outcome) in [(Way::Down, "down", &figures.down), (Way::Up, "up", &figures.up)] {
            let rate = line.conditions(way).rate.bits_per_second as f64 / 1e6;
            let rtt = milliseconds(line.up.delay + line.down.delay);
            let LineOutcome { utilisation, queue_mean, queue_max, capacity, dropped, lost, declared_lost, loss_estimate, suspicions } =
                outcome.lines[place];
            println!(
                "  {:>4}  {name:<4} {rate:>11.3} {rtt:>7.0}  {utilisation:.3}  {:>13.1} {:>5.0}  {:>14.2} {:>5.2} {:>5.2} {dropped:>9} {lost:>6} {declared_lost:>6} {:>6.2} {suspicions:>8}",
                place + 1,
                milliseconds(queue_mean),
                milliseconds(queue_max),
                capacity.0,
                capacity.1,
                capacity.2,
                loss_estimate * 100.0,
            );
        }
    }
    println!();
}

fn print_requests(name: &str, outcome: &Outcome, by_tcp: Duration) {
    let (Some(median), Some(slow)) = (outcome.request_median(), outcome.request_quantile(0.95)) else {
        println!("  {name:<4}  no 16 KB request came to its end");
        return;
    };
    println!(
        "  {name:<4}  16 KB request {:.1} ms (p95 {:.1}, {} of them): {:.2} of plain TCP's {:.1} ms on the best line alone (reckoned)",
        milliseconds(median),
        milliseconds(slow),
        outcome.requests.len(),
        median.as_secs_f64() / by_tcp.as_secs_f64(),
        milliseconds(by_tcp),
    );
}

fn print_head() {
    println!("scene        lines    down  gap/ms  queue/ms      up  gap/ms  queue/ms   idle/ms  /tcp   load/ms  /tcp   slowest way");
}

fn print_row(scene: &Scene, figures: &Figures) {
    let ratio = |outcome: &Outcome| outcome.request_median().map_or(f64::NAN, |median| median.as_secs_f64() / figures.by_tcp.as_secs_f64());
    let median = |outcome: &Outcome| outcome.request_median().map_or(f64::NAN, milliseconds);
    println!(
        "{:<12} {:>5}   {:.3} {:>7.0} {:>9.1}   {:.3} {:>7.0} {:>9.1} {:>9.1} {:>5.2} {:>9.1} {:>5.2}   {}",
        scene.name,
        scene.lines.len(),
        figures.down.efficiency(),
        milliseconds(figures.down.longest_gap),
        deepest_queue(&figures.down),
        figures.up.efficiency(),
        milliseconds(figures.up.longest_gap),
        deepest_queue(&figures.up),
        median(&figures.idle),
        ratio(&figures.idle),
        median(&figures.load),
        ratio(&figures.load),
        least_used(scene, figures),
    );
}

/// The line and way that was used the least.
fn least_used(scene: &Scene, figures: &Figures) -> String {
    let ways = [(Way::Down, "down", &figures.down), (Way::Up, "up", &figures.up)];
    let all =
        ways.iter().flat_map(|(way, name, outcome)| outcome.lines.iter().enumerate().map(move |(place, line)| (*way, *name, place, line)));
    let Some((way, name, place, line)) = all.min_by(|one, other| one.3.utilisation.total_cmp(&other.3.utilisation)) else {
        return String::new();
    };
    let conditions = scene.lines[place].conditions(way);
    let rtt = milliseconds(scene.lines[place].up.delay + scene.lines[place].down.delay);
    let loss = if conditions.loss.fraction > 0.0 { " lossy" } else { "" };
    let reorder = if conditions.may_reorder { " reordering" } else { "" };
    format!(
        "{}{name} used {:.2}: {} rtt {rtt:.0} jitter {:.0}{loss}{reorder}",
        place + 1,
        line.utilisation,
        conditions.rate,
        milliseconds(conditions.jitter)
    )
}

fn print_summary(all: &[Figures]) {
    let tcp_ratio = |figures: &Figures, outcome: &Outcome| {
        outcome.request_median().map_or(f64::INFINITY, |median| median.as_secs_f64() / figures.by_tcp.as_secs_f64())
    };
    let row = |name: &str, values: Vec<f64>, worst_is_high: bool| {
        let mut sorted = values;
        sorted.sort_by(f64::total_cmp);
        if worst_is_high {
            sorted.reverse();
        }
        let tenth = sorted[sorted.len() / 10];
        println!("{name:<30} median {:>8.3}   worst tenth {tenth:>8.3}   worst {:>8.3}", sorted[sorted.len() / 2], sorted[0]);
    };
    println!("\nof {} sets", all.len());
    row("down / limit", all.iter().map(|figures| figures.down.efficiency()).collect(), false);
    row("up / limit", all.iter().map(|figures| figures.up.efficiency()).collect(), false);
    row("longest gap down, ms", all.iter().map(|figures| milliseconds(figures.down.longest_gap)).collect(), true);
    row("longest gap up, ms", all.iter().map(|figures| milliseconds(figures.up.longest_gap)).collect(), true);
    row("deepest mean queue down, ms", all.iter().map(|figures| deepest_queue(&figures.down)).collect(), true);
    row("deepest mean queue up, ms", all.iter().map(|figures| deepest_queue(&figures.up)).collect(), true);
    row("idle request / TCP", all.iter().map(|figures| tcp_ratio(figures, &figures.idle)).collect(), true);
    row("request under load / TCP", all.iter().map(|figures| tcp_ratio(figures, &figures.load)).collect(), true);
}

/// What each line adds: the figures without it beside those with it.
fn print_without(arguments: &Arguments, scene: &Scene, with: &Figures) -> anyhow::Result<()> {
    if scene.lines.len() < 2 {
        return Ok(());
    }
    for place in 0..scene.lines.len() {
        let mut fewer = scene.clone();
        fewer.lines.remove(place);
        let figures = measure(arguments, &fewer)?;
        let gain = |with: &Outcome, without: &Outcome| (without.goodput_bits / with.goodput_bits - 1.0) * 100.0;
        let slower = |with: &Outcome, without: &Outcome| match (with.request_median(), without.request_median()) {
            (Some(with), Some(without)) => (without.as_secs_f64() / with.as_secs_f64() - 1.0) * 100.0,
            _ => f64::NAN,
        };
        println!(
            "  without line {}: down {:+.1} %, up {:+.1} %, request idle {:+.1} %, under load {:+.1} %",
            place + 1,
            gain(&with.down, &figures.down),
            gain(&with.up, &figures.up),
            slower(&with.idle, &figures.idle),
            slower(&with.load, &figures.load),
        );
    }
    println!();
    Ok(())
}

/// The deepest mean queue of all lines, in milliseconds.
fn deepest_queue(outcome: &Outcome) -> f64 {
    outcome.lines.iter().map(|line| milliseconds(line.queue_mean)).fold(0.0, f64::max)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn seconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number| (0.0..=3600.0).contains(number)).ok_or_else(|| "write a number from 0 to 3600".into())
}

/// The time between requests: longer than any flow's pause, so that each begins anew.
const REQUESTS_EVERY: Duration = Duration::from_millis(150);
