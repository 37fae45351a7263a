//! The worked example of WO 2005/018199, appendices A to D, at its addresses: a terminal 10.0.1.1 whose application is at port 8111, neighbours
//! 10.0.1.3:7654 and 10.0.1.4:4567 of weight 1, LAN 15, a reconstitution server 200.101.55.1 with data port 10015, and an AddItUp server
//! 132.146.15.101:7111, each on a host (a network namespace) of its own. On loopback, with whatever ports are free, `udp.rs` has the same.
//!
//! ```text
//! terminal ──┐           ┌── a ── 82.0.0.0/30 ──┐
//!            lan 10.0.1.0/24                     isp 200.101.55.1 ── content 132.146.15.101
//!            (a bridge)  └── b ── 83.0.0.0/30 ──┘
//! ```

mod common;

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpStream, UdpSocket},
};

use common::within;
use ipnet::IpNet;
use neighbourhood::{content::add_it_up::AddItUp, hosts::Host, load::associate::Association, program::Program};
use proxy_local::config::Scheduler;
use shared::{
    community::{member::Name, profile::Profile},
    ids::{LanId, PathId},
    target,
    transfer::path::PathStatus,
};

#[tokio::test]
async fn forty_four_five_and_eighteen_add_up_to_sixty_seven_over_the_neighbours_lines() {
    let hosts = match hosts() {
        Ok(hosts) => hosts,
        Err(error) => return eprintln!("skipped: network namespaces can't be made here ({error:#})"),
    };
    let scratch = tempfile::tempdir().unwrap();
    let state = scratch.path().join("reconst");
    let registrar = reconst::provision::Registrar::init(&state, &[target::Host::Ip(ISP.ip())], ISP.port()).await.unwrap();
    let lan: Name = "elm".parse().unwrap();
    registrar.add_lan(&lan, Some(LanId(15)), None).await.unwrap();
    let user = registrar.add_user(&lan, &"terminal".parse().unwrap(), &Default::default()).await.unwrap();
    let reconst = Program::start_where("reconst", hosts["isp"].mover(), |shutdown| {
        let mut config = reconst::Config::new(&state, ISP.ip());
        config.egress_allow = vec![IpNet::from(CONTENT.ip())];
        reconst::start(config, shutdown)
    });
    let reconst = within(reconst).await.unwrap();
    assert_eq!(reconst.running().data_addr(LanId(15)), Some(SocketAddr::new(ISP.ip(), 10015)));

    let profile_a = registrar.add_relay(&lan, &"a".parse().unwrap()).await.unwrap();
    let profile_b = registrar.add_relay(&lan, &"b".parse().unwrap()).await.unwrap();
    let _relay_a = within(relay(&hosts, "a", profile_a, A)).await.unwrap();
    let proxy = Program::start_where("proxy-local", hosts["terminal"].mover(), |shutdown| {
        let config = proxy_local::Config {
            listen: vec![proxy_local::Bind { address: PROXY, is_required: true }],
            relays: vec![A, B],
            discover: false,
            udp_scheduler: Scheduler::Wrr,
            ..proxy_local::Config::new(vec![user.clone()])
        };
        proxy_local::start(config, shutdown)
    });
    let proxy = within(proxy).await.unwrap();
    // A is first in the patent's list, and so is its path.
    paths_are_up(&proxy, 1).await;
    let _relay_b = within(relay(&hosts, "b", profile_b, B)).await.unwrap();
    paths_are_up(&proxy, 2).await;
    let paths: Vec<PathId> = path_status(&proxy).iter().map(|path| path.path).collect();
    let (a, b) = (paths[0], paths[1]);

    let content = hosts["content"].within(|| UdpSocket::bind(CONTENT)).unwrap();
    let server = AddItUp::start(into_tokio(content)).unwrap();
    let at_reconst = || reconst.running().sessions().paths_of(&user.identity);
    let suspicions = || at_reconst().iter().chain(&path_status(&proxy)).map(|path| path.counters.suspicions).sum::<u64>();
    // On a machine so busy that a path is taken for silent meanwhile, turns are not what is seen.
    for attempt in 0..ATTEMPTS {
        let suspicions_before = suspicions();
        let association = associate(&hosts).await;
        let (mut ups, mut downs) = (Vec::new(), Vec::new());
        for (number, answers) in [("44", &["-44"][..]), ("5", &["-5"]), ("18", &["-18", "67"])] {
            let (up, down) = (parcels(&at_reconst()), parcels(&path_status(&proxy)));
            association.send(&CONTENT.into(), number.as_bytes()).await.unwrap();
            let mut payloads = Vec::new();
            for _ in answers {
                let (from, payload) = within(association.receive()).await.unwrap();
                assert_eq!(from, CONTENT);
                payloads.push(String::from_utf8(payload).unwrap());
            }
            payloads.sort();
            assert_eq!(payloads, answers);
            ups.push(carriers(&up, &at_reconst()));
            downs.push(carriers(&down, &path_status(&proxy)));
        }

        let clients = server.clients().await;
        let clients = &clients[clients.len() - 3..];
        let flows = || reconst.running().sessions().dedicated_ports().report();
        let [flow] = &flows()[..] else { panic!("{:?}", flows()) };
        assert_eq!(clients, [SocketAddr::new(ISP.ip(), flow.port); 3]);
        assert_eq!((flow.origin, flow.lan), (Some(TERMINAL), LanId(15)));
        assert_eq!(flow.content_server.as_deref(), Some("132.146.15.101:7111"));
        drop(association);
        common::until("the dedicated port is given back", || flows().is_empty()).await;
        if suspicions() == suspicions_before {
            // The first attempt begins with A; a later one where the one before has left off.
            let (first, second) = if ups[0] == [a] { (a, b) } else { (b, a) };
            assert_eq!(ups, [[first], [second], [first]]);
            assert!(attempt > 0 || first == a, "{ups:?}");
            let (first, second) = if downs[0] == [a] { (a, b) } else { (b, a) };
            assert_eq!(downs, [vec![first], vec![second], vec![a, b]]);
            assert!(attempt > 0 || first == a, "{downs:?}");
            return;
        }
    }
    panic!("no attempt without a path that was taken for silent");
}

/// Each host of the example, wired up.
fn hosts() -> anyhow::Result<Hosts> {
    let names = ["lan", "terminal", "a", "b", "isp", "content"];
    let hosts: Hosts = names.into_iter().map(|name| Ok((name, Host::new(name)?))).collect::<anyhow::Result<_>>()?;
    let (lan, isp) = (&hosts["lan"], &hosts["isp"]);
    lan.ip("link add bridge type bridge\nlink set dev bridge up")?;
    for (name, address) in [("terminal", TERMINAL), ("a", A), ("b", B)] {
        let address = address.ip();
        hosts[name].ip(&format!(
            "link add lan type veth peer name {name} netns {}\naddress add {address}/24 dev lan\nlink set dev lan up",
            lan.name()
        ))?;
        lan.ip(&format!("link set dev {name} master bridge up"))?;
    }
    isp.ip(&format!("address add {}/32 dev lo", ISP.ip()))?;
    for (name, network) in [("a", "82.0.0"), ("b", "83.0.0"), ("content", "132.146.15")] {
        let (host, prefix) = if name == "content" { (101, 24) } else { (2, 30) };
        hosts[name].ip(&format!(
            "link add wan type veth peer name {name} netns {}\naddress add {network}.{host}/{prefix} dev wan\nlink set dev wan up",
            isp.name()
        ))?;
        isp.ip(&format!("address add {network}.1/{prefix} dev {name}\nlink set dev {name} up"))?;
        hosts[name].ip(&format!("route add default via {network}.1"))?;
    }
    // The server speaks to content servers from its own address.
    isp.ip(&format!("route add {}/32 dev content src {}", CONTENT.ip(), ISP.ip()))?;
    Ok(hosts)
}

async fn relay(hosts: &Hosts, name: &str, profile: Profile, at: SocketAddr) -> anyhow::Result<Program<peer_relay::Running>> {
    Program::start_where(name, hosts[name].mover(), |shutdown| {
        let mut config = peer_relay::Config::new(profile);
        config.announce.multicast = false;
        for line in &mut config.lines {
            line.lan_bind = Some(at);
        }
        peer_relay::start(config, shutdown)
    })
    .await
}

/// The application's end: its socket at the patent's port, on the terminal.
async fn associate(hosts: &Hosts) -> Association {
    let (tcp, socket) = hosts["terminal"].within(|| Ok((TcpStream::connect(PROXY)?, UdpSocket::bind(TERMINAL)?))).unwrap();
    tcp.set_nonblocking(true).unwrap();
    let tcp = tokio::net::TcpStream::from_std(tcp).unwrap();
    within(Association::begin_with(tcp, into_tokio(socket))).await.unwrap()
}

fn into_tokio(socket: UdpSocket) -> tokio::net::UdpSocket {
    socket.set_nonblocking(true).unwrap();
    tokio::net::UdpSocket::from_std(socket).unwrap()
}

async fn paths_are_up(proxy: &Program<proxy_local::Running>, count: usize) {
    let running = proxy.running();
    let waited =
        tokio::time::timeout(std::time::Duration::from_secs(20), common::until("the paths are up", || path_status(proxy).len() == count));
    assert!(waited.await.is_ok(), "{count} paths by the deadline: {:?}", running.status());
}

fn path_status(proxy: &Program<proxy_local::Running>) -> Vec<PathStatus> {
    proxy.running().paths().expect("it has a session").session().path_status()
}

fn parcels(paths: &[PathStatus]) -> Vec<u64> {
    paths.iter().map(|path| path.counters.received_parcels).collect()
}

/// The paths that carried parcels, once for each, since there were `before`.
fn carriers(before: &[u64], paths: &[PathStatus]) -> Vec<PathId> {
    let carried = paths.iter().zip(before).map(|(path, before)| (path.path, path.counters.received_parcels - before));
    carried.flat_map(|(path, count)| std::iter::repeat_n(path, count as usize)).collect()
}

/// Each takes milliseconds, and a machine is not so busy for long.
const ATTEMPTS: usize = 50;

type Hosts = HashMap<&'static str, Host>;

const TERMINAL: SocketAddr = at([10, 0, 1, 1], 8111);
const PROXY: SocketAddr = at([10, 0, 1, 1], 1080);
const A: SocketAddr = at([10, 0, 1, 3], 7654);
const B: SocketAddr = at([10, 0, 1, 4], 4567);
const ISP: SocketAddr = at([200, 101, 55, 1], 10000);
const CONTENT: SocketAddr = at([132, 146, 15, 101], 7111);

const fn at([a, b, c, d]: [u8; 4], port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(a, b, c, d)), port)
}
