//! The application's socket while hyper holds it.

use std::{
    io,
    net::Shutdown,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A socket that is reset when it is dropped while `resets` is set, unless it was taken out before.
///
/// Shared, so that a reset by the application is seen also while hyper does not read.
pub(super) struct ApplicationIo {
    tcp: Option<Arc<TcpStream>>,
    resets: Arc<AtomicBool>,
}

impl ApplicationIo {
    pub(super) fn new(tcp: Arc<TcpStream>, resets: Arc<AtomicBool>) -> Self {
        Self { tcp: Some(tcp), resets }
    }

    /// The socket, for which no other handle may be left.
    pub(super) fn into_tcp(mut self) -> Option<TcpStream> {
        self.tcp.take().and_then(Arc::into_inner)
    }

    fn tcp(&self) -> &TcpStream {
        self.tcp.as_ref().expect("only `into_tcp`, which consumes it, takes the socket out")
    }
}

impl Drop for ApplicationIo {
    fn drop(&mut self) {
        if let Some(tcp) = &self.tcp
            && self.resets.load(Ordering::Relaxed)
        {
            let _ = SockRef::from(&**tcp).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for ApplicationIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.tcp().poll_read_ready(cx))?;
            match self.tcp().try_read(buf.initialize_unfilled()) {
                Ok(len) => {
                    buf.advance(len);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for ApplicationIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.tcp().poll_write_ready(cx))?;
            match self.tcp().try_write_vectored(bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(self.tcp()).shutdown(Shutdown::Write))
    }
}
