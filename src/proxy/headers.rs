//! Changes the header fields that a proxy must change; all others pass byte for byte.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version};
use http_body::Body;

use crate::config::TrustedProxies;
use crate::session::trace::REQUEST_ID;

/// Fields that concern one connection only (RFC 9110 §7.6.1).
pub const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Fields kept even if `Connection` names them: without them the request would have another meaning.
const PROTECTED: [HeaderName; 12] = [
    header::HOST,
    header::AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::ORIGIN,
    FORWARDED_FOR,
    FORWARDED_PROTO,
    FORWARDED_HOST,
    REQUEST_ID,
];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Whether a request is a websocket handshake (RFC 6455 §4.1): `Connection` names `Upgrade`, which names `websocket`.
pub(super) fn is_websocket_request(headers: &HeaderMap) -> bool {
    has_token(headers, &header::CONNECTION, "upgrade") && has_token(headers, &header::UPGRADE, "websocket")
}

/// Removes hop-by-hop fields, including those that `Connection` names. A chunked body stays chunked.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap, has_body: bool) {
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter(|token| !HOP_BY_HOP.iter().any(|name| token.eq_ignore_ascii_case(name.as_str())))
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| !PROTECTED.contains(name) && !is_handshake(name))
        .collect();
    let chunked = has_body && has_token(headers, &header::TRANSFER_ENCODING, "chunked");
    let trailers = has_token(headers, &header::TE, "trailers");
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    if chunked {
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if trailers {
        // RFC 9110 §10.1.4: a sender of TE names it in Connection.
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("TE"));
    }
}

/// A response has a transfer coding that its client would not decode.
#[derive(Debug, thiserror::Error)]
#[error("the response has a transfer coding other than chunked")]
pub(super) struct UnknownCoding;

/// Adapts an app's response to the client's hop: its version, and at most one field that frames its body.
///
/// Chunked coding overrides a length (RFC 9112 §6.3), and equal lengths become one. hyper has rejected other lengths,
/// except where no body follows; those are removed.
///
/// # Errors
/// The body has a coding other than `chunked`. No request asked for one (RFC 9112 §7.4), and the client may not accept
/// it. So this is a 502, as with nginx and Envoy.
pub(super) fn normalize_response<B: Body>(response: &mut Response<B>) -> Result<(), UnknownCoding> {
    *response.version_mut() = Version::HTTP_11;
    let (has_body, has_length) = (!response.body().is_end_stream(), response.status() != StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let length = match (codings.next(), codings.next()) {
        (None, _) => content_length(headers).filter(|_length| has_length),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => None,
        _ if has_body => return Err(UnknownCoding),
        _ => None,
    };
    remove_hop_by_hop(headers, has_body);
    match length {
        Some(length) => _ = headers.insert(header::CONTENT_LENGTH, length.into()),
        None => _ = headers.remove(header::CONTENT_LENGTH),
    }
    Ok(())
}

/// The length that all lines agree on.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    let digits = |length: &&str| length.bytes().all(|byte| byte.is_ascii_digit());
    let mut lengths = tokens(headers, &header::CONTENT_LENGTH).map(|length| Some(length).filter(digits)?.parse().ok());
    let length = lengths.next()?;
    length.filter(|_length| lengths.all(|other| other == length))
}

/// Like [`remove_hop_by_hop`], but keeps the websocket upgrade of a request or a 101.
pub(super) fn keep_upgrade(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers, false);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// The `Sec-WebSocket-Protocol` lines of a handshake or its answer.
pub(super) fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|line| line.to_str().ok())
}

/// Sets X-Forwarded-*: appends to a trusted peer's values, replaces anyone else's. `scheme` is the one that the peer
/// uses.
pub(super) fn add_forwarded(headers: &mut HeaderMap, peer: IpAddr, trusted: bool, scheme: &'static str) {
    let foreign: Vec<HeaderName> =
        headers.keys().filter(|name| is_twin(name) || (!trusted && is_forwarded(name))).cloned().collect();
    for name in foreign {
        headers.remove(name);
    }
    let mut path = Vec::new();
    for value in headers.get_all(&FORWARDED_FOR) {
        path.extend_from_slice(value.as_bytes());
        path.extend_from_slice(b", ");
    }
    path.extend_from_slice(peer.to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&path) {
        headers.insert(FORWARDED_FOR, value);
    }
    headers.entry(FORWARDED_PROTO).or_insert_with(|| HeaderValue::from_static(scheme));
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
}

/// The client that a trusted peer names: the right-most untrusted address in `X-Forwarded-For`, since anyone can write
/// those before it. `None` if there is none: a trusted proxy is not a client.
pub(super) fn client(headers: &HeaderMap, trusted: &TrustedProxies) -> Option<IpAddr> {
    // A hop that is not an IP address ends the search: client unknown.
    let is_end = |hop: &Option<IpAddr>| hop.is_none_or(|hop| !trusted.contains(hop));
    tokens(headers, &FORWARDED_FOR).rev().map(hop_address).find(is_end).flatten()
}

/// The address of a hop. Some proxies add the port.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let bare = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    hop.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip())).or_else(bare)
}

/// Whether a field describes the request before a proxy forwarded it (RFC 7239, and its predecessors).
fn is_forwarded(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-forwarded-") || *name == header::FORWARDED || name == "x-real-ip"
}

/// Whether a field equals such a one if underscores are read as dashes (RFC 3875 §4.1.18). No proxy sends these.
fn is_twin(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.contains('_') && name.replace('_', "-").parse().is_ok_and(|name| is_forwarded(&name))
}

/// Websocket handshake fields, which pass even if `Connection` names them.
fn is_handshake(name: &HeaderName) -> bool {
    name.as_str().starts_with("sec-websocket-")
}

fn has_token(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let mut lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.any(|line| line.split(',').any(|token| token.trim_ascii().eq_ignore_ascii_case(wanted)))
}

/// The comma-separated tokens of all lines of a field.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim_ascii)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_websocket_request_needs_both_connection_and_upgrade() {
        assert!(is_websocket_request(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")])));
        assert!(!is_websocket_request(&headers(&[("connection", "keep-alive"), ("upgrade", "websocket")])));
        assert!(!is_websocket_request(&headers(&[("connection", "upgrade"), ("upgrade", "h2c")])));
    }

    #[test]
    fn hop_by_hop_fields_are_removed_and_protected_ones_kept() {
        let mut map = headers(&[
            ("connection", "X-One-Hop, Cookie, host, close"),
            ("keep-alive", "timeout=5"),
            ("x-one-hop", "1"),
            ("cookie", "a=b"),
            ("host", "app"),
            ("te", "trailers, deflate"),
            ("upgrade", "h2c"),
        ]);
        remove_hop_by_hop(&mut map, false);
        assert_eq!(map, headers(&[("cookie", "a=b"), ("host", "app"), ("te", "trailers"), ("connection", "TE")]));
    }

    #[test]
    fn forwarded_fields_are_extended_for_trusted_peers_and_replaced_for_others() {
        let received = [("host", "app"), ("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "https")];
        let peer = "198.51.100.7".parse().expect("an address");
        let mut map = headers(&received);
        add_forwarded(&mut map, peer, true, "http");
        assert_eq!(map["x-forwarded-for"], "192.0.2.1, 198.51.100.7");
        assert_eq!(map["x-forwarded-proto"], "https");
        assert_eq!(map["x-forwarded-host"], "app");
        let mut map = headers(&received);
        map.extend(headers(&[("x-forwarded-port", "1"), ("forwarded", "for=1"), ("x-real-ip", "1")]));
        add_forwarded(&mut map, peer, false, "http");
        let expected = [("host", "app"), ("x-forwarded-for", "198.51.100.7"), ("x-forwarded-proto", "http")];
        assert_eq!(map, headers(&[&expected[..], &[("x-forwarded-host", "app")]].concat()));
        let mut map = headers(&[("host", "app"), ("x-forwarded-proto", "http")]);
        add_forwarded(&mut map, peer, false, "https");
        assert_eq!(map["x-forwarded-proto"], "https");
    }

    #[test]
    fn the_client_is_the_last_hop_that_is_not_a_trusted_proxy() {
        let trusted = TrustedProxies::default();
        let named = |path: &'static str| {
            client(&headers(&[("x-forwarded-for", path)]), &trusted).map(|client| client.to_string())
        };
        for (path, expected) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("198.51.100.9, 192.0.2.1, 10.0.0.1", Some("192.0.2.1")),
            ("unknown, 192.0.2.1:4711,10.0.0.1", Some("192.0.2.1")),
            ("[2001:db8::7]:443, ::1", Some("2001:db8::7")),
            ("[2001:db8::7]", Some("2001:db8::7")),
            ("10.1.1.1, 10.0.0.1", None),
            ("192.0.2.1, unknown, 10.0.0.1", None),
            (" ,, ", None),
        ] {
            assert_eq!(named(path).as_deref(), expected, "{path}");
        }
        assert_eq!(client(&headers(&[]), &trusted), None);
        let lines = headers(&[("x-forwarded-for", "192.0.2.1"), ("x-forwarded-for", "10.0.0.1")]);
        assert_eq!(client(&lines, &trusted), Some("192.0.2.1".parse().expect("an address")), "lines form one list");
    }

    #[test]
    fn forwarded_fields_with_underscores_are_removed_for_all_peers() {
        for trusted in [true, false] {
            let mut map =
                headers(&[("x_forwarded_for", "1"), ("x-forwarded_proto", "1"), ("x_real_ip", "1"), ("x_own", "1")]);
            add_forwarded(&mut map, "192.0.2.1".parse().expect("an address"), trusted, "http");
            let left: Vec<_> = map.keys().map(HeaderName::as_str).filter(|name| name.contains('_')).collect();
            assert_eq!(left, ["x_own"]);
        }
    }
}
