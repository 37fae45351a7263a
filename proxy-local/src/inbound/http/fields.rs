//! Header fields on their way through a proxy (RFC 9110 §7.6).

use hyper::{
    HeaderMap, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
        VIA,
    },
};

/// What a message's fields said of its one hop, before they were removed.
pub(super) struct Hop {
    /// The protocol that it wants to switch to.
    pub(super) upgrade: Option<HeaderValue>,
    /// Whether its sender reads trailers.
    pub(super) accepts_trailers: bool,
    /// Whether its body came in chunks.
    pub(super) is_chunked: bool,
}

/// Removes the fields that concern one hop alone, those that `Connection` names among them, and says what was there.
///
/// `Host` and `Content-Length` stay even if `Connection` names them: without them the next hop would read another message.
/// Where a body came in chunks, a `Content-Length` beside it is not to be trusted and goes (RFC 9112 §6.3).
pub(super) fn take_hop(headers: &mut HeaderMap) -> Hop {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION).filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok()).collect();
    let hop = Hop {
        upgrade: headers.get(UPGRADE).filter(|_| named.contains(&UPGRADE)).cloned(),
        accepts_trailers: tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers")),
        is_chunked: headers.contains_key(TRANSFER_ENCODING),
    };
    for name in named.iter().filter(|&name| name != HOST && name != CONTENT_LENGTH) {
        headers.remove(name);
    }
    for name in [CONNECTION, TE, TRANSFER_ENCODING, UPGRADE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, KEEP_ALIVE, PROXY_CONNECTION] {
        headers.remove(name);
    }
    if hop.is_chunked {
        headers.remove(CONTENT_LENGTH);
    }
    hop
}

/// Says that the message came through here.
pub(super) fn add_via(headers: &mut HeaderMap, received: Version) {
    let via = if received == Version::HTTP_10 { "1.0 tributary" } else { "1.1 tributary" };
    headers.append(VIA, HeaderValue::from_static(via));
}

/// Asks the next hop to switch to `protocol`, or says that it was done.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn fields_of_one_hop_are_removed_and_others_stay() {
        let mut fields = headers(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eA=="),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("cookie", "a=b"),
            ("trailer", "x-sum"),
        ]);
        let hop = take_hop(&mut fields);
        assert!(hop.accepts_trailers && !hop.is_chunked && hop.upgrade.is_none());
        let mut left: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["cookie", "trailer"]);
    }

    #[test]
    fn connection_can_not_take_the_framing_away() {
        let mut fields = headers(&[("connection", "host, content-length"), ("host", "a"), ("content-length", "3")]);
        take_hop(&mut fields);
        assert_eq!(fields.len(), 2);
    }

    #[test]
    fn a_length_beside_chunks_is_dropped() {
        let mut fields = headers(&[("transfer-encoding", "chunked"), ("content-length", "3")]);
        assert!(take_hop(&mut fields).is_chunked);
        assert!(fields.is_empty());
    }

    #[test]
    fn an_upgrade_counts_only_when_connection_names_it() {
        assert!(take_hop(&mut headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])).upgrade.is_some());
    }
}
