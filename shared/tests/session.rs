//! A session between two ends of this process, over real QUIC connections on loopback, without relays.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ED25519};
use shared::{
    community::{
        member::{Identity, RECONST_NAME, Role},
        profile::Profile,
        weight::LineWeight,
    },
    ids::{LanId, PathId},
    link::{
        path_socket::PathSocket,
        session::SessionHandle,
        tls::{PATH_ALPN, SERVER_NAME, client_crypto, server_crypto},
        transport,
    },
    transfer::{
        control::AbortCode,
        schedule::Policy,
        session::{Limits, Side},
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_cross_both_ways_over_two_paths_and_survive_the_loss_of_one() {
    let ends = Ends::connect(2).await;
    let mut near = ends.proxy.open().expect("room for a flow");
    let sent = sample(3_000_000);
    within(near.write_all(&sent[..200_000])).await.expect("the flow is open");
    let mut far = within(ends.reconst.accept()).await.expect("the session is open");
    ends.connections[0].close(0u32.into(), b"");
    let echo = tokio::spawn(async move {
        let mut all = Vec::new();
        within(far.read_to_end(&mut all)).await.expect("an end");
        within(far.write_all(&all)).await.expect("the other half is open");
        far.shutdown().await.expect("the flow is open");
        all
    });
    within(near.write_all(&sent[200_000..])).await.expect("the flow is open");
    near.shutdown().await.expect("the flow is open");
    let mut back = Vec::new();
    within(near.read_to_end(&mut back)).await.expect("an end");
    assert!(echo.await.expect("no panic") == sent);
    assert!(back == sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_stream_resets_the_other_end() {
    let ends = Ends::connect(1).await;
    let mut near = ends.proxy.open().expect("room for a flow");
    near.write_all(b"half a reque").await.expect("the flow is open");
    let mut far = within(ends.reconst.accept()).await.expect("the session is open");
    let mut some = [0; 12];
    within(far.read_exact(&mut some)).await.expect("bytes");
    drop(near);
    let error = within(far.read_u8()).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_is_told_to_who_neither_reads_nor_writes() {
    let ends = Ends::connect(1).await;
    let mut near = ends.proxy.open().expect("room for a flow");
    near.write_all(b"half a reque").await.expect("the flow is open");
    let far = within(ends.reconst.accept()).await.expect("the session is open");
    let aborted = far.aborted();
    drop(near);
    within(aborted).await;
    within(far.aborted()).await;
    let other = ends.proxy.open().expect("room for a flow");
    let aborted = other.aborted();
    ends.proxy.close(AbortCode::SessionLost, 0, b"");
    within(aborted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_had_come_before_a_reset_can_still_be_read() {
    let ends = Ends::connect(2).await;
    let mut near = ends.proxy.open().expect("room for a flow");
    near.write_all(b"?").await.expect("the flow is open");
    let mut far = within(ends.reconst.accept()).await.expect("the session is open");
    let sent = sample(50_000);
    within(far.write_all(&sent)).await.expect("the flow is open");
    let watch = far.watch();
    until(|| watch.undelivered() == 0).await;
    drop(far);
    within(async { while near.write_all(b"?").await.is_ok() {} }).await;
    let mut came = Vec::new();
    let error = within(near.read_to_end(&mut came)).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(came == sent, "{} of {}", came.len(), sent.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_session_aborts_its_flows_and_takes_no_more() {
    let ends = Ends::connect(1).await;
    let mut near = ends.proxy.open().expect("room for a flow");
    near.write_all(b"x").await.expect("the flow is open");
    ends.proxy.close(AbortCode::SessionLost, 0, b"over");
    assert!(within(near.read_u8()).await.is_err());
    assert!(ends.proxy.open().is_none());
    assert!(within(ends.proxy.accept()).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_flow_comes_through_while_the_session_keeps_all_that_it_may() {
    let ends = Ends::with_retained(2, 64 << 10).await;
    let sent = sample(300_000);
    let mut flows = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (mut near, sent) = (ends.proxy.open().expect("room for a flow"), sent.clone());
        flows.spawn(async move {
            within(near.write_all(&sent)).await.expect("the flow is open");
            near.shutdown().await.expect("the flow is open");
            within(near.read_u8()).await.expect("a word that all has come")
        });
    }
    for _ in 0..8 {
        let mut far = within(ends.reconst.accept()).await.expect("the session is open");
        let sent = sent.clone();
        flows.spawn(async move {
            let mut all = Vec::new();
            within(far.read_to_end(&mut all)).await.expect("an end");
            assert!(all == sent);
            within(far.write_u8(1)).await.expect("the other half is open");
            far.shutdown().await.expect("the flow is open");
            1
        });
    }
    while let Some(flow) = within(flows.join_next()).await {
        flow.expect("no panic");
    }
}

#[tokio::test]
async fn a_path_whose_interfaces_take_long_packets_sends_them() {
    let mtu = std::fs::read_to_string("/sys/class/net/lo/mtu").ok().and_then(|mtu| mtu.trim().parse::<u32>().ok());
    if mtu.is_none_or(|mtu| mtu < 9000) {
        eprintln!("skipped: the loopback's MTU is {mtu:?}, or not known");
        return;
    }
    let ends = Ends::connect(1).await;
    until(|| ends.connections[0].max_datagram_size().is_some_and(|bytes| bytes >= 8000)).await;
}

/// Both ends of a session.
struct Ends {
    proxy: SessionHandle,
    reconst: SessionHandle,
    connections: Vec<quinn::Connection>,
    _endpoints: Vec<quinn::Endpoint>,
}

impl Ends {
    async fn connect(paths: u32) -> Self {
        Self::with_retained(paths, Limits::default().retained).await
    }

    /// Ends whose sessions keep so many unacknowledged bytes before each flow is held to a few.
    async fn with_retained(paths: u32, retained: u64) -> Self {
        let credentials = Credentials::new();
        let transport = transport::path_transport((Ipv4Addr::LOCALHOST, 0).into());
        let server = server_crypto(&credentials.profile.authority_pem, &credentials.server_certificate, &credentials.server_key, PATH_ALPN);
        let mut server_config = quinn::ServerConfig::with_crypto(server.expect("usable certificates"));
        server_config.transport_config(transport.clone());
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = endpoint(loopback, Some(server_config));
        let mut client_config = quinn::ClientConfig::new(client_crypto(&credentials.profile, PATH_ALPN).expect("a usable profile"));
        client_config.transport_config(transport);

        let limits = Limits { keep_alive: Some(Duration::from_secs(5)), retained, ..Limits::default() };
        let proxy = SessionHandle::new(Side::Proxy, Policy::Adaptive, limits);
        let reconst = SessionHandle::new(Side::Reconst, Policy::Adaptive, Limits::default());
        let mut ends = Self { proxy, reconst, connections: Vec::new(), _endpoints: vec![server.clone()] };
        for id in (0..paths).map(PathId) {
            let client = endpoint(loopback, None);
            let address = server.local_addr().expect("bound");
            let connecting = client.connect_with(client_config.clone(), address, SERVER_NAME).expect("a valid configuration");
            let accepting = async { server.accept().await.expect("the endpoint is open").await };
            let (near, far) = tokio::try_join!(connecting, accepting).expect("a handshake");
            ends.connections.push(near.clone());
            ends._endpoints.push(client);
            for (session, connection) in [(ends.proxy.clone(), near), (ends.reconst.clone(), far)] {
                tokio::spawn(async move { session.run_path(id, connection, LineWeight::default()).await });
            }
        }
        for session in [&ends.proxy, &ends.reconst] {
            let mut count = session.path_count();
            within(count.wait_for(|count| count.joined == paths as usize)).await.expect("the session is open");
        }
        ends
    }
}

fn endpoint(address: SocketAddr, server: Option<quinn::ServerConfig>) -> quinn::Endpoint {
    let socket = PathSocket::new(std::net::UdpSocket::bind(address).expect("a port")).expect("a socket");
    let runtime = Arc::new(quinn::TokioRuntime);
    quinn::Endpoint::new_with_abstract_socket(transport::path_endpoint(), server, socket, runtime).expect("an endpoint")
}

/// An authority, `reconst`'s certificate and a user's profile, made for one test.
struct Credentials {
    profile: Profile,
    server_certificate: String,
    server_key: String,
}

impl Credentials {
    fn new() -> Self {
        let authority_key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let authority = params.self_signed(&authority_key).expect("a certificate");
        let issuer = Issuer::new(params, authority_key);
        let issue = |name: String, usage: ExtendedKeyUsagePurpose| {
            let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
            let mut params = CertificateParams::new([name]).expect("a name");
            params.extended_key_usages = vec![usage];
            (params.signed_by(&key, &issuer).expect("a certificate").pem(), key.serialize_pem())
        };
        let identity = Identity { name: "ann".parse().expect("a name"), role: Role::User, lan: LanId(15) };
        let (certificate_pem, key_pem) = issue(identity.dns_name(), ExtendedKeyUsagePurpose::ClientAuth);
        let (server_certificate, server_key) = issue(RECONST_NAME.into(), ExtendedKeyUsagePurpose::ServerAuth);
        let profile = Profile {
            identity,
            lan_name: "elm".parse().expect("a name"),
            reconst: vec!["127.0.0.1:1".parse().expect("a target")],
            certificate_pem,
            key_pem,
            authority_pem: authority.pem(),
        };
        Self { profile, server_certificate, server_key }
    }
}

fn sample(len: usize) -> Vec<u8> {
    (0..len).map(|place| ((place * 2_654_435_761) >> 13) as u8).collect()
}

/// Waits for something that has no event of its own.
async fn until(mut holds: impl FnMut() -> bool) {
    within(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("within 20 s")
}
