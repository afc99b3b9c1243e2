//! Which requests are rejected before the app receives a byte, and which are normalized.

use std::time::Duration;

use crate::support::http::refused;
use crate::support::{App, KEY, Sidecar, handshake, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: app.test\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: app.test\r\n";

/// The head of a request as the app receives it.
async fn forwarded(request: impl AsRef<[u8]>) -> String {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send(request).await;
    let head = app.accept().await.head().await;
    assert_eq!(sidecar.metric("rejections_total", &[]).await, 0.0);
    head
}

#[tokio::test]
async fn a_malformed_header_line_is_rejected() {
    for lines in
        ["X : 1\r\n", "X: 1\r\n 2\r\n", "X: a\0b\r\n", "X: a\x01b\r\n", "X: a\rb\r\n", "X(: a\r\n", ": a\r\n", "X\r\n"]
    {
        assert_eq!(refused(format!("{GET}{lines}\r\n"), "malformed").await, "400", "{lines:?}");
    }
}

#[tokio::test]
async fn bare_line_feeds_reach_the_app_as_crlf() {
    let head = forwarded("GET / HTTP/1.1\nHost: app.test\nX-One: 1\n\n").await;
    assert!(head.contains("\r\nX-One: 1\r\n") && !head.replace("\r\n", "").contains('\n'), "{head:?}");
}

#[tokio::test]
async fn a_request_needs_one_valid_host_that_matches_its_target() {
    for lines in ["\r\n", "Host: a\r\nHost: b\r\n\r\n", "Host: a b\r\n\r\n", "Host: a/b\r\n\r\n", "Host: u@a\r\n\r\n"] {
        assert_eq!(refused(format!("GET / HTTP/1.1\r\n{lines}"), "host").await, "400", "{lines:?}");
    }
    assert_eq!(refused("GET / HTTP/1.1\r\nHost:\r\n\r\n", "host").await, "400");
    assert_eq!(refused("GET / HTTP/1.1\r\nHost: \u{e4}\r\n\r\n", "host").await, "400");
    assert_eq!(refused("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "host").await, "400");
    for host in ["a", "A.b-c_d:8501", "192.0.2.1:1", "[::1]:8500"] {
        assert!(
            forwarded(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.contains(&format!("Host: {host}\r\n"))
        );
        let head = forwarded(format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert!(head.starts_with("GET /x HTTP/1.1\r\n"), "{head}");
    }
}

#[tokio::test]
async fn an_absolute_target_without_a_path_is_forwarded_as_the_root() {
    for target in ["http://a", "http://a#x", "http://a#?x/y"] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n");
        assert!(forwarded(format!("{request}\r\n")).await.starts_with("GET / HTTP/1.1\r\n"), "{target}");
        let websocket = handshake("/", "").replace("GET / HTTP/1.1\r\nHost: app.test\r\n", &request);
        assert!(forwarded(websocket).await.starts_with("GET / HTTP/1.1\r\n"), "{target}");
    }
}

#[tokio::test]
async fn connect_and_trace_get_405() {
    assert_eq!(refused("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "method").await, "405");
    assert_eq!(refused("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", "method").await, "405");
}

#[tokio::test]
async fn other_protocols_and_http_versions_are_rejected() {
    for request in [
        "GET /\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        "\x16\x03\x01\x02\x00\r\n",
    ] {
        assert_eq!(refused(request, "malformed").await, "400", "{request:?}");
    }
    assert_eq!(
        refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "malformed").await,
        "none",
        "an HTTP/2 client only receives EOF"
    );
}

#[tokio::test]
async fn headers_and_targets_over_their_limits_are_rejected() {
    let long = |length| "a".repeat(length);
    assert_eq!(refused(format!("{GET}X: {}\r\n\r\n", long(64 * 1024)), "size").await, "431");
    assert_eq!(refused(format!("{GET}X: {}\r\n\r\n", long(1 << 20)), "size").await, "431");
    assert_eq!(refused(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", long(16 * 1024)), "size").await, "414");
    let many: String = (0..100).map(|number| format!("X{number}: 1\r\n")).collect();
    assert_eq!(refused(format!("{GET}{many}\r\n"), "size").await, "431");
    forwarded(format!("{GET}X: {}\r\n\r\n", long(60_000))).await;
    forwarded(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", long(16_000))).await;
}

/// hyper, which reads requests, has its own limits, which must not be narrower.
#[tokio::test]
async fn size_limits_are_exact_to_the_byte_for_small_and_large_values() {
    let head = |target: usize, header: usize, lines: &str| {
        // `limits.header_bytes` counts names, values, and four bytes for each line.
        let counted: usize = lines.lines().map(|line| line.len() + 2).sum();
        let [target, value] = ["a".repeat(target - 1), "b".repeat(header - counted - "X".len() - 4)];
        format!("GET /{target} HTTP/1.1\r\n{lines}X: {value}\r\n\r\n")
    };
    let host = "Host: app.test\r\n";
    let key = format!("Sec-WebSocket-Key: {KEY}\r\n");
    let websocket = format!("{host}Connection: Upgrade\r\nUpgrade: websocket\r\n{key}");
    for (uri_bytes, header_bytes) in [(256, 1024), (2048, 4096), (16 * 1024, 64 * 1024), (65_534, 1 << 20)] {
        let app = App::bind().await;
        let mut config = app.config();
        (config.limits.uri_bytes, config.limits.header_bytes) = (uri_bytes, header_bytes);
        let sidecar = Sidecar::start(config).await;
        for lines in [host, &websocket] {
            for (target, header, refused) in [
                (uri_bytes, header_bytes, None),
                (uri_bytes + 1, header_bytes, Some("414")),
                (uri_bytes, header_bytes + 1, Some("431")),
            ] {
                let mut browser = sidecar.connect().await;
                browser.send(head(target, header, lines)).await;
                let Some(status) = refused else {
                    let head = app.accept().await.head().await;
                    assert!(head.starts_with("GET /aaa"), "{target} {header}: {head}");
                    continue;
                };
                let answer = browser.head().await;
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{target} {header}: {answer}");
                assert!(app.is_untouched());
            }
        }
    }
}

#[tokio::test]
async fn an_unknown_expectation_gets_417() {
    assert_eq!(refused(format!("{POST}Expect: 200-ok\r\nContent-Length: 1\r\n\r\na"), "expectation").await, "417");
}

#[tokio::test]
async fn an_invalid_websocket_handshake_is_rejected() {
    let good = handshake("/_stcore/stream", "");
    let key = format!("Sec-WebSocket-Key: {KEY}\r\n");
    for bad in [
        good.replace(&key, ""),
        good.replace(&key, &key.repeat(2)),
        good.replace("GET ", "POST "),
        good.replace("HTTP/1.1", "HTTP/1.0"),
    ] {
        assert_eq!(refused(&bad, "handshake").await, "400", "{bad}");
    }
    assert!(forwarded(good.replace("Version: 13", "Version: 12")).await.contains("Version: 12"), "the app checks it");
}

#[tokio::test]
async fn a_slow_header_and_a_paused_body_time_out() {
    let app = App::bind().await;
    let mut config = app.config();
    config.limits.idle_timeout = Duration::from_millis(100);
    config.limits.body_timeout = Duration::from_millis(100);
    let sidecar = Sidecar::start(config).await;
    let mut slow = sidecar.connect().await;
    slow.send("GET / HTTP/1.1\r\nHost: a").await;
    assert_eq!(slow.rest().await.unwrap(), b"");
    let mut idle = sidecar.connect().await;
    idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert!(idle.rest().await.unwrap().ends_with(b"ok"), "an idle connection closes too, but is not counted");
    drop(upstream);
    let mut paused = sidecar.connect().await;
    paused.send(format!("{POST}Content-Length: 9\r\n\r\nhalf")).await;
    let answer = String::from_utf8(paused.rest().await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let mut upstream = app.accept().await;
    upstream.head().await;
    let body = upstream.rest().await;
    assert!(body.is_err() || body.as_ref().is_ok_and(|body| body == b"half"), "{body:?}");
    assert_eq!(sidecar.metric("rejections_total", &[("reason", "timeout")]).await, 1.0);
}

#[tokio::test]
async fn forwarding_headers_of_an_untrusted_peer_are_replaced() {
    let app = App::bind().await;
    let mut config = app.config();
    config.trusted_proxies = "192.0.2.0/24".parse().unwrap();
    let sidecar = Sidecar::start(config).await;
    let mut browser = sidecar.connect().await;
    let forged =
        "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b\r\nX_Forwarded_For: 1\r\n";
    browser.send(format!("{GET}{forged}\r\n")).await;
    let head = soon(app.accept()).await.head().await.to_ascii_lowercase();
    for line in ["x-forwarded-for: 127.0.0.1\r\n", "x-forwarded-proto: http\r\n", "x-forwarded-host: app.test\r\n"] {
        assert!(head.contains(line), "{head}");
    }
    assert!(!head.contains("192.0.2.1") && !head.contains("x_forwarded_for"), "{head}");
}

#[tokio::test]
async fn with_allowed_origins_set_other_origins_cannot_open_websockets() {
    let app = App::bind().await;
    let mut config = app.config();
    config.allowed_origins = "https://app.test".parse().unwrap();
    let sidecar = Sidecar::start(config).await;
    let mut other = sidecar.connect().await;
    other.send(handshake("/_stcore/stream", "Origin: https://evil.test\r\n")).await;
    assert!(String::from_utf8(other.rest().await.unwrap()).unwrap().starts_with("HTTP/1.1 403 "));
    assert!(app.is_untouched());
    for line in ["Origin: https://App.test\r\n", ""] {
        let mut browser = sidecar.connect().await;
        browser.send(handshake("/_stcore/stream", line)).await;
        app.shake_hands("").await;
        assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
    }
    assert_eq!(sidecar.metric("rejections_total", &[("reason", "origin")]).await, 1.0);
}

#[tokio::test]
async fn the_proxy_protocol_source_is_the_client_if_a_trusted_peer_sends_it() {
    let app = App::bind().await;
    let mut config = app.config();
    config.proxy_protocol = true;
    let sidecar = Sidecar::start(config.clone()).await;
    let mut browser = sidecar.connect().await;
    browser.send(format!("PROXY TCP4 203.0.113.7 10.0.0.1 1 80\r\n{GET}X-Forwarded-For: 192.0.2.1\r\n\r\n")).await;
    let head = app.accept().await.head().await.to_ascii_lowercase();
    assert!(head.contains("x-forwarded-for: 203.0.113.7\r\n"), "a client behind the proxy is not trusted: {head}");
    let mut without = sidecar.connect().await;
    without.send(format!("{GET}\r\n")).await;
    let _closed_or_reset = without.rest().await;
    assert_eq!(sidecar.metric("rejections_total", &[("reason", "proxy_protocol")]).await, 1.0);

    config.trusted_proxies = "none".parse().unwrap();
    let sidecar = Sidecar::start(config).await;
    let mut untrusted = sidecar.connect().await;
    untrusted.send(format!("PROXY TCP4 203.0.113.7 10.0.0.1 1 80\r\n{GET}\r\n")).await;
    let _closed_or_reset = untrusted.rest().await;
    assert_eq!(sidecar.metric("rejections_total", &[("reason", "proxy_protocol")]).await, 1.0);
}
