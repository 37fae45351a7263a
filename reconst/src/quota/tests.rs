//! What the keeper keeps, and for whom.

use shared::{
    community::{
        member::Role,
        quota::{Quota, Sharer, Way},
    },
    service::Shutdown,
    units::Size,
};

use super::*;
use crate::{accounts::testing, nodes::NodeIdentity, provision::Registrar};

#[tokio::test]
async fn a_quota_holds_while_the_store_does_not_answer() {
    let (registrar, _scratch) = testing::registrar().await;
    let member = user_with_quota(&registrar, 1000).await;
    let keeper = Keeper::new(registrar.accounts().clone(), None, None);
    let account = keeper.account(&member).await.expect("an account");
    assert_eq!(take(&account, 600), Some(600));
    registrar.accounts().close().await;
    keeper.keep().await;
    assert!(keeper.behind().is_some());
    assert_eq!((take(&account, 600), take(&account, 600)), (Some(400), None));
    assert!(keeper.account(&member).await.is_ok(), "another PC of the same user");
}

#[tokio::test]
async fn what_was_kept_outlives_the_keeper() {
    let (registrar, _scratch) = testing::registrar().await;
    let member = user_with_quota(&registrar, 1000).await;
    let keeper = Keeper::new(registrar.accounts().clone(), None, None);
    let account = keeper.account(&member).await.expect("an account");
    take(&account, 600);
    keeper.keep().await;
    take(&account, 100);
    keeper.keep().await;
    let account = Keeper::new(registrar.accounts().clone(), None, None).account(&member).await.expect("an account");
    assert_eq!((take(&account, 600), take(&account, 600)), (Some(300), None));
}

#[tokio::test]
async fn a_lan_that_gets_the_number_of_one_that_was_removed_spends_its_own() {
    let (registrar, _scratch) = testing::registrar().await;
    let keeper = Keeper::new(registrar.accounts().clone(), None, None);
    let ann = user(&registrar, "ann", &Limits::default()).await;
    let of_before = keeper.spending(&ann).await.expect("an account");
    registrar.accounts().remove_lan(&name("elm")).await.expect("a LAN to remove");
    registrar.add_lan(&name("elm"), Some(ann.identity.lan), None).await.expect("a LAN of the same name and number");
    let limits = Limits { max_flows: Some(7), ..Limits::default() };
    registrar.accounts().set_lan_limits(&name("elm"), &limits).await.expect("a LAN");
    let bob = user(&registrar, "bob", &Limits::default()).await;
    let spending = keeper.spending(&bob).await.expect("an account");
    assert_eq!((spending.lan.limits(), of_before.lan.limits()), (limits, Limits::default()));
    let gone = Keeper::new(registrar.accounts().clone(), None, None).spending(&ann).await.err();
    assert!(matches!(gone, Some(AccountsError::NoLan(_))), "{gone:?}");
}

#[tokio::test]
async fn what_a_lan_may_spend_counts_for_all_its_users() {
    let (registrar, _scratch) = testing::registrar().await;
    let limits = Limits { quota: Some(Quota::of(Size { bytes: 1000 })), max_flows: Some(2), ..Limits::default() };
    registrar.accounts().set_lan_limits(&name("elm"), &limits).await.expect("a LAN");
    let (ann, bob) = (user_with_quota(&registrar, 5000).await, user(&registrar, "bob", &Limits::default()).await);
    let keeper = Keeper::new(registrar.accounts().clone(), None, None);
    let (ann, bob) = (keeper.spending(&ann).await.expect("an account"), keeper.spending(&bob).await.expect("an account"));
    let moved = |spending: &Arc<Spending>, bytes| {
        let granted = spending.take(Way::Down, FLOW, bytes).ok()?.bytes;
        spending.on_moved(Way::Down, granted as usize);
        Some(granted)
    };
    assert_eq!((moved(&ann, 700), moved(&bob, 700), moved(&ann, 1)), (Some(700), Some(300), None));
    let refused = bob.open_flow().err().expect("used up").to_string();
    assert!(refused.contains("your LAN may use"), "{refused}");
    assert_eq!(ann.user.lock().used().down, 700, "what the LAN refuses is not the user's");
    keeper.keep().await;
    let report = registrar.accounts().lan_report(&name("elm"), keeper.time()).await.expect("a LAN");
    assert_eq!((report.down_bytes, report.used_percent), (1000, Some(100)));

    let again = Keeper::new(registrar.accounts().clone(), None, None);
    let limits = Limits { quota: Some(Quota::of(Size { bytes: 1600 })), ..limits };
    registrar.accounts().set_lan_limits(&name("elm"), &limits).await.expect("a LAN");
    let ann = again.spending(&user(&registrar, "cid", &Limits::default()).await).await.expect("an account");
    let _flows = (ann.open_flow().expect("the first"), ann.open_flow().expect("the second"));
    assert!(ann.open_flow().err().expect("too many").to_string().contains("as many as your LAN may have"));
    assert_eq!(ann.user.lock().flows(), 2, "what the LAN refuses is not the user's");
    assert_eq!(moved(&ann, 2000), Some(600), "what was kept outlives the keeper");
}

#[tokio::test]
async fn a_lan_s_quota_is_spent_on_two_nodes_and_no_further() {
    let (registrar, _scratch) = testing::registrar().await;
    let accounts = registrar.accounts();
    if !accounts.takes_several_nodes() {
        println!("skipped: nodes need PostgreSQL; run .ci/with-postgres cargo test -p reconst --lib");
        return;
    }
    let quota = 3_000_000;
    let limits = Limits { quota: Some(Quota::of(Size { bytes: quota })), ..Limits::default() };
    accounts.set_lan_limits(&name("elm"), &limits).await.expect("a LAN");
    let (ann, bob) = (user(&registrar, "ann", &Limits::default()).await, user(&registrar, "bob", &Limits::default()).await);
    let (here, there) = (node(&registrar, "main").await, node(&registrar, "node2").await);
    for node in [&here, &there] {
        let mut view = node.view();
        view.wait_for(|_| !node.is_alone()).await.expect("two nodes");
    }
    let [here, there] = [here, there].map(|node| Keeper::of_node(accounts.clone(), None, None, Some(node)));
    let mut spendings =
        [(&here, here.spending(&ann).await.expect("an account"), 0), (&there, there.spending(&bob).await.expect("an account"), 0)];
    let mut used_up = 0;
    for _ in 0..10_000 {
        if used_up == 2 {
            break;
        }
        used_up = 0;
        for (keeper, spending, moved) in &mut spendings {
            match spending.take(Way::Down, FLOW, 100_000) {
                Ok(granted) => {
                    spending.on_moved(Way::Down, granted.bytes as usize);
                    *moved += granted.bytes;
                }
                Err(Refused::NotYet) => keeper.keep_those(false).await,
                Err(refused) => {
                    assert!(refused.to_string().contains("your LAN may use"), "{refused}");
                    used_up += 1;
                }
            }
        }
        let moved = spendings.iter().map(|(_, _, moved)| moved).sum::<u64>();
        assert!(moved <= quota, "{moved} of {quota}");
    }
    assert!(spendings.iter().all(|(_, _, moved)| *moved >= quota / 4), "each has a part");
    assert_eq!(spendings.iter().map(|(_, _, moved)| moved).sum::<u64>(), quota, "all of it is used");
    here.keep().await;
    there.keep().await;
    let report = accounts.lan_report(&name("elm"), here.time()).await.expect("a LAN");
    assert_eq!((report.down_bytes, report.used_percent), (quota, Some(100)));

    // As on a node that takes the LAN over.
    let again = Keeper::of_node(accounts.clone(), None, None, here.shared.nodes.clone());
    let spending = again.spending(&ann).await.expect("an account");
    again.keep().await;
    assert!(spending.open_flow().is_err(), "what other nodes have counted is used");
}

#[tokio::test]
async fn a_node_that_was_killed_holds_no_lease_once_it_is_back() {
    let (registrar, _scratch) = testing::registrar().await;
    let accounts = registrar.accounts();
    if !accounts.takes_several_nodes() {
        println!("skipped: nodes need PostgreSQL; run .ci/with-postgres cargo test -p reconst --lib");
        return;
    }
    let (quota, member) = (3_000_000, user_with_quota(&registrar, 3_000_000).await);
    let other = node(&registrar, "node2").await;
    let identity = NodeIdentity { name: name("main"), public: "127.0.0.1:10000".parse().expect("an address") };
    let (killed, beating) = Nodes::join(accounts, identity.clone(), 1).await.expect("a node");
    let keeper = Keeper::of_node(accounts.clone(), None, None, Some(killed));
    let account = keeper.account(&member).await.expect("an account");
    keeper.keep_those(false).await;
    assert!(account.lock().leased() > 0);
    drop((beating, keeper, account));
    // Once the store has noticed that its connection is gone.
    let back = loop {
        match Nodes::join(accounts, identity.clone(), 1).await {
            Ok((back, beating)) => break tokio::spawn(back.run(beating, Default::default, Shutdown::new())),
            Err(AccountsError::NodeClaimed(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    };
    let keeper = Keeper::of_node(accounts.clone(), None, None, Some(other));
    let account = keeper.account(&member).await.expect("an account");
    let mut moved = 0;
    for _ in 0..1000 {
        let taken = account.lock().take(Instant::now(), account.time(), Way::Down, FLOW, 100_000);
        match taken {
            Ok(granted) => moved += granted.bytes,
            Err(Refused::NotYet) => keeper.keep_those(false).await,
            Err(_) => break,
        }
    }
    assert_eq!(moved, quota, "the other node gets all of it");
    back.abort();
}

#[tokio::test]
async fn what_is_under_way_is_not_kept_as_used_and_no_other_node_gets_it() {
    let (registrar, _scratch) = testing::registrar().await;
    let accounts = registrar.accounts();
    if !accounts.takes_several_nodes() {
        println!("skipped: nodes need PostgreSQL; run .ci/with-postgres cargo test -p reconst --lib");
        return;
    }
    let member = user_with_quota(&registrar, 1_000_000).await;
    let (here, there) = (node(&registrar, "main").await, node(&registrar, "node2").await);
    for node in [&here, &there] {
        let mut view = node.view();
        view.wait_for(|_| !node.is_alone()).await.expect("two nodes");
    }
    let [here, there] = [here, there].map(|node| Keeper::of_node(accounts.clone(), None, None, Some(node)));
    let (spending, other) = (here.spending(&member).await.expect("an account"), there.account(&member).await.expect("an account"));
    let mut granted = 0;
    while granted < 600_000 {
        match spending.take(Way::Down, FLOW, 60_000) {
            Ok(taken) => granted += taken.bytes,
            Err(refused) => {
                assert_eq!(refused, Refused::NotYet);
                here.keep_those(false).await;
            }
        }
    }
    here.keep().await;
    let report = accounts.user_report(&name("elm"), &name("ann"), here.time()).await.expect("a user");
    assert_eq!(report.down_bytes, 0, "nothing has moved");
    let mut elsewhere = 0;
    for _ in 0..100 {
        let taken = other.lock().take(Instant::now(), other.time(), Way::Down, FLOW, 60_000);
        match taken {
            Ok(granted) => elsewhere += granted.bytes,
            Err(_) => there.keep_those(false).await,
        }
    }
    assert!((1..=1_000_000 - granted).contains(&elsewhere), "{granted} and {elsewhere}");
    spending.on_moved(Way::Down, granted as usize);
    here.keep().await;
    there.keep().await;
    let report = accounts.user_report(&name("elm"), &name("ann"), here.time()).await.expect("a user");
    assert_eq!(report.down_bytes, granted + elsewhere);
}

#[tokio::test]
async fn an_account_is_one_as_long_as_anybody_spends_from_it() {
    let (registrar, _scratch) = testing::registrar().await;
    let member = user_with_quota(&registrar, 1000).await;
    let keeper = Keeper::new(registrar.accounts().clone(), None, None);
    let account = keeper.account(&member).await.expect("an account");
    keeper.keep().await;
    assert!(Arc::ptr_eq(&account, &keeper.account(&member).await.expect("an account")));
    drop(account);
    keeper.keep().await;
    assert!(keeper.report().is_empty());
}

#[tokio::test]
async fn a_member_is_one_still_while_the_store_does_not_answer() {
    let (registrar, _scratch) = testing::registrar().await;
    let (elm, ann, bob) = (name("elm"), name("ann"), name("bob"));
    let certificate = |profile: shared::community::profile::Profile| {
        shared::link::tls::certificate("certificate", &profile.certificate_pem).expect("PEM")
    };
    let limits = Limits::default();
    let ann = certificate(registrar.add_user(&elm, &ann, &limits).await.expect("a user"));
    let bob = certificate(registrar.add_user(&elm, &bob, &limits).await.expect("a user"));
    let accounts = registrar.accounts();
    let known = accounts.authorise(&ann, Role::User).await.expect("a member");
    accounts.close().await;
    assert_eq!(accounts.authorise(&ann, Role::User).await.expect("known from before"), known);
    assert!(accounts.authorise(&ann, Role::Relay).await.is_err(), "in another role");
    assert!(accounts.authorise(&bob, Role::User).await.is_err(), "never seen");
}

#[tokio::test]
async fn only_limits_that_have_changed_are_read_again_and_all_of_what_an_earlier_version_writes() {
    let (registrar, _scratch) = testing::registrar().await;
    let accounts = registrar.accounts();
    let (ann, bob) = (user_with_quota(&registrar, 1000).await, user(&registrar, "bob", &Limits::default()).await);
    let keeper = Keeper::new(accounts.clone(), None, None);
    let (anns, bobs) = (keeper.spending(&ann).await.expect("an account"), keeper.spending(&bob).await.expect("an account"));
    let max_flows = |spending: &Spending| spending.user.lock().limits().max_flows;
    let following = tokio::spawn({
        let accounts = accounts.clone();
        async move { accounts.follow_changes().await }
    });
    // The first look is at everything.
    accounts.changes().next().await;
    let running = tokio::spawn(keeper.run());

    // Nobody is told of what is changed by hand.
    accounts.change_unnoticed("UPDATE limits SET max_flows = 5").await;
    let limits = Limits { max_flows: Some(7), ..ann.limits.clone() };
    accounts.set_limits(ann.account, &limits).await.expect("an account");
    until("ann's limits hold", || max_flows(&anns) == Some(7)).await;
    assert_eq!(max_flows(&bobs), None, "those of others are not looked at");
    accounts.set_lan_limits(&name("elm"), &limits).await.expect("a LAN");
    until("the LAN's limits hold", || anns.lan.limits() == limits).await;
    assert_eq!(max_flows(&bobs), None);

    accounts.change_unnoticed("UPDATE revision SET number = number + 1").await;
    until("what is noted nowhere holds", || max_flows(&bobs) == Some(5)).await;
    following.abort();
    running.abort();
}

pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("{what} in time"));
}

async fn user_with_quota(registrar: &Registrar, bytes: u64) -> Member {
    user(registrar, "ann", &Limits { quota: Some(Quota::of(Size { bytes })), ..Limits::default() }).await
}

pub(super) async fn user(registrar: &Registrar, user: &str, limits: &Limits) -> Member {
    let profile = registrar.add_user(&name("elm"), &name(user), limits).await.expect("a user");
    let certificate = shared::link::tls::certificate("certificate", &profile.certificate_pem).expect("PEM");
    registrar.accounts().authorise(&certificate, Role::User).await.expect("a member")
}

/// A node of that name that beats.
pub(super) async fn node(registrar: &Registrar, node: &str) -> Nodes {
    let identity = NodeIdentity { name: name(node), public: "127.0.0.1:10000".parse().expect("an address") };
    let (nodes, beating) = Nodes::join(registrar.accounts(), identity, 1).await.expect("a node");
    tokio::spawn(nodes.clone().run(beating, Default::default, Shutdown::new()));
    nodes
}

pub(super) fn take(account: &UserAccount, bytes: u64) -> Option<u64> {
    account.lock().take(Instant::now(), account.time(), Way::Down, FLOW, bytes).ok().map(|grant| grant.bytes)
}

pub(super) fn name(text: &str) -> shared::community::member::Name {
    text.parse().expect("a name")
}

pub(super) const FLOW: Sharer = Sharer { user: 1, flow: 1 };
