//! The owner comes first: a line taken back is free at once, and no flow breaks.

mod common;

use common::{progress, unequal, unequal_scene, until, within};
use neighbourhood::neighbourhood::{Neighbourhood, Plan};
use peer_relay::ShareConfig;
use shared::{
    share::allowance::{Cap, Terms},
    units::Size,
};

#[tokio::test]
async fn a_line_paused_in_mid_download_breaks_no_flow_and_is_used_again() {
    let neighbourhood = unequal().await;
    let client = neighbourhood.client();
    let download = tokio::spawn({
        let client = client.clone();
        async move { client.download(BYTES, 4).await }
    });
    progress(&client, BYTES / 5).await;
    let relay = neighbourhood.relay(0).unwrap();
    relay.pause(None, None).unwrap();
    until("the line is free", || is_silent(&neighbourhood)).await;
    within(download).await.unwrap().unwrap();
    until("the user is told", || format!("{:?}", neighbourhood.proxy().status()).contains("paused")).await;
    relay.resume(None).unwrap();
    within(neighbourhood.proxy().wait_for_paths(3)).await.unwrap();
}

#[tokio::test]
async fn a_line_that_has_carried_its_cap_rests_also_after_a_restart() {
    let terms = Terms { cap: Some(Cap { size: Size { bytes: BYTES / 4 }, start_day: 1 }), ..Terms::default() };
    let shares = vec![ShareConfig { terms, ..ShareConfig::default() }];
    let mut neighbourhood = within(Neighbourhood::start(Plan { shares, ..Plan::new(unequal_scene()) })).await.unwrap();
    within(neighbourhood.client().download(BYTES, 4)).await.unwrap();
    until("the line rests", || held(&neighbourhood).is_some_and(|why| why.contains("used up"))).await;
    until("the user is told", || format!("{:?}", neighbourhood.proxy().status()).contains("this month")).await;
    neighbourhood.kill_relay(0).await;
    neighbourhood.start_relay(0).await.unwrap();
    assert!(held(&neighbourhood).is_some_and(|why| why.contains("used up")));
}

#[tokio::test]
async fn a_line_that_is_not_there_is_not_paused() {
    let neighbourhood = unequal().await;
    let refused = neighbourhood.relay(0).unwrap().pause(Some(7), None);
    assert_eq!(refused, Err("there is no line 7: this relay has 1".into()));
    assert_eq!(held(&neighbourhood), None);
}

/// Whether the first relay drops what it gets.
fn is_silent(neighbourhood: &Neighbourhood) -> bool {
    let carried = neighbourhood.relay(0).unwrap().status().lines[0].carried;
    carried.up.dropped > 0
}

fn held(neighbourhood: &Neighbourhood) -> Option<String> {
    neighbourhood.relay(0).unwrap().status().lines[0].held.clone()
}

const BYTES: u64 = 4_000_000;
