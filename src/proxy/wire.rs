//! Reads and writes typical websocket handshakes without hyper (RFC 9112 §2 to §5).
//!
//! These are a request for a websocket, and a 101, that arrive whole. With hyper alone a handshake takes 1.2 to 1.3
//! times the CPU time, 1.3 to 1.6 times that of HAProxy. `read_handshake` and `read_switch` are the choice: what they
//! do not return, hyper reads.
//!
//! Invariant: the bytes that are sent are those that hyper would send.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use httparse::Status;
use hyper::ext::ReasonPhrase;

use super::body::{RequestBody, ResponseBody};
use super::headers;

/// The most fields of a head; one with more goes to hyper, which accepts 100.
const MAX_FIELDS: usize = 64;

/// Capacity for fields that the proxy adds.
const ADDED_FIELDS: usize = 8;
const ADDED_BYTES: usize = 256;

/// A head as it was read; an extension of its message.
#[derive(Clone, Debug)]
struct Head {
    bytes: Bytes,
    /// The positions of its fields' names.
    names: Vec<Range<usize>>,
}

/// The websocket request at the start of `bytes`, and the length of its head; `None` if there is none, or it is
/// incomplete.
pub fn read_handshake(bytes: &Bytes) -> Option<(Request<RequestBody>, usize)> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let Ok(Status::Complete(length)) = parsed.parse_with_uninit_headers(bytes, &mut fields) else { return None };
    let target = parsed.path.filter(|target| target.starts_with('/'))?;
    // hyper writes a request's empty field without a space.
    let has_empty = parsed.headers.iter().any(|field| field.value.is_empty());
    if parsed.method != Some("GET") || parsed.version != Some(1) || has_empty {
        return None;
    }
    let (headers, head) = read_fields(bytes, parsed.headers)?;
    if !headers::is_websocket_request(&headers) {
        return None;
    }
    let mut request = Request::new(RequestBody::default());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = Uri::from_maybe_shared(bytes.slice_ref(target.as_bytes())).ok()?;
    *request.headers_mut() = headers;
    request.extensions_mut().insert(head);
    Some((request, length))
}

/// The head of a request to forward; `None` if hyper has read it.
pub(super) fn write_handshake<B>(request: &Request<B>) -> Option<Vec<u8>> {
    let head = request.extensions().get::<Head>()?;
    let target = request.uri().path_and_query()?.as_str();
    Some(head.write(&["GET ", target, " HTTP/1.1"].map(str::as_bytes), request.headers()))
}

/// The 101 at the start of `bytes`, and the length of its head; `None` if there is none, or it is incomplete.
pub(super) fn read_switch(bytes: &Bytes) -> Option<(Response<ResponseBody>, usize)> {
    if !bytes.starts_with(b"HTTP/1.1 101") {
        return None;
    }
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let read = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields);
    let Ok(Status::Complete(length)) = read else { return None };
    let (headers, head) = read_fields(bytes, parsed.headers)?;
    let mut response = Response::new(ResponseBody::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    response.extensions_mut().insert(head);
    let reason = bytes.slice_ref(parsed.reason?.as_bytes());
    response.extensions_mut().insert(ReasonPhrase::try_from(reason).ok()?);
    Some((response, length))
}

/// The head of a 101 to forward; `None` if hyper has read it.
pub fn write_switch<B>(response: &Response<B>) -> Option<Vec<u8>> {
    let head = response.extensions().get::<Head>()?;
    let reason = response.extensions().get::<ReasonPhrase>()?;
    Some(head.write(&[b"HTTP/1.1 101 ", reason.as_bytes()], response.headers()))
}

/// The fields of a head; `None` if they announce a body, or are invalid, which hyper reports.
fn read_fields(bytes: &Bytes, fields: &[httparse::Header<'_>]) -> Option<(HeaderMap, Head)> {
    let mut headers = HeaderMap::with_capacity(fields.len() + ADDED_FIELDS);
    let mut names = Vec::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        if name == header::CONTENT_LENGTH || name == header::TRANSFER_ENCODING {
            return None;
        }
        headers.append(name, HeaderValue::from_maybe_shared(bytes.slice_ref(field.value)).ok()?);
        let start = field.name.as_ptr().addr() - bytes.as_ptr().addr();
        names.push(start..start + field.name.len());
    }
    Some((headers, Head { bytes: bytes.clone(), names }))
}

impl Head {
    /// A head of the same message with this first line and these fields, their names spelled as received.
    fn write(&self, line: &[&[u8]], headers: &HeaderMap) -> Vec<u8> {
        let mut head = Vec::with_capacity(self.bytes.len() + ADDED_BYTES);
        line.iter().for_each(|part| head.extend_from_slice(part));
        let names: Vec<&[u8]> = self.names.iter().map(|name| &self.bytes[name.clone()]).collect();
        let (mut last, mut left) = (None, names.iter());
        for (name, value) in headers {
            // A repeated name may be spelled differently each time.
            if last != Some(name) {
                (last, left) = (Some(name), names.iter());
            }
            let name = name.as_str().as_bytes();
            let written = left.find(|written| written.eq_ignore_ascii_case(name)).copied().unwrap_or(name);
            [b"\r\n", written, b": ", value.as_bytes()].iter().for_each(|part| head.extend_from_slice(part));
        }
        head.extend_from_slice(b"\r\n\r\n");
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "GET /_stcore/stream?a=b HTTP/1.1\r\nHost: app\r\ncOnnection: keep-alive, Upgrade\r\n\
        Upgrade: websocket\r\nX-Twice: 1\r\nx-tWice:  2 \r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    const SWITCH: &str = "HTTP/1.1 101 As You Like\r\nServer: TornadoServer/6.5\r\nupGrade: websocket\r\n\
        Connection: Upgrade\r\nSec-Websocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    fn handshake(text: &str) -> Option<(Request<RequestBody>, usize)> {
        read_handshake(&Bytes::copy_from_slice(text.as_bytes()))
    }

    fn switch(text: &str) -> Option<(Response<ResponseBody>, usize)> {
        read_switch(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn a_head_is_written_as_it_was_read() {
        let (request, length) = handshake(&format!("{REQUEST}\x02\x00")).expect("a handshake");
        assert_eq!((length, request.headers()["x-twice"].as_bytes()), (REQUEST.len(), &b"1"[..]));
        assert_eq!(request.uri(), "/_stcore/stream?a=b");
        let written = write_handshake(&request).expect("it was read here");
        assert_eq!(written.escape_ascii().to_string(), REQUEST.replace("  2 ", " 2").escape_default().to_string());
        let (response, length) = switch(&format!("{SWITCH}\x02\x00")).expect("a 101");
        assert_eq!((length, response.status().as_u16()), (SWITCH.len(), 101));
        let written = write_switch(&response).expect("it was read here");
        assert_eq!(written.escape_ascii().to_string(), SWITCH.escape_default().to_string());
    }

    #[test]
    fn fields_can_be_added_removed_and_replaced() {
        let (mut request, _length) = handshake(REQUEST).expect("a handshake");
        *request.uri_mut() = Uri::from_static("/elsewhere");
        request.headers_mut().remove("x-twice");
        request.headers_mut().insert("host", HeaderValue::from_static("other"));
        request.headers_mut().insert("x-own", HeaderValue::from_static("1"));
        let written = String::from_utf8(write_handshake(&request).expect("it was read here")).expect("text");
        let (line, fields) = written.split_once("\r\n").expect("lines");
        assert_eq!(line, "GET /elsewhere HTTP/1.1");
        let mut fields: Vec<_> = fields.strip_suffix("\r\n\r\n").expect("an end").split("\r\n").collect();
        fields.sort_unstable();
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
        assert_eq!(fields, ["Host: other", key, "Upgrade: websocket", "cOnnection: keep-alive, Upgrade", "x-own: 1"]);
    }

    #[test]
    fn a_bare_line_feed_is_written_as_crlf() {
        let (response, _length) = switch(&SWITCH.replace("\r\n", "\n")).expect("a 101");
        let written = write_switch(&response).expect("it was read here");
        assert_eq!(written.escape_ascii().to_string(), SWITCH.escape_default().to_string());
    }

    #[test]
    fn an_incomplete_head_is_not_read() {
        for cut in 0..REQUEST.len() {
            assert!(handshake(&REQUEST[..cut]).is_none(), "{cut}");
        }
        for cut in 0..SWITCH.len() {
            assert!(switch(&SWITCH[..cut]).is_none(), "{cut}");
        }
    }

    #[test]
    fn everything_else_is_left_to_hyper() {
        let with = |field: &str| REQUEST.replacen("Host", &format!("{field}\r\nHost"), 1);
        let many = "X-Many: 1\r\n".repeat(MAX_FIELDS) + "X-Many: 1";
        let requests = [
            REQUEST.replace("GET", "POST"),
            REQUEST.replace("HTTP/1.1", "HTTP/1.0"),
            REQUEST.replace("/_stcore", "http://app/_stcore"),
            REQUEST.replace("/_stcore/stream?a=b", "*"),
            REQUEST.replace("/_stcore", "/\u{7f}"),
            REQUEST.replace("Upgrade: websocket", "Upgrade: h2c"),
            REQUEST.replace("keep-alive, Upgrade", "keep-alive"),
            REQUEST.replace("X-Twice:", "X-Twice :"),
            REQUEST.replace("X-Twice: 1\r\n", "X-Twice: 1\r\n folded\r\n"),
            with("Content-Length: 0"),
            with("transfer-encoding: chunked"),
            with("X-Bad: \u{1}"),
            with("X-Empty: "),
            with(&many),
        ];
        for request in requests {
            assert!(handshake(&request).is_none(), "{request}");
        }
        let answers = [
            SWITCH.replace("101", "200"),
            SWITCH.replace("101", "103"),
            SWITCH.replace("101 ", "1010 "),
            SWITCH.replace("HTTP/1.1", "HTTP/1.0"),
            format!("\r\n{SWITCH}"),
            SWITCH.replace("Server:", "Content-Length: 0\r\nServer:"),
            SWITCH.replace("Server:", "Server :"),
        ];
        for answer in answers {
            assert!(switch(&answer).is_none(), "{answer}");
        }
        assert!(write_handshake(&Request::new(())).is_none());
        assert!(write_switch(&Response::new(())).is_none());
    }
}
