//! Setting up as a new neighbour does: an invite, a join, traffic.

mod common;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use common::{until, within};
use neighbourhood::{
    content::ContentServer,
    load::{Client, Via},
    program::Program,
};
use reconst::{
    accounts::{Limits, invites::Invitation},
    provision::{DEFAULT_LOGIN_PORT, MEMBER_VALIDITY, Registrar},
};
use shared::{
    community::{
        invite::Invite,
        member::{Name, Role},
        profile::Profile,
    },
    ids::LanId,
    link::renew::check_time,
    service::joining::Joining,
    target::{Host, Target},
};

#[tokio::test]
async fn two_invites_and_two_joins_make_a_relay_and_a_user_without_a_line() {
    let isp = Isp::start().await;
    let scratch = tempfile::tempdir().expect("a directory");

    let profile = join(&isp.invite(Role::Relay, "ann-pc").await, scratch.path(), &[]).await;
    let relay = isp.relay(profile).await;
    let relay_address = relay.running().lan_addr();

    // A user's PC that reaches nothing but the relay.
    let nowhere = UdpSocket::bind((LOOPBACK, 0)).expect("a port");
    let invite = isp.invite(Role::User, "ann").await;
    let invite = Invite { reconst: vec![target(nowhere.local_addr().expect("bound"))], ..invite };
    let user = join(&invite, scratch.path(), &[relay_address]).await;
    assert_eq!(relay.running().status().lines[0].strangers_carried, 1);

    let proxy = start_proxy(&user, relay_address).await;
    let client = Client::new(Via::Socks5(proxy.running().listen_addresses()[0]), target(isp.content.address()));
    within(client.download(500_003, 3)).await.expect("exact");
    within(client.upload(100_003, 4)).await.expect("exact");
    within(proxy.stop(proxy_local::Running::wait)).await.expect("an orderly end");
    within(relay.stop(peer_relay::Running::wait)).await.expect("an orderly end");
    within(isp.reconst.stop(reconst::Running::wait)).await.expect("an orderly end");
}

#[tokio::test]
async fn certificates_renew_themselves_and_serve_past_the_end_of_the_first() {
    let isp = Isp::start().await;
    let scratch = tempfile::tempdir().expect("a directory");
    isp.set_validity(SHORT).await;
    let of_relay = join(&isp.invite(Role::Relay, "ann-pc").await, scratch.path(), &[]).await;
    let of_user = join(&isp.invite(Role::User, "ann").await, scratch.path(), &[]).await;
    let first_ends = SystemTime::now() + SHORT + Duration::from_secs(1);
    isp.set_validity(Duration::from_secs(3600)).await;
    let (relay_file, user_file) = (scratch.path().join("relay.toml"), scratch.path().join("user.toml"));
    let relay = isp.relay_of(of_relay.clone(), (LOOPBACK, 0).into(), Some(relay_file.clone())).await;
    let relay_address = relay.running().lan_addr();
    let proxy = start_proxy_of(&of_user, relay_address, Some(user_file.clone())).await;

    let renewed_relay = renewed(&of_relay, &relay_file).await;
    let renewed_user = renewed(&of_user, &user_file).await;
    assert!(renewed_user.key_pem != of_user.key_pem && renewed_user.identity == of_user.identity);
    assert_eq!(std::fs::metadata(&user_file).expect("there").permissions().mode() & 0o777, 0o600);
    tokio::time::sleep(first_ends.duration_since(SystemTime::now()).unwrap_or_default()).await;
    assert!(check_time(&of_user).is_err() && check_time(&renewed_user).is_ok());

    // A new proxy believes the relay that has run all along.
    let other = start_proxy(&renewed_user, relay_address).await;
    within(isp.client(&other).download(100_003, 5)).await.expect("exact");
    // The proxy that has run all along is believed by a new relay, and by reconst.
    within(relay.stop(peer_relay::Running::wait)).await.expect("an orderly end");
    let relay = isp.relay_of(renewed_relay, (LOOPBACK, 0).into(), None).await;
    proxy.running().paths().expect("a session").add_relay(relay.running().lan_addr(), true);
    within(isp.client(&proxy).download(100_003, 6)).await.expect("exact");
}

struct Isp {
    content: ContentServer,
    registrar: Registrar,
    reconst: Program<reconst::Running>,
    _state: tempfile::TempDir,
}

impl Isp {
    async fn start() -> Self {
        let content = ContentServer::start((CONTENT, 0).into()).await.expect("a port");
        let directory = tempfile::tempdir().expect("a directory");
        let state = directory.path().join("state");
        let registrar = Registrar::init(&state, &[Host::Ip(LOOPBACK)], DEFAULT_LOGIN_PORT).await.expect("a new state");
        registrar.add_lan(&name("elm"), Some(LanId(15)), None).await.expect("a new LAN");
        let config = reconst::Config {
            login_port_override: Some(0),
            has_ephemeral_data_ports: true,
            egress_allow: vec![CONTENT.into()],
            drain_time: Duration::from_secs(1),
            ..reconst::Config::new(state, LOOPBACK)
        };
        let reconst = Program::start("reconst", move |shutdown| reconst::start(config, shutdown)).await.expect("free ports");
        Self { content, registrar, reconst, _state: directory }
    }

    async fn invite(&self, role: Role, member: &str) -> Invite {
        let limits = Limits::default();
        let (lan, member) = (name("elm"), name(member));
        let invitation = Invitation { lan: &lan, role, name: &member, limits: &limits, again: false, lifetime: time::Duration::days(7) };
        let (invite, _) = self.registrar.invite(&invitation).await.expect("a new invite");
        let link = Invite { reconst: vec![self.login()], ..invite }.to_string();
        link.parse().expect("a link")
    }

    /// Where logins are made: the port that the system chose.
    fn login(&self) -> Target {
        target(self.reconst.running().login_addr())
    }

    /// How long the certificates are valid that are issued from now on.
    async fn set_validity(&self, validity: Duration) {
        let seconds = validity.as_secs().to_string();
        self.registrar.accounts().set_setting(MEMBER_VALIDITY, &seconds).await.expect("set");
    }

    fn client(&self, proxy: &Program<proxy_local::Running>) -> Client {
        Client::new(Via::Socks5(proxy.running().listen_addresses()[0]), target(self.content.address()))
    }

    async fn relay(&self, profile: Profile) -> Program<peer_relay::Running> {
        self.relay_of(profile, (LOOPBACK, 0).into(), None).await
    }

    /// A relay that renews its certificate at once, in `file` if there is one.
    async fn relay_of(&self, profile: Profile, at: SocketAddr, file: Option<PathBuf>) -> Program<peer_relay::Running> {
        let mut config = peer_relay::Config::new(Profile { reconst: vec![self.login()], ..profile });
        config.announce.multicast = false;
        config.profile_file = file;
        config.renew_left_percent = 90;
        config.lines[0].lan_bind = Some(at);
        let relay = Program::start("relay", move |shutdown| peer_relay::start(config, shutdown)).await.expect("a free port");
        let mut upstream = relay.running().upstreams().remove(0);
        within(upstream.wait_for(|upstream| upstream.is_logged_in)).await.expect("logged in");
        relay
    }
}

async fn join(invite: &Invite, scratch: &Path, relays: &[SocketAddr]) -> Profile {
    let path = scratch.join(format!("{}.toml", invite.role));
    let joining = Joining { relays: relays.to_vec(), listens: false, ..Joining::new(invite.clone(), path) };
    within(joining.run()).await.expect("an invite that serves")
}

/// What a profile's file holds once that is another certificate than `before`.
async fn renewed(before: &Profile, file: &Path) -> Profile {
    let read = || Profile::parse(&std::fs::read_to_string(file).expect("always there")).expect("always whole");
    until("a renewal", || read().certificate_pem != before.certificate_pem).await;
    read()
}

async fn start_proxy(user: &Profile, relay: SocketAddr) -> Program<proxy_local::Running> {
    start_proxy_of(user, relay, None).await
}

async fn start_proxy_of(user: &Profile, relay: SocketAddr, profile_file: Option<PathBuf>) -> Program<proxy_local::Running> {
    let config = proxy_local::Config {
        listen: vec![proxy_local::Bind { address: (LOOPBACK, 0).into(), is_required: true }],
        relays: vec![relay],
        discover: false,
        bypass: None,
        profile_files: profile_file.into_iter().collect(),
        renew_left_percent: 90,
        ..proxy_local::Config::new(vec![user.clone()])
    };
    let proxy = Program::start("proxy", move |shutdown| proxy_local::start(config, shutdown)).await.expect("a free port");
    until("path", || !proxy.running().status().paths.is_empty()).await;
    proxy
}

fn target(address: SocketAddr) -> Target {
    Target { host: Host::Ip(address.ip()), port: address.port() }
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// Long enough to start everything in, short enough to wait for.
const SHORT: Duration = Duration::from_secs(7);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Not `reconst`'s own address, to which it dials no flow.
const CONTENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 200, 1));
