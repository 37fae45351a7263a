//! The content server's HTTP/1.1: for `curl` and browsers.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /` | a page that says what there is |
//! | `GET /bytes/N?seed=S` | N bytes of the counter stream (seed 0 when left out) |
//! | `POST /sink?seed=S`, `PUT` too | JSON: the bytes received and whether they were the stream's |
//! | `GET /page/N` | a page with N images, whose title counts those loaded |
//! | `GET /image/I` | one of them |

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    header,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::stream::CounterStream;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Serves requests on a connection until the client leaves or errs.
pub(super) async fn serve(socket: TcpStream) {
    let connection = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(socket), service_fn(answer));
    let _ = connection.await;
}

async fn answer(request: Request<Incoming>) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let seed = request.uri().query().and_then(|query| query.strip_prefix("seed=")?.parse().ok()).unwrap_or(0);
    let mut parts = path.trim_matches('/').splitn(2, '/');
    let what = parts.next().unwrap_or_default();
    let number = parts.next().and_then(|number| number.parse::<u64>().ok());
    Ok(match (request.method(), what, number) {
        (&Method::GET | &Method::HEAD, "", _) => full(StatusCode::OK, HTML, INDEX),
        (&Method::GET | &Method::HEAD, "bytes", Some(bytes)) => {
            let body = StreamBody { stream: CounterStream::new(seed), bytes };
            respond(StatusCode::OK, "application/octet-stream", body.boxed())
        }
        (&Method::GET | &Method::HEAD, "page", Some(images)) if images <= IMAGES_MAX => full(StatusCode::OK, HTML, page(images)),
        (&Method::GET | &Method::HEAD, "image", Some(number)) => full(StatusCode::OK, "image/svg+xml", image(number)),
        (&Method::POST | &Method::PUT, "sink", _) => sink(request.into_body(), seed).await,
        _ => full(StatusCode::NOT_FOUND, "text/plain", "There is nothing here. GET / says what there is.\n"),
    })
}

async fn sink(mut body: Incoming, seed: u64) -> Answer {
    let mut stream = CounterStream::new(seed);
    let (mut bytes, mut is_exact) = (0, true);
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return full(StatusCode::BAD_REQUEST, "text/plain", "The body is cut short.\n") };
        if let Some(data) = frame.data_ref() {
            bytes += data.len() as u64;
            is_exact &= stream.check(data).is_ok();
        }
    }
    full(StatusCode::OK, "application/json", format!("{{\"bytes\":{bytes},\"exact\":{is_exact}}}\n"))
}

fn page(images: u64) -> String {
    let list: String = (0..images).map(|number| format!("<img src=\"/image/{number}\" onload=\"loaded()\" alt=\"\">\n")).collect();
    format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>0 of {images}</title>\n\
         <script>let count = 0; function loaded() {{ count += 1; document.title = `${{count}} of {images}`; }}</script>\n{list}"
    )
}

/// A square of its own colour with its number in it, padded to a few kilobytes as pictures are.
fn image(number: u64) -> String {
    let hue = number * 47 % 360;
    let padding = "<!-- a picture weighs something -->".repeat(100);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"48\" height=\"48\"><rect width=\"48\" height=\"48\" fill=\"hsl({hue} 60% 50%)\"/>\
         <text x=\"24\" y=\"30\" text-anchor=\"middle\" font-family=\"sans-serif\" font-size=\"14\" fill=\"#fff\">{number}</text>{padding}</svg>"
    )
}

fn full(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Answer {
    respond(status, content_type, Full::new(text.into()).boxed())
}

fn respond(status: StatusCode, content_type: &'static str, body: BoxBody<Bytes, Infallible>) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    fields.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

/// So many bytes of a counter stream.
struct StreamBody {
    stream: CounterStream,
    bytes: u64,
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let left = self.bytes - self.stream.position();
        if left == 0 {
            return Poll::Ready(None);
        }
        let mut piece = vec![0; left.min(FRAME_BYTES) as usize];
        self.stream.fill(&mut piece);
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.position() == self.bytes
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes - self.stream.position())
    }
}

const HTML: &str = "text/html; charset=utf-8";

const INDEX: &str = "<!doctype html>\n<meta charset=\"utf-8\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
    <title>The neighbourhood's content server</title>\n<h1>The neighbourhood's content server</h1>\n<ul>\n\
    <li><a href=\"/bytes/100000000\">/bytes/100000000</a>: a download of so many bytes\n\
    <li><a href=\"/page/100\">/page/100</a>: a page with so many pictures\n\
    <li>POST /sink: an upload; the answer counts it\n</ul>\n";

/// Enough that a frame's fixed cost is small beside its bytes.
const FRAME_BYTES: u64 = 64 * 1024;
/// A page of more pictures would be larger than a page should be.
const IMAGES_MAX: u64 = 10_000;
