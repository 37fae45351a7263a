//! What a member database costs: to fill, to ask, to list by the API, to keep counts in, to follow changes of, to start from.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use reconst::{
    accounts::{Accounts, Limits, Member, MemberId, Quota, Spender, registry::IssuedTo},
    provision::{DEFAULT_LOGIN_PORT, Registrar},
    quota::{Keeper, Spending},
};
use shared::{
    community::{
        member::{Identity, Name, Role},
        quota::{Period, Used},
    },
    ids::LanId,
    service::Shutdown,
    target::Host,
    units::Size,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Arguments, name, now};

/// Fills a database, and prints what it costs.
pub(crate) async fn members(arguments: &Arguments) -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let state = scratch.path().join("state");
    let host = Host::parse("127.0.0.1")?;
    let registrar = Registrar::init_with(&state, &[host], DEFAULT_LOGIN_PORT, arguments.database.as_ref()).await?;
    let accounts = registrar.accounts();
    let begun = Instant::now();
    let users = fill(&registrar, arguments).await?;
    println!(
        "{} users and {} relays in {} LANs; a member added in {:?}",
        users.len(),
        users.len() / USERS_PER_RELAY,
        arguments.lans,
        each(begun, users.len() + users.len() / USERS_PER_RELAY)
    );
    let begun = Instant::now();
    for number in 0..LOOKUPS {
        user(accounts, number * 7919 % users.len()).await?;
    }
    println!("login: {:?} each", each(begun, LOOKUPS));
    let month = Period::default().span(now(), now()).start;
    let counts: Vec<_> = users.iter().map(|user| (Spender::User(*user), month, Used { up: 1, down: 2 })).collect();
    for round in ["first", "again"] {
        let begun = Instant::now();
        accounts.keep_used(&counts).await?;
        println!("counts of {} users kept, {round}: {:?}", counts.len(), begun.elapsed());
    }
    follow(accounts, users.len()).await?;
    accounts.close().await;
    serve(&state).await
}

/// LANs, users with a certificate and a quota each, and a relay of every tenth user's.
async fn fill(registrar: &Registrar, arguments: &Arguments) -> anyhow::Result<Vec<MemberId>> {
    for number in 1..=arguments.lans {
        registrar.add_lan(&name(&format!("lan{number}"))?, Some(LanId(number)), None).await?;
    }
    let accounts = registrar.accounts();
    let limits = Limits { quota: Some(Quota::of(Size { bytes: QUOTA_BYTES })), ..Limits::default() };
    let expires_at = time::OffsetDateTime::now_utc() + time::Duration::days(1);
    let mut users = Vec::new();
    for number in 0..arguments.users {
        let id = LanId(1 + (number % usize::from(arguments.lans)) as u16);
        let (lan, user) = (name(&format!("lan{}", id.0))?, name(&format!("user{number}"))?);
        let identity = Identity { name: user.clone(), role: Role::User, lan: id };
        users.push(accounts.add_member(&lan, &identity, &limits, IssuedTo { der: &certificate(number), expires_at }).await?);
        if (number + 1) % USERS_PER_RELAY == 0 {
            let relay: Name = name(&format!("relay{number}"))?;
            let (identity, der) = (Identity { name: relay.clone(), role: Role::Relay, lan: id }, format!("certificate of {relay}"));
            accounts.add_member(&lan, &identity, &Limits::default(), IssuedTo { der: der.as_bytes(), expires_at }).await?;
            accounts.set_owner(&lan, &relay, Some(&user)).await?;
        }
    }
    Ok(users)
}

/// Has all users here, changes the limits of one now and then, and prints how soon that holds, and what it takes of the processor beside
/// what these users take anyhow.
async fn follow(accounts: &Accounts, users: usize) -> anyhow::Result<()> {
    let keeper = Keeper::new(accounts.clone(), None, None);
    let mut spendings: Vec<(Member, Arc<Spending>)> = Vec::new();
    for number in 0..users {
        let member = user(accounts, number).await?;
        let spending = keeper.spending(&member).await?;
        spendings.push((member, spending));
    }
    let following = tokio::spawn({
        let accounts = accounts.clone();
        async move { accounts.follow_changes().await }
    });
    let keeping = tokio::spawn(keeper.run());
    tokio::time::sleep(BETWEEN_CHANGES * 2).await;
    let (begun, before) = (Instant::now(), processor_time()?);
    tokio::time::sleep(BETWEEN_CHANGES * CHANGES).await;
    let idle_a_second = (processor_time()? - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    let (begun, before, mut held_after) = (Instant::now(), processor_time()?, Vec::new());
    for number in 0..CHANGES {
        let (member, spending) = &spendings[number as usize * 7919 % users];
        let bytes = QUOTA_BYTES + 1 + u64::from(number);
        let limits = Limits { quota: Some(Quota::of(Size { bytes })), ..Limits::default() };
        let changed = Instant::now();
        accounts.set_limits(member.account, &limits).await?;
        while spending.told().first().is_none_or(|told| told.quota_bytes != bytes) {
            anyhow::ensure!(changed.elapsed() < Duration::from_secs(20), "a change holds in time");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        held_after.push(changed.elapsed());
        tokio::time::sleep(BETWEEN_CHANGES.saturating_sub(changed.elapsed())).await;
    }
    let a_second = (processor_time()? - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    held_after.sort();
    println!(
        "limits of one of {users} users who are here changed: held to within {:?} at the median, {:?} at the most; {:.1} ms of the processor a change",
        held_after[held_after.len() / 2],
        held_after.last().copied().unwrap_or_default(),
        (a_second - idle_a_second) * BETWEEN_CHANGES.as_secs_f64() * 1e3
    );
    following.abort();
    keeping.abort();
    Ok(())
}

/// Starts `reconst` with the database, and lists what is in it by the API.
async fn serve(state: &Path) -> anyhow::Result<()> {
    let mut config = reconst::Config::new(state, "127.0.0.1".parse()?);
    config.login_port_override = Some(0);
    config.has_ephemeral_data_ports = true;
    config.api = Some("127.0.0.1:0".parse()?);
    let shutdown = Shutdown::new();
    let begun = Instant::now();
    let running = reconst::start(config, shutdown.clone()).await?;
    println!("reconst started in {:?}", begun.elapsed());
    let token = std::fs::read_to_string(state.join("api-token"))?;
    let api = Client { address: running.api_addr().context("an API")?, token: token.trim().into() };
    for list in ["users", "lans", "relays", "audit"] {
        let (mut times, mut items, mut after) = (Vec::new(), 0, String::new());
        loop {
            let begun = Instant::now();
            let page = api.get(&format!("/v1/{list}?limit={PAGE}{after}")).await?;
            times.push(begun.elapsed());
            items += page["items"].as_array().context("a page")?.len();
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        let (first, last, whole) = (times[0], times[times.len() - 1], times.iter().sum::<Duration>());
        times.sort();
        let median = times[times.len() / 2];
        println!("{items} {list} in pages of {PAGE}: {median:?} a page, the first {first:?}, the last {last:?}; all {whole:?}");
    }
    shutdown.request();
    running.wait().await
}

struct Client {
    address: SocketAddr,
    token: String,
}

impl Client {
    async fn get(&self, path: &str) -> anyhow::Result<serde_json::Value> {
        let mut socket = TcpStream::connect(self.address).await?;
        let Self { address, token } = self;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        Ok(serde_json::from_str(body)?)
    }
}

async fn user(accounts: &Accounts, number: usize) -> anyhow::Result<Member> {
    accounts.authorise(&certificate(number).into(), Role::User).await.context("a member")
}

fn certificate(number: usize) -> Vec<u8> {
    format!("certificate of {number:>480}").into_bytes()
}

fn each(begun: Instant, count: usize) -> Duration {
    begun.elapsed() / u32::try_from(count.max(1)).unwrap_or(u32::MAX)
}

/// What this process took of the processor so far.
fn processor_time() -> anyhow::Result<Duration> {
    neighbourhood::process::processor_time("self")
}

const LOOKUPS: usize = 5_000;
const USERS_PER_RELAY: usize = 10;
const QUOTA_BYTES: u64 = 100_000_000_000;
const PAGE: usize = 100;
const CHANGES: u32 = 10;
const BETWEEN_CHANGES: Duration = Duration::from_millis(1500);
