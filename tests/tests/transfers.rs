//! What applications ask for arrives whole through the whole chain, as on a direct connection.

mod common;

use std::{io, net::SocketAddr, time::Duration};

use common::{unequal, within};
use neighbourhood::{
    content::Ending,
    load::{Client, ConnectError, Via},
    neighbourhood::Neighbourhood,
    stream::CounterStream,
};
use shared::target::{Host, Target};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};

#[tokio::test]
async fn a_download_and_an_upload_are_exact_by_either_protocol() {
    let neighbourhood = unequal().await;
    let proxy = neighbourhood.proxy().address();
    for via in [Via::Socks5(proxy), Via::HttpConnect(proxy)] {
        let client = neighbourhood.client_of(via);
        within(client.download(2_000_003, 5)).await.unwrap();
        within(client.upload(1_000_003, 6)).await.unwrap();
    }
    within(neighbourhood.stop()).await.unwrap();
}

#[tokio::test]
async fn a_large_download_uses_every_line() {
    let neighbourhood = unequal().await;
    within(neighbourhood.client().download(6_000_000, 1)).await.unwrap();
    for line in neighbourhood.lines() {
        let (_, down) = line.counters();
        assert!(down.delivered_bytes > 100_000, "{} carried {down:?}", line.ip());
    }
}

#[tokio::test]
async fn an_http_request_in_absolute_form_is_answered_by_the_content_server() {
    let neighbourhood = unequal().await;
    let content = neighbourhood.content().address();
    let request = format!("GET http://{content}/bytes/100000?seed=8 HTTP/1.1\r\nHost: {content}\r\nConnection: close\r\n\r\n");
    let answer = within(exchange(neighbourhood.proxy().address(), &request)).await;
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a header's end") + 4;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..body]));
    assert_eq!(answer.len() - body, 100_000);
    CounterStream::new(8).check(&answer[body..]).unwrap();
}

#[tokio::test]
async fn two_hundred_flows_at_once_are_each_exact() {
    let neighbourhood = unequal().await;
    let mut flows = JoinSet::new();
    for seed in 0..200 {
        let client = neighbourhood.client();
        flows.spawn(async move {
            if seed % 4 == 0 { client.upload(10_000 + seed, seed).await } else { client.download(10_000 + seed, seed).await.map(|_| ()) }
        });
    }
    within(async {
        while let Some(flow) = flows.join_next().await {
            flow.unwrap().unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn half_a_close_of_the_server_leaves_the_upload_open() {
    let neighbourhood = unequal().await;
    let mut endings = neighbourhood.content().endings();
    let mut socket = within(neighbourhood.client().ask("B 50000 3\n")).await.unwrap();
    let mut received = Vec::new();
    within(socket.read_to_end(&mut received)).await.unwrap();
    CounterStream::new(3).check(&received).unwrap();
    assert_eq!(received.len(), 50_000);
    within(socket.write_all(&received)).await.unwrap();
    socket.shutdown().await.unwrap();
    assert_eq!(within(endings.recv()).await.unwrap(), Ending { bytes: 50_000, is_exact: true, is_reset: false });
}

#[tokio::test]
async fn a_reset_of_the_server_reaches_the_application_after_what_came_before() {
    let neighbourhood = unequal().await;
    let mut socket = within(neighbourhood.client().ask("X 20000 9\n")).await.unwrap();
    let mut received = vec![0; 20_000];
    within(socket.read_exact(&mut received)).await.unwrap();
    CounterStream::new(9).check(&received).unwrap();
    socket.write_all(&[1]).await.unwrap();
    let error = within(socket.read(&mut received)).await.expect_err("a reset and no end of file");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_of_the_application_reaches_the_server() {
    let neighbourhood = unequal().await;
    let mut endings = neighbourhood.content().endings();
    let mut socket = within(neighbourhood.client().ask("U\n")).await.unwrap();
    assert_eq!(within(socket.read_u64()).await.unwrap(), 0);
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    assert!(within(endings.recv()).await.unwrap().is_reset);
}

#[tokio::test]
async fn each_failure_has_its_code_at_either_protocol() {
    let neighbourhood = unequal().await;
    let content = neighbourhood.content().address();
    let closed = Target { host: Host::Ip(content.ip()), port: closed_port(content) };
    let unknown: Target = "no-such-host.invalid:80".parse().unwrap();
    // In RFC 1918's space, which is no content server's and not opened to this neighbourhood.
    let denied: Target = "10.255.255.1:80".parse().unwrap();
    for (target, socks, http) in [(closed, 5, 502), (unknown, 4, 502), (denied, 2, 403)] {
        assert_eq!(refusals(&neighbourhood, &target).await, (socks, http), "{target}");
    }
}

/// The SOCKS code and the HTTP status with which `target` is refused.
async fn refusals(neighbourhood: &Neighbourhood, target: &Target) -> (u8, u16) {
    let proxy = neighbourhood.proxy().address();
    let socks = match within(Via::Socks5(proxy).connect(target)).await {
        Err(ConnectError::Socks(code)) => code,
        other => panic!("{target}: {other:?}"),
    };
    match within(Via::HttpConnect(proxy).connect(target)).await {
        Err(ConnectError::Http(status, _)) => (socks, status),
        other => panic!("{target}: {other:?}"),
    }
}

/// A port on the content server's address on which nothing listens.
fn closed_port(content: SocketAddr) -> u16 {
    let listener = std::net::TcpListener::bind((content.ip(), 0)).unwrap();
    listener.local_addr().unwrap().port()
}

async fn exchange(proxy: SocketAddr, request: &str) -> Vec<u8> {
    let content = Target { host: Host::Ip(proxy.ip()), port: proxy.port() };
    let mut socket = Client::new(Via::Direct, content).ask(request).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    answer
}
