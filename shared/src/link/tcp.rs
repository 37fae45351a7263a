//! A TCP socket that several look at: one reads it, one writes it, one waits for its reset.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// A socket read and written by reference, by one task each way.
#[derive(Clone, Copy, Debug)]
pub(super) struct TcpRef<'a>(pub(super) &'a TcpStream);

/// Waits until `tcp` is reset by its peer, or given up by the system. Unlike a read, this sees it while nobody reads; what came before it can
/// still be read.
pub async fn reset_of(tcp: &TcpStream) {
    if tcp.ready(Interest::ERROR).await.is_err() {
        std::future::pending().await
    }
}

impl TcpRef<'_> {
    /// Moves up to `wanted` bytes by one system call of `moves`; `WouldBlock` if there was nothing to move.
    fn try_move(self, interest: Interest, wanted: usize, moves: impl FnOnce(&socket2::Socket) -> io::Result<usize>) -> io::Result<usize> {
        let mut moved = None;
        let tried = self.0.try_io(interest, || {
            let bytes = moves(&SockRef::from(self.0))?;
            moved = Some(bytes);
            // As tokio's own sockets do: fewer than wanted say that a further call would move nothing, so that it is saved.
            if cfg!(unix) && 0 < bytes && bytes < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match moved {
            Some(bytes) => Ok(bytes),
            None => tried.map(|()| 0),
        }
    }
}

impl AsyncRead for TcpRef<'_> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            match self.try_move(Interest::READABLE, unfilled.len(), |mut socket| socket.read(unfilled)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(bytes) => {
                    buffer.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for TcpRef<'_> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.try_move(Interest::WRITABLE, bytes.len(), |mut socket| socket.write(bytes)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(self.0).shutdown(Shutdown::Write))
    }
}
