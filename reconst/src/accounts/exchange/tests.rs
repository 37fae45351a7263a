//! Documents out of one store and into another.

use shared::{
    community::{
        member::{Name, Role},
        quota::{Earning, Limits, Quota},
    },
    units::{Rate, Size},
};

use super::*;
use crate::{accounts::testing, provision::Registrar};

#[tokio::test]
async fn what_was_exported_and_lost_comes_back() {
    let (registrar, _scratch) = filled().await;
    let accounts = registrar.accounts();
    let document = accounts.export().await.expect("a document");
    let profile = registrar.add_user(&name("elm"), &name("cid"), &Limits::default()).await.expect("a user after the export");
    accounts.remove_member(&name("elm"), Role::User, &name("ann")).await.expect("a user to remove");
    let ann = accounts.user(&name("elm"), &name("ann")).await;
    assert!(ann.is_err());

    let document: Document = document.to_toml().parse().expect("what export writes, import reads");
    let imported = registrar.import(&document, false).await.expect("it goes together");
    let actions: Vec<_> = imported.changes.iter().map(|change| format!("{} {}", change.action, change.subject)).collect();
    assert_eq!(actions, ["user.add ann@elm", "user.account ann@oak", "relay.owner pc@elm", "user.certificate ann@elm"]);
    assert_eq!(imported.certificates_left_out, 0);

    let ann = accounts.user(&name("elm"), &name("ann")).await.expect("there again");
    assert_eq!(ann.limits, limits());
    let certificate = shared::link::tls::certificate("certificate", &profile.certificate_pem).expect("PEM");
    accounts.authorise(&certificate, Role::User).await.expect("who is not in the file stays");
    let log = accounts.audit_log_end(None, 4).await.expect("a log");
    assert_eq!(log.iter().map(|entry| format!("{} {}", entry.action, entry.subject)).collect::<Vec<_>>()[..3], actions[..3]);
}

#[tokio::test]
async fn importing_twice_changes_nothing_and_a_trial_nothing_at_all() {
    let (registrar, _scratch) = filled().await;
    let accounts = registrar.accounts();
    let document = accounts.export().await.expect("a document");
    assert_eq!(registrar.import(&document, false).await.expect("it goes together"), Imported::default());
    let changed = document.to_toml().replace("max_flows = 7", "max_flows = 8").replace("data_port = 10016", "data_port = 20016");
    let changed = changed.replace("rate_up_bits_per_second = 9000000", "rate_up_bits_per_second = 8000000");
    let changed: Document = changed.parse().expect("TOML");
    let expected = ["lan.move oak", "lan.set oak", "user.set ann@elm"];
    let actions = |imported: Imported| imported.changes.iter().map(|c| format!("{} {}", c.action, c.subject)).collect::<Vec<_>>();
    assert_eq!(actions(registrar.import(&changed, true).await.expect("a trial")), expected);
    assert_eq!(accounts.export().await.expect("a document"), document);
    assert_eq!(actions(registrar.import(&changed, false).await.expect("it goes together")), expected);
    assert_eq!(accounts.user(&name("elm"), &name("ann")).await.expect("a user").limits.max_flows, Some(8));
}

#[tokio::test]
async fn in_another_reconst_members_are_there_and_have_to_join_anew() {
    let (registrar, _scratch) = filled().await;
    let document = registrar.accounts().export().await.expect("a document");
    let (other, _scratch) = testing::registrar().await;
    let imported = other.import(&document, false).await.expect("it goes together");
    assert_eq!(imported.certificates_left_out, 3);
    assert_eq!(other.accounts().member_count(Role::User).await.expect("users"), 2);
    let again = other.accounts().export().await.expect("a document");
    assert_eq!(
        (again.user[0].account.clone(), again.user[1].account.clone(), again.relay.len()),
        (None, document.user[1].account.clone(), 1)
    );
}

#[tokio::test]
async fn what_does_not_go_together_changes_nothing() {
    let (registrar, _scratch) = filled().await;
    let before = registrar.accounts().export().await.expect("a document");
    let user = |text: &str| format!("version = 1\n[[user]]\nname = 'new'\nlan = 'elm'\n[[user]]\n{text}\n");
    let bad = [
        user("name = 'bob'\nlan = 'ash'"),
        user("name = 'bob'\nlan = 'elm'\naccount = 'nobody@oak'"),
        user("name = 'bob'\nlan = 'elm'\naccount = 'ann@oak'\n[user.limits]\nmax_flows = 1"),
        user("name = 'bob'\nlan = 'elm'\naccount = 'bob@elm'"),
        user("name = 'bob'\nlan = 'elm'\n[user.limits]\nperiod = 'week'\nquota_bytes = 5"),
        user("name = 'bob'\nlan = 'elm'\n[user.limits]\nearn_percent = 50"),
        user("name = 'new'\nlan = 'elm'"),
        "version = 1\n[[lan]]\nname = 'elm'\nnumber = 15\ndata_port = 10015\n[lan.limits]\nquota_bytes = 5\nearn_percent = 50\n".into(),
        "version = 1\n[[lan]]\nname = 'elm'\nnumber = 99\ndata_port = 10015\n".into(),
        "version = 1\n[[lan]]\nname = 'ash'\nnumber = 99\ndata_port = 10015\n".into(),
        "version = 1\n[[lan]]\nname = 'ash'\nnumber = 15\ndata_port = 999\n".into(),
        "version = 1\n[[relay]]\nname = 'box'\nlan = 'elm'\nowner = 'nobody'\n".into(),
    ];
    for text in bad {
        let document: Document = text.parse().expect("TOML");
        let error = registrar.import(&document, false).await.expect_err(&text);
        assert!(!error.to_string().is_empty());
        assert_eq!(registrar.accounts().export().await.expect("a document"), before, "{text}");
    }
    for text in ["", "version = 2", "version = 1\ncolour = 'red'", "version = 1\n[[user]]\nname = 'Bad Name'\nlan = 'elm'"] {
        assert!(text.parse::<Document>().is_err(), "{text}");
    }
}

/// LANs elm and oak; ann in both with one account, and a relay of hers.
async fn filled() -> (Registrar, tempfile::TempDir) {
    let (registrar, scratch) = testing::registrar().await;
    let (elm, oak, ann) = (name("elm"), name("oak"), name("ann"));
    registrar.add_lan(&oak, Some(shared::ids::LanId(16)), None).await.expect("a LAN");
    let lan_limits = Limits { rate_up: Some(Rate { bits_per_second: 9_000_000 }), ..Limits::default() };
    registrar.accounts().set_lan_limits(&oak, &lan_limits).await.expect("a LAN");
    registrar.add_user(&elm, &ann, &limits()).await.expect("a user");
    registrar.add_user(&oak, &ann, &Limits::default()).await.expect("a user");
    registrar.accounts().share_account(&oak, &ann, (&elm, &ann)).await.expect("two users");
    registrar.add_relay(&elm, &name("pc")).await.expect("a relay");
    registrar.accounts().set_owner(&elm, &name("pc"), Some(&ann)).await.expect("a relay and a user");
    (registrar, scratch)
}

fn limits() -> Limits {
    let rate_down = Some(Rate { bits_per_second: 20_000_000 });
    let earning = Some(Earning { percent: 50.try_into().expect("a part"), at_most: Some(Size { bytes: 9_000_000_001 }) });
    let quota = Quota { earning, ..Quota::of(Size { bytes: 100_000_000_001 }) };
    Limits { quota: Some(quota), rate_down, max_flows: Some(7), ..Limits::default() }
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}
