//! The way out of this program for a flow: through the session, or directly.
//!
//! [`Outbound`] is all that the inbound protocols know of it.

use std::future::Future;

use shared::target::{Refusal, Target};
use tokio::io::{AsyncRead, AsyncWrite};

pub mod direct;
pub mod placed;
pub mod routed;
pub mod session;

/// Opens flows to content servers.
pub trait Outbound: Send + Sync + 'static {
    /// An open flow. Shutting it down half-closes it; dropping it before both directions have ended aborts it.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Opens a flow to `target`; a name in it is resolved at the far end.
    ///
    /// # Errors
    /// A [`Refusal`] whose kind becomes the reply code of the inbound protocol.
    fn open(&self, target: Target) -> impl Future<Output = Result<Self::Stream, Refusal>> + Send;
}

impl<O: Outbound> Outbound for std::sync::Arc<O> {
    type Stream = O::Stream;

    fn open(&self, target: Target) -> impl Future<Output = Result<Self::Stream, Refusal>> + Send {
        O::open(self, target)
    }
}
