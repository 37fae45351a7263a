//! A flow's meters: no byte moves that the accounts it is spent from have not granted.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use shared::{
    community::quota::{Refused, Sharer, Way},
    link::{pipe::Meter, stream::FlowWatch},
};
use tokio::time::Sleep;

use super::spending::{Granted, Spending};

/// One direction of a TCP flow. What was granted and did not reach its end is given back when it is dropped.
pub struct FlowMeter {
    spending: Arc<Spending>,
    sharer: Sharer,
    way: Way,
    watch: FlowWatch,
    /// What of the last grant has not moved yet, and whether its turn has come.
    grant: Option<(Granted, bool)>,
    piece_bytes: usize,
    sleep: Pin<Box<Sleep>>,
    ending: Option<Ending>,
    /// How many of the flow's directions have come to their end.
    ended: Arc<AtomicUsize>,
}

/// A flow whose user has nothing left: what is counted is delivered, then the flow is aborted.
struct Ending {
    refused: Refused,
    undelivered: u64,
    /// When less was undelivered than ever before.
    moved_at: Instant,
}

impl FlowMeter {
    /// The meters of a flow that is spent from `spending`, up and down.
    pub fn pair(spending: &Arc<Spending>, watch: &FlowWatch) -> (Self, Self) {
        let (sharer, ended) = (spending.next_sharer(), Arc::new(AtomicUsize::new(0)));
        let meter = |way| Self {
            spending: spending.clone(),
            sharer,
            way,
            watch: watch.clone(),
            grant: None,
            piece_bytes: spending.turn_bytes(way) as usize,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            ending: None,
            ended: ended.clone(),
        };
        (meter(Way::Up), meter(Way::Down))
    }

    /// Takes a grant if none is left.
    fn take(&mut self, wanted: usize) -> Result<(), Refused> {
        if self.grant.is_none() {
            let grant = self.spending.take(self.way, self.sharer, wanted as u64)?;
            self.piece_bytes = self.spending.turn_bytes(self.way) as usize;
            self.grant = Some((grant, false));
        }
        Ok(())
    }

    /// Waits until the grant's turn has come; gives its bytes.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<u64> {
        loop {
            let Some((grant, is_due)) = &mut self.grant else { return Poll::Pending };
            if *is_due {
                return Poll::Ready(grant.bytes);
            }
            match self.spending.wait(self.way, grant) {
                None => *is_due = true,
                Some(wait) => {
                    self.sleep.as_mut().reset(tokio::time::Instant::now() + wait.min(LOOKED_AGAIN_AFTER));
                    ready!(self.sleep.as_mut().poll(context));
                }
            }
        }
    }

    fn poll_ending(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        loop {
            let Some(ending) = &mut self.ending else { return Poll::Pending };
            let undelivered = self.watch.undelivered();
            if undelivered < ending.undelivered {
                ending.undelivered = undelivered;
                ending.moved_at = Instant::now();
            }
            if undelivered == 0 || ending.moved_at.elapsed() > DELIVERY_TIME {
                return Poll::Ready(io::Error::new(io::ErrorKind::QuotaExceeded, ending.refused.to_string()));
            }
            self.sleep.as_mut().reset(tokio::time::Instant::now() + DELIVERY_LOOK);
            ready!(self.sleep.as_mut().poll(context));
        }
    }
}

impl Meter for FlowMeter {
    fn poll_grant(&mut self, context: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        while self.ending.is_none() {
            match self.take(wanted) {
                Ok(()) => {
                    let granted = ready!(self.poll_turn(context));
                    return Poll::Ready(Ok(wanted.min(granted as usize)));
                }
                Err(Refused::NotYet) => {
                    self.sleep.as_mut().reset(tokio::time::Instant::now() + LEASE_LOOK);
                    ready!(self.sleep.as_mut().poll(context));
                }
                Err(refused) => self.ending = Some(Ending { refused, undelivered: u64::MAX, moved_at: Instant::now() }),
            }
        }
        self.poll_ending(context).map(Err)
    }

    fn on_moved(&mut self, bytes: usize) {
        self.spending.on_moved(self.way, bytes);
        if let Some((grant, _)) = &mut self.grant {
            grant.bytes = grant.bytes.saturating_sub(bytes as u64);
            if grant.bytes == 0 {
                self.grant = None;
            }
        }
    }

    fn on_end(&mut self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    fn on_lost(&mut self, bytes: u64) {
        if bytes > 0 {
            self.spending.give_back_undelivered(self.way, bytes);
        }
    }

    fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }
}

impl Drop for FlowMeter {
    fn drop(&mut self) {
        // What both ends have brought to its end is delivered without the flow; what an abort leaves never is.
        let is_aborted = self.ended.load(Ordering::Relaxed) < 2;
        let undelivered = if self.way == Way::Down && is_aborted { self.watch.undelivered() } else { 0 };
        if let Some((grant, _)) = self.grant {
            self.spending.give_back(self.way, grant);
        }
        if undelivered > 0 {
            self.spending.give_back_undelivered(self.way, undelivered);
        }
    }
}

/// One direction of a UDP flow: a datagram at a time.
pub struct ParcelMeter {
    spending: Arc<Spending>,
    sharer: Sharer,
    way: Way,
    /// The grant of the datagram that waits for its turn.
    grant: Option<Granted>,
}

impl ParcelMeter {
    /// The meter of one direction of a flow.
    pub fn new(spending: Arc<Spending>, way: Way) -> Self {
        let sharer = spending.next_sharer();
        Self { spending, sharer, way, grant: None }
    }

    /// Counts a datagram of so many bytes, which moves once [`ParcelMeter::turn`] has come.
    ///
    /// # Errors
    /// If the quota has not so many left, and refuses.
    pub fn take(&mut self, bytes: usize) -> Result<(), Refused> {
        self.grant = Some(self.spending.take_whole(self.way, self.sharer, bytes as u64)?);
        Ok(())
    }

    /// Waits for the turn of the datagram that was counted last. Safe to cancel.
    pub async fn turn(&mut self) {
        while let Some(grant) = self.grant {
            let wait = self.spending.wait(self.way, &grant);
            match wait {
                None => self.move_it(grant),
                Some(wait) => tokio::time::sleep(wait.min(LOOKED_AGAIN_AFTER)).await,
            }
        }
    }

    /// Whether the turn of the datagram that was counted last has come.
    pub fn is_due(&mut self) -> bool {
        if let Some(grant) = self.grant
            && self.spending.wait(self.way, &grant).is_none()
        {
            self.move_it(grant);
        }
        self.grant.is_none()
    }

    fn move_it(&mut self, grant: Granted) {
        self.spending.on_moved(self.way, grant.bytes as usize);
        self.grant = None;
    }
}

impl Drop for ParcelMeter {
    fn drop(&mut self) {
        if let Some(grant) = self.grant {
            self.spending.give_back(self.way, grant);
        }
    }
}

/// A rate that the operator has raised counts for flows that wait already.
const LOOKED_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// How often a flow that waits for its server's lease looks again: a few transactions' time.
const LEASE_LOOK: Duration = Duration::from_millis(20);

/// How long what is counted may take to be delivered without a sign of progress: some timeouts of a line that comes back.
const DELIVERY_TIME: Duration = Duration::from_secs(10);

/// How often that is looked at.
const DELIVERY_LOOK: Duration = Duration::from_millis(20);
