//! A content server for experiments: raw commands and plain HTTP on one port.
//!
//! A raw connection begins with one line; every stream is the [`CounterStream`] of a seed, 0 when left out:
//!
//! | line | the server |
//! | --- | --- |
//! | `D bytes seed` | sends so many bytes (0: until the client leaves), half-closes, and reads to the end |
//! | `U seed` | reads to the end; every 50 ms and at the end sends the count so far as 8 bytes, its top bit set once a byte was wrong |
//! | `R request answer` | reads so many bytes, sends so many, again and again |
//! | `B bytes seed` | sends so many bytes, half-closes, then reads the same stream to the end |
//! | `X bytes seed` | sends so many bytes, waits for one byte, then resets the connection |
//!
//! How each upload ended is told on [`ContentServer::endings`], so that a test sees what the server saw.
//! HTTP is in [`http`]; [`add_it_up`] is a UDP server of its own.

pub mod add_it_up;
pub mod http;

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::broadcast,
    task::JoinSet,
};

use crate::{load::CongestionControl, stream::CounterStream};

/// A running content server; dropping it cuts its connections.
#[derive(Debug)]
pub struct ContentServer {
    address: SocketAddr,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

/// What raw connections have brought.
#[derive(Debug)]
struct Seen {
    bytes: AtomicU64,
    endings: broadcast::Sender<Ending>,
}

/// How the client's direction of a raw connection ended, as the server saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ending {
    /// The bytes that came after the command line.
    pub bytes: u64,
    /// Whether all of them were the stream's.
    pub is_exact: bool,
    /// Whether the connection was aborted rather than closed.
    pub is_reset: bool,
}

/// What a raw connection asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Command {
    Download { bytes: u64, seed: u64 },
    Upload { seed: u64 },
    Requests { request_bytes: u64, answer_bytes: u64 },
    Both { bytes: u64, seed: u64 },
    Reset { bytes: u64, seed: u64 },
}

impl ContentServer {
    /// Starts a server on `address`; port 0 takes any.
    ///
    /// # Errors
    /// If the address can't be listened on.
    pub async fn start(address: SocketAddr) -> io::Result<Self> {
        Self::on(TcpListener::bind(address).await?)
    }

    /// Starts a server that sends with this congestion control, and speaks MPTCP to clients that do if `is_multipath`.
    ///
    /// # Errors
    /// If the kernel lacks either, or the address can't be listened on.
    pub async fn start_with(address: SocketAddr, control: CongestionControl, is_multipath: bool) -> io::Result<Self> {
        let protocol = if is_multipath { Protocol::MPTCP } else { Protocol::TCP };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))?;
        socket.set_tcp_congestion(control.name().as_bytes())?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Self::on(TcpListener::from_std(socket.into())?)
    }

    fn on(listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen { bytes: AtomicU64::new(0), endings: broadcast::Sender::new(ENDINGS_KEPT) });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, seen.clone()));
        Ok(Self { address, seen, _tasks: tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How uploads end, from now on.
    pub fn endings(&self) -> broadcast::Receiver<Ending> {
        self.seen.endings.subscribe()
    }

    /// The bytes that raw connections have brought so far, their commands among them.
    pub fn received_bytes(&self) -> u64 {
        self.seen.bytes.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, seen: Arc<Seen>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((socket, _)) => {
                connections.spawn(serve(socket, seen.clone()));
            }
            // Out of descriptors: let some be closed first.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve(socket: TcpStream, seen: Arc<Seen>) {
    let _ = socket.set_nodelay(true);
    let mut first_two = [0; 2];
    let Ok(Ok(_)) = tokio::time::timeout(COMMAND_TIME, peek_two(&socket, &mut first_two)).await else { return };
    if !matches!(&first_two, [_, b' '] | [_, b'\n']) {
        return http::serve(socket).await;
    }
    if let Ok(ended) = serve_raw(socket, &seen.bytes).await
        && let Some(ending) = ended
    {
        let _ = seen.endings.send(ending);
    }
}

async fn peek_two(socket: &TcpStream, first_two: &mut [u8; 2]) -> io::Result<()> {
    loop {
        match socket.peek(first_two).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            1 => tokio::time::sleep(Duration::from_millis(1)).await,
            _ => return Ok(()),
        }
    }
}

async fn serve_raw(mut socket: TcpStream, seen_bytes: &AtomicU64) -> io::Result<Option<Ending>> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        if line.len() >= COMMAND_MAX_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        line.push(socket.read_u8().await?);
    }
    seen_bytes.fetch_add(line.len() as u64, Ordering::Relaxed);
    match Command::parse(&line).ok_or(io::ErrorKind::InvalidData)? {
        Command::Download { bytes, seed } => {
            send(&mut socket, bytes, seed).await?;
            socket.shutdown().await?;
            Ok(Some(receive(&mut socket, 0, seen_bytes).await))
        }
        Command::Both { bytes, seed } => {
            send(&mut socket, bytes, seed).await?;
            socket.shutdown().await?;
            Ok(Some(receive(&mut socket, seed, seen_bytes).await))
        }
        Command::Upload { seed } => Ok(Some(count_upload(socket, seed, seen_bytes).await)),
        Command::Requests { request_bytes, answer_bytes } => {
            while read_exactly(&mut socket, request_bytes).await? {
                send(&mut socket, answer_bytes, 0).await?;
            }
            Ok(None)
        }
        Command::Reset { bytes, seed } => {
            send(&mut socket, bytes, seed).await?;
            socket.read_u8().await?;
            socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
            Ok(None)
        }
    }
}

/// Sends `bytes` of the stream, or without end when 0. All of a thread's connections send from the same buffer, so that the memory of many
/// is not what is measured.
async fn send(socket: &mut TcpStream, bytes: u64, seed: u64) -> io::Result<()> {
    let mut stream = CounterStream::new(seed);
    while bytes == 0 || stream.position() < bytes {
        socket.writable().await?;
        let left = if bytes == 0 { u64::MAX } else { bytes - stream.position() };
        let sent = SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(BUFFER_BYTES, 0);
            let piece = &mut scratch[..left.min(BUFFER_BYTES as u64) as usize];
            stream.clone().fill(piece);
            socket.try_write(piece)
        });
        match sent {
            Ok(len) => stream.skip(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        tokio::task::consume_budget().await;
    }
    Ok(())
}

/// Reads to the end and checks.
async fn receive(socket: &mut TcpStream, seed: u64, seen_bytes: &AtomicU64) -> Ending {
    let mut upload = Upload::new(seed, seen_bytes);
    while upload.read_from(socket).await {}
    upload.ending
}

async fn count_upload(socket: TcpStream, seed: u64, seen_bytes: &AtomicU64) -> Ending {
    let (mut reads, mut writes) = socket.into_split();
    let mut upload = Upload::new(seed, seen_bytes);
    let mut ticks = tokio::time::interval(COUNT_EVERY);
    loop {
        tokio::select! {
            goes_on = upload.read_from(&mut reads) => if !goes_on { break },
            _ = ticks.tick() => {
                let _ = writes.write_u64(upload.report()).await;
            }
        }
    }
    let _ = writes.write_u64(upload.report()).await;
    let _ = writes.shutdown().await;
    upload.ending
}

struct Upload<'a> {
    stream: CounterStream,
    buffer: Vec<u8>,
    ending: Ending,
    seen_bytes: &'a AtomicU64,
}

impl<'a> Upload<'a> {
    fn new(seed: u64, seen_bytes: &'a AtomicU64) -> Self {
        Self {
            stream: CounterStream::new(seed),
            buffer: vec![0; BUFFER_BYTES],
            ending: Ending { bytes: 0, is_exact: true, is_reset: false },
            seen_bytes,
        }
    }

    /// Takes what comes next; whether there may be more. Safe to cancel.
    async fn read_from(&mut self, source: &mut (impl AsyncReadExt + Unpin)) -> bool {
        match source.read(&mut self.buffer).await {
            Ok(0) => false,
            Ok(len) => {
                self.ending.is_exact &= self.stream.check(&self.buffer[..len]).is_ok();
                self.ending.bytes += len as u64;
                self.seen_bytes.fetch_add(len as u64, Ordering::Relaxed);
                true
            }
            Err(_) => {
                self.ending.is_reset = true;
                false
            }
        }
    }

    fn report(&self) -> u64 {
        self.ending.bytes | if self.ending.is_exact { 0 } else { WRONG }
    }
}

async fn read_exactly(socket: &mut TcpStream, bytes: u64) -> io::Result<bool> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut left = bytes.max(1);
    while left > 0 {
        let len = socket.read(&mut buffer[..left.min(BUFFER_BYTES as u64) as usize]).await?;
        if len == 0 {
            return Ok(false);
        }
        left -= len as u64;
    }
    Ok(true)
}

impl Command {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
        let command = words.next()?;
        let numbers: Vec<u64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let number = |index: usize| numbers.get(index).copied().unwrap_or(0);
        Some(match command {
            "D" => Self::Download { bytes: number(0), seed: number(1) },
            "U" => Self::Upload { seed: number(0) },
            "R" => Self::Requests { request_bytes: number(0), answer_bytes: number(1).max(1) },
            "B" => Self::Both { bytes: number(0).max(1), seed: number(1) },
            "X" => Self::Reset { bytes: number(0).max(1), seed: number(1) },
            _ => return None,
        })
    }
}

/// Set in an upload's count once a byte was wrong.
pub const WRONG: u64 = 1 << 63;

/// How often an upload's count is sent.
pub const COUNT_EVERY: Duration = Duration::from_millis(50);
/// A client that has not said what it wants by then is dropped.
const COMMAND_TIME: Duration = Duration::from_secs(30);
/// A command's letter and two 64-bit numbers fit.
const COMMAND_MAX_BYTES: usize = 64;
thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

const BUFFER_BYTES: usize = 64 * 1024;
/// Connections that wait to be accepted: more than come at once.
const BACKLOG: i32 = 1024;
/// Endings that a slow test may fall behind by.
const ENDINGS_KEPT: usize = 1024;
