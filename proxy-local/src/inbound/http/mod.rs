//! The HTTP/1.1 proxy (RFC 9110, RFC 9112), on hyper.
//!
//! * CONNECT and Upgrade become a [`tunnel`]: the connection leaves hyper and is carried as bytes.
//! * A request in absolute form is [`forward`]ed through a connection from [`origins`], its header [`fields`] cleaned of
//!   what concerns one hop alone.
//! * A request in origin form is for the proxy itself: its page and its PAC file ([`page`]), for this machine's browser
//!   alone.
//!
//! A connection serves one request at a time, so what it keeps is bounded by one request, the upstream connections that
//! [`origins`] allows, and hyper's buffers of [`BUFFER_BYTES_MAX`]. Bodies are streamed with backpressure.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use base64::Engine;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::{Method, Request, Response, body::Incoming, header::PROXY_AUTHORIZATION, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use shared::{
    link::tcp::reset_of,
    target::{Refusal, Target},
};
use tokio::net::TcpStream;

use super::Front;
use crate::outbound::Outbound;
use application::ApplicationIo;
use origins::Origins;
use tunnel::Tunnel;

mod application;
mod fields;
mod forward;
mod origins;
mod page;
mod tunnel;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body of either direction, in flight.
type Body = UnsyncBoxBody<Bytes, BoxError>;

/// One application's connection.
struct Connection<O: Outbound> {
    front: Arc<Front<O>>,
    application: SocketAddr,
    /// Where the application found this proxy.
    listen: SocketAddr,
    origins: Arc<Origins<O::Stream>>,
    /// What the connection becomes once its last response is sent.
    tunnel: Mutex<Option<Tunnel<O::Stream>>>,
}

/// Serves one connection from its first request to the end of the tunnel that it may become.
pub(super) async fn serve<O: Outbound>(tcp: TcpStream, front: Arc<Front<O>>) {
    let (Ok(application), Ok(listen)) = (tcp.peer_addr(), tcp.local_addr()) else { return };
    let shutdown = front.shutdown.clone();
    let idle = front.limits.idle;
    let connection = Arc::new(Connection { front, application, listen, origins: Arc::new(Origins::default()), tunnel: Mutex::new(None) });
    let service = service_fn(|request| {
        let connection = Arc::clone(&connection);
        async move { Ok::<_, Infallible>(connection.answer(request).await) }
    });
    // A response that is cut off must not look complete, so whatever ends the connection early resets it.
    let resets = Arc::new(AtomicBool::new(true));
    {
        let tcp = Arc::new(tcp);
        let io = TokioIo::new(ApplicationIo::new(Arc::clone(&tcp), Arc::clone(&resets)));
        let mut served = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(idle)
                .half_close(true)
                .auto_date_header(false)
                .preserve_header_case(true)
                .max_headers(FIELDS_MAX)
                .max_header_size(HEAD_BYTES_MAX)
                .max_buf_size(BUFFER_BYTES_MAX)
                .serve_connection(io, service)
                .with_upgrades()
        );
        let served_or_drained = async {
            tokio::select! {
                result = served.as_mut() => result,
                () = shutdown.draining() => {
                    served.as_mut().graceful_shutdown();
                    served.as_mut().await
                }
            }
        };
        let result = tokio::select! {
            result = served_or_drained => result,
            () = reset_of(&tcp) => return tracing::debug!(%application, "the application reset its connection"),
        };
        if let Err(error) = &result {
            tracing::debug!(%application, %error, "HTTP connection");
        }
        let is_cut_off = matches!(&result, Err(error) if error.is_user());
        resets.store(is_cut_off, Ordering::Relaxed);
    }
    let tunnel = connection.lock_tunnel().take();
    if let Some(tunnel) = tunnel
        && let Err(error) = tunnel.run().await
    {
        tracing::debug!(%application, %error, "tunnel aborted");
    }
}

impl<O: Outbound> Connection<O> {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let is_for_the_proxy = request.method() != Method::CONNECT && request.uri().authority().is_none();
        if is_for_the_proxy {
            return page::own(&request, self.listen, self.front.rules().bypasses_local);
        }
        if !self.is_admitted(&request) {
            return page::authentication_required(request.headers());
        }
        if request.method() == Method::CONNECT {
            return self.connect(request).await;
        }
        self.forward(request).await
    }

    fn is_admitted(&self, request: &Request<Incoming>) -> bool {
        let Some(credentials) = self.front.rules().credentials else { return true };
        let admitted = || {
            let (scheme, encoded) = request.headers().get(PROXY_AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
            let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
            let colon = decoded.iter().position(|&byte| byte == b':')?;
            Some(scheme.eq_ignore_ascii_case("basic") && credentials.admit(&decoded[..colon], &decoded[colon + 1..]))
        };
        admitted().unwrap_or(false)
    }

    async fn connect(&self, mut request: Request<Incoming>) -> Response<Body> {
        let target = request.uri().authority().and_then(|authority| authority.as_str().parse::<Target>().ok());
        let Some(target) = target else {
            return page::bad_request(request.headers(), "CONNECT needs a host and a port, as in example.org:443.");
        };
        match self.open(target).await {
            Ok(stream) => {
                *self.lock_tunnel() = Some(Tunnel::to_stream(hyper::upgrade::on(&mut request), stream));
                Response::new(page::empty())
            }
            Err(refusal) => page::refusal(request.headers(), &refusal),
        }
    }

    async fn open(&self, target: Target) -> Result<O::Stream, Refusal> {
        self.front.open(target, self.application).await
    }

    fn lock_tunnel(&self) -> MutexGuard<'_, Option<Tunnel<O::Stream>>> {
        self.tunnel.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A request's or response's header section; a browser with many cookies sends 16 KB.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The most that hyper buffers each way on one connection; a header section has to fit.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// Header fields in one request or response; the largest sites send about 60.
const FIELDS_MAX: usize = 256;
