//! A proxy on loopback whose session is a plain connection, and applications that speak to it byte by byte.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use proxy_local::{
    Bind, Config, Running,
    inbound::auth::Credentials,
    outbound::{
        Association, Outbound,
        direct::{Direct, DirectStream},
        direct_udp::DirectAssociation,
    },
};
use shared::{
    service::Shutdown,
    target::{Host, Refusal, RefusalKind, Target},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Far above what anything here takes: a test that gets here hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// In place of the session: connects directly, takes any name for 127.0.0.1, refuses `KIND.refused`, never opens `it.hangs`.
#[derive(Clone, Default)]
pub struct Loopback {
    opened: Arc<AtomicUsize>,
}

impl Loopback {
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }
}

impl Outbound for Loopback {
    type Stream = DirectStream;
    type Association = LoopbackAssociation;

    fn associate(&self, _application: SocketAddr) -> Result<LoopbackAssociation, Refusal> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        Ok(LoopbackAssociation::default())
    }

    async fn open(&self, target: Target, application: SocketAddr) -> Result<DirectStream, Refusal> {
        let Target { host, port } = target;
        let host = match host {
            Host::Name(name) => match name.split_once('.') {
                Some((kind, "refused")) => {
                    let kind = RefusalKind::try_from(kind.parse::<u8>().expect("a kind")).expect("a kind");
                    return Err(Refusal::new(kind, "refused as asked"));
                }
                Some((_, "hangs")) => std::future::pending().await,
                _ => Host::Ip([127, 0, 0, 1].into()),
            },
            host => host,
        };
        self.opened.fetch_add(1, Ordering::SeqCst);
        Direct.open(Target { host, port }, application).await
    }
}

/// Sends directly, takes any name for 127.0.0.1.
#[derive(Default)]
pub struct LoopbackAssociation(DirectAssociation);

impl Association for LoopbackAssociation {
    async fn send(&mut self, target: Target, payload: Bytes) {
        let host = if let Host::Name(_) = target.host { Host::Ip([127, 0, 0, 1].into()) } else { target.host };
        self.0.send(Target { host, ..target }, payload).await;
    }

    async fn receive(&mut self) -> Result<(SocketAddr, Bytes), Refusal> {
        self.0.receive().await
    }
}

pub struct Proxy {
    pub address: SocketAddr,
    pub session: Loopback,
    pub shutdown: Shutdown,
    pub running: Running,
}

impl Proxy {
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    pub async fn start_with(configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(Vec::new());
        config.listen = vec![Bind { address: ([127, 0, 0, 1], 0).into(), is_required: true }];
        config.bypass = None;
        configure(&mut config);
        let (session, shutdown) = (Loopback::default(), Shutdown::new());
        let running = proxy_local::start_with(config, session.clone(), shutdown.clone()).await.expect("started");
        Self { address: running.listen_addresses()[0], session, shutdown, running }
    }

    pub async fn start_with_password() -> Self {
        Self::start_with(|config| config.credentials = Credentials::parse("ann:secret").map(Arc::new)).await
    }

    pub async fn connect(&self) -> Peer {
        Peer(within(TcpStream::connect(self.address)).await.expect("connected"))
    }

    /// A connection through the proxy by SOCKS5 to `port` of a name.
    pub async fn socks5(&self, name: &str, port: u16) -> (Peer, u8) {
        let mut peer = self.connect().await;
        peer.send(&[5, 1, 0]).await;
        assert_eq!(peer.read(2).await, [5, 0]);
        let code = peer.socks5_request(1, name, port).await;
        (peer, code)
    }

    /// A tunnel through the proxy by CONNECT.
    pub async fn tunnel(&self, origin: SocketAddr) -> Peer {
        let mut peer = self.connect().await;
        peer.send(format!("CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n\r\n").as_bytes()).await;
        let head = peer.read_head().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        peer
    }
}

/// One end of a connection, read and written with a deadline.
pub struct Peer(pub TcpStream);

impl Peer {
    pub async fn send(&mut self, bytes: &[u8]) {
        within(self.0.write_all(bytes)).await.expect("sent");
    }

    pub async fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        within(self.0.read_exact(&mut bytes)).await.expect("read");
        bytes
    }

    pub async fn read_text(&mut self, len: usize) -> String {
        String::from_utf8(self.read(len).await).expect("text")
    }

    /// Reads a message's head, up to its empty line.
    pub async fn read_head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert!(head.len() < 65536, "no end of the head");
            head.extend(self.read(1).await);
        }
        String::from_utf8(head).expect("text")
    }

    /// Reads to the end of the connection.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        within(self.0.read_to_end(&mut bytes)).await.expect("an end");
        bytes
    }

    /// Reads to the end of the connection, however it ends.
    pub async fn read_to_end_or_reset(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = within(self.0.read_to_end(&mut bytes)).await;
        bytes
    }

    pub async fn read_text_to_end(&mut self) -> String {
        String::from_utf8(self.read_to_end().await).expect("text")
    }

    pub async fn shut_down(&mut self) {
        within(self.0.shutdown()).await.expect("shut down");
    }

    /// Ends the connection with an RST.
    pub fn reset(self) {
        socket2::SockRef::from(&self.0).set_linger(Some(Duration::ZERO)).expect("linger");
    }

    /// Waits for the other end's RST.
    pub async fn expect_reset(&mut self) {
        let mut discarded = [0; 4096];
        loop {
            match within(self.0.read(&mut discarded)).await {
                Ok(0) => panic!("a clean end instead of a reset"),
                Ok(_) => (),
                Err(error) => return assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
            }
        }
    }

    /// Sends a SOCKS5 request for a name and gives the reply's code.
    pub async fn socks5_request(&mut self, command: u8, name: &str, port: u16) -> u8 {
        let mut request = vec![5, command, 0, 3, name.len() as u8];
        request.extend(name.as_bytes());
        request.extend(port.to_be_bytes());
        self.send(&request).await;
        let reply = self.read(10).await;
        assert_eq!(reply[0], 5);
        reply[1]
    }
}

/// A content server that is played by the test.
pub struct Origin {
    listener: TcpListener,
    pub address: SocketAddr,
}

impl Origin {
    pub async fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bound");
        let address = listener.local_addr().expect("an address");
        Self { listener, address }
    }

    pub async fn accept(&self) -> Peer {
        Peer(within(self.listener.accept()).await.expect("accepted").0)
    }
}

/// A port of 127.0.0.1 on which nothing listens.
pub async fn closed_port() -> u16 {
    Origin::new().await.address.port()
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("within the deadline")
}
