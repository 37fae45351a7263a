//! One address that a line serves: its own socket towards `reconst`, and what comes back through it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use shared::{community::member::Identity, share::shaper::line_bytes};
use tokio::task::AbortHandle;

use crate::{
    batch::{BatchSocket, Errors, Packets, Sent},
    lane::{Exit, Towards},
    line::WanBinding,
    share::Share,
};

/// What the clients of a line have in common.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) lan: Arc<BatchSocket>,
    pub(crate) binding: WanBinding,
    pub(crate) share: Share,
    /// Everything that the line has carried, whoever for.
    pub(crate) totals: Arc<Carried>,
}

/// A client of a line. Dropping it closes its socket.
#[derive(Debug)]
pub(crate) struct Client {
    common: Arc<Common>,
    address: ClientAddress,
    user: Arc<Identity>,
    reconst: SocketAddr,
    opened: Instant,
    up: Arc<Exit>,
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
    pub(crate) up: Counters,
    pub(crate) down: Counters,
}

/// Packets and bytes carried one way.
#[derive(Debug, Default)]
pub(crate) struct Counters {
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
    /// Opens the socket to `reconst` of a client of `user`'s and carries back what comes through it. Call it inside a tokio runtime.
    pub(crate) fn open(common: Arc<Common>, address: ClientAddress, user: Identity, reconst: SocketAddr, now: Instant) -> io::Result<Self> {
        let (carried, user) = (Arc::new(Carried::default()), Arc::new(user));
        let wan = connect(&common.binding, reconst)?;
        let up = exit(&common, &user, &carried, Towards::Reconst(Arc::clone(&wan), reconst));
        let down = exit(&common, &user, &carried, Towards::Lan(Arc::clone(&common.lan), address));
        let downward = carry_down(&common, wan, down, reconst);
        Ok(Self { common, address, user, reconst, opened: now, up, carried, downward })
    }

    /// Forwards packets of the client's to `reconst`.
    pub(crate) fn carry_up(&self, now: Instant, packets: Packets<'_>) {
        self.common.share.up.forward(now, &self.up, packets);
    }

    /// Has the client's socket lead to another server. One that leads to that server already stays: its path may have been made at another port.
    pub(crate) fn lead_to(&mut self, now: Instant, reconst: SocketAddr) {
        if self.reconst.ip().to_canonical() != reconst.ip().to_canonical() {
            self.reconst = reconst;
            self.replace(now);
        }
    }

    /// Replaces the client's socket if it does not lead anywhere any more. It goes on leading to where its path was made, which
    /// `reconst` serves for a while when the LAN moves: no other port knows that path.
    pub(crate) fn mend(&mut self, now: Instant) {
        let is_broken = self.up.is_broken.load(Ordering::Relaxed);
        let is_due = is_broken && now.saturating_duration_since(self.opened) >= MEND_INTERVAL;
        if is_due {
            self.replace(now);
        }
    }

    fn replace(&mut self, now: Instant) {
        self.opened = now;
        let reconst = self.reconst;
        match connect(&self.common.binding, reconst) {
            Ok(wan) => {
                self.downward.abort();
                self.up = exit(&self.common, &self.user, &self.carried, Towards::Reconst(Arc::clone(&wan), reconst));
                let down = exit(&self.common, &self.user, &self.carried, Towards::Lan(Arc::clone(&self.common.lan), self.address));
                self.downward = carry_down(&self.common, wan, down, reconst);
                tracing::debug!(client = %self.address.client, %reconst, "socket replaced");
            }
            Err(error) => {
                self.up.is_broken.store(true, Ordering::Relaxed);
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

    /// The bytes forwarded both ways with headers, as IPv4's if they were IPv6's.
    pub(crate) fn line_bytes(&self) -> u64 {
        let CarriedStatus { up, down } = self.status();
        up.bytes + down.bytes + (up.packets + down.packets) * line_bytes(0, true) as u64
    }

    /// Grows with every packet, forwarded or lost.
    pub(crate) fn packets(&self) -> u64 {
        let status = self.status();
        status.up.packets + status.up.dropped + status.down.packets + status.down.dropped
    }
}

impl Counters {
    pub(crate) fn add(&self, sent: Sent) {
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

fn exit(common: &Common, user: &Arc<Identity>, carried: &Arc<Carried>, towards: Towards) -> Arc<Exit> {
    let carried = [Arc::clone(carried), Arc::clone(&common.totals)];
    Arc::new(Exit { user: Arc::clone(user), towards, carried, is_broken: AtomicBool::new(false) })
}

fn carry_down(common: &Arc<Common>, wan: Arc<BatchSocket>, exit: Arc<Exit>, reconst: SocketAddr) -> AbortHandle {
    let common = Arc::clone(common);
    let carry = async move {
        let mut errors = Errors::default();
        while wan.readable().await.is_ok() {
            let now = Instant::now();
            let received = wan.receive(|from, _, packets| {
                // What came between the socket's binding and its connecting may be anybody's.
                if from.ip().to_canonical() == reconst.ip().to_canonical() && from.port() == reconst.port() {
                    common.share.down.forward(now, &exit, packets);
                }
            });
            errors.pause_after(&received).await;
        }
    };
    tokio::spawn(carry).abort_handle()
}

/// How soon a socket that can't send is replaced again: an interface that is away comes back in seconds.
const MEND_INTERVAL: Duration = Duration::from_secs(1);
