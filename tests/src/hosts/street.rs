//! The hosts of a neighbourhood, and what joins them:
//!
//! ```text
//! home 10.0.1.1 ──LAN──▶ peer1 … peerN 10.0.1.10+N ──lines──▶ isp 198.51.100.1 ──▶ content 203.0.113.10
//! ```
//!
//! A second home is another user on the same LAN. Systems that want an interface for each line (MPTCP, aggligator) find one at home: from
//! 10.0.(100+N).2 everything goes to peer N and over its line.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;

use super::Host;
use crate::{
    line::device::{DeviceLine, DeviceLines, Tun},
    scene::Scene,
};

/// Hosts with lines between them; dropping it removes them all.
#[derive(Debug)]
pub struct Street {
    scene: Scene,
    /// Before the hosts, so that its devices go first.
    lines: DeviceLines,
    homes: Vec<Host>,
    peers: Vec<Host>,
    isp: Host,
    content: Host,
    _lan: Host,
}

impl Street {
    /// The hosts of a scene with so many homes, 1 or 2; the lines' randomness follows from `seed`.
    ///
    /// # Errors
    /// Without root, or if the kernel refuses a part of it.
    pub fn build(scene: Scene, homes: usize, seed: u64) -> anyhow::Result<Self> {
        let lan = Host::new("lan")?;
        lan.ip("link add br0 type bridge mcast_snooping 0\nlink set br0 up")?;
        let isp = Host::new("isp")?;
        let content = Host::new("content")?;
        isp.set("ipv4/ip_forward", "1")?;
        isp.ip(&format!("addr add {ISP}/32 dev lo"))?;
        join(&isp, "cnt", "203.0.113.1/24", &content, "eth0", &format!("{CONTENT}/24"))?;
        content.ip("route add default via 203.0.113.1")?;
        let homes: Vec<Host> = (1..=homes).map(|number| Host::new(&format!("home{number}"))).collect::<Result<_, _>>()?;
        for (index, home) in homes.iter().enumerate() {
            attach(&lan, home, &format!("home{}", index + 1), home_address(index))?;
        }
        let mut peers = Vec::new();
        let mut devices = Vec::new();
        for (index, line) in scene.lines.iter().enumerate() {
            let number = index + 1;
            let peer = Host::new(&format!("peer{number}"))?;
            peer.set("ipv4/ip_forward", "1")?;
            attach(&lan, &peer, &format!("peer{number}"), peer_address(index))?;
            let ends = [Tun::new(&peer, "wan0")?, Tun::new(&isp, &format!("line{number}"))?];
            devices.push((ends, line.up, line.down));
            let mtu = line.up.mtu_bytes.min(line.down.mtu_bytes).min(ETHERNET_MTU);
            peer.ip(&format!(
                "addr add 100.64.{number}.2 peer 100.64.{number}.1 dev wan0\nlink set wan0 mtu {mtu} txqueuelen 1000 up\nroute add default dev wan0"
            ))?;
            isp.ip(&format!(
                "addr add 100.64.{number}.1 peer 100.64.{number}.2 dev line{number}\nlink set line{number} mtu {mtu} txqueuelen 1000 up\n\
                 route add 10.0.{}.0/24 dev line{number}",
                100 + number
            ))?;
            join(
                &homes[0],
                &format!("up{number}"),
                &format!("{}/24", line_address(index)),
                &peer,
                "sub0",
                &format!("10.0.{}.1/24", 100 + number),
            )?;
            homes[0].ip(&format!(
                "rule add from {} table {table}\nroute add default via 10.0.{table}.1 dev up{number} table {table}",
                line_address(index),
                table = 100 + number
            ))?;
            peers.push(peer);
        }
        let lines = DeviceLines::start(devices, seed).context("no thread for the lines")?;
        Ok(Self { scene, lines, homes, peers, isp, content, _lan: lan })
    }

    /// The scene that it was built from.
    pub fn scene(&self) -> &Scene {
        &self.scene
    }

    /// The line of this index.
    pub fn line(&self, index: usize) -> DeviceLine {
        self.lines.line(index)
    }

    /// The users' PCs.
    pub fn homes(&self) -> &[Host] {
        &self.homes
    }

    /// The neighbours' PCs, one a line.
    pub fn peers(&self) -> &[Host] {
        &self.peers
    }

    /// The server with the fast connection.
    pub fn isp(&self) -> &Host {
        &self.isp
    }

    /// The content server's host.
    pub fn content(&self) -> &Host {
        &self.content
    }
}

/// A user's PC on the LAN.
pub fn home_address(index: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 1, 1 + index as u8).into()
}

/// A neighbour's PC on the LAN.
pub fn peer_address(index: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 1, 11 + index as u8).into()
}

/// The first home's address from which everything goes over this line.
pub fn line_address(index: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 101 + index as u8, 2).into()
}

/// Where `reconst` is.
pub const ISP: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
/// Where the content server is.
pub const CONTENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10));

const ETHERNET_MTU: usize = 1500;

/// Puts a host onto the LAN.
fn attach(lan: &Host, host: &Host, name: &str, address: IpAddr) -> anyhow::Result<()> {
    host.ip(&format!("link add eth0 type veth peer name v{name} netns {}\naddr add {address}/24 dev eth0\nlink set eth0 up", lan.name()))?;
    lan.ip(&format!("link set v{name} master br0 up"))?;
    host.ip("route add 224.0.0.0/4 dev eth0")
}

/// Joins two hosts by a cable.
fn join(one: &Host, interface: &str, address: &str, other: &Host, its_interface: &str, its_address: &str) -> anyhow::Result<()> {
    one.ip(&format!(
        "link add {interface} type veth peer name {its_interface} netns {}\naddr add {address} dev {interface}\nlink set {interface} up",
        other.name()
    ))?;
    other.ip(&format!("addr add {its_address} dev {its_interface}\nlink set {its_interface} up"))
}
