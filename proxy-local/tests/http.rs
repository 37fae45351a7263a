//! The HTTP proxy over loopback, byte by byte.

mod support;

use support::{Origin, Proxy, closed_port};

#[tokio::test]
async fn a_tunnel_loses_no_byte_that_came_with_the_header() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let mut application = proxy.connect().await;
    application.send(format!("CONNECT {} HTTP/1.1\r\nHost: x\r\n\r\nearly bytes", origin.address).as_bytes()).await;
    assert!(application.read_head().await.starts_with("HTTP/1.1 200"));
    let mut server = origin.accept().await;
    assert_eq!(server.read(11).await, b"early bytes");
    application.shut_down().await;
    assert_eq!(server.read_to_end().await, b"");
    server.send(b"after the half-close").await;
    drop(server);
    assert_eq!(application.read_to_end().await, b"after the half-close");
}

#[tokio::test]
async fn a_reset_passes_through_a_tunnel_both_ways() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let application = proxy.tunnel(origin.address).await;
    let mut server = origin.accept().await;
    application.reset();
    server.expect_reset().await;
    let mut application = proxy.tunnel(origin.address).await;
    origin.accept().await.reset();
    application.expect_reset().await;
}

#[tokio::test]
async fn one_connection_serves_several_origins_and_keeps_theirs() {
    let (proxy, a, b) = (Proxy::start().await, Origin::new().await, Origin::new().await);
    let mut application = proxy.connect().await;
    let mut servers = Vec::new();
    for origin in [&a, &b] {
        application.send(format!("GET http://{}/first HTTP/1.1\r\nHost: wrong\r\n\r\n", origin.address).as_bytes()).await;
        let mut server = origin.accept().await;
        let head = server.read_head().await;
        assert!(head.starts_with("GET /first HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains(&format!("host: {}\r\n", origin.address)) && !head.contains("wrong"), "{head}");
        assert!(head.to_lowercase().contains("via: 1.1 tributary\r\n"), "{head}");
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Odd-Case: 1\r\n\r\none").await;
        let head = application.read_head().await;
        assert!(head.contains("X-Odd-Case: 1\r\n"), "{head}");
        assert_eq!(application.read(3).await, b"one");
        servers.push(server);
    }
    for (origin, server) in [&a, &b].into_iter().zip(&mut servers) {
        application.send(format!("GET http://{}/second HTTP/1.1\r\nHost: x\r\n\r\n", origin.address).as_bytes()).await;
        assert!(server.read_head().await.starts_with("GET /second "));
        server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n").await;
        application.read_head().await;
        assert_eq!(application.read_text(13).await, "3\r\ntwo\r\n0\r\n\r\n");
    }
    assert_eq!(proxy.session.opened(), 2);
}

#[tokio::test]
async fn an_origin_that_closed_meanwhile_is_connected_anew() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let mut application = proxy.connect().await;
    let request = format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\n\r\n", origin.address);
    for _ in 0..2 {
        application.send(request.as_bytes()).await;
        let mut server = origin.accept().await;
        server.read_head().await;
        server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        application.read_head().await;
        assert_eq!(application.read(2).await, b"ok");
        drop(server);
    }
}

#[tokio::test]
async fn a_request_that_was_read_and_not_answered_is_sent_again_only_if_it_may_be() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let mut application = proxy.connect().await;
    let get = format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\n\r\n", origin.address);
    application.send(get.as_bytes()).await;
    let mut server = origin.accept().await;
    server.read_head().await;
    server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    application.read_head().await;
    application.send(get.as_bytes()).await;
    server.read_head().await;
    drop(server);
    let mut server = origin.accept().await;
    server.read_head().await;
    server.send(b"HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(application.read_head().await.starts_with("HTTP/1.1 204"));

    application.send(format!("POST http://{}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", origin.address).as_bytes()).await;
    let mut fresh = origin.accept().await;
    assert!(fresh.read_head().await.starts_with("POST"));
    drop(fresh);
    assert!(application.read_head().await.starts_with("HTTP/1.1 502"));
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel_that_loses_no_byte() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let mut application = proxy.connect().await;
    let request = format!(
        "GET ws://{}/chat HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n",
        origin.address
    );
    application.send(request.as_bytes()).await;
    let mut server = origin.accept().await;
    let head = server.read_head().await.to_lowercase();
    assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n") && head.contains("sec-websocket-key: k"));
    server
        .send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\nhello")
        .await;
    let head = application.read_head().await.to_lowercase();
    assert!(
        head.starts_with("http/1.1 101 ") && head.contains("upgrade: websocket\r\n") && head.contains("sec-websocket-accept: a"),
        "{head}"
    );
    assert_eq!(application.read(5).await, b"hello");
    application.send(b"ping").await;
    assert_eq!(server.read(4).await, b"ping");
    server.send(b"pong").await;
    server.shut_down().await;
    assert_eq!(application.read_to_end().await, b"pong");
    application.send(b"bye").await;
    application.shut_down().await;
    assert_eq!(server.read_to_end().await, b"bye");
}

#[tokio::test]
async fn an_upgrade_that_is_declined_is_an_ordinary_response() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let mut application = proxy.connect().await;
    application
        .send(format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", origin.address).as_bytes())
        .await;
    let mut server = origin.accept().await;
    server.read_head().await;
    server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno").await;
    assert!(application.read_head().await.starts_with("HTTP/1.1 200"));
    assert_eq!(application.read(2).await, b"no");
}

#[tokio::test]
async fn the_body_waits_for_the_servers_100_continue() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let mut application = proxy.connect().await;
    let head = format!("POST http://{}/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n", origin.address);
    application.send(head.as_bytes()).await;
    let mut server = origin.accept().await;
    assert!(server.read_head().await.to_lowercase().contains("expect: 100-continue"));
    server.send(b"HTTP/1.1 100 Continue\r\n\r\n").await;
    assert!(application.read_head().await.starts_with("HTTP/1.1 100"));
    application.send(b"body").await;
    assert_eq!(server.read(4).await, b"body");
    server.send(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    assert!(application.read_head().await.starts_with("HTTP/1.1 201"));
}

#[tokio::test]
async fn a_server_that_declines_the_body_is_heard_and_no_100_is_made_up() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let mut application = proxy.connect().await;
    let head = format!("POST http://{}/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n", origin.address);
    application.send(head.as_bytes()).await;
    let mut server = origin.accept().await;
    server.read_head().await;
    server.send(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 4\r\n\r\nnope").await;
    let head = application.read_head().await;
    assert!(head.starts_with("HTTP/1.1 417"), "{head}");
    assert_eq!(application.read(4).await, b"nope");
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let mut application = proxy.connect().await;
    let request = format!(
        "PUT http://{}/ HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: TE\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
         2\r\nup\r\n0\r\nX-Sum: 1\r\n\r\n",
        origin.address
    );
    application.send(request.as_bytes()).await;
    let mut server = origin.accept().await;
    let head = server.read_head().await.to_lowercase();
    assert!(head.contains("te: trailers") && head.contains("trailer: x-sum") && head.contains("transfer-encoding: chunked"), "{head}");
    assert_eq!(server.read_text(7).await, "2\r\nup\r\n");
    assert_eq!(server.read_head().await.to_lowercase(), "0\r\nx-sum: 1\r\n\r\n");
    server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n4\r\ndown\r\n0\r\nX-Sum: 2\r\n\r\n").await;
    assert!(application.read_head().await.to_lowercase().contains("trailer: x-sum"));
    assert_eq!(application.read_text(9).await, "4\r\ndown\r\n");
    assert_eq!(application.read_head().await.to_lowercase(), "0\r\nx-sum: 2\r\n\r\n");
}

#[tokio::test]
async fn bodies_are_streamed_not_collected() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let mut application = proxy.connect().await;
    application.send(format!("POST http://{}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf", origin.address).as_bytes()).await;
    let mut server = origin.accept().await;
    server.read_head().await;
    assert_eq!(server.read(4).await, b"half");
    server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nback").await;
    application.read_head().await;
    assert_eq!(application.read(4).await, b"back");
    application.send(b"full").await;
    assert_eq!(server.read(4).await, b"full");
    server.send(b"done").await;
    assert_eq!(application.read(4).await, b"done");
}

#[tokio::test]
async fn a_response_cut_off_looks_cut_off_whatever_its_framing() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    for (version, head) in [("1.1", "Content-Length: 9"), ("1.1", "Transfer-Encoding: chunked"), ("1.1", "X: close"), ("1.0", "X: close")] {
        let mut application = proxy.connect().await;
        application.send(format!("GET http://{}/ HTTP/{version}\r\nHost: x\r\n\r\n", origin.address).as_bytes()).await;
        let mut server = origin.accept().await;
        server.read_head().await;
        let body = if head.starts_with("Transfer") { "4\r\npart\r\n" } else { "part" };
        server.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}").as_bytes()).await;
        application.read_head().await;
        application.read(4).await;
        server.reset();
        application.expect_reset().await;
    }
}

#[tokio::test]
async fn an_application_that_goes_away_aborts_its_flow() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let mut application = proxy.connect().await;
    application.send(format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\n\r\n", origin.address).as_bytes()).await;
    let mut server = origin.accept().await;
    server.read_head().await;
    server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\npart").await;
    application.read_head().await;
    application.reset();
    server.expect_reset().await;
}

#[tokio::test]
async fn an_application_may_half_close_after_its_request() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let mut application = proxy.connect().await;
    application.send(format!("GET http://{}/ HTTP/1.0\r\n\r\n", origin.address).as_bytes()).await;
    application.shut_down().await;
    let mut server = origin.accept().await;
    server.read_head().await;
    server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n").await;
    let answer = application.read_text_to_end().await;
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("\r\n\r\nbody"), "{answer}");
}

#[tokio::test]
async fn a_head_response_keeps_its_length() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let mut application = proxy.connect().await;
    application.send(format!("HEAD http://{}/ HTTP/1.1\r\nHost: x\r\n\r\n", origin.address).as_bytes()).await;
    let mut server = origin.accept().await;
    server.read_head().await;
    server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n").await;
    assert!(application.read_head().await.to_lowercase().contains("content-length: 12345\r\n"));
    application.send(format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\n\r\n", origin.address).as_bytes()).await;
    assert!(server.read_head().await.starts_with("GET"));
    server.send(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 12345\r\n\r\n").await;
    assert!(application.read_head().await.starts_with("HTTP/1.1 304"));
}

#[tokio::test]
async fn every_refusal_is_a_page_that_says_what_to_do() {
    let proxy = Proxy::start().await;
    let mut application = proxy.connect().await;
    for (kind, status) in [(1, 502), (2, 403), (3, 502), (4, 502), (5, 502), (6, 502), (7, 504), (8, 403), (9, 503)] {
        for request in [format!("GET http://{kind}.refused/"), format!("CONNECT {kind}.refused:443")] {
            application.send(format!("{request} HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n").as_bytes()).await;
            let head = application.read_head().await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")) && head.contains("text/html"), "{head}");
            let body = application.read_text(length(&head)).await;
            assert!(body.contains("refused as asked."), "{body}");
        }
    }
    application.send(format!("GET http://content.test:{}/ HTTP/1.1\r\nHost: x\r\n\r\n", closed_port().await).as_bytes()).await;
    let head = application.read_head().await;
    assert!(head.starts_with("HTTP/1.1 502") && head.contains("text/plain"), "{head}");
}

#[tokio::test]
async fn a_server_that_does_not_speak_http_is_a_502() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    for answer in [&b"SSH-2.0-OpenSSH\r\n"[..], b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", &[b'x'; 100_000]]
    {
        let mut application = proxy.connect().await;
        application.send(format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\n\r\n", origin.address).as_bytes()).await;
        let mut server = origin.accept().await;
        server.read_head().await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut server.0, answer).await;
        drop(server);
        let head = application.read_head().await;
        assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    }
}

#[tokio::test]
async fn a_password_that_is_set_is_required() {
    let (proxy, origin) = (Proxy::start_with_password().await, Origin::new().await);
    // ann:Secret, then ann:secret.
    for authorization in [
        "",
        "Proxy-Authorization: Basic YW5uOlNlY3JldA==\r\n",
        "Proxy-Authorization: Basic !\r\n",
        "Proxy-Authorization: Bearer YW5uOnNlY3JldA==\r\n",
    ] {
        for request in [format!("GET http://{}/", origin.address), format!("CONNECT {}", origin.address)] {
            let mut application = proxy.connect().await;
            application.send(format!("{request} HTTP/1.1\r\nHost: x\r\n{authorization}\r\n").as_bytes()).await;
            let head = application.read_head().await;
            assert!(head.starts_with("HTTP/1.1 407") && head.to_lowercase().contains("proxy-authenticate: basic"), "{head}");
        }
    }
    assert_eq!(proxy.session.opened(), 0);
    let mut application = proxy.connect().await;
    let head = format!("GET http://{}/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: basic YW5uOnNlY3JldA==\r\n\r\n", origin.address);
    application.send(head.as_bytes()).await;
    assert!(!origin.accept().await.read_head().await.to_lowercase().contains("proxy-authorization"));
}

#[tokio::test]
async fn the_proxys_own_pages_are_for_this_machine_alone() {
    let proxy = Proxy::start().await;
    let mut application = proxy.connect().await;
    for (path, host, status, text) in [
        ("/", "localhost:1080", 200, "Tributary"),
        ("/proxy.pac", "127.0.0.1", 200, "FindProxyForURL"),
        ("/", "evil.example", 403, "proxy"),
        ("/proxy.pac", "evil.example", 403, "proxy"),
        ("/other", "[::1]:1080", 404, "page"),
    ] {
        application.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
        let head = application.read_head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{path} {host}: {head}");
        let body = application.read_text(length(&head)).await;
        assert!(body.contains(text), "{body}");
    }
}

#[tokio::test]
async fn malformed_requests_are_refused_and_open_nothing() {
    let proxy = Proxy::start().await;
    let long = format!("GET http://content.test/ HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET http://content.test/ HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(300));
    for request in [
        "\r\n\r\n\r\n/",
        "GET\r\n\r\n",
        "GET http://content.test/ HTTP/9.9\r\n\r\n",
        "GET http://content.test:0/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://content.test:99999/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http:///path HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://a%20b/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET https://content.test/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET ftp://content.test/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT content.test HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT content.test:0 HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT / HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT user@content.test:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST http://content.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        "POST http://content.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\nx",
        "POST http://content.test/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nx",
        "GET http://content.test/ HTTP/1.1\r\nHost : x\r\n\r\n",
        "GET http://content.test/ HTTP/1.1\r\n folded: x\r\n\r\n",
        "GET http://content.test/ HTTP/1.1\r\nX: a\0b\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0",
        &long,
        &many,
    ] {
        let mut application = proxy.connect().await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut application.0, request.as_bytes()).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut application.0).await;
        let mut answer = Vec::new();
        let _ = support::within(tokio::io::AsyncReadExt::read_to_end(&mut application.0, &mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        let shown: String = request.chars().take(60).collect();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{shown}: {answer}");
    }
    assert_eq!(proxy.session.opened(), 0);
}

#[tokio::test]
async fn a_length_beside_chunks_can_not_smuggle_a_request() {
    let (proxy, origin) = (Proxy::start().await, Origin::new().await);
    let mut application = proxy.connect().await;
    let request = format!(
        "POST http://{}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        origin.address
    );
    application.send(request.as_bytes()).await;
    let mut server = origin.accept().await;
    let head = server.read_head().await.to_lowercase();
    assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{head}");
    assert_eq!(server.read_text(13).await, "3\r\nabc\r\n0\r\n\r\n");
    server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    assert_eq!(server.read_to_end_or_reset().await, b"");
}

fn length(head: &str) -> usize {
    let head = head.to_lowercase();
    let value = head.split("content-length: ").nth(1).expect("a length");
    value.split("\r\n").next().expect("a line").parse().expect("a number")
}
