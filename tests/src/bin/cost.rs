//! Prints what the programs cost: processor seconds per GB, memory of idle flows, the coming up of many sessions. See `--help`.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use clap::Parser;
use neighbourhood::{
    bench::{Figure, Reading, figures},
    content::ContentServer,
    cost::{
        Carrier, many,
        plain::{self, PlainRelay},
        rival::Rival,
        spend,
        tributary::{Size, Tributary},
    },
    process::{end_with_programs, missing_program},
    scene::Way,
};
use shared::service::Failure;

/// Measure processor time and memory of the programs on loopback
#[derive(Parser, Debug)]
#[command(name = "cost")]
struct Arguments {
    /// What to measure
    #[arg(long = "op", value_enum, value_delimiter = ',', default_values = ["cpu", "flows", "idle-flows", "sessions"])]
    operations: Vec<Operation>,
    /// Whom to measure beside, if on the PATH
    #[arg(long = "beside", value_enum, value_delimiter = ',', default_values = ["aggligator", "shadowsocks"])]
    rivals: Vec<Rival>,
    /// Seconds of each transfer that count
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Relays, and so paths, of one session
    #[arg(long, default_value_t = 2)]
    relays: usize,
    /// Flows in `flows`
    #[arg(long, default_value_t = 1000)]
    flows: usize,
    /// Flows in `idle-flows`
    #[arg(long, default_value_t = 10_000)]
    idle_flows: usize,
    /// Sessions in `sessions`
    #[arg(long, default_value_t = 1000)]
    sessions: usize,
    /// Runs of which the median is printed
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Be the content server of another `cost`
    #[arg(long, hide = true)]
    serve: Option<SocketAddr>,
    /// Be a plain TCP relay to that content server instead
    #[arg(long, hide = true, requires = "serve")]
    relay: Option<SocketAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Operation {
    /// Processor seconds per GB of each program, one flow, down and up
    Cpu,
    /// Goodput of many flows beside that of one, and the same of a plain TCP relay
    Flows,
    /// Memory of reconst with many idle flows
    IdleFlows,
    /// How fast many sessions of two paths come up
    Sessions,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    shared::service::conclude(run(&arguments))
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(what) = missing_program() {
        return Err(Failure::usage(what).into());
    }
    end_with_programs()?;
    let runtime = tokio::runtime::Runtime::new()?;
    if let (Some(relay), Some(content)) = (arguments.relay, arguments.serve) {
        return runtime.block_on(plain::relay(relay, content));
    }
    if let Some(address) = arguments.serve {
        return runtime.block_on(async {
            let _content = ContentServer::start(address).await?;
            std::future::pending().await
        });
    }
    for &operation in &arguments.operations {
        runtime.block_on(measure(operation, arguments))?;
    }
    Ok(())
}

async fn measure(operation: Operation, arguments: &Arguments) -> anyhow::Result<()> {
    let one = Size { users: 1, proxies: 1, relays: arguments.relays };
    let time = Duration::from_secs(arguments.seconds);
    match operation {
        Operation::Cpu => {
            let mut runs = Vec::new();
            for _ in 0..arguments.runs {
                runs.push(cpu(&Tributary::start(one).await?, time).await?);
            }
            print_named(&runs, "Tributary", arguments.json)?;
            for rival in &arguments.rivals {
                let mut runs = Vec::new();
                for _ in 0..arguments.runs {
                    let Some(pair) = rival.start().await? else { break };
                    runs.push(cpu(&pair, time).await?);
                }
                if runs.is_empty() {
                    eprintln!("without {}: it is not on the PATH", rival.name());
                }
                print_named(&runs, rival.name(), arguments.json)?;
            }
        }
        Operation::Flows => {
            let (mut ours, mut plain) = (Vec::new(), Vec::new());
            for _ in 0..arguments.runs {
                ours.push(one_and_many(&Tributary::start(one).await?, arguments.flows, time).await?);
                plain.push(one_and_many(&PlainRelay::start().await?, arguments.flows, time).await?);
            }
            print_named(&ours, "Tributary", arguments.json)?;
            print_named(&plain, "plain TCP relay", arguments.json)?;
        }
        Operation::IdleFlows => {
            let readings = many::idle_flows(arguments.idle_flows).await?;
            print(&figures(&format!("{} idle flows", arguments.idle_flows), "Tributary", &[readings]), arguments.json)?;
        }
        Operation::Sessions => {
            let readings = many::sessions(arguments.sessions).await?;
            print(&figures(&format!("{} sessions", arguments.sessions), "Tributary", &[readings]), arguments.json)?;
        }
    }
    Ok(())
}

async fn one_and_many(carrier: &impl Carrier, flows: usize, time: Duration) -> anyhow::Result<Named> {
    let of_one = spend(carrier, Way::Down, 1, time).await?;
    let of_many = spend(carrier, Way::Down, flows, time).await?;
    let rates = [
        Reading { figure: "rate of one flow", unit: "Mbit/s", value: of_one.goodput / 1e6 },
        Reading { figure: "rate of many flows", unit: "Mbit/s", value: of_many.goodput / 1e6 },
        Reading { figure: "many to one", unit: "ratio", value: of_many.goodput / of_one.goodput },
    ];
    let total = |reading| ("total".to_owned(), reading);
    let spent = [(of_one, "cpu of one flow"), (of_many, "cpu of many flows")].into_iter().flat_map(|(spent, figure)| {
        let sum = spent.total();
        let each = spent.seconds_per_gb.into_iter().chain([("total".to_owned(), sum)]);
        each.map(move |(program, value)| (program, Reading { figure, unit: "s/GB", value }))
    });
    Ok(merged(spent.chain(rates.map(total)).collect()))
}

/// Readings of one run, each with the program that it is of.
type Named = Vec<(String, Reading)>;

async fn cpu(carrier: &impl Carrier, time: Duration) -> anyhow::Result<Named> {
    let down = spend(carrier, Way::Down, 1, time).await?;
    let up = spend(carrier, Way::Up, 1, time).await?;
    Ok(merged(down.readings(Way::Down)).into_iter().chain(merged(up.readings(Way::Up))).collect())
}

/// Relays count as one.
fn merged(readings: Named) -> Named {
    let mut out: Named = Vec::new();
    for (program, reading) in readings {
        match out.iter_mut().find(|(known, had)| *known == program && had.figure == reading.figure) {
            Some((_, had)) => had.value += reading.value,
            None => out.push((program, reading)),
        }
    }
    out
}

fn print_named(runs: &[Named], system: &'static str, as_json: bool) -> anyhow::Result<()> {
    let mut programs: Vec<String> = Vec::new();
    for (program, _) in runs.iter().flatten() {
        if !programs.contains(program) {
            programs.push(program.clone());
        }
    }
    for program in programs {
        let of_program = |run: &Named| run.iter().filter(|(name, _)| *name == program).map(|(_, reading)| *reading).collect::<Vec<_>>();
        let runs: Vec<Vec<Reading>> = runs.iter().map(of_program).collect();
        print(&figures(&program, system, &runs), as_json)?;
    }
    Ok(())
}

fn print(figures: &[Figure], as_json: bool) -> anyhow::Result<()> {
    for figure in figures {
        figure.print(as_json)?;
    }
    Ok(())
}
