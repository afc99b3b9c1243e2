//! HTTP/2 under TLS: requests reach the app as HTTP/1.1, and bodies pass unchanged and without blocking each other.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};

use crate::support::http2::{END_HEADERS, END_STREAM, HEADERS, PREFACE, Scene, fields, frame, get, whole};
use crate::support::{Sidecar, Wire, pattern, soon};

const MIB: usize = 1 << 20;
/// Short to keep tests fast; nothing fails if it takes longer.
const SHORT: Duration = Duration::from_millis(300);

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
        let (answer, mut body) = browser.start(request.body(()).unwrap());
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
        let (answer, mut body) = browser.start(request);
        let (up, down) = (Bytes::from(up.clone()), down.clone());
        browsers.push(tokio::spawn(async move {
            body.send_data(up, true).unwrap();
            let received = whole(answer.await.unwrap().body_mut()).await.unwrap();
            assert!(received == down);
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
    let (_answer, mut body) = browser.start(Request::post("https://app.test/").body(()).unwrap());
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
    // No event shows that a write never ends.
    assert!(tokio::time::timeout(SHORT, &mut writing).await.is_err(), "all 64 MiB written");
    scene.forwarded(&mut browser, get("/")).await;
    drop(answer);
    assert!(soon(writing).await.is_err(), "the app's write must fail after the reset");
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
