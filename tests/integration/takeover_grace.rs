//! A takeover first lets the app finish the script run that the old browser has just requested.

use std::time::Instant;

use futures_util::FutureExt as _;
use heartbeat_sidecar::relay::TAKEOVER_GRACE;

use crate::support::frame::{BINARY, CLOSE, SESSION_ID, masked, new_session, plain};
use crate::support::{App, Session, Sidecar, Wire, handshake};

const GOING_AWAY: [u8; 2] = 1001u16.to_be_bytes();
/// `BackMsg { rerun_script: {} }`.
const RERUN: [u8; 2] = [0x5a, 0x00];
/// `ForwardMsg { script_finished: FINISHED_SUCCESSFULLY }`.
const FINISHED: [u8; 2] = [0x30, 0x00];

/// A session in whose first run the browser requests another one.
async fn rerun(sidecar: &Sidecar, app: &App) -> Session {
    let mut session = sidecar.stream(app).await;
    session.app.send(new_session("1.53.1")).await;
    session.browser.expect(new_session("1.53.1")).await;
    session.browser.send(masked(BINARY, RERUN)).await;
    session.app.expect(masked(BINARY, RERUN)).await;
    session
}

/// The browser reconnects; its old connection is closed at once.
async fn reconnect(sidecar: &Sidecar, old: &mut Wire) -> Wire {
    let mut browser = sidecar.connect().await;
    let lines = format!("Sec-WebSocket-Protocol: streamlit, xsrf, {SESSION_ID}\r\n");
    browser.send(handshake("/_stcore/stream", &lines)).await;
    old.expect(plain(CLOSE, GOING_AWAY)).await;
    old.end().await;
    browser
}

/// The app's next frame is the takeover's close frame. Then the new handshake arrives.
async fn closes(app: &App, mut old: Wire, mut browser: Wire) {
    let frame = old.frame().await;
    assert!(frame.masked && frame.is(CLOSE, GOING_AWAY), "{frame:?}");
    old.send(plain(CLOSE, GOING_AWAY)).await;
    old.end().await;
    let _upstream = app.shake_hands("").await;
    assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
}

async fn takeovers(sidecar: &Sidecar) -> (f64, f64) {
    let count = async |result| sidecar.metric("takeovers_total", &[("result", result)]).await;
    (count("closed").await, count("timeout").await)
}

#[tokio::test]
async fn a_takeover_waits_for_the_end_of_the_requested_run() {
    let (app, sidecar) = Sidecar::with_app().await;
    let Session { browser: mut old, app: mut old_app } = rerun(&sidecar, &app).await;
    let browser = reconnect(&sidecar, &mut old).await;
    // The end of the earlier run is not that of the requested one.
    old_app.send(plain(BINARY, FINISHED)).await;
    old_app.send(new_session("1.53.1")).await;
    // More than the kernel's buffers hold: the app can write it only while the sidecar reads.
    old_app.send(plain(BINARY, vec![7; 16 << 20])).await;
    assert!(old_app.frame().now_or_never().is_none() && app.is_untouched(), "the takeover waits");
    old_app.send(plain(BINARY, FINISHED)).await;
    closes(&app, old_app, browser).await;
    assert_eq!(takeovers(&sidecar).await, (1.0, 0.0));
}

#[tokio::test]
async fn a_run_that_does_not_end_delays_a_takeover_by_the_grace() {
    let (app, sidecar) = Sidecar::with_app().await;
    let Session { browser: mut old, app: old_app } = rerun(&sidecar, &app).await;
    let start = Instant::now();
    let browser = reconnect(&sidecar, &mut old).await;
    closes(&app, old_app, browser).await;
    assert!(start.elapsed() >= TAKEOVER_GRACE, "{:?}", start.elapsed());
    assert_eq!(takeovers(&sidecar).await, (1.0, 0.0));
}

#[tokio::test]
async fn a_run_that_has_ended_does_not_delay_a_takeover() {
    let (app, sidecar) = Sidecar::with_app().await;
    let Session { browser: mut old, app: mut old_app } = rerun(&sidecar, &app).await;
    for message in [plain(BINARY, FINISHED), new_session("1.53.1"), plain(BINARY, FINISHED)] {
        old_app.send(&message).await;
        old.expect(&message).await;
    }
    let start = Instant::now();
    let browser = reconnect(&sidecar, &mut old).await;
    closes(&app, old_app, browser).await;
    assert!(start.elapsed() < TAKEOVER_GRACE, "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_app_that_closes_ends_the_grace() {
    let (app, sidecar) = Sidecar::with_app().await;
    let Session { browser: mut old, app: mut old_app } = rerun(&sidecar, &app).await;
    let start = Instant::now();
    let mut browser = reconnect(&sidecar, &mut old).await;
    old_app.send(plain(CLOSE, GOING_AWAY)).await;
    assert!(old_app.frame().await.is(CLOSE, GOING_AWAY));
    old_app.end().await;
    let _upstream = app.shake_hands("").await;
    assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
    assert!(start.elapsed() < TAKEOVER_GRACE, "{:?}", start.elapsed());
}
