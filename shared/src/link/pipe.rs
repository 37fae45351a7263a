//! Two byte streams joined: what one end reads the other writes.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    send_queue::{self, DRAIN_TIME_MAX},
    tcp::{TcpRef, reset_of},
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
/// error in writing) aborts the other: the socket with an RST (`SO_LINGER` 0), the stream by being dropped. What was written into the
/// socket goes out before the RST, as long as its peer takes it. Dropping the future aborts both at once.
///
/// A reset of the socket is seen also while the stream has no room and nothing of the socket is read. What is in the socket then is
/// lost, as it is in a TCP that is reset (RFC 9293 §3.10.7.4).
///
/// There is no limit to how long either may take nothing, or a byte now and then: a terminal, a long poll and a paused download look like
/// that, and what waits for them is bounded in bytes.
///
/// # Errors
/// The error that aborted it; what was carried until then is lost count of.
pub async fn pipe<S>(socket: TcpStream, stream: S) -> io::Result<Carried>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    metered_pipe(socket, stream, Unmetered, Unmetered, std::future::pending()).await
}

/// Like [`pipe`], but bytes move only as a meter of their direction lets them, and it sees that the stream is `aborted` also while the socket
/// has no room: what has come until then has [`DRAIN_TIME_MAX`] to get there.
///
/// # Errors
/// The error that aborted it, a meter's among them.
pub async fn metered_pipe<S, M>(socket: TcpStream, stream: S, up: M, down: M, aborted: impl Future<Output = ()>) -> io::Result<Carried>
where
    S: AsyncRead + AsyncWrite + Unpin,
    M: Meter,
{
    pipe_within(DRAIN_TIME_MAX, socket, stream, (up, down), aborted).await
}

async fn pipe_within<S, M>(
    drain_time: Duration,
    socket: TcpStream,
    stream: S,
    meters: (M, M),
    aborted: impl Future<Output = ()>,
) -> io::Result<Carried>
where
    S: AsyncRead + AsyncWrite + Unpin,
    M: Meter,
{
    let mut socket = ResetUnlessComplete { socket, is_complete: false };
    let (mut stream_read, mut stream_write) = tokio::io::split(stream);
    // Both last as long as either direction, so that they tell an end from an abort, and end before the stream.
    let (mut up, mut down) = meters;
    let tcp = &socket.socket;
    let (mut socket_read, mut socket_write) = (TcpRef(tcp), TcpRef(tcp));
    let mut upward = Carry::new(&mut socket_read, &mut stream_write, &mut up);
    let mut downward = Carry::new(&mut stream_read, &mut socket_write, &mut down);
    let carried = carry_both(&mut upward, &mut downward, aborted, reset_of(tcp)).await;
    let over_at = Instant::now() + drain_time;
    let error = match carried {
        Some(Ok((up, down))) => {
            socket.is_complete = true;
            return Ok(Carried { up, down });
        }
        Some(Err(error)) => error,
        None => carry_rest(&mut downward, over_at).await,
    };
    down.on_lost(send_queue::drained(tcp, over_at).await);
    Err(error)
}

/// Carries both ways until they have ended or one fails; `None` once the stream is `aborted`.
async fn carry_both(
    upward: impl Future<Output = io::Result<u64>> + Unpin,
    downward: impl Future<Output = io::Result<u64>> + Unpin,
    aborted: impl Future<Output = ()>,
    reset: impl Future<Output = ()>,
) -> Option<io::Result<(u64, u64)>> {
    let mut both = pin!(async { tokio::try_join!(upward, downward) });
    tokio::select! {
        biased;
        () = aborted => return None,
        carried = both.as_mut() => return Some(carried),
        () = reset => {}
    }
    // What came just before the reset goes through if there is room.
    match poll_fn(|context| Poll::Ready(both.as_mut().poll(context))).await {
        Poll::Ready(carried) => Some(carried),
        Poll::Pending => Some(Err(io::Error::new(io::ErrorKind::ConnectionReset, "the socket's peer reset it"))),
    }
}

/// Carries what an aborted stream still gives; why that ends.
async fn carry_rest(downward: impl Future<Output = io::Result<u64>> + Unpin, over_at: Instant) -> io::Error {
    match timeout_at(over_at, downward).await {
        Ok(Err(error)) => error,
        Ok(Ok(_)) | Err(_) => io::Error::new(io::ErrorKind::ConnectionReset, "the stream was aborted"),
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
    is_over: bool,
}

impl<'a, R: AsyncRead + Unpin, W: AsyncWrite + Unpin, M: Meter> Carry<'a, R, W, M> {
    fn new(from: &'a mut R, to: &'a mut W, meter: &'a mut M) -> Self {
        Self { from, to, meter, leftover: Vec::new(), written: 0, carried: 0, has_ended: false, is_over: false }
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
            if self.is_over {
                return Poll::Ready(Ok(self.carried));
            }
            ready!(self.poll_leftover(context))?;
            if self.has_ended {
                ready!(Pin::new(&mut *self.to).poll_shutdown(context))?;
                self.is_over = true;
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        task::JoinHandle,
    };

    use super::*;
    use crate::link::send_queue::tests::{fill, pair};

    #[tokio::test]
    async fn a_reset_is_seen_while_the_stream_has_no_room() {
        let (mut peer, piped, mut far) = piped(16).await;
        fill(&mut peer).await;
        reset(peer);
        assert_eq!(ended(piped).await, io::ErrorKind::ConnectionReset);
        assert!(far.read_to_end(&mut Vec::new()).await.is_ok(), "the stream was dropped");
    }

    #[tokio::test]
    async fn a_reset_is_seen_after_the_peer_has_ended_its_half() {
        let (mut peer, piped, mut far) = piped(16).await;
        peer.shutdown().await.expect("a socket");
        assert_eq!(far.read(&mut [0]).await.expect("an end"), 0);
        reset(peer);
        assert_eq!(ended(piped).await, io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn what_came_before_a_reset_goes_through_if_there_is_room() {
        for _ in 0..200 {
            let (mut peer, piped, mut far) = piped(1 << 16).await;
            peer.write_all(&[7; 20_000]).await.expect("a socket");
            reset(peer);
            let mut came = Vec::new();
            far.read_to_end(&mut came).await.expect("an end");
            assert_eq!(came.len(), 20_000);
            assert_eq!(ended(piped).await, io::ErrorKind::ConnectionReset);
        }
    }

    #[tokio::test]
    async fn a_stream_that_is_aborted_is_not_kept_by_a_peer_that_takes_nothing() {
        let (socket, _peer) = pair().await;
        let (near, mut far) = duplex(1 << 16);
        let (abort, aborted) = tokio::sync::oneshot::channel::<()>();
        let aborted = async { drop(aborted.await) };
        let piped = tokio::spawn(pipe_within(Duration::from_millis(100), socket, near, (Unmetered, Unmetered), aborted));
        let piece = [7; 1 << 16];
        while tokio::time::timeout(Duration::from_millis(100), far.write_all(&piece)).await.is_ok() {}
        drop(abort);
        assert_eq!(ended(piped).await, io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn what_came_before_an_abort_gets_to_the_peer_that_takes_it() {
        let (socket, mut peer) = pair().await;
        let (near, mut far) = duplex(1 << 16);
        far.write_all(&[7; 50_000]).await.expect("room");
        drop(far);
        let piped = tokio::spawn(metered_pipe(socket, near, Unmetered, Unmetered, std::future::ready(())));
        let mut came = vec![0; 50_000];
        peer.read_exact(&mut came).await.expect("all of it");
        assert_eq!(ended(piped).await, io::ErrorKind::ConnectionReset);
    }

    /// A socket's peer, the pipe, and the other end of its stream, which takes so many bytes.
    async fn piped(room: usize) -> (TcpStream, JoinHandle<io::Result<Carried>>, DuplexStream) {
        let (socket, peer) = pair().await;
        let (near, far) = duplex(room);
        (peer, tokio::spawn(pipe(socket, near)), far)
    }

    fn reset(peer: TcpStream) {
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("a socket");
    }

    async fn ended(piped: JoinHandle<io::Result<Carried>>) -> io::ErrorKind {
        let ended = tokio::time::timeout(DEADLINE, piped).await.expect("ends in time");
        ended.expect("no panic").expect_err("aborted").kind()
    }

    const DEADLINE: Duration = Duration::from_secs(10);
}
