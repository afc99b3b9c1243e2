//! HTTP/2 requests that are rejected: those that HTTP/1.1 rejects too, and those that only HTTP/2 can express.

use http::{Method, Request, StatusCode};

use crate::support::http2::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, Scene, fields, frame, get, request,
};

const PROTOCOL_ERROR: [u8; 4] = [0, 0, 0, 1];
/// `:status: 400` in HPACK (RFC 7541 Appendix A).
const BAD_REQUEST: u8 = 0x8c;

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
        let case = format!("{request:?}");
        let answer = browser.ask(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{case}");
        assert!(!answer.headers().contains_key("connection"));
        assert_eq!(scene.rejected(reason).await, before + 1.0, "{case}");
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

/// The header blocks of requests that HTTP/2 forbids.
fn forbidden_header_blocks() -> Vec<Vec<u8>> {
    [
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
    .collect()
}

#[tokio::test]
async fn requests_that_http_2_forbids_never_reach_the_app() {
    let scene = Scene::new().await;
    let mut frames = scene.frames().await;
    let bad = forbidden_header_blocks();
    let mut rejected = 0;
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
            rejected += 1;
            break;
        }
    }
    assert_eq!(rejected, bad.len());
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
        let received = upstream.rest().await.unwrap_or_default();
        assert!(received.len() < 5, "{body}: {}", received.escape_ascii());
    }
}

#[tokio::test]
async fn websockets_over_http_2_are_not_offered() {
    let scene = Scene::new().await;
    let mut frames = scene.frames().await;
    let (_stream, settings) = frames.until(SETTINGS).await;
    let settings: Vec<_> = settings.chunks(6).map(|setting| (setting[1], setting[2..].to_vec())).collect();
    // No SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441 §3); SETTINGS_MAX_CONCURRENT_STREAMS is 100 (RFC 9113 §6.5.2).
    assert!(!settings.is_empty() && settings.iter().all(|(name, _value)| *name != 8), "{settings:?}");
    assert!(settings.contains(&(3, vec![0, 0, 0, 100])), "{settings:?}");
}
