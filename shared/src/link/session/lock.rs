//! The lock around a session's state, and the session's end should anything panic under it.
//!
//! Nobody else would end it: those who wait for its flows are woken by whoever changes the core, and that one is gone.

use std::{
    ops::{Deref, DerefMut},
    sync::MutexGuard,
};

use tokio::runtime::Handle;

use super::{SessionHandle, State};
use crate::{
    link::{CLOSE_LEAVING, CLOSE_OVER},
    transfer::{control::AbortCode, session::Side},
};

/// The state, held.
pub(in crate::link) struct Locked<'a> {
    state: MutexGuard<'a, State>,
    /// Dropped after the lock is free.
    _ends: EndsIfBroken<'a>,
}

struct EndsIfBroken<'a> {
    session: &'a SessionHandle,
    was_panicking: bool,
}

impl SessionHandle {
    /// The state. What a panic has left of the core is not used again: one that knows no flows, and so lets each end with an error, is there until
    /// the session is closed.
    pub(in crate::link) fn lock(&self) -> Locked<'_> {
        let was_panicking = std::thread::panicking();
        let state = self.shared.state.lock().unwrap_or_else(|poisoned| {
            let mut state = poisoned.into_inner();
            state.core = self.shared.terms.core();
            self.shared.state.clear_poison();
            state
        });
        Locked { state, _ends: EndsIfBroken { session: self, was_panicking } }
    }

    fn end_broken(&self) {
        let (close_code, reason) = match self.shared.terms.side {
            Side::Proxy => (CLOSE_OVER, "an error within proxy-local"),
            Side::Reconst => (CLOSE_LEAVING, "an error within reconst"),
        };
        tracing::error!("session closed: {reason}");
        self.close(AbortCode::SessionLost, close_code, reason.as_bytes());
    }
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for EndsIfBroken<'_> {
    fn drop(&mut self) {
        if self.was_panicking || !std::thread::panicking() {
            return;
        }
        let session = self.session.clone();
        match Handle::try_current() {
            // In a task of its own, where a second panic ends nothing else.
            Ok(runtime) => drop(runtime.spawn(async move { session.end_broken() })),
            Err(_) => session.end_broken(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::transfer::{schedule::Policy, session::Limits};

    #[tokio::test]
    async fn a_panic_under_the_lock_ends_the_session_and_whoever_waits_for_it() {
        let session = SessionHandle::new(Side::Proxy, Policy::Adaptive, Limits::default());
        let mut count = session.path_count();
        let (mut read, mut written) = (session.open().expect("a flow"), session.open().expect("a flow"));
        let reading = tokio::spawn(async move { read.read(&mut [0]).await });
        let accepting = tokio::spawn({
            let session = session.clone();
            async move { session.accept().await }
        });
        let writing = tokio::spawn(async move { written.write_all(&vec![7; 64 << 20]).await });
        while !session.lock().are_waiting() {
            tokio::task::yield_now().await;
        }
        let broken = session.clone();
        let panicked = tokio::spawn(async move { broken.with(|_, _| panic!("under the lock")) }).await;
        assert!(panicked.is_err_and(|error| error.is_panic()));
        let ends = async {
            assert!(reading.await.expect("no panic").is_err());
            assert!(writing.await.expect("no panic").is_err());
            assert!(accepting.await.expect("no panic").is_none());
            assert!(count.wait_for(|count| count.is_closed).await.is_ok());
        };
        tokio::time::timeout(DEADLINE, ends).await.expect("all are woken");
        assert!(session.is_closed() && session.open().is_none() && session.open_flows() == 0);
    }

    #[tokio::test]
    async fn a_task_that_panics_elsewhere_takes_only_its_own_flows_along() {
        let session = SessionHandle::new(Side::Proxy, Policy::Adaptive, Limits::default());
        let held = session.open().expect("a flow");
        let panicked = tokio::spawn(async move {
            let _held = held;
            panic!("not under the lock")
        });
        assert!(panicked.await.is_err_and(|error: tokio::task::JoinError| error.is_panic()));
        assert!(!session.is_closed() && session.open().is_some());
    }

    const DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

    impl State {
        /// Whether a reader, a writer and an acceptor wait.
        fn are_waiting(&self) -> bool {
            let flows = || self.wakers_by_flow.values();
            self.acceptor.is_some() && flows().any(|flow| flow.reader.is_some()) && flows().any(|flow| flow.writer.is_some())
        }
    }
}
