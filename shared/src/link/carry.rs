//! A PC that is no member yet finds a relay and asks it to carry it to `reconst`.
//!
//! Enters: a LAN's number, or a relay's address. Leaves: the addresses of relays as they announce themselves, and a socket whose packets a
//! relay passes on. Always holds: nothing that a relay says is believed beyond that, since nothing can be verified yet: whom it leads to
//! shows in TLS.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use rustls::pki_types::CertificateDer;
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};

use super::{lan::HelloError, tls};
use crate::{
    community::{
        announce::{ANNOUNCE_PORT, AnnouncementKind, GROUP_V4, GROUP_V6, LineState, Listener},
        hello::{
            Nonce,
            carry::{CarryReply, EnrolAsk},
        },
    },
    ids::LanId,
};

/// Has `relay` pass what `socket` sends on to its `reconst`'s login port, for a short while.
///
/// # Errors
/// If it refuses or does not answer within [`DEADLINE`].
pub async fn ask_to_carry(socket: &UdpSocket, relay: SocketAddr) -> Result<(), HelloError> {
    let nonce = Nonce(rand::random());
    let (mut cookie, mut pause) = (None, FIRST_PAUSE);
    let asking = async {
        loop {
            let packet = EnrolAsk { nonce, cookie }.encode();
            if let Err(source) = socket.send_to(&packet, relay).await {
                return Err(HelloError::Socket { relay, source });
            }
            match timeout(pause, answer(socket, relay, nonce)).await {
                Ok(CarryReply::Carrying) => return Ok(()),
                Ok(CarryReply::Challenge(new)) if cookie != Some(new) => cookie = Some(new),
                Ok(CarryReply::Challenge(_)) => sleep(pause).await,
                Ok(CarryReply::Refused(refusal)) => return Err(HelloError::Refused { relay, refusal }),
                Err(_) => pause = (pause * 2).min(LAST_PAUSE),
            }
        }
    };
    timeout(DEADLINE, asking).await.unwrap_or(Err(HelloError::Silent(relay)))
}

async fn answer(socket: &UdpSocket, relay: SocketAddr, nonce: Nonce) -> CarryReply {
    let mut packet = [0; PACKET_MAX_BYTES];
    loop {
        match socket.recv_from(&mut packet).await {
            Ok((len, from)) if is_same(from, relay) => {
                if let Ok(reply) = CarryReply::decode(&packet[..len], nonce) {
                    return reply;
                }
            }
            Ok(_) => (),
            Err(_) => sleep(ERROR_PAUSE).await,
        }
    }
}

fn is_same(from: SocketAddr, relay: SocketAddr) -> bool {
    from.ip().to_canonical() == relay.ip().to_canonical() && from.port() == relay.port()
}

/// Hears which relays of a LAN say that they are there, true or not.
#[derive(Debug)]
pub struct Ear {
    sockets: Vec<UdpSocket>,
    listener: Listener,
}

impl Ear {
    /// Begins to listen for relays of `lan`, on every interface. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// If a program that does not share the port has it.
    pub fn open(lan: LanId) -> io::Result<Self> {
        let mut sockets = vec![listening(Ipv4Addr::UNSPECIFIED.into())?];
        // Without IPv6 the relays are heard on IPv4 alone.
        sockets.extend(listening(Ipv6Addr::UNSPECIFIED.into()));
        Ok(Self { sockets, listener: Listener::new(lan) })
    }

    /// Where the lines of the next announcement are asked; heard again with each announcement.
    pub async fn next(&mut self) -> Vec<SocketAddr> {
        loop {
            let mut packet = [0; PACKET_MAX_BYTES];
            let received = match &self.sockets[..] {
                [ipv4, ipv6] => {
                    let mut other = [0; PACKET_MAX_BYTES];
                    tokio::select! {
                        received = ipv4.recv_from(&mut packet) => received,
                        received = ipv6.recv_from(&mut other) => { packet = other; received }
                    }
                }
                sockets => sockets[0].recv_from(&mut packet).await,
            };
            let Ok((len, from)) = received else {
                sleep(ERROR_PAUSE).await;
                continue;
            };
            let unverified = |certificate: &[u8], _: &[u8], _: &[u8]| tls::identity(&CertificateDer::from(certificate)).ok();
            let heard = self.listener.handle_packet(Instant::now(), SystemTime::now(), from, &packet[..len], unverified);
            if let Some(heard) = heard.filter(|heard| heard.announcement.kind == AnnouncementKind::Active) {
                let serving = heard.announcement.lines.iter().filter(|line| line.state == LineState::Serving);
                return serving.map(|line| with_port(heard.from, line.port)).collect();
            }
        }
    }
}

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

fn listening(ip: IpAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 }, Type::DGRAM, Some(Protocol::UDP))?;
    if ip.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    #[cfg(all(unix, not(target_os = "linux")))]
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(ip, ANNOUNCE_PORT).into())?;
    let mut indices: Vec<u32> = if_addrs::get_if_addrs()?.iter().filter_map(|interface| interface.index).collect();
    indices.sort_unstable();
    indices.dedup();
    for index in indices {
        // An interface without multicast is heard by unicast.
        let _ = match ip {
            IpAddr::V4(_) => socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(index)),
            IpAddr::V6(_) => socket.join_multicast_v6(&GROUP_V6, index),
        };
    }
    UdpSocket::from_std(socket.into())
}

/// How long a relay is asked: several retransmissions over a bad Wi-Fi.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// The first wait for an answer, doubled with each that does not come.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// How long to leave a socket alone that gives an error.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

/// Longer than any answer and any announcement.
const PACKET_MAX_BYTES: usize = 2048;
