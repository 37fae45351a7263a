//! The upstream connections of one application's connection.
//!
//! They are never shared between applications: some servers authenticate a connection rather than a request. A connection
//! is taken out for an exchange and comes back when both the request and the response are complete; otherwise it is
//! dropped, which aborts its flow.

use std::sync::{Mutex, MutexGuard};

use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use shared::target::Target;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
};

use super::{BUFFER_BYTES_MAX, Body, FIELDS_MAX, HEAD_BYTES_MAX};

/// Upstream connections that wait for the next request.
pub(super) struct Origins<S> {
    /// The one that has waited longest comes first.
    idle: Mutex<Vec<(Target, Origin)>>,
    _stream: std::marker::PhantomData<fn() -> S>,
}

/// One upstream connection. Dropping it aborts its flow.
pub(super) struct Origin {
    sender: SendRequest<Body>,
    pub(super) driver: AbortOnDrop,
}

/// A task that ends with its handle.
pub(super) struct AbortOnDrop(JoinHandle<()>);

/// A request that was not answered.
pub(super) struct SendError {
    pub(super) error: hyper::Error,
}

impl<S> Default for Origins<S> {
    fn default() -> Self {
        Self { idle: Mutex::new(Vec::new()), _stream: std::marker::PhantomData }
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Origins<S> {
    /// An idle connection to `target`, if there is one that the server has not closed.
    pub(super) async fn take(&self, target: &Target) -> Option<Origin> {
        let mut origin = {
            let mut idle = self.lock();
            let index = idle.iter().position(|(idle_target, _)| idle_target == target)?;
            idle.remove(index).1
        };
        origin.sender.ready().await.is_ok().then_some(origin)
    }

    /// Makes an upstream connection of an open flow.
    pub(super) async fn connect(&self, stream: S) -> hyper::Result<Origin> {
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .max_headers(FIELDS_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(BUFFER_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upstream HTTP connection");
            }
        });
        Ok(Origin { sender, driver: AbortOnDrop(driver) })
    }

    /// Keeps a connection whose exchange is complete.
    pub(super) fn put_back(&self, target: Target, origin: Origin) {
        if origin.sender.is_closed() {
            return;
        }
        let mut idle = self.lock();
        idle.retain(|(idle_target, _)| *idle_target != target);
        if idle.len() == IDLE_MAX {
            idle.remove(0);
        }
        idle.push((target, origin));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Target, Origin)>> {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Origin {
    /// Sends a request and waits for the head of its response.
    pub(super) async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, SendError> {
        self.sender.try_send_request(request).await.map_err(|failed| SendError { error: failed.into_error() })
    }
}

impl SendError {
    /// Whether the server may have closed an idle connection just when the request was sent.
    pub(super) fn may_be_a_stale_connection(&self) -> bool {
        let is_reset = std::error::Error::source(&self.error)
            .and_then(|source| source.downcast_ref::<std::io::Error>())
            .is_some_and(|error| matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe));
        is_reset || self.error.is_canceled() || self.error.is_closed() || self.error.is_incomplete_message()
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A browser keeps a connection to the proxy for each origin as a rule; each idle one here holds a flow at `reconst`.
const IDLE_MAX: usize = 4;
