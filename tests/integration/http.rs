//! Plain HTTP: targets, header fields, status and bodies pass in both directions.

use std::net::{IpAddr, Ipv4Addr};

use heartbeat_sidecar::config::UpstreamAddress;
use tokio::net::UnixListener;

use crate::support::http::values;
use crate::support::{App, Sidecar, Wire, config, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn has_field(head: &str, name: &str) -> bool {
    head.lines().any(|line| line.split(':').next().is_some_and(|found| found.eq_ignore_ascii_case(name)))
}

#[tokio::test]
async fn header_fields_pass_as_bytes_with_their_case_and_order() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    let request = [
        &b"GET /a%20b?q=%C3%A4&r HTTP/1.1\r\nHost: Team.App.test:8443\r\nX-CamelCase: caf\xe9\x80\xff\r\n"[..],
        b"x-lower: 1\r\nX-Twice: first\r\nX-Twice: second\r\nCookie: a=\"b\"; _streamlit_xsrf=2|x\r\nX-Empty: \r\n\r\n",
    ];
    browser.send(request.concat()).await;
    let mut upstream = app.accept().await;
    let head = upstream.head().await;
    assert!(head.starts_with("GET /a%20b?q=%C3%A4&r HTTP/1.1\r\n"), "{head}");
    assert_eq!(values(&head, "Host"), ["Team.App.test:8443"]);
    assert_eq!(values(&head, "X-CamelCase"), ["caf\u{e9}\u{80}\u{ff}"]);
    assert_eq!(values(&head, "x-lower"), ["1"]);
    assert_eq!(values(&head, "X-Twice"), ["first", "second"]);
    assert_eq!(values(&head, "Cookie"), ["a=\"b\"; _streamlit_xsrf=2|x"]);
    assert!(head.contains("X-Empty:"), "{head}");
    let response = [
        &b"HTTP/1.1 203 Whatever\r\nContent-Length: 0\r\nX-Latin: na\xefve\r\nSet-Cookie: a=1\r\n"[..],
        b"Set-Cookie: b=2\r\nETag: W/\"1\"\r\nx-OdD: 1\r\nServer: TornadoServer/6.5\r\n\r\n",
    ];
    upstream.send(response.concat()).await;
    let head = browser.head().await;
    assert!(head.starts_with("HTTP/1.1 203 "), "{head}");
    assert_eq!(values(&head, "X-Latin"), ["na\u{ef}ve"]);
    assert_eq!(values(&head, "Set-Cookie"), ["a=1", "b=2"]);
    assert_eq!(values(&head, "ETag"), ["W/\"1\""]);
    assert_eq!(values(&head, "x-OdD"), ["1"]);
    assert_eq!(values(&head, "Server"), ["TornadoServer/6.5"]);
}

#[tokio::test]
async fn the_upstream_receives_x_forwarded_headers() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send(GET).await;
    let mut upstream = app.accept().await;
    let head = upstream.head().await.to_ascii_lowercase();
    assert_eq!(values(&head, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(values(&head, "x-forwarded-proto"), ["http"]);
    assert_eq!(values(&head, "x-forwarded-host"), ["app.test"]);
    upstream.send(OK).await;
    browser.head().await;
    browser.expect("ok").await;

    let line = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2\r\nX-Forwarded-Proto: https\r\n";
    browser.send(format!("GET / HTTP/1.1\r\nHost: app.test\r\n{line}\r\n")).await;
    let head = upstream.head().await.to_ascii_lowercase();
    assert_eq!(values(&head, "x-forwarded-for"), ["192.0.2.1, 192.0.2.2, 127.0.0.1"]);
    assert_eq!(values(&head, "x-forwarded-proto"), ["https"]);
}

#[tokio::test]
async fn hop_by_hop_fields_are_removed_in_both_directions() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    let lines = "Connection: X-Hop, Cookie, Host, Authorization, X-Forwarded-For\r\nX-Hop: 1\r\nX-Stay: 1\r\n\
                 Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTE: deflate\r\n\
                 Cookie: a=b\r\nAuthorization: Bearer x\r\n";
    browser.send(format!("GET / HTTP/1.1\r\nHost: app.test\r\n{lines}\r\n")).await;
    let mut upstream = app.accept().await;
    let head = upstream.head().await;
    for gone in ["x-hop", "keep-alive", "proxy-connection", "upgrade", "te"] {
        assert!(!has_field(&head, gone), "{gone} in {head}");
    }
    for stays in ["host", "x-stay", "cookie", "authorization", "x-forwarded-for"] {
        assert!(has_field(&head, stays), "no {stays} in {head}");
    }
    let lines = "Connection: X-Hop, Set-Cookie, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nSet-Cookie: a=1\r\n\
                 X-Stay: 1\r\nProxy-Connection: keep-alive\r\n";
    upstream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{lines}\r\n")).await;
    let head = browser.head().await;
    for gone in ["x-hop", "keep-alive", "proxy-connection"] {
        assert!(!has_field(&head, gone), "{gone} in {head}");
    }
    for stays in ["set-cookie", "x-stay", "content-length"] {
        assert!(has_field(&head, stays), "no {stays} in {head}");
    }
}

#[tokio::test]
async fn a_chunked_request_streams_chunk_by_chunk() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send("POST /upload HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    let mut upstream = app.accept().await;
    let head = upstream.head().await.to_ascii_lowercase();
    assert_eq!(values(&head, "transfer-encoding"), ["chunked"]);
    assert!(!has_field(&head, "content-length"), "{head}");
    upstream.expect("5\r\nfirst\r\n").await;
    browser.send("6\r\nsecond\r\n0\r\n\r\n").await;
    upstream.expect("6\r\nsecond\r\n0\r\n\r\n").await;
    upstream.send(OK).await;
    assert!(browser.head().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_chunked_response_streams_chunk_by_chunk() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send(GET).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    let head = browser.head().await.to_ascii_lowercase();
    assert_eq!(values(&head, "transfer-encoding"), ["chunked"]);
    browser.expect("5\r\nfirst\r\n").await;
    upstream.send("6\r\nsecond\r\n0\r\n\r\n").await;
    browser.expect("6\r\nsecond\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn bodies_of_a_known_length_keep_it() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    let body: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    let head = "PUT /upload HTTP/1.1\r\nHost: app.test\r\nContent-Length: 100000\r\n\r\n";
    browser.send([head.as_bytes(), &body].concat()).await;
    let mut upstream = app.accept().await;
    let head = upstream.head().await.to_ascii_lowercase();
    assert!(head.starts_with("put /upload ") && !has_field(&head, "transfer-encoding"), "{head}");
    assert_eq!(values(&head, "content-length"), ["100000"]);
    upstream.expect(&body).await;
    let head = "HTTP/1.1 201 Created\r\nContent-Type: a/b\r\nContent-Length: 100000\r\n\r\n";
    upstream.send([head.as_bytes(), &body].concat()).await;
    let head = browser.head().await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 201 ") && !has_field(&head, "transfer-encoding"), "{head}");
    assert_eq!(values(&head, "content-length"), ["100000"]);
    browser.expect(&body).await;
    sidecar.until("http_requests_total", &[("method", "PUT"), ("code", "2xx")], 1.0).await;
}

#[tokio::test]
async fn responses_without_a_body_leave_the_connection_usable() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send("HEAD /file HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let mut upstream = app.accept().await;
    let cases = [
        ("HEAD", "200 OK\r\nContent-Length: 12345\r\nAccept-Ranges: bytes", "content-length: 12345"),
        ("GET", "204 No Content\r\nX-Kind: none", "x-kind: none"),
        ("GET", "304 Not Modified\r\nETag: \"v1\"", "etag: \"v1\""),
        ("GET", "304 Not Modified\r\nContent-Length: 77\r\nETag: \"v2\"", "etag: \"v2\""),
    ];
    for (at, (method, answer, line)) in cases.iter().enumerate() {
        if at > 0 {
            browser.send(format!("{method} /file HTTP/1.1\r\nHost: app.test\r\nIf-None-Match: \"v\"\r\n\r\n")).await;
        }
        let head = upstream.head().await;
        assert!(head.starts_with(method), "{head}");
        upstream.send(format!("HTTP/1.1 {answer}\r\n\r\n")).await;
        let head = browser.head().await.to_ascii_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {}", &answer[..3])), "{head}");
        assert!(head.contains(line) && !has_field(&head, "transfer-encoding"), "{head}");
    }
}

#[tokio::test]
async fn range_requests_and_partial_responses_pass() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send("GET /media/1.mp4 HTTP/1.1\r\nHost: app.test\r\nRange: bytes=2-4\r\n\r\n").await;
    let mut upstream = app.accept().await;
    assert_eq!(values(&upstream.head().await, "Range"), ["bytes=2-4"]);
    let lines = "Content-Range: bytes 2-4/10\r\nContent-Length: 3";
    upstream.send(format!("HTTP/1.1 206 Partial Content\r\n{lines}\r\n\r\ncde")).await;
    let head = browser.head().await;
    assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
    assert_eq!(values(&head, "Content-Range"), ["bytes 2-4/10"]);
    browser.expect("cde").await;
}

#[tokio::test]
async fn client_and_upstream_connections_are_reused() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut upstream = None;
    for _browser in 0..2 {
        let mut browser = sidecar.connect().await;
        for _request in 0..2 {
            browser.send(GET).await;
            let upstream = match &mut upstream {
                Some(kept) => kept,
                none => none.insert(app.accept().await),
            };
            upstream.head().await;
            upstream.send(OK).await;
            assert!(browser.head().await.starts_with("HTTP/1.1 200 "));
            browser.expect("ok").await;
        }
    }
}

#[tokio::test]
async fn a_client_that_expects_100_continue_receives_it() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    let lines = "Expect: 100-continue\r\nContent-Length: 4";
    browser.send(format!("PUT / HTTP/1.1\r\nHost: app.test\r\n{lines}\r\n\r\n")).await;
    // An app server sends its 100 after reading the head; either it or the sidecar must send one.
    let mut upstream = app.accept().await;
    let head = upstream.head().await;
    if has_field(&head, "expect") {
        upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    }
    assert!(browser.head().await.starts_with("HTTP/1.1 100 "));
    browser.send("body").await;
    upstream.expect("body").await;
    upstream.send(OK).await;
    assert!(browser.head().await.starts_with("HTTP/1.1 200 "));
    browser.expect("ok").await;
}

#[tokio::test]
async fn an_upstream_can_be_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let sidecar = Sidecar::start(config(UpstreamAddress::Unix(path))).await;
    let mut browser = sidecar.connect().await;
    browser.send(GET).await;
    let mut upstream = Wire::new(soon(listener.accept()).await.unwrap().0);
    assert_eq!(values(&upstream.head().await, "Host"), ["app.test"]);
    upstream.send(OK).await;
    browser.head().await;
    browser.expect("ok").await;

    browser.send(crate::support::handshake("/_stcore/stream", "")).await;
    let mut upstream = Wire::new(soon(listener.accept()).await.unwrap().0);
    upstream.head().await;
    upstream.send(crate::support::switching("")).await;
    assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
    browser.send(b"\x81\x82\0\0\0\0hi").await;
    upstream.expect(b"\x81\x82\0\0\0\0hi").await;
    upstream.send(b"\x81\x02ho").await;
    browser.expect(b"\x81\x02ho").await;
    drop(upstream);
    browser.end().await;
}

#[tokio::test]
async fn an_absolute_target_reaches_the_upstream_as_a_path() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send("GET http://app.test/deep/path?x=1 HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let mut upstream = app.accept().await;
    let head = upstream.head().await;
    assert!(head.starts_with("GET /deep/path?x=1 HTTP/1.1\r\n"), "{head}");
    assert_eq!(values(&head, "Host"), ["app.test"]);
    upstream.send(OK).await;
    assert!(browser.head().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn options_with_an_asterisk_target_passes_unchanged() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send("OPTIONS * HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let head = app.accept().await.head().await;
    assert!(head.starts_with("OPTIONS * HTTP/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn an_http_1_0_client_receives_a_response_without_chunks() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send("GET /old HTTP/1.0\r\nHost: app.test\r\n\r\n").await;
    let mut upstream = app.accept().await;
    assert!(upstream.head().await.starts_with("GET /old HTTP/1.1\r\n"));
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n").await;
    let head = browser.head().await;
    assert!(!has_field(&head, "transfer-encoding"), "{head}");
    assert_eq!(browser.rest().await.unwrap(), b"whole");
}

#[tokio::test]
async fn admin_paths_are_not_served_on_the_public_port() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut upstream = None;
    for path in ["/metrics", "/livez", "/readyz", "/sessions", "/status.json"] {
        let mut browser = sidecar.connect().await;
        browser.send(format!("GET {path} HTTP/1.1\r\nHost: app.test\r\n\r\n")).await;
        let upstream = match &mut upstream {
            Some(kept) => kept,
            none => none.insert(app.accept().await),
        };
        assert!(upstream.head().await.starts_with(&format!("GET {path} ")));
        upstream.send(OK).await;
        assert!(browser.head().await.starts_with("HTTP/1.1 200 "));
        browser.expect("ok").await;
    }
}

#[tokio::test]
async fn ipv6_clients_are_forwarded_without_brackets() {
    let app = App::bind().await;
    let mut config = app.config();
    config.listen.set_ip(std::net::Ipv6Addr::LOCALHOST.into());
    let sidecar = Sidecar::start(config).await;
    assert_ne!(sidecar.address.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut browser = sidecar.connect().await;
    browser.send(GET).await;
    let head = app.accept().await.head().await.to_ascii_lowercase();
    assert_eq!(values(&head, "x-forwarded-for"), ["::1"]);
}
