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

use super::send_queue;

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
/// error in writing) aborts the other: the socket with an RST (`SO_LINGER` 0), the stream by being dropped. What was written into the
/// socket goes out before the RST, as long as its peer takes it. Dropping the future aborts both at once.
///
/// # Errors
/// The error that aborted it; what was carried until then is lost count of.
pub async fn pipe<S>(socket: TcpStream, stream: S) -> io::Result<Carried>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    metered_pipe(socket, stream, Unmetered, Unmetered).await
}

/// Like [`pipe`], but bytes move only as a meter of their direction lets them.
///
/// # Errors
/// The error that aborted it, a meter's among them.
pub async fn metered_pipe<S, M>(socket: TcpStream, stream: S, up: M, down: M) -> io::Result<Carried>
where
    S: AsyncRead + AsyncWrite + Unpin,
    M: Meter,
{
    let mut socket = ResetUnlessComplete { socket, is_complete: false };
    let (mut stream_read, mut stream_write) = tokio::io::split(stream);
    // Both last as long as either direction, so that they tell an end from an abort, and end before the stream.
    let (mut up, mut down) = (up, down);
    let (mut socket_read, mut socket_write) = socket.socket.split();
    let carried = tokio::try_join!(
        Carry::new(&mut socket_read, &mut stream_write, &mut up),
        Carry::new(&mut stream_read, &mut socket_write, &mut down)
    );
    match carried {
        Ok((up, down)) => {
            socket.is_complete = true;
            Ok(Carried { up, down })
        }
        Err(error) => {
            down.on_lost(send_queue::drained(&socket.socket).await);
            Err(error)
        }
    }
}

/// Says how many bytes may move in one direction, and when.
pub trait Meter: Unpin {
    /// Leave to move from 1 up to `wanted` bytes, in one piece or in several; it stands until they have moved. Pending until then.
    ///
    /// # Errors
    /// If no more may move: the flow is aborted.
    fn poll_grant(&mut self, context: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>>;

    /// So many of the granted bytes have moved.
    fn on_moved(&mut self, bytes: usize);

    /// All bytes have moved that there are.
    fn on_end(&mut self);

    /// So many of those that have moved into the socket never get to its peer.
    fn on_lost(&mut self, bytes: u64);

    /// How many bytes it makes sense to have ready: what is read has to be kept until it may move.
    fn piece_bytes(&self) -> usize;
}

/// Lets everything pass.
struct Unmetered;

impl Meter for Unmetered {
    fn poll_grant(&mut self, _context: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(wanted))
    }

    fn on_moved(&mut self, _bytes: usize) {}

    fn on_end(&mut self) {}

    fn on_lost(&mut self, _bytes: u64) {}

    fn piece_bytes(&self) -> usize {
        SCRATCH_BYTES
    }
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
struct Carry<'a, R, W, M> {
    from: &'a mut R,
    to: &'a mut W,
    meter: &'a mut M,
    /// Read and not yet written, from `written` on.
    leftover: Vec<u8>,
    written: usize,
    carried: u64,
    has_ended: bool,
}

impl<'a, R: AsyncRead + Unpin, W: AsyncWrite + Unpin, M: Meter> Carry<'a, R, W, M> {
    fn new(from: &'a mut R, to: &'a mut W, meter: &'a mut M) -> Self {
        Self { from, to, meter, leftover: Vec::new(), written: 0, carried: 0, has_ended: false }
    }

    fn poll_leftover(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.leftover.len() {
            let wanted = self.leftover.len() - self.written;
            let granted = ready!(self.meter.poll_grant(context, wanted))?;
            let bytes = &self.leftover[self.written..self.written + granted];
            let written = not_none(ready!(Pin::new(&mut *self.to).poll_write(context, bytes))?)?;
            self.meter.on_moved(written);
            self.written += written;
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
            let Poll::Ready(granted) = self.meter.poll_grant(context, bytes.len() - written) else { break };
            match Pin::new(&mut *self.to).poll_write(context, &bytes[written..written + granted?]) {
                Poll::Ready(result) => {
                    let moved = not_none(result?)?;
                    self.meter.on_moved(moved);
                    written += moved;
                }
                Poll::Pending => break,
            }
        }
        self.leftover.extend_from_slice(&bytes[written..]);
        Poll::Ready(Ok(bytes.len()))
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin, M: Meter> Future for Carry<'_, R, W, M> {
    type Output = io::Result<u64>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            ready!(self.poll_leftover(context))?;
            if self.has_ended {
                ready!(Pin::new(&mut *self.to).poll_shutdown(context))?;
                self.meter.on_end();
                return Poll::Ready(Ok(self.carried));
            }
            // What is not read yet is kept by the socket, and holds back its sender.
            ready!(Pin::new(&mut *self.to).poll_flush(context))?;
            let read = SCRATCH.with_borrow_mut(|scratch| {
                scratch.resize(SCRATCH_BYTES, 0);
                let piece_bytes = self.meter.piece_bytes().clamp(1, SCRATCH_BYTES);
                self.poll_once(context, &mut scratch[..piece_bytes])
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
