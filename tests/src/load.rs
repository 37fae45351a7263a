//! Clients of the [content server](crate::content): transfers with every byte checked, goodput, stalls, request times;
//! directly or through a proxy.

pub mod associate;
pub mod connect;
pub mod endless;

use std::{
    cell::RefCell,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use shared::target::Target;
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub use connect::{CongestionControl, ConnectError, Via};

use crate::{
    content::{COUNT_EVERY, WRONG},
    stream::{CounterStream, Mismatch},
};

/// A client of one content server by one way.
#[derive(Clone, Debug)]
pub struct Client {
    /// How it gets there.
    pub via: Via,
    /// The content server.
    pub content: Target,
    /// Payload bytes that have arrived at their end so far: received by the client, or counted by the server.
    pub progress: Arc<AtomicU64>,
}

/// A transfer that went wrong.
#[derive(Debug, Error)]
pub enum LoadError {
    /// No connection to the content server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke.
    #[error("the connection broke after {0} bytes: {1}")]
    Broken(u64, io::Error),
    /// The other end finished early.
    #[error("the connection was closed after {0} bytes of {1}")]
    Short(u64, u64),
    /// A byte was changed, lost or doubled.
    #[error(transparent)]
    Wrong(#[from] Mismatch),
    /// The server counted other bytes than were sent, or saw a wrong one.
    #[error("of {sent} bytes sent the server has {counted}, exact: {is_exact}")]
    Miscounted {
        /// Bytes sent.
        sent: u64,
        /// Bytes that the server has.
        counted: u64,
        /// Whether those were the right ones.
        is_exact: bool,
    },
}

/// How long a transfer is watched.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// From its beginning to its end.
    pub total: Duration,
    /// The first part, which goodput and stalls leave out.
    pub warm_up: Duration,
}

/// What a transfer reached after its warm-up.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Bulk {
    /// Payload in bit/s.
    pub goodput: f64,
    /// Payload bytes, warm-up included.
    pub bytes: u64,
    /// The longest time in which nothing arrived in order.
    pub longest_gap: Duration,
}

/// Times of requests.
#[derive(Clone, PartialEq, Debug)]
pub struct Latencies {
    sorted: Vec<Duration>,
}

impl Client {
    /// A client without any progress.
    pub fn new(via: Via, content: Target) -> Self {
        Self { via, content, progress: Arc::default() }
    }

    /// The payload bytes of all of its transfers so far.
    pub fn carried(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Downloads `bytes` of the stream of `seed` to the end and checks each; the longest time without any.
    ///
    /// # Errors
    /// If it does not arrive whole and exact.
    pub async fn download(&self, bytes: u64, seed: u64) -> Result<Duration, LoadError> {
        let mut socket = self.ask(&format!("D {bytes} {seed}\n")).await?;
        let mut stream = CounterStream::new(seed);
        let mut watch = Watch::new(Duration::ZERO);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let len = socket.read(&mut buffer).await.map_err(|error| LoadError::Broken(stream.position(), error))?;
            if len == 0 {
                break;
            }
            stream.check(&buffer[..len])?;
            watch.arrived(len as u64);
            self.progress.fetch_add(len as u64, Ordering::Relaxed);
        }
        if stream.position() == bytes { Ok(watch.longest_gap) } else { Err(LoadError::Short(stream.position(), bytes)) }
    }

    /// Downloads for a time and checks every byte.
    ///
    /// # Errors
    /// If the connection breaks or a byte is wrong.
    pub async fn download_for(&self, span: Span) -> Result<Bulk, LoadError> {
        let socket = self.ask("D 0\n").await?;
        let mut stream = CounterStream::new(0);
        let mut watch = Watch::new(span.warm_up);
        let end = tokio::time::sleep(span.total);
        tokio::pin!(end);
        loop {
            tokio::select! {
                biased;
                () = &mut end => break,
                readable = socket.readable() => readable.map_err(|error| LoadError::Broken(stream.position(), error))?,
            }
            // All of a thread's transfers read into the same buffer: with one each, a thousand would measure the machine's memory.
            let read = SCRATCH.with_borrow_mut(|scratch| {
                scratch.resize(BUFFER_BYTES, 0);
                let read = socket.try_read(scratch);
                read.map(|len| (len, stream.check(&scratch[..len])))
            });
            let len = match read {
                Ok((0, _)) => return Err(LoadError::Short(stream.position(), u64::MAX)),
                Ok((len, checked)) => checked.map(|()| len)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(LoadError::Broken(stream.position(), error)),
            };
            watch.arrived(len as u64);
            self.progress.fetch_add(len as u64, Ordering::Relaxed);
            tokio::task::consume_budget().await;
        }
        Ok(watch.finish(Duration::ZERO))
    }

    /// Uploads `bytes` of the stream of `seed`, half-closes, and waits until the server has counted them all.
    ///
    /// # Errors
    /// If they do not arrive whole and exact.
    pub async fn upload(&self, bytes: u64, seed: u64) -> Result<(), LoadError> {
        let socket = self.ask(&format!("U {seed}\n")).await?;
        let (mut reads, mut writes) = socket.into_split();
        let sends = async {
            let mut stream = CounterStream::new(seed);
            let mut buffer = vec![0; BUFFER_BYTES];
            while stream.position() < bytes {
                let before = stream.position();
                let piece = &mut buffer[..(bytes - before).min(BUFFER_BYTES as u64) as usize];
                stream.fill(piece);
                writes.write_all(piece).await.map_err(|error| LoadError::Broken(before, error))?;
            }
            writes.shutdown().await.map_err(|error| LoadError::Broken(bytes, error))
        };
        let counts = async {
            let mut last = 0;
            while let Some(report) = next_report(&mut reads).await.map_err(|error| LoadError::Broken(last, error))? {
                self.progress.fetch_add((report & !WRONG).saturating_sub(last & !WRONG), Ordering::Relaxed);
                last = report;
            }
            Ok(last)
        };
        let ((), report) = tokio::try_join!(sends, counts)?;
        let (counted, is_exact) = (report & !WRONG, report & WRONG == 0);
        if counted == bytes && is_exact { Ok(()) } else { Err(LoadError::Miscounted { sent: bytes, counted, is_exact }) }
    }

    /// Uploads for a time; what the server counted meanwhile.
    ///
    /// # Errors
    /// If the connection breaks or the server sees a wrong byte.
    pub async fn upload_for(&self, span: Span) -> Result<Bulk, LoadError> {
        let socket = self.ask("U\n").await?;
        let (mut reads, mut writes) = socket.into_split();
        let sends = async {
            let mut stream = CounterStream::new(0);
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                stream.fill(&mut buffer);
                if let Err(error) = writes.write_all(&buffer).await {
                    return Err::<std::convert::Infallible, _>(LoadError::Broken(stream.position(), error));
                }
            }
        };
        let end = tokio::time::Instant::now() + span.total;
        let counts = async {
            let mut watch = Watch::new(span.warm_up);
            while let Ok(report) = tokio::time::timeout_at(end, next_report(&mut reads)).await {
                let counted = watch.bytes;
                let Some(report) = report.map_err(|error| LoadError::Broken(counted, error))? else {
                    return Err(LoadError::Short(counted, u64::MAX));
                };
                if report & WRONG != 0 {
                    return Err(LoadError::Miscounted { sent: counted, counted: report & !WRONG, is_exact: false });
                }
                let more = report.saturating_sub(counted);
                if more > 0 {
                    watch.arrived(more);
                    self.progress.fetch_add(more, Ordering::Relaxed);
                }
            }
            Ok(watch.finish(2 * COUNT_EVERY))
        };
        tokio::select! {
            failed = sends => failed.map(|never| match never {}),
            bulk = counts => bulk,
        }
    }

    /// The time of one request on a connection of its own: connect, ask, and the whole answer.
    ///
    /// # Errors
    /// If the answer does not arrive whole and exact.
    pub async fn fresh_request(&self, answer_bytes: u64) -> Result<Duration, LoadError> {
        let start = Instant::now();
        let mut socket = self.ask(&format!("D {answer_bytes}\n")).await?;
        let mut answer = vec![0; usize::try_from(answer_bytes).unwrap_or(BUFFER_BYTES).min(ANSWER_MAX_BYTES)];
        socket.read_exact(&mut answer).await.map_err(|error| LoadError::Broken(0, error))?;
        let time = start.elapsed();
        CounterStream::new(0).check(&answer)?;
        Ok(time)
    }

    /// The times of `count` fresh requests one after another with a pause between.
    ///
    /// # Errors
    /// With the first request that fails.
    pub async fn fresh_requests(&self, count: usize, answer_bytes: u64, pause: Duration) -> Result<Latencies, LoadError> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            times.push(self.fresh_request(answer_bytes).await?);
            tokio::time::sleep(pause).await;
        }
        Ok(Latencies::new(times))
    }

    /// Connects and sends a command line.
    ///
    /// # Errors
    /// If there is no connection.
    pub async fn ask(&self, command: &str) -> Result<TcpStream, LoadError> {
        let mut socket = self.via.connect(&self.content).await?;
        socket.write_all(command.as_bytes()).await.map_err(|error| LoadError::Broken(0, error))?;
        Ok(socket)
    }
}

impl Latencies {
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { sorted: times }
    }

    /// The time that this part (0 to 1) of all requests took at most; zero without requests.
    pub fn quantile(&self, part: f64) -> Duration {
        let index = (self.sorted.len() as f64 * part) as usize;
        self.sorted.get(index.min(self.sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// Counts what arrives, and the longest gap and the goodput after a warm-up.
struct Watch {
    bytes: u64,
    warm_at: Instant,
    /// The first arrival after the warm-up, and the bytes up to it.
    warm: Option<(Instant, u64)>,
    last: Instant,
    longest_gap: Duration,
}

impl Watch {
    fn new(warm_up: Duration) -> Self {
        let now = Instant::now();
        Self { bytes: 0, warm_at: now + warm_up, warm: None, last: now, longest_gap: Duration::ZERO }
    }

    fn arrived(&mut self, bytes: u64) {
        let now = Instant::now();
        self.bytes += bytes;
        self.note_gap(now);
        self.last = now;
        if self.warm.is_none() && now >= self.warm_at {
            self.warm = Some((now, self.bytes));
        }
    }

    /// The part of the gap up to `now` that lies after the warm-up.
    fn note_gap(&mut self, now: Instant) {
        self.longest_gap = self.longest_gap.max(now.saturating_duration_since(self.last.max(self.warm_at)));
    }

    /// The figures by now; what is counted only every so often is as of its last count, unless that is long ago.
    fn finish(mut self, counted_every: Duration) -> Bulk {
        let now = Instant::now();
        self.note_gap(now);
        let end = if now.saturating_duration_since(self.last) <= counted_every { self.last } else { now };
        let goodput = self.warm.map_or(0.0, |(since, before)| {
            let seconds = end.saturating_duration_since(since).as_secs_f64();
            if seconds > 0.0 { (self.bytes - before) as f64 * 8.0 / seconds } else { 0.0 }
        });
        Bulk { goodput, bytes: self.bytes, longest_gap: self.longest_gap }
    }
}

/// The next count that the server sends; `None` at the end. Safe to cancel only when the connection is then given up.
async fn next_report(reads: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Option<u64>> {
    match reads.read_u64().await {
        Ok(report) => Ok(Some(report)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

const BUFFER_BYTES: usize = 64 * 1024;
/// Answers are small; a larger one is a bulk transfer.
const ANSWER_MAX_BYTES: usize = 16 << 20;
