//! SOCKS5's UDP ASSOCIATE over loopback, byte by byte.

mod support;

use std::net::SocketAddr;

use proxy_local::inbound::InboundStatus;
use support::{Peer, Proxy, within};
use tokio::net::UdpSocket;

#[tokio::test]
async fn datagrams_go_by_name_and_address_and_answers_come_back_with_their_senders() {
    let (proxy, server) = (Proxy::start().await, bound("127.0.0.1").await);
    let (_tcp, relay) = associate(&proxy, 0).await;
    let application = bound("127.0.0.1").await;
    let port = port_of(&server).to_be_bytes();
    for header in [&[0, 0, 0, 1, 127, 0, 0, 1][..], b"\0\0\0\x03\x0ccontent.test"] {
        application.send_to(&[header, &port, b"question"].concat(), relay).await.expect("sent");
        let (payload, from) = receive(&server).await;
        assert_eq!(payload, b"question");
        server.send_to(b"answer", from).await.expect("sent");
        assert_eq!(receive(&application).await, ([&[0, 0, 0, 1, 127, 0, 0, 1][..], &port, b"answer"].concat(), relay));
    }
    let longest = vec![7; 65_507 - 10];
    application.send_to(&[&[0, 0, 0, 1, 127, 0, 0, 1][..], &port, &longest].concat(), relay).await.expect("sent");
    assert!(receive(&server).await.0 == longest);
}

#[tokio::test]
async fn only_the_clients_host_and_its_first_port_may_send_and_fragments_are_dropped() {
    let (proxy, server) = (Proxy::start().await, bound("127.0.0.1").await);
    let (_tcp, relay) = associate(&proxy, 0).await;
    let datagram = |payload: &[u8]| [&[0, 0, 0, 1, 127, 0, 0, 1][..], &port_of(&server).to_be_bytes(), payload].concat();
    let (stranger, application, later) = (bound("127.0.0.2").await, bound("127.0.0.1").await, bound("127.0.0.1").await);
    stranger.send_to(&datagram(b"of another host"), relay).await.expect("sent");
    application.send_to(&[&[0, 0, 1][..], &datagram(b"a fragment")[3..]].concat(), relay).await.expect("sent");
    application.send_to(b"no header", relay).await.expect("sent");
    application.send_to(&datagram(b"first"), relay).await.expect("sent");
    later.send_to(&datagram(b"of another port"), relay).await.expect("sent");
    application.send_to(&datagram(b"second"), relay).await.expect("sent");
    assert_eq!(receive(&server).await.0, b"first");
    assert_eq!(receive(&server).await.0, b"second");
    let InboundStatus { associations, datagrams_up, datagrams_dropped, .. } = proxy.running.status().inbound;
    assert_eq!((associations, datagrams_up, datagrams_dropped), (1, 2, 4));
}

#[tokio::test]
async fn a_port_that_is_announced_is_the_only_one() {
    let (proxy, server) = (Proxy::start().await, bound("127.0.0.1").await);
    let (announced, other) = (bound("127.0.0.1").await, bound("127.0.0.1").await);
    let (_tcp, relay) = associate(&proxy, port_of(&announced)).await;
    let datagram = |payload: &[u8]| [&[0, 0, 0, 1, 127, 0, 0, 1][..], &port_of(&server).to_be_bytes(), payload].concat();
    other.send_to(&datagram(b"of another port"), relay).await.expect("sent");
    announced.send_to(&datagram(b"as announced"), relay).await.expect("sent");
    assert_eq!(receive(&server).await.0, b"as announced");
}

#[tokio::test]
async fn an_association_ends_with_its_connection_and_a_drain_ends_it() {
    let proxy = Proxy::start().await;
    let (tcp, relay) = associate(&proxy, 0).await;
    let (mut other, _) = associate(&proxy, 0).await;
    drop(tcp);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::net::UdpSocket::bind(relay).is_err() {
        assert!(std::time::Instant::now() < deadline, "the relay's port is given back");
        tokio::task::yield_now().await;
    }
    assert_eq!(proxy.running.status().inbound.associations, 1);
    proxy.shutdown.request();
    assert_eq!(other.read_to_end().await, b"");
    within(proxy.running.wait()).await.expect("a clean end");
}

#[tokio::test]
async fn a_password_is_asked_for_as_for_connections() {
    let proxy = Proxy::start_with_password().await;
    let mut peer = proxy.connect().await;
    peer.send(&[5, 1, 0]).await;
    assert_eq!(peer.read_to_end().await, [5, 0xff]);
    let mut peer = proxy.connect().await;
    peer.send(b"\x05\x01\x02\x01\x03ann\x06secret\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00").await;
    let reply = peer.read(14).await;
    assert_eq!(reply[..12], [5, 2, 1, 0, 5, 0, 0, 1, 127, 0, 0, 1]);
}

/// An association whose application announces `port`; gives the connection and where to send.
async fn associate(proxy: &Proxy, port: u16) -> (Peer, SocketAddr) {
    let mut peer = proxy.connect().await;
    peer.send(&[&[5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0][..], &port.to_be_bytes()].concat()).await;
    let reply = peer.read(12).await;
    assert_eq!(reply[..10], [5, 0, 5, 0, 0, 1, 127, 0, 0, 1]);
    let relay = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes([reply[10], reply[11]])));
    (peer, relay)
}

async fn bound(ip: &str) -> UdpSocket {
    UdpSocket::bind((ip, 0)).await.expect("a port")
}

fn port_of(socket: &UdpSocket) -> u16 {
    socket.local_addr().expect("bound").port()
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut datagram = vec![0; 65_536];
    let (len, from) = within(socket.recv_from(&mut datagram)).await.expect("received");
    datagram.truncate(len);
    (datagram, from)
}
