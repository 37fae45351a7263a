//! The UDP socket below the paths' QUIC connections: as few system calls as the system allows.
//!
//! Enters: quinn's transmits, of at most [`QUINN_SEGMENTS`] packets each. Leaves: the same packets in the same order to each address, up to
//! 64 KiB of them in one call (GSO). Always holds: what fills one of quinn's transmits waits for the next one, but no longer than until
//! the tasks that are ready now have run; all else leaves at once. What arrives is received in batches as well (GRO).

use std::{
    fmt,
    future::poll_fn,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState},
};
use tokio::{io::Interest, sync::Notify, task::AbortHandle};

use super::transport::UDP_PAYLOAD_MAX;

/// A UDP socket that puts quinn's transmits together. Dropping it lets go of what is held.
#[derive(Debug)]
pub struct PathSocket {
    inner: Arc<Inner>,
    flusher: AbortHandle,
}

struct Inner {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    /// What is held, by its address's hash, so that connections don't wait for each other's system calls.
    slots: [Mutex<Held>; SLOTS],
    something_is_held: Notify,
    /// The system took no more: connections wait until it does.
    is_blocked: AtomicBool,
}

/// Packets for one address, of one size but for the last.
#[derive(Debug, Default)]
struct Held {
    head: Option<Head>,
    contents: Vec<u8>,
}

/// What packets must have in common to leave in one call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Head {
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<std::net::IpAddr>,
    segment: usize,
}

impl PathSocket {
    /// Takes over a socket. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// What the system has against it.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Arc<Self>> {
        socket.set_nonblocking(true)?;
        let io = tokio::net::UdpSocket::from_std(socket)?;
        let state = UdpSocketState::new((&io).into())?;
        let inner =
            Arc::new(Inner { io, state, slots: Default::default(), something_is_held: Notify::new(), is_blocked: AtomicBool::new(false) });
        let flusher = tokio::spawn(flush_when_held(inner.clone())).abort_handle();
        Ok(Arc::new(Self { inner, flusher }))
    }
}

impl Drop for PathSocket {
    fn drop(&mut self) {
        self.inner.flush_all();
        self.flusher.abort();
    }
}

impl AsyncUdpSocket for PathSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { inner: self.inner.clone(), writable: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.take(transmit)
    }

    fn poll_recv(&self, context: &mut Context<'_>, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> Poll<io::Result<usize>> {
        let Inner { io, state, .. } = &*self.inner;
        loop {
            ready!(io.poll_recv_ready(context))?;
            if let Ok(count) = io.try_io(Interest::READABLE, || state.recv(io.into(), buffers, metas)) {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.state.max_gso_segments()
    }

    /// So many of the longest packets as make up the longest message: quinn multiplies the two for its buffer.
    fn max_receive_segments(&self) -> usize {
        self.inner.state.gro_segments().min(MESSAGE_BYTES.div_ceil(usize::from(UDP_PAYLOAD_MAX)))
    }

    fn may_fragment(&self) -> bool {
        self.inner.state.may_fragment()
    }
}

impl Inner {
    fn take(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut held = self.slot(transmit.destination);
        let head = Head::of(transmit);
        let is_full_batch = transmit.segment_size.is_some_and(|segment| transmit.contents.len() == segment * QUINN_SEGMENTS);
        if !held.takes(&head, transmit.contents.len()) {
            self.flush(&mut held, true)?;
            if !is_full_batch && transmit.contents.len() <= self.call_bytes(head.segment) {
                return self.send_call(&head, transmit.contents);
            }
            held.head = Some(head);
            self.something_is_held.notify_one();
        } else if held.contents.len() >= 2 * self.call_bytes(head.segment) {
            // The system has taken nothing for a while.
            self.flush(&mut held, true)?;
            held.head = Some(head);
        }
        held.contents.extend_from_slice(transmit.contents);
        // What the system does not take now the flusher sends later.
        let _ = self.flush(&mut held, !is_full_batch);
        Ok(())
    }

    fn slot(&self, destination: SocketAddr) -> MutexGuard<'_, Held> {
        let port = usize::from(destination.port());
        let octets = match destination.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(ip) => ip.octets()[15],
        };
        self.slots[(port ^ usize::from(octets)) % SLOTS].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Sends whole calls of what is held, and with `all` the rest as well.
    fn flush(&self, held: &mut Held, all: bool) -> io::Result<()> {
        let Some(head) = held.head else { return Ok(()) };
        let call_bytes = self.call_bytes(head.segment);
        let mut sent = 0;
        let mut result = Ok(());
        while let rest = &held.contents[sent..]
            && (rest.len() >= call_bytes || (all && !rest.is_empty()))
        {
            let call = &rest[..rest.len().min(call_bytes)];
            result = self.send_call(&head, call);
            if result.is_err() {
                break;
            }
            sent += call.len();
        }
        held.contents.drain(..sent);
        if held.contents.is_empty() {
            held.head = None;
        }
        result
    }

    /// Whether nothing is held any more.
    fn flush_all(&self) -> bool {
        let mut is_empty = true;
        for slot in &self.slots {
            let mut held = slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            is_empty &= self.flush(&mut held, true).is_ok();
        }
        is_empty
    }

    /// Errors other than that it would block are the packets' end, as on any line.
    fn send_call(&self, head: &Head, contents: &[u8]) -> io::Result<()> {
        let Head { destination, ecn, src_ip, segment } = *head;
        let segment_size = (contents.len() > segment).then_some(segment);
        let transmit = Transmit { destination, ecn, contents, segment_size, src_ip };
        let sent = self.io.try_io(Interest::WRITABLE, || self.state.send((&self.io).into(), &transmit));
        if sent.is_err() {
            self.is_blocked.store(true, Ordering::Release);
        }
        sent
    }

    /// The bytes of one call of packets of so many.
    fn call_bytes(&self, segment: usize) -> usize {
        segment * (CALL_BYTES_MAX / segment).clamp(1, self.state.max_gso_segments().max(1))
    }
}

impl Head {
    fn of(transmit: &Transmit<'_>) -> Self {
        let Transmit { destination, ecn, src_ip, .. } = *transmit;
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        Self { destination, ecn, src_ip, segment }
    }
}

impl Held {
    /// Whether so many bytes of packets with `head` can go behind what is held.
    fn takes(&self, head: &Head, len: usize) -> bool {
        let Some(own) = self.head else { return false };
        let is_single_shorter = len == head.segment && len < own.segment;
        let is_like = *head == own || (is_single_shorter && Head { segment: own.segment, ..*head } == own);
        // Behind a shorter packet there can be none.
        is_like && self.contents.len().is_multiple_of(own.segment)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("io", &self.io).finish_non_exhaustive()
    }
}

/// Waits until the socket takes packets again.
struct Poller {
    inner: Arc<Inner>,
    writable: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.writable.is_none() {
            if !self.inner.is_blocked.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            let inner = self.inner.clone();
            self.writable = Some(Box::pin(async move {
                let writable = inner.io.writable().await;
                inner.is_blocked.store(false, Ordering::Release);
                writable
            }));
        }
        let Some(writable) = &mut self.writable else { return Poll::Ready(Ok(())) };
        let result = ready!(writable.as_mut().poll(context));
        self.writable = None;
        Poll::Ready(result)
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}

async fn flush_when_held(inner: Arc<Inner>) {
    loop {
        inner.something_is_held.notified().await;
        behind_ready_tasks().await;
        while !inner.flush_all() {
            if inner.io.writable().await.is_err() {
                return;
            }
        }
    }
}

/// Lets the tasks that are ready run first, a connection with more to send among them.
async fn behind_ready_tasks() {
    let mut has_waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        // To the end of the queue; `yield_now` would wait for the timers and sockets as well.
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The packets that quinn makes for one transmit at most; a full one is likely to be followed by another.
const QUINN_SEGMENTS: usize = 10;

/// The longest UDP payload that leaves in one call, in bytes (65,535 less the headers of IPv6 and UDP).
const CALL_BYTES_MAX: usize = 65_487;

/// The longest message that arrives in one.
const MESSAGE_BYTES: usize = 64 * 1024;

/// More than the paths of most sessions; those of addresses that share a slot leave in smaller batches.
const SLOTS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_arrive_once_and_in_order_however_they_are_put_together() {
        let far = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        far.set_read_timeout(Some(std::time::Duration::from_secs(10))).expect("a timeout");
        let destination = far.local_addr().expect("an address");
        let near = PathSocket::new(std::net::UdpSocket::bind("127.0.0.1:0").expect("a port")).expect("a socket");
        if near.max_transmit_segments() < QUINN_SEGMENTS {
            eprintln!("skipped: the system has no GSO");
            return;
        }
        let mut expected = 0;
        let mut number = 0u8;
        let mut poller = near.clone().create_io_poller();
        for (packets, size, last) in
            [(10, 1200, 1200), (10, 1200, 1200), (3, 1200, 700), (10, 1200, 1200), (10, 1300, 1300), (1, 1300, 40), (10, 9, 9)]
        {
            let contents: Vec<u8> = (0..packets)
                .flat_map(|place| {
                    number += 1;
                    vec![number; if place + 1 == packets { last } else { size }]
                })
                .collect();
            let segment_size = (packets > 1).then_some(size);
            let transmit = Transmit { destination, ecn: None, contents: &contents, segment_size, src_ip: None };
            loop {
                poll_fn(|context| poller.as_mut().poll_writable(context)).await.expect("a socket that can send");
                match near.try_send(&transmit) {
                    Ok(()) => break,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
            expected += packets;
        }
        // The last of them is held until this task waits.
        let received = tokio::task::spawn_blocking(move || {
            let mut buffer = [0; 2000];
            (0..expected).map(|_| far.recv(&mut buffer).map(|len| (buffer[0], len))).collect::<io::Result<Vec<_>>>()
        });
        let received = received.await.expect("no panic").expect("every packet");
        let numbers: Vec<u8> = received.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (1..=number).collect::<Vec<_>>());
        assert_eq!((received[22].1, received[43].1), (700, 40));
    }
}
