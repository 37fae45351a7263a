//! Members who are removed while all runs.

mod common;

use common::{progress, unequal, until, within};
use shared::community::member::{Name, Role};

#[tokio::test]
async fn a_relay_that_is_removed_carries_nothing_soon_and_no_flow_breaks() {
    let neighbourhood = unequal().await;
    let client = neighbourhood.client();
    let download = tokio::spawn({
        let client = client.clone();
        async move { client.download(BYTES, 4).await }
    });
    progress(&client, BYTES / 8).await;
    neighbourhood.registrar().accounts().remove_member(&name("elm"), Role::Relay, &name("relay2")).await.unwrap();

    let relays = || neighbourhood.proxy().status().paths.into_iter().map(|path| path.route.relay).collect::<Vec<_>>();
    until("the path is gone", || !relays().contains(&"relay2".to_owned())).await;
    let line = || neighbourhood.relay_status(1).unwrap().lines.remove(0);
    until("the relay serves nobody", || line().clients.is_empty() && line().reconst.is_none()).await;
    assert!(line().problem.unwrap().contains("relay relay2 of LAN 15 was removed"), "{:?}", line());
    let listed = neighbourhood.reconst().unwrap().directory().roster();
    assert!(listed.iter().all(|line| line.relay.as_str() != "relay2"), "{listed:?}");
    within(download).await.unwrap().unwrap();
    assert_eq!(neighbourhood.proxy().active_paths(), 2);
}

#[tokio::test]
async fn a_user_who_is_removed_is_served_no_more_by_reconst_and_relays_and_the_others_are() {
    let neighbourhood = unequal().await;
    let (elm, ann) = (name("elm"), name("ann"));
    let registrar = neighbourhood.registrar();
    let profile = registrar.add_user(&elm, &ann, &Default::default()).await.unwrap();
    let proxy = neighbourhood.add_proxy(&profile, &[0, 1]).await.unwrap();
    within(proxy.wait_for_paths(2)).await.unwrap();
    let is_served = |user: &str| {
        let lines = (0..3).flat_map(|relay| neighbourhood.relay_status(relay).unwrap().lines);
        lines.flat_map(|line| line.clients).any(|client| client.user == user)
    };
    until("the relays serve both", || is_served("ann") && is_served("user1")).await;

    registrar.accounts().remove_member(&elm, Role::User, &ann).await.unwrap();
    until("the path is gone", || proxy.active_paths() == 0).await;
    until("the relays serve her no more", || !is_served("ann")).await;
    until("the relays say why", || {
        let problems = proxy.status().problems;
        problems.len() == 2 && problems.iter().all(|problem| problem.problem.contains("removed"))
    })
    .await;
    assert!(is_served("user1") && neighbourhood.proxy().active_paths() == 3);

    // Who is added anew under the same name is another, and served.
    let profile = registrar.add_user(&elm, &ann, &Default::default()).await.unwrap();
    let proxy = neighbourhood.add_proxy(&profile, &[0, 1]).await.unwrap();
    within(proxy.wait_for_paths(2)).await.unwrap();
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

const BYTES: u64 = 8_000_000;
