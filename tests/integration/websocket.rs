//! Open websockets: messages pass unchanged in both directions, and every kind of end reaches the other side.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::support::frame::{BINARY, CLOSE, PING, PONG, TEXT, header, heartbeat, masked, plain};
use crate::support::{App, Session, Sidecar, handshake, soon};

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
            let text = format!("{name} {round}");
            session.browser.send(masked(TEXT, &text)).await;
            session.app.send(plain(TEXT, &text)).await;
        }
        for (name, session) in [("second", &mut second), ("first", &mut first)] {
            let text = format!("{name} {round}");
            session.app.expect(masked(TEXT, &text)).await;
            session.browser.expect(plain(TEXT, &text)).await;
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
        assert!(![&sessions, &metrics, &status].iter().any(|page| page.contains(secret)), "{secret}");
    }
}
