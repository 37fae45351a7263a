//! Measures what quotas hold and cost: overshoot, the member database with many members, a grant. See `--help`.

mod members;
mod overshoot;

use std::{
    hint::black_box,
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use neighbourhood::{
    content::ContentServer,
    load::{Span, Via},
    neighbourhood::{Neighbourhood, Plan},
    process::end_with_programs,
    scene::Scene,
};
use reconst::{
    Database,
    accounts::{Limits, Quota},
};
use shared::{
    community::{
        member::Name,
        quota::{Account, Sharer, UnixSeconds, Way, Whose},
    },
    units::{Rate, Size},
};
use tokio::task::JoinSet;

/// Measure what quotas hold and cost
#[derive(Parser, Debug)]
#[command(name = "quotas")]
struct Arguments {
    /// What to measure: grants, members, rate, shares, overshoot, killed [default: all]
    #[arg(value_name = "WHAT")]
    what: Vec<What>,
    /// The quota that flows run into
    #[arg(long, default_value = "50MB")]
    quota: Size,
    /// How many flows at once; repeat for more
    #[arg(long, default_values_t = [1, 50, 500])]
    flows: Vec<usize>,
    /// Users in the database
    #[arg(long, default_value_t = 10_000)]
    users: usize,
    /// LANs in the database
    #[arg(long, default_value_t = 500)]
    lans: u16,
    /// A PostgreSQL database, new and empty, in place of SQLite
    #[arg(long)]
    database: Option<Database>,
    /// Be the content server of another `quotas`
    #[arg(long, hide = true)]
    serve: Option<SocketAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum What {
    /// What a grant costs
    Grants,
    /// What a member database costs
    Members,
    /// What a user who is held to a rate gets
    Rate,
    /// What two users of a line get, one of them with a hundred flows
    Shares,
    /// What flows get beyond a quota
    Overshoot,
    /// The same while reconst is killed again and again
    Killed,
}

fn main() -> ExitCode {
    let ended = end_with_programs().and_then(|()| run(Arguments::parse()));
    shared::service::conclude(ended)
}

#[tokio::main]
async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if let Some(address) = arguments.serve {
        let _content = ContentServer::start(address).await?;
        return std::future::pending().await;
    }
    let is_wanted = |what| arguments.what.is_empty() || arguments.what.contains(&what);
    if is_wanted(What::Grants) {
        grants();
    }
    if is_wanted(What::Members) {
        members::members(&arguments).await?;
    }
    if is_wanted(What::Rate) {
        rate().await?;
    }
    if is_wanted(What::Shares) {
        shares().await?;
    }
    if is_wanted(What::Overshoot) {
        overshoot::overshoot(&arguments.flows, arguments.quota).await?;
    }
    if is_wanted(What::Killed) {
        overshoot::killed(arguments.quota).await?;
    }
    Ok(())
}

/// Holds a user to a rate and prints what a download gets of it, and how long requests beside it wait.
async fn rate() -> anyhow::Result<()> {
    let scene = Scene::parse("wide", "description = 'One wide line.'\n[[line]]\ndown = '100M'\nup = '100M'\nrtt-ms = 20\n")?;
    let neighbourhood = Neighbourhood::start(Plan::new(scene)).await?;
    let accounts = neighbourhood.registrar().accounts();
    let account = accounts.user(&name("elm")?, &name("user1")?).await?.account;
    let limits = Limits { rate_up: Some("5M".parse()?), rate_down: Some("5M".parse()?), ..Limits::default() };
    accounts.set_limits(account, &limits).await?;
    tokio::time::sleep(SETTLED).await;
    let client = neighbourhood.client();
    client.fresh_request(100).await?;
    let idle = client.fresh_requests(50, 100, Duration::from_millis(20)).await?;
    for (way, flows) in [("down", 1), ("up", 1), ("down", 20), ("up", 20)] {
        let span = Span { total: Duration::from_secs(33), warm_up: Duration::from_secs(3) };
        let mut bulks = JoinSet::new();
        for _ in 0..flows {
            let client = client.clone();
            bulks.spawn(async move { if way == "down" { client.download_for(span).await } else { client.upload_for(span).await } });
        }
        tokio::time::sleep(span.warm_up).await;
        let loaded = client.fresh_requests(200, 100, Duration::from_millis(100)).await?;
        let mut goodput = 0.0;
        while let Some(bulk) = bulks.join_next().await {
            goodput += bulk??.goodput;
        }
        println!(
            "5 Mbit/s {way}, {flows} flows: {:.3} Mbit/s; a request of 100 B takes {:?}, 95 % within {:?} (idle {:?}, {:?})",
            goodput / 1e6,
            loaded.quantile(0.5),
            loaded.quantile(0.95),
            idle.quantile(0.5),
            idle.quantile(0.95)
        );
    }
    neighbourhood.stop().await
}

/// Has a user with a hundred flows and one with one share a line, and then their LAN's rate on a wider one, and prints who gets what.
async fn shares() -> anyhow::Result<()> {
    share("a line of 40 Mbit/s", "40M", Limits::default()).await?;
    let limits = Limits { rate_up: Some("20M".parse()?), rate_down: Some("20M".parse()?), ..Limits::default() };
    share("a LAN held to 20 Mbit/s, its line of 100", "100M", limits).await
}

async fn share(what: &str, line: &str, limits: Limits) -> anyhow::Result<()> {
    let scene = format!("description = 'A line for two.'\n[[line]]\ndown = '{line}'\nup = '{line}'\nrtt-ms = 20\n");
    let neighbourhood = Neighbourhood::start(Plan::new(Scene::parse("shared", &scene)?)).await?;
    neighbourhood.registrar().accounts().set_lan_limits(&name("elm")?, &limits).await?;
    let other = neighbourhood.registrar().add_user(&name("elm")?, &name("user2")?, &Limits::default()).await?;
    let proxy = neighbourhood.add_proxy(&other, &[0]).await?;
    proxy.wait_for_paths(1).await?;
    for way in ["down", "up"] {
        let (many, one) = (neighbourhood.client(), neighbourhood.client_of(Via::Socks5(proxy.address())));
        let span = Span { total: Duration::from_secs(25), warm_up: Duration::from_secs(5) };
        let mut bulks = JoinSet::new();
        for number in 0..101 {
            let client = if number == 0 { one.clone() } else { many.clone() };
            bulks.spawn(async move {
                let bulk = if way == "down" { client.download_for(span).await } else { client.upload_for(span).await };
                (number == 0, bulk)
            });
        }
        let (mut of_many, mut of_one) = (0.0, 0.0);
        while let Some(done) = bulks.join_next().await {
            let (is_one, bulk) = done?;
            *if is_one { &mut of_one } else { &mut of_many } += bulk?.goodput;
        }
        println!("two users of {what}, {way}: 100 flows {:.2} Mbit/s, 1 flow {:.2} Mbit/s", of_many / 1e6, of_one / 1e6);
    }
    proxy.stop().await?;
    neighbourhood.stop().await
}

/// Prints what a grant costs, with and without a rate.
fn grants() {
    let limits = Limits { quota: Some(Quota::of(Size { bytes: u64::MAX >> 1 })), ..Limits::default() };
    let begun = Instant::now();
    let mut account = Account::new(Whose::User, begun, now(), limits.clone(), now(), Default::default());
    let time = now();
    for _ in 0..GRANTS {
        let grant = account.take(Instant::now(), time, Way::Down, Sharer { user: 1, flow: 1 }, 65_536).expect("a quota without end");
        black_box(account.wait(Instant::now(), Way::Down, &grant));
    }
    let each = begun.elapsed() / GRANTS;
    println!("a grant: {each:?}, {:?} a GB in pieces of 64 KiB", each * (1_000_000_000 / 65_536));
    let rates = [("without a rate", None), ("with a rate that is shared", Some(Rate { bits_per_second: 10_000_000_000_000 }))];
    for (what, rate) in rates {
        let begun = Instant::now();
        let mut account = Account::new(Whose::Lan, begun, time, Limits { rate_down: rate, ..limits.clone() }, time, Default::default());
        for number in 0..GRANTS {
            let sharer = Sharer { user: i64::from(number % 100), flow: u64::from(number % 1000) };
            let grant = account.take(Instant::now(), time, Way::Down, sharer, 65_536).expect("a quota without end");
            black_box(account.wait(Instant::now(), Way::Down, &grant));
        }
        println!("a LAN's besides, {what}: {:?}", begun.elapsed() / GRANTS);
    }
}

async fn wait_until(what: &str, holds: impl Fn() -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !holds() {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(20), "{what} in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn name(text: &str) -> anyhow::Result<Name> {
    text.parse().context("a name")
}

fn now() -> UnixSeconds {
    UnixSeconds(time::OffsetDateTime::now_utc().unix_timestamp())
}

const GRANTS: u32 = 1_000_000;

/// For the limits to hold.
const SETTLED: Duration = Duration::from_millis(1500);
