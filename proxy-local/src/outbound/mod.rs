//! The way out of this program for a flow: through the session, or directly.
//!
//! [`Outbound`] is all that the inbound protocols know of it.

use std::{future::Future, net::SocketAddr};

use bytes::Bytes;
use shared::target::{Refusal, Target};
use tokio::io::{AsyncRead, AsyncWrite};

pub mod direct;
pub mod direct_udp;
pub mod placed;
pub mod routed;
pub mod session;
pub mod session_udp;

/// Opens flows to content servers.
pub trait Outbound: Send + Sync + 'static {
    /// An open flow. Shutting it down half-closes it; dropping it before both directions have ended aborts it.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The way for the datagrams of one application.
    type Association: Association;

    /// Opens a flow to `target` for the application at that address; a name in it is resolved at the far end.
    ///
    /// # Errors
    /// A [`Refusal`] whose kind becomes the reply code of the inbound protocol.
    fn open(&self, target: Target, application: SocketAddr) -> impl Future<Output = Result<Self::Stream, Refusal>> + Send;

    /// Makes a way for the datagrams of the application at that address. What it needs is opened when a datagram needs it.
    ///
    /// # Errors
    /// As [`Outbound::open`], if it is known that there is none.
    fn associate(&self, application: SocketAddr) -> Result<Self::Association, Refusal>;
}

/// Datagrams to content servers and back. Dropping it ends what was opened for them.
pub trait Association: Send + 'static {
    /// Sends a datagram to `target`; a name in it is resolved at the far end. It may be lost, like any datagram.
    fn send(&mut self, target: Target, payload: Bytes) -> impl Future<Output = ()> + Send;

    /// Waits for the next datagram and where it comes from. Safe to cancel.
    ///
    /// # Errors
    /// Why no more will come.
    fn receive(&mut self) -> impl Future<Output = Result<(SocketAddr, Bytes), Refusal>> + Send;
}

impl<O: Outbound> Outbound for std::sync::Arc<O> {
    type Stream = O::Stream;
    type Association = O::Association;

    fn open(&self, target: Target, application: SocketAddr) -> impl Future<Output = Result<Self::Stream, Refusal>> + Send {
        O::open(self, target, application)
    }

    fn associate(&self, application: SocketAddr) -> Result<Self::Association, Refusal> {
        O::associate(self, application)
    }
}
