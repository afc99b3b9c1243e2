//! A reconnect to a session whose old connection is still open: that one goes first, and only that one.

use std::time::Duration;

use futures_util::FutureExt as _;

use crate::support::frame::{BINARY, CLOSE, SESSION_ID, TEXT, masked, new_session, plain};
use crate::support::{App, Session, Sidecar, Wire, handshake};

const GOING_AWAY: [u8; 2] = 1001u16.to_be_bytes();
const STREAM: &str = "/_stcore/stream";

/// A session that the app has named.
async fn running(sidecar: &Sidecar, app: &App) -> Session {
    let mut session = sidecar.stream(app).await;
    session.app.send(new_session("1.53.1")).await;
    session.browser.expect(new_session("1.53.1")).await;
    session
}

/// A browser that has asked for this session.
async fn resume(sidecar: &Sidecar, id: &str) -> Wire {
    let mut browser = sidecar.connect().await;
    browser.send(handshake(STREAM, &format!("Sec-WebSocket-Protocol: streamlit, xsrf, {id}\r\n"))).await;
    browser
}

/// The app answers the close frame of a connection that is taken over, and the sidecar lets it go.
async fn close(mut app: Wire) {
    let frame = app.frame().await;
    assert!(frame.masked && frame.is(CLOSE, GOING_AWAY), "{frame:?}");
    app.send(plain(CLOSE, GOING_AWAY)).await;
    app.end().await;
}

/// The browser's handshake ends well and messages flow.
async fn joins(app: &App, mut browser: Wire) -> Session {
    let (_head, mut upstream) = app.shake_hands("").await;
    assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
    upstream.send(plain(TEXT, "hello")).await;
    browser.expect(plain(TEXT, "hello")).await;
    Session { browser, app: upstream }
}

async fn takeovers(sidecar: &Sidecar, result: &str) -> f64 {
    sidecar.metric("takeovers_total", &[("result", result)]).await
}

#[tokio::test]
async fn the_old_connection_to_the_app_is_closed_before_the_new_handshake() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut old = running(&sidecar, &app).await;
    let browser = resume(&sidecar, SESSION_ID).await;
    let frame = old.app.frame().await;
    assert!(frame.masked && frame.is(CLOSE, GOING_AWAY), "{frame:?}");
    assert!(app.accept().now_or_never().is_none(), "the new handshake waits");
    old.app.send(plain(CLOSE, GOING_AWAY)).await;
    old.app.end().await;
    old.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    old.browser.end().await;
    let _new = joins(&app, browser).await;
    assert_eq!((takeovers(&sidecar, "closed").await, takeovers(&sidecar, "timeout").await), (1.0, 0.0));
    let closed = [("initiator", "sidecar"), ("code", "1001")];
    assert_eq!(sidecar.metric("connections_closed_total", &closed).await, 1.0);
    assert_eq!(sidecar.metric("connections", &[]).await, 1.0);
}

#[tokio::test]
async fn a_session_is_known_by_its_own_handshake_too() {
    let (app, sidecar) = Sidecar::with_app().await;
    let browser = resume(&sidecar, SESSION_ID).await;
    let old = joins(&app, browser).await;
    let browser = resume(&sidecar, SESSION_ID).await;
    close(old.app).await;
    let _new = joins(&app, browser).await;
    assert_eq!(takeovers(&sidecar, "closed").await, 1.0);
}

#[tokio::test]
async fn an_app_that_does_not_answer_is_left_at_the_timeout() {
    let app = App::bind().await;
    let mut config = app.config();
    config.session.patience.takeover = Duration::from_millis(50);
    let sidecar = Sidecar::start(config).await;
    let mut old = running(&sidecar, &app).await;
    let browser = resume(&sidecar, SESSION_ID).await;
    let _new = joins(&app, browser).await;
    assert_eq!(takeovers(&sidecar, "timeout").await, 1.0);
    assert!(old.app.frame().await.is(CLOSE, GOING_AWAY));
    old.app.end().await;
    old.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    old.browser.end().await;
}

#[tokio::test]
async fn inside_a_frame_of_the_browser_the_app_sees_the_stream_end() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut old = running(&sidecar, &app).await;
    let large = masked(BINARY, [7; 500]);
    old.browser.send(&large[..200]).await;
    old.app.expect(&large[..200]).await;
    let browser = resume(&sidecar, SESSION_ID).await;
    old.app.end().await;
    drop(old.app);
    let _new = joins(&app, browser).await;
    assert_eq!(takeovers(&sidecar, "closed").await, 1.0);
}

#[tokio::test]
async fn a_browser_that_takes_nothing_does_not_hold_its_session_back() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut old = running(&sidecar, &app).await;
    // More than the kernel's buffers hold, so that the sidecar has a backlog and reads no more of the app.
    let message = plain(BINARY, vec![7; 1 << 20]);
    let stuck =
        async { while tokio::time::timeout(Duration::from_millis(200), old.app.send(&message)).await.is_ok() {} };
    stuck.await;
    let browser = resume(&sidecar, SESSION_ID).await;
    let closing = async {
        let (mut reader, mut writer) = old.app.stream.into_split();
        let sent = tokio::io::AsyncWriteExt::shutdown(&mut writer).await;
        let mut rest = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut rest).await;
        (sent, read)
    };
    let (_closed, _new) = tokio::join!(closing, joins(&app, browser));
    assert_eq!(takeovers(&sidecar, "closed").await, 1.0);
}

#[tokio::test]
async fn two_reconnects_at_once_end_with_one_live_connection() {
    let (app, sidecar) = Sidecar::with_app().await;
    let old = running(&sidecar, &app).await;
    let (_one, _two) = (resume(&sidecar, SESSION_ID).await, resume(&sidecar, SESSION_ID).await);
    close(old.app).await;
    let (_head, first) = app.shake_hands("").await;
    close(first).await;
    let (_head, _second) = app.shake_hands("").await;
    sidecar.until("handshakes_total", &[("result", "accepted")], 3.0).await;
    sidecar.until("connections", &[], 1.0).await;
    assert_eq!(takeovers(&sidecar, "closed").await, 2.0);
}

#[tokio::test]
async fn an_unknown_or_malformed_id_closes_nobody() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut old = running(&sidecar, &app).await;
    for id in ["00000000-0000-4000-8000-000000000000", &SESSION_ID[1..], "streamlit", &SESSION_ID.replace('-', "_")] {
        let browser = resume(&sidecar, id).await;
        let _other = joins(&app, browser).await;
    }
    old.app.send(plain(TEXT, "still here")).await;
    old.browser.expect(plain(TEXT, "still here")).await;
    assert_eq!((takeovers(&sidecar, "closed").await, takeovers(&sidecar, "timeout").await), (0.0, 0.0));
}

#[tokio::test]
async fn switched_off_it_leaves_the_old_connection_alone() {
    let app = App::bind().await;
    let mut config = app.config();
    config.session.takeover = false;
    let sidecar = Sidecar::start(config).await;
    let mut old = running(&sidecar, &app).await;
    let browser = resume(&sidecar, SESSION_ID).await;
    let _new = joins(&app, browser).await;
    old.app.send(plain(TEXT, "still here")).await;
    old.browser.expect(plain(TEXT, "still here")).await;
    assert_eq!(sidecar.metric("connections", &[]).await, 2.0);
}
