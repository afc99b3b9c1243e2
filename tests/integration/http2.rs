//! HTTP/2 under TLS: requests reach the app as HTTP/1.1, the same rejections apply, and no connection stays for ever.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use bytes::Bytes;
use heartbeat_sidecar::config::Config;
use http::{Method, Request, StatusCode};

use crate::support::http2::{
    Browser, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, fields, frame, get,
    request, whole,
};
use crate::support::tls::{Pki, Sides};
use crate::support::{App, Sidecar, Wire, soon};

const MIB: usize = 1 << 20;
/// Short to keep tests fast; nothing fails if it takes longer.
const SHORT: Duration = Duration::from_millis(300);
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PROTOCOL_ERROR: [u8; 4] = [0, 0, 0, 1];
const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 11];
/// `:status: 400` in HPACK (RFC 7541 Appendix A).
const BAD_REQUEST: u8 = 0x8c;

struct Scene {
    pki: Pki,
    app: App,
    sidecar: Sidecar,
}

impl Scene {
    async fn new() -> Self {
        Self::with(|_config| {}).await
    }

    async fn with(settings: impl FnOnce(&mut Config)) -> Self {
        let (pki, app) = (Pki::new(), App::bind().await);
        let mut config = app.config();
        pki.configure(Sides::Browser, &mut config);
        settings(&mut config);
        let sidecar = Sidecar::start(config).await;
        Self { pki, app, sidecar }
    }

    async fn browser(&self) -> Browser {
        Browser::connect(&self.pki, self.sidecar.address).await
    }

    async fn frames(&self) -> Frames {
        Frames::connect(&self.pki, self.sidecar.address).await
    }

    async fn rejected(&self, reason: &str) -> f64 {
        self.sidecar.metric("rejections_total", &[("reason", reason)]).await
    }

    /// The head of a request as the app receives it; the app answers 200.
    async fn forwarded(&self, browser: &mut Browser, request: Request<()>) -> String {
        let (answer, head) = tokio::join!(browser.ask(request), async {
            let mut upstream = self.app.accept().await;
            let head = upstream.head().await;
            upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
            head
        });
        let mut answer = answer.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(whole(answer.body_mut()).await.unwrap(), b"ok");
        head
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[tokio::test]
async fn http_2_is_used_only_if_the_client_offers_it_by_alpn() {
    let scene = Scene::new().await;
    for (offered, chosen) in [
        (&[&b"h2"[..], b"http/1.1"][..], Some(&b"h2"[..])),
        (&[b"http/1.1", b"h2"], Some(b"h2")),
        (&[b"http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let stream = scene.pki.offer(scene.sidecar.address, offered).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen);
        if chosen == Some(b"h2") {
            continue;
        }
        let mut browser = Wire::new(stream);
        browser.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
        let mut upstream = scene.app.accept().await;
        upstream.head().await;
        upstream.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await;
        assert!(browser.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    // Other clients get no HTTP/2, even after its preface.
    let (_app, plain) = Sidecar::with_app().await;
    let mut browser = plain.connect().await;
    browser.send(PREFACE).await;
    assert_eq!(browser.rest().await.unwrap(), b"");
    let mut browser = Wire::new(scene.pki.offer(scene.sidecar.address, &[b"http/1.1"]).await);
    browser.send(PREFACE).await;
    assert_eq!(browser.rest().await.unwrap(), b"");
    assert_eq!(scene.rejected("malformed").await + plain.metric("rejections_total", &[]).await, 2.0);
}

#[tokio::test]
async fn http_2_can_be_disabled() {
    let scene = Scene::with(|config| config.tls.http2 = false).await;
    let stream = scene.pki.offer(scene.sidecar.address, &[b"h2", b"http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[tokio::test]
async fn the_app_receives_an_http_2_request_as_http_1_1() {
    let scene = Scene::new().await;
    let mut browser = scene.browser().await;
    let request = Request::get("https://App.Test:8501/a/b?c=%20d")
        .header("cookie", "a=1")
        .header("x-two", "1")
        .header("cookie", "b=2; c=3")
        .header("x-two", "2")
        .header("cookie", "d=4")
        .header("te", "trailers")
        .header("x-forwarded-for", "192.0.2.1")
        .header("x-bytes", http::HeaderValue::from_bytes(b"\xe4").unwrap());
    let head = scene.forwarded(&mut browser, request.body(()).unwrap()).await;
    let mut lines: Vec<_> = head.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "GET /a/b?c=%20d HTTP/1.1");
    let id = lines.iter().position(|line| line.starts_with("x-request-id: ")).unwrap();
    assert_eq!(lines.remove(id).len(), "x-request-id: ".len() + 32);
    lines.sort_unstable();
    let expected = [
        "connection: TE",
        "cookie: a=1; b=2; c=3; d=4",
        "host: App.Test:8501",
        "te: trailers",
        "x-bytes: \u{e4}",
        "x-forwarded-for: 192.0.2.1, 127.0.0.1",
        "x-forwarded-host: App.Test:8501",
        "x-forwarded-proto: https",
        "x-two: 1",
        "x-two: 2",
    ];
    assert_eq!(lines, expected);
    assert_eq!(scene.sidecar.metric("http_requests_total", &[("code", "2xx")]).await, 1.0);
}

#[tokio::test]
async fn http_2_paths_pass_unchanged_except_for_fragments_and_a_missing_slash() {
    let scene = Scene::new().await;
    let (mut frames, mut upstreams) = (scene.frames().await, Vec::new());
    for (stream, (path, line)) in [
        ("/", "GET / HTTP/1.1"),
        ("/a//b/../c;d?", "GET /a//b/../c;d? HTTP/1.1"),
        ("?q", "GET /?q HTTP/1.1"),
        ("#gone", "GET / HTTP/1.1"),
        ("//b.test/x", "GET //b.test/x HTTP/1.1"),
        ("*", "GET * HTTP/1.1"),
    ]
    .into_iter()
    .enumerate()
    {
        let block = fields(&[(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", path)]);
        frames.0.send(frame(HEADERS, END_STREAM | END_HEADERS, stream as u32 * 2 + 1, block)).await;
        let mut upstream = scene.app.accept().await;
        let head = upstream.head().await;
        assert!(head.starts_with(&format!("{line}\r\n")) && head.contains("host: a\r\n"), "{path}: {head}");
        upstreams.push(upstream);
    }
}

#[tokio::test]
async fn hop_by_hop_fields_of_the_apps_response_are_removed() {
    let scene = Scene::new().await;
    let mut browser = scene.browser().await;
    let (answer, ()) = tokio::join!(browser.ask(get("/")), async {
        let mut upstream = scene.app.accept().await;
        upstream.head().await;
        let hop =
            "Connection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nUpgrade: h2c\r\nTE: trailers\r\n";
        upstream
            .send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n{hop}X-App: 1\r\n\r\n"))
            .await;
        upstream.send("2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n").await;
    });
    let mut answer = answer.unwrap();
    let names: Vec<_> = answer.headers().keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["x-app", "trailer", "date"]);
    assert_eq!(whole(answer.body_mut()).await.unwrap(), b"ok");
    let trailers = soon(answer.body_mut().trailers()).await.unwrap().unwrap();
    assert_eq!(trailers["x-sum"], "7");
}

#[tokio::test]
async fn bodies_of_known_and_unknown_length_reach_the_app_with_any_method() {
    let scene = Scene::new().await;
    let mut browser = scene.browser().await;
    for (method, length, framing) in [
        (Method::POST, Some("5"), "content-length: 5\r\n"),
        (Method::POST, None, "transfer-encoding: chunked\r\n"),
        (Method::GET, None, "transfer-encoding: chunked\r\n"),
        (Method::DELETE, None, "transfer-encoding: chunked\r\n"),
    ] {
        let mut request = Request::builder().method(method).uri("https://app.test/");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let (answer, mut body) = browser.begin(request.body(()).unwrap());
        body.send_data("hello".into(), true).unwrap();
        let mut upstream = scene.app.accept().await;
        let head = upstream.head().await;
        assert!(
            head.contains(framing) && head.matches("chunked").count() + head.matches("length").count() == 1,
            "{head}"
        );
        upstream.expect(if length.is_some() { "hello" } else { "5\r\nhello\r\n0\r\n\r\n" }).await;
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
        assert_eq!(whole(answer.await.unwrap().body_mut()).await.unwrap(), b"ok");
    }
}

#[tokio::test]
async fn concurrent_large_bodies_pass_unchanged() {
    let scene = Scene::new().await;
    let mut browser = scene.browser().await;
    let (up, down) = (pattern(5 * MIB + 7), pattern(6 * MIB + 1));
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", down.len());
    let (mut apps, mut browsers) = (Vec::new(), Vec::new());
    for _stream in 0..4 {
        let request = Request::post("https://app.test/").header("content-length", up.len()).body(()).unwrap();
        let (answer, mut body) = browser.begin(request);
        let (up, down) = (Bytes::from(up.clone()), down.clone());
        browsers.push(tokio::spawn(async move {
            body.send_data(up, true).unwrap();
            let came = whole(answer.await.unwrap().body_mut()).await.unwrap();
            assert!(came == down);
        }));
    }
    for _stream in 0..4 {
        let (mut upstream, up, answer) = (scene.app.accept().await, up.clone(), [head.as_bytes(), &down].concat());
        apps.push(tokio::spawn(async move {
            upstream.head().await;
            assert!(upstream.exactly(up.len()).await == up);
            upstream.send(answer).await;
        }));
    }
    for task in apps.into_iter().chain(browsers) {
        soon(task).await.unwrap();
    }
}

#[tokio::test]
async fn an_app_that_reads_nothing_blocks_only_that_request() {
    let scene = Scene::new().await;
    let mut browser = scene.browser().await;
    let (_answer, mut body) = browser.begin(Request::post("https://app.test/").body(()).unwrap());
    let mut upstream = scene.app.accept().await;
    upstream.head().await;
    body.reserve_capacity(64 * MIB);
    let mut sent = 0;
    // No event shows that the window stays closed.
    while let Ok(capacity) = tokio::time::timeout(SHORT, std::future::poll_fn(|cx| body.poll_capacity(cx))).await {
        let piece = capacity.unwrap().unwrap();
        body.send_data(vec![7; piece].into(), false).unwrap();
        sent += piece;
        assert!(sent < 32 * MIB, "32 MiB were accepted");
    }
    assert!(sent >= MIB, "{sent}");
    scene.forwarded(&mut browser, get("/")).await;
    // What was accepted arrives; chunk headers count here too.
    let chunks = tokio::spawn(async move { upstream.exactly(sent).await });
    assert!(soon(chunks).await.unwrap().len() == sent);
}

#[tokio::test]
async fn a_browser_that_reads_nothing_blocks_only_that_request() {
    let scene = Scene::new().await;
    let mut browser = scene.browser().await;
    let answer = browser.ask(get("/"));
    let mut upstream = scene.app.accept().await;
    upstream.head().await;
    let length = 64 * MIB;
    upstream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await;
    let mut writing = tokio::spawn(async move {
        soon(tokio::io::AsyncWriteExt::write_all(&mut upstream.stream, &vec![7; length])).await.unwrap();
    });
    let mut answer = answer.await.unwrap();
    assert!(soon(answer.body_mut().data()).await.unwrap().is_ok(), "the response is streamed");
    // No event shows that a writer waits for ever.
    assert!(tokio::time::timeout(SHORT, &mut writing).await.is_err(), "all 64 MiB written");
    scene.forwarded(&mut browser, get("/")).await;
    drop(answer);
    assert!(soon(writing).await.is_err(), "the app's write must fail after the reset");
}

#[tokio::test]
async fn requests_that_http_1_1_rejects_are_rejected_and_counted_alike() {
    let scene = Scene::with(|config| config.limits.header_bytes = 8 * 1024).await;
    let mut browser = scene.browser().await;
    let builder = |uri: &str| Request::builder().uri(uri.to_owned());
    let long = "x".repeat(20 * 1024);
    for (request, status, reason) in [
        (builder("https://a.test/").header("host", "b.test"), 400, "host"),
        (builder("https://u@a.test/"), 400, "host"),
        (builder("https://a.test/").method(Method::TRACE), 405, "method"),
        (builder("a.test:443").method(Method::CONNECT), 405, "method"),
        (builder(&format!("https://a.test/{}", &long[..17 * 1024])), 414, "size"),
        (builder("https://a.test/").header("x-long", &long[..9 * 1024]), 431, "size"),
        (builder("https://a.test/").header("expect", "a-miracle"), 417, "expectation"),
        (
            builder("https://a.test/").method(Method::POST).header("content-length", "0").header("content-length", "0"),
            400,
            "framing",
        ),
    ] {
        let before = scene.rejected(reason).await;
        let request = request.body(()).unwrap();
        let told = format!("{request:?}");
        let answer = browser.ask(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{told}");
        assert!(!answer.headers().contains_key("connection"));
        assert_eq!(scene.rejected(reason).await, before + 1.0, "{told}");
    }
    // A far too large header is rejected before it is parsed.
    let answer =
        browser.ask(builder("https://a.test/").header("x-long", &long).header("x-longer", &long).body(()).unwrap());
    assert_eq!(answer.await.unwrap().status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert!(scene.app.is_untouched());
    // The connection still works.
    scene.forwarded(&mut browser, get("/")).await;
}

/// h2 counts 32 bytes for each field; its own limit must not be narrower.
#[tokio::test]
async fn size_limits_are_exact_to_the_byte_for_a_header_of_many_fields() {
    let (uri_bytes, header_bytes) = (256, 1024);
    let scene = Scene::with(|config| {
        (config.limits.uri_bytes, config.limits.header_bytes) = (uri_bytes, header_bytes);
    })
    .await;
    let mut browser = scene.browser().await;
    let request = |target: usize, header: usize| {
        // Four bytes for each field besides its name and value; the authority counts as a host field.
        let many = (10..99).map(|number| format!("{number}"));
        let rest = header - ("host".len() + "a.test".len() + 4) - 89 * (2 + 4) - ("x".len() + 4);
        let path = "p".repeat(target - 1);
        let request = Request::builder().uri(format!("https://a.test/{path}")).header("x", "v".repeat(rest));
        many.fold(request, |request, name| request.header(name, "")).body(()).unwrap()
    };
    scene.forwarded(&mut browser, request(uri_bytes, header_bytes)).await;
    for (request, status) in [(request(uri_bytes + 1, header_bytes), 414), (request(uri_bytes, header_bytes + 1), 431)]
    {
        assert_eq!(browser.ask(request).await.unwrap().status().as_u16(), status);
    }
    assert_eq!(scene.rejected("size").await, 2.0);
}

#[tokio::test]
async fn a_request_without_authority_or_host_is_rejected() {
    let scene = Scene::new().await;
    let mut frames = scene.frames().await;
    let block = fields(&[(":method", "GET"), (":scheme", "https"), (":path", "/")]);
    frames.0.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, block)).await;
    let (_stream, payload) = frames.until(HEADERS).await;
    assert_eq!(payload[0], BAD_REQUEST);
    assert_eq!(scene.rejected("host").await, 1.0);
    let block = fields(&[(":method", "GET"), (":scheme", "https"), (":path", "/"), ("host", "App.test")]);
    frames.0.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, block)).await;
    assert!(scene.app.accept().await.head().await.contains("host: App.test\r\n"));
}

#[tokio::test]
async fn requests_that_http_2_forbids_never_reach_the_app() {
    let scene = Scene::new().await;
    let mut frames = scene.frames().await;
    let bad: Vec<Vec<u8>> = [
        &[("connection", "close")][..],
        &[("connection", "upgrade"), ("upgrade", "websocket")],
        &[("transfer-encoding", "chunked")],
        &[("transfer-encoding", "chunked"), ("content-length", "0")],
        &[("content-length", "0"), ("transfer-encoding", "chunked")],
        &[("transfer-encoding", "identity")],
        &[("keep-alive", "timeout=5")],
        &[("proxy-connection", "close")],
        &[("te", "gzip")],
        &[("Cookie", "a=b")],
        &[("x", "a\r\nb: c")],
        &[("x", "a\0b")],
        &[("x y", "a")],
        &[("content-length", "5")],
        &[("content-length", "x")],
        &[("content-length", "0"), ("content-length", "1")],
        &[(":path", "/twice")],
        &[("x", "1"), (":status", "200")],
        &[(":protocol", "websocket")],
    ]
    .into_iter()
    .map(request)
    .chain([
        fields(&[(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "")]),
        fields(&[(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "b")]),
        fields(&[(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/a b")]),
        fields(&[(":method", "GET"), (":scheme", "https"), (":authority", "a b"), (":path", "/")]),
        fields(&[(":method", "GET"), (":authority", "a"), (":path", "/")]),
        fields(&[(":scheme", "https"), (":authority", "a"), (":path", "/")]),
        fields(&[
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":authority", "a"),
            (":path", "/_stcore/stream"),
        ]),
    ])
    .collect();
    let mut told = 0;
    for (at, block) in bad.iter().enumerate() {
        let stream = at as u32 * 2 + 1;
        frames.0.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, block)).await;
        loop {
            let (kind, answered, payload) = frames.next().await;
            match kind {
                RST_STREAM => {
                    assert_eq!((answered, &payload[..]), (stream, &PROTOCOL_ERROR[..]), "{}", block.escape_ascii())
                }
                // An invalid header block ends the connection (RFC 7541 §5.2); extended CONNECT is answered.
                GOAWAY => frames = scene.frames().await,
                HEADERS => assert!(block.windows(7).any(|window| window == b"CONNECT"), "{}", block.escape_ascii()),
                _ => continue,
            }
            told += 1;
            break;
        }
    }
    assert_eq!(told, bad.len());
    assert!(scene.app.is_untouched());
}

#[tokio::test]
async fn a_body_that_differs_from_its_content_length_is_aborted_at_the_app() {
    for body in ["shor", "too long"] {
        let scene = Scene::new().await;
        let mut frames = scene.frames().await;
        let block = fields(&[
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "a"),
            (":path", "/"),
            ("content-length", "5"),
        ]);
        frames.0.send(frame(HEADERS, END_HEADERS, 1, block)).await;
        let mut upstream = scene.app.accept().await;
        upstream.head().await;
        frames.0.send(frame(DATA, END_STREAM, 1, body)).await;
        let (_stream, code) = frames.until(RST_STREAM).await;
        assert_eq!(code, PROTOCOL_ERROR);
        let came = upstream.rest().await.unwrap_or_default();
        assert!(came.len() < 5, "{body}: {}", came.escape_ascii());
    }
}

#[tokio::test]
async fn a_body_that_pauses_too_long_gets_a_408_and_other_requests_continue() {
    let scene = Scene::with(|config| config.limits.body_timeout = SHORT).await;
    let mut browser = scene.browser().await;
    let (answer, mut body) = browser.begin(Request::post("https://app.test/").body(()).unwrap());
    body.send_data("the first part".into(), false).unwrap();
    let mut upstream = scene.app.accept().await;
    upstream.head().await;
    assert_eq!(answer.await.unwrap().status(), StatusCode::REQUEST_TIMEOUT);
    let _end_or_reset = upstream.rest().await;
    assert_eq!(scene.rejected("timeout").await, 1.0);
    scene.forwarded(&mut browser, get("/")).await;
}

#[tokio::test]
async fn a_truncated_response_is_not_delivered_as_complete() {
    let scene = Scene::new().await;
    let mut browser = scene.browser().await;
    for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        let answer = browser.ask(get("/"));
        let mut upstream = scene.app.accept().await;
        upstream.head().await;
        upstream.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n2\r\n")).await;
        drop(upstream);
        // The reset may drop data in transit.
        let broken = match answer.await {
            Ok(mut answer) => whole(answer.body_mut()).await.is_err(),
            Err(_reset) => true,
        };
        assert!(broken, "{framing}");
    }
}

#[tokio::test]
async fn websockets_over_http_2_are_not_offered() {
    let scene = Scene::new().await;
    let mut frames = scene.frames().await;
    let (_stream, settings) = frames.until(SETTINGS).await;
    let said: Vec<_> = settings.chunks(6).map(|setting| (setting[1], setting[2..].to_vec())).collect();
    // No SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441 §3); SETTINGS_MAX_CONCURRENT_STREAMS is 100 (RFC 9113 §6.5.2).
    assert!(!said.is_empty() && said.iter().all(|(name, _value)| *name != 8), "{said:?}");
    assert!(said.contains(&(3, vec![0, 0, 0, 100])), "{said:?}");
}

#[tokio::test]
async fn a_flood_of_requests_that_are_reset_at_once_ends_the_connection() {
    let scene = Scene::new().await;
    let mut frames = scene.frames().await;
    let storm: Vec<u8> = (0..1000)
        .flat_map(|at| {
            let stream = at * 2 + 1;
            let begun = frame(HEADERS, END_STREAM | END_HEADERS, stream, request(&[]));
            [begun, frame(RST_STREAM, 0, stream, [0, 0, 0, 8])].concat()
        })
        .collect();
    frames.0.send(storm).await;
    let (_stream, payload) = frames.until(GOAWAY).await;
    assert_eq!(payload[4..8], ENHANCE_YOUR_CALM);
    scene.sidecar.until("rejections_total", &[("reason", "malformed")], 1.0).await;
    scene.sidecar.until("client_connections", &[], 0.0).await;
}

#[tokio::test]
async fn an_endless_header_block_ends_the_connection() {
    let scene = Scene::new().await;
    let mut frames = scene.frames().await;
    let mut flood = frame(HEADERS, END_STREAM, 1, request(&[]));
    for _piece in 0..100 {
        flood.extend(frame(9, 0, 1, fields(&[("x", &"y".repeat(8000))])));
    }
    let all = async {
        let _may_be_cut = tokio::io::AsyncWriteExt::write_all(&mut frames.0.stream, &flood).await;
    };
    soon(all).await;
    let _reset_or_end = frames.0.rest().await;
    scene.sidecar.until("client_connections", &[], 0.0).await;
    assert!(scene.app.is_untouched());
    assert_eq!(scene.rejected("malformed").await, 1.0);
}

#[tokio::test]
async fn only_connections_without_an_open_request_close_after_idle_timeout() {
    let scene = Scene::with(|config| config.limits.idle_timeout = SHORT).await;
    let mut browser = scene.browser().await;
    // Busy for longer than idle_timeout, then with a response that alone takes longer.
    let begun = Instant::now();
    while begun.elapsed() < SHORT * 2 {
        scene.forwarded(&mut browser, get("/")).await;
    }
    let answer = browser.ask(get("/"));
    let mut upstream = scene.app.accept().await;
    upstream.head().await;
    // Meanwhile a later connection without a request is closed.
    scene.browser().await.ended().await.unwrap();
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok").await;
    let mut answer = answer.await.unwrap();
    scene.browser().await.ended().await.unwrap();
    upstream.send("ok").await;
    assert_eq!(whole(answer.body_mut()).await.unwrap(), b"okok");
    drop(answer);
    browser.ended().await.unwrap();
    scene.sidecar.until("client_connections", &[], 0.0).await;
    assert_eq!(scene.sidecar.metric("rejections_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_client_that_never_completes_a_request_is_disconnected() {
    let scene = Scene::with(|config| config.limits.idle_timeout = SHORT).await;
    for said in [&b""[..], &PREFACE[..10], &[PREFACE, &frame(SETTINGS, 0, 0, []), &frame(HEADERS, 0, 1, [])].concat()] {
        let mut silent = Wire::new(scene.pki.offer(scene.sidecar.address, &[b"h2"]).await);
        silent.send(said).await;
        let _end_or_reset = silent.rest().await;
    }
    scene.sidecar.until("client_connections", &[], 0.0).await;
}

#[tokio::test]
async fn a_drain_sends_goaway_and_finishes_open_requests() {
    let mut scene = Scene::new().await;
    let (mut busy, idle) = (scene.browser().await, scene.browser().await);
    let answer = busy.ask(get("/"));
    let mut upstream = scene.app.accept().await;
    upstream.head().await;
    scene.sidecar.stop();
    idle.ended().await.unwrap();
    upstream.send(OK).await;
    let mut answer = answer.await.unwrap();
    assert!(!answer.headers().contains_key("connection"), "{:?}", answer.headers());
    assert_eq!(whole(answer.body_mut()).await.unwrap(), b"ok");
    drop(answer);
    busy.ended().await.unwrap();
    scene.sidecar.stopped().await;
}

#[tokio::test]
async fn concurrent_requests_over_limits_connections_wait() {
    let scene = Scene::with(|config| config.limits.connections = NonZeroUsize::new(3)).await;
    let mut browser = scene.browser().await;
    let answers: Vec<_> = (0..20).map(|_request| tokio::spawn(browser.ask(get("/")))).collect();
    let mut upstreams = Vec::new();
    for _place in 0..3 {
        upstreams.push(scene.app.accept().await);
    }
    assert_eq!(scene.sidecar.metric("client_connections", &[]).await, 3.0);
    for upstream in &mut upstreams {
        upstream.head().await;
    }
    assert!(scene.app.is_untouched(), "requests over the limit wait");
    let apps: Vec<_> = upstreams
        .into_iter()
        .map(|mut upstream| {
            tokio::spawn(async move {
                upstream.send(OK).await;
                let mut served = 1;
                while let Ok(_more) = tokio::time::timeout(SHORT, upstream.head()).await {
                    upstream.send(OK).await;
                    served += 1;
                }
                served
            })
        })
        .collect();
    for answer in answers {
        assert_eq!(answer.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    let mut served = 0;
    for app in apps {
        served += soon(app).await.unwrap_or_default();
    }
    assert_eq!(served, 20);
    scene.sidecar.until("client_connections", &[], 1.0).await;
}

#[tokio::test]
async fn concurrent_requests_count_against_connections_per_address() {
    let scene = Scene::with(|config| {
        config.limits.connections_per_address = NonZeroUsize::new(2);
        config.trusted_proxies = "192.0.2.0/24".parse().unwrap();
    })
    .await;
    let mut browser = scene.browser().await;
    let _answers: Vec<_> = (0..5).map(|_request| tokio::spawn(browser.ask(get("/")))).collect();
    let (mut first, mut second) = (scene.app.accept().await, scene.app.accept().await);
    first.head().await;
    second.head().await;
    assert!(scene.app.is_untouched());
}
