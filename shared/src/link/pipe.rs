//! Two byte streams joined: what one end reads the other writes.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

/// The bytes that a [`pipe`] carried.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Carried {
    /// From the socket into the stream.
    pub up: u64,
    /// From the stream into the socket.
    pub down: u64,
}

/// Carries bytes between an accepted or dialled `socket` and `stream` until both directions have ended.
///
/// A half-close of either goes through to the other and leaves the other direction running. An abort of either (a reset, or an
/// error in writing) aborts the other: the socket with an RST (`SO_LINGER` 0), the stream by being dropped. Dropping the
/// future aborts both.
///
/// # Errors
/// The error that aborted it; what was carried until then is lost count of.
pub async fn pipe<S>(socket: TcpStream, stream: S) -> io::Result<Carried>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut socket = ResetUnlessComplete { socket, is_complete: false };
    let (mut stream_read, mut stream_write) = tokio::io::split(stream);
    let (mut socket_read, mut socket_write) = socket.socket.split();
    let (up, down) = tokio::try_join!(carry(&mut socket_read, &mut stream_write), carry(&mut stream_read, &mut socket_write))?;
    socket.is_complete = true;
    Ok(Carried { up, down })
}

/// Closing a socket in the middle of a flow must not look like the flow's end.
struct ResetUnlessComplete {
    socket: TcpStream,
    is_complete: bool,
}

impl Drop for ResetUnlessComplete {
    fn drop(&mut self) {
        if !self.is_complete {
            let _ = socket2::SockRef::from(&self.socket).set_linger(Some(std::time::Duration::ZERO));
        }
    }
}

async fn carry(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut carried = 0;
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            to.shutdown().await?;
            return Ok(carried);
        }
        to.write_all(&buffer[..len]).await?;
        carried += len as u64;
    }
}

/// Large enough that a system call's fixed cost is small beside its copy; a flow has two.
const BUFFER_BYTES: usize = 64 * 1024;
