//! A reconnect to a session whose old connection is still open closes that one first, and no other.

use std::time::Duration;

use futures_util::FutureExt as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::support::frame::{BINARY, CLOSE, SESSION_ID, TEXT, masked, new_session, plain};
use crate::support::{App, Session, Sidecar, Wire, handshake, switching};

const GOING_AWAY: [u8; 2] = 1001u16.to_be_bytes();
const STREAM: &str = "/_stcore/stream";

/// A session whose id the app has sent.
async fn running(sidecar: &Sidecar, app: &App) -> Session {
    let mut session = sidecar.stream(app).await;
    session.app.send(new_session("1.53.1")).await;
    session.browser.expect(new_session("1.53.1")).await;
    session
}

/// A browser that has requested this session.
async fn resume(sidecar: &Sidecar, id: &str) -> Wire {
    resume_over(sidecar.connect().await, id).await
}

/// The same over this connection.
async fn resume_over(browser: Wire, id: &str) -> Wire {
    resume_with(browser, id, "").await
}

/// The same with these header lines.
async fn resume_with(mut browser: Wire, id: &str, lines: &str) -> Wire {
    browser.send(handshake(STREAM, &format!("Sec-WebSocket-Protocol: streamlit, xsrf, {id}\r\n{lines}"))).await;
    browser
}

/// The app answers the close frame of a taken-over connection, and the sidecar closes it.
async fn close(mut app: Wire) {
    let frame = app.frame().await;
    assert!(frame.masked && frame.is(CLOSE, GOING_AWAY), "{frame:?}");
    app.send(plain(CLOSE, GOING_AWAY)).await;
    app.end().await;
}

/// The browser's handshake succeeds and messages pass.
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
    assert_eq!(sidecar.metric("sessions_closed_total", &closed).await, 1.0);
    assert_eq!(sidecar.metric("sessions", &[]).await, 1.0);
}

#[tokio::test]
async fn the_id_in_a_sessions_own_handshake_identifies_it_too() {
    let (app, sidecar) = Sidecar::with_app().await;
    let browser = resume(&sidecar, SESSION_ID).await;
    let old = joins(&app, browser).await;
    let browser = resume(&sidecar, SESSION_ID).await;
    close(old.app).await;
    let _new = joins(&app, browser).await;
    assert_eq!(takeovers(&sidecar, "closed").await, 1.0);
}

#[tokio::test]
async fn an_old_connection_that_does_not_close_in_time_is_reset_before_the_new_handshake() {
    let app = App::bind().await;
    let mut config = app.config();
    config.session.takeover_timeout = Duration::from_millis(50);
    let sidecar = Sidecar::start(config).await;
    let mut old = running(&sidecar, &app).await;
    let mut browser = resume(&sidecar, SESSION_ID).await;
    let mut upstream = app.accept().await;
    assert!(is_closed(&old.app.stream));
    upstream.head().await;
    upstream.send(switching("")).await;
    assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(takeovers(&sidecar, "timeout").await, 1.0);
    assert!(old.app.frame().await.is(CLOSE, GOING_AWAY));
    let reset = old.app.rest().await.unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    old.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    old.browser.end().await;
}

#[tokio::test]
async fn a_takeover_inside_a_browser_frame_ends_the_apps_stream_without_a_close_frame() {
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
async fn a_browser_that_reads_nothing_does_not_delay_a_takeover() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut old = running(&sidecar, &app).await;
    // More than the kernel's buffers hold: the sidecar has a backlog and stops reading from the app.
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

/// Expects the 409 of a handshake that a newer one replaced.
async fn gives_up(mut browser: Wire) {
    let head = browser.head().await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 409 ") && head.contains("\r\nconnection: close\r\n"), "{head}");
    browser.rest().await.unwrap();
}

/// Whether the sidecar has closed this connection, even if data is unread. The kernel may need some milliseconds to
/// deliver that. The sidecar, which shares this thread, does nothing meanwhile.
fn is_closed(app: &TcpStream) -> bool {
    let mut polled = [PollFd::new(app, PollFlags::RDHUP)];
    poll(&mut polled, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })).unwrap();
    polled[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
}

#[tokio::test]
async fn a_newer_reconnect_first_ends_the_pending_handshake_of_an_older_one() {
    for (held, used, answered) in [
        (false, false, ""),
        (false, true, ""),
        (true, false, ""),
        (true, true, ""),
        (false, false, "HTTP/1.1 101 Switching Protocols\r\nUpgr"),
    ] {
        let (app, sidecar) = Sidecar::with_app().await;
        let old = if held { Some(running(&sidecar, &app).await) } else { None };
        // A connection's first request and later ones take different code paths.
        let connect = async || if used { sidecar.connect_used(&app).await } else { sidecar.connect().await };
        let older = resume_over(connect().await, SESSION_ID).await;
        if let Some(old) = old {
            close(old.app).await;
        }
        let mut slow = app.accept().await;
        slow.head().await;
        slow.send(answered).await;
        let mut newer = resume_over(connect().await, SESSION_ID).await;
        let mut upstream = app.accept().await;
        assert!(is_closed(&slow.stream), "held {held}, used {used}: the app has two handshakes of one session open");
        upstream.head().await;
        upstream.send(switching("")).await;
        gives_up(older).await;
        assert!(newer.head().await.starts_with("HTTP/1.1 101 "));
        upstream.send(plain(TEXT, "hello")).await;
        newer.expect(plain(TEXT, "hello")).await;
        assert_eq!(takeovers(&sidecar, "closed").await, if held { 2.0 } else { 1.0 });
        assert_eq!(sidecar.metric("handshakes_total", &[("result", "superseded")]).await, 1.0);
        sidecar.until("sessions", &[], 1.0).await;
    }
}

#[tokio::test]
async fn only_the_newest_of_waiting_reconnects_proceeds() {
    let (app, sidecar) = Sidecar::with_app().await;
    let old = running(&sidecar, &app).await;
    let one = resume(&sidecar, SESSION_ID).await;
    // The first one closes the old connection.
    let mut old_app = old.app;
    let frame = old_app.frame().await;
    assert!(frame.is(CLOSE, GOING_AWAY), "{frame:?}");
    let two = resume(&sidecar, SESSION_ID).await;
    gives_up(one).await;
    let three = resume(&sidecar, SESSION_ID).await;
    gives_up(two).await;
    assert!(app.is_untouched(), "the new handshake waits");
    old_app.send(plain(CLOSE, GOING_AWAY)).await;
    old_app.end().await;
    let _new = joins(&app, three).await;
    assert_eq!(takeovers(&sidecar, "closed").await, 1.0);
    assert_eq!(sidecar.metric("handshakes_total", &[("result", "superseded")]).await, 2.0);
}

#[tokio::test]
async fn an_aborted_handshake_does_not_block_the_next_reconnect() {
    let (app, sidecar) = Sidecar::with_app().await;
    let older = resume(&sidecar, SESSION_ID).await;
    let mut slow = app.accept().await;
    slow.head().await;
    older.reset();
    slow.end().await;
    let browser = resume(&sidecar, SESSION_ID).await;
    let _new = joins(&app, browser).await;
    assert_eq!((takeovers(&sidecar, "closed").await, takeovers(&sidecar, "timeout").await), (0.0, 0.0));
}

#[tokio::test]
async fn a_connection_that_receives_the_session_id_of_another_closes_that_one() {
    let app = App::bind().await;
    let mut config = app.config();
    config.session.takeover_timeout = Duration::from_secs(60);
    let sidecar = Sidecar::start(config).await;
    let mut older = running(&sidecar, &app).await;
    let newer = running(&sidecar, &app).await;
    assert!(older.app.frame().await.is(CLOSE, GOING_AWAY));
    older.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    let browser = resume(&sidecar, SESSION_ID).await;
    close(newer.app).await;
    assert!(app.is_untouched(), "the handshake waits for both");
    older.app.send(plain(CLOSE, GOING_AWAY)).await;
    older.app.end().await;
    let _new = joins(&app, browser).await;
    sidecar.until("sessions", &[], 1.0).await;
}

/// An app that answers at once. Panics if a connection arrives while an earlier one is open. Sends "hello" to the last
/// one.
async fn quick(app: App, mut settled: oneshot::Receiver<()>) {
    let mut current: Option<TcpStream> = None;
    loop {
        tokio::select! {
            next = app.accept() => {
                assert!(current.as_ref().is_none_or(is_closed), "the app has two connections of one session open");
                current = switch(next.stream).await;
            }
            () = answer_close(&mut current) => current = None,
            _settled = &mut settled => break,
        }
    }
    current.expect("one lives").write_all(&plain(TEXT, "hello")).await.unwrap();
}

/// Reads a handshake and accepts it; `None` if it is aborted meanwhile.
async fn switch(mut upstream: TcpStream) -> Option<TcpStream> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        upstream.read_buf(&mut head).await.ok().filter(|count| *count > 0)?;
    }
    upstream.write_all(switching("").as_bytes()).await.ok()?;
    Some(upstream)
}

/// Answers a close frame, the only data that arrives; resolves when the connection ends.
async fn answer_close(upstream: &mut Option<TcpStream>) {
    let Some(upstream) = upstream else { return std::future::pending().await };
    let mut bytes = [0; 64];
    while upstream.read(&mut bytes).await.is_ok_and(|count| count > 0) {
        let _gone_already = upstream.write_all(&plain(CLOSE, GOING_AWAY)).await;
    }
}

#[tokio::test]
async fn a_burst_of_reconnects_leaves_one_and_the_app_never_has_two_open() {
    const RECONNECTS: u32 = 200;
    let (app, sidecar) = Sidecar::with_app().await;
    let (drive, settled) = oneshot::channel();
    let quick = tokio::spawn(quick(app, settled));
    let mut browsers = JoinSet::new();
    for _ in 0..RECONNECTS {
        let mut browser = resume(&sidecar, SESSION_ID).await;
        browsers.spawn(async move {
            let accepted = browser.head().await.starts_with("HTTP/1.1 101 ");
            accepted && browser.frame().await.is(TEXT, "hello")
        });
    }
    sidecar.until("handshakes_total", &[], f64::from(RECONNECTS)).await;
    sidecar.until("sessions", &[], 1.0).await;
    drive.send(()).unwrap();
    let lived = browsers.join_all().await;
    assert_eq!(lived.iter().filter(|lived| **lived).count(), 1);
    quick.await.unwrap();
    assert_eq!(takeovers(&sidecar, "timeout").await, 0.0);
}

#[tokio::test]
async fn an_unknown_or_malformed_session_id_closes_no_connection() {
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
async fn a_reconnect_of_another_user_closes_no_connection() {
    let (app, sidecar) = Sidecar::with_app().await;
    let page = "Cookie: a=1; _streamlit_user=one\r\nAuthorization: Basic b25lOjE=\r\nX-Forwarded-Proto: https\r\n";
    let browser = resume_with(sidecar.connect().await, SESSION_ID, page).await;
    let mut old = joins(&app, browser).await;
    let others = [
        String::new(),
        page.replace("user=one", "user=two"),
        page.replace("b25l", "dHdv"),
        page.replace("https", "http"),
        format!("{page}Origin: https://other.example\r\n"),
        format!("{page}X-Forwarded-Email: two@app.example\r\n"),
    ];
    let count = others.len() as f64;
    for lines in others {
        let browser = resume_with(sidecar.connect().await, SESSION_ID, &lines).await;
        let mut other = joins(&app, browser).await;
        // The app gives it the session too: that does not make it the owner.
        other.app.send(new_session("1.53.1")).await;
        other.browser.expect(new_session("1.53.1")).await;
    }
    old.app.send(plain(TEXT, "still here")).await;
    old.browser.expect(plain(TEXT, "still here")).await;
    assert_eq!((takeovers(&sidecar, "other_user").await, takeovers(&sidecar, "closed").await), (count, 0.0));
    let same = page.replace("a=1; _streamlit_user=one", "_streamlit_user=one; b=2");
    let browser = resume_with(sidecar.connect().await, SESSION_ID, &same).await;
    close(old.app).await;
    let _new = joins(&app, browser).await;
    assert_eq!(takeovers(&sidecar, "closed").await, 1.0);
}

#[tokio::test]
async fn with_takeover_disabled_the_old_connection_stays_open() {
    let app = App::bind().await;
    let mut config = app.config();
    config.session.takeover = false;
    let sidecar = Sidecar::start(config).await;
    let mut old = running(&sidecar, &app).await;
    let browser = resume(&sidecar, SESSION_ID).await;
    let _new = joins(&app, browser).await;
    old.app.send(plain(TEXT, "still here")).await;
    old.browser.expect(plain(TEXT, "still here")).await;
    assert_eq!(sidecar.metric("sessions", &[]).await, 2.0);
}
