//! Requests in absolute form: forwarded, and their responses streamed back.
//!
//! Interim responses: `100 Continue` is end to end, since the application's body is not read before the content server
//! asks for it. Other 1xx are dropped, as RFC 9110 §15.2 allows: hyper's server can't send them. Trailers pass both ways
//! where `Trailer` announces them.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Method, Request, Response, StatusCode, Uri, Version,
    body::{Body as _, Frame, Incoming, SizeHint},
    header::{CONNECTION, EXPECT, HOST, HeaderValue, TE, TRANSFER_ENCODING},
    http::{request, uri::Authority},
    upgrade::OnUpgrade,
};
use shared::target::{Host, Refusal, Target};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
};

use super::{
    Body, BoxError, Connection, fields,
    origins::{Origin, Origins, SendError},
    page,
    tunnel::Tunnel,
};
use crate::outbound::Outbound;

/// A response whose body is still to be read, on its upstream connection.
struct Exchange {
    response: Response<Incoming>,
    origin: Origin,
    request_is_sent: Arc<AtomicBool>,
}

enum ForwardError {
    Refused(Refusal),
    Upstream(hyper::Error),
}

impl<O: Outbound> Connection<O> {
    /// Forwards a request that names its content server.
    pub(super) async fn forward(&self, mut request: Request<Incoming>) -> Response<Body> {
        let accept = request.headers().clone();
        let (target, authority) = match destination(request.uri()) {
            Ok(destination) => destination,
            Err(problem) => return page::bad_request(&accept, problem),
        };
        let version = request.version();
        let hop = fields::take_hop(request.headers_mut());
        let upgrade = hop.upgrade.clone().filter(|_| version == Version::HTTP_11);
        let application = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut head, incoming) = request.into_parts();
        if prepare(&mut head, &authority, &hop, upgrade.clone()).is_err() {
            return page::bad_request(&accept, "The request's address can't be forwarded.");
        }

        let result = if can_be_repeated(&head, &incoming) && upgrade.is_none() {
            self.exchange_repeatable(&target, head).await
        } else {
            self.exchange_once(&target, head, incoming).await
        };
        match result {
            Ok(exchange) if exchange.response.status() == StatusCode::SWITCHING_PROTOCOLS => match application {
                Some(application) => self.switch(application, exchange),
                None => page::bad_gateway(&accept, "The content server switched protocols without being asked to."),
            },
            Ok(exchange) => self.respond(target, exchange),
            Err(ForwardError::Refused(refusal)) => page::refusal(&accept, &refusal),
            Err(ForwardError::Upstream(error)) => {
                tracing::debug!(application = %self.application, %target, %error, "exchange failed");
                page::bad_gateway(&accept, "The content server closed the connection or did not answer in HTTP.")
            }
        }
    }

    /// An exchange on a kept connection, and once more on a new one if the server has just closed that.
    async fn exchange_repeatable(&self, target: &Target, head: request::Parts) -> Result<Exchange, ForwardError> {
        if let Some(mut origin) = self.origins.take(target).await {
            match origin.send(Request::from_parts(head.clone(), page::empty())).await {
                Ok(response) => return Ok(Exchange { response, origin, request_is_sent: Arc::new(AtomicBool::new(true)) }),
                Err(failed) if failed.may_be_a_stale_connection() => (),
                Err(SendError { error }) => return Err(ForwardError::Upstream(error)),
            }
        }
        self.exchange_on_new(target, Request::from_parts(head, page::empty()), Arc::new(AtomicBool::new(true))).await
    }

    /// An exchange that must not happen twice, on a new connection: a server that closes an idle one just then would
    /// leave in doubt whether it acted on the request.
    async fn exchange_once(&self, target: &Target, mut head: request::Parts, incoming: Incoming) -> Result<Exchange, ForwardError> {
        let is_sent = Arc::new(AtomicBool::new(incoming.is_end_stream()));
        let awaits_continue = head.headers.get(EXPECT).is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if !awaits_continue || head.version == Version::HTTP_10 {
            head.headers.remove(EXPECT);
            let body = RequestBody { body: incoming, gate: Gate::Open, is_sent: Arc::clone(&is_sent) };
            return self.exchange_on_new(target, Request::from_parts(head, body.boxed_unsync()), is_sent).await;
        }
        let (ask, asked) = oneshot::channel();
        let body = RequestBody { body: incoming, gate: Gate::AwaitsContinue(asked), is_sent: Arc::clone(&is_sent) };
        let mut request = Request::from_parts(head, body.boxed_unsync());
        let ask = Mutex::new(Some(ask));
        hyper::ext::on_informational(&mut request, move |interim| {
            if interim.status() == StatusCode::CONTINUE
                && let Some(ask) = ask.lock().ok().and_then(|mut ask| ask.take())
            {
                let _ = ask.send(());
            }
        });
        self.exchange_on_new(target, request, is_sent).await
    }

    async fn exchange_on_new(
        &self,
        target: &Target,
        mut request: Request<Body>,
        request_is_sent: Arc<AtomicBool>,
    ) -> Result<Exchange, ForwardError> {
        let stream = self.open(target.clone()).await.map_err(ForwardError::Refused)?;
        let mut origin = self.origins.connect(stream).await.map_err(ForwardError::Upstream)?;
        *request.version_mut() = Version::HTTP_11;
        match origin.send(request).await {
            Ok(response) => Ok(Exchange { response, origin, request_is_sent }),
            Err(SendError { error }) => Err(ForwardError::Upstream(error)),
        }
    }

    fn respond(&self, target: Target, exchange: Exchange) -> Response<Body> {
        let Exchange { response, origin, request_is_sent } = exchange;
        let (mut head, incoming) = response.into_parts();
        fields::take_hop(&mut head.headers);
        fields::add_via(&mut head.headers, head.version);
        head.version = Version::HTTP_11;
        let body = ResponseBody {
            body: incoming,
            is_read: false,
            request_is_sent,
            kept: Some((target, origin)),
            origins: Arc::clone(&self.origins),
        };
        Response::from_parts(head, body.boxed_unsync())
    }

    fn switch(&self, application: OnUpgrade, exchange: Exchange) -> Response<Body> {
        let Exchange { mut response, origin, .. } = exchange;
        let upgrade = hyper::upgrade::on(&mut response);
        let hop = fields::take_hop(response.headers_mut());
        if let Some(protocol) = hop.upgrade {
            fields::set_upgrade(response.headers_mut(), protocol);
        }
        *self.lock_tunnel() = Some(Tunnel::to_upgrade(application, upgrade, origin.driver));
        response.map(|_| page::empty())
    }
}

/// Where a request goes, and its address without the user's name and password that it may hold.
fn destination(uri: &Uri) -> Result<(Target, Authority), &'static str> {
    let default_port = match uri.scheme_str() {
        Some("http" | "ws") => 80,
        Some("https" | "wss") => return Err("For https the proxy is asked with CONNECT, so that it can't read what is said."),
        _ => return Err("The proxy forwards http; other protocols use CONNECT or SOCKS."),
    };
    const NO_HOST: &str = "The request's address has no valid host.";
    let authority = uri.authority().ok_or(NO_HOST)?;
    let bare = authority.as_str().rsplit('@').next().unwrap_or_default();
    let authority: Authority = bare.parse().map_err(|_| NO_HOST)?;
    let host = Host::parse(authority.host()).map_err(|_| NO_HOST)?;
    let port = match bare.strip_prefix(authority.host()).unwrap_or_default() {
        "" | ":" => default_port,
        port => {
            let port = port.strip_prefix(':').and_then(|port| port.parse().ok()).filter(|&port| port != 0);
            port.ok_or("The request's address has no valid port.")?
        }
    };
    Ok((Target { host, port }, authority))
}

/// Makes the head what the content server is to see: origin form, the address's host, one hop's fields of our own.
fn prepare(head: &mut request::Parts, authority: &Authority, hop: &fields::Hop, upgrade: Option<HeaderValue>) -> Result<(), BoxError> {
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = if path.is_empty() { "/" } else { path }.parse()?;
    head.headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
    fields::add_via(&mut head.headers, head.version);
    if hop.accepts_trailers {
        head.headers.insert(TE, HeaderValue::from_static("trailers"));
        head.headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if hop.is_chunked {
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if let Some(protocol) = upgrade {
        fields::set_upgrade(&mut head.headers, protocol);
    }
    Ok(())
}

/// Whether a proxy may send the request again (RFC 9110 §9.2.2), and can: there is no body that would be gone.
fn can_be_repeated(head: &request::Parts, body: &Incoming) -> bool {
    let is_idempotent = [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::TRACE].contains(&head.method);
    is_idempotent && body.is_end_stream() && !head.headers.contains_key(TRANSFER_ENCODING)
}

/// The request's body. Nothing is read from the application before the content server asks for it, if the application
/// wants it so; reading is what makes hyper's server send `100 Continue`.
struct RequestBody {
    body: Incoming,
    gate: Gate,
    is_sent: Arc<AtomicBool>,
}

enum Gate {
    Open,
    AwaitsContinue(oneshot::Receiver<()>),
    /// The final response came without asking for the body, so it is never sent, and the connection that waits for it is
    /// dropped with the response.
    Shut,
}

/// The response's body. Holds the upstream connection, and gives it back when both bodies are complete.
struct ResponseBody<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> {
    body: Incoming,
    is_read: bool,
    request_is_sent: Arc<AtomicBool>,
    kept: Option<(Target, Origin)>,
    origins: Arc<Origins<S>>,
}

impl hyper::body::Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.gate {
            Gate::Open => (),
            Gate::AwaitsContinue(asked) => match Pin::new(asked).poll(cx) {
                Poll::Ready(Ok(())) => self.gate = Gate::Open,
                Poll::Ready(Err(_)) => {
                    self.gate = Gate::Shut;
                    return Poll::Pending;
                }
                Poll::Pending => return Poll::Pending,
            },
            Gate::Shut => return Poll::Pending,
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx).map_err(BoxError::from);
        if is_last(&polled) || self.body.is_end_stream() {
            self.is_sent.store(true, Ordering::Release);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn is_last(polled: &Poll<Option<Result<Frame<Bytes>, BoxError>>>) -> bool {
    match polled {
        Poll::Ready(None) => true,
        Poll::Ready(Some(Ok(frame))) => frame.is_trailers(),
        _ => false,
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> hyper::body::Body for ResponseBody<S> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx).map_err(BoxError::from);
        self.is_read |= is_last(&polled);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Drop for ResponseBody<S> {
    fn drop(&mut self) {
        let is_complete = (self.is_read || self.body.is_end_stream()) && self.request_is_sent.load(Ordering::Acquire);
        if is_complete && let Some((target, origin)) = self.kept.take() {
            self.origins.put_back(target, origin);
        }
    }
}
