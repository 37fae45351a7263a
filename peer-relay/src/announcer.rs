//! The relay announces itself on the LAN.
//!
//! Enters: the lines with their ports, weights and states. Leaves: a signed `ACTIVE` from every suitable address of this PC, every
//! interval, and `SHUT DOWN` when the relay drains. Always holds: an announcement leaves from the address that it is signed for, and goes
//! no further than the local network (a TTL of 1) but for listed addresses. Interfaces that come and go are noticed within an interval.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use if_addrs::{IfAddr, Interface};
use shared::{
    community::{
        announce::{ANNOUNCE_PORT, AnnouncedLine, Announcement, AnnouncementKind, GROUP_V4, GROUP_V6, LineState, Stamp, unix_secs},
        hello::LineNumber,
        login::ADDRESSES_MAX,
        weight::Weights,
    },
    link::credentials::Credentials,
    service::Shutdown,
    share::allowance::Hold,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{sync::watch, time::MissedTickBehavior};

use crate::{line::WanBinding, login::Upstream};

/// How a relay announces itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AnnounceConfig {
    /// Whether it does so by multicast. Default true; without it only listed addresses and those who name the relay by hand find it.
    pub multicast: bool,
    /// Addresses that are told besides: members on networks that filter multicast. Default none.
    pub unicast: Vec<SocketAddr>,
    /// The time between two announcements, at least 10 ms. Default 1 s; a relay that dies unannounced is noticed after three, and each
    /// takes a packet on every interface.
    pub interval: Duration,
}

impl Default for AnnounceConfig {
    fn default() -> Self {
        Self { multicast: true, unicast: Vec::new(), interval: Duration::from_secs(1) }
    }
}

/// A line as it is announced.
#[derive(Clone, Debug)]
pub(crate) struct LineToAnnounce {
    pub(crate) number: LineNumber,
    pub(crate) lan_address: SocketAddr,
    pub(crate) wan: WanBinding,
    pub(crate) weights: watch::Receiver<Weights>,
    pub(crate) upstream: watch::Receiver<Upstream>,
    /// Why its owner holds it back, if so.
    pub(crate) hold: watch::Receiver<Option<Hold>>,
}

impl LineToAnnounce {
    /// Whether it serves.
    pub(crate) fn state(&self) -> LineState {
        match (*self.hold.borrow(), self.upstream.borrow().is_logged_in) {
            (Some(_), _) => LineState::Paused,
            (None, true) => LineState::Serving,
            (None, false) => LineState::Down,
        }
    }
}

/// Announces the lines of one relay.
pub(crate) struct Announcer {
    config: AnnounceConfig,
    credentials: Credentials,
    lines: Vec<LineToAnnounce>,
    /// The addresses at which the lines are reached from elsewhere on the LAN.
    addresses: watch::Sender<Vec<IpAddr>>,
    stamp: Stamp,
    /// What went wrong last time, so that a lasting trouble is logged once.
    troubles: BTreeSet<String>,
}

impl Announcer {
    pub(crate) fn new(
        config: AnnounceConfig,
        credentials: Credentials,
        lines: Vec<LineToAnnounce>,
        addresses: watch::Sender<Vec<IpAddr>>,
    ) -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        Self { config, credentials, lines, stamp: Stamp { epoch, sequence: 0 }, addresses, troubles: BTreeSet::new() }
    }

    /// Announces until the program drains, then says goodbye.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let mut tick = tokio::time::interval(self.config.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut upstreams: Vec<_> = self.lines.iter().map(|line| line.upstream.clone()).collect();
        let mut weights: Vec<_> = self.lines.iter().map(|line| line.weights.clone()).collect();
        let mut holds: Vec<_> = self.lines.iter().map(|line| line.hold.clone()).collect();
        loop {
            tokio::select! {
                biased;
                () = shutdown.draining() => break,
                _ = tick.tick() => (),
                () = any_changed(&mut upstreams) => (),
                () = any_changed(&mut weights) => (),
                () = any_changed(&mut holds) => (),
            }
            self.announce(AnnouncementKind::Active);
        }
        for _ in 0..GOODBYES {
            self.announce(AnnouncementKind::ShutDown);
            tokio::select! {
                () = tokio::time::sleep(GOODBYE_PAUSE) => (),
                () = shutdown.stopping() => return,
            }
        }
    }

    fn announce(&mut self, kind: AnnouncementKind) {
        let mut troubles = BTreeSet::new();
        let interfaces = if_addrs::get_if_addrs().unwrap_or_else(|error| {
            troubles.insert(format!("can't list the network interfaces: {error}"));
            Vec::new()
        });
        let suitable = self.suitable(&interfaces);
        self.tell_addresses(&interfaces, &suitable);
        if self.config.multicast {
            for interface in suitable {
                if let Err(error) = self.announce_on(interface, kind) {
                    troubles.insert(format!("{} ({}): {error}", interface.name, interface.ip()));
                }
            }
        }
        for to in self.config.unicast.clone() {
            if let Err(error) = self.announce_to(to, kind) {
                troubles.insert(format!("{to}: {error}"));
            }
        }
        for trouble in troubles.difference(&self.troubles) {
            tracing::warn!("not announced on {trouble}");
        }
        self.troubles = troubles;
    }

    /// Tells the logins where the lines are reached: link-local addresses mean nothing to `reconst`.
    fn tell_addresses(&self, interfaces: &[Interface], suitable: &[&Interface]) {
        let names: BTreeSet<&str> = suitable.iter().map(|interface| interface.name.as_str()).collect();
        let is_reached = |interface: &&Interface| {
            let is_bound = self.lines.iter().any(|line| is_reached_at(line.lan_address, interface.ip()));
            is_bound && names.contains(interface.name.as_str()) && !is_link_local(interface.ip())
        };
        let addresses = elsewhere(interfaces.iter().filter(is_reached).map(Interface::ip).collect());
        self.addresses.send_if_modified(|known| {
            let is_new = *known != addresses;
            *known = addresses;
            is_new
        });
    }

    fn announce_on(&mut self, interface: &Interface, kind: AnnouncementKind) -> io::Result<()> {
        let index = interface.index.unwrap_or(0);
        match interface.ip() {
            IpAddr::V4(ip) => {
                let socket = udp_socket(Domain::IPV4)?;
                socket.set_multicast_if_v4(&ip)?;
                socket.set_multicast_ttl_v4(1)?;
                socket.bind(&SocketAddr::new(ip.into(), 0).into())?;
                self.send(&socket.into(), ip.into(), SocketAddr::new(GROUP_V4.into(), ANNOUNCE_PORT), kind)
            }
            IpAddr::V6(ip) => {
                let socket = udp_socket(Domain::IPV6)?;
                socket.set_multicast_if_v6(index)?;
                socket.set_multicast_hops_v6(1)?;
                socket.bind(&SocketAddrV6::new(ip, 0, 0, index).into())?;
                self.send(&socket.into(), ip.into(), SocketAddrV6::new(GROUP_V6, ANNOUNCE_PORT, 0, index).into(), kind)
            }
        }
    }

    fn announce_to(&mut self, to: SocketAddr, kind: AnnouncementKind) -> io::Result<()> {
        let socket = udp_socket(if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 })?;
        // A relay that serves on one address alone is asked there, whichever way the route to the listed address begins.
        let own = self.lines.iter().map(|line| line.lan_address.ip()).find(|ip| !ip.is_unspecified() && ip.is_ipv4() == to.is_ipv4());
        if let Some(own) = own {
            socket.bind(&SocketAddr::new(own, 0).into())?;
        }
        socket.connect(&to.into())?;
        let socket = UdpSocket::from(socket);
        let address = socket.local_addr()?.ip();
        self.send(&socket, address, to, kind)
    }

    fn send(&mut self, socket: &UdpSocket, address: IpAddr, to: SocketAddr, kind: AnnouncementKind) -> io::Result<()> {
        let lines = match kind {
            AnnouncementKind::Active => self.lines.iter().filter(|line| is_reached_at(line.lan_address, address)).map(announced).collect(),
            AnnouncementKind::ShutDown => Vec::new(),
        };
        self.stamp.sequence += 1;
        let signer = self.credentials.signer();
        let announcement = Announcement {
            kind,
            lan: signer.identity().lan,
            address,
            stamp: self.stamp,
            sent_unix_secs: unix_secs(SystemTime::now()),
            interval_ms: u16::try_from(self.config.interval.as_millis()).unwrap_or(u16::MAX).max(1),
            lines,
        };
        let packet = announcement.encode(signer.certificate_der(), |message| signer.sign(message));
        match socket.send_to(&packet, to) {
            Ok(_) => Ok(()),
            // Nobody listens there yet.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The addresses at which a line is reached from the LAN; on IPv6 the link-local ones, which every interface has.
    fn suitable<'a>(&self, interfaces: &'a [Interface]) -> Vec<&'a Interface> {
        let is_suitable = |interface: &&Interface| {
            let is_reached = self.lines.iter().any(|line| is_reached_at(line.lan_address, interface.ip()));
            let is_multicast = match &interface.addr {
                IfAddr::V4(_) => true,
                IfAddr::V6(address) => address.is_link_local(),
            };
            (interface.is_oper_up() || interface.is_loopback()) && !interface.is_p2p() && is_multicast && is_reached
        };
        let suitable: Vec<_> = interfaces.iter().filter(is_suitable).collect();
        // Nobody beyond the line needs to know, unless line and LAN are the same network.
        let is_line = |interface: &&&Interface| {
            self.lines.iter().any(|line| match &line.wan {
                WanBinding::Interface(name) => *name == interface.name,
                WanBinding::Address(ip) => *ip == interface.ip(),
                WanBinding::Default => false,
            })
        };
        let towards_lan: Vec<_> = suitable.iter().filter(|interface| !is_line(interface)).copied().collect();
        if towards_lan.iter().any(|interface| !interface.is_loopback()) { towards_lan } else { suitable }
    }
}

fn announced(line: &LineToAnnounce) -> AnnouncedLine {
    AnnouncedLine { number: line.number, port: line.lan_address.port(), weights: *line.weights.borrow(), state: line.state() }
}

/// Those of a PC's addresses that lead to it from other PCs; loopback only if there is nothing else.
fn elsewhere(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let is_alone = addresses.iter().all(IpAddr::is_loopback);
    addresses.into_iter().filter(|ip| is_alone || !ip.is_loopback()).take(ADDRESSES_MAX).collect()
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Whether a socket bound to `bound` gets what is sent to `address`.
fn is_reached_at(bound: SocketAddr, address: IpAddr) -> bool {
    match bound.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.is_ipv4(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => true,
        ip => ip == address,
    }
}

async fn any_changed<T>(watched: &mut [watch::Receiver<T>]) {
    let changed = |one: &watch::Receiver<T>| {
        let mut one = one.clone();
        Box::pin(async move {
            if one.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    };
    let mut changes: Vec<_> = watched.iter().map(changed).collect();
    std::future::poll_fn(|context| {
        let is_changed = changes.iter_mut().any(|change| change.as_mut().poll(context).is_ready());
        if is_changed { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    watched.iter_mut().for_each(watch::Receiver::mark_unchanged);
}

fn udp_socket(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// How often `SHUT DOWN` is said: one may get lost.
const GOODBYES: u32 = 3;
const GOODBYE_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconst_is_told_of_loopback_only_where_there_is_nothing_else() {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(elsewhere(ips(&["127.0.0.1", "10.0.1.3", "::1", "fd00::3"])), ips(&["10.0.1.3", "fd00::3"]));
        assert_eq!(elsewhere(ips(&["127.0.0.1", "::1"])), ips(&["127.0.0.1", "::1"]));
    }

    #[test]
    fn a_relay_on_one_address_is_not_announced_elsewhere() {
        let bound: SocketAddr = "10.0.1.3:7654".parse().unwrap();
        assert!(is_reached_at(bound, [10, 0, 1, 3].into()));
        assert!(!is_reached_at(bound, [127, 0, 0, 1].into()));
        assert!(is_reached_at("[::]:7654".parse().unwrap(), [10, 0, 1, 3].into()));
        assert!(!is_reached_at("0.0.0.0:7654".parse().unwrap(), Ipv6Addr::LOCALHOST.into()));
    }
}
