//! PCs join a running `reconst` by invite, over loopback.

mod common;

use std::{
    net::{SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt,
};

use common::{DEADLINE, Isp, LOOPBACK, name};
use reconst::accounts::{
    Limits,
    invites::{Certified, EnrolDenied, Invitation},
};
use shared::{
    community::{
        enrol::{Issued, Title},
        invite::{Fingerprint, Invite, InviteSecret},
        member::{Name, Role},
        profile::Profile,
    },
    link::{
        enrol::{self, EnrolError},
        key::NewKey,
        tls,
    },
    service::{Exit, Failure, joining::Joining, read_profile},
    target::{Host, Target},
};
use time::OffsetDateTime;
use tokio::time::timeout;

#[tokio::test]
async fn an_invite_makes_a_pc_a_member_and_no_other() {
    let isp = Isp::start().await;
    let invite = isp.invite(Role::User, "ann").await;
    let profile = isp.join(&invite, "ann.toml").await.expect("an invite that serves");
    assert_eq!((profile.identity.to_string().as_str(), profile.lan_name.as_str()), ("user ann of LAN 15", "elm"));
    let certificate = tls::certificate("certificate", &profile.certificate_pem).expect("PEM");
    isp.registrar.accounts().authorise(&certificate, Role::User).await.expect("a member");
    let kept = read_profile(&isp.path("ann.toml"), Role::User).expect("a profile that `run` takes");
    assert_eq!(kept, profile);
    assert_eq!(std::fs::metadata(isp.path("ann.toml")).expect("there").permissions().mode() & 0o777, 0o600);

    let refused = isp.join(&invite, "eve.toml").await.expect_err("used");
    assert_eq!(refused.exit, Exit::Permission);
    assert!(refused.message.starts_with("this invite was used on 20"), "{refused}");
    assert!(!isp.path("eve.toml").exists());
    isp.stop().await;
}

#[tokio::test]
async fn the_same_key_may_ask_again_in_case_the_answer_was_lost() {
    let isp = Isp::start().await;
    let invite = isp.invite(Role::Relay, "bob").await;
    let (key, other) = (NewKey::generate().expect("a key"), NewKey::generate().expect("a key"));
    let first = isp.ask(&invite, &key).await.expect("issued");
    assert_eq!(isp.ask(&invite, &key).await.expect("issued before"), first);
    assert!(matches!(isp.ask(&invite, &other).await, Err(EnrolError::Refused(_))));
    isp.stop().await;
}

#[tokio::test]
async fn a_guess_is_told_nothing_and_only_a_few_are_looked_at() {
    let isp = Isp::start().await;
    let invite = isp.invite(Role::User, "ann").await;
    let key = NewKey::generate().expect("a key");
    let guess = Invite { secret: InviteSecret([0; 16]), ..invite.clone() };
    let (mut reason, mut refused) = (String::new(), 0);
    let busy = loop {
        match isp.ask(&guess, &key).await.expect_err("a guess") {
            EnrolError::Refused(said) => (reason, refused) = (said, refused + 1),
            EnrolError::Busy(said) => break said,
            other => panic!("{other}"),
        }
    };
    assert!(reason.starts_with("this invite is not known"), "{reason}");
    assert!(refused >= 20 && busy.contains("try again"), "{refused}: {busy}");
    isp.stop().await;
}

#[tokio::test]
async fn an_invite_that_ended_was_withdrawn_or_replaced_serves_no_more() {
    let isp = Isp::start().await;
    let ended = isp.invite_for(Role::User, "ann", time::Duration::ZERO).await;
    let refused = isp.join(&ended, "ann.toml").await.expect_err("too late");
    assert!(refused.exit == Exit::Permission && refused.message.starts_with("this invite ended on 20"), "{refused}");

    let withdrawn = isp.invite(Role::User, "ann").await;
    isp.registrar.accounts().revoke_invite(withdrawn.number).await.expect("open");
    isp.registrar.accounts().revoke_invite(withdrawn.number).await.expect_err("withdrawn already");
    let replaced = isp.invite(Role::User, "ann").await;
    let last = isp.invite(Role::User, "ann").await;
    for invite in [withdrawn, replaced] {
        let refused = isp.join(&invite, "ann.toml").await.expect_err("no more");
        assert!(refused.exit == Exit::Permission && refused.message.contains("withdrawn"), "{refused}");
    }
    isp.join(&last, "ann.toml").await.expect("the last serves");
    let states: Vec<_> = isp.registrar.accounts().invites().await.expect("a list").into_iter().map(|invite| invite.state).collect();
    assert_eq!(states.len(), 4);
    isp.stop().await;
}

#[tokio::test]
async fn who_has_joined_is_invited_again_on_purpose_and_a_relay_moves_with_it() {
    let isp = Isp::start().await;
    let elm = name("elm");
    for role in [Role::User, Role::Relay] {
        let old = isp.join(&isp.invite(role, "ann").await, &format!("{role}-old.toml")).await.expect("joined");
        let failure = isp.registrar.invite(&invitation(&elm, role, &name("ann"), false)).await.expect_err("has joined");
        assert!(failure.message.contains("--again"), "{failure}");
        let (again, _) = isp.registrar.invite(&invitation(&elm, role, &name("ann"), true)).await.expect("on purpose");
        let new = isp.join(&isp.reached(again), &format!("{role}-new.toml")).await.expect("joined again");
        let is_member = async |profile: &Profile| {
            let certificate = tls::certificate("certificate", &profile.certificate_pem).expect("PEM");
            isp.registrar.accounts().authorise(&certificate, role).await.is_ok()
        };
        assert!(is_member(&new).await);
        assert_eq!(is_member(&old).await, role == Role::User, "a user may have several PCs, a relay is one");
    }
    isp.stop().await;
}

#[tokio::test]
async fn a_member_who_was_removed_does_not_join() {
    let isp = Isp::start().await;
    let invite = isp.invite(Role::User, "ann").await;
    isp.registrar.accounts().remove_member(&name("elm"), Role::User, &name("ann")).await.expect("there");
    let refused = isp.join(&invite, "ann.toml").await.expect_err("removed");
    assert!(refused.message.starts_with("user ann of LAN 15 was removed on"), "{refused}");
    isp.stop().await;
}

#[tokio::test]
async fn only_a_member_renews_and_a_member_has_a_bounded_number_of_certificates() {
    let isp = Isp::start().await;
    let (elm, accounts) = (name("elm"), isp.registrar.accounts());
    let profile = isp.join(&isp.invite(Role::User, "ann").await, "ann.toml").await.expect("joined");
    let certificate = tls::certificate("certificate", &profile.certificate_pem).expect("PEM");
    let renew = async |certificate: &[u8], key: u8| {
        let expires_at = OffsetDateTime::now_utc() + time::Duration::days(1);
        accounts.renew(certificate, [key; 32], |_| Ok(Certified { der: vec![key; 40], expires_at })).await
    };
    let renewed = renew(&certificate, 1).await.expect("a member's");
    assert_eq!(renew(&certificate, 1).await.expect("in case the answer was lost"), renewed);
    renew(&renewed.certificate, 2).await.expect("a member's");
    assert!(matches!(renew(b"another", 3).await, Err(EnrolDenied::UnknownCertificate)));
    let mut key = 3;
    while renew(&certificate, key).await.is_ok() {
        key += 1;
    }
    assert!(matches!(renew(&certificate, key).await, Err(EnrolDenied::TooMany(_))) && key > 8, "{key}");
    accounts.remove_member(&elm, Role::User, &name("ann")).await.expect("there");
    for certificate in [&certificate[..], &renewed.certificate] {
        assert!(matches!(renew(certificate, 1).await, Err(EnrolDenied::Removed { .. })));
    }
    isp.stop().await;
}

#[tokio::test]
async fn somebody_in_between_is_noticed_and_told_nothing() {
    let (isp, other) = (Isp::start().await, Isp::start().await);
    let invite = Invite { fingerprint: Fingerprint([7; 32]), ..isp.invite(Role::User, "ann").await };
    let failure = isp.join(&invite, "ann.toml").await.expect_err("another authority");
    assert!(failure.exit == Exit::Data && failure.message.contains("not the reconst that made this invite"), "{failure}");

    let invite = Invite { reconst: other.address(), ..isp.invite(Role::User, "ann").await };
    let failure = isp.join(&invite, "ann.toml").await.expect_err("another reconst");
    assert_eq!(failure.exit, Exit::Data);
    assert!(!isp.path("ann.toml").exists());
    isp.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn what_is_wrong_on_this_pc_is_found_before_the_invite_is_spent() {
    let isp = Isp::start().await;
    let invite = isp.invite(Role::User, "ann").await;
    std::fs::write(isp.path("there.toml"), "something").expect("written");
    let failure = isp.join(&invite, "there.toml").await.expect_err("exists");
    assert!(failure.exit == Exit::Config && failure.message.contains("--force"), "{failure}");
    std::fs::write(isp.path("file"), "").expect("written");
    isp.join(&invite, "file/ann.toml").await.expect_err("no directory");
    let forced = Joining { may_replace: true, ..isp.joining(&invite, "there.toml") };
    forced.run().await.expect("the invite still serves");
    isp.stop().await;
}

#[tokio::test]
async fn a_reconst_that_does_not_answer_says_what_to_check() {
    let isp = Isp::start().await;
    let silent = UdpSocket::bind((LOOPBACK, 0)).expect("a port");
    let invite = Invite { reconst: vec![target(silent.local_addr().expect("bound"))], ..isp.invite(Role::User, "ann").await };
    let failure = isp.join(&invite, "ann.toml").await.expect_err("nobody there");
    assert!(failure.exit == Exit::Unavailable && failure.message.contains("firewall"), "{failure}");
    isp.stop().await;
}

impl Isp {
    fn address(&self) -> Vec<Target> {
        vec![target(self.running.login_addr())]
    }

    async fn invite(&self, role: Role, member: &str) -> Invite {
        self.invite_for(role, member, time::Duration::days(7)).await
    }

    async fn invite_for(&self, role: Role, member: &str, lifetime: time::Duration) -> Invite {
        let (elm, member) = (name("elm"), name(member));
        let invitation = Invitation { lifetime, ..invitation(&elm, role, &member, false) };
        let (invite, invited) = self.registrar.invite(&invitation).await.expect("a new invite");
        assert!(invited.expires_at <= OffsetDateTime::now_utc() + lifetime);
        self.reached(invite.to_string().parse().expect("a link"))
    }

    /// The invite with the port that the system chose.
    fn reached(&self, invite: Invite) -> Invite {
        Invite { reconst: self.address(), ..invite }
    }

    fn joining(&self, invite: &Invite, profile: &str) -> Joining {
        Joining { listens: false, ..Joining::new(invite.clone(), self.path(profile)) }
    }

    async fn join(&self, invite: &Invite, profile: &str) -> Result<Profile, Failure> {
        timeout(DEADLINE, self.joining(invite, profile).run()).await.expect("in time")
    }

    /// What a PC with this key gets for the invite.
    async fn ask(&self, invite: &Invite, key: &NewKey) -> Result<Issued, EnrolError> {
        let socket = UdpSocket::bind((LOOPBACK, 0)).expect("a port");
        socket.set_nonblocking(true).expect("ours");
        let reached = enrol::connect(socket, self.running.login_addr(), invite.fingerprint).await.expect("reconst answers");
        let title = Title::Invite { number: invite.number, secret: invite.secret };
        let answered = timeout(DEADLINE, enrol::request(&reached.connection, title, key)).await.expect("in time");
        reached.close().await;
        answered
    }
}

fn invitation<'a>(lan: &'a Name, role: Role, member: &'a Name, again: bool) -> Invitation<'a> {
    const NO_LIMITS: &Limits = &Limits { quota: None, rate_up: None, rate_down: None, max_flows: None };
    Invitation { lan, role, name: member, limits: NO_LIMITS, again, lifetime: time::Duration::days(7) }
}

fn target(address: SocketAddr) -> Target {
    Target { host: Host::Ip(address.ip()), port: address.port() }
}
