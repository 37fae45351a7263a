//! The way through the session, over the neighbours' lines.
//!
//! The first flow to a target waits for `reconst`'s answer, so that the application is told what went wrong. A target that was reached
//! within [`REACHED_FOR`] most likely will be again: the application is answered at once and saves a round trip; if `reconst`
//! refuses after all, the flow is reset, and the next one waits again.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use shared::{
    link::{open, stream::FlowStream},
    target::{Refusal, RefusalKind, Target},
    transfer::{
        open::{Request, RequestKind},
        schedule::Policy,
    },
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Outbound, session_udp::SessionAssociation};
use crate::paths::Paths;

/// Opens flows in the session of [`Paths`].
#[derive(Clone)]
pub struct SessionOutbound {
    paths: Paths,
    reached: Option<Reached>,
    udp_policy: Policy,
    tells_origin: bool,
}

/// A flow whose answer may still be under way.
#[derive(Debug)]
pub struct SessionStream {
    flow: FlowStream,
    awaited: Option<Awaited>,
}

/// The answer that a flow begins with, and what follows if it is a refusal.
#[derive(Debug)]
struct Awaited {
    target: Target,
    reached: Reached,
}

/// The targets that were reached a short while ago, and when.
#[derive(Clone, Default, Debug)]
struct Reached(Arc<Mutex<HashMap<Target, Instant>>>);

/// How long a target that was reached is taken for one that can be: a page's further requests, not tomorrow's.
const REACHED_FOR: Duration = Duration::from_secs(60);

/// Targets remembered.
const REACHED_MAX: usize = 4096;

impl SessionOutbound {
    /// The way through the session of `paths`, whichever that is when a flow is opened. `early_answers` lets flows to targets that were
    /// reached a short while ago begin before `reconst` has answered; `udp_policy` spreads datagrams both ways; `tells_origin` tells
    /// `reconst` the application's address.
    pub fn new(paths: Paths, early_answers: bool, udp_policy: Policy, tells_origin: bool) -> Self {
        Self { paths, reached: early_answers.then(Reached::default), udp_policy, tells_origin }
    }

    fn admit(&self) -> Result<(), Refusal> {
        self.paths.refusal().map_or(Ok(()), |reason| Err(Refusal::new(RefusalKind::Denied, reason)))
    }
}

impl Outbound for SessionOutbound {
    type Stream = SessionStream;
    type Association = SessionAssociation;

    fn associate(&self, application: SocketAddr) -> Result<SessionAssociation, Refusal> {
        self.admit()?;
        Ok(SessionAssociation::new(self.paths.clone(), self.udp_policy, self.tells_origin.then_some(application)))
    }

    async fn open(&self, target: Target, application: SocketAddr) -> Result<Self::Stream, Refusal> {
        self.admit()?;
        let request = Request { kind: RequestKind::Tcp(target.clone()), origin: self.tells_origin.then_some(application) };
        let mut flow = open::request(&self.paths.session(), &request).await?;
        if let Some(reached) = &self.reached
            && reached.contains(&target)
        {
            return Ok(SessionStream { flow, awaited: Some(Awaited { target, reached: reached.clone() }) });
        }
        open::read_answer(&mut flow).await?;
        if let Some(reached) = &self.reached {
            reached.insert(target);
        }
        Ok(SessionStream { flow, awaited: None })
    }
}

impl Reached {
    fn contains(&self, target: &Target) -> bool {
        self.lock().get(target).is_some_and(|at| at.elapsed() < REACHED_FOR)
    }

    fn insert(&self, target: Target) {
        let mut reached = self.lock();
        if reached.len() >= REACHED_MAX {
            reached.retain(|_, at| at.elapsed() < REACHED_FOR);
        }
        if reached.len() < REACHED_MAX {
            reached.insert(target, Instant::now());
        }
    }

    fn remove(&self, target: &Target) {
        self.lock().remove(target);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Target, Instant>> {
        self.0.lock().expect("nothing panics under the lock")
    }
}

impl SessionStream {
    /// Takes the answer off the front of the flow.
    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(awaited) = &self.awaited else { return Poll::Ready(Ok(())) };
        let mut answer = [0xff];
        let mut buffer = ReadBuf::new(&mut answer);
        ready!(Pin::new(&mut self.flow).poll_read(context, &mut buffer))?;
        if buffer.filled() == [0] {
            awaited.reached.insert(awaited.target.clone());
            self.awaited = None;
            return Poll::Ready(Ok(()));
        }
        tracing::info!(target = %awaited.target, "reset: reached a moment ago, refused now");
        awaited.reached.remove(&awaited.target);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, "reconst can't reach the content server any more")))
    }
}

impl AsyncRead for SessionStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_answer(context))?;
        Pin::new(&mut self.flow).poll_read(context, buffer)
    }
}

impl AsyncWrite for SessionStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.flow).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.flow).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.flow).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_reached_is_remembered_up_to_a_bound_and_forgotten_when_refused() {
        let reached = Reached::default();
        let target = |port| Target { port, .."example.org:1".parse().expect("a target") };
        for port in 1..=REACHED_MAX as u16 + 10 {
            reached.insert(target(port));
        }
        assert_eq!(reached.lock().len(), REACHED_MAX);
        assert!(reached.contains(&target(1)) && !reached.contains(&target(REACHED_MAX as u16 + 1)));
        reached.remove(&target(1));
        assert!(!reached.contains(&target(1)));
    }
}
