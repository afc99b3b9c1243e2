//! The drain: new work is refused, work in progress finishes, websockets get close frames, and a deadline holds.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use heartbeat_sidecar::config::{DrainCode, DrainSettings};
use tokio::net::TcpStream;

use crate::support::frame::{BINARY, CLOSE, TEXT, heartbeat, masked, new_session, plain};
use crate::support::{App, Session, Sidecar, Wire, handshake, soon, switching};

const GET: &str = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
const GOING_AWAY: [u8; 2] = 1001u16.to_be_bytes();
const STREAM: &str = "/_stcore/stream";
const LONG: Duration = Duration::from_secs(600);
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A sidecar with these drain settings.
async fn start(set_up: impl FnOnce(&mut DrainSettings)) -> (App, Sidecar) {
    let app = App::bind().await;
    let mut config = app.config();
    (config.drain.window, config.drain.timeout) = (Duration::ZERO, LONG);
    set_up(&mut config.drain);
    let sidecar = Sidecar::start(config).await;
    (app, sidecar)
}

async fn start_default() -> (App, Sidecar) {
    start(|_drain| {}).await
}

/// Sends a request that the app answers; returns the response's head.
async fn exchange(browser: &mut Wire, upstream: &mut Wire) -> String {
    browser.send(GET).await;
    upstream.head().await;
    upstream.send(OK).await;
    let head = browser.head().await.to_ascii_lowercase();
    browser.expect("ok").await;
    head
}

/// Waits until connections are refused.
async fn wait_until_refused(sidecar: &Sidecar) {
    soon(async { while TcpStream::connect(sidecar.address).await.is_ok() {} }).await;
}

/// Answers the close frames of both ends, and expects both connections to end.
async fn close_session(mut session: Session, sidecar: Sidecar) {
    session.browser.send(masked(CLOSE, GOING_AWAY)).await;
    session.app.send(plain(CLOSE, GOING_AWAY)).await;
    session.browser.end().await;
    session.app.end().await;
    sidecar.stopped().await;
}

#[tokio::test]
async fn a_request_in_progress_is_answered_and_new_connections_are_refused() {
    let (app, mut sidecar) = start_default().await;
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
    wait_until_refused(&sidecar).await;
    upstream.send("half").await;
    browser.expect("half").await;
    browser.end().await;
    sidecar.stopped().await;
}

#[tokio::test]
async fn an_idle_sidecar_stops_at_once() {
    let (_app, mut sidecar) = start_default().await;
    sidecar.stop();
    sidecar.stopped().await;
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let (app, mut sidecar) = start_default().await;
    let (mut used, mut silent) = (sidecar.connect().await, sidecar.connect().await);
    let (head, _upstream) = tokio::join!(
        async {
            used.send(GET).await;
            used.head().await
        },
        async {
            let mut upstream = app.accept().await;
            upstream.head().await;
            upstream.send(OK).await;
            upstream
        }
    );
    assert!(!head.to_ascii_lowercase().contains("connection: close"), "{head}");
    used.expect("ok").await;
    sidecar.stop();
    used.end().await;
    silent.end().await;
    sidecar.stopped().await;
}

#[tokio::test]
async fn new_work_is_served_during_the_delay_and_refused_after_it() {
    let delay = Duration::from_millis(1500);
    let (app, mut sidecar) = start(|drain| drain.delay = delay).await;
    let mut old = sidecar.stream(&app).await;
    let mut kept = sidecar.connect().await;
    kept.send(GET).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send(OK).await;
    kept.head().await;
    kept.expect("ok").await;
    let mut idle = sidecar.connect().await;

    let started = Instant::now();
    sidecar.stop();
    sidecar.until("draining", &[], 1.0).await;
    assert!(sidecar.admin("/readyz").await.0.starts_with("HTTP/1.1 503 "));
    let head = exchange(&mut kept, &mut upstream).await;
    assert!(head.contains("connection: close"), "keep-alive clients must move elsewhere in time: {head}");
    kept.end().await;
    let head = exchange(&mut sidecar.connect().await, &mut upstream).await;
    assert!(head.contains("connection: close"), "{head}");
    let mut new = sidecar.stream(&app).await;
    for session in [&mut old, &mut new] {
        session.app.send(plain(TEXT, "served")).await;
        session.browser.expect(plain(TEXT, "served")).await;
    }
    assert!(started.elapsed() < delay, "this machine is too slow: {:?}", started.elapsed());

    wait_until_refused(&sidecar).await;
    assert!(started.elapsed() >= delay, "{:?}", started.elapsed());
    idle.end().await;
    for session in [&mut old, &mut new] {
        session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
        assert!(session.app.frame().await.is(CLOSE, GOING_AWAY));
    }
    for mut end in [old.browser, old.app, new.browser, new.app] {
        end.send(masked(CLOSE, GOING_AWAY)).await;
    }
    sidecar.stopped().await;
}

#[tokio::test]
async fn a_connection_in_the_backlog_when_the_drain_starts_is_served() {
    let (app, mut sidecar) = start_default().await;
    sidecar.stop();
    // Without an await, the sidecar cannot run before the request is sent.
    let mut stream = std::net::TcpStream::connect(sidecar.address).unwrap();
    std::io::Write::write_all(&mut stream, GET.as_bytes()).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut browser = Wire::new(TcpStream::from_std(stream).unwrap());
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send(OK).await;
    assert!(browser.head().await.to_ascii_lowercase().contains("connection: close"));
    browser.expect("ok").await;
    browser.end().await;
    sidecar.stopped().await;
}

#[tokio::test]
async fn an_incomplete_proxy_protocol_header_does_not_delay_the_drain() {
    let app = App::bind().await;
    let mut config = app.config();
    (config.proxy_protocol, config.drain.timeout) = (true, LONG);
    let mut sidecar = Sidecar::start(config).await;
    let mut balancer = sidecar.connect().await;
    balancer.send("PROXY TCP4").await;
    sidecar.stop();
    let _end_or_reset = balancer.rest().await;
    sidecar.stopped().await;
}

#[tokio::test]
async fn websocket_closes_are_spread_over_the_window() {
    const SESSIONS: usize = 40;
    let window = Duration::from_secs(1);
    let (app, mut sidecar) = start(|drain| drain.window = window).await;
    let mut sessions = Vec::new();
    for _session in 0..SESSIONS {
        sessions.push(sidecar.stream(&app).await);
    }
    let started = Instant::now();
    sidecar.stop();
    let closed = sessions.into_iter().map(|mut session| async move {
        session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
        let elapsed = started.elapsed();
        assert!(session.app.frame().await.is(CLOSE, GOING_AWAY));
        session.browser.send(masked(CLOSE, GOING_AWAY)).await;
        session.app.send(plain(CLOSE, GOING_AWAY)).await;
        elapsed
    });
    let all = join_all(closed).await;
    sidecar.stopped().await;
    // An empty half of the window is as unlikely as forty tails in a row.
    assert!(
        all.iter().any(|elapsed| *elapsed < window / 2) && all.iter().any(|elapsed| *elapsed > window / 2),
        "{all:?}"
    );
    assert!(all.iter().all(|elapsed| *elapsed < window * 3), "{all:?}");
}

#[tokio::test]
async fn a_drain_without_remaining_sessions_ends_before_its_window() {
    let (app, mut sidecar) = start(|drain| drain.window = LONG).await;
    let Session { browser, mut app } = sidecar.stream(&app).await;
    sidecar.stop();
    wait_until_refused(&sidecar).await;
    drop(browser);
    app.end().await;
    drop(app);
    sidecar.stopped().await;
}

#[tokio::test]
async fn the_close_code_can_be_1012_service_restart() {
    let (app, mut sidecar) = start(|drain| drain.close_code = DrainCode::ServiceRestart).await;
    let mut session = sidecar.stream(&app).await;
    sidecar.stop();
    session.browser.expect(plain(CLOSE, 1012u16.to_be_bytes())).await;
    assert!(session.app.frame().await.is(CLOSE, 1012u16.to_be_bytes()));
    close_session(session, sidecar).await;
}

#[tokio::test]
async fn both_ends_of_a_websocket_get_a_close_frame_and_are_waited_for() {
    for (path, lines) in [(STREAM, ""), ("/other", ""), (STREAM, "Sec-WebSocket-Extensions: permessage-deflate\r\n")] {
        let (app, mut sidecar) = start_default().await;
        let mut session = sidecar.open_with(&app, path, lines).await;
        sidecar.stop();
        session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
        assert!(session.app.frame().await.is(CLOSE, GOING_AWAY));
        assert_eq!(sidecar.metric("sessions", &[]).await, 1.0);
        close_session(session, sidecar).await;
    }
}

#[tokio::test]
async fn a_message_in_progress_is_finished_before_the_close_frame() {
    let (app, mut sidecar) = start_default().await;
    let mut session = sidecar.stream(&app).await;
    let pieces = [plain(0x02, vec![1; 100_000]), plain(0x80, vec![2; 500_000])].concat();
    session.app.send(&pieces[..150_000]).await;
    session.browser.expect(&pieces[..150_000]).await;
    sidecar.stop();
    sidecar.until("draining", &[], 1.0).await;
    // The app must not get its close frame first: it would drop unsent data.
    session.browser.send(masked(TEXT, "still open")).await;
    session.app.expect(masked(TEXT, "still open")).await;
    session.app.send(&pieces[150_000..]).await;
    session.browser.expect(&pieces[150_000..]).await;
    session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    assert!(session.app.frame().await.is(CLOSE, GOING_AWAY));
    close_session(session, sidecar).await;
}

#[tokio::test]
async fn a_browser_frame_in_progress_is_finished_before_the_close_frame() {
    let (app, mut sidecar) = start_default().await;
    let mut session = sidecar.stream(&app).await;
    let frame = masked(BINARY, vec![1; 200_000]);
    session.browser.send(&frame[..100_000]).await;
    session.app.expect(&frame[..100_000]).await;
    sidecar.stop();
    session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    session.browser.send(&frame[100_000..]).await;
    session.app.expect(&frame[100_000..]).await;
    assert!(session.app.frame().await.is(CLOSE, GOING_AWAY));
    close_session(session, sidecar).await;
}

#[tokio::test]
async fn nothing_follows_the_close_frame() {
    let (app, mut sidecar) = start_default().await;
    let mut session = sidecar.stream(&app).await;
    session.app.send(new_session("1.53.1")).await;
    session.browser.frame().await;
    sidecar.stop();
    session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    assert!(session.app.frame().await.is(CLOSE, GOING_AWAY));
    session.browser.send([heartbeat(), masked(TEXT, "late")].concat()).await;
    session.app.send(plain(TEXT, "late")).await;
    close_session(session, sidecar).await;
}

#[tokio::test]
async fn a_handshake_in_progress_is_finished_and_then_closed() {
    let (app, mut sidecar) = start_default().await;
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
    close_session(Session { browser, app: upstream }, sidecar).await;
}

#[tokio::test]
async fn an_app_that_already_has_a_close_frame_gets_no_second_one() {
    let (app, mut sidecar) = start_default().await;
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
async fn a_drain_ends_at_its_timeout_whatever_remains() {
    let deadline = Duration::from_millis(300);
    let (app, mut sidecar) = start(|drain| drain.timeout = deadline).await;
    // An unfinished message, a stream that cannot be parsed, and an app that never answers.
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
    let started = Instant::now();
    sidecar.stop();
    sidecar.stopped().await;
    assert!(started.elapsed() >= deadline, "{:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}
