//! The HTTP endpoint behind the `status` commands.
//!
//! It has no password, so it is bound to loopback alone, and answers only requests whose `Host` is loopback too: a page in
//! a browser that rebinds its own name to 127.0.0.1 gets nothing.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{CACHE_CONTROL, CONTENT_TYPE, HOST},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::{Failure, Shutdown, bind_failure};
use crate::target::Host;

/// A status that was not fetched.
#[derive(Debug, Error)]
pub enum FetchError {
    /// Nothing listens there.
    #[error("nothing answers on {address}: is the program running, with --admin {address}? ({problem})")]
    Connect {
        /// Where it was looked for.
        address: SocketAddr,
        /// What the system says.
        problem: io::Error,
    },
    /// Whatever listens there is not this program.
    #[error("{address} does not answer as this program would ({problem}): is --admin right?")]
    Answer {
        /// Where it was asked.
        address: SocketAddr,
        /// What came instead.
        problem: String,
    },
}

/// What the endpoint answers with.
#[derive(Clone, PartialEq, Debug)]
pub enum Page {
    /// 200 and JSON.
    Json(serde_json::Value),
    /// 200 and plain text.
    Text(String),
    /// 503 and plain text, for who asks whether all is well.
    Unwell(String),
}

/// Binds the endpoint's socket.
///
/// # Errors
/// If the address is not loopback, or can't be bound.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    if !address.ip().to_canonical().is_loopback() {
        return Err(Failure::config(format!("--admin {address} would show this program to the network: use 127.0.0.1:{}", address.port())));
    }
    TcpListener::bind(address).await.map_err(|error| bind_failure(address, "--admin", &error))
}

/// Answers `GET /status` with the JSON that `status` gives and `GET /healthz` with `ok`, until the program stops.
pub async fn serve<S>(listener: TcpListener, status: S, shutdown: Shutdown)
where
    S: Fn() -> serde_json::Value + Send + Sync + 'static,
{
    serve_pages(listener, move |path: &str| (path == "/status").then(|| Page::Json(status())), shutdown).await;
}

/// As [`serve`], with what `page` gives for each path.
pub async fn serve_pages<P>(listener: TcpListener, page: P, shutdown: Shutdown)
where
    P: Fn(&str) -> Option<Page> + Send + Sync + 'static,
{
    let page = Arc::new(page);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accept = async {
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the admin endpoint could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let page = Arc::clone(&page);
            tokio::spawn(async move {
                let _slot = slot;
                let service = service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&request, &*page))));
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(EXCHANGE_TIME)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                if let Ok(Err(error)) = tokio::time::timeout(EXCHANGE_TIME, connection).await {
                    tracing::debug!(%error, "admin request");
                }
            });
        }
    };
    tokio::select! {
        () = accept => (),
        () = shutdown.stopping() => (),
    }
}

/// Fetches `path` from the endpoint at `address`.
///
/// # Errors
/// If nothing answers there, or not with 200 and at most [`ANSWER_BYTES_MAX`] bytes of UTF-8.
pub async fn fetch(address: SocketAddr, path: &str) -> Result<String, FetchError> {
    let answer = |problem: String| FetchError::Answer { address, problem };
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(|problem| FetchError::Connect { address, problem })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| answer(error.to_string()))?;
        let driver = tokio::spawn(connection);
        let request =
            Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new()).map_err(|error| answer(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| answer(error.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| answer(error.to_string()))?;
        driver.abort();
        if status != StatusCode::OK {
            return Err(answer(status.to_string()));
        }
        String::from_utf8(body.to_bytes().into()).map_err(|error| answer(error.to_string()))
    };
    match tokio::time::timeout(EXCHANGE_TIME, exchange).await {
        Ok(result) => result,
        Err(_) => Err(answer(format!("no answer within {} s", EXCHANGE_TIME.as_secs()))),
    }
}

fn answer(request: &Request<Incoming>, page: &impl Fn(&str) -> Option<Page>) -> Response<Full<Bytes>> {
    if !has_loopback_host(request) {
        return text(StatusCode::FORBIDDEN, "This endpoint answers only to localhost, 127.0.0.1 and [::1].\n");
    }
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "Only GET.\n");
    }
    // What is asked for and not done would be taken for done.
    if request.uri().query().is_some() {
        return text(StatusCode::BAD_REQUEST, "Nothing here takes parameters.\n");
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        path => match page(path) {
            Some(Page::Text(page)) => text(StatusCode::OK, page),
            Some(Page::Unwell(problem)) => text(StatusCode::SERVICE_UNAVAILABLE, problem),
            Some(Page::Json(page)) => {
                let mut response = text(StatusCode::OK, format!("{page:#}\n"));
                response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
                response
            }
            None => text(StatusCode::NOT_FOUND, "There is /status and /healthz.\n"),
        },
    }
}

/// Whether the request's `Host` names this machine by loopback. Any page in a browser can send requests here; only one
/// loaded from a loopback address itself sends such a `Host`.
pub fn has_loopback_host<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Some(authority) = host.to_str().ok().and_then(|host| host.parse::<hyper::http::uri::Authority>().ok()) else { return false };
    match Host::parse(authority.host()) {
        Ok(Host::Ip(ip)) => ip.is_loopback(),
        Ok(Host::Name(name)) => name == "localhost",
        Err(_) => false,
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}

/// Asked by a person, a dashboard and a monitor at once, with room to spare.
const CONNECTIONS_MAX: usize = 32;

/// A whole exchange on loopback takes milliseconds; after this the other side is not one that wants an answer.
const EXCHANGE_TIME: Duration = Duration::from_secs(5);

/// A status of a thousand flows takes about 300 KB.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Out of file descriptors is the usual reason that accepting fails, and it does not end by asking again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn status_is_what_the_closure_says() {
        let address = serving().await;
        assert_eq!(fetch(address, "/healthz").await.expect("health"), "ok\n");
        let status: serde_json::Value = serde_json::from_str(&fetch(address, "/status").await.expect("status")).expect("JSON");
        assert_eq!(status["paths"], 3);
        for (path, code) in [("/other", "404"), ("/status?lan=elm", "400")] {
            let Err(FetchError::Answer { problem, .. }) = fetch(address, path).await else { panic!("{path} is answered") };
            assert!(problem.starts_with(code), "{path}: {problem}");
        }
    }

    #[tokio::test]
    async fn a_name_rebound_to_loopback_gets_nothing() {
        let address = serving().await;
        for (host, code) in [("evil.example", "403"), ("localhost:1", "200"), ("127.0.0.1", "200"), ("[::1]:80", "200"), ("", "403")] {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            stream.write_all(format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("answered");
            assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{host}: {answer}");
        }
    }

    #[tokio::test]
    async fn an_address_for_the_network_is_refused() {
        assert_eq!(bind(([0, 0, 0, 0], 0).into()).await.expect_err("not loopback").exit, super::super::Exit::Config);
    }

    async fn serving() -> SocketAddr {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.expect("bound");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(serve(listener, || serde_json::json!({ "paths": 3 }), Shutdown::new()));
        address
    }
}
