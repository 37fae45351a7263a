//! A flow as an application of this crate sees it: a byte stream.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{parcels::ParcelPort, session::SessionHandle};
use crate::{
    ids::FlowId,
    transfer::{control::AbortCode, schedule::Policy, session::Read},
};

/// One flow, in order and complete, whatever lines its chunks take.
///
/// `poll_shutdown` half-closes; end of file is the other end's half-close; [`io::ErrorKind::ConnectionReset`] is the other
/// end's abort, behind what had come until then. `poll_flush` waits until there is room to write again, so that whoever passes bytes on need not
/// take them from elsewhere before (an abort ends the wait, and the next write tells of it).
/// Dropping a stream that has not been shut down and read to its end aborts the flow.
pub struct FlowStream {
    session: SessionHandle,
    id: FlowId,
}

impl FlowStream {
    pub(super) fn new(session: SessionHandle, id: FlowId) -> Self {
        Self { session, id }
    }

    /// Makes this a flow that sends parcels as well, spread over the paths by `policy`.
    pub fn carry_parcels(&self, policy: Policy) -> ParcelPort {
        let id = self.id;
        self.session.with(|state, _| state.core.carry_parcels(id, policy));
        ParcelPort::new(self.session.clone(), id)
    }

    /// The flow's number within its session.
    pub fn id(&self) -> FlowId {
        self.id
    }

    /// Waits until the flow is aborted by the other end or with its session, whether or not anybody reads or writes it. Of several waits the last
    /// counts.
    pub fn aborted(&self) -> impl Future<Output = ()> + Send + 'static {
        let id = self.id;
        let abort = self.session.with(|state, _| state.watch_for_abort(id));
        async move { drop(abort.await) }
    }

    /// A look at what becomes of what is written, for whoever accounts for it. Keeps the session's state, not the flow.
    pub fn watch(&self) -> FlowWatch {
        FlowWatch { session: self.session.clone(), id: self.id }
    }
}

/// A look at a flow from beside its stream.
#[derive(Clone)]
pub struct FlowWatch {
    session: SessionHandle,
    id: FlowId,
}

impl FlowWatch {
    /// Bytes written that the other end has not acknowledged, or never will since the flow was aborted. None once the flow is over and its
    /// stream dropped.
    pub fn undelivered(&self) -> u64 {
        self.session.undelivered(self.id)
    }
}

impl AsyncRead for FlowStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let id = self.id;
        self.session.with(|state, _| {
            let before = buffer.filled().len();
            while buffer.remaining() > 0 {
                match state.core.read(id, buffer.remaining()) {
                    Read::Bytes(bytes) => buffer.put_slice(&bytes),
                    Read::Aborted(code) if buffer.filled().len() == before => return Poll::Ready(Err(aborted(code))),
                    Read::Blocked if buffer.filled().len() == before => {
                        state.wait_to_read(id, context);
                        return Poll::Pending;
                    }
                    Read::Blocked | Read::End | Read::Aborted(_) => break,
                }
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for FlowStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let id = self.id;
        self.session.with(|state, _| match state.core.write(id, bytes) {
            Ok(0) if !bytes.is_empty() => {
                state.wait_to_write(id, context);
                Poll::Pending
            }
            Ok(written) => Poll::Ready(Ok(written)),
            Err(code) => Poll::Ready(Err(aborted(code))),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let id = self.id;
        if self.session.has_room(id) {
            return Poll::Ready(Ok(()));
        }
        self.session.with(|state, _| {
            // It may have got room, or the session been closed, meanwhile.
            if state.core.has_room(id) {
                return Poll::Ready(Ok(()));
            }
            state.wait_to_write(id, context);
            state.core.await_room(id);
            Poll::Pending
        })
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let id = self.id;
        self.session.with(|state, _| state.core.finish(id));
        Poll::Ready(Ok(()))
    }
}

impl Drop for FlowStream {
    fn drop(&mut self) {
        let id = self.id;
        self.session.with(|state, _| state.release(id));
    }
}

impl fmt::Debug for FlowStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowStream").field("id", &self.id).finish_non_exhaustive()
    }
}

pub(super) fn aborted(code: AbortCode) -> io::Error {
    let reason = match code {
        AbortCode::Reset => "the other end reset the flow",
        AbortCode::TooManyFlows => "too many flows are open",
        AbortCode::Protocol => "the flow broke the protocol",
        AbortCode::SessionLost => "the session with reconst is lost",
    };
    io::Error::new(io::ErrorKind::ConnectionReset, reason)
}
