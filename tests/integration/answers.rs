//! Framing and HTTP version of an app's responses, as each kind of client receives them; and the sidecar's own bodies.

use std::fs;
use std::path::Path;

use http::Request;

use crate::support::http2::{Browser, whole};
use crate::support::tls::{Pki, Sides};
use crate::support::{App, Sidecar, handshake, soon, switching};

/// The kind of request that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// HTTP/1.1 with this method.
    Http1(&'static str),
    /// HTTP/2 with this method.
    Http2(&'static str),
    /// A websocket handshake: the connection's first request, or a later one.
    Handshake { first: bool },
}

use Client::{Handshake, Http1, Http2};

const WITH_BODY: [Client; 4] = [Http1("GET"), Http2("GET"), Handshake { first: true }, Handshake { first: false }];
const HEAD: [Client; 2] = [Http1("HEAD"), Http2("HEAD")];
const GET: [Client; 2] = [Http1("GET"), Http2("GET")];

/// The response that a client received.
#[derive(Debug)]
struct Answer {
    /// The status line's version; empty in HTTP/2.
    version: String,
    status: u16,
    lengths: Vec<String>,
    codings: Vec<String>,
    body: Vec<u8>,
}

/// An app and a sidecar for each version of HTTP.
struct Scene {
    pki: Pki,
    app: App,
    plain: Sidecar,
    encrypted: Sidecar,
}

impl Scene {
    async fn new() -> Self {
        let (pki, app) = (Pki::new(), App::bind().await);
        let mut config = app.config();
        let plain = Sidecar::start(config.clone()).await;
        pki.configure(Sides::Browser, &mut config);
        let encrypted = Sidecar::start(config).await;
        Self { pki, app, plain, encrypted }
    }

    /// What this client receives when the app sends `answer` and closes.
    async fn answer(&self, client: Client, answer: &str) -> Answer {
        match client {
            Http2(method) => self.answer_in_http2(method, answer).await,
            Http1(_) | Handshake { .. } => self.answer_in_http1(client, answer).await,
        }
    }

    async fn upstream(&self, answer: &str) {
        let mut upstream = self.app.accept().await;
        upstream.head().await;
        upstream.send(answer).await;
    }

    async fn answer_in_http1(&self, client: Client, answer: &str) -> Answer {
        let used = client == Handshake { first: false };
        let mut browser = if used { self.plain.connect_used(&self.app).await } else { self.plain.connect().await };
        browser
            .send(match client {
                Http1(method) | Http2(method) => format!("{method} / HTTP/1.1\r\nHost: app.test\r\n\r\n"),
                Handshake { .. } => handshake("/_stcore/stream", ""),
            })
            .await;
        self.upstream(answer).await;
        let head = browser.head().await;
        browser.finish().await;
        let body = browser.rest().await.unwrap();
        let fields = |name: &str| -> Vec<String> {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).collect()
        };
        let codings = fields("transfer-encoding");
        let body = if codings.is_empty() { body } else { dechunked(&body) };
        let (version, rest) = head.split_once(' ').unwrap();
        let status = rest[..3].parse().unwrap();
        Answer { version: version.to_owned(), status, lengths: fields("content-length"), codings, body }
    }

    async fn answer_in_http2(&self, method: &str, answer: &str) -> Answer {
        let mut browser = Browser::connect(&self.pki, self.encrypted.address).await;
        let request = Request::builder().method(method).uri("https://app.test/").body(()).unwrap();
        let (response, ()) = tokio::join!(browser.ask(request), self.upstream(answer));
        let mut response = response.unwrap();
        let body = whole(response.body_mut()).await.unwrap();
        let fields = |name: &str| -> Vec<String> {
            response.headers().get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
        };
        Answer {
            version: String::new(),
            status: response.status().as_u16(),
            lengths: fields("content-length"),
            codings: fields("transfer-encoding"),
            body,
        }
    }
}

/// Decodes a chunked body.
fn dechunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let at = rest.windows(2).position(|two| two == b"\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
        if size == 0 {
            assert_eq!(&rest[at..], b"\r\n\r\n", "nothing behind the last chunk");
            return body;
        }
        body.extend_from_slice(&rest[at + 2..][..size]);
        rest = &rest[at + 2 + size + 2..];
    }
}

const CHUNKS: &str = "5\r\nwhole\r\n0\r\n\r\n";

/// A table row: the app's response, and the length that clients receive.
struct Row {
    /// The app's header fields, without the empty line.
    fields: &'static str,
    body: &'static str,
    length: Option<&'static str>,
}

#[tokio::test]
async fn a_body_reaches_every_client_however_the_app_frames_it() {
    let scene = Scene::new().await;
    let rows = [
        ("Content-Length: 5\r\n", "whole", Some("5")),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "whole", Some("5")),
        ("Content-Length: 5, 5\r\n", "whole", Some("5")),
        ("Content-Length: 0\r\n", "", Some("0")),
        ("Transfer-Encoding: chunked\r\n", CHUNKS, None),
        ("Transfer-Encoding: ChunKed\r\n", CHUNKS, None),
        // RFC 9112 §6.3: chunked overrides Content-Length.
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", CHUNKS, None),
        ("Content-Length: 99\r\nTransfer-Encoding: chunked\r\n", CHUNKS, None),
        ("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", CHUNKS, None),
        ("Transfer-Encoding: chunked\r\nContent-Length: 1\r\nContent-Length: none\r\n", CHUNKS, None),
        ("", "whole", None),
    ];
    for (fields, body, length) in rows {
        let row = Row { fields, body, length };
        for client in WITH_BODY {
            passes(&scene, client, &row).await;
        }
    }
}

async fn passes(scene: &Scene, client: Client, row: &Row) {
    let Row { fields, body, length } = row;
    let status = if matches!(client, Handshake { .. }) { 403 } else { 200 };
    let got = scene.answer(client, &format!("HTTP/1.1 {status} As You Like\r\n{fields}\r\n{body}")).await;
    assert_eq!(got.status, status, "{client:?} of {fields:?}: {got:?}");
    let content: &[u8] = if body.is_empty() { b"" } else { b"whole" };
    assert_eq!(got.body, content, "{client:?} of {fields:?}: {got:?}");
    assert_eq!(got.lengths.first().map(String::as_str), *length, "{client:?} of {fields:?}: {got:?}");
    assert!(got.lengths.len() <= 1, "{client:?} of {fields:?}: {got:?}");
    let chunked: &[&str] = if length.is_none() && !matches!(client, Http2(_)) { &["chunked"] } else { &[] };
    assert_eq!(got.codings, chunked, "{client:?} of {fields:?}: {got:?}");
}

#[tokio::test]
async fn a_response_with_an_invalid_length_or_unsupported_coding_is_a_502() {
    let scene = Scene::new().await;
    let answers = [
        ("1.1", "Content-Length: 5\r\nContent-Length: 6\r\n", "whole"),
        ("1.1", "Content-Length: 5, 6\r\n", "whole"),
        ("1.1", "Content-Length: +5\r\n", "whole"),
        ("1.1", "Content-Length: \r\n", "whole"),
        // No request allows these codings (RFC 9112 §7.4), and the client would not see them.
        ("1.1", "Transfer-Encoding: gzip, chunked\r\n", CHUNKS),
        ("1.1", "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", CHUNKS),
        ("1.1", "Transfer-Encoding: gzip\r\n", "whole"),
        ("1.1", "Transfer-Encoding: gzip\r\nContent-Length: 5\r\n", "whole"),
        ("1.1", "Transfer-Encoding: chunked, gzip\r\n", "whole"),
        ("1.1", "Transfer-Encoding: chunked, chunked\r\n", CHUNKS),
        ("1.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", CHUNKS),
        ("1.1", "Transfer-Encoding: \r\n", "whole"),
        ("1.0", "Transfer-Encoding: chunked\r\n", CHUNKS),
    ];
    for (version, fields, body) in answers {
        for client in WITH_BODY {
            let status = if matches!(client, Handshake { .. }) { 403 } else { 200 };
            let answer = format!("HTTP/{version} {status} As You Like\r\n{fields}\r\n{body}");
            let got = scene.answer(client, &answer).await;
            assert_eq!(got.status, 502, "{client:?} of {fields:?}: {got:?}");
        }
    }
}

#[tokio::test]
async fn a_response_without_a_body_has_at_most_one_length_and_no_coding() {
    let scene = Scene::new().await;
    let rows = [
        (&HEAD, "200 OK", "Content-Length: 5\r\n", Some("5")),
        (&HEAD, "200 OK", "Content-Length: 5\r\nContent-Length: 5\r\n", Some("5")),
        (&HEAD, "200 OK", "Content-Length: 5, 5\r\n", Some("5")),
        (&HEAD, "200 OK", "Content-Length: 5, 6\r\n", None),
        (&HEAD, "200 OK", "Content-Length: many\r\n", None),
        (&HEAD, "200 OK", "Transfer-Encoding: chunked\r\n", None),
        (&HEAD, "200 OK", "Transfer-Encoding: gzip, chunked\r\n", None),
        (&HEAD, "200 OK", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", None),
        (&HEAD, "200 OK", "", None),
        (&GET, "204 No Content", "Content-Length: 0\r\n", None),
        (&GET, "204 No Content", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", None),
        (&GET, "304 Not Modified", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", None),
        (&GET, "304 Not Modified", "Transfer-Encoding: gzip\r\n", None),
        (&GET, "304 Not Modified", "Content-Length: 5, 6\r\n", None),
    ];
    for (clients, status, fields, length) in rows {
        for &client in clients {
            let got = scene.answer(client, &format!("HTTP/1.1 {status}\r\n{fields}\r\n")).await;
            assert_eq!(got.status, status[..3].parse::<u16>().unwrap(), "{client:?} of {fields:?}: {got:?}");
            assert_eq!(got.lengths, Vec::from_iter(length), "{client:?} of {fields:?}: {got:?}");
            assert!(got.codings.is_empty() && got.body.is_empty(), "{client:?} of {fields:?}: {got:?}");
        }
    }
}

/// RFC 9112 §2.3: the version is per hop.
#[tokio::test]
async fn responses_of_an_http_1_0_app_are_passed_on_as_http_1_1() {
    let scene = Scene::new().await;
    for (fields, body, length) in [("Content-Length: 5\r\n", "whole", Some("5")), ("", "whole", None)] {
        for client in [Http1("GET"), Handshake { first: true }, Handshake { first: false }] {
            let status = if matches!(client, Handshake { .. }) { 403 } else { 200 };
            let got = scene.answer(client, &format!("HTTP/1.0 {status} As You Like\r\n{fields}\r\n{body}")).await;
            assert_eq!((got.version.as_str(), got.status), ("HTTP/1.1", status), "{client:?}: {got:?}");
            assert_eq!(got.lengths, Vec::from_iter(length), "{client:?}: {got:?}");
            assert_eq!(got.body, b"whole", "{client:?}: {got:?}");
        }
    }
}

#[tokio::test]
async fn a_101_of_an_http_1_0_app_is_passed_on_as_http_1_1() {
    let (app, sidecar) = Sidecar::with_app().await;
    for first in [true, false] {
        let mut browser = if first { sidecar.connect().await } else { sidecar.connect_used(&app).await };
        browser.send(handshake("/_stcore/stream", "")).await;
        let mut upstream = app.accept().await;
        upstream.head().await;
        upstream.send(switching("").replacen("HTTP/1.1", "HTTP/1.0", 1)).await;
        let head = browser.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        upstream.send(b"\x81\x02ho").await;
        soon(browser.expect(b"\x81\x02ho")).await;
    }
}

/// The string literals of a source file that are response bodies: those with a status or a line feed.
fn bodies(file: &Path) -> Vec<String> {
    let source = fs::read_to_string(file).unwrap();
    let has_status =
        |text: &str| text.split_once(' ').is_some_and(|(code, _)| matches!(code.parse::<u16>(), Ok(400..600)));
    let is_body = |text: &&str| has_status(text) || (text.ends_with("\\n") && !text.contains("\\r"));
    let texts = source.lines().filter_map(|line| line.trim_start().split('"').find(is_body));
    texts.map(|text| text.trim_end_matches("\\n").to_owned()).filter(|text| !text.contains('{')).collect()
}

#[test]
fn every_response_of_the_sidecar_itself_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/http.md")).unwrap();
    let files = ["proxy/admission", "proxy/response", "proxy/upgrade", "proxy/watchdog", "server/overload"];
    let files = files.into_iter().chain(["server/tls", "server/admin/pages"]);
    let bodies: Vec<_> = files.flat_map(|file| bodies(&root.join("src").join(file).with_extension("rs"))).collect();
    assert!(bodies.len() >= 30, "only {bodies:?}");
    let missing: Vec<_> = bodies.iter().filter(|body| !page.contains(&format!("`{body}`"))).collect();
    assert!(missing.is_empty(), "not in docs/http.md: {missing:?}");
}
