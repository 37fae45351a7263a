//! Several servers on one PostgreSQL: what happens to flows when one drains or dies.

mod common;

use std::{path::Path, sync::Arc, time::Duration};

use common::{progress, until, within};
use neighbourhood::{
    cluster::{Cluster, ClusterPlan, postgres},
    load::{Client, LoadError},
};
use reconst::accounts::{Limits, Quota};
use shared::{community::quota::Used, units::Size};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn flows_survive_a_drain_and_a_death_breaks_them_cleanly() {
    let Some(mut cluster) = cluster(1, Limits::default()).await else { return };
    let client = cluster.client();
    let first = within(cluster.serving()).await.expect("a database").expect("a node that serves");

    // Drained: what is open goes on where it is, what is new goes elsewhere.
    let open = tokio::spawn({
        let client = client.clone();
        async move { client.download(DOWNLOAD, 1).await }
    });
    progress(&client, 1_000_000).await;
    let drained = cluster.node_name(first).clone();
    cluster.registrar().accounts().drain_node(&drained, Some(Duration::from_secs(120))).await.expect("a node");
    let second = serving_another(&cluster, first).await;
    let sessions_of = async |index: usize| {
        let reports = cluster.reports().await.expect("a database");
        reports.iter().find(|report| report.name == cluster.node_name(index).as_str()).expect("a node").sessions
    };
    within(async { while sessions_of(second).await == 0 || cluster.proxy().active_paths() < RELAYS {} }).await;
    within(client.download(1_000_000, 2)).await.expect("a flow at the other node");
    within(open).await.expect("no panic").expect("every byte of the flow at the node that drains");

    // Dead under load: another serves, and flows have every byte or an error.
    let load = Arc::new(cluster.client());
    let mut flows = JoinSet::new();
    for seed in 0..20 {
        let load = Arc::clone(&load);
        flows.spawn(async move {
            if seed % 2 == 0 { load.download(DOWNLOAD, seed).await.map(drop) } else { load.upload(DOWNLOAD, seed).await }
        });
    }
    progress(&load, 2_000_000).await;
    cluster.kill_node(second);
    within(cluster.recovery()).await.expect("served again");
    let mut broken = 0;
    while let Some(flow) = within(flows.join_next()).await {
        match flow.expect("no panic") {
            Ok(()) => (),
            Err(LoadError::Broken(..) | LoadError::Connect(_)) => broken += 1,
            Err(error) => panic!("not clean: {error}"),
        }
    }
    assert!(broken > 0, "the node was to die under load");
    let third = serving_another(&cluster, second).await;
    assert_ne!(third, first, "it is drained");

    // Stopped in order: nothing breaks.
    cluster.start_node(second).expect("it starts again");
    let (client, seed) = (cluster.client(), 7);
    let open = tokio::spawn({
        let client = client.clone();
        async move { client.download(DOWNLOAD, seed).await }
    });
    progress(&client, 1_000_000).await;
    within(async { while cluster.reports().await.expect("a database").iter().filter(|report| report.state == "alive").count() < 2 {} })
        .await;
    cluster.terminate_node(third).expect("it runs");
    within(open).await.expect("no panic").expect("every byte of the flow at the node that stops");
    until("the node has stopped", || cluster.has_stopped(third)).await;
    within(cluster.recovery()).await.expect("served by the last one");
    assert_eq!(within(cluster.serving()).await.expect("a database"), Some(second));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_at_the_deadline_of_a_drain_breaks_cleanly_and_the_next_flow_goes_on() {
    let Some(cluster) = cluster(1, Limits::default()).await else { return };
    let client = cluster.client();
    let first = within(cluster.serving()).await.expect("a database").expect("a node that serves");
    let open = tokio::spawn({
        let client = client.clone();
        async move { client.download(ENDLESS, 1).await }
    });
    progress(&client, 1_000_000).await;
    let drained = cluster.node_name(first).clone();
    cluster.registrar().accounts().drain_node(&drained, Some(Duration::from_secs(1))).await.expect("a node");
    let broken = within(open).await.expect("no panic").expect_err("it is far longer than that");
    assert!(matches!(broken, LoadError::Broken(..)), "{broken}");
    within(client.download(1_000_000, 2)).await.expect("a flow at the other node");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_spent_on_three_nodes_at_once_and_no_further() {
    let quota = Quota::of(Size { bytes: QUOTA });
    let Some(cluster) = cluster(3, Limits { quota: Some(quota), ..Limits::default() }).await else { return };
    within(cluster.spread()).await.expect("a LAN on each node");
    let clients: Vec<_> = (0..3).map(|lan| cluster.client_on(lan)).collect();
    let mut flows = JoinSet::new();
    for seed in 0..30 {
        let client = clients[seed as usize % 3].clone();
        flows.spawn(
            async move { if seed % 2 == 0 { client.download(QUOTA, seed).await.map(drop) } else { client.upload(QUOTA, seed).await } },
        );
    }
    while let Some(flow) = within(flows.join_next()).await {
        flow.expect("no panic").expect_err("more than the quota");
    }
    let total = |used: Used| used.up + used.down;
    // What an abort leaves undelivered is given back.
    within(async { while total(cluster.used().await.expect("a database")) < QUOTA * 9 / 10 {} }).await;
    let used = total(cluster.used().await.expect("a database"));
    assert!(used <= QUOTA, "{used} counted of {QUOTA}");
    let arrived: u64 = clients.iter().map(Client::carried).sum();
    assert!(arrived <= QUOTA, "{arrived} arrived of {QUOTA}");
    let everywhere = cluster.reports().await.expect("a database").iter().all(|node| node.sessions > 0);
    assert!(everywhere, "each node has a LAN");
}

/// The node that serves the LAN once it is not `before`.
async fn serving_another(cluster: &Cluster, before: usize) -> usize {
    within(async {
        loop {
            if let Some(serving) = cluster.serving().await.expect("a database").filter(|serving| *serving != before) {
                return serving;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

async fn cluster(lans: usize, limits: Limits) -> Option<Cluster> {
    let Some(server) = postgres() else {
        println!("skipped: several nodes need PostgreSQL; run .ci/with-postgres cargo test -p neighbourhood --test nodes");
        return None;
    };
    let program = Path::new(env!("CARGO_BIN_EXE_nodes"));
    let plan = ClusterPlan { nodes: 3, lans, relays: RELAYS, drain_seconds: 60, limits };
    Some(within(Cluster::start(&server, program, plan)).await.expect("three nodes"))
}

const RELAYS: usize = 2;

/// Leases of many sizes.
const QUOTA: u64 = 20_000_000;

/// Seconds' worth on a small machine.
const DOWNLOAD: u64 = 60_000_000;

/// More than the lines carry while a test runs.
const ENDLESS: u64 = 10_000_000_000;
