//! Datagrams through the whole chain: spread as asked, whole whatever their size, from one dedicated port; DNS, QUIC and other people's
//! SOCKS clients work over it.

mod common;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use common::{until, within};
use neighbourhood::{
    content::add_it_up::AddItUp,
    load::associate::Association,
    neighbourhood::{Neighbourhood, Plan},
    scene::Scene,
};
use proxy_local::config::Scheduler;
use shared::{
    ids::PathId,
    target::{Host, Target},
    transfer::path::PathStatus,
};
use tokio::net::UdpSocket;

#[tokio::test]
async fn the_patents_numbers_go_up_and_come_down_by_turns_and_from_one_port() {
    let (neighbourhood, server) = add_it_up(Scheduler::Wrr).await;
    let paths: Vec<PathId> = neighbourhood.proxy().path_status().iter().map(|path| path.path).collect();
    // On a machine so busy that a path is taken for silent meanwhile, turns are not what is seen.
    for _ in 0..ATTEMPTS {
        let association = within(Association::begin(neighbourhood.proxy().address())).await.unwrap();
        let suspicions = suspicions(&neighbourhood);
        let mut spread = Spread::new(&neighbourhood);
        let (mut ups, mut downs) = (Vec::new(), Vec::new());
        for (number, answers) in [("44", &["-44"][..]), ("5", &["-5"]), ("18", &["-18", "67"])] {
            association.send(&server.address().into(), number.as_bytes()).await.unwrap();
            let mut payloads = Vec::new();
            for _ in answers {
                let (from, payload) = within(association.receive()).await.unwrap();
                assert_eq!(from, server.address());
                payloads.push(String::from_utf8(payload).unwrap());
            }
            // By two paths, either may be first.
            payloads.sort();
            assert_eq!(payloads, answers);
            ups.push(spread.up(&neighbourhood));
            downs.push(spread.down(&neighbourhood));
        }
        let clients = server.clients().await;
        let clients = &clients[clients.len() - 3..];
        assert!(clients.iter().all(|client| client == &clients[0]), "{clients:?}");
        let flow = flows(&neighbourhood).pop().expect("a flow");
        assert_eq!((flow.port, flow.lan.0, flow.user.as_str()), (clients[0].port(), 15, "user1"));
        assert_eq!((flow.up_bytes, flow.down_bytes), (5, 10));
        assert_eq!(flow.content_server.as_deref(), Some(server.address().to_string().as_str()));
        assert!(flow.origin.is_some_and(|origin| origin.ip() == IpAddr::from(Ipv4Addr::LOCALHOST)), "{flow:?}");
        drop(association);
        until("the flow's port is given back", || flows(&neighbourhood).is_empty()).await;
        if self::suspicions(&neighbourhood) == suspicions {
            let (first, second) = (ups[0][0], ups[1][0]);
            assert!(paths.contains(&first) && paths.contains(&second) && first != second, "{ups:?}");
            assert_eq!(ups, [[first], [second], [first]]);
            let (first, second) = (downs[0][0], downs[1][0]);
            assert!(first != second, "{downs:?}");
            assert_eq!(downs, [vec![first], vec![second], paths.clone()]);
            return;
        }
    }
    panic!("no attempt without a path that was taken for silent");
}

#[tokio::test]
async fn a_socks_client_of_other_people_adds_it_up() {
    let Some(python) = python_with_socks().await else { return };
    let (neighbourhood, server) = add_it_up(Scheduler::Adaptive).await;
    let script = "
import socket, socks, sys
proxy, server = [(address.rsplit(':', 1)[0], int(address.rsplit(':', 1)[1])) for address in sys.argv[1:]]
client = socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(20)
client.set_proxy(socks.SOCKS5, *proxy)
answers = []
for number, count in ((44, 1), (5, 1), (18, 2)):
    client.sendto(str(number).encode(), server)
    for _ in range(count):
        answer, sender = client.recvfrom(64)
        assert sender[1] == server[1], sender
        answers.append(int(answer))
print(sorted(answers))
";
    let mut command = tokio::process::Command::new(python);
    command.args(["-c", script, &neighbourhood.proxy().address().to_string(), &server.address().to_string()]).kill_on_drop(true);
    let output = within(command.output()).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(out.trim(), "[-44, -18, -5, 67]", "{err}");
}

#[tokio::test]
async fn datagrams_of_every_size_come_back_as_they_were_by_every_policy() {
    for scheduler in [Scheduler::Adaptive, Scheduler::Wrr, Scheduler::Rr, Scheduler::Redundant] {
        let neighbourhood = within(Neighbourhood::start(plan(scheduler))).await.unwrap();
        let echo = Echo::start().await;
        let association = within(Association::begin(neighbourhood.proxy().address())).await.unwrap();
        for len in [0, 1, 500, 1200, 1400, 1472, 3000, 20_000, 65_497] {
            let payload: Vec<u8> = (0..len).map(|place| (place * 31 + place / 253) as u8).collect();
            let answer = answer_to(&association, &echo, &payload).await;
            assert!(answer == payload, "{scheduler:?} {len}: {} bytes", answer.len());
        }
    }
}

#[tokio::test]
async fn a_flow_that_carries_nothing_for_so_long_gives_its_port_back_and_another_follows_it() {
    let idle = Plan { udp_idle: Some(Duration::from_millis(500)), ..plan(Scheduler::Adaptive) };
    let neighbourhood = within(Neighbourhood::start(idle)).await.unwrap();
    let echo = Echo::start().await;
    let association = within(Association::begin(neighbourhood.proxy().address())).await.unwrap();
    for payload in [b"one", b"two"] {
        assert_eq!(answer_to(&association, &echo, payload).await, payload);
        until("the flow's port is given back", || flows(&neighbourhood).is_empty()).await;
    }
}

#[tokio::test]
async fn a_name_is_looked_up_and_what_is_denied_gets_nothing() {
    let neighbourhood = within(Neighbourhood::start(plan(Scheduler::Adaptive))).await.unwrap();
    let (echo, denied) = (Echo::start().await, Echo::start_at([127, 0, 0, 1]).await);
    let association = within(Association::begin(neighbourhood.proxy().address())).await.unwrap();
    // Loopback is open at the content server's address alone.
    association.send(&Target { host: Host::Name("localhost".into()), port: denied.address.port() }, b"by name").await.unwrap();
    association.send(&denied.target, b"by address").await.unwrap();
    association.send(&echo.target, b"allowed").await.unwrap();
    assert_eq!(within(association.receive()).await.unwrap(), (echo.address, b"allowed".to_vec()));
    until("the datagrams are counted", || flows(&neighbourhood).first().is_some_and(|flow| flow.up_bytes == 24)).await;
    assert_eq!(flows(&neighbourhood)[0].down_bytes, 7);
    let inbound = || neighbourhood.proxy().status().inbound;
    until("the answer is counted", || inbound().datagrams_down == 1).await;
    assert_eq!((inbound().associations, inbound().datagrams_up, inbound().datagrams_dropped), (1, 3, 0));
}

#[tokio::test]
async fn a_dns_query_is_answered() {
    let neighbourhood = within(Neighbourhood::start(plan(Scheduler::Redundant))).await.unwrap();
    let server = UdpSocket::bind("127.0.200.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    // RFC 1035 §4: a header, one question for an A record, and in the answer a pointer to its name.
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(b"\x07example\x03org\x00\x00\x01\x00\x01");
    let asked = query.clone();
    let serving = tokio::spawn(async move {
        let mut datagram = [0; 512];
        let (len, client) = server.recv_from(&mut datagram).await.unwrap();
        assert_eq!(datagram[..len], asked);
        let mut answer = asked;
        answer[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
        server.send_to(&answer, client).await.unwrap();
    });
    let association = within(Association::begin(neighbourhood.proxy().address())).await.unwrap();
    association.send(&address.into(), &query).await.unwrap();
    let (_, answer) = within(association.receive()).await.unwrap();
    assert_eq!((&answer[..2], &answer[answer.len() - 4..]), (&[0x12, 0x34][..], &[192, 0, 2, 7][..]));
    within(serving).await.unwrap();
}

#[tokio::test]
async fn a_quic_connection_as_of_http_3_carries_a_transfer_both_ways() {
    let neighbourhood = within(Neighbourhood::start(plan(Scheduler::Adaptive))).await.unwrap();
    let (server, certificate) = quic_server();
    let server_address = server.local_addr().unwrap();
    let echoing = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        let all = receive.read_to_end(1 << 20).await.unwrap();
        send.write_all(&all).await.unwrap();
        send.finish().unwrap();
        connection.closed().await;
    });
    let association = within(Association::begin(neighbourhood.proxy().address())).await.unwrap();
    let shim = Shim::start(association, server_address).await;
    let mut client = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    client.set_default_client_config(quic_client_config(certificate));
    let connection = within(client.connect(shim, "localhost").unwrap()).await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let sent: Vec<u8> = (0..600_000u32).map(|place| (place ^ (place >> 9)) as u8).collect();
    within(send.write_all(&sent)).await.unwrap();
    send.finish().unwrap();
    assert!(within(receive.read_to_end(1 << 20)).await.unwrap() == sent);
    connection.close(0u32.into(), b"");
    within(echoing).await.unwrap();
}

#[tokio::test]
async fn an_association_goes_on_after_a_relay_is_gone_and_after_reconst_has_restarted() {
    let mut neighbourhood = within(Neighbourhood::start(plan(Scheduler::Redundant))).await.unwrap();
    let echo = Echo::start().await;
    let association = within(Association::begin(neighbourhood.proxy().address())).await.unwrap();
    asks_until_answered(&association, &echo).await;
    neighbourhood.kill_relay(0).await;
    asks_until_answered(&association, &echo).await;
    neighbourhood.kill_reconst().await;
    neighbourhood.start_reconst().await.unwrap();
    asks_until_answered(&association, &echo).await;
}

async fn asks_until_answered(association: &Association, echo: &Echo) {
    answer_to(association, echo, b"still there?").await;
}

/// A datagram may be lost: this one is sent again, as an application would, until an answer of its length comes.
async fn answer_to(association: &Association, echo: &Echo, payload: &[u8]) -> Vec<u8> {
    let asks = async {
        loop {
            association.send(&echo.target, payload).await.unwrap();
            while let Ok(received) = tokio::time::timeout(ASK_AGAIN_AFTER, association.receive()).await {
                let (from, answer) = received.unwrap();
                assert_eq!(from, echo.address);
                if answer.len() == payload.len() {
                    return answer;
                }
            }
        }
    };
    within(asks).await
}

/// How often paths have been taken for silent, by either end.
fn suspicions(neighbourhood: &Neighbourhood) -> u64 {
    let at_reconst = neighbourhood.reconst().expect("it runs").sessions().paths_of(&neighbourhood.user().identity);
    at_reconst.iter().chain(&neighbourhood.proxy().path_status()).map(|path| path.counters.suspicions).sum()
}

/// Which paths carried parcels since it was last asked.
struct Spread {
    up: Vec<u64>,
    down: Vec<u64>,
}

impl Spread {
    fn new(neighbourhood: &Neighbourhood) -> Self {
        let mut spread = Self { up: vec![0; 2], down: vec![0; 2] };
        spread.up(neighbourhood);
        spread.down(neighbourhood);
        spread
    }

    fn up(&mut self, neighbourhood: &Neighbourhood) -> Vec<PathId> {
        let reconst = neighbourhood.reconst().expect("it runs");
        changed(&mut self.up, &reconst.sessions().paths_of(&neighbourhood.user().identity))
    }

    fn down(&mut self, neighbourhood: &Neighbourhood) -> Vec<PathId> {
        changed(&mut self.down, &neighbourhood.proxy().path_status())
    }
}

/// The paths whose count of parcels differs from `known`, which then is the count.
fn changed(known: &mut [u64], paths: &[PathStatus]) -> Vec<PathId> {
    let mut changed = Vec::new();
    for (known, path) in known.iter_mut().zip(paths) {
        changed.extend(std::iter::repeat_n(path.path, (path.counters.received_parcels - *known) as usize));
        *known = path.counters.received_parcels;
    }
    changed
}

fn flows(neighbourhood: &Neighbourhood) -> Vec<reconst::dedicated::FlowReport> {
    neighbourhood.reconst().expect("it runs").sessions().dedicated_ports().report()
}

/// Two lines of weight 1, the relay of the second started when the path over the first is up, so that it comes second in every turn.
async fn add_it_up(udp_scheduler: Scheduler) -> (Neighbourhood, AddItUp) {
    let mut neighbourhood = within(Neighbourhood::start(Plan { relays_at_start: 1, ..plan(udp_scheduler) })).await.unwrap();
    neighbourhood.start_relay(1).await.unwrap();
    within(neighbourhood.proxy().wait_for_paths(2)).await.unwrap();
    let server = AddItUp::start(UdpSocket::bind("127.0.200.1:0").await.unwrap()).unwrap();
    (neighbourhood, server)
}

fn plan(udp_scheduler: Scheduler) -> Plan {
    let scene =
        Scene::parse("equal", "description = 'Two equal lines.'\n[[line]]\ncount = 2\ndown = '30M'\nrtt-ms = 4\n").expect("a scene");
    Plan { udp_scheduler, ..Plan::new(scene) }
}

const ATTEMPTS: usize = 10;

/// Many round trips here, on a busy machine too.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(300);

/// A server that sends each datagram back.
struct Echo {
    address: SocketAddr,
    target: Target,
    task: tokio::task::JoinHandle<()>,
}

impl Echo {
    /// At the content server's address, the one that `reconst` may reach.
    async fn start() -> Self {
        Self::start_at([127, 0, 200, 1]).await
    }

    async fn start_at(ip: [u8; 4]) -> Self {
        let socket = UdpSocket::bind(SocketAddr::from((ip, 0))).await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut datagram = vec![0; 65_536];
            while let Ok((len, client)) = socket.recv_from(&mut datagram).await {
                let _ = socket.send_to(&datagram[..len], client).await;
            }
        });
        Self { address, target: address.into(), task }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A UDP port whose datagrams go through an association to one server and back, for clients that speak no SOCKS.
struct Shim;

impl Shim {
    async fn start(association: Association, server: SocketAddr) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut datagram = vec![0; 65_536];
            let mut client = None;
            loop {
                tokio::select! {
                    Ok((len, from)) = socket.recv_from(&mut datagram) => {
                        client = Some(from);
                        let _ = association.send(&server.into(), &datagram[..len]).await;
                    }
                    Ok((_, payload)) = association.receive() => if let Some(client) = client {
                        let _ = socket.send_to(&payload, client).await;
                    },
                }
            }
        });
        address
    }
}

fn quic_server() -> (quinn::Endpoint, rustls::pki_types::CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut crypto = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .unwrap();
    crypto.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(crypto).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    (quinn::Endpoint::server(config, "127.0.200.1:0".parse().unwrap()).unwrap(), certificate)
}

fn quic_client_config(certificate: rustls::pki_types::CertificateDer<'static>) -> quinn::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut crypto = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    crypto.alpn_protocols = vec![b"h3".to_vec()];
    quinn::ClientConfig::new(Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(crypto).unwrap()))
}

/// A Python with PySocks: the system's, or one in a virtual environment that is made for it. Says why if there is none.
async fn python_with_socks() -> Option<std::path::PathBuf> {
    let runs = |program: std::path::PathBuf, arguments: Vec<String>| async move {
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let status = tokio::time::timeout(Duration::from_secs(15), command.status()).await;
        matches!(status, Ok(Ok(status)) if status.success())
    };
    let words = |words: &[&str]| words.iter().map(|word| String::from(*word)).collect::<Vec<_>>();
    let system = std::path::PathBuf::from("python3");
    if runs(system.clone(), words(&["-c", "import socks"])).await {
        return Some(system);
    }
    let directory = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("pysocks");
    let python = directory.join("bin/python");
    let has_socks = || runs(python.clone(), words(&["-c", "import socks"]));
    if has_socks().await {
        return Some(python);
    }
    let is_made = runs(system, words(&["-m", "venv", &directory.display().to_string()])).await
        && runs(python.clone(), words(&["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "PySocks==1.7.1"])).await
        && has_socks().await;
    if !is_made {
        eprintln!("skipped: no python3 with PySocks (install python3-socks), and none could be made with pip");
    }
    is_made.then_some(python)
}
