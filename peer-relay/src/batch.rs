//! A UDP socket that takes and gives whole batches of packets.
//!
//! One system call receives up to [`MESSAGES`] messages, each of which may hold many packets of one sender (GRO); each leaves again in
//! one call (GSO), with its ECN bits. Always holds: sending never waits (what the system does not take is lost and counted, the ends'
//! loss recovery has it), and an error of one packet stops nothing. What is forwarded where is left to others.

use std::{
    cell::RefCell,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use quinn_udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;

/// A UDP socket with the system's batches.
#[derive(Debug)]
pub(crate) struct BatchSocket {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
}

/// Packets of one sender, of one size but for the last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packets<'a> {
    /// The packets, one behind the other.
    pub(crate) contents: &'a [u8],
    /// The size of each but the last, at least 1.
    pub(crate) stride: usize,
    /// The bits of all.
    pub(crate) ecn: Option<EcnCodepoint>,
}

/// What became of packets sent.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Sent {
    /// The packets that the system took.
    pub(crate) packets: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// The packets that it did not take.
    pub(crate) dropped: u64,
    /// Whether the socket itself can't send any more, as far as the last error shows.
    pub(crate) is_broken: bool,
}

/// What a socket that is received from has given in place of packets.
#[derive(Default, Debug)]
pub(crate) struct Errors {
    in_a_row: u32,
}

impl Errors {
    /// Follows an attempt to receive; waits a moment if the socket gives nothing but errors.
    pub(crate) async fn pause_after(&mut self, received: &io::Result<()>) {
        self.in_a_row = match received {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => self.in_a_row + 1,
            _ => 0,
        };
        if self.in_a_row > ERRORS_IN_A_ROW_MAX {
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }
}

impl BatchSocket {
    /// Takes over a socket. Call it inside a tokio runtime.
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let io = tokio::net::UdpSocket::from_std(socket)?;
        let state = UdpSocketState::new((&io).into())?;
        Ok(Self { io, state })
    }

    /// The address it is bound to.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    /// Waits until there is something to receive.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.io.readable().await
    }

    /// Receives a batch and calls `handle` for each sender's packets in it, with the addresses they came from and went to.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is nothing; others stand for a single packet sent earlier (ICMP) or for the interface.
    pub(crate) fn receive(&self, mut handle: impl FnMut(SocketAddr, Option<IpAddr>, Packets<'_>)) -> io::Result<()> {
        BUFFERS.with_borrow_mut(|buffers| {
            let mut metas = [RecvMeta::default(); MESSAGES];
            let count = self.io.try_io(Interest::READABLE, || {
                let mut parts = buffers.chunks_exact_mut(MESSAGE_BYTES);
                let mut slices: [_; MESSAGES] =
                    std::array::from_fn(|_| IoSliceMut::new(parts.next().expect("the buffer is MESSAGES times MESSAGE_BYTES")));
                self.state.recv((&self.io).into(), &mut slices, &mut metas)
            })?;
            for (meta, buffer) in metas[..count].iter().zip(buffers.chunks_exact(MESSAGE_BYTES)) {
                if meta.len > 0 {
                    let packets = Packets { contents: &buffer[..meta.len], stride: meta.stride.clamp(1, meta.len), ecn: meta.ecn };
                    handle(meta.addr, meta.dst_ip, packets);
                }
            }
            Ok(())
        })
    }

    /// Sends `packets`, from the address `from` if the socket has several.
    pub(crate) fn send(&self, to: SocketAddr, from: Option<IpAddr>, packets: Packets<'_>) -> Sent {
        let Packets { contents, stride, ecn } = packets;
        let mut sent = Sent::default();
        let batch_bytes = stride * self.state.max_gso_segments().min(GSO_BYTES_MAX / stride).max(1);
        for batch in contents.chunks(batch_bytes) {
            let is_single = batch.len() <= stride;
            match self.try_send(to, from, ecn, batch, (!is_single).then_some(stride)) {
                Ok(()) => sent.count(batch, stride),
                // The interface can't segment, or a part is longer than its MTU: each packet for itself.
                Err(error) if !is_single && error.kind() != io::ErrorKind::WouldBlock => {
                    for packet in batch.chunks(stride) {
                        match self.try_send(to, from, ecn, packet, None) {
                            Ok(()) => sent.count(packet, stride),
                            Err(error) => sent.lose(packet, stride, &error),
                        }
                    }
                }
                Err(error) => sent.lose(batch, stride, &error),
            }
        }
        sent
    }

    // Not by way of tokio's readiness: a socket that has just been made has none yet, though it can send.
    fn try_send(
        &self,
        destination: SocketAddr,
        src_ip: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        self.state.try_send((&self.io).into(), &Transmit { destination, ecn, contents, segment_size, src_ip })
    }
}

impl Packets<'_> {
    /// A packet of its own.
    pub(crate) fn one(contents: &[u8]) -> Packets<'_> {
        Packets { contents, stride: contents.len().max(1), ecn: None }
    }

    /// How many they are.
    pub(crate) fn count(&self) -> u64 {
        self.contents.len().div_ceil(self.stride) as u64
    }
}

impl Sent {
    fn count(&mut self, batch: &[u8], stride: usize) {
        self.packets += batch.len().div_ceil(stride) as u64;
        self.bytes += batch.len() as u64;
    }

    fn lose(&mut self, batch: &[u8], stride: usize, error: &io::Error) {
        self.dropped += batch.len().div_ceil(stride) as u64;
        self.is_broken |= is_of_the_socket(error);
        tracing::trace!(%error, "packets not sent");
    }
}

/// Whether `error` says that a socket has lost its address or interface, rather than that one packet did not get through.
fn is_of_the_socket(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::AddrNotAvailable | Kind::NetworkDown | Kind::NetworkUnreachable | Kind::InvalidInput | Kind::NotConnected => true,
        // ENODEV and ENXIO have no kind: the interface is gone.
        _ => matches!(error.raw_os_error(), Some(6 | 19)),
    }
}

thread_local! {
    /// A batch is received and sent on without a pause, so that the sockets of one thread share a buffer, however many they are.
    static BUFFERS: RefCell<Box<[u8]>> = RefCell::new(vec![0; MESSAGES * MESSAGE_BYTES].into_boxed_slice());
}

/// The messages of one system call: beyond 16 the saving is lost in the cache (each may be 64 KiB).
const MESSAGES: usize = 16;

/// The longest UDP payload, and so the longest GRO message.
const MESSAGE_BYTES: usize = 64 * 1024;

/// The longest UDP payload that leaves in one call, in bytes (65,535 less the headers of IPv6 and UDP).
const GSO_BYTES_MAX: usize = 65_487;

/// Errors of single packets (ICMP) come at most as often as packets are sent; more in a row are the interface's.
const ERRORS_IN_A_ROW_MAX: u32 = 64;

/// How long to leave a socket alone that gives nothing but errors.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
