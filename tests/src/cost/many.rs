//! Many idle flows, many sessions: what they take of `reconst`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use reconst::{accounts::Limits, provision::Registrar};
use shared::service::Shutdown;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::tributary::{Size, Tributary};
use crate::{bench::Reading, neighbourhood::proxy_config};

/// Opens so many flows, sends a small request on each, and lets them idle; memory of `reconst` before and with them.
///
/// # Errors
/// If a flow does not open.
pub async fn idle_flows(count: usize) -> anyhow::Result<Vec<Reading>> {
    raise_open_files_limit(count + 1000)?;
    let proxies = count.div_ceil(FLOWS_A_PROXY);
    let tributary = Tributary::start(Size { users: proxies, proxies, relays: 2 }).await?;
    let before = tributary.reconst().resident_bytes()?;
    let start = Instant::now();
    let mut flows: Vec<TcpStream> = Vec::with_capacity(count);
    while flows.len() < count {
        let mut opening = JoinSet::new();
        for number in flows.len()..count.min(flows.len() + FLOWS_AT_ONCE) {
            let client = tributary.client_of(tributary.proxies()[number % proxies]);
            opening.spawn(async move {
                let mut flow = client.ask("R 1 1000\n").await?;
                flow.write_u8(0).await?;
                flow.read_exact(&mut [0; 1000]).await?;
                anyhow::Ok(flow)
            });
        }
        while let Some(opened) = opening.join_next().await {
            flows.push(opened??);
        }
    }
    let opened_in = start.elapsed();
    tokio::time::sleep(SETTLE).await;
    let with = tributary.reconst().resident_bytes()?;
    drop(flows);
    tokio::time::sleep(SETTLE).await;
    let after = tributary.reconst().resident_bytes()?;
    Ok(vec![
        Reading { figure: "memory before flows", unit: "MB", value: before as f64 / 1e6 },
        Reading { figure: "memory with idle flows", unit: "MB", value: with as f64 / 1e6 },
        Reading { figure: "memory of an idle flow", unit: "kB", value: with.saturating_sub(before) as f64 / 1e3 / count as f64 },
        Reading { figure: "memory after flows", unit: "MB", value: after as f64 / 1e6 },
        Reading { figure: "flows opened in", unit: "s", value: opened_in.as_secs_f64() },
    ])
}

/// Brings up so many sessions of two paths each, their proxies in this process, and makes a request over each.
///
/// # Errors
/// If a session does not come up within [`SESSIONS_TIME`], or a request fails.
pub async fn sessions(count: usize) -> anyhow::Result<Vec<Reading>> {
    raise_open_files_limit(8 * count + 1000)?;
    let users = count.div_ceil(SESSIONS_A_USER);
    let tributary = Tributary::start(Size { users, proxies: 0, relays: 2 }).await?;
    let before = (tributary.reconst().resident_bytes()?, tributary.reconst().processor_time()?);
    let start = Instant::now();
    let shutdown = Shutdown::new();
    let mut proxies: Vec<proxy_local::Running> = Vec::with_capacity(count);
    for number in 0..count {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let user = &tributary.users()[number % users];
        let config = proxy_config(user, listen, tributary.relays(), Default::default());
        proxies.push(proxy_local::start(config, shutdown.clone()).await?);
    }
    loop {
        let waiting = proxies.iter().filter(|proxy| active_paths(proxy) < tributary.relays().len()).count();
        if waiting == 0 {
            break;
        }
        ensure!(start.elapsed() < SESSIONS_TIME, "{waiting} of {count} sessions lack a path after {} s", SESSIONS_TIME.as_secs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let up_in = start.elapsed();
    let with = (tributary.reconst().resident_bytes()?, tributary.reconst().processor_time()?);
    let start = Instant::now();
    let mut requests = JoinSet::new();
    for proxy in &proxies {
        let client = tributary.client_of(proxy.listen_addresses()[0]);
        requests.spawn(async move { client.fresh_request(16_000).await });
    }
    while let Some(request) = requests.join_next().await {
        request?.context("a session does not serve")?;
    }
    let served_in = start.elapsed();
    let change = time_of_a_change(&tributary).await?;
    Ok(vec![
        Reading { figure: "sessions up in", unit: "s", value: up_in.as_secs_f64() },
        Reading { figure: "a request over each in", unit: "s", value: served_in.as_secs_f64() },
        Reading { figure: "reconst's time a session", unit: "ms", value: (with.1 - before.1).as_secs_f64() * 1e3 / count as f64 },
        Reading { figure: "memory of a session", unit: "kB", value: with.0.saturating_sub(before.0) as f64 / 1e3 / count as f64 },
        Reading { figure: "reconst's time for a user who is added", unit: "ms", value: change.as_secs_f64() * 1e3 },
    ])
}

/// What `reconst` takes of the processor for a change that touches nobody who is here, beside what it takes anyhow.
async fn time_of_a_change(tributary: &Tributary) -> anyhow::Result<Duration> {
    let registrar = Registrar::open(&tributary.state()).await?;
    tokio::time::sleep(SETTLE).await;
    let idle = tributary.reconst().processor_time()?;
    tokio::time::sleep(BETWEEN_CHANGES * CHANGES).await;
    let before = tributary.reconst().processor_time()?;
    let mut times = tokio::time::interval(BETWEEN_CHANGES);
    for number in 0..CHANGES {
        times.tick().await;
        registrar.add_user(&"elm".parse()?, &format!("new{number}").parse()?, &Limits::default()).await?;
    }
    times.tick().await;
    let after = tributary.reconst().processor_time()?;
    Ok((after - before).saturating_sub(before - idle) / CHANGES)
}

fn active_paths(proxy: &proxy_local::Running) -> usize {
    proxy.status().paths.iter().filter(|path| path.state == "active").count()
}

fn raise_open_files_limit(wanted: usize) -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let wanted = wanted as u64;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    raised.with_context(|| format!("this needs {wanted} open files: raise the limit (`ulimit -n`)"))
}

const CHANGES: u32 = 5;
const BETWEEN_CHANGES: Duration = Duration::from_secs(2);
/// Below a session's limit of 4,096.
const FLOWS_A_PROXY: usize = 3_500;
/// So many flows open at once: enough to be quick, few enough for a listener's backlog.
const FLOWS_AT_ONCE: usize = 100;
/// For windows, timers and allocators to come to rest.
const SETTLE: Duration = Duration::from_secs(3);
/// Below a user's limit of 32.
const SESSIONS_A_USER: usize = 25;
const SESSIONS_TIME: Duration = Duration::from_secs(120);
