//! One UDP socket for one flow: it sends anywhere and takes answers only from hosts that it has sent to.
//!
//! In the terms of RFC 4787 its mapping is endpoint-independent (one port whatever the destination, REQ-1) and its filtering is address-dependent
//! (REQ-8): a host may answer from another port than it was asked at, as TFTP, RTP and TURN servers do and as hole punching between callers needs, while strangers can't
//! send anything over the neighbours' lines.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bytes::Bytes;
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;

/// A UDP socket with an address-dependent filter.
#[derive(Debug)]
pub struct UdpPort {
    socket: UdpSocket,
    has_ipv6: bool,
    /// The hosts that were sent to, and in which order lately.
    last_sent_by_host: HashMap<IpAddr, u64>,
    sent: u64,
}

/// Hosts remembered; beyond it the one sent to longest ago may not answer any more. A call's candidates are a dozen, a swarm's hundreds.
const HOSTS_MAX: usize = 256;

/// What the longest datagram takes.
const SCRATCH_BYTES: usize = 64 * 1024;

impl UdpPort {
    /// A socket on a port of the system's choice, for both families where the system has both.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn open() -> io::Result<Self> {
        let (socket, has_ipv6) = match dual_stack() {
            Ok(socket) => (socket, true),
            Err(_) => {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
                socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())?;
                (socket, false)
            }
        };
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self { socket, has_ipv6, last_sent_by_host: HashMap::new(), sent: 0 })
    }

    /// The port.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn number(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Whether the socket is of that family.
    pub fn takes(&self, to: SocketAddr) -> bool {
        self.has_ipv6 || to.is_ipv4()
    }

    /// Sends a datagram, whose host may answer from then on. What the network does not take is lost, like any datagram.
    pub async fn send(&mut self, to: SocketAddr, payload: &[u8]) {
        self.remember(to.ip().to_canonical());
        let to = match (self.has_ipv6, to) {
            (true, SocketAddr::V4(v4)) => SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())),
            _ => to,
        };
        if let Err(error) = self.socket.send_to(payload, to).await {
            tracing::debug!(%to, bytes = payload.len(), %error, "a datagram was not sent");
        }
    }

    /// Waits for the next datagram of a host that was sent to. Safe to cancel.
    ///
    /// # Errors
    /// If the socket is of no use any more.
    pub async fn receive(&self) -> io::Result<(SocketAddr, Bytes)> {
        loop {
            let (from, payload) = receive_from(&self.socket).await?;
            if self.last_sent_by_host.contains_key(&from.ip()) {
                return Ok((from, payload));
            }
            tracing::debug!(%from, "a datagram of a host that none was sent to");
        }
    }

    fn remember(&mut self, host: IpAddr) {
        self.sent += 1;
        if !self.last_sent_by_host.contains_key(&host)
            && self.last_sent_by_host.len() >= HOSTS_MAX
            && let Some(oldest) = self.last_sent_by_host.iter().min_by_key(|(_, sent)| **sent).map(|(host, _)| *host)
        {
            self.last_sent_by_host.remove(&oldest);
        }
        self.last_sent_by_host.insert(host, self.sent);
    }
}

/// Waits for the next datagram and its sender, IPv4 as IPv4. Safe to cancel; a socket that waits holds no buffer.
///
/// # Errors
/// If the socket is of no use any more.
pub async fn receive_from(socket: &UdpSocket) -> io::Result<(SocketAddr, Bytes)> {
    loop {
        socket.readable().await?;
        let received = SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(SCRATCH_BYTES, 0);
            socket.try_recv_from(scratch).map(|(len, from)| (from, Bytes::copy_from_slice(&scratch[..len])))
        });
        match received {
            Ok((from, payload)) => return Ok((SocketAddr::new(from.ip().to_canonical(), from.port()), payload)),
            // An answer of the network to something sent earlier is no reason to stop.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

fn dual_stack() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())?;
    Ok(socket)
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_that_was_sent_to_may_answer_from_any_port_and_no_other_may() {
        let mut port = UdpPort::open().expect("a port");
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number().expect("bound")));
        let asked = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let same_host = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let stranger = UdpSocket::bind("127.0.0.2:0").await.expect("a port");
        port.send(asked.local_addr().expect("bound"), b"question").await;
        assert_eq!(asked.recv(&mut [0; 16]).await.expect("the question"), 8);
        stranger.send_to(b"unasked", at).await.expect("sent");
        same_host.send_to(b"answer", at).await.expect("sent");
        let (from, payload) = port.receive().await.expect("an answer");
        assert_eq!((from, &payload[..]), (same_host.local_addr().expect("bound"), &b"answer"[..]));
    }

    #[tokio::test]
    async fn the_host_sent_to_longest_ago_is_forgotten_first() {
        let mut port = UdpPort::open().expect("a port");
        let host = |number: usize| IpAddr::from(Ipv4Addr::from_bits(0x7f00_0000 + number as u32));
        (0..HOSTS_MAX).for_each(|number| port.remember(host(number)));
        port.remember(host(0));
        port.remember(host(HOSTS_MAX));
        assert_eq!(port.last_sent_by_host.len(), HOSTS_MAX);
        assert!(port.last_sent_by_host.contains_key(&host(0)) && !port.last_sent_by_host.contains_key(&host(1)));
    }
}
