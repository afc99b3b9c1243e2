//! Rejects requests that the app could read differently, that are too large, or whose origin is not allowed.
//!
//! Invariant: [`check`] rejects before any byte is forwarded. hyper has already rejected what it cannot parse.

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::Authority;
use http::{Method, Request, StatusCode, Version};

use super::body::RequestBodyError;
use super::headers;
use crate::config::{AllowedOrigins, Limits};
use crate::metrics::Rejected;

/// A request that is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rejection {
    pub(super) status: StatusCode,
    pub(super) reason: Rejected,
    /// The body of the response.
    pub(super) text: &'static str,
    /// `Retry-After`, in seconds.
    pub(super) retry_after: Option<u64>,
}

/// Extension of a request whose Content-Length hyper has dropped, since it also had a Transfer-Encoding.
#[derive(Clone, Copy, Debug)]
pub struct DroppedLength;

/// `Retry-After`, in seconds, when `limits.sessions` is reached: some will have ended.
const SESSIONS_RETRY_AFTER_SECONDS: u64 = 5;

impl Rejection {
    /// For a handshake above the client's rate; the next is allowed after `wait`.
    pub(super) fn of_rate(wait: Duration) -> Self {
        let text = "429 Too Many Requests: too many websocket handshakes from your address\n";
        let rejection = rejection(StatusCode::TOO_MANY_REQUESTS, Rejected::HandshakesPerSecond, text);
        // In whole seconds (RFC 9110 §10.2.3), never too few.
        Self { retry_after: Some(wait.as_secs() + 1), ..rejection }
    }

    /// For a request that no route matches.
    pub(super) fn of_route() -> Self {
        let text = "404 Not Found: no route for this host and path\n";
        rejection(StatusCode::NOT_FOUND, Rejected::Route, text)
    }

    /// For a handshake when `limits.sessions` is reached.
    pub(super) fn of_sessions() -> Self {
        let text = "503 Service Unavailable: too many sessions\n";
        let rejection = rejection(StatusCode::SERVICE_UNAVAILABLE, Rejected::Sessions, text);
        Self { retry_after: Some(SESSIONS_RETRY_AFTER_SECONDS), ..rejection }
    }

    /// For a request whose body is incomplete.
    pub(super) fn of_body(error: &RequestBodyError) -> Self {
        match error {
            RequestBodyError::Broken(_) => {
                let text = "400 Bad Request: incomplete request body\n";
                rejection(StatusCode::BAD_REQUEST, Rejected::Framing, text)
            }
            RequestBodyError::Paused(_) => {
                let text = "408 Request Timeout: the request body took too long\n";
                rejection(StatusCode::REQUEST_TIMEOUT, Rejected::Timeout, text)
            }
        }
    }
}

/// Whether a request may be forwarded.
///
/// # Errors
/// The response that it gets instead; its connection is then closed.
pub(super) fn check<B>(request: &Request<B>, limits: &Limits, origins: &AllowedOrigins) -> Result<(), Rejection> {
    method(request.method())?;
    size(request, limits)?;
    host(request)?;
    framing(request)?;
    expectation(request.headers())?;
    handshake(request, origins)
}

const fn rejection(status: StatusCode, reason: Rejected, text: &'static str) -> Rejection {
    Rejection { status, reason, text, retry_after: None }
}

/// CONNECT and TRACE have no meaning behind a reverse proxy (RFC 9110 §9.3.6, §9.3.8).
fn method(method: &Method) -> Result<(), Rejection> {
    if matches!(*method, Method::CONNECT | Method::TRACE) {
        let text = "405 Method Not Allowed: CONNECT and TRACE are not supported\n";
        return Err(rejection(StatusCode::METHOD_NOT_ALLOWED, Rejected::Method, text));
    }
    Ok(())
}

fn size<B>(request: &Request<B>, limits: &Limits) -> Result<(), Rejection> {
    let target = request.uri().to_string().len();
    if target > limits.uri_bytes {
        let text = "414 URI Too Long\n";
        return Err(rejection(StatusCode::URI_TOO_LONG, Rejected::Size, text));
    }
    // Plus 4 as on the wire: colon, space and CRLF.
    let header: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if header > limits.header_bytes {
        let text = "431 Request Header Fields Too Large\n";
        return Err(rejection(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Rejected::Size, text));
    }
    Ok(())
}

/// Exactly one valid host, which the target does not contradict (RFC 9112 §3.2). `Host` is optional in HTTP/1.0.
fn host<B>(request: &Request<B>) -> Result<(), Rejection> {
    const INVALID_HOST: Rejection = rejection(
        StatusCode::BAD_REQUEST,
        Rejected::Host,
        "400 Bad Request: exactly one valid Host is required, and the target must match it\n",
    );
    let target = request.uri();
    if target.authority().is_some() && target.scheme().is_none() {
        return Err(INVALID_HOST);
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().map_err(|_not_ascii| INVALID_HOST)?,
        (None, _) if request.version() == Version::HTTP_10 => return Ok(()),
        _ => return Err(INVALID_HOST),
    };
    let valid = host.parse::<Authority>().is_ok() && !host.contains('@');
    let agrees = target.authority().is_none_or(|authority| authority.as_str().eq_ignore_ascii_case(host));
    if valid && agrees { Ok(()) } else { Err(INVALID_HOST) }
}

/// A length that all parsers read alike (RFC 9112 §6). hyper drops a length beside chunked coding.
fn framing<B>(request: &Request<B>) -> Result<(), Rejection> {
    let headers = request.headers();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let has_length =
        headers.contains_key(header::CONTENT_LENGTH) || request.extensions().get::<DroppedLength>().is_some();
    let chunked_or_none = match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked") && !has_length,
        (Some(_), Some(_)) => false,
    };
    // Over HTTP/1.1 hyper has merged equal ones.
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let representable = match (lengths.next(), lengths.next()) {
        (None, _) => true,
        (Some(length), None) => length.to_str().is_ok_and(|length| length.parse::<i64>().is_ok()),
        (Some(_), Some(_)) => false,
    };
    if chunked_or_none && representable {
        return Ok(());
    }
    let text = "400 Bad Request: ambiguous body length\n";
    Err(rejection(StatusCode::BAD_REQUEST, Rejected::Framing, text))
}

/// RFC 9110 §10.1.1 defines one expectation.
fn expectation(headers: &HeaderMap) -> Result<(), Rejection> {
    let known =
        headers.get_all(header::EXPECT).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if known {
        return Ok(());
    }
    let text = "417 Expectation Failed\n";
    Err(rejection(StatusCode::EXPECTATION_FAILED, Rejected::Expectation, text))
}

/// A websocket request must follow RFC 6455 §4.1 and have an allowed origin. The app checks its version.
fn handshake<B>(request: &Request<B>, origins: &AllowedOrigins) -> Result<(), Rejection> {
    if !headers::is_websocket_request(request.headers()) {
        return Ok(());
    }
    let keys = request.headers().get_all(header::SEC_WEBSOCKET_KEY).iter().count();
    if request.method() != Method::GET || request.version() != Version::HTTP_11 || keys != 1 {
        let text = "400 Bad Request: a websocket handshake needs GET, HTTP/1.1 and one Sec-WebSocket-Key\n";
        return Err(rejection(StatusCode::BAD_REQUEST, Rejected::Handshake, text));
    }
    let origin = request.headers().get(header::ORIGIN).map(HeaderValue::as_bytes);
    if !origins.allow(origin) {
        let text = "403 Forbidden: this origin may not open websockets\n";
        return Err(rejection(StatusCode::FORBIDDEN, Rejected::Origin, text));
    }
    Ok(())
}
