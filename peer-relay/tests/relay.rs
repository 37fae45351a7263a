//! A relay on loopback, between a proxy and a `reconst` that the tests play.

mod common;

use std::{net::SocketAddr, time::Duration};

use common::{Authority, DEADLINE, LAN, config, loopback, next, ready, socket, until};
use shared::{
    community::{
        hello::{HelloRefusal, LineNumber, Nonce, Reply, Request, Welcome},
        member::Role,
        weight::{LineWeight, Weights},
    },
    link::{
        carry::ask_to_carry,
        lan::{HelloError, request_service},
        tls::Signer,
    },
    service::Shutdown,
};
use tokio::{net::UdpSocket, time::timeout};

#[tokio::test]
async fn a_member_is_welcomed_and_its_packets_go_through_both_ways_unchanged() {
    let authority = Authority::new();
    let reconst = authority.reconst().await;
    let mut config = config(authority.profile("relay1", Role::Relay, reconst.login));
    config.lines[0].weights = Weights { up: LineWeight::set(2), down: LineWeight::set(9) };
    let weights = config.lines[0].weights;
    let relay = ready(config, Shutdown::new()).await;
    let proxy = socket().await;

    let welcome = ask(&authority, &proxy, relay.lan_addr(), &authority.user("ann")).await.expect("welcome");
    assert_eq!((welcome.relay.name.as_str(), welcome.line, welcome.weights), ("relay1", LineNumber(1), weights));
    let wan = exchange(&proxy, relay.lan_addr(), &reconst.data, 50).await;
    assert_eq!(exchange(&proxy, relay.lan_addr(), &reconst.data, 50).await, wan, "a client keeps its address towards reconst");

    let other = socket().await;
    ask(&authority, &other, relay.lan_addr(), &authority.user("bob")).await.expect("welcome");
    assert_ne!(exchange(&other, relay.lan_addr(), &reconst.data, 50).await, wan, "each client has its own");
    let carried = relay.status().lines[0].carried;
    assert_eq!((carried.up.packets, carried.down.packets, carried.up.dropped, carried.down.dropped), (150, 150, 0, 0));
    assert_eq!(carried.up.bytes, carried.down.bytes);
}

#[tokio::test]
async fn a_stranger_is_carried_away_from_the_data_port_and_not_at_all_if_the_owner_says_so() {
    let authority = Authority::new();
    let reconst = authority.reconst().await;
    let mut config = config(authority.profile("relay1", Role::Relay, reconst.login));
    let relay = ready(config.clone(), Shutdown::new()).await;
    let (stranger, proxy) = (socket().await, socket().await);
    ask_to_carry(&stranger, relay.lan_addr()).await.expect("carried");
    for _ in 0..5 {
        stranger.send_to(&[0x40; 50], relay.lan_addr()).await.expect("sent");
    }
    ask(&authority, &proxy, relay.lan_addr(), &authority.user("ann")).await.expect("welcome");
    exchange(&proxy, relay.lan_addr(), &reconst.data, 50).await;
    let line = relay.status().lines.remove(0);
    assert_eq!((line.strangers_carried, line.carried.up.packets), (1, 50));

    config.carries_strangers = false;
    let relay = ready(config, Shutdown::new()).await;
    let refused = ask_to_carry(&stranger, relay.lan_addr()).await.expect_err("not carried");
    assert!(matches!(refused, HelloError::Refused { refusal: HelloRefusal::NotCarried, .. }), "{refused}");
}

#[tokio::test]
async fn batches_go_through_packet_by_packet() {
    let authority = Authority::new();
    let reconst = authority.reconst().await;
    let relay = ready(config(authority.profile("relay1", Role::Relay, reconst.login)), Shutdown::new()).await;
    let proxy = socket().await;
    ask(&authority, &proxy, relay.lan_addr(), &authority.user("ann")).await.expect("welcome");

    let packets: Vec<_> = (0..20).map(|number| quic(number, if number == 19 { 333 } else { 1200 })).collect();
    send_segmented(&proxy, relay.lan_addr(), &packets.concat(), 1200);
    let mut wan = loopback();
    for packet in &packets {
        let (received, from) = next(&reconst.data).await;
        assert!(received == *packet, "on the way up");
        wan = from;
    }
    send_segmented(&reconst.data, wan, &packets.concat(), 1200);
    for packet in &packets {
        assert!(next(&proxy).await.0 == *packet, "on the way down");
    }
    assert_eq!(relay.status().lines[0].carried.up.packets, 20);
}

#[tokio::test]
async fn a_stranger_s_packets_go_nowhere() {
    let authority = Authority::new();
    let reconst = authority.reconst().await;
    let relay = ready(config(authority.profile("relay1", Role::Relay, reconst.login)), Shutdown::new()).await;
    let (proxy, stranger) = (socket().await, socket().await);
    ask(&authority, &proxy, relay.lan_addr(), &authority.user("ann")).await.expect("welcome");

    for number in 0..10 {
        stranger.send_to(&quic(number, 1200), relay.lan_addr()).await.expect("sent");
    }
    let error = ask(&authority, &stranger, relay.lan_addr(), &Authority::new().user("ann")).await.expect_err("a stranger");
    assert!(matches!(error, HelloError::Refused { refusal: HelloRefusal::NotAMember, .. }), "{error}");
    stranger.send_to(&quic(99, 1200), relay.lan_addr()).await.expect("sent");
    // Packets to one socket arrive in order: when the member's is there, the stranger's would have been.
    proxy.send_to(&quic(7, 1200), relay.lan_addr()).await.expect("sent");
    assert_eq!(next(&reconst.data).await.0, quic(7, 1200));
    assert_eq!(relay.status().lines[0].dropped_of_strangers, 11);
}

#[tokio::test]
async fn a_captured_hello_admits_no_other_address() {
    let authority = Authority::new();
    let reconst = authority.reconst().await;
    let relay = ready(config(authority.profile("relay1", Role::Relay, reconst.login)), Shutdown::new()).await;
    let (proxy, thief, ann) = (socket().await, socket().await, authority.user("ann"));

    let request = Request { nonce: Nonce([1; 16]), lan: LAN, line: LineNumber(1), relay: relay.lan_addr() };
    proxy.send_to(&request.encode_first(), relay.lan_addr()).await.expect("sent");
    let Ok(Reply::Challenge(cookie)) = Reply::decode(&next(&proxy).await.0, request.nonce) else { panic!("no challenge") };
    let captured = request.encode_signed(cookie, ann.certificate_der(), |message| ann.sign(message));
    thief.send_to(&captured, relay.lan_addr()).await.expect("sent");
    assert!(matches!(Reply::decode(&next(&thief).await.0, request.nonce), Ok(Reply::Challenge(_))));
    proxy.send_to(&captured, relay.lan_addr()).await.expect("sent");
    assert!(matches!(Reply::decode(&next(&proxy).await.0, request.nonce), Ok(Reply::Welcome(_))), "the same from its own address");
}

#[tokio::test]
async fn foreign_packets_on_the_line_reach_nobody() {
    let authority = Authority::new();
    let reconst = authority.reconst().await;
    let relay = ready(config(authority.profile("relay1", Role::Relay, reconst.login)), Shutdown::new()).await;
    let (proxy, foreigner) = (socket().await, socket().await);
    ask(&authority, &proxy, relay.lan_addr(), &authority.user("ann")).await.expect("welcome");
    let wan = exchange(&proxy, relay.lan_addr(), &reconst.data, 1).await;
    for number in 100..110 {
        foreigner.send_to(&quic(number, 1200), wan).await.expect("sent");
    }
    reconst.data.send_to(&quic(1, 1200), wan).await.expect("sent");
    assert_eq!(next(&proxy).await.0, quic(1, 1200));
    assert_eq!(relay.status().lines[0].carried.down.packets, 2);
}

#[tokio::test]
async fn a_relay_without_reconst_refuses_until_it_is_logged_in() {
    let authority = Authority::new();
    let nowhere = UdpSocket::bind(loopback()).await.expect("a port");
    let profile = authority.profile("relay1", Role::Relay, nowhere.local_addr().expect("bound"));
    let relay = peer_relay::start(config(profile), Shutdown::new()).await.expect("started");
    let proxy = socket().await;
    let request = Request { nonce: Nonce([1; 16]), lan: LAN, line: LineNumber::ANY, relay: relay.lan_addr() };
    proxy.send_to(&request.encode_first(), relay.lan_addr()).await.expect("sent");
    assert_eq!(Reply::decode(&next(&proxy).await.0, request.nonce), Ok(Reply::Refused(HelloRefusal::NotReady)));
}

#[tokio::test]
async fn a_relay_logs_in_at_the_server_that_answers_and_tells_what_others_say() {
    let authority = Authority::new();
    let silent = UdpSocket::bind(loopback()).await.expect("a port");
    let target = |address: SocketAddr| address.to_string().parse().expect("a target");
    let (reconst, foreign) = (authority.reconst().await, Authority::new().reconst().await);
    let mut profile = authority.profile("relay1", Role::Relay, silent.local_addr().expect("bound"));
    profile.reconst.extend([foreign.login, reconst.login].map(target));
    let relay = ready(config(profile.clone()), Shutdown::new()).await;
    assert_eq!(relay.upstreams()[0].borrow().login, Some(reconst.login));

    profile.reconst.pop();
    let relay = peer_relay::start(config(profile), Shutdown::new()).await.expect("started");
    let mut upstream = relay.upstreams().remove(0);
    let told = timeout(DEADLINE, upstream.wait_for(|upstream| upstream.problem.is_some())).await.expect("in time").expect("the relay runs");
    let problem = told.problem.clone().expect("waited for");
    assert!(problem.contains("ask its operator for a new one"), "the other one only does not answer: {problem}");
}

#[tokio::test]
async fn a_client_that_stays_silent_must_ask_again() {
    let authority = Authority::new();
    let reconst = authority.reconst().await;
    let mut config = config(authority.profile("relay1", Role::Relay, reconst.login));
    config.client_idle = Duration::from_millis(10);
    let relay = ready(config, Shutdown::new()).await;
    let proxy = socket().await;
    ask(&authority, &proxy, relay.lan_addr(), &authority.user("ann")).await.expect("welcome");
    until(|| relay.status().lines[0].clients.is_empty()).await;
    ask(&authority, &proxy, relay.lan_addr(), &authority.user("ann")).await.expect("welcome again");
}

#[tokio::test]
async fn a_relay_that_is_to_stop_takes_nobody_new_and_serves_on_until_it_is_quiet() {
    let authority = Authority::new();
    let reconst = authority.reconst().await;
    let shutdown = Shutdown::new();
    let relay = ready(config(authority.profile("relay1", Role::Relay, reconst.login)), shutdown.clone()).await;
    let (address, proxy, late) = (relay.lan_addr(), socket().await, socket().await);
    ask(&authority, &proxy, address, &authority.user("ann")).await.expect("welcome");
    let waiting = tokio::spawn(relay.wait());
    shutdown.request();
    exchange(&proxy, address, &reconst.data, 5).await;
    let error = ask(&authority, &late, address, &authority.user("bob")).await.expect_err("it drains");
    assert!(matches!(error, HelloError::Refused { refusal: HelloRefusal::Draining, .. }), "{error}");
    timeout(DEADLINE, waiting).await.expect("in time").expect("no panic").expect("drained");
    UdpSocket::bind(address).await.expect("the port is free again");
}

#[tokio::test]
async fn nobody_answers_for_a_relay_that_is_none() {
    let authority = Authority::new();
    let reconst = authority.reconst().await;
    let impostor = authority.profile("mallory", Role::Relay, reconst.login);
    let relay = ready(config(impostor), Shutdown::new()).await;
    let proxy = socket().await;
    let other = Authority::new();
    let error = ask(&other, &proxy, relay.lan_addr(), &authority.user("ann")).await.expect_err("of another authority");
    assert!(matches!(error, HelloError::NotARelay { .. }), "{error}");
}

async fn ask(authority: &Authority, proxy: &UdpSocket, relay: SocketAddr, signer: &Signer) -> Result<Welcome, HelloError> {
    request_service(proxy, relay, LineNumber::ANY, signer, &authority.verifier(), LAN).await
}

/// Sends `count` packets up and an answer to each down, every byte compared; the relay's address as `reconst` sees it.
async fn exchange(proxy: &UdpSocket, relay: SocketAddr, reconst: &UdpSocket, count: u8) -> SocketAddr {
    let mut wan = loopback();
    for number in 0..count {
        let packet = quic(number, 40 + 23 * usize::from(number));
        proxy.send_to(&packet, relay).await.expect("sent");
        let (received, from) = next(reconst).await;
        assert_eq!(received, packet);
        reconst.send_to(&received, from).await.expect("sent");
        let (answer, from_relay) = next(proxy).await;
        assert_eq!((answer, from_relay), (packet, relay));
        wan = from;
    }
    wan
}

/// What begins like a packet of QUIC.
fn quic(number: u8, len: usize) -> Vec<u8> {
    (0..len).map(|position| if position == 0 { 0x40 | number } else { (position as u8).wrapping_mul(31).wrapping_add(number) }).collect()
}

/// Sends as one call what arrives as many packets, where the system can.
fn send_segmented(socket: &UdpSocket, to: SocketAddr, contents: &[u8], stride: usize) {
    // On a socket of its own: the state would have `socket` receive in batches too.
    let other = std::net::UdpSocket::bind(loopback()).expect("a port");
    let state = quinn_udp::UdpSocketState::new((&other).into()).expect("a UDP socket");
    let parts = if state.max_gso_segments() > 1 { contents.len() } else { stride };
    for contents in contents.chunks(parts) {
        let segment_size = (contents.len() > stride).then_some(stride);
        let transmit = quinn_udp::Transmit { destination: to, ecn: None, contents, segment_size, src_ip: None };
        state.try_send(socket.into(), &transmit).expect("sent");
    }
}
