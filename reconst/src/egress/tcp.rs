//! The first connection that comes about: Happy Eyeballs version 2 (RFC 8305 §4 and §5).

use std::{io, net::SocketAddr, time::Duration};

use shared::{
    link::attempts::first_of,
    target::{Refusal, RefusalKind, Target},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// Connects to the first of `addresses` that answers: families in turn, one attempt more every [`STAGGER`] or as soon as one fails.
///
/// # Errors
/// Of all attempts' errors, the one that says most of the destination.
pub(super) async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let attempts = interleaved(addresses).into_iter().take(ATTEMPTS_MAX).map(attempt);
    let mut closest: Option<io::Error> = None;
    let connected = first_of(attempts, STAGGER, |error| {
        if closest.as_ref().is_none_or(|known| knowledge(&error) > knowledge(known)) {
            closest = Some(error);
        }
    });
    connected.await.ok_or_else(|| closest.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

/// What the application is told of a failed connection.
pub(super) fn refusal(target: &Target, error: &io::Error) -> Refusal {
    let (kind, reason) = match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
            (RefusalKind::ConnectionRefused, format!("{target} refused the connection"))
        }
        io::ErrorKind::TimedOut => (RefusalKind::TimedOut, format!("{target} did not answer within {} s", ATTEMPT_TIMEOUT.as_secs())),
        io::ErrorKind::HostUnreachable => (RefusalKind::HostUnreachable, format!("{target} can't be reached: no route to the host")),
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported | io::ErrorKind::NetworkDown => {
            (RefusalKind::NetworkUnreachable, format!("{target} can't be reached: no route to its network"))
        }
        io::ErrorKind::PermissionDenied => (RefusalKind::Denied, format!("a firewall at reconst forbids {target}")),
        _ => (RefusalKind::General, format!("connecting to {target} failed: {error}")),
    };
    Refusal::new(kind, reason)
}

async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    let stream = timeout(ATTEMPT_TIMEOUT, socket.connect(address)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_RETRIES);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

/// The addresses with families in turn, in the order given otherwise, the first one's family first (RFC 8305 §4).
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_ipv4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<SocketAddr>, Vec<SocketAddr>) = addresses.iter().partition(|address| address.is_ipv4() == first_is_ipv4);
    let mut second = second.into_iter();
    let mut order = Vec::with_capacity(addresses.len());
    for address in first {
        order.push(address);
        order.extend(second.next());
    }
    order.extend(second);
    order
}

/// How much an error says of the destination itself, rather than of the way there or of this host.
fn knowledge(error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => 4,
        io::ErrorKind::TimedOut => 3,
        io::ErrorKind::HostUnreachable => 2,
        io::ErrorKind::NetworkUnreachable => 1,
        _ => 0,
    }
}

/// RFC 8305 §8: the recommended connection attempt delay.
const STAGGER: Duration = Duration::from_millis(250);

/// Three of the kernel's SYNs (at 0, 1, 3 s) and time for the last answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// With the stagger, all have begun after 2 s.
const ATTEMPTS_MAX: usize = 8;

/// A content server that vanished without a word is noticed within 6 minutes, so that its flow does not stay for ever.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(240);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_RETRIES: u32 = 4;

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn families_take_turns_and_the_rest_follows() {
        let parse = |addresses: &[&str]| addresses.iter().map(|text| text.parse().expect("an address")).collect::<Vec<SocketAddr>>();
        let order = interleaved(&parse(&["[2a00::1]:1", "[2a00::2]:1", "[2a00::3]:1", "1.0.0.1:1", "1.0.0.2:1"]));
        assert_eq!(order, parse(&["[2a00::1]:1", "1.0.0.1:1", "[2a00::2]:1", "1.0.0.2:1", "[2a00::3]:1"]));
        let order = interleaved(&parse(&["1.0.0.1:1", "[2a00::1]:1", "[2a00::2]:1"]));
        assert_eq!(order, parse(&["1.0.0.1:1", "[2a00::1]:1", "[2a00::2]:1"]));
        assert_eq!(interleaved(&[]), []);
    }

    #[tokio::test]
    async fn a_refused_address_makes_way_for_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let open = listener.local_addr().expect("bound");
        let stream = connect(&[closed().await, closed().await, open]).await.expect("one is open");
        assert_eq!(stream.peer_addr().expect("connected"), open);
    }

    #[tokio::test]
    async fn an_address_that_never_answers_does_not_hold_up_the_next() {
        let silent = silent_listener();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let open = listener.local_addr().expect("bound");
        let stream =
            timeout(ATTEMPT_TIMEOUT, connect(&[silent.address, open])).await.expect("before the first gives up").expect("one is open");
        assert_eq!(stream.peer_addr().expect("connected"), open);
    }

    #[tokio::test]
    async fn when_all_refuse_so_does_the_target() {
        let error = connect(&[closed().await, closed().await]).await.expect_err("all closed");
        let target = "127.0.0.1:9".parse().expect("a target");
        assert_eq!(refusal(&target, &error).kind, RefusalKind::ConnectionRefused);
        assert_eq!(refusal(&target, &connect(&[]).await.expect_err("nothing to try")).kind, RefusalKind::NetworkUnreachable);
    }

    #[test]
    fn each_failure_has_its_kind() {
        let target = "isp.example:9".parse().expect("a target");
        for (error, kind) in [
            (io::ErrorKind::ConnectionRefused, RefusalKind::ConnectionRefused),
            (io::ErrorKind::TimedOut, RefusalKind::TimedOut),
            (io::ErrorKind::HostUnreachable, RefusalKind::HostUnreachable),
            (io::ErrorKind::NetworkUnreachable, RefusalKind::NetworkUnreachable),
            (io::ErrorKind::PermissionDenied, RefusalKind::Denied),
            (io::ErrorKind::OutOfMemory, RefusalKind::General),
        ] {
            assert_eq!(refusal(&target, &error.into()).kind, kind);
        }
    }

    async fn closed() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.expect("a loopback port").local_addr().expect("bound")
    }

    /// A listener whose backlog is full: the kernel drops further SYNs.
    struct Silent {
        address: SocketAddr,
        _sockets: Vec<socket2::Socket>,
    }

    fn silent_listener() -> Silent {
        let stream_socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let listener = stream_socket();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a loopback port");
        listener.listen(0).expect("a bound socket");
        let address = listener.local_addr().expect("bound").as_socket().expect("an IP socket");
        let mut sockets = vec![listener];
        for _ in 0..4 {
            let filler = stream_socket();
            filler.set_nonblocking(true).expect("a socket");
            let _ = filler.connect(&address.into());
            sockets.push(filler);
        }
        Silent { address, _sockets: sockets }
    }
}
