//! What a user may spend: held to the byte however many flows and PCs ask, refused with a reason, changed while flows go on, and kept
//! across restarts.

mod common;

use common::{progress, scene_of, until, within};
use neighbourhood::{
    content::add_it_up::AddItUp,
    load::{ConnectError, LoadError, Via, associate::Association},
    neighbourhood::{Neighbourhood, Plan},
};
use reconst::accounts::{Limits, Quota, users::Listed};
use shared::{
    community::{
        member::Name,
        quota::{Counts, Earning},
    },
    units::Size,
};
use tokio::{io::AsyncReadExt, task::JoinSet};

#[tokio::test]
async fn fifty_flows_both_ways_get_no_byte_more_than_the_quota() {
    let neighbourhood = neighbourhood().await;
    set(&neighbourhood, quota(QUOTA, Counts::Both)).await;
    let client = neighbourhood.client();
    let mut flows = JoinSet::new();
    for number in 0..50 {
        let client = client.clone();
        flows.spawn(async move {
            if number % 2 == 0 { client.download(QUOTA, number).await.map(drop) } else { client.upload(QUOTA, number).await }
        });
    }
    while let Some(flow) = within(flows.join_next()).await {
        flow.expect("no panic").expect_err("more than the quota");
    }
    let used = kept(&neighbourhood, |used| used == QUOTA).await;
    assert!(client.carried() <= used, "{} arrived of {used} counted", client.carried());

    // A target that was reached lately is taken for reachable, once.
    client.download(1, 0).await.expect_err("nothing is left");
    let socks = client.download(1, 0).await.expect_err("nothing is left");
    assert!(matches!(socks, LoadError::Connect(ConnectError::Socks(NOT_ALLOWED))), "{socks}");
    let page = page(&neighbourhood).await;
    assert!(page.contains("the 4.0 MB that you may use are used up; the count begins anew on 20"), "{page}");
}

#[tokio::test]
async fn only_the_direction_that_a_quota_counts_is_counted() {
    let neighbourhood = neighbourhood().await;
    set(&neighbourhood, quota(QUOTA, Counts::Down)).await;
    let client = neighbourhood.client();
    within(client.upload(2 * QUOTA, 1)).await.expect("uploads are not counted");
    let error = within(client.download(2 * QUOTA, 1)).await.expect_err("more than the quota");
    assert!(matches!(error, LoadError::Broken(bytes, _) if bytes <= QUOTA), "{error}");
    kept(&neighbourhood, |used| used >= 3 * QUOTA).await;
    let user = report(&neighbourhood).await;
    assert!(user.down_bytes == QUOTA && user.used_percent == Some(100), "{user:?}");
}

#[tokio::test]
async fn what_the_operator_changes_holds_for_flows_that_are_open() {
    let neighbourhood = neighbourhood().await;
    let client = neighbourhood.client();
    let download = tokio::spawn({
        let client = client.clone();
        async move { client.download(1 << 40, 1).await }
    });
    progress(&client, 100_000).await;
    set(&neighbourhood, quota(1, Counts::Both)).await;
    within(download).await.expect("no panic").expect_err("the quota was used up before it was set");
    within(client.download(1, 1)).await.expect_err("nothing is left");
    set(&neighbourhood, Limits::default()).await;
    within(async { while client.download(100_000, 1).await.is_err() {} }).await;
}

#[tokio::test]
async fn all_pcs_of_a_user_share_one_count_of_flows() {
    let neighbourhood = neighbourhood().await;
    let other = neighbourhood.add_proxy(neighbourhood.user(), &[0]).await.expect("another PC");
    within(other.wait_for_paths(1)).await.expect("a path");
    set(&neighbourhood, Limits { max_flows: Some(1), ..Limits::default() }).await;
    let (client, other_client) = (neighbourhood.client(), neighbourhood.client_of(Via::Socks5(other.address())));
    let open = within(client.ask("R 1 1\n")).await.expect("the first flow");
    let refused = || async { matches!(other_client.fresh_request(1).await, Err(LoadError::Connect(ConnectError::Socks(NOT_ALLOWED)))) };
    within(async { while !refused().await {} }).await;
    drop(open);
    within(async { while other_client.fresh_request(1).await.is_err() {} }).await;
}

#[tokio::test]
async fn users_of_two_lans_who_are_one_person_share_an_account() {
    let neighbourhood = neighbourhood().await;
    let (registrar, elm) = (neighbourhood.registrar(), name("elm"));
    registrar.add_lan(&name("oak"), None, None).await.expect("a LAN");
    registrar.add_user(&name("oak"), &name("user1"), &Limits::default()).await.expect("a user");
    let accounts = registrar.accounts();
    accounts.share_account(&elm, &name("user1"), (&name("oak"), &name("user1"))).await.expect("two users");
    let at_oak = accounts.user(&name("oak"), &name("user1")).await.expect("a user");
    accounts.set_limits(at_oak.account, &quota(QUOTA, Counts::Both)).await.expect("an account");
    let client = neighbourhood.client();
    within(async { while client.download(100_000, 1).await.is_ok() {} }).await;
    kept(&neighbourhood, |used| used >= QUOTA - 100_000).await;
    let oak = accounts.user_report(&name("oak"), &name("user1"), now()).await.expect("a user");
    assert_eq!(oak.up_bytes + oak.down_bytes, report(&neighbourhood).await.up_bytes + report(&neighbourhood).await.down_bytes);
}

#[tokio::test]
async fn what_a_lan_may_spend_is_used_up_by_all_its_users() {
    let neighbourhood = neighbourhood().await;
    let registrar = neighbourhood.registrar();
    let other = registrar.add_user(&name("elm"), &name("user2"), &Limits::default()).await.expect("a user");
    let other = neighbourhood.add_proxy(&other, &[0]).await.expect("another user");
    within(other.wait_for_paths(1)).await.expect("a path");
    let limits = Limits { rate_down: Some("50M".parse().expect("a rate")), ..quota(QUOTA, Counts::Both) };
    registrar.accounts().set_lan_limits(&name("elm"), &limits).await.expect("a LAN");
    until("the change holds", || {
        neighbourhood.reconst().expect("it runs").status()["lan_accounts"][0]["quota_bytes"].as_u64() == Some(QUOTA)
    })
    .await;
    let (client, other_client) = (neighbourhood.client(), neighbourhood.client_of(Via::Socks5(other.address())));
    let (one, two) = within(async { tokio::join!(client.download(QUOTA, 1), other_client.download(QUOTA, 2)) }).await;
    assert!(one.is_err() && two.is_err(), "{one:?} {two:?}");
    let arrived = client.carried() + other_client.carried();
    assert!((1..=QUOTA).contains(&arrived) && other_client.carried() > 0, "{arrived} of {QUOTA}");
    let page = used_up_page(&neighbourhood).await;
    assert!(page.contains("the 4.0 MB that your LAN may use are used up"), "{page}");
}

#[tokio::test]
async fn a_quota_grows_by_what_the_user_s_relay_carries_for_others() {
    let neighbourhood = neighbourhood().await;
    let (registrar, elm, lender) = (neighbourhood.registrar(), name("elm"), name("user1"));
    let other = registrar.add_user(&elm, &name("user2"), &Limits::default()).await.expect("a user");
    let other = neighbourhood.add_proxy(&other, &[0]).await.expect("another user");
    within(other.wait_for_paths(1)).await.expect("a path");
    registrar.accounts().set_owner(&elm, &name("relay1"), Some(&lender)).await.expect("a relay and a user");
    let earning = Some(Earning { percent: "50%".parse().expect("a part"), at_most: None });
    let quota = Quota { counts: Counts::Down, earning, ..Quota::of(Size { bytes: QUOTA }) };
    set(&neighbourhood, Limits { quota: Some(quota), ..Limits::default() }).await;
    let (client, other_client) = (neighbourhood.client(), neighbourhood.client_of(Via::Socks5(other.address())));
    within(client.download(2 * QUOTA, 1)).await.expect_err("more than the quota, over the own relay");
    within(client.download(1, 1)).await.expect_err("nothing is left");

    within(other_client.download(QUOTA / 2, 2)).await.expect("no limits");
    let earned = within(async {
        loop {
            let user2 = registrar.accounts().user_report(&elm, &name("user2"), now()).await.expect("a user");
            let earned = report(&neighbourhood).await.earned_bytes.expect("it earns");
            // What is lent and what is used reach the store apart, either first.
            assert!(earned <= QUOTA / 4, "{earned} by no more than {}", QUOTA / 2);
            if user2.down_bytes >= QUOTA / 2 && earned == user2.down_bytes / 2 {
                break earned;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    within(async { while client.download(1000, 1).await.is_err() {} }).await;
    within(client.download(QUOTA, 1)).await.expect_err("more than was earned");
    let used = kept(&neighbourhood, |used| used >= QUOTA + earned).await;
    let user = report(&neighbourhood).await;
    assert!(user.down_bytes == QUOTA + earned && user.used_percent == Some(100), "{user:?}, {used} up and down");
    let page = used_up_page(&neighbourhood).await;
    assert!(page.contains("the 5.0 MB that you may use for downloads, 1.0 MB of them earned by lending, are used up"), "{page}");
}

#[tokio::test]
async fn the_user_is_told_how_much_is_used() {
    let neighbourhood = neighbourhood().await;
    set(&neighbourhood, quota(QUOTA, Counts::Down)).await;
    let told = || neighbourhood.proxy().status().known.quotas.first().map(|quota| (quota.quota_bytes, quota.used_percent));
    until("the quota is told", || told() == Some((QUOTA, 0))).await;
    within(neighbourhood.client().download(QUOTA * 85 / 100, 1)).await.expect("within the quota");
    until("its use is told", || told() == Some((QUOTA, 85))).await;
    set(&neighbourhood, Limits::default()).await;
    until("that there is none is told", || told().is_none()).await;
}

#[tokio::test]
async fn datagrams_count_both_ways_and_stop_at_the_quota() {
    let neighbourhood = neighbourhood().await;
    let socket = tokio::net::UdpSocket::bind((neighbourhood.content().address().ip(), 0)).await.expect("a port");
    let server = AddItUp::start(socket).expect("a server");
    let association = within(Association::begin(neighbourhood.proxy().address())).await.expect("an association");
    association.send(&server.address().into(), b"44").await.expect("sent");
    let (_, answer) = within(association.receive()).await.expect("an answer");
    assert_eq!(answer, b"-44");
    assert_eq!(kept(&neighbourhood, |used| used > 0).await, 5);
    set(&neighbourhood, quota(7, Counts::Both)).await;
    // A datagram that is beyond the quota ends its flow, and does not get through.
    association.send(&server.address().into(), b"18000").await.expect("sent");
    until("the flow is over", || neighbourhood.reconst().is_some_and(|reconst| reconst.sessions().dedicated_ports().report().is_empty()))
        .await;
    assert_eq!(kept(&neighbourhood, |_| true).await, 5);
}

#[tokio::test]
async fn counts_outlive_a_kill_and_a_restart() {
    let mut neighbourhood = neighbourhood().await;
    set(&neighbourhood, quota(QUOTA, Counts::Both)).await;
    let client = neighbourhood.client();
    within(client.download(QUOTA / 2, 1)).await.expect("half of the quota");
    kept(&neighbourhood, |used| used >= QUOTA / 2).await;
    neighbourhood.kill_reconst().await;
    within(neighbourhood.start_reconst()).await.expect("it starts");
    within(async { while client.fresh_request(1).await.is_err() {} }).await;
    let before = client.carried();
    within(client.download(QUOTA, 2)).await.expect_err("half of the quota is left");
    assert!(client.carried() - before <= QUOTA / 2, "{} of {}", client.carried() - before, QUOTA / 2);
    within(neighbourhood.stop()).await.expect("it ends in order");
}

async fn neighbourhood() -> Neighbourhood {
    let scene = scene_of("[[line]]\ndown = '200M'\nup = '200M'\nrtt-ms = 4\n");
    within(Neighbourhood::start(Plan::new(scene))).await.expect("a neighbourhood")
}

async fn user(neighbourhood: &Neighbourhood) -> Listed {
    neighbourhood.registrar().accounts().user(&name("elm"), &name("user1")).await.expect("the user")
}

async fn report(neighbourhood: &Neighbourhood) -> reconst::accounts::report::UserReport {
    neighbourhood.registrar().accounts().user_report(&name("elm"), &name("user1"), now()).await.expect("the user")
}

/// Sets limits, and waits until the running `reconst` goes by them.
async fn set(neighbourhood: &Neighbourhood, limits: Limits) {
    let account = user(neighbourhood).await.account;
    neighbourhood.registrar().accounts().set_limits(account, &limits).await.expect("an account");
    let expected = limits.quota.map(|quota| quota.size.bytes);
    until("the change holds", || {
        let accounts = neighbourhood.reconst().expect("it runs").status()["accounts"].clone();
        accounts[0]["quota_bytes"].as_u64() == expected && accounts[0]["max_flows"].as_u64() == limits.max_flows.map(u64::from)
    })
    .await;
}

/// The bytes that the store has counted, once they are as wanted.
async fn kept(neighbourhood: &Neighbourhood, is_wanted: impl Fn(u64) -> bool) -> u64 {
    within(async {
        loop {
            let user = report(neighbourhood).await;
            let used = user.up_bytes + user.down_bytes;
            if is_wanted(used) {
                return used;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
}

/// What a browser is shown once it is refused: a target that was reached lately is taken for reachable, once.
async fn used_up_page(neighbourhood: &Neighbourhood) -> String {
    within(async {
        loop {
            let page = page(neighbourhood).await;
            if page.contains("used up") {
                break page;
            }
        }
    })
    .await
}

/// What a browser is shown.
async fn page(neighbourhood: &Neighbourhood) -> String {
    let mut socket = tokio::net::TcpStream::connect(neighbourhood.proxy().address()).await.expect("a proxy");
    let content = neighbourhood.content().address();
    let request = format!("GET http://{content}/ HTTP/1.1\r\nHost: {content}\r\nAccept: text/plain\r\nConnection: close\r\n\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut socket, request.as_bytes()).await.expect("sent");
    let mut page = String::new();
    within(socket.read_to_string(&mut page)).await.expect("a page");
    page
}

fn quota(bytes: u64, counts: Counts) -> Limits {
    Limits { quota: Some(Quota { counts, ..Quota::of(Size { bytes }) }), ..Limits::default() }
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn now() -> shared::community::quota::UnixSeconds {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock after 1970");
    shared::community::quota::UnixSeconds(since.as_secs() as i64)
}

/// RFC 1928 §6: not allowed by ruleset.
const NOT_ALLOWED: u8 = 2;
const QUOTA: u64 = 4_000_000;
