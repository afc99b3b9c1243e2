//! Websockets: headers and bytes pass unchanged, and every kind of end reaches the other side.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::support::frame::{BINARY, CLOSE, HEARTBEAT, PING, PONG, TEXT, header, heartbeat, masked, plain};
use crate::support::{App, Session, Sidecar, handshake, soon, switching};

const STREAM: &str = "/_stcore/stream";

/// Both ends of a session, each driven by a library that the sidecar does not use.
async fn witnesses(sidecar: &Sidecar, app: &App) -> (WebSocketStream<TcpStream>, WebSocketStream<TcpStream>) {
    let browser = sidecar.connect().await.stream;
    let browser = client_async(format!("ws://app.test{STREAM}"), browser);
    let app = async { accept_async(app.accept().await.stream).await };
    let (browser, app) = soon(async { tokio::join!(browser, app) }).await;
    (browser.unwrap().0, app.unwrap())
}

async fn next(end: &mut WebSocketStream<TcpStream>) -> Message {
    soon(end.next()).await.expect("a message").unwrap()
}

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
            // Any other first response than a 101 is left to hyper.
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

#[tokio::test]
async fn websockets_at_other_paths_are_relayed_untapped() {
    let (app, sidecar) = Sidecar::with_app().await;
    let Session { mut browser, app: mut upstream } = sidecar.open(&app, "/component/live/ws").await;
    for _heartbeat in 0..3 {
        browser.send(heartbeat()).await;
        upstream.expect(heartbeat()).await;
    }
    upstream.send(plain(TEXT, "nothing before this")).await;
    assert!(browser.frame().await.is(TEXT, "nothing before this"));
    assert_eq!(sidecar.metric("heartbeats_total", &[]).await, 0.0);
    assert_eq!(sidecar.metric("acks_total", &[]).await, 0.0);
    assert_eq!(sidecar.metric("sessions_unparsable_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_session_with_an_unknown_extension_is_relayed_untapped_and_counted() {
    let (app, sidecar) = Sidecar::with_app().await;
    let lines = "Sec-WebSocket-Extensions: permessage-deflate, x-other\r\n";
    let Session { mut browser, app: mut upstream } = sidecar.open_with(&app, STREAM, lines).await;
    let compressed = masked(0xc2, [0xea, 0x60, 0x64, 0x04, 0x00]);
    browser.send([compressed.clone(), heartbeat()].concat()).await;
    upstream.expect([compressed, heartbeat()].concat()).await;
    upstream.send(plain(0xc2, [0x0a, 0x60, 0x00])).await;
    browser.expect(plain(0xc2, [0x0a, 0x60, 0x00])).await;
    assert_eq!(sidecar.metric("sessions_unparsable_total", &[("reason", "extension")]).await, 1.0);
    assert_eq!(sidecar.metric("sessions_unparsable_total", &[]).await, 1.0);
    assert_eq!(sidecar.metric("heartbeats_total", &[]).await, 0.0);
}

#[tokio::test]
async fn every_kind_of_message_passes_in_both_directions() {
    let (app, sidecar) = Sidecar::with_app().await;
    let (mut browser, mut upstream) = witnesses(&sidecar, &app).await;
    let messages = [
        Message::text("t\u{e9}xt"),
        Message::text(""),
        Message::binary(vec![7; 70_000]),
        Message::binary(vec![7; 300]),
        Message::binary(Bytes::new()),
        Message::Ping(Bytes::from_static(b"are you there")),
        Message::Pong(Bytes::from_static(b"unasked")),
    ];
    for message in &messages {
        soon(browser.send(message.clone())).await.unwrap();
        assert_eq!(&next(&mut upstream).await, message);
        if message.is_ping() {
            soon(upstream.flush()).await.unwrap();
            assert_eq!(next(&mut browser).await, Message::Pong(message.clone().into_data()));
        }
        soon(upstream.send(message.clone())).await.unwrap();
        assert_eq!(&next(&mut browser).await, message);
        if message.is_ping() {
            soon(browser.flush()).await.unwrap();
            assert_eq!(next(&mut upstream).await, Message::Pong(message.clone().into_data()));
        }
    }
    let close = CloseFrame { code: CloseCode::Library(4001), reason: "bye".into() };
    soon(browser.close(Some(close.clone()))).await.unwrap();
    assert_eq!(next(&mut upstream).await, Message::Close(Some(close.clone())));
    soon(upstream.flush()).await.unwrap();
    assert_eq!(next(&mut browser).await, Message::Close(Some(close)));
    assert!(soon(upstream.next()).await.is_none());
    drop(upstream);
    assert!(soon(browser.next()).await.is_none());
    drop(browser);
    sidecar.until("sessions_closed_total", &[("initiator", "browser"), ("code", "other")], 1.0).await;
    sidecar.until("sessions", &[], 0.0).await;
}

#[tokio::test]
async fn sessions_do_not_mix() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut first = sidecar.stream(&app).await;
    let mut second = sidecar.stream(&app).await;
    for round in 0..20 {
        for (name, session) in [("first", &mut first), ("second", &mut second)] {
            let said = format!("{name} {round}");
            session.browser.send(masked(TEXT, &said)).await;
            session.app.send(plain(TEXT, &said)).await;
        }
        for (name, session) in [("second", &mut second), ("first", &mut first)] {
            let said = format!("{name} {round}");
            session.app.expect(masked(TEXT, &said)).await;
            session.browser.expect(plain(TEXT, &said)).await;
        }
    }
    sidecar.until("sessions", &[], 2.0).await;
    drop(first);
    sidecar.until("sessions", &[], 1.0).await;
    second.app.send(plain(TEXT, "still here")).await;
    assert!(second.browser.frame().await.is(TEXT, "still here"));
}

#[tokio::test]
async fn a_half_closed_session_goes_on_in_the_other_direction() {
    let (app, sidecar) = Sidecar::with_app().await;
    for path in [STREAM, "/other"] {
        let Session { mut browser, app: mut upstream } = sidecar.open(&app, path).await;
        browser.finish().await;
        upstream.end().await;
        upstream.send(plain(TEXT, "late")).await;
        assert!(browser.frame().await.is(TEXT, "late"));
        upstream.finish().await;
        browser.end().await;
        sidecar.until("sessions", &[], 0.0).await;

        let Session { mut browser, app: mut upstream } = sidecar.open(&app, path).await;
        upstream.finish().await;
        browser.end().await;
        browser.send(masked(TEXT, "late")).await;
        assert!(upstream.frame().await.is(TEXT, "late"));
        browser.finish().await;
        upstream.end().await;
        sidecar.until("sessions", &[], 0.0).await;
    }
}

#[tokio::test]
async fn a_reset_in_the_middle_of_a_message_reaches_the_other_side() {
    let (app, sidecar) = Sidecar::with_app().await;
    let part = [header(BINARY, 1_000_000, false), vec![7; 1000]].concat();
    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    upstream.send(&part).await;
    browser.expect(&part).await;
    upstream.reset();
    let error = browser.rest().await.expect_err("a reset, not an end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    sidecar.until("sessions", &[], 0.0).await;
    sidecar.until("sessions_closed_total", &[("initiator", "upstream"), ("code", "1006")], 1.0).await;

    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    let part = [header(BINARY, 1_000_000, true), vec![7; 1000]].concat();
    browser.send(&part).await;
    upstream.expect(&part).await;
    browser.reset();
    let error = upstream.rest().await.expect_err("a reset, not an end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    sidecar.until("sessions", &[], 0.0).await;
    sidecar.until("sessions_closed_total", &[("initiator", "browser"), ("code", "1006")], 1.0).await;
}

#[tokio::test]
async fn closes_are_counted_by_initiator_and_code() {
    let (app, sidecar) = Sidecar::with_app().await;
    let closes = |initiator, code| [("initiator", initiator), ("code", code)];

    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    browser.send(masked(CLOSE, 1000u16.to_be_bytes())).await;
    upstream.expect(masked(CLOSE, 1000u16.to_be_bytes())).await;
    upstream.send(plain(CLOSE, 1000u16.to_be_bytes())).await;
    browser.expect(plain(CLOSE, 1000u16.to_be_bytes())).await;
    upstream.finish().await;
    browser.end().await;
    drop(browser);
    sidecar.until("sessions_closed_total", &closes("browser", "1000"), 1.0).await;

    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    upstream.send(plain(CLOSE, [&1011u16.to_be_bytes()[..], b"oh no"].concat())).await;
    browser.expect(plain(CLOSE, [&1011u16.to_be_bytes()[..], b"oh no"].concat())).await;
    drop((browser, upstream));
    sidecar.until("sessions_closed_total", &closes("upstream", "1011"), 1.0).await;

    let Session { mut browser, app: upstream } = sidecar.stream(&app).await;
    drop(upstream);
    browser.end().await;
    drop(browser);
    sidecar.until("sessions_closed_total", &closes("upstream", "1006"), 1.0).await;

    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    browser.send(masked(CLOSE, "")).await;
    upstream.expect(masked(CLOSE, "")).await;
    drop((browser, upstream));
    sidecar.until("sessions_closed_total", &closes("browser", "1005"), 1.0).await;

    assert_eq!(sidecar.metric("sessions_closed_total", &[]).await, 4.0);
    assert_eq!(sidecar.metric("session_duration_seconds_count", &[]).await, 4.0);
    sidecar.until("sessions", &[], 0.0).await;
}

/// Bytes; more than the kernel's buffers on both hops hold together.
const MORE_THAN_BUFFERS: usize = 64 << 20;

#[tokio::test]
async fn a_reader_that_pauses_blocks_the_sender() {
    let (app, sidecar) = Sidecar::with_app().await;
    for path in [STREAM, "/other"] {
        let Session { mut browser, app: mut upstream } = sidecar.open(&app, path).await;
        let mut chunk = header(BINARY, 1 << 20, false);
        chunk.resize(chunk.len() + (1 << 20), 7);
        // No event shows that a socket accepts no more, so it gets the time of many round trips.
        let mut written = 0;
        while written < MORE_THAN_BUFFERS {
            let write = upstream.stream.write(&chunk[written % chunk.len()..]);
            match tokio::time::timeout(Duration::from_millis(300), write).await {
                Ok(count) => written += count.unwrap(),
                Err(_stuck) => break,
            }
        }
        assert!(written < MORE_THAN_BUFFERS, "{written} bytes were accepted");
        assert!(written > 10_000, "{written}");
        // Nothing is lost, and it resumes when the browser reads.
        let mut left = written;
        while left > 0 {
            let part = left.min(1 << 16);
            let at = written - left;
            let read = browser.exactly(part).await;
            assert!((0..part).all(|n| read[n] == chunk[(at + n) % chunk.len()]), "{at}");
            left -= part;
        }
        let rest = &chunk[written % chunk.len()..];
        upstream.send(rest).await;
        browser.expect(rest).await;
    }
    assert!(sidecar.metric("write_stalls_total", &[("direction", "upstream_to_browser")]).await >= 2.0);
}

#[tokio::test]
async fn messages_are_counted_by_direction_and_type() {
    let (app, sidecar) = Sidecar::with_app().await;
    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    let run = masked(BINARY, [0x5a, 0x00]);
    browser.send([&run[..], &run].concat()).await;
    upstream.expect([&run[..], &run].concat()).await;
    let delta = [&[0x2a, 0x80, 0x80, 0x04][..], &[0; 65_536]].concat();
    upstream.send(plain(BINARY, &delta)).await;
    browser.expect(plain(BINARY, &delta)).await;
    upstream.send([plain(PING, "x"), plain(PONG, "x")].concat()).await;
    browser.frame().await;
    browser.frame().await;
    let back = [("direction", "browser_to_upstream"), ("type", "rerun_script")];
    let forward = [("direction", "upstream_to_browser"), ("type", "delta")];
    assert_eq!(sidecar.metric("messages_total", &back).await, 2.0);
    assert_eq!(sidecar.metric("message_bytes_total", &back).await, 4.0);
    assert_eq!(sidecar.metric("messages_total", &forward).await, 1.0);
    assert_eq!(sidecar.metric("message_bytes_total", &forward).await, delta.len() as f64);
    assert_eq!(sidecar.metric("messages_total", &[]).await, 3.0);
}

#[tokio::test]
async fn live_sessions_are_listed_without_secrets() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    let id = "7a4fd3b1-25b0-4f38-9d05-0a55b18df5c2";
    let lines = format!("Sec-WebSocket-Protocol: streamlit, SECRETXSRF, {id}\r\nCookie: SECRETCOOKIE=1\r\n");
    browser.send(handshake("/_stcore/stream?SECRETQUERY", &lines)).await;
    let (_head, mut upstream) = app.shake_hands("Sec-WebSocket-Protocol: streamlit\r\n").await;
    browser.head().await;
    upstream.send(crate::support::frame::new_session("1.53.1")).await;
    browser.frame().await;
    let (_head, sessions) = sidecar.admin("/sessions").await;
    assert!(sessions.contains("1.53.1") && sessions.contains("\"tapped\":true"), "{sessions}");
    let (_head, metrics) = sidecar.admin("/metrics").await;
    drop((browser, upstream));
    sidecar.until("sessions", &[], 0.0).await;
    let (_head, status) = sidecar.admin("/status.json").await;
    assert!(status.contains("\"initiator\":"), "{status}");
    for secret in ["SECRET", id, "/_stcore"] {
        assert!(![&sessions, &metrics, &status].iter().any(|told| told.contains(secret)), "{secret}");
    }
}
