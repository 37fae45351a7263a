//! Keeps the path through one address of a relay up.
//!
//! Enters: the address, and [`Order`]s. Leaves: a path that has joined the session, and another one when it has ended, is dead, or is to be
//! made anew. Always holds: a path that still works is left in order, with what is under way on it awaited; one that is dead is tried anew
//! beside it, and whichever works first stays.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::VarInt;
use rand::RngExt;
use shared::{
    community::weight::LineWeight,
    ids::{PathId, SessionId},
    link::{CLOSE_LEAVING, CLOSE_MOVED, CLOSE_OVER, join::JoinError, renew::Standing, session::SessionHandle},
    transfer::{
        control::{AbortCode, Leaving},
        path::PathState,
    },
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{Inner, LineLease, PathError};

/// What a keeper is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// The relay goes away: leave the path, and ask again later.
    Leave,
    /// The relay is not wanted any more: leave the path and end.
    End,
    /// The network has changed: don't wait for a path that is silent, nor before the next attempt.
    Retry,
}

/// A path that has joined.
pub(super) struct Joined {
    id: PathId,
    connection: quinn::Connection,
    session: SessionHandle,
    session_id: SessionId,
    weight_up: LineWeight,
    line: LineLease,
    /// Its place among the connections that a renewal may use.
    _standing: Standing,
}

/// What has become of a path.
enum Next {
    /// Its connection is over.
    Ended(quinn::ConnectionError),
    /// Another one has taken its place since it is dead.
    Replaced(Joined),
    /// Another one has taken its place while it still works.
    Succeeded(Joined),
    /// It is to be left.
    Left,
    /// The same, for good.
    LeftForGood,
}

/// Keeps a path through the relay at `address` up until it is ordered to end, or the task is aborted.
pub(super) async fn keep(inner: Arc<Inner>, address: SocketAddr, mut orders: mpsc::Receiver<Order>) {
    let mut pause = Duration::ZERO;
    loop {
        let Some(mut joined) = connect(&inner, address, None, pause, &mut orders).await else { return };
        pause = loop {
            tracing::info!(%address, id = %joined.id, "path up");
            let (session, connection) = (joined.session.clone(), joined.connection.clone());
            let (id, weight_up) = (joined.id, joined.weight_up);
            // A task of its own: a path that is left still carries what is under way.
            let mut running = tokio::spawn(async move { session.run_path(id, connection, weight_up).await });
            match watch(&inner, address, &joined, &mut running, &mut orders).await {
                Next::Ended(error) => {
                    tracing::info!(%address, id = %joined.id, "path ended: {error}");
                    if ends_session(&error) {
                        inner.begin_anew(joined.session_id);
                    }
                    break Duration::ZERO;
                }
                Next::Replaced(next) => joined = next,
                Next::Succeeded(next) => {
                    let left = std::mem::replace(&mut joined, next);
                    // Another server does not know the session: its flows end where they are.
                    if left.session_id == joined.session_id { drop(tokio::spawn(left.leave())) } else { drop(tokio::spawn(left.outlast())) }
                }
                Next::Left => {
                    tokio::spawn(joined.leave());
                    break LEFT_PAUSE;
                }
                Next::LeftForGood => return joined.leave().await,
            }
        };
    }
}

/// Follows a path until something is to be done about it.
async fn watch(
    inner: &Arc<Inner>,
    address: SocketAddr,
    joined: &Joined,
    running: &mut JoinHandle<quinn::ConnectionError>,
    orders: &mut mpsc::Receiver<Order>,
) -> Next {
    let mut hurried_until = Instant::now();
    loop {
        tokio::select! {
            ended = &mut *running => return ended.map_or(Next::Ended(quinn::ConnectionError::LocallyClosed), Next::Ended),
            replacement = replacement(inner, address, joined, hurried_until) => return Next::Replaced(replacement),
            why = joined.session.asked_to_leave(joined.id) => {
                tracing::info!(%address, id = %joined.id, ?why, "path is left");
                match why {
                    Leaving::Ends => return Next::Left,
                    Leaving::Moves => return succeed(inner, address, joined, running, orders).await,
                }
            }
            order = orders.recv() => match order {
                Some(Order::Leave) => return Next::Left,
                Some(Order::End) | None => return Next::LeftForGood,
                Some(Order::Retry) => hurried_until = Instant::now() + HURRY,
            }
        }
    }
}

/// Makes a path beside one that is left but works.
async fn succeed(
    inner: &Arc<Inner>,
    address: SocketAddr,
    joined: &Joined,
    running: &mut JoinHandle<quinn::ConnectionError>,
    orders: &mut mpsc::Receiver<Order>,
) -> Next {
    joined.line.release();
    tokio::select! {
        next = connect(inner, address, Some(joined.session_id), Duration::ZERO, orders) => next.map_or(Next::LeftForGood, Next::Succeeded),
        ended = running => ended.map_or(Next::Ended(quinn::ConnectionError::LocallyClosed), Next::Ended),
    }
}

/// Connects until it succeeds, ever more rarely, from after `pause` on; none if it was ordered to end. `moving` is the session of the path that
/// it is to take the place of.
async fn connect(
    inner: &Arc<Inner>,
    address: SocketAddr,
    moving: Option<SessionId>,
    pause: Duration,
    orders: &mut mpsc::Receiver<Order>,
) -> Option<Joined> {
    let mut wait = pause;
    let mut pause = FIRST_PAUSE;
    loop {
        let attempt = async {
            sleep(wait).await;
            inner.connect(address, moving).await
        };
        let attempted = tokio::select! {
            attempted = attempt => attempted,
            order = orders.recv() => match order {
                Some(Order::End) | None => return None,
                // It is not there to be left.
                Some(Order::Leave) => {
                    wait = LEFT_PAUSE;
                    continue;
                }
                Some(Order::Retry) => {
                    (wait, pause) = (Duration::ZERO, FIRST_PAUSE);
                    continue;
                }
            }
        };
        let error = match attempted {
            Ok(joined) => return Some(joined),
            Err(error) => error,
        };
        tracing::debug!(%address, %error, "no path");
        let changed = inner.note_problem(address, &error);
        let is_same_line = matches!(error, PathError::SameLine(_));
        if changed && !is_same_line && !matches!(error, PathError::Join(JoinError::UnknownSession)) {
            tracing::warn!(%address, "no path through this relay: {error}");
        }
        if is_same_line {
            pause = LAST_PAUSE;
        }
        if matches!(error, PathError::Join(JoinError::Refused(_))) {
            pause = REFUSED_PAUSE;
        }
        wait = pause.mul_f64(rand::rng().random_range(0.75..1.25));
        pause = (pause * 2).min(LAST_PAUSE.max(pause));
    }
}

/// Waits until the path `joined` is dead, or silent while it is hurried, and connects anew until one of the two works.
async fn replacement(inner: &Arc<Inner>, address: SocketAddr, joined: &Joined, hurried_until: Instant) -> Joined {
    let mut pause = if hurried_until > Instant::now() { Duration::ZERO } else { FIRST_PAUSE };
    loop {
        sleep(pause).await;
        let is_given_up = match joined.session.path_state(joined.id) {
            Some(PathState::Dead) => true,
            Some(PathState::Suspect) => hurried_until > Instant::now(),
            Some(PathState::Active) | None => false,
        };
        if !is_given_up {
            pause = FIRST_PAUSE;
            continue;
        }
        joined.line.release();
        match inner.connect(address, None).await {
            Ok(other) if joined.session.path_state(joined.id) != Some(PathState::Active) => return other,
            Ok(other) => other.connection.close(VarInt::from_u32(CLOSE_LEAVING), b"the path has come back"),
            Err(error) => {
                inner.note_problem(address, &error);
            }
        }
        pause = (pause.max(FIRST_PAUSE) * 2).min(LAST_PAUSE);
    }
}

impl Joined {
    pub(super) fn new(
        id: PathId,
        connection: quinn::Connection,
        session: SessionHandle,
        session_id: SessionId,
        weight_up: LineWeight,
        line: LineLease,
    ) -> Self {
        let _standing = line.inner.connections.enter(connection.clone());
        Self { id, connection, session, session_id, weight_up, line, _standing }
    }

    /// Lets nothing more be sent on the path, either way, and closes it once what was under way has arrived, or after [`LEAVING_MAX`].
    async fn leave(self) {
        self.line.release();
        self.session.leave_path(self.id, Leaving::Ends);
        let begun = Instant::now();
        let mut quiet_since = begun;
        let mut received = None;
        while begun.elapsed() < LEAVING_MAX && quiet_since.elapsed() < QUIET {
            sleep(LOOK_INTERVAL).await;
            let Some(status) = self.session.path_status().into_iter().find(|status| status.path == self.id) else { return };
            let now_received = Some(status.counters.received_datagrams);
            if status.in_flight_bytes > 0 || received != now_received {
                quiet_since = Instant::now();
            }
            received = now_received;
        }
        tracing::info!(id = %self.id, "path left");
    }

    /// Carries on for the flows of a session that is over at another server than the one where the next one is, and for nothing new.
    async fn outlast(self) {
        self.line.release();
        let mut count = self.session.path_count();
        tokio::select! {
            error = self.connection.closed() => if ends_session(&error) {
                self.session.close(AbortCode::SessionLost, CLOSE_OVER, b"the session is over");
            },
            _ = count.wait_for(|count| count.is_closed) => {}
        }
        tracing::info!(id = %self.id, "path of the session before is over");
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(CLOSE_LEAVING), b"path replaced or left");
        let mut state = self.line.inner.lock();
        state.routes.remove(&self.id);
        state.endpoints.remove(&self.id);
    }
}

/// Whether `reconst` has ended the whole session by closing a path that had joined: the user was removed, a rule was broken, or it stops; or does
/// not know the path any more, since it was started anew or its LAN's server has died.
fn ends_session(error: &quinn::ConnectionError) -> bool {
    matches!(error, quinn::ConnectionError::Reset)
        || matches!(error, quinn::ConnectionError::ApplicationClosed(close) if close.error_code != VarInt::from_u32(CLOSE_MOVED))
}

/// The pauses between attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// The pause after `reconst` has refused: only an operator can change that.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// The pause before a relay that went away is asked again: it takes a moment to drain, and to start.
const LEFT_PAUSE: Duration = Duration::from_secs(2);

/// How long a silent path is taken for a dead one after the network has changed: an address takes about as long to come up.
const HURRY: Duration = Duration::from_secs(10);

/// The longest that a path is left for: a relay that stops forwards for 3 s more.
const LEAVING_MAX: Duration = Duration::from_millis(2500);

/// What is under way on a line with a deep queue arrives with shorter gaps than this.
const QUIET: Duration = Duration::from_millis(500);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
