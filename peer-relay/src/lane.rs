//! One direction of a line at work: packets leave at once, or in turn at the rate that the owner shares.
//!
//! Enters: a client's packets, in the batches they came in. Leaves: the same through the client's [`Exit`]. Always holds: a lane that
//! is neither shaped nor closed costs one look at a flag and keeps batches whole; the packets of one client keep their order; what
//! waits is bounded ([`shared::share::shaper`]). Whose turn it is and when is decided there, this only carries it out.

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Instant,
};

use quinn_udp::EcnCodepoint;
use shared::{
    community::member::Identity,
    share::shaper::{Shaper, line_bytes},
    units::Rate,
};
use tokio::sync::Notify;

use crate::{
    batch::{BatchSocket, Packets, Sent},
    client::{Carried, ClientAddress},
};

/// One direction of a line.
#[derive(Debug)]
pub(crate) struct Lane {
    mode: AtomicU8,
    gives_way: AtomicBool,
    shaper: Mutex<Shaper<Arc<Identity>, Parcel>>,
    /// Rung when the pump's next packet may leave at another time than it thinks.
    bell: Notify,
}

/// Where the packets of one client leave, one way.
#[derive(Debug)]
pub(crate) struct Exit {
    /// Whose packets they are.
    pub(crate) user: Arc<Identity>,
    /// Through which socket.
    pub(crate) towards: Towards,
    /// What is counted for the client and for the line.
    pub(crate) carried: [Arc<Carried>; 2],
    /// Whether nothing gets through the socket any more, as far as the last packets show.
    pub(crate) is_broken: AtomicBool,
}

/// The two ways out.
#[derive(Debug)]
pub(crate) enum Towards {
    /// Over the line.
    Reconst(Arc<BatchSocket>, SocketAddr),
    /// To the client.
    Lan(Arc<BatchSocket>, ClientAddress),
}

/// A packet that waits.
#[derive(Debug)]
struct Parcel {
    exit: Arc<Exit>,
    ecn: Option<EcnCodepoint>,
    contents: Box<[u8]>,
}

impl Lane {
    /// A lane at `rate`, or without any limit.
    pub(crate) fn new(rate: Option<Rate>, now: Instant) -> Self {
        let mode = if rate.is_some() { SHAPED } else { DIRECT };
        let shaper = Shaper::new(rate.unwrap_or(UNLIMITED), now);
        Self { mode: AtomicU8::new(mode), gives_way: AtomicBool::new(false), shaper: Mutex::new(shaper), bell: Notify::new() }
    }

    /// Forwards packets, now or in their turn, or drops them.
    pub(crate) fn forward(&self, now: Instant, exit: &Arc<Exit>, packets: Packets<'_>) {
        match self.mode.load(Ordering::Acquire) {
            DIRECT => exit.send(packets),
            SHAPED => self.forward_in_turn(now, exit, packets),
            _ => exit.count(Sent { dropped: packets.count(), ..Sent::default() }),
        }
    }

    /// Forwards at this rate from now on, without any limit if it is `None`; it `gives_way` if that is for its owner's traffic.
    pub(crate) fn set_rate(&self, now: Instant, rate: Option<Rate>, gives_way: bool) {
        self.gives_way.store(gives_way, Ordering::Relaxed);
        let mut shaper = self.lock();
        if shaper.rate() == rate.unwrap_or(UNLIMITED) {
            return;
        }
        shaper.set_rate(now, rate.unwrap_or(UNLIMITED));
        send_due(&mut shaper, now);
        if self.mode.load(Ordering::Relaxed) != CLOSED {
            self.mode.store(if rate.is_some() { SHAPED } else { DIRECT }, Ordering::Release);
        }
        drop(shaper);
        self.bell.notify_one();
    }

    /// Whether its rate is lower for now, so that its owner's traffic has room.
    pub(crate) fn gives_way(&self) -> bool {
        self.gives_way.load(Ordering::Relaxed)
    }

    /// The rate, if there is one.
    pub(crate) fn rate(&self) -> Option<Rate> {
        Some(self.lock().rate()).filter(|rate| *rate != UNLIMITED)
    }

    /// Drops everything from now on, what waits included, until it is opened again.
    pub(crate) fn set_closed(&self, now: Instant, is_closed: bool) {
        let mut shaper = self.lock();
        if is_closed {
            self.mode.store(CLOSED, Ordering::Release);
            let rate = shaper.rate();
            let emptied = std::mem::replace(&mut *shaper, Shaper::new(rate, now));
            for parcel in emptied.into_packets() {
                parcel.exit.count(Sent { dropped: 1, ..Sent::default() });
            }
        } else {
            self.mode.store(if shaper.rate() == UNLIMITED { DIRECT } else { SHAPED }, Ordering::Release);
        }
    }

    /// The bytes that wait.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.lock().queued_bytes()
    }

    /// Sends what waits when its time comes, until the future is dropped.
    pub(crate) async fn pump(&self) {
        loop {
            let next = {
                let mut shaper = self.lock();
                send_due(&mut shaper, Instant::now());
                shaper.poll_timeout()
            };
            match next {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => (),
                    () = self.bell.notified() => (),
                },
                None => self.bell.notified().await,
            }
        }
    }

    fn forward_in_turn(&self, now: Instant, exit: &Arc<Exit>, packets: Packets<'_>) {
        let mut shaper = self.lock();
        let was_empty = shaper.queued_bytes() == 0;
        for contents in packets.contents.chunks(packets.stride) {
            let parcel = Parcel { exit: Arc::clone(exit), ecn: packets.ecn, contents: contents.into() };
            shaper.handle_packet(now, &exit.user, line_bytes(contents.len(), exit.is_ipv4()), parcel);
        }
        send_due(&mut shaper, now);
        if was_empty && shaper.queued_bytes() > 0 {
            self.bell.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shaper<Arc<Identity>, Parcel>> {
        self.shaper.lock().expect("nothing panics while it is held")
    }
}

impl Exit {
    /// Sends packets now.
    fn send(&self, packets: Packets<'_>) {
        let sent = match &self.towards {
            Towards::Reconst(wan, reconst) => wan.send(*reconst, None, packets),
            Towards::Lan(lan, address) => lan.send(address.client, Some(address.relay), packets),
        };
        let is_broken = sent.is_broken && sent.packets == 0;
        if self.is_broken.load(Ordering::Relaxed) != is_broken {
            self.is_broken.store(is_broken, Ordering::Relaxed);
        }
        self.count(sent);
    }

    fn count(&self, sent: Sent) {
        for carried in &self.carried {
            match self.towards {
                Towards::Reconst(..) => carried.up.add(sent),
                Towards::Lan(..) => carried.down.add(sent),
            }
        }
    }

    /// Whether its packets are IPv4 on the line.
    fn is_ipv4(&self) -> bool {
        let address = match &self.towards {
            Towards::Reconst(_, reconst) => reconst,
            Towards::Lan(_, address) => &address.client,
        };
        address.ip().to_canonical().is_ipv4()
    }
}

/// Sends what may leave by `now`, neighbours of one exit and size in one batch, and counts what is dropped.
fn send_due(shaper: &mut Shaper<Arc<Identity>, Parcel>, now: Instant) {
    BATCH.with_borrow_mut(|batch| {
        while let Some(parcel) = shaper.poll_packet(now) {
            batch.push_back(parcel);
            if batch.len() >= BATCH_MAX {
                send_batches(batch);
            }
        }
        send_batches(batch);
    });
    while let Some(parcel) = shaper.poll_dropped() {
        parcel.exit.count(Sent { dropped: 1, ..Sent::default() });
    }
}

fn send_batches(batch: &mut VecDeque<Parcel>) {
    CONTENTS.with_borrow_mut(|contents| {
        while let Some(first) = batch.pop_front() {
            let stride = first.contents.len();
            contents.clear();
            contents.extend_from_slice(&first.contents);
            // The last of a batch may be shorter, none may be longer.
            while contents.len().is_multiple_of(stride)
                && let Some(next) = batch
                    .pop_front_if(|next| Arc::ptr_eq(&next.exit, &first.exit) && next.ecn == first.ecn && next.contents.len() <= stride)
            {
                contents.extend_from_slice(&next.contents);
            }
            first.exit.send(Packets { contents, stride, ecn: first.ecn });
        }
    });
}

thread_local! {
    static BATCH: RefCell<VecDeque<Parcel>> = const { RefCell::new(VecDeque::new()) };
    static CONTENTS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// As many as leave in one system call.
const BATCH_MAX: usize = 64;

const DIRECT: u8 = 0;
const SHAPED: u8 = 1;
const CLOSED: u8 = 2;

/// The rate that stands for none.
const UNLIMITED: Rate = Rate { bits_per_second: u64::MAX };
