//! Requests: for any bytes the app receives one unambiguous request, or nothing. A handshake parsed without hyper
//! is forwarded as if hyper had parsed it.
#![no_main]

use std::cell::{LazyCell, RefCell};
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use heartbeat_sidecar::{config, metrics, session};
use heartbeat_sidecar_fuzz::input::Input;
use http::{HeaderValue, Request, Response, Uri, Version, header};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

#[allow(unreachable_pub)]
#[path = "../../../src/proxy/admission.rs"]
#[allow(dead_code)]
mod admission;
#[path = "../../../src/proxy/body.rs"]
#[allow(dead_code, unreachable_pub)]
mod body;
#[path = "../../../src/proxy/headers.rs"]
#[allow(dead_code, unreachable_pub)]
mod headers;
#[path = "../../../src/proxy/wire.rs"]
#[allow(dead_code, unreachable_pub)]
mod wire;
use body::{RequestBody, ResponseBody};

const PEER: &str = "198.51.100.7";
const FORWARDED: [&str; 6] =
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-real-ip", "forwarded"];

thread_local! {
    /// Provides the clock for body timeouts, which never expire here.
    static RUNTIME: LazyCell<Runtime> =
        LazyCell::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime"));
}

/// A connection in memory: the peer's bytes, read in pieces, and the bytes written to it.
#[derive(Clone, Default)]
struct Wire(Rc<RefCell<Ends>>);

#[derive(Default)]
struct Ends {
    inbound: Vec<u8>,
    read: usize,
    sizes: [u8; 2],
    outbound: Vec<u8>,
}

impl Wire {
    /// Bytes moved in both directions.
    fn moved(&self) -> usize {
        let ends = self.0.borrow();
        ends.read + ends.outbound.len()
    }
}

impl Read for Wire {
    fn poll_read(self: Pin<&mut Self>, _cx: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut ends = self.0.borrow_mut();
        ends.sizes.rotate_left(1);
        let length = (1 + 16 * usize::from(ends.sizes[0])).min(buffer.remaining()).min(ends.inbound.len() - ends.read);
        if length == 0 {
            // No EOF: each end stays open until the other has finished.
            return Poll::Pending;
        }
        buffer.put_slice(&ends.inbound[ends.read..][..length]);
        ends.read += length;
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().outbound.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fuzz_target!(|bytes: &[u8]| RUNTIME.with(|runtime| {
    let _clock = runtime.enter();
    let mut input = Input::new(bytes);
    let (flags, sizes) = (input.byte(), [input.byte(), input.byte()]);
    let trusted = flags & 1 == 0;
    let inbound = input.rest().to_vec();
    let handshake = wire::read_handshake(&Bytes::copy_from_slice(&inbound));
    let browser = Wire(Rc::new(RefCell::new(Ends { inbound, sizes, ..Ends::default() })));
    let app = Wire::default();
    let passed = Rc::new(RefCell::new(None));
    drive(&browser, &app, trusted, &passed);
    let sent = &app.0.borrow().outbound;
    match passed.borrow().as_ref() {
        None => assert!(sent.is_empty(), "sent although rejected: {}", sent.escape_ascii()),
        Some(websocket) => check(sent, trusted, *websocket),
    }
    if let Some((request, _length)) = handshake {
        let written = forwarded(request, trusted).map(|(request, _)| wire::write_handshake(&request));
        let written = written.map(|head| head.expect("it was parsed from a head")).unwrap_or_default();
        assert_eq!(without_id(&written), without_id(sent));
    }
    // Tasks that drain unused bodies notice that their connections are closed.
    runtime.block_on(tokio::task::yield_now());
}));

/// The lines of a head without its request id. Trailing spaces are removed, because an empty value may have one.
fn without_id(head: &[u8]) -> Vec<String> {
    let lines = split(head, b"\r\n").into_iter().map(|line| line.trim_ascii_end().escape_ascii().to_string());
    lines.filter(|line| !line.to_ascii_lowercase().starts_with("x-request-id:")).collect()
}

/// Forwards one request as `proxy::Proxy` does, until no bytes move. `passed` is set to whether it opens a websocket.
fn drive(browser: &Wire, app: &Wire, trusted: bool, passed: &Rc<RefCell<Option<bool>>>) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut builder = hyper::client::conn::http1::Builder::new();
    let mut handshake = pin!(builder.preserve_header_case(true).handshake(app.clone()));
    let Poll::Ready(Ok((sender, connection))) = handshake.as_mut().poll(&mut cx) else {
        unreachable!("nothing to wait for")
    };
    let mut connection = pin!(connection);
    let sender = Rc::new(RefCell::new(sender));
    let service = service_fn(|request: Request<Incoming>| {
        let (sender, passed) = (sender.clone(), passed.clone());
        async move {
            if let Some((request, websocket)) = forwarded(request.map(RequestBody::from), trusted) {
                *passed.borrow_mut() = Some(websocket);
                let answer = sender.borrow_mut().send_request(request);
                let _no_answer_comes = answer.await;
            }
            let mut refusal = Response::new(ResponseBody::from(""));
            refusal.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            Ok::<_, Infallible>(refusal)
        }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    let serving = server.preserve_header_case(true).max_buf_size(80 * 1024).serve_connection(browser.clone(), service);
    let mut serving = pin!(serving);
    let (mut idle, mut served) = (0, false);
    while idle < 3 {
        let before = browser.moved() + app.moved();
        served = served || serving.as_mut().poll(&mut cx).is_ready();
        if passed.borrow().is_none() && served {
            return;
        }
        let _over = connection.as_mut().poll(&mut cx);
        idle = if browser.moved() + app.moved() == before { idle + 1 } else { 0 };
    }
}

/// The forwarded request, and whether it opens a websocket; `None` if it is rejected.
fn forwarded(mut request: Request<RequestBody>, trusted: bool) -> Option<(Request<RequestBody>, bool)> {
    admission::check(&request, &config::Limits::default(), &config::AllowedOrigins::default()).ok()?;
    let peer: IpAddr = PEER.parse().expect("an address");
    assert_client(request.headers());
    headers::add_forwarded(request.headers_mut(), peer, trusted, "http");
    session::trace::identify(request.headers_mut());
    let target = std::mem::take(request.uri_mut()).into_parts();
    let authority = target.authority.map_or_else(|| "localhost".to_owned(), |authority| authority.to_string());
    if let Ok(host) = HeaderValue::try_from(authority) {
        request.headers_mut().entry(header::HOST).or_insert(host);
    }
    let path = target.path_and_query.map(Uri::from).filter(|path| !path.path().is_empty());
    *request.uri_mut() = path.unwrap_or_default();
    let websocket = headers::is_websocket_request(request.headers());
    *request.version_mut() = Version::HTTP_11;
    let has_body = !hyper::body::Body::is_end_stream(request.body());
    if websocket {
        headers::keep_upgrade(request.headers_mut());
        return Some((request.map(|_body| RequestBody::default()), true));
    }
    headers::remove_hop_by_hop(request.headers_mut(), has_body);
    request.body_mut().pause_timeout = Duration::from_secs(60);
    Some((request, false))
}

/// Checks that the client is not a trusted proxy, and that earlier addresses in the header do not change it.
fn assert_client(headers: &http::HeaderMap) {
    let trusted = config::TrustedProxies::default();
    let Some(client) = headers::client(headers, &trusted) else { return };
    assert!(!trusted.contains(client));
    let mut spoofed = http::HeaderMap::new();
    spoofed.append("x-forwarded-for", HeaderValue::from_static("203.0.113.9, unknown, 10.0.0.1"));
    for line in headers.get_all("x-forwarded-for") {
        spoofed.append("x-forwarded-for", line.clone());
    }
    spoofed.append("x-forwarded-for", HeaderValue::from_static("10.0.0.1"));
    assert_eq!(headers::client(&spoofed, &trusted), Some(client));
}

/// Checks that the app receives one request, complete or not, in the strictest reading of RFC 9112.
fn check(sent: &[u8], trusted: bool, websocket: bool) {
    let end = sent.windows(4).position(|four| four == b"\r\n\r\n").expect("the head was sent");
    let (head, body) = (&sent[..end], &sent[end + 4..]);
    let shown = || head.escape_ascii();
    let mut lines = split(head, b"\r\n").into_iter();
    let line = lines.next().expect("there is a first line");
    let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let [method, target, b"HTTP/1.1"] = words[..] else { panic!("not a request line: {}", shown()) };
    assert!(is_token(method) && method != b"CONNECT" && method != b"TRACE", "{}", shown());
    assert!(target.starts_with(b"/") || target == b"*", "{}", shown());
    assert!(target.iter().all(|byte| !byte.is_ascii_control()), "{}", shown());
    let fields: Vec<(String, &[u8])> = lines.map(|line| field(line).unwrap_or_else(|| panic!("{}", shown()))).collect();
    let values =
        |wanted: &str| fields.iter().filter(|(name, _)| name == wanted).map(|(_, value)| *value).collect::<Vec<_>>();
    assert_eq!(values("host").len(), 1, "{}", shown());
    let clients = values("x-forwarded-for");
    assert!(clients.len() == 1 && clients[0].ends_with(PEER.as_bytes()), "{}", shown());
    assert!(trusted || clients[0] == PEER.as_bytes(), "{}", shown());
    let [id] = values("x-request-id")[..] else { panic!("not exactly one id: {}", shown()) };
    assert!((1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic), "{}", shown());
    for (name, _) in &fields {
        let twin = name.contains('_') && FORWARDED.contains(&&*name.replace('_', "-"));
        assert!(!twin && !["keep-alive", "proxy-connection"].contains(&&**name), "{name}: {}", shown());
    }
    let (connection, upgrade) = (values("connection"), values("upgrade"));
    if websocket {
        assert_eq!((&connection[..], &upgrade[..]), (&[&b"Upgrade"[..]][..], &[&b"websocket"[..]][..]), "{}", shown());
        assert_eq!(values("sec-websocket-key").len(), 1, "{}", shown());
    } else {
        assert!(upgrade.is_empty() && (connection.is_empty() || connection == [b"TE"]), "{}", shown());
    }
    let lengths = values("content-length");
    match (&lengths[..], &values("transfer-encoding")[..]) {
        ([], []) => assert!(body.is_empty(), "bytes after a request: {}", sent.escape_ascii()),
        ([length], []) => {
            assert!(length.iter().all(u8::is_ascii_digit), "{}", shown());
            let length: u64 = str::from_utf8(length).expect("digits").parse().expect("a length");
            assert!(body.len() as u64 <= length, "bytes after a request: {}", sent.escape_ascii());
        }
        ([], [b"chunked"]) => assert!(chunks(body), "not chunked: {}", sent.escape_ascii()),
        _ => panic!("ambiguous length: {}", shown()),
    }
}

fn split<'a>(bytes: &'a [u8], by: &[u8]) -> Vec<&'a [u8]> {
    let (mut parts, mut rest) = (Vec::new(), bytes);
    while let Some(at) = rest.windows(by.len()).position(|window| window == by) {
        parts.push(&rest[..at]);
        rest = &rest[at + by.len()..];
    }
    parts.push(rest);
    parts
}

/// Whether this is a token (RFC 9110 §5.6.2).
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// The lower-case name and the value of a field line (RFC 9110 §5.5).
fn field(line: &[u8]) -> Option<(String, &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    let valid = is_token(name) && value.iter().all(|byte| *byte == b'\t' || !byte.is_ascii_control());
    valid.then(|| (String::from_utf8_lossy(name).to_ascii_lowercase(), value))
}

/// Whether these are chunks without extensions (RFC 9112 §7.1), possibly incomplete, with nothing after the last.
fn chunks(mut body: &[u8]) -> bool {
    while !body.is_empty() {
        let Some(at) = body.windows(2).position(|two| two == b"\r\n") else {
            return body.iter().all(u8::is_ascii_hexdigit);
        };
        let (size, rest) = (&body[..at], &body[at + 2..]);
        if size.is_empty() || !size.iter().all(u8::is_ascii_hexdigit) {
            return false;
        }
        let Ok(size) = usize::from_str_radix(str::from_utf8(size).expect("digits"), 16) else { return false };
        if size == 0 {
            return trailers(rest);
        }
        let Some(next) = rest.get(size..) else { return true };
        if !(next.starts_with(b"\r\n") || b"\r\n".starts_with(next)) {
            return false;
        }
        body = next.get(2..).unwrap_or_default();
    }
    true
}

/// Whether this is a valid trailer section: fields that are harmless in a trailer, and an empty line.
fn trailers(rest: &[u8]) -> bool {
    let mut lines = split(rest, b"\r\n");
    let behind = lines.pop();
    behind == Some(b"")
        && lines.pop().is_none_or(<[u8]>::is_empty)
        && lines.into_iter().all(|line| {
            field(line).is_some_and(|(name, _)| !["content-length", "transfer-encoding", "host"].contains(&&*name))
        })
}
