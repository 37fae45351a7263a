//! Datagrams of an application by SOCKS5's UDP ASSOCIATE (RFC 1928 §7).
//!
//! An association has a UDP socket of its own at the address at which the application found the proxy, and lives for as long as the
//! TCP connection that asked for it. It takes datagrams from that connection's peer alone, and of its ports from the one announced or else the
//! first that sends; answers go there and nowhere else. SOCKS fragments (which hardly anything sends) are dropped, as RFC 1928 allows.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use shared::{
    link::udp_port::receive_from,
    target::{Host, Refusal, RefusalKind, Target},
    wire,
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpStream, UdpSocket},
};

use super::Front;
use crate::outbound::Outbound;

/// An association whose socket is bound.
pub(super) struct Association<A> {
    socket: UdpSocket,
    address: SocketAddr,
    /// Where the application's datagrams come from; port 0 until that is known.
    application: SocketAddr,
    outbound: A,
}

/// Begins an association for the application behind `tcp`, which may have announced its `port`.
///
/// # Errors
/// If there is no way for datagrams, or no socket.
pub(super) fn begin<O: Outbound>(tcp: &TcpStream, port: u16, front: &Front<O>) -> Result<Association<O::Association>, Refusal> {
    let associate = || {
        let (peer, mut at) = (tcp.peer_addr()?, tcp.local_addr()?);
        // The scope of a link-local address stays with it.
        at.set_ip(at.ip().to_canonical());
        at.set_port(0);
        let socket = std::net::UdpSocket::bind(at)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        std::io::Result::Ok((UdpSocket::from_std(socket)?, address, peer))
    };
    let (socket, address, peer) = associate().map_err(|error| Refusal::new(RefusalKind::General, format!("no UDP socket: {error}")))?;
    let outbound = front.outbound.associate(SocketAddr::new(peer.ip().to_canonical(), if port == 0 { peer.port() } else { port }))?;
    Ok(Association { socket, address, application: SocketAddr::new(peer.ip().to_canonical(), port), outbound })
}

impl<A: crate::outbound::Association> Association<A> {
    /// Where the application is to send its datagrams.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Carries datagrams until `tcp` ends, the way out is refused, or the program drains.
    pub(super) async fn serve<O: Outbound>(mut self, mut tcp: TcpStream, front: &Front<O>) {
        let counts = &front.counts;
        counts.associations.fetch_add(1, Ordering::Relaxed);
        let mut ignored = [0; 256];
        loop {
            tokio::select! {
                received = receive_from(&self.socket) => match received {
                    Ok((from, datagram)) => match self.accept(from, datagram) {
                        Some((target, payload)) => {
                            counts.datagrams_up.fetch_add(1, Ordering::Relaxed);
                            self.outbound.send(target, payload).await;
                        }
                        None => {
                            counts.datagrams_dropped.fetch_add(1, Ordering::Relaxed);
                        }
                    },
                    Err(error) => {
                        tracing::debug!(application = %self.application, %error, "the association's socket");
                        break;
                    }
                },
                received = self.outbound.receive() => match received {
                    Ok((from, payload)) => {
                        let is_sent = self.answer(from, &payload).await;
                        let count = if is_sent { &counts.datagrams_down } else { &counts.datagrams_dropped };
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(refusal) => {
                        counts.flows_refused.fetch_add(1, Ordering::Relaxed);
                        tracing::info!(application = %self.application, %refusal, "association ended");
                        break;
                    }
                },
                read = tcp.read(&mut ignored) => if !matches!(read, Ok(1..)) { break },
                () = front.shutdown.draining() => break,
            }
        }
        counts.associations.fetch_sub(1, Ordering::Relaxed);
    }

    /// What a datagram asks for, if it is the application's and whole.
    fn accept(&mut self, from: SocketAddr, mut datagram: Bytes) -> Option<(Target, Bytes)> {
        let is_its_port = self.application.port() == 0 || self.application.port() == from.port();
        if from.ip() != self.application.ip() || !is_its_port {
            return None;
        }
        let target = take_header(&mut datagram)?;
        self.application = from;
        Some((target, datagram))
    }

    /// Gives the application a datagram; whether it was sent.
    async fn answer(&mut self, from: SocketAddr, payload: &[u8]) -> bool {
        if self.application.port() == 0 {
            return false;
        }
        let mut datagram = BytesMut::with_capacity(HEADER_BYTES_MAX + payload.len());
        datagram.put_slice(&[0, 0, 0]);
        match from.ip() {
            IpAddr::V4(ip) => {
                datagram.put_u8(IPV4);
                datagram.put_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                datagram.put_u8(IPV6);
                datagram.put_slice(&ip.octets());
            }
        }
        datagram.put_u16(from.port());
        datagram.put_slice(payload);
        self.socket.send_to(&datagram, self.application).await.is_ok()
    }
}

/// Takes the header off the front of a datagram; `None` if it can't be one, or tells of a fragment.
fn take_header(datagram: &mut Bytes) -> Option<Target> {
    let [_, _, fragment, kind] = wire::take_array(datagram).ok()?;
    if fragment != 0 {
        return None;
    }
    let host = match kind {
        IPV4 => Host::Ip(IpAddr::from(wire::take_array::<4>(datagram).ok()?)),
        IPV6 => Host::Ip(IpAddr::from(wire::take_array::<16>(datagram).ok()?).to_canonical()),
        NAME => {
            let len = usize::from(wire::take_u8(datagram).ok()?);
            if datagram.remaining() < len {
                return None;
            }
            Host::parse(std::str::from_utf8(&datagram.split_to(len)).ok()?).ok()?
        }
        _ => return None,
    };
    let port = wire::take_u16(datagram).ok()?;
    (port != 0).then_some(Target { host, port })
}

const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Of what is sent to an application: addresses, never names.
const HEADER_BYTES_MAX: usize = 22;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_gives_its_target_and_leaves_the_payload() {
        for (header, target) in [
            (&[0, 0, 0, 1, 192, 0, 2, 1, 0, 53][..], "192.0.2.1:53"),
            (&[0, 0, 0, 3, 11, b'E', b'x', b'a', b'm', b'p', b'l', b'e', b'.', b'o', b'r', b'g', 1, 187], "example.org:443"),
            (&[9, 9, 0, 4, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80], "[2001:db8::1]:80"),
        ] {
            let mut datagram = Bytes::from([header, b"payload"].concat());
            assert_eq!(take_header(&mut datagram), Some(target.parse().expect("a target")));
            assert_eq!(&datagram[..], b"payload");
            assert_eq!(take_header(&mut Bytes::copy_from_slice(&header[..header.len() - 1])), None);
        }
    }

    #[test]
    fn fragments_and_what_is_no_target_are_dropped() {
        for bad in [
            &[0, 0, 1, 1, 192, 0, 2, 1, 0, 53][..],
            &[0, 0, 0, 2, 192, 0, 2, 1, 0, 53],
            &[0, 0, 0, 1, 192, 0, 2, 1, 0, 0],
            &[0, 0, 0, 3, 3, b'a', b'/', b'b', 0, 53],
            &[0, 0, 0, 3, 2, 0xc3, 0x28, 0, 53],
            &[],
        ] {
            assert_eq!(take_header(&mut Bytes::copy_from_slice(bad)), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(input: Vec<u8>) {
            let _ = take_header(&mut input.into());
        }
    }
}
