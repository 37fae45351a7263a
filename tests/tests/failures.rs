//! Relays and lines that come and go: no byte lost, doubled or changed, no flow broken.

mod common;

use common::{progress, unequal, unequal_with_relays, until, within};
use neighbourhood::load::Client;
use shared::community::member::{Name, Role};
use tokio::task::JoinHandle;

#[tokio::test]
async fn a_relay_killed_in_mid_download_costs_no_byte() {
    let mut neighbourhood = unequal().await;
    let client = neighbourhood.client();
    let download = download(&client);
    progress(&client, BYTES / 5).await;
    neighbourhood.kill_relay(0).await;
    finish(download).await;
}

#[tokio::test]
async fn a_relay_stopped_in_mid_download_costs_no_byte() {
    let mut neighbourhood = unequal().await;
    let client = neighbourhood.client();
    let download = download(&client);
    progress(&client, BYTES / 5).await;
    within(neighbourhood.stop_relay(0)).await.unwrap();
    finish(download).await;
}

#[tokio::test]
async fn a_relay_that_is_killed_and_starts_again_is_used_again() {
    let mut neighbourhood = unequal().await;
    neighbourhood.kill_relay(1).await;
    until("the path is given up", || neighbourhood.proxy().active_paths() == 2).await;
    neighbourhood.start_relay(1).await.unwrap();
    within(neighbourhood.proxy().wait_for_paths(3)).await.unwrap();
    within(neighbourhood.client().download(BYTES, 1)).await.unwrap();
}

#[tokio::test]
async fn a_line_silent_in_mid_download_and_back_costs_no_byte() {
    let neighbourhood = unequal().await;
    let client = neighbourhood.client();
    let download = download(&client);
    progress(&client, BYTES / 8).await;
    neighbourhood.line(0).set_out(true);
    progress(&client, BYTES / 3).await;
    neighbourhood.line(0).set_out(false);
    finish(download).await;
    within(neighbourhood.proxy().wait_for_paths(3)).await.unwrap();
}

#[tokio::test]
async fn a_line_silent_in_mid_upload_costs_no_byte() {
    let neighbourhood = unequal().await;
    let client = neighbourhood.client();
    let upload = tokio::spawn({
        let client = client.clone();
        async move { client.upload(BYTES / 2, 7).await }
    });
    progress(&client, BYTES / 10).await;
    neighbourhood.line(0).set_out(true);
    within(upload).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_relay_added_in_mid_download_carries_its_part() {
    let mut neighbourhood = unequal_with_relays(1).await;
    let client = neighbourhood.client();
    let download = download(&client);
    progress(&client, BYTES / 10).await;
    neighbourhood.start_relay(1).await.unwrap();
    until("the new line carries bulk", || neighbourhood.line(1).counters().1.delivered_bytes > 50_000).await;
    finish(download).await;
}

#[tokio::test]
async fn all_lines_gone_and_back_costs_no_byte_and_no_flow() {
    let neighbourhood = unequal().await;
    let client = neighbourhood.client();
    let download = download(&client);
    progress(&client, BYTES / 5).await;
    neighbourhood.lines().iter().for_each(|line| line.set_out(true));
    until("all paths are suspected", || neighbourhood.proxy().active_paths() == 0).await;
    neighbourhood.lines().iter().for_each(|line| line.set_out(false));
    finish(download).await;
}

#[tokio::test]
async fn a_flow_opened_while_a_line_is_silent_takes_another() {
    let neighbourhood = unequal().await;
    neighbourhood.line(0).set_out(true);
    within(neighbourhood.client().download(200_000, 2)).await.unwrap();
}

#[tokio::test]
async fn a_reconst_that_is_killed_breaks_its_flows_and_serves_again_after_a_restart() {
    let mut neighbourhood = unequal().await;
    let client = neighbourhood.client();
    let download = download(&client);
    progress(&client, BYTES / 5).await;
    neighbourhood.kill_reconst().await;
    neighbourhood.start_reconst().await.unwrap();
    assert!(within(download).await.unwrap().is_err());
    until("a path over each line to the new one", || neighbourhood.proxy().active_paths() == 3).await;
    within(neighbourhood.client().download(BYTES / 4, 9)).await.unwrap();
}

#[tokio::test]
async fn a_removed_user_is_refused_with_the_reason() {
    let neighbourhood = unequal().await;
    let (elm, ann): (Name, Name) = ("elm".parse().unwrap(), "ann".parse().unwrap());
    let registrar = neighbourhood.registrar();
    let profile = registrar.add_user(&elm, &ann, &Default::default()).await.unwrap();
    registrar.accounts().remove_member(&elm, Role::User, &ann).await.unwrap();
    let proxy = neighbourhood.add_proxy(&profile, &[0, 1]).await.unwrap();
    until("the reason is shown", || format!("{:?}", proxy.status()).contains("removed")).await;
    assert_eq!(proxy.active_paths(), 0);
}

const BYTES: u64 = 4_000_000;

type Transfer = JoinHandle<Result<std::time::Duration, neighbourhood::load::LoadError>>;

fn download(client: &Client) -> Transfer {
    let client = client.clone();
    tokio::spawn(async move { client.download(BYTES, 4).await })
}

async fn finish(transfer: Transfer) {
    within(transfer).await.unwrap().unwrap();
}
