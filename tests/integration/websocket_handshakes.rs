//! Websocket handshakes: header fields pass unchanged, failures become matching responses, and early frames are kept.

use std::time::Duration;

use crate::support::frame::{BINARY, HEARTBEAT, TEXT, heartbeat, masked, plain};
use crate::support::{App, Sidecar, handshake, switching};

const STREAM: &str = "/_stcore/stream";

#[tokio::test]
async fn handshakes_pass_header_for_header() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    let lines = [
        "Origin: https://app.test",
        "Cookie: _streamlit_xsrf=2|abc; other=1",
        "Sec-WebSocket-Protocol: streamlit, 2|abc|def|17, 7a4fd3b1-25b0-4f38-9d05-0a55b18df5c2",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        "X-Custom-Header: caf\u{e9}",
        "User-Agent: Chromium",
    ];
    let path = "/team/app/_stcore/stream?token=x";
    browser.send(handshake(path, &lines.map(|line| format!("{line}\r\n")).concat())).await;
    let answer = "Sec-WebSocket-Protocol: streamlit\r\nSet-Cookie: a=b\r\nX-Answer: 1\r\nServer: TornadoServer/6.5\r\n";
    let (head, _app) = app.shake_hands(answer).await;
    assert!(head.starts_with("GET /team/app/_stcore/stream?token=x HTTP/1.1\r\n"), "{head}");
    let line = |name: &str| head.lines().find(|line| line.starts_with(name));
    for sent in lines.iter().filter(|sent| sent.is_ascii()) {
        assert!(head.lines().any(|line| line == *sent), "no {sent} in {head}");
    }
    assert_eq!(line("Host:"), Some("Host: app.test"));
    assert_eq!(line("Sec-WebSocket-Key:"), Some("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="));
    assert_eq!(line("Sec-WebSocket-Version:"), Some("Sec-WebSocket-Version: 13"));
    assert_eq!(line("X-Custom-Header:"), Some("X-Custom-Header: caf\u{c3}\u{a9}"), "raw bytes, shown as Latin-1");
    assert!(head.to_ascii_lowercase().contains("x-forwarded-for: 127.0.0.1\r\n"), "{head}");
    let head = browser.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for sent in answer.lines() {
        assert!(head.lines().any(|line| line == sent), "no {sent} in {head}");
    }
    sidecar.until("handshakes_total", &[("result", "accepted")], 1.0).await;
    sidecar.until("reconnects_total", &[], 1.0).await;
}

#[tokio::test]
async fn a_rejected_handshake_reaches_the_browser_unchanged() {
    let (app, sidecar) = Sidecar::with_app().await;
    for (refusals, first, status) in
        [(1.0, true, "403 Forbidden"), (2.0, false, "404 Not Found"), (3.0, true, "426 Upgrade Required")]
    {
        let mut browser = if first { sidecar.connect().await } else { sidecar.connect_used(&app).await };
        browser.send(handshake(STREAM, "")).await;
        let mut upstream = app.accept().await;
        upstream.head().await;
        let lines = "Sec-WebSocket-Version: 13\r\nX-Why: policy\r\nContent-Length: 9";
        upstream.send(format!("HTTP/1.1 {status}\r\n{lines}\r\n\r\nforbidden")).await;
        let head = browser.head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}");
        assert!(head.contains("Sec-WebSocket-Version: 13\r\n") && head.contains("X-Why: policy\r\n"), "{head}");
        browser.expect("forbidden").await;
        sidecar.until("handshakes_total", &[("result", "refused")], refusals).await;
    }
    sidecar.until("sessions", &[], 0.0).await;
}

#[tokio::test]
async fn a_101_with_a_wrong_or_missing_accept_key_is_a_502() {
    for accept in ["Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n", ""] {
        let (app, sidecar) = Sidecar::with_app().await;
        let mut browser = sidecar.connect().await;
        browser.send(handshake(STREAM, "")).await;
        let mut upstream = app.accept().await;
        upstream.head().await;
        let lines = format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{accept}");
        upstream.send(format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n")).await;
        let head = browser.head().await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        sidecar.until("handshakes_total", &[("result", "invalid")], 1.0).await;
    }
}

#[tokio::test]
async fn a_handshake_to_an_upstream_that_is_down_is_a_502() {
    let sidecar = {
        let app = App::bind().await;
        Sidecar::start(app.config()).await
    };
    let mut browser = sidecar.connect().await;
    browser.send(handshake(STREAM, "")).await;
    let head = browser.head().await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    sidecar.until("handshakes_total", &[("result", "unreachable")], 1.0).await;
    assert_eq!(sidecar.metric("sessions", &[]).await, 0.0);
}

#[tokio::test]
async fn a_handshake_that_the_upstream_never_answers_is_a_504() {
    let app = App::bind().await;
    let mut config = app.config();
    config.handshake_timeout = Duration::from_millis(50);
    let sidecar = Sidecar::start(config).await;
    let mut browser = sidecar.connect().await;
    browser.send(handshake(STREAM, "")).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    let head = browser.head().await;
    assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
    upstream.end().await;
    sidecar.until("handshakes_total", &[("result", "timeout")], 1.0).await;
}

#[tokio::test]
async fn a_slow_handshake_does_not_delay_other_connections() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut slow = sidecar.connect().await;
    slow.send(handshake(STREAM, "")).await;
    let mut waiting = app.accept().await;
    waiting.head().await;
    let mut other = sidecar.stream(&app).await;
    other.app.send(plain(TEXT, "meanwhile")).await;
    assert!(other.browser.frame().await.is(TEXT, "meanwhile"));
    waiting.send(switching("")).await;
    assert!(slow.head().await.starts_with("HTTP/1.1 101 "));
}

#[tokio::test]
async fn frames_sent_around_the_101_keep_their_order() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    let early = [masked(TEXT, "one"), masked(BINARY, "two")].concat();
    browser.send([handshake(STREAM, "").into_bytes(), early.clone()].concat()).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    let glued = [plain(TEXT, "eins"), plain(BINARY, "zwei")].concat();
    upstream.send([switching("").into_bytes(), glued.clone()].concat()).await;
    upstream.expect(&early).await;
    browser.head().await;
    browser.expect(&glued).await;
    browser.send(masked(TEXT, "three")).await;
    upstream.expect(masked(TEXT, "three")).await;
    upstream.send(plain(TEXT, "drei")).await;
    browser.expect(plain(TEXT, "drei")).await;
}

#[tokio::test]
async fn first_and_later_handshakes_of_a_connection_pass_identically() {
    let (app, sidecar) = Sidecar::with_app().await;
    let lines = "x-requesT-id: 7\r\nX-Twice: 1\r\nx-tWice: 2\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: x-hop\r\nX-Hop: 1\r\n";
    let answered = "x-Answer: 1\r\nX-aNswer: 2\r\nserver: TornadoServer/6.5\r\nKeep-Alive: timeout=5\r\n";
    let mut seen = Vec::new();
    for (first, hint) in [(true, false), (true, true), (false, false), (false, true)] {
        let mut browser = if first { sidecar.connect().await } else { sidecar.connect_used(&app).await };
        let request = handshake(&format!("{STREAM}?a=%20b"), lines);
        browser.send([request.into_bytes(), masked(TEXT, "one")].concat()).await;
        let mut upstream = app.accept().await;
        let head = upstream.head().await;
        if hint {
            // hyper reads a first response that is not a 101.
            upstream.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n").await;
        }
        upstream.send([switching(answered).into_bytes(), plain(TEXT, "eins")].concat()).await;
        let answer = browser.head().await;
        // hyper adds a missing date (RFC 9110 §6.6.1).
        let answer: Vec<_> = answer.lines().filter(|line| !line.starts_with("date:")).map(str::to_owned).collect();
        seen.push((head, answer));
        upstream.expect(masked(TEXT, "one")).await;
        browser.expect(plain(TEXT, "eins")).await;
    }
    let (head, answer) = &seen[0];
    for line in ["x-requesT-id: 7", "X-Twice: 1", "x-tWice: 2", "x-forwarded-for: 192.0.2.1, 127.0.0.1"] {
        assert!(head.lines().any(|sent| sent.eq_ignore_ascii_case(line)), "no {line} in {head}");
    }
    assert!(!head.contains("X-Hop: 1") && head.contains("X-Twice: 1\r\nx-tWice: 2\r\n"), "{head}");
    assert!(["x-Answer: 1", "X-aNswer: 2"].iter().all(|line| answer.iter().any(|sent| sent == line)), "{answer:?}");
    assert!(!answer.iter().any(|line| line.starts_with("Keep-Alive")), "{answer:?}");
    for other in &seen[1..] {
        assert_eq!(other, &seen[0]);
    }
}

#[tokio::test]
async fn a_heartbeat_before_the_101_is_processed_too() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send([handshake(STREAM, "").into_bytes(), heartbeat()].concat()).await;
    let (_head, mut upstream) = app.shake_hands("").await;
    assert!(upstream.frame().await.is(BINARY, HEARTBEAT), "it is forwarded to an unknown upstream");
    assert_eq!(sidecar.metric("heartbeats_total", &[]).await, 1.0);
}
