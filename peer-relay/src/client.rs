//! One address that a line serves: its own socket towards `reconst`, and what comes back through it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::task::AbortHandle;

use crate::{
    batch::{BatchSocket, Packets, Sent},
    line::WanBinding,
    share::{Direction, Share},
};

/// What the clients of a line have in common.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) lan: BatchSocket,
    pub(crate) binding: WanBinding,
    pub(crate) share: Share,
    /// Everything that the line has carried, whoever for.
    pub(crate) totals: Carried,
}

/// A client of a line. Dropping it closes its socket.
#[derive(Debug)]
pub(crate) struct Client {
    common: Arc<Common>,
    address: ClientAddress,
    wan: Arc<BatchSocket>,
    reconst: SocketAddr,
    opened: Instant,
    is_broken: bool,
    carried: Arc<Carried>,
    downward: AbortHandle,
}

/// Where a client is on the LAN.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientAddress {
    /// Its address.
    pub(crate) client: SocketAddr,
    /// The relay's address that it sends to, and expects answers from.
    pub(crate) relay: IpAddr,
}

/// Packets and bytes carried both ways, headers not counted.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    up: Counters,
    down: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

/// What has been carried one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct DirectionStatus {
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes of UDP payload forwarded.
    pub bytes: u64,
    /// Packets lost here: over the owner's limit, or not taken by the system.
    pub dropped: u64,
}

/// What has been carried both ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct CarriedStatus {
    /// From the LAN to `reconst`.
    pub up: DirectionStatus,
    /// From `reconst` to the LAN.
    pub down: DirectionStatus,
}

impl Client {
    /// Opens the client's socket to `reconst` and carries back what comes through it. Call it inside a tokio runtime.
    pub(crate) fn open(common: Arc<Common>, address: ClientAddress, reconst: SocketAddr, now: Instant) -> io::Result<Self> {
        let carried = Arc::new(Carried::default());
        let wan = connect(&common.binding, reconst)?;
        let downward = carry_down(&common, address, &wan, reconst, &carried);
        Ok(Self { common, address, wan, reconst, opened: now, is_broken: false, carried, downward })
    }

    /// Forwards packets of the client's to `reconst`.
    pub(crate) fn carry_up(&mut self, now: Instant, packets: Packets<'_>) {
        let (admitted, refused) = self.common.share.admit(Direction::Up, now, packets);
        let mut sent = self.wan.send(self.reconst, None, admitted);
        sent.dropped += refused;
        self.is_broken = sent.is_broken && sent.packets == 0;
        self.carried.up.add(sent);
        self.common.totals.up.add(sent);
    }

    /// Replaces the client's socket if it does not lead anywhere any more. It goes on leading to where its path was made, which
    /// `reconst` serves for a while when the LAN moves: no other port knows that path.
    pub(crate) fn mend(&mut self, now: Instant) {
        let is_due = self.is_broken && now.saturating_duration_since(self.opened) >= MEND_INTERVAL;
        if !is_due {
            return;
        }
        self.opened = now;
        let reconst = self.reconst;
        match connect(&self.common.binding, reconst) {
            Ok(wan) => {
                self.downward.abort();
                self.downward = carry_down(&self.common, self.address, &wan, reconst, &self.carried);
                (self.wan, self.is_broken) = (wan, false);
                tracing::debug!(client = %self.address.client, %reconst, "socket replaced");
            }
            Err(error) => {
                self.is_broken = true;
                tracing::debug!(client = %self.address.client, %error, "socket not replaced yet");
            }
        }
    }

    pub(crate) fn carried(&self) -> &Arc<Carried> {
        &self.carried
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.downward.abort();
    }
}

impl Carried {
    pub(crate) fn status(&self) -> CarriedStatus {
        CarriedStatus { up: self.up.status(), down: self.down.status() }
    }

    /// Grows with every packet, forwarded or lost.
    pub(crate) fn packets(&self) -> u64 {
        let status = self.status();
        status.up.packets + status.up.dropped + status.down.packets + status.down.dropped
    }
}

impl Counters {
    fn add(&self, sent: Sent) {
        self.packets.fetch_add(sent.packets, Ordering::Relaxed);
        self.bytes.fetch_add(sent.bytes, Ordering::Relaxed);
        if sent.dropped > 0 {
            self.dropped.fetch_add(sent.dropped, Ordering::Relaxed);
        }
    }

    fn status(&self) -> DirectionStatus {
        DirectionStatus {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

/// A socket over the line that the system gives packets from `reconst` alone.
fn connect(binding: &WanBinding, reconst: SocketAddr) -> io::Result<Arc<BatchSocket>> {
    let socket = binding.open(reconst.ip())?;
    socket.connect(reconst)?;
    BatchSocket::new(socket).map(Arc::new)
}

fn carry_down(
    common: &Arc<Common>,
    address: ClientAddress,
    wan: &Arc<BatchSocket>,
    reconst: SocketAddr,
    carried: &Arc<Carried>,
) -> AbortHandle {
    let (common, wan, carried) = (Arc::clone(common), Arc::clone(wan), Arc::clone(carried));
    let carry = async move {
        let mut errors_in_a_row = 0;
        while wan.readable().await.is_ok() {
            let now = Instant::now();
            let mut sent = Sent::default();
            let received = wan.receive(|from, _, packets| {
                // What came between the socket's binding and its connecting may be anybody's.
                if from.ip().to_canonical() != reconst.ip().to_canonical() || from.port() != reconst.port() {
                    return;
                }
                let (admitted, refused) = common.share.admit(Direction::Down, now, packets);
                sent.add(common.lan.send(address.client, Some(address.relay), admitted));
                sent.dropped += refused;
            });
            carried.down.add(sent);
            common.totals.down.add(sent);
            errors_in_a_row = match received {
                Ok(()) => 0,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(_) => errors_in_a_row + 1,
            };
            if errors_in_a_row > ERRORS_IN_A_ROW_MAX {
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    };
    tokio::spawn(carry).abort_handle()
}

/// How soon a socket that can't send is replaced again: an interface that is away comes back in seconds.
const MEND_INTERVAL: Duration = Duration::from_secs(1);

/// Errors of single packets (ICMP) come at most as often as packets are sent; more in a row are the interface's.
pub(crate) const ERRORS_IN_A_ROW_MAX: u32 = 64;

/// How long to leave a socket alone that gives nothing but errors.
pub(crate) const ERROR_PAUSE: Duration = Duration::from_millis(10);
