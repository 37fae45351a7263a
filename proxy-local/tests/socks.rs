//! SOCKS5 and SOCKS4a over loopback, byte by byte.

mod support;

use std::{sync::Arc, time::Duration};

use proxy_local::{Bind, Config, inbound::auth::Credentials};
use support::{Origin, Proxy, closed_port, within};

#[tokio::test]
async fn a_flow_by_name_carries_bytes_both_ways_and_half_closes_through() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let (mut application, code) = proxy.socks5("content.test", origin.address.port()).await;
    assert_eq!(code, 0);
    let mut server = origin.accept().await;
    application.send(b"question").await;
    application.shut_down().await;
    assert_eq!(server.read_to_end().await, b"question");
    server.send(b"an answer after the half-close").await;
    drop(server);
    assert_eq!(application.read_to_end().await, b"an answer after the half-close");
}

#[tokio::test]
async fn the_server_may_half_close_first() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let (mut application, _) = proxy.socks5("content.test", origin.address.port()).await;
    let mut server = origin.accept().await;
    server.shut_down().await;
    assert_eq!(application.read_to_end().await, b"");
    application.send(b"still going up").await;
    application.shut_down().await;
    assert_eq!(server.read_to_end().await, b"still going up");
}

#[tokio::test]
async fn a_reset_passes_through_both_ways() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let (application, _) = proxy.socks5("content.test", origin.address.port()).await;
    let mut server = origin.accept().await;
    application.reset();
    server.expect_reset().await;

    let (mut application, _) = proxy.socks5("content.test", origin.address.port()).await;
    origin.accept().await.reset();
    application.expect_reset().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_application_whose_host_may_vanish_is_asked_whether_it_is_still_there() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let (application, _) = proxy.socks5("content.test", origin.address.port()).await;
    let hex = |port: u16| format!("0100007F:{port:04X}");
    let ends = [hex(proxy.address.port()), hex(application.0.local_addr().expect("connected").port())];
    let timer = || {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
        let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.find(|row| row[1..3] == ends).expect("the proxy's end")[5].to_owned()
    };
    let keepalive_timer = "02:";
    within(async {
        // Until the application's system has acknowledged the reply, that one's timer runs.
        while !timer().starts_with(keepalive_timer) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn every_refusal_has_its_reply_code() {
    let proxy = Proxy::start().await;
    for (kind, code) in [(1, 1), (2, 2), (3, 4), (4, 3), (5, 4), (6, 5), (7, 6), (8, 2), (9, 1)] {
        let (mut application, replied) = proxy.socks5(&format!("{kind}.refused"), 80).await;
        assert_eq!(replied, code, "kind {kind}");
        assert_eq!(application.read_to_end().await, b"");
    }
    assert_eq!(proxy.socks5("content.test", closed_port().await).await.1, 5);
    assert_eq!(proxy.running.status().inbound.flows_refused, 10);
}

#[tokio::test]
async fn addresses_of_both_families_are_carried() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let [high, low] = origin.address.port().to_be_bytes();
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
    for (kind, address) in [(1, &[127, 0, 0, 1][..]), (4, &mapped[..])] {
        let mut application = proxy.connect().await;
        // The whole handshake and the first bytes in one go, as a client that saves round trips sends them.
        application.send(&[&[5, 1, 0, 5, 1, 0, kind], address, &[high, low], b"early"].concat()).await;
        assert_eq!(application.read(12).await, [5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        let mut server = origin.accept().await;
        assert_eq!(server.read(5).await, b"early");
    }
}

#[tokio::test]
async fn other_commands_and_address_types_are_refused_as_such() {
    let proxy = Proxy::start().await;
    for (command, code) in [(2, 7), (0, 7), (9, 7)] {
        let mut application = proxy.connect().await;
        application.send(&[5, 1, 0]).await;
        application.read(2).await;
        assert_eq!(application.socks5_request(command, "content.test", 80).await, code, "command {command}");
    }
    for (request, code) in [(&[5, 1, 0, 2][..], 8), (&[5, 1, 0, 3, 3, b'a', b'/', b'b', 0, 80], 4), (&[5, 1, 0, 1, 127, 0, 0, 1, 0, 0], 1)]
    {
        let mut application = proxy.connect().await;
        application.send(&[5, 1, 0]).await;
        application.read(2).await;
        application.send(request).await;
        assert_eq!(application.read(10).await[1], code, "{request:?}");
    }
}

#[tokio::test]
async fn a_password_that_is_set_is_required() {
    let (proxy, origin) = (Proxy::start_with_password().await, Origin::new().await);
    let mut without = proxy.connect().await;
    without.send(&[5, 1, 0]).await;
    assert_eq!(without.read_to_end().await, [5, 0xff]);

    let mut wrong = proxy.connect().await;
    wrong.send(b"\x05\x02\x00\x02\x01\x03ann\x06Secret").await;
    assert_eq!(wrong.read_to_end().await, [5, 2, 1, 1]);

    let mut right = proxy.connect().await;
    right.send(b"\x05\x02\x00\x02\x01\x03ann\x06secret").await;
    assert_eq!(right.read(4).await, [5, 2, 1, 0]);
    assert_eq!(right.socks5_request(1, "content.test", origin.address.port()).await, 0);

    let mut socks4 = proxy.connect().await;
    socks4.send(b"\x04\x01\x00\x50\x7f\x00\x00\x01ann\x00").await;
    assert_eq!(socks4.read_to_end().await[..2], [0, 91]);
    assert_eq!(proxy.session.opened(), 1);
}

#[tokio::test]
async fn socks4_takes_addresses_and_names() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let port = origin.address.port().to_be_bytes();
    for address in [&b"\x7f\x00\x00\x01user\x00"[..], b"\x00\x00\x00\x01user\x00content.test\x00"] {
        let mut application = proxy.connect().await;
        application.send(&[&[4, 1], &port[..], address, b"early"].concat()).await;
        assert_eq!(application.read(8).await, [0, 90, 0, 0, 0, 0, 0, 0]);
        let mut server = origin.accept().await;
        assert_eq!(server.read(5).await, b"early");
        server.send(b"down").await;
        assert_eq!(application.read(4).await, b"down");
    }
    for refused in [
        &b"\x04\x02\x00\x50\x7f\x00\x00\x01\x00"[..],
        b"\x04\x01\x00\x50\x00\x00\x00\x01\x00a/b\x00",
        b"\x04\x01\x00\x00\x7f\x00\x00\x01\x00",
    ] {
        let mut application = proxy.connect().await;
        application.send(refused).await;
        assert_eq!(application.read_to_end().await[..2], [0, 91], "{refused:?}");
    }
    let mut endless = proxy.connect().await;
    endless.send(&[&b"\x04\x01\x00\x50\x7f\x00\x00\x01"[..], &[b'x'; 300]].concat()).await;
    let mut answer = Vec::new();
    let _ = within(tokio::io::AsyncReadExt::read_to_end(&mut endless.0, &mut answer)).await;
    assert_eq!(answer, b"");
}

#[tokio::test]
async fn a_handshake_that_stalls_frees_its_slot() {
    let proxy = Proxy::start_with(|config| {
        config.limits.connections = 2;
        config.limits.handshake = Duration::from_millis(50);
        config.limits.idle = Duration::from_millis(50);
    })
    .await;
    let mut stalled = proxy.connect().await;
    stalled.send(&[5, 1]).await;
    let silent = proxy.connect().await;
    let origin = Origin::new().await;
    let (_application, code) = proxy.socks5("content.test", origin.address.port()).await;
    assert_eq!(code, 0);
    assert_eq!(stalled.read_to_end().await, b"");
    drop(silent);
}

#[tokio::test]
async fn connections_above_the_limit_wait_for_a_slot() {
    let proxy = Proxy::start_with(|config| config.limits.connections = 1).await;
    let origin = Origin::new().await;
    let (application, _) = proxy.socks5("content.test", origin.address.port()).await;
    let server = origin.accept().await;
    let mut waiting = proxy.connect().await;
    waiting.send(&[5, 1, 0]).await;
    assert_eq!(proxy.running.status().inbound.connections, 1);
    drop((application, server));
    assert_eq!(waiting.read(2).await, [5, 0]);
}

#[tokio::test]
async fn an_opening_that_hangs_times_out() {
    let proxy = Proxy::start_with(|config| config.limits.open = Duration::from_millis(20)).await;
    assert_eq!(proxy.socks5("it.hangs", 80).await.1, 6);
}

#[tokio::test]
async fn a_drain_takes_nothing_new_and_lets_flows_finish() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let (mut application, _) = proxy.socks5("content.test", origin.address.port()).await;
    let mut server = origin.accept().await;
    let idle = proxy.connect().await;
    proxy.shutdown.request();
    let address = proxy.address;
    let ended = tokio::spawn(proxy.running.wait());
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    server.send(b"the rest").await;
    drop(server);
    assert_eq!(application.read_to_end().await, b"the rest");
    drop(application);
    within(ended).await.expect("no panic").expect("a clean end");
    drop(idle);
}

#[tokio::test]
async fn a_stop_resets_what_has_not_finished() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let (mut application, _) = proxy.socks5("content.test", origin.address.port()).await;
    let mut server = origin.accept().await;
    server.send(b"part").await;
    assert_eq!(application.read(4).await, b"part");
    proxy.shutdown.request();
    proxy.shutdown.request();
    application.expect_reset().await;
    server.expect_reset().await;
    within(proxy.running.wait()).await.expect("a clean end");
}

#[tokio::test]
async fn a_reload_changes_the_password_and_never_where_it_listens() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let reload = |listen: u16| {
        let mut config = Config::new(Vec::new());
        config.listen = vec![Bind { address: ([127, 0, 0, 1], listen).into(), is_required: true }];
        config.bypass = None;
        config.credentials = Credentials::parse("ann:secret").map(Arc::new);
        proxy.running.reloader().apply(config)
    };
    assert!(reload(1).is_err());
    let (mut open, code) = proxy.socks5("content.test", origin.address.port()).await;
    assert_eq!(code, 0);
    let mut server = origin.accept().await;

    reload(0).expect("the address that it was started with");
    let mut without = proxy.connect().await;
    without.send(&[5, 1, 0]).await;
    assert_eq!(without.read_to_end().await, [5, 0xff]);
    server.send(b"an open flow stays").await;
    assert_eq!(open.read(18).await, b"an open flow stays");
}
