//! A LAN that runs itself: relays are found, followed, left and weighed without anybody's doing.

mod common;

use std::time::{Duration, Instant};

use common::{progress, scene_of, unequal_scene, until, within};
use neighbourhood::{
    load::{Client, Via},
    neighbourhood::{Finding, Neighbourhood, Plan},
};
use peer_relay::{LineConfig, WanBinding};
use proxy_local::outbound::placed::Rule;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use shared::{
    community::{hello::LineNumber, profile::Profile, weight::Origin},
    ids::LanId,
    service::Shutdown,
};
use tokio::task::JoinSet;

#[tokio::test]
async fn one_relay_known_by_name_leads_to_all_by_way_of_reconst() {
    let neighbourhood = start(Plan { finding: Finding::Told, ..Plan::new(unequal_scene()) }).await;
    let known = neighbourhood.proxy().status().known;
    assert!(known.roster.iter().all(|line| line.source == "reconst"), "{known:?}");
    until("all relays are shown", || neighbourhood.proxy().status().known.roster.len() == 3).await;
    within(neighbourhood.client().download(1_000_000, 1)).await.unwrap();
}

#[tokio::test]
async fn relays_that_announce_themselves_are_found_and_followed_to_another_port() {
    let mut neighbourhood = start(Plan { finding: Finding::Heard, ..Plan::new(unequal_scene()) }).await;
    assert!(neighbourhood.proxy().status().known.roster.iter().any(|line| line.source == "lan"));
    let client = neighbourhood.client();
    let download = download(&client, 5_000_000, 3);
    progress(&client, 500_000).await;
    within(neighbourhood.stop_relay(1)).await.unwrap();
    neighbourhood.move_relay(1).unwrap();
    neighbourhood.start_relay(1).await.unwrap();
    let address = neighbourhood.relay_address(1);
    let is_followed = || neighbourhood.proxy().status().paths.iter().any(|path| path.route.address == address && path.state == "active");
    until("a path through the new port", is_followed).await;
    within(download).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_relay_that_stops_is_left_in_order_by_both_ends() {
    for finding in [Finding::Named, Finding::Heard] {
        let mut neighbourhood = start(Plan { finding, ..Plan::new(unequal_scene()) }).await;
        let client = neighbourhood.client();
        let download = download(&client, 6_000_000, 3);
        progress(&client, 1_000_000).await;
        let address = neighbourhood.relay_address(0);
        neighbourhood.drain_relay(0);
        let state = |neighbourhood: &Neighbourhood| {
            let paths = neighbourhood.proxy().status().paths;
            paths.into_iter().find(|path| path.route.address == address).map(|path| path.state)
        };
        until("the path is left", || state(&neighbourhood) == Some("leaving")).await;
        until("the path is gone", || state(&neighbourhood).is_none()).await;
        within(download).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_lan_that_moves_to_another_data_port_takes_its_flows_along() {
    let neighbourhood = start(Plan { finding: Finding::Told, ..Plan::new(unequal_scene()) }).await;
    let client = neighbourhood.client();
    let download = download(&client, 8_000_000, 3);
    progress(&client, 500_000).await;
    let before: Vec<_> = neighbourhood.proxy().status().paths.into_iter().map(|path| path.id).collect();
    let port = neighbourhood.move_data_port().await.unwrap();
    let are_moved = || {
        let paths = neighbourhood.proxy().status().paths;
        paths.len() == 3 && paths.iter().all(|path| path.state == "active" && !before.contains(&path.id))
    };
    until("all paths are made anew", are_moved).await;
    let relay = neighbourhood.relay_status(0).expect("it runs");
    assert_eq!(relay.lines[0].reconst.map(|address| address.port()), Some(port));
    within(download).await.unwrap().unwrap();
}

#[tokio::test]
async fn weights_are_measured_from_what_the_lines_carry() {
    let neighbourhood = start(Plan { finding: Finding::Told, measures: true, ..Plan::new(unequal_scene()) }).await;
    let client = neighbourhood.client();
    let weights = |neighbourhood: &Neighbourhood| {
        let of_relay = |index| neighbourhood.relay_status(index).expect("it runs").lines[0].weights.down;
        (0..3).map(of_relay).collect::<Vec<_>>()
    };
    assert!(weights(&neighbourhood).iter().all(|weight| weight.origin == Origin::Guessed));
    let endless = tokio::spawn({
        let client = client.clone();
        async move { client.download(u64::MAX / 2, 1).await }
    });
    until("each line's rate is measured", || weights(&neighbourhood).iter().all(|weight| weight.origin == Origin::Measured)).await;
    let told = || {
        let roster = neighbourhood.proxy().status().known.roster;
        roster.len() == 3 && roster.iter().all(|line| line.weights.down.origin == Origin::Measured)
    };
    until("the proxy is told", told).await;
    endless.abort();
}

#[tokio::test]
async fn twenty_relays_that_come_and_go_under_twenty_flows_change_no_byte() {
    let seconds = std::env::var("TRIBUTARY_CHURN_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    churn(Duration::from_secs(seconds)).await;
}

/// Twenty relays that join and leave at random, in order or by a power cut, under as many flows, half of them up and half down.
async fn churn(span: Duration) {
    let scene = scene_of("[[line]]\ncount = 20\ndown = '3M'\nup = '3M'\nrtt-ms = 10\n");
    let mut neighbourhood = start(Plan { finding: Finding::Told, relays_at_start: 10, ..Plan::new(scene) }).await;
    let seed = std::env::var("TRIBUTARY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| rand::rng().random());
    println!("TRIBUTARY_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let end = Instant::now() + span;
    let mut flows = JoinSet::new();
    for number in 0..20 {
        let client = neighbourhood.client();
        flows.spawn(async move {
            let mut transfers = 0;
            while Instant::now() < end {
                match number % 2 {
                    0 => drop(client.download(400_000, number + transfers).await?),
                    _ => client.upload(200_000, number + transfers).await?,
                }
                transfers += 1;
            }
            Ok::<_, neighbourhood::load::LoadError>(transfers)
        });
    }
    let mut runs = [true; 20];
    runs[10..].fill(false);
    let mut changes = 0;
    while Instant::now() < end {
        // The first one is the one that the proxy is told of: all others come from `reconst`.
        let index = random.random_range(1..20);
        match runs[index] {
            false => neighbourhood.start_relay(index).await.unwrap(),
            true if random.random_bool(0.5) => neighbourhood.kill_relay(index).await,
            true => neighbourhood.drain_relay(index),
        }
        runs[index] = !runs[index];
        changes += 1;
        tokio::time::sleep(Duration::from_millis(random.random_range(20..200))).await;
    }
    let mut transfers = 0;
    while let Some(flow) = tokio::time::timeout(Duration::from_secs(60), flows.join_next()).await.expect("flows end in time") {
        transfers += flow.unwrap().unwrap();
    }
    println!("{changes} changes under {transfers} transfers, all exact");
    assert!(transfers >= 20);
}

#[tokio::test]
async fn two_lans_on_one_wire_don_t_hear_each_other_and_a_member_of_both_uses_either() {
    let neighbourhood = start(Plan { finding: Finding::Heard, relays_at_start: 1, ..Plan::new(unequal_scene()) }).await;
    let (oak, member) = ("oak".parse().unwrap(), "user1".parse().unwrap());
    neighbourhood.add_lan(&oak, LanId(16)).await.unwrap();
    let relay = neighbourhood.registrar().add_relay(&oak, &"oak-pc".parse().unwrap()).await.unwrap();
    let mut config = peer_relay::Config::new(Profile { reconst: neighbourhood.relay_profile(1).reconst.clone(), ..relay });
    config.announce.multicast = false;
    config.announce.unicast = vec![neighbourhood.announce_address()];
    config.lines[0].lan_bind = Some(([127, 0, 0, 1], 0).into());
    let relay = peer_relay::start(config, Shutdown::new()).await.unwrap();
    until("the other LAN's announcements are heard", || neighbourhood.proxy().status().known.announcements.foreign > 0).await;
    let status = neighbourhood.proxy().status();
    assert!(status.paths.iter().all(|path| path.route.relay == "relay1") && status.known.roster.len() == 1, "{status:?}");

    let of_oak = neighbourhood.registrar().add_user(&oak, &member, &Default::default()).await.unwrap();
    let config = |placement| proxy_local::Config {
        listen: vec![proxy_local::Bind { address: ([127, 0, 0, 1], 0).into(), is_required: true }],
        relays: vec![neighbourhood.relay_address(0), relay.lan_addr()],
        discover: false,
        bypass: None,
        placement,
        ..proxy_local::Config::new(vec![neighbourhood.user().clone(), of_oak.clone()])
    };
    let to_oak = Rule { to: None, port: Some(neighbourhood.content().address().port()), lan: oak };
    for (placement, lans_used) in [(vec![to_oak], 1), (vec![], 2)] {
        let proxy = proxy_local::start(config(placement), Shutdown::new()).await.unwrap();
        until("a path in each LAN", || proxy.status().paths.len() == 2).await;
        let client = neighbourhood.client_of(Via::Socks5(proxy.listen_addresses()[0]));
        let mut flows: JoinSet<_> = (0..4).map(|seed| download(&client, 300_000, seed)).collect();
        while let Some(flow) = within(flows.join_next()).await {
            flow.unwrap().unwrap().unwrap();
        }
        let paths = proxy.status().paths;
        let used = paths.iter().filter(|path| path.down_bytes > 200_000).map(|path| path.route.relay.clone()).collect::<Vec<_>>();
        assert!(used.len() == lans_used && used.contains(&"oak-pc".to_owned()), "{used:?} of {paths:?}");
    }
}

#[tokio::test]
async fn one_relay_with_eight_lines_is_eight_paths() {
    let neighbourhood = start(Plan { finding: Finding::Told, relays_at_start: 1, ..Plan::new(unequal_scene()) }).await;
    let _relay = start_modems(&neighbourhood, "modems", 1..=8).await;
    within(neighbourhood.proxy().wait_for_paths(9)).await.unwrap();
    within(neighbourhood.client().download(1_000_000, 5)).await.unwrap();
    let paths = neighbourhood.proxy().status().paths;
    let of_modems = paths.iter().filter(|path| path.route.relay == "modems" && path.down_bytes > 0);
    assert_eq!(of_modems.count(), 8, "{paths:?}");
}

#[tokio::test]
async fn users_who_fill_a_line_together_go_by_what_is_fair_both_ways() {
    let neighbourhood = start(Plan::new(scene_of("[[line]]\ndown = '8M'\nup = '8M'\nrtt-ms = 10\n"))).await;
    let other = neighbourhood.registrar().add_user(&"elm".parse().unwrap(), &"user2".parse().unwrap(), &Default::default()).await.unwrap();
    let other_proxy = neighbourhood.add_proxy(&other, &[0]).await.unwrap();
    within(other_proxy.wait_for_paths(1)).await.unwrap();
    let load = |client: Client| {
        let mut load = JoinSet::new();
        load.spawn({
            let client = client.clone();
            async move { client.download(1 << 40, 1).await.map(drop) }
        });
        load.spawn(async move { client.upload(1 << 40, 1).await });
        load
    };
    let of_first = load(neighbourhood.client());
    let of_other = load(neighbourhood.client_of(Via::Socks5(other_proxy.address())));
    let at_reconst = |user: &Profile| neighbourhood.reconst().unwrap().sessions().paths_of(&user.identity);
    let down = |user| at_reconst(user).iter().find_map(|path| path.fair_rate);
    let up = |proxy: &neighbourhood::neighbourhood::Proxy| proxy.status().paths.iter().find_map(|path| path.fair_rate_up);
    until("what is fair is known", || {
        let known = [down(neighbourhood.user()), down(&other), up(neighbourhood.proxy()).map(|_| 0.0), up(&other_proxy).map(|_| 0.0)];
        known.iter().all(Option::is_some)
    })
    .await;
    drop(of_other);
    until("nobody else is known to fill the line", || down(neighbourhood.user()).is_none() && up(neighbourhood.proxy()).is_none()).await;
    drop(of_first);
}

#[tokio::test]
async fn eight_relays_on_one_pc_are_eight_paths() {
    let neighbourhood = start(Plan { finding: Finding::Told, relays_at_start: 1, ..Plan::new(unequal_scene()) }).await;
    let mut relays = Vec::new();
    for number in 1..=8 {
        relays.push(start_modems(&neighbourhood, &format!("modem{number}"), 1..=1).await);
    }
    within(neighbourhood.proxy().wait_for_paths(9)).await.unwrap();
    within(neighbourhood.client().download(1_000_000, 5)).await.unwrap();
}

/// A relay with these lines, all of which lead over the first emulated one, each from an address of its own.
async fn start_modems(neighbourhood: &Neighbourhood, relay: &str, lines: std::ops::RangeInclusive<u8>) -> peer_relay::Running {
    let (lan, relay) = ("elm".parse().unwrap(), relay.parse().unwrap());
    let profile = neighbourhood.registrar().add_relay(&lan, &relay).await.unwrap();
    let reconst = neighbourhood.relay_profile(0).reconst.clone();
    let mut config = peer_relay::Config::new(Profile { reconst, ..profile });
    config.announce.multicast = false;
    config.lines = lines
        .map(|number| {
            let mut line = LineConfig::new(LineNumber(number));
            line.lan_bind = Some(([127, 0, 0, 1], 0).into());
            line.wan = WanBinding::Address([127, 1, 0, number].into());
            line
        })
        .collect();
    peer_relay::start(config, Shutdown::new()).await.unwrap()
}

async fn start(plan: Plan) -> Neighbourhood {
    within(Neighbourhood::start(plan)).await.expect("a neighbourhood")
}

fn download(client: &Client, bytes: u64, seed: u64) -> tokio::task::JoinHandle<Result<Duration, neighbourhood::load::LoadError>> {
    let client = client.clone();
    tokio::spawn(async move { client.download(bytes, seed).await })
}
