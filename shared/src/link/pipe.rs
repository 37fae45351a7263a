//! Two byte streams joined: what one end reads the other writes.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
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
    let (up, down) = tokio::try_join!(Carry::new(&mut socket_read, &mut stream_write), Carry::new(&mut stream_read, &mut socket_write))?;
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

/// Bytes on their way from one end to the other.
///
/// What has been read is written at once; only what the other end has no room for is kept. A flow that waits holds no buffer: all of a
/// thread's flows read into the same one.
struct Carry<'a, R, W> {
    from: &'a mut R,
    to: &'a mut W,
    /// Read and not yet written, from `written` on.
    leftover: Vec<u8>,
    written: usize,
    carried: u64,
    has_ended: bool,
}

impl<'a, R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Carry<'a, R, W> {
    fn new(from: &'a mut R, to: &'a mut W) -> Self {
        Self { from, to, leftover: Vec::new(), written: 0, carried: 0, has_ended: false }
    }

    fn poll_leftover(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.leftover.len() {
            let written = ready!(Pin::new(&mut *self.to).poll_write(context, &self.leftover[self.written..]))?;
            self.written += not_none(written)?;
        }
        self.leftover = Vec::new();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes as much of it as the other end takes; gives the bytes read.
    fn poll_once(&mut self, context: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(&mut *self.from).poll_read(context, &mut buffer))?;
        let bytes = buffer.filled();
        let mut written = 0;
        while written < bytes.len() {
            match Pin::new(&mut *self.to).poll_write(context, &bytes[written..]) {
                Poll::Ready(result) => written += not_none(result?)?,
                Poll::Pending => break,
            }
        }
        self.leftover.extend_from_slice(&bytes[written..]);
        Poll::Ready(Ok(bytes.len()))
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Future for Carry<'_, R, W> {
    type Output = io::Result<u64>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            ready!(self.poll_leftover(context))?;
            if self.has_ended {
                ready!(Pin::new(&mut *self.to).poll_shutdown(context))?;
                return Poll::Ready(Ok(self.carried));
            }
            let read = SCRATCH.with_borrow_mut(|scratch| {
                scratch.resize(SCRATCH_BYTES, 0);
                self.poll_once(context, scratch)
            });
            let len = ready!(read)?;
            self.has_ended = len == 0;
            self.carried += len as u64;
        }
    }
}

fn not_none(written: usize) -> io::Result<usize> {
    if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) }
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Large enough that a system call's fixed cost is small beside its copy.
const SCRATCH_BYTES: usize = 64 * 1024;
