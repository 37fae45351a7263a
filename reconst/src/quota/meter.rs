//! A flow's meters: no byte moves that its user's account has not granted.

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
    community::quota::{Grant, Refused, Way},
    link::{pipe::Meter, stream::FlowWatch},
};
use tokio::time::Sleep;

use super::UserAccount;

/// One direction of a TCP flow. What was granted and did not reach its end is given back when it is dropped.
pub struct FlowMeter {
    user: Arc<UserAccount>,
    way: Way,
    watch: FlowWatch,
    /// What of the last grant has not moved yet, and whether its turn has come.
    grant: Option<(Grant, bool)>,
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
    /// The meters of a flow of `user`, up and down.
    pub fn pair(user: &Arc<UserAccount>, watch: &FlowWatch) -> (Self, Self) {
        let ended = Arc::new(AtomicUsize::new(0));
        let meter = |way| Self {
            user: user.clone(),
            way,
            watch: watch.clone(),
            grant: None,
            piece_bytes: user.lock().turn_bytes(way) as usize,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            ending: None,
            ended: ended.clone(),
        };
        (meter(Way::Up), meter(Way::Down))
    }

    /// Takes a grant if none is left.
    fn take(&mut self, wanted: usize) -> Result<(), Refused> {
        if self.grant.is_none() {
            let mut account = self.user.lock();
            let grant = account.take(Instant::now(), self.user.time(), self.way, wanted as u64)?;
            self.piece_bytes = account.turn_bytes(self.way) as usize;
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
            match self.user.lock().wait(Instant::now(), self.way, grant.ticket) {
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
        if self.ending.is_none() {
            match self.take(wanted) {
                Ok(()) => {
                    let granted = ready!(self.poll_turn(context));
                    return Poll::Ready(Ok(wanted.min(granted as usize)));
                }
                Err(refused) => self.ending = Some(Ending { refused, undelivered: u64::MAX, moved_at: Instant::now() }),
            }
        }
        self.poll_ending(context).map(Err)
    }

    fn on_moved(&mut self, bytes: usize) {
        self.user.on_moved(self.way, bytes);
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

    fn piece_bytes(&self) -> usize {
        self.piece_bytes
    }
}

impl Drop for FlowMeter {
    fn drop(&mut self) {
        // What both ends have brought to its end is delivered without the flow; what an abort leaves never is.
        let is_aborted = self.ended.load(Ordering::Relaxed) < 2;
        let undelivered = if self.way == Way::Down && is_aborted { self.watch.undelivered() } else { 0 };
        let mut account = self.user.lock();
        if let Some((grant, _)) = self.grant {
            account.give_back(self.way, grant.bytes, Some(grant));
        }
        if undelivered > 0 {
            account.give_back(self.way, undelivered, None);
        }
    }
}

/// One direction of a UDP flow: a datagram at a time.
pub struct ParcelMeter {
    user: Arc<UserAccount>,
    way: Way,
    /// The grant of the datagram that waits for its turn.
    grant: Option<Grant>,
}

impl ParcelMeter {
    /// The meter of one direction of a flow of `user`.
    pub fn new(user: Arc<UserAccount>, way: Way) -> Self {
        Self { user, way, grant: None }
    }

    /// Counts a datagram of so many bytes, which moves once [`ParcelMeter::turn`] has come.
    ///
    /// # Errors
    /// If the quota has not so many left, and refuses.
    pub fn take(&mut self, bytes: usize) -> Result<(), Refused> {
        let mut account = self.user.lock();
        self.grant = Some(account.take_whole(Instant::now(), self.user.time(), self.way, bytes as u64)?);
        Ok(())
    }

    /// Waits for the turn of the datagram that was counted last. Safe to cancel.
    pub async fn turn(&mut self) {
        while let Some(grant) = self.grant {
            let wait = self.user.lock().wait(Instant::now(), self.way, grant.ticket);
            match wait {
                None => self.move_it(grant),
                Some(wait) => tokio::time::sleep(wait.min(LOOKED_AGAIN_AFTER)).await,
            }
        }
    }

    /// Whether the turn of the datagram that was counted last has come.
    pub fn is_due(&mut self) -> bool {
        if let Some(grant) = self.grant
            && self.user.lock().wait(Instant::now(), self.way, grant.ticket).is_none()
        {
            self.move_it(grant);
        }
        self.grant.is_none()
    }

    fn move_it(&mut self, grant: Grant) {
        self.user.on_moved(self.way, grant.bytes as usize);
        self.grant = None;
    }
}

impl Drop for ParcelMeter {
    fn drop(&mut self) {
        if let Some(grant) = self.grant {
            self.user.lock().give_back(self.way, grant.bytes, Some(grant));
        }
    }
}

/// A rate that the operator has raised counts for flows that wait already.
const LOOKED_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// How long what is counted may take to be delivered without a sign of progress: some timeouts of a line that comes back.
const DELIVERY_TIME: Duration = Duration::from_secs(10);

/// How often that is looked at.
const DELIVERY_LOOK: Duration = Duration::from_millis(20);
