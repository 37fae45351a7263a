//! Flows that run into a quota: what arrives beyond it, and what is counted that does not.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use neighbourhood::{
    content::Ending,
    cost::tributary::{self, Tributary},
    load::{
        Client,
        associate::Association,
        endless::{DOWNLOAD, UPLOAD, move_until_broken},
    },
    neighbourhood::{Neighbourhood, Plan},
    process::missing_program,
    scene::Scene,
};
use reconst::{
    accounts::{Accounts, Limits, Quota},
    provision::Registrar,
};
use shared::{
    community::quota::{Counts, Used},
    target::Target,
    units::{Rate, Size},
};
use tokio::{net::UdpSocket, sync::broadcast, task::JoinSet};

use crate::{name, now, wait_until};

/// Runs flows into a quota and prints what arrived.
pub(crate) async fn overshoot(flows: &[usize], quota: Size) -> anyhow::Result<()> {
    println!("| flows | way | quota | arrived | beyond | counted, not arrived |\n| --- | --- | --- | --- | --- | --- |");
    let mut neighbourhood = wide().await?;
    for &flows in flows {
        for counts in [Counts::Down, Counts::Up, Counts::Both] {
            streams(&mut neighbourhood, flows, counts, quota, None).await?;
        }
    }
    for flows in [1, 50] {
        for counts in [Counts::Down, Counts::Up] {
            datagrams(&neighbourhood, flows, counts, quota).await?;
        }
    }
    for counts in [Counts::Down, Counts::Up] {
        streams(&mut neighbourhood, 50, counts, quota, Some(RATE)).await?;
    }
    neighbourhood.stop().await
}

async fn wide() -> anyhow::Result<Neighbourhood> {
    let scene = Scene::parse("wide", "description = 'One wide line.'\n[[line]]\ndown = '1G'\nup = '1G'\nrtt-ms = 4\n")?;
    Neighbourhood::start(Plan::new(scene)).await
}

/// TCP flows; with a rate, the relay is killed and started again meanwhile, so that all paths are lost and come back.
async fn streams(neighbourhood: &mut Neighbourhood, flows: usize, counts: Counts, quota: Size, rate: Option<Rate>) -> anyhow::Result<()> {
    let before = begin(neighbourhood, counts, quota, rate).await?;
    let client = neighbourhood.client();
    let uploaded_bytes = Arc::new(AtomicU64::new(0));
    let uploads = tokio::spawn(uploaded(neighbourhood.content().endings(), uploaded_bytes.clone()));
    let down_bytes = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for number in 0..flows {
        let is_down = counts == Counts::Down || counts == Counts::Both && number % 2 == 0;
        tasks.spawn(flow(client.clone(), is_down, down_bytes.clone()));
    }
    let (mut up_bytes, mut reconnects) = (0, 0);
    loop {
        tokio::select! {
            done = tasks.join_next() => match done {
                Some(command_bytes) => up_bytes += command_bytes?,
                None => break,
            },
            () = tokio::time::sleep(RECONNECTED_EVERY), if rate.is_some() => {
                neighbourhood.kill_relay(0).await;
                neighbourhood.start_relay(0).await?;
                reconnects += 1;
            }
        }
    }
    tokio::time::sleep(SETTLED).await;
    if uploads.is_finished() {
        uploads.await??;
    } else {
        uploads.abort();
    }
    up_bytes += uploaded_bytes.load(Ordering::Relaxed);
    let arrived = Used { up: up_bytes, down: down_bytes.load(Ordering::Relaxed) };
    let what = if rate.is_some() { format!("{flows}, {reconnects} times all paths lost") } else { flows.to_string() };
    end(neighbourhood, &what, counts, quota, before, arrived).await
}

/// Adds what the content server has of each upload that ends, its command included, for ever.
async fn uploaded(mut endings: broadcast::Receiver<Ending>, bytes: Arc<AtomicU64>) -> anyhow::Result<()> {
    loop {
        let ending = endings.recv().await?;
        anyhow::ensure!(ending.is_exact, "a byte was wrong");
        bytes.fetch_add(ending.bytes + UPLOAD.len() as u64, Ordering::Relaxed);
    }
}

/// Moves bytes until the flow is broken; notes what came down, gives the length of the command of a download that came to something.
async fn flow(client: Client, is_down: bool, down_bytes: Arc<AtomicU64>) -> u64 {
    let Ok(socket) = client.ask(if is_down { DOWNLOAD } else { UPLOAD }).await else { return 0 };
    let came_down = move_until_broken(socket, is_down, &down_bytes).await;
    if is_down && came_down > 0 { DOWNLOAD.len() as u64 } else { 0 }
}

/// UDP flows, their datagrams paced so that the sockets on the way have room.
async fn datagrams(neighbourhood: &Neighbourhood, flows: usize, counts: Counts, quota: Size) -> anyhow::Result<()> {
    let before = begin(neighbourhood, counts, quota, None).await?;
    let server = Arc::new(UdpSocket::bind((neighbourhood.content().address().ip(), 0)).await?);
    let target: Target = server.local_addr()?.into();
    let (arrived, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut associations = Vec::new();
    for _ in 0..flows {
        associations.push(Arc::new(Association::begin(neighbourhood.proxy().address()).await?));
    }
    let mut tasks = JoinSet::new();
    let mut up_bytes = 0;
    if counts == Counts::Down {
        let mut ports: Vec<SocketAddr> = Vec::new();
        for association in &associations {
            association.send(&target, b"x").await?;
            let mut byte = [0; 8];
            ports.push(tokio::time::timeout(SILENCE, server.recv_from(&mut byte)).await??.1);
            up_bytes += 1;
            let (association, arrived) = (association.clone(), arrived.clone());
            tasks.spawn(async move {
                while let Ok((_, datagram)) = association.receive().await {
                    arrived.fetch_add(datagram.len() as u64, Ordering::Relaxed);
                }
            });
        }
        let (server, is_over) = (server.clone(), is_over.clone());
        tasks.spawn(paced(is_over, move |number| {
            let (server, port) = (server.clone(), ports[number % ports.len()]);
            async move { drop(server.send_to(&[7; DATAGRAM_BYTES], port).await) }
        }));
    } else {
        let (server, counted) = (server.clone(), arrived.clone());
        tasks.spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((len, _)) = server.recv_from(&mut buffer).await {
                counted.fetch_add(len as u64, Ordering::Relaxed);
            }
        });
        tasks.spawn(paced(is_over.clone(), move |number| {
            let (association, target) = (associations[number % associations.len()].clone(), target.clone());
            async move { drop(association.send(&target, &[7; DATAGRAM_BYTES]).await) }
        }));
    }
    let mut seen = (0, Instant::now());
    while seen.1.elapsed() < SILENCE {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = arrived.load(Ordering::Relaxed);
        if now != seen.0 {
            seen = (now, Instant::now());
        }
    }
    is_over.store(true, Ordering::Relaxed);
    tasks.shutdown().await;
    tokio::time::sleep(SETTLED).await;
    let arrived = arrived.load(Ordering::Relaxed);
    let arrived = if counts == Counts::Down { Used { up: up_bytes, down: arrived } } else { Used { up: arrived, down: 0 } };
    end(neighbourhood, &format!("{flows} of UDP"), counts, quota, before, arrived).await
}

/// Sends some datagrams each millisecond until it is over.
async fn paced<F: Future<Output = ()>>(is_over: Arc<AtomicBool>, send: impl Fn(usize) -> F) {
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let mut number = 0;
    while !is_over.load(Ordering::Relaxed) {
        ticks.tick().await;
        for _ in 0..DATAGRAMS_A_MILLISECOND {
            send(number).await;
            number += 1;
        }
    }
}

/// Downloads through the programs as processes, `reconst` killed with SIGKILL again and again meanwhile.
pub(crate) async fn killed(quota: Size) -> anyhow::Result<()> {
    if let Some(what) = missing_program() {
        println!("nothing is killed: {what}");
        return Ok(());
    }
    let mut programs = Tributary::start(tributary::Size { users: 1, proxies: 1, relays: 1 }).await?;
    let registrar = Registrar::open(&programs.state()).await?;
    let accounts = registrar.accounts();
    let limits = limits(Counts::Down, quota.bytes, Some(RATE));
    let account = accounts.user(&name("elm")?, &name("user0")?).await?.account;
    accounts.set_limits(account, &limits).await?;
    tokio::time::sleep(SETTLED).await;
    let (client, arrived) = (programs.client_of(programs.proxies()[0]), Arc::new(AtomicU64::new(0)));
    let is_over = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let (client, arrived, is_over) = (client.clone(), arrived.clone(), is_over.clone());
        tasks.spawn(async move {
            while !is_over.load(Ordering::Relaxed) {
                if flow(client.clone(), true, arrived.clone()).await == 0 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
    }
    let used_up_to = async |bytes| {
        let begun = Instant::now();
        while used(accounts, "user0").await?.down < bytes {
            anyhow::ensure!(begun.elapsed() < USED_WITHIN, "{bytes} bytes are never used");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::Ok(())
    };
    // In mid-transfer: at a quarter, a half, three quarters.
    for kill in 1..=KILLS {
        used_up_to(quota.bytes * u64::from(kill) / u64::from(KILLS + 1)).await?;
        programs.restart_reconst()?;
    }
    used_up_to(quota.bytes).await?;
    is_over.store(true, Ordering::Relaxed);
    tasks.shutdown().await;
    tokio::time::sleep(SETTLED).await;
    let (arrived, counted) = (arrived.load(Ordering::Relaxed), used(accounts, "user0").await?.down);
    println!("| flows | way | quota | arrived | beyond | counted, not arrived |\n| --- | --- | --- | --- | --- | --- |");
    row(&format!("20 at {RATE}, {KILLS} times kill -9 of reconst"), Counts::Down, quota, arrived, counted);
    let lost = arrived.saturating_sub(counted) as f64 * 8.0 / RATE.bits_per_second as f64 / f64::from(KILLS);
    println!("a kill lost {lost:.2} s of counting on average, on the user's side");
    Ok(())
}

/// Sets a quota beyond what is used, and waits until it holds; gives what is used.
async fn begin(neighbourhood: &Neighbourhood, counts: Counts, quota: Size, rate: Option<Rate>) -> anyhow::Result<u64> {
    let accounts = neighbourhood.registrar().accounts();
    let before = counted(counts, used(accounts, "user1").await?);
    let account = accounts.user(&name("elm")?, &name("user1")?).await?.account;
    accounts.set_limits(account, &limits(counts, before + quota.bytes, rate)).await?;
    wait_until("the quota holds", || {
        let shown = neighbourhood.reconst().map(|reconst| reconst.status()["accounts"][0]["quota_bytes"].as_u64());
        shown.flatten().is_none_or(|shown| shown == before + quota.bytes)
    })
    .await?;
    Ok(before)
}

async fn end(neighbourhood: &Neighbourhood, what: &str, counts: Counts, quota: Size, before: u64, arrived: Used) -> anyhow::Result<()> {
    let after = counted(counts, used(neighbourhood.registrar().accounts(), "user1").await?);
    row(what, counts, quota, counted(counts, arrived), after - before);
    Ok(())
}

fn row(what: &str, counts: Counts, quota: Size, arrived: u64, counted: u64) {
    let (beyond, undelivered) = (arrived.saturating_sub(quota.bytes), counted.saturating_sub(arrived));
    println!("| {what} | {counts} | {quota} | {arrived} | {beyond} | {undelivered} |");
}

fn limits(counts: Counts, bytes: u64, rate: Option<Rate>) -> Limits {
    let quota = Some(Quota { counts, ..Quota::of(Size { bytes }) });
    Limits { quota, rate_up: rate, rate_down: rate, ..Limits::default() }
}

fn counted(counts: Counts, used: Used) -> u64 {
    Quota { counts, ..Quota::of(Size { bytes: 1 }) }.counted(used)
}

async fn used(accounts: &Accounts, user: &str) -> anyhow::Result<Used> {
    let report = accounts.user_report(&name("elm")?, &name(user)?, now()).await?;
    Ok(Used { up: report.up_bytes, down: report.down_bytes })
}

/// So that the quota lasts for some reconnects and kills.
const RATE: Rate = Rate { bits_per_second: 40_000_000 };
const RECONNECTED_EVERY: Duration = Duration::from_secs(2);
const KILLS: u32 = 3;
/// Far longer than a relay and a proxy need to find that reconst is another.
const USED_WITHIN: Duration = Duration::from_secs(60);

const DATAGRAM_BYTES: usize = 1000;
const DATAGRAMS_A_MILLISECOND: usize = 10;

/// After which nothing more arrives.
const SILENCE: Duration = Duration::from_secs(3);

/// For counts to be kept, and endings to be told.
const SETTLED: Duration = Duration::from_millis(1500);
