//! The application's socket while hyper holds it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A socket that is reset when it is dropped while `resets` is set, unless it was taken out before.
pub(super) struct ApplicationIo {
    tcp: Option<TcpStream>,
    resets: Arc<AtomicBool>,
}

impl ApplicationIo {
    pub(super) fn new(tcp: TcpStream, resets: Arc<AtomicBool>) -> Self {
        Self { tcp: Some(tcp), resets }
    }

    pub(super) fn into_tcp(mut self) -> TcpStream {
        self.tcp.take().expect("only this, which consumes it, takes the socket out")
    }

    fn tcp(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.tcp.as_mut().expect("only `into_tcp`, which consumes it, takes the socket out"))
    }
}

impl Drop for ApplicationIo {
    fn drop(&mut self) {
        if let Some(tcp) = &self.tcp
            && self.resets.load(Ordering::Relaxed)
        {
            let _ = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for ApplicationIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_read(cx, buf)
    }
}

impl AsyncWrite for ApplicationIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.tcp().poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.tcp().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_shutdown(cx)
    }
}
