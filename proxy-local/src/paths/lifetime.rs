//! How long a session goes on that is carried no more, or that has been replaced.

use std::time::{Duration, Instant};

use shared::{
    link::{
        CLOSE_OVER,
        session::{PathCount, SessionHandle},
    },
    transfer::{control::AbortCode, path::PathState},
};
use tokio::sync::watch;

/// Ends a session that nothing new is opened in: once its flows are over, or nothing has carried it for [`LOST_AFTER`].
pub(super) async fn outlast(session: SessionHandle) {
    let mut carried_at = Instant::now();
    while !session.is_closed() && session.open_flows() > 0 && carried_at.elapsed() < LOST_AFTER {
        tokio::time::sleep(OUTLAST_LOOK).await;
        if is_carried(&session) {
            carried_at = Instant::now();
        }
    }
    session.close(AbortCode::SessionLost, CLOSE_OVER, b"the session is over");
}

/// Waits until a session has been without a path in service for `kept`; `false` if it was closed before.
pub(super) async fn is_abandoned(count: &mut watch::Receiver<PathCount>, kept: Duration) -> bool {
    loop {
        match count.wait_for(|count| count.active == 0 || count.is_closed).await {
            Ok(count) if !count.is_closed => {}
            _ => return false,
        }
        match tokio::time::timeout(kept, count.wait_for(|count| count.active > 0 || count.is_closed)).await {
            Ok(Ok(count)) if !count.is_closed => {}
            Ok(_) => return false,
            Err(_) => return true,
        }
    }
}

/// Whether a path of the session is in service.
pub(super) fn is_carried(session: &SessionHandle) -> bool {
    session.path_status().iter().any(|path| path.state == PathState::Active)
}

/// A server that has not been heard for so long, over any line, while another serves the LAN, is gone.
const LOST_AFTER: Duration = Duration::from_secs(10);

/// How often a session that is to end is looked at.
const OUTLAST_LOOK: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use shared::link::session::KEPT_WITHOUT_PATHS;

    use super::*;

    #[tokio::test]
    async fn a_session_is_abandoned_when_no_path_was_in_service_for_as_long_as_it_is_kept() {
        let (count, mut seen) = watch::channel(PathCount { joined: 2, active: 1, is_closed: false });
        assert!(waits(is_abandoned(&mut seen, Duration::ZERO)));
        count.send_replace(PathCount { joined: 2, active: 0, is_closed: false });
        assert!(waits(is_abandoned(&mut seen, KEPT_WITHOUT_PATHS)));
        assert!(is_abandoned(&mut seen, Duration::ZERO).await);
        count.send_replace(PathCount { is_closed: true, ..PathCount::default() });
        assert!(!is_abandoned(&mut seen, KEPT_WITHOUT_PATHS).await);
    }

    fn waits(future: impl Future<Output = bool>) -> bool {
        matches!(pin!(future).poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
    }
}
