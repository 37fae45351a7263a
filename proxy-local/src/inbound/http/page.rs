//! What the proxy says in its own name: errors, its page, its PAC file.
//!
//! Small pages without scripts or outside resources; plain text for whoever does not ask for HTML. What came from outside
//! is escaped.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, PROXY_AUTHENTICATE, RETRY_AFTER},
};
use shared::{
    service::admin::has_loopback_host,
    target::{Refusal, RefusalKind},
};

use super::Body;
use crate::inbound::pac;

/// No body.
pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Answers a request for the proxy itself.
///
/// Only one whose `Host` is loopback: pages of the web can make a browser send requests here, also under a name of their
/// own that they let point to 127.0.0.1.
pub(super) fn own<B>(request: &Request<B>, listen: SocketAddr, bypasses_local: bool) -> Response<Body> {
    let headers = request.headers();
    if !has_loopback_host(request) {
        return explain(
            headers,
            StatusCode::FORBIDDEN,
            "This is a proxy",
            "It answers requests of its own only on localhost, 127.0.0.1 and [::1].",
            "To reach other sites through it, set it as the proxy of your browser or program.",
        );
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = explain(headers, StatusCode::METHOD_NOT_ALLOWED, "Not here", "The proxy's own pages can only be read.", "");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/" => explain(
            headers,
            StatusCode::OK,
            "Tributary is running",
            &format!("This is the proxy on {listen}. It carries what you load over all the lines that your neighbours share with you."),
            &format!("Set {listen} as HTTP or SOCKS5 proxy, or http://{listen}/proxy.pac as automatic proxy configuration."),
        ),
        "/proxy.pac" => {
            let mut response = Response::new(full(pac::file(listen, bypasses_local)));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ns-proxy-autoconfig"));
            response
        }
        _ => explain(headers, StatusCode::NOT_FOUND, "No such page", "The proxy has no such page.", "It has / and /proxy.pac."),
    }
}

/// Says why a flow was not opened.
pub(super) fn refusal(headers: &HeaderMap, refusal: &Refusal) -> Response<Body> {
    let (status, error, title, next) = match refusal.kind {
        RefusalKind::General => (StatusCode::BAD_GATEWAY, "destination_unavailable", "The site can't be reached", "Try again."),
        RefusalKind::Denied => (
            StatusCode::FORBIDDEN,
            "destination_ip_prohibited",
            "This destination is not allowed",
            "If it should be, ask whoever runs your Tributary server.",
        ),
        RefusalKind::NameNotFound => {
            (StatusCode::BAD_GATEWAY, "dns_error", "There is no site of this name", "Check the address for misspellings.")
        }
        RefusalKind::NetworkUnreachable | RefusalKind::HostUnreachable => (
            StatusCode::BAD_GATEWAY,
            "destination_ip_unroutable",
            "The site can't be reached",
            "No route leads there at the moment: check the address, or try again later.",
        ),
        RefusalKind::ConnectionRefused => (
            StatusCode::BAD_GATEWAY,
            "connection_refused",
            "The site refused the connection",
            "Check the port in the address; if it is right, the server is down: try again later.",
        ),
        RefusalKind::TimedOut => {
            (StatusCode::GATEWAY_TIMEOUT, "connection_timeout", "The site did not answer", "It may be down or overloaded: try again later.")
        }
        RefusalKind::OverQuota => (
            StatusCode::FORBIDDEN,
            "connection_limit_reached",
            "Your share is used up",
            "Wait until it is renewed, close other downloads, or ask whoever runs your Tributary server.",
        ),
        RefusalKind::NoPath => (
            StatusCode::SERVICE_UNAVAILABLE,
            "destination_unavailable",
            "No line is available",
            "Check that this PC is on the LAN and that a neighbour's relay is running (`proxy-local status` lists them), then reload.",
        ),
    };
    let full_stop = if refusal.reason.ends_with('.') { "" } else { "." };
    let mut response = explain(headers, status, title, &format!("{}{full_stop}", refusal.reason), next);
    let proxy_status = HeaderValue::from_str(&format!("tributary; error={error}")).expect("the errors above are plain tokens");
    response.headers_mut().insert(PROXY_STATUS, proxy_status);
    if refusal.kind == RefusalKind::NoPath {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    }
    response
}

/// Says what is wrong with a request.
pub(super) fn bad_request(headers: &HeaderMap, problem: &str) -> Response<Body> {
    explain(headers, StatusCode::BAD_REQUEST, "The proxy can't do this", problem, "Check the address and the program's proxy settings.")
}

/// Says what is wrong with the content server's answer.
pub(super) fn bad_gateway(headers: &HeaderMap, problem: &str) -> Response<Body> {
    explain(headers, StatusCode::BAD_GATEWAY, "The site gave no valid answer", problem, "Try again.")
}

/// Asks for user and password.
pub(super) fn authentication_required(headers: &HeaderMap) -> Response<Body> {
    let mut response = explain(
        headers,
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        "The proxy asks for a user and password",
        "None were given, or not the right ones.",
        "Enter those in the credentials file that proxy-local was started with.",
    );
    response.headers_mut().insert(PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Tributary\", charset=\"UTF-8\""));
    response
}

fn explain(headers: &HeaderMap, status: StatusCode, title: &str, what: &str, next: &str) -> Response<Body> {
    let (content_type, text) = if wants_html(headers) {
        let (title, what, next) = (escape(title), escape(what), escape(next));
        let html = format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n\
             <title>{title}</title>\n<style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem}}\
             small{{color:#767676}}</style>\n<h1>{title}</h1>\n<p>{what}</p>\n<p>{next}</p>\n<small>Tributary proxy</small>\n</html>\n"
        );
        ("text/html; charset=utf-8", html)
    } else {
        let separator = if next.is_empty() { "" } else { " " };
        ("text/plain; charset=utf-8", format!("{title}. {what}{separator}{next}\n"))
    };
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn wants_html(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().any(|accept| accept.to_str().is_ok_and(|accept| accept.contains("text/html")))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

/// RFC 9209.
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reason_from_outside_can_not_become_markup() {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("text/html,*/*"));
        let response = refusal(&headers, &Refusal::new(RefusalKind::Denied, "<script>alert(1)</script>"));
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert!(!String::from_utf8_lossy(&body).contains("<script"));
    }

    #[test]
    fn only_this_machines_browser_sees_the_proxys_own_pages() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 1080));
        for (host, status) in [("localhost:1080", 200), ("127.0.0.1", 200), ("[::1]:1080", 200), ("evil.example", 403), ("10.0.0.1", 403)] {
            let request = Request::get("/").header("host", host).body(()).expect("a request");
            assert_eq!(own(&request, listen, true).status(), status, "{host}");
        }
    }
}
