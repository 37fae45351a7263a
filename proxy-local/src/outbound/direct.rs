//! Flows that take this machine's own way to their destination: those that the bypass keeps out of the session.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use shared::{
    link::attempts::first_of,
    target::{Host, Refusal, RefusalKind, Target},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{Outbound, direct_udp::DirectAssociation};

/// Opens plain TCP connections from this machine.
#[derive(Clone, Copy, Default, Debug)]
pub struct Direct;

/// A plain TCP connection that keeps to the contract of [`Outbound::Stream`]: dropped early, it is reset.
#[derive(Debug)]
pub struct DirectStream {
    tcp: TcpStream,
    has_read_all: bool,
    has_shut_down: bool,
}

impl Outbound for Direct {
    type Stream = DirectStream;
    type Association = DirectAssociation;

    fn associate(&self, _application: SocketAddr) -> Result<DirectAssociation, Refusal> {
        Ok(DirectAssociation::default())
    }

    async fn open(&self, target: Target, _application: SocketAddr) -> Result<DirectStream, Refusal> {
        let addresses: Vec<_> = match &target.host {
            Host::Ip(ip) => vec![(*ip, target.port).into()],
            Host::Name(name) => match tokio::time::timeout(RESOLVE_TIME, tokio::net::lookup_host((name.as_str(), target.port))).await {
                Ok(Ok(addresses)) => addresses.take(ADDRESSES_MAX).collect(),
                Ok(Err(_)) => Vec::new(),
                Err(_) => return Err(Refusal::new(RefusalKind::TimedOut, format!("looking up {name} took too long"))),
            },
        };
        let mut refusal = Refusal::new(RefusalKind::NameNotFound, format!("{} has no address", target.host));
        let connected = first_of(addresses.into_iter().map(connect), STAGGER, |error| {
            refusal = match error.kind() {
                io::ErrorKind::TimedOut => Refusal::new(RefusalKind::TimedOut, format!("{target} does not answer")),
                _ => Refusal::new(kind_of(&error), format!("{target} can't be reached directly: {error}")),
            };
        });
        let tcp = connected.await.ok_or(refusal)?;
        Ok(DirectStream { tcp, has_read_all: false, has_shut_down: false })
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp =
        tokio::time::timeout(CONNECT_TIME, TcpStream::connect(address)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let _ = tcp.set_nodelay(true);
    Ok(tcp)
}

fn kind_of(error: &io::Error) -> RefusalKind {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => RefusalKind::ConnectionRefused,
        io::ErrorKind::HostUnreachable => RefusalKind::HostUnreachable,
        io::ErrorKind::NetworkUnreachable => RefusalKind::NetworkUnreachable,
        io::ErrorKind::TimedOut => RefusalKind::TimedOut,
        io::ErrorKind::PermissionDenied => RefusalKind::Denied,
        _ => RefusalKind::General,
    }
}

impl Drop for DirectStream {
    fn drop(&mut self) {
        if !(self.has_read_all && self.has_shut_down) {
            let _ = socket2::SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for DirectStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let filled_before = buf.filled().len();
        let polled = Pin::new(&mut self.tcp).poll_read(cx, buf);
        if matches!(polled, Poll::Ready(Ok(()))) && buf.filled().len() == filled_before && buf.remaining() > 0 {
            self.has_read_all = true;
        }
        polled
    }
}

impl AsyncWrite for DirectStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.tcp).poll_shutdown(cx);
        self.has_shut_down |= matches!(polled, Poll::Ready(Ok(())));
        polled
    }
}

/// A host of the LAN answers within milliseconds; a resolver that is down is given its usual two tries.
pub(super) const RESOLVE_TIME: Duration = Duration::from_secs(10);

/// Three SYNs (at 0, 1 and 3 s) to a host on the LAN.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// RFC 8305 §8: the recommended connection attempt delay.
const STAGGER: Duration = Duration::from_millis(250);

/// With [`STAGGER`], all have begun after 2 s.
const ADDRESSES_MAX: usize = 8;
