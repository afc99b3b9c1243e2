//! The end of a sidecar: new work is refused, what is under way finishes, websockets are told, and a deadline holds.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::support::frame::{BINARY, CLOSE, TEXT, heartbeat, masked, new_session, plain};
use crate::support::{App, Session, Sidecar, handshake, soon, switching};

const GET: &str = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
const GOING_AWAY: [u8; 2] = 1001u16.to_be_bytes();
const STREAM: &str = "/_stcore/stream";

/// A sidecar whose drain takes at most so long.
async fn start(drain_timeout: Duration) -> (App, Sidecar) {
    let app = App::bind().await;
    let mut config = app.config();
    config.drain_timeout = drain_timeout;
    let sidecar = Sidecar::start(config).await;
    (app, sidecar)
}

async fn patient() -> (App, Sidecar) {
    start(Duration::from_secs(600)).await
}

/// Answers the close frames that both ends were sent, and sees both connections end.
async fn part(mut session: Session, sidecar: Sidecar) {
    session.browser.send(masked(CLOSE, GOING_AWAY)).await;
    session.app.send(plain(CLOSE, GOING_AWAY)).await;
    session.browser.end().await;
    session.app.end().await;
    sidecar.stopped().await;
}

#[tokio::test]
async fn a_request_under_way_is_answered_and_nothing_new_is_accepted() {
    let (app, mut sidecar) = patient().await;
    assert!(sidecar.admin("/readyz").await.0.starts_with("HTTP/1.1 200 "));
    let mut browser = sidecar.connect().await;
    browser.send(GET).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
    browser.head().await;
    browser.expect("half").await;
    sidecar.stop();
    sidecar.until("draining", &[], 1.0).await;
    let (head, body) = sidecar.admin("/readyz").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}{body}");
    assert!(sidecar.admin("/livez").await.0.starts_with("HTTP/1.1 200 "));
    let refused = async { while TcpStream::connect(sidecar.address).await.is_ok() {} };
    soon(refused).await;
    upstream.send("half").await;
    browser.expect("half").await;
    browser.end().await;
    sidecar.stopped().await;
}

#[tokio::test]
async fn a_sidecar_that_does_nothing_stops_at_once() {
    let (_app, mut sidecar) = patient().await;
    sidecar.stop();
    sidecar.stopped().await;
}

#[tokio::test]
async fn kept_connections_that_ask_nothing_are_closed() {
    let (app, mut sidecar) = patient().await;
    let mut browser = sidecar.connect().await;
    browser.send(GET).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    browser.head().await;
    browser.expect("ok").await;
    sidecar.stop();
    browser.end().await;
    sidecar.stopped().await;
}

#[tokio::test]
async fn both_ends_of_a_websocket_are_told_and_waited_for() {
    for (path, lines) in [(STREAM, ""), ("/other", ""), (STREAM, "Sec-WebSocket-Extensions: permessage-deflate\r\n")] {
        let (app, mut sidecar) = patient().await;
        let mut session = sidecar.open_with(&app, path, lines).await;
        sidecar.stop();
        session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
        assert!(session.app.frame().await.is(CLOSE, GOING_AWAY));
        assert_eq!(sidecar.metric("connections", &[]).await, 1.0);
        part(session, sidecar).await;
    }
}

#[tokio::test]
async fn a_message_under_way_is_finished_before_the_close() {
    let (app, mut sidecar) = patient().await;
    let mut session = sidecar.stream(&app).await;
    let pieces = [plain(0x02, vec![1; 100_000]), plain(0x80, vec![2; 500_000])].concat();
    session.app.send(&pieces[..150_000]).await;
    session.browser.expect(&pieces[..150_000]).await;
    sidecar.stop();
    sidecar.until("draining", &[], 1.0).await;
    // The app is not told before the browser: it would drop what it still has to send.
    session.browser.send(masked(TEXT, "still open")).await;
    session.app.expect(masked(TEXT, "still open")).await;
    session.app.send(&pieces[150_000..]).await;
    session.browser.expect(&pieces[150_000..]).await;
    session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    assert!(session.app.frame().await.is(CLOSE, GOING_AWAY));
    part(session, sidecar).await;
}

#[tokio::test]
async fn a_frame_of_the_browser_is_finished_before_the_close() {
    let (app, mut sidecar) = patient().await;
    let mut session = sidecar.stream(&app).await;
    let frame = masked(BINARY, vec![1; 200_000]);
    session.browser.send(&frame[..100_000]).await;
    session.app.expect(&frame[..100_000]).await;
    sidecar.stop();
    session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    session.browser.send(&frame[100_000..]).await;
    session.app.expect(&frame[100_000..]).await;
    assert!(session.app.frame().await.is(CLOSE, GOING_AWAY));
    part(session, sidecar).await;
}

#[tokio::test]
async fn nothing_follows_the_close() {
    let (app, mut sidecar) = patient().await;
    let mut session = sidecar.stream(&app).await;
    session.app.send(new_session("1.53.1")).await;
    session.browser.frame().await;
    sidecar.stop();
    session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    assert!(session.app.frame().await.is(CLOSE, GOING_AWAY));
    session.browser.send([heartbeat(), masked(TEXT, "late")].concat()).await;
    session.app.send(plain(TEXT, "late")).await;
    part(session, sidecar).await;
}

#[tokio::test]
async fn a_handshake_under_way_is_finished_and_then_closed() {
    let (app, mut sidecar) = patient().await;
    let mut browser = sidecar.connect().await;
    browser.send(handshake(STREAM, "")).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    sidecar.stop();
    sidecar.until("draining", &[], 1.0).await;
    upstream.send(switching("")).await;
    let head = browser.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(!head.to_ascii_lowercase().contains("connection: close"), "{head}");
    browser.expect(plain(CLOSE, GOING_AWAY)).await;
    assert!(upstream.frame().await.is(CLOSE, GOING_AWAY));
    part(Session { browser, app: upstream }, sidecar).await;
}

#[tokio::test]
async fn who_was_closing_already_is_not_told_twice() {
    let (app, mut sidecar) = patient().await;
    let mut session = sidecar.stream(&app).await;
    session.browser.send(masked(CLOSE, 1000u16.to_be_bytes())).await;
    session.app.expect(masked(CLOSE, 1000u16.to_be_bytes())).await;
    sidecar.stop();
    session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    session.app.send(plain(CLOSE, 1000u16.to_be_bytes())).await;
    session.app.end().await;
    session.browser.end().await;
    sidecar.stopped().await;
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_whatever_is_left() {
    let deadline = Duration::from_millis(300);
    let (app, mut sidecar) = start(deadline).await;
    // One that never finishes its message, one that cannot be followed, one that never answers.
    let mut unfinished = sidecar.stream(&app).await;
    unfinished.app.send(&plain(BINARY, [7; 1000])[..500]).await;
    unfinished.browser.exactly(500).await;
    let mut lost = sidecar.stream(&app).await;
    lost.app.send(plain(0x80, "a continuation of nothing")).await;
    lost.browser.exactly(2).await;
    let mut browser = sidecar.connect().await;
    browser.send(GET).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    let begun = Instant::now();
    sidecar.stop();
    sidecar.stopped().await;
    assert!(begun.elapsed() >= deadline, "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
