//! Ways to a content server: directly, through a SOCKS5 proxy, or through an HTTP proxy's CONNECT.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use shared::target::{Host, Target};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

/// How a client reaches the content server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    /// By a TCP connection of its own.
    Direct,
    /// By a TCP connection from this address of the client's host.
    From(IpAddr, CongestionControl),
    /// By an MPTCP connection whose first subflow is from this address.
    Multipath(IpAddr, CongestionControl),
    /// Through the SOCKS5 proxy there.
    Socks5(SocketAddr),
    /// Through the HTTP proxy there.
    HttpConnect(SocketAddr),
}

/// A congestion control of the kernel's TCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum CongestionControl {
    /// RFC 9438
    Cubic,
    /// The kernel's BBR
    Bbr,
}

impl CongestionControl {
    /// Its name in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
        }
    }
}

/// A connection that did not come about.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The content server or the proxy can't be reached, or spoke nonsense.
    #[error("no connection: {0}")]
    Io(#[from] io::Error),
    /// The proxy answered with this code of RFC 1928 §6.
    #[error("the SOCKS proxy answered with code {0}")]
    Socks(u8),
    /// The proxy answered with this status and page.
    #[error("the HTTP proxy answered with status {0}: {1}")]
    Http(u16, String),
    /// No answer in time.
    #[error("no answer within {} s", CONNECT_TIME.as_secs())]
    TimedOut,
}

impl Via {
    /// Connects to the content server; names go unresolved to a proxy.
    ///
    /// # Errors
    /// If there is no connection, with the proxy's reason.
    pub async fn connect(self, content: &Target) -> Result<TcpStream, ConnectError> {
        let connect = async {
            match self {
                Self::Direct => direct(content).await,
                Self::From(address, control) => from(address, control, Protocol::TCP, content).await,
                Self::Multipath(address, control) => from(address, control, Protocol::MPTCP, content).await,
                Self::Socks5(proxy) => socks5(proxy, content).await,
                Self::HttpConnect(proxy) => http_connect(proxy, content).await,
            }
        };
        tokio::time::timeout(CONNECT_TIME, connect).await.unwrap_or(Err(ConnectError::TimedOut))
    }
}

async fn direct(content: &Target) -> Result<TcpStream, ConnectError> {
    let socket = match &content.host {
        Host::Ip(ip) => TcpStream::connect((*ip, content.port)).await?,
        Host::Name(name) => TcpStream::connect((name.as_str(), content.port)).await?,
    };
    socket.set_nodelay(true)?;
    Ok(socket)
}

async fn from(address: IpAddr, control: CongestionControl, protocol: Protocol, content: &Target) -> Result<TcpStream, ConnectError> {
    let Host::Ip(ip) = content.host else { return Err(nonsense("from an address one connects to an address")) };
    let destination = SocketAddr::new(ip, content.port);
    let socket = Socket::new(Domain::for_address(destination), Type::STREAM, Some(protocol))?;
    socket.set_tcp_congestion(control.name().as_bytes())?;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    socket.set_nonblocking(true)?;
    let socket = TcpSocket::from_std_stream(socket.into()).connect(destination).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

async fn socks5(proxy: SocketAddr, content: &Target) -> Result<TcpStream, ConnectError> {
    let mut socket = TcpStream::connect(proxy).await?;
    socket.set_nodelay(true)?;
    socket.write_all(&[5, 1, 0]).await?;
    let mut method = [0; 2];
    socket.read_exact(&mut method).await?;
    if method != [5, 0] {
        return Err(nonsense("the SOCKS proxy takes no client without a password"));
    }
    let mut request = vec![5, 1, 0];
    match &content.host {
        Host::Ip(IpAddr::V4(ip)) => {
            request.push(1);
            request.extend(ip.octets());
        }
        Host::Ip(IpAddr::V6(ip)) => {
            request.push(4);
            request.extend(ip.octets());
        }
        Host::Name(name) => {
            request.extend([3, name.len() as u8]);
            request.extend(name.bytes());
        }
    }
    request.extend(content.port.to_be_bytes());
    socket.write_all(&request).await?;
    let mut reply = [0; 4];
    socket.read_exact(&mut reply).await?;
    if reply[1] != 0 {
        return Err(ConnectError::Socks(reply[1]));
    }
    let address_bytes = match reply[3] {
        1 => 4,
        4 => 16,
        3 => usize::from(socket.read_u8().await?),
        _ => return Err(nonsense("the SOCKS proxy's reply has an unknown address type")),
    };
    socket.read_exact(&mut vec![0; address_bytes + 2]).await?;
    Ok(socket)
}

async fn http_connect(proxy: SocketAddr, content: &Target) -> Result<TcpStream, ConnectError> {
    let mut socket = TcpStream::connect(proxy).await?;
    socket.set_nodelay(true)?;
    socket.write_all(format!("CONNECT {content} HTTP/1.1\r\nHost: {content}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_MAX_BYTES {
            return Err(nonsense("the HTTP proxy's answer has no end"));
        }
        head.push(socket.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    match status {
        Some(200..300) => Ok(socket),
        Some(status) => {
            let mut page = vec![0; HEAD_MAX_BYTES];
            let len = socket.read(&mut page).await.unwrap_or(0);
            Err(ConnectError::Http(status, String::from_utf8_lossy(&page[..len]).into_owned()))
        }
        None => Err(nonsense("the HTTP proxy's answer is no HTTP")),
    }
}

fn nonsense(what: &'static str) -> ConnectError {
    ConnectError::Io(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// Longer than any timeout of a proxy's own, whose reply is worth waiting for.
const CONNECT_TIME: Duration = Duration::from_secs(60);
/// A proxy's answer is a few lines.
const HEAD_MAX_BYTES: usize = 16 * 1024;
