//! A quota that is spent on all nodes at once, while nodes are killed and paths are lost: what arrives beyond it, and what is counted that
//! does not arrive.
//!
//! What arrives is counted where it arrives, by the applications and the content servers, so that a row in which nothing did says so.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use neighbourhood::cluster::Cluster;
use reconst::accounts::{Limits, Quota};
use shared::units::{Rate, Size};

use crate::traffic::{Traffic, Transport, Way};

/// What the rows are of.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Plan {
    /// The quota that flows on all nodes run into
    #[arg(long, default_value = "50MB")]
    quota: Size,
    /// What flows get each way at a node: a second of it is what the kill of one may lose of counting
    #[arg(long, default_value = "24M")]
    rate: Rate,
    /// Nodes that are killed while it is spent
    #[arg(long, default_value_t = 3)]
    kills: u64,
    /// Times that a LAN's paths are all lost meanwhile
    #[arg(long, default_value_t = 2)]
    cuts: u64,
    /// How many flows run into it at once; repeat for more
    #[arg(long, default_values_t = [1, 50, 500])]
    flows_at_once: Vec<usize>,
    /// Of what; repeat for more
    #[arg(long, value_enum, default_values_t = [Transport::Tcp, Transport::Udp])]
    of: Vec<Transport>,
    /// Which way; repeat for more
    #[arg(long, value_enum, default_values_t = [Way::Down, Way::Up, Way::Both])]
    way: Vec<Way>,
}

/// What a row came to.
#[derive(Default, Debug)]
struct Spent {
    kills: u64,
    cuts: u64,
    arrived: u64,
    counted: u64,
}

/// Spends the quota again and again, each time by other flows, and prints a row for each.
pub(crate) async fn overshoot(cluster: &mut Cluster, plan: &Plan) -> anyhow::Result<()> {
    println!("| flows | way | nodes killed | paths lost | arrived | beyond the quota | may be | counted | counted, not arrived | |");
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |");
    let mut is_held = true;
    for &transport in &plan.of {
        for &flows in &plan.flows_at_once {
            for &way in &plan.way {
                let traffic = Traffic { transport, way, flows };
                let spent = spend(cluster, plan, traffic).await?;
                is_held &= print(plan, traffic, &spent);
            }
        }
    }
    anyhow::ensure!(is_held, "not all rows hold");
    Ok(())
}

/// Prints a row; gives whether it holds what is promised.
fn print(plan: &Plan, traffic: Traffic, spent: &Spent) -> bool {
    let Spent { kills, cuts, arrived, counted } = *spent;
    let (quota, way) = (plan.quota.bytes, traffic.way.to_possible_value());
    let directions = if traffic.way == Way::Both { 2 } else { 1 };
    let may_be_lost = kills * directions * plan.rate.bits_per_second / 8;
    let beyond = arrived.saturating_sub(quota);
    let verdict = match () {
        () if arrived < quota / 10 * 9 => "proves nothing: too little arrived",
        () if kills < plan.kills || cuts < plan.cuts => "proves little: used up too early",
        () if beyond > may_be_lost || arrived.saturating_sub(counted) > may_be_lost => "BEYOND",
        () => "holds",
    };
    let (name, way) = (traffic.name(), way.map(|way| way.get_name().to_owned()).unwrap_or_default());
    let undelivered = counted.saturating_sub(arrived);
    println!("| {name} | {way} | {kills} | {cuts} | {arrived} | {beyond} | {may_be_lost} | {counted} | {undelivered} | {verdict} |");
    verdict == "holds"
}

async fn spend(cluster: &mut Cluster, plan: &Plan, traffic: Traffic) -> anyhow::Result<Spent> {
    let before = begin(cluster, plan).await?;
    let quota = plan.quota.bytes;
    let lans = traffic.lans();
    let load = traffic.start(cluster, plan.rate).await?;
    let (begun, mut spent) = (Instant::now(), Spent::default());
    let mut dead: Option<(usize, Instant)> = None;
    let mut seen = ((0, 0), Instant::now());
    loop {
        tokio::time::sleep(LOOK).await;
        spent.counted = used(cluster).await?.saturating_sub(before);
        spent.arrived = load.arrived(cluster);
        let is_used_up = spent.counted + USED_UP_BYTES > quota;
        // The last bytes are taken by flow after flow that can't go on with them, and given back.
        let now = (if is_used_up { quota } else { spent.counted }, spent.arrived);
        if seen.0 != now {
            seen = (now, Instant::now());
        }
        if let Some((node, back_at)) = dead
            && Instant::now() >= back_at
        {
            cluster.start_node(node)?;
            dead = None;
        }
        // Spread over the transfer, and none of one kind with one of the other.
        let is_kill_due = spent.kills < plan.kills && spent.counted * 2 * plan.kills >= quota * (2 * spent.kills + 1);
        let is_cut_due = spent.cuts < plan.cuts && spent.counted * (plan.cuts + 1) >= quota * (spent.cuts + 1);
        if dead.is_none()
            && is_kill_due
            && let Some(node) = cluster.serving_lan(spent.kills as usize % lans).await?
        {
            cluster.kill_node(node);
            // In turn, it is back before it is missed, and another one takes over.
            let away = if spent.kills.is_multiple_of(2) { AWAY_LONG } else { AWAY_SHORT };
            dead = Some((node, Instant::now() + away));
            spent.kills += 1;
        }
        if is_cut_due {
            cluster.cut_paths(spent.cuts as usize % lans).await?;
            spent.cuts += 1;
        }
        if dead.is_none() && seen.1.elapsed() > if is_used_up { QUIET_SHORT } else { QUIET_LONG } {
            break;
        }
        anyhow::ensure!(begun.elapsed() < ROW_MAX, "the quota is not used up: {spent:?} {}", cluster.last_words());
    }
    load.stop().await?;
    let mut seen = ((0, 0), Instant::now());
    while seen.1.elapsed() < QUIET_SHORT {
        tokio::time::sleep(LOOK).await;
        let now = (used(cluster).await?.saturating_sub(before), load.arrived(cluster));
        if now != seen.0 {
            seen = (now, Instant::now());
        }
    }
    (spent.counted, spent.arrived) = seen.0;
    Ok(spent)
}

/// Waits until each node serves its LAN, and sets the quota beyond what is used; gives that.
async fn begin(cluster: &Cluster, plan: &Plan) -> anyhow::Result<u64> {
    cluster.set_limits(&Limits::default()).await?;
    cluster.spread().await?;
    let begun = Instant::now();
    for lan in 0..cluster.proxies().len() {
        let client = cluster.client_on(lan);
        while cluster.serving_lan(lan).await? != Some(lan)
            || !tokio::time::timeout(REQUEST_TIME, client.fresh_request(100)).await.is_ok_and(|answered| answered.is_ok())
        {
            anyhow::ensure!(begun.elapsed() < ROW_MAX, "LAN {lan} is not served: {}", cluster.last_words());
            tokio::time::sleep(LOOK).await;
        }
    }
    let mut seen = (0, Instant::now());
    while seen.1.elapsed() < QUIET_SHORT {
        tokio::time::sleep(LOOK).await;
        let now = used(cluster).await?;
        if now != seen.0 {
            seen = (now, Instant::now());
        }
    }
    let quota = Quota::of(Size { bytes: seen.0 + plan.quota.bytes });
    cluster.set_limits(&Limits { quota: Some(quota), rate_up: Some(plan.rate), rate_down: Some(plan.rate), ..Limits::default() }).await?;
    tokio::time::sleep(FOLLOWED).await;
    Ok(seen.0)
}

async fn used(cluster: &Cluster) -> anyhow::Result<u64> {
    let used = cluster.used().await?;
    Ok(used.up + used.down)
}

const LOOK: Duration = Duration::from_millis(50);

/// Longer than nodes take to follow a change of limits, twice over.
const FOLLOWED: Duration = Duration::from_millis(1500);

/// A node that is back before it is missed, and one that another one takes over from.
const AWAY_SHORT: Duration = Duration::from_millis(200);
const AWAY_LONG: Duration = Duration::from_secs(4);

/// What is left of a quota that not even a datagram fits into.
const USED_UP_BYTES: u64 = 1000;

/// Nothing moves any more: counts are kept twice a second.
const QUIET_SHORT: Duration = Duration::from_secs(2);

/// Longer than the lease of a node that was killed counts as used, and than flows take to end whose server and paths are gone.
const QUIET_LONG: Duration = Duration::from_secs(40);

const REQUEST_TIME: Duration = Duration::from_secs(1);

/// A row that takes longer will never end.
const ROW_MAX: Duration = Duration::from_secs(180);
