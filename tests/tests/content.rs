//! The content server and its clients, directly: what they say of a transfer can be believed.

use std::{net::Ipv4Addr, time::Duration};

use neighbourhood::{
    content::{ContentServer, Ending},
    load::{Client, ConnectError, LoadError, Span, Via},
};
use shared::target::{Host, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_download_and_an_upload_are_exact() {
    let (_server, client) = server_and_client().await;
    client.download(3_000_001, 7).await.unwrap();
    client.upload(3_000_001, 7).await.unwrap();
    client.upload(0, 7).await.unwrap();
}

#[tokio::test]
async fn a_wrong_byte_in_an_upload_is_seen() {
    let (server, client) = server_and_client().await;
    let mut endings = server.endings();
    let mut socket = client.ask("U 3\n").await.unwrap();
    socket.write_all(&[0; 100]).await.unwrap();
    socket.shutdown().await.unwrap();
    assert_eq!(endings.recv().await.unwrap(), Ending { bytes: 100, is_exact: false, is_reset: false });
}

#[tokio::test]
async fn a_reset_of_either_side_is_seen_by_the_other() {
    let (server, client) = server_and_client().await;
    let mut socket = client.ask("X 1000\n").await.unwrap();
    let mut buffer = vec![0; 1_000];
    socket.read_exact(&mut buffer).await.unwrap();
    socket.write_all(&[1]).await.unwrap();
    assert_eq!(socket.read(&mut buffer).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);

    let mut endings = server.endings();
    let mut socket = client.ask("U\n").await.unwrap();
    assert_eq!(socket.read_u64().await.unwrap(), 0);
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    assert!(endings.recv().await.unwrap().is_reset);
}

#[tokio::test]
async fn timed_transfers_and_requests_report_what_passed() {
    let (_server, client) = server_and_client().await;
    let span = Span { total: Duration::from_millis(200), warm_up: Duration::from_millis(50) };
    assert!(client.download_for(span).await.unwrap().goodput > 0.0);
    assert!(client.upload_for(span).await.unwrap().goodput > 0.0);
    let times = client.fresh_requests(5, 16_000, Duration::ZERO).await.unwrap();
    assert!(times.quantile(0.5) > Duration::ZERO && times.quantile(0.5) <= times.quantile(1.0));
}

#[tokio::test]
async fn http_gives_bytes_takes_bytes_and_says_what_is_missing() {
    let (_server, client) = server_and_client().await;
    let answer = exchange(&client, "GET /bytes/100?seed=4 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    let mut stream = neighbourhood::stream::CounterStream::new(4);
    stream.check(&answer[answer.len() - 100..]).unwrap();
    let answer = exchange(&client, "POST /sink HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc").await;
    assert!(answer.ends_with(b"{\"bytes\":3,\"exact\":false}\n"));
    let answer = exchange(&client, "GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 404 Not Found\r\n"));
}

#[tokio::test]
async fn nothing_listening_is_an_error_and_not_a_hang() {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::new(Via::Direct, Target { host: Host::Ip(address.ip()), port: address.port() });
    match client.download(1, 0).await {
        Err(LoadError::Connect(ConnectError::Io(error))) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused),
        other => panic!("{other:?}"),
    }
}

async fn exchange(client: &Client, request: &str) -> Vec<u8> {
    let mut socket = client.ask(request).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    answer
}

async fn server_and_client() -> (ContentServer, Client) {
    let server = ContentServer::start((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let content = Target { host: Host::Ip(server.address().ip()), port: server.address().port() };
    (server, Client::new(Via::Direct, content))
}
