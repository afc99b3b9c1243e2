//! Faults: each affects one session, reaches the other side as it was, is counted, and leaves nothing behind.

use std::time::Duration;

use heartbeat_sidecar::config::Config;

use crate::support::frame::{
    BINARY, CLOSE, COMPATIBLE_ACK, PING, PONG, TEXT, header, heartbeat, masked, new_session, plain,
};
use crate::support::process::Process;
use crate::support::{ACCEPT, App, Session, Sidecar, Wire, handshake, soon, switching};

const STREAM: &str = "/_stcore/stream";
const NORMAL: [u8; 2] = 1000u16.to_be_bytes();

/// How a process's connection ends: the kernel sends EOF or, if data was unread, a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    End,
    Reset,
}

const BOTH: [Leave; 2] = [Leave::End, Leave::Reset];

impl Leave {
    fn of(self, wire: Wire) {
        match self {
            Self::End => drop(wire),
            Self::Reset => wire.reset(),
        }
    }

    /// Expects the same kind of end on the other side, then closes it.
    async fn reaches(self, mut wire: Wire) {
        assert_eq!(wire.rest().await.is_err(), self == Self::Reset, "{self:?}");
    }
}

/// A sidecar whose drain waits long for anything that does not end.
async fn start(app: &App, set_up: impl FnOnce(&mut Config)) -> Sidecar {
    let mut config = app.config();
    (config.drain.window, config.drain.timeout) = (Duration::ZERO, Duration::from_secs(600));
    set_up(&mut config);
    Sidecar::start(config).await
}

async fn closed(sidecar: &Sidecar, initiator: &str, code: &str) -> f64 {
    sidecar.metric("sessions_closed_total", &[("initiator", initiator), ("code", code)]).await
}

/// After `ended` sessions, each ended by `initiator` without a close frame: nothing is left, and the next one works.
async fn recovered(app: &App, mut sidecar: Sidecar, initiator: &str, ended: usize) {
    sidecar.until("sessions", &[], 0.0).await;
    assert_eq!(sidecar.admin("/sessions").await.1, "[]");
    assert_eq!(sidecar.metric("sessions_closed_total", &[]).await, ended as f64);
    assert_eq!(closed(&sidecar, initiator, "1006").await, ended as f64);

    let Session { mut browser, app: mut upstream } = sidecar.stream(app).await;
    upstream.send(plain(TEXT, "hello")).await;
    browser.expect(plain(TEXT, "hello")).await;
    browser.send(masked(CLOSE, NORMAL)).await;
    upstream.expect(masked(CLOSE, NORMAL)).await;
    upstream.send(plain(CLOSE, NORMAL)).await;
    browser.expect(plain(CLOSE, NORMAL)).await;
    drop((browser, upstream));
    sidecar.until("sessions", &[], 0.0).await;
    assert_eq!(closed(&sidecar, "browser", "1000").await, 1.0);
    // The drain would wait long for anything that is left.
    sidecar.stop();
    sidecar.stopped().await;
}

#[tokio::test]
async fn an_upstream_that_dies_ends_its_sessions_and_its_successors_version_is_learned() {
    for leave in BOTH {
        let mut app = App::bind().await;
        let sidecar = start(&app, |_config| {}).await;
        let (mut one, mut two) = (sidecar.stream(&app).await, sidecar.stream(&app).await);
        one.app.send(new_session("1.67.0")).await;
        one.browser.expect(new_session("1.67.0")).await;
        sidecar.until("upstream_acks_natively", &[], 1.0).await;
        two.browser.send(heartbeat()).await;
        two.app.expect(heartbeat()).await;

        let address = app.address();
        drop(app);
        leave.of(one.app);
        leave.of(two.app);
        leave.reaches(one.browser).await;
        leave.reaches(two.browser).await;
        sidecar.until("sessions", &[], 0.0).await;
        assert_eq!(sidecar.metric("acks_withheld_total", &[("reason", "upstream_closed")]).await, 1.0);
        assert_eq!(sidecar.metric("upstream_acks_natively", &[]).await, 0.0);
        let mut browser = sidecar.connect().await;
        browser.send(handshake(STREAM, "")).await;
        assert!(browser.head().await.starts_with("HTTP/1.1 502 "));

        app = App::bind_at(address).await;
        let mut session = sidecar.stream(&app).await;
        session.app.send(new_session("1.53.1")).await;
        session.browser.expect(new_session("1.53.1")).await;
        session.browser.send(heartbeat()).await;
        let ping = session.app.frame().await;
        assert_eq!(ping.first, PING, "an old version's heartbeat is withheld: {ping:?}");
        session.app.send(plain(PONG, &ping.payload)).await;
        session.browser.expect(plain(BINARY, COMPATIBLE_ACK)).await;
        leave.of(session.app);
        leave.reaches(session.browser).await;
        recovered(&app, sidecar, "upstream", 3).await;
    }
}

#[tokio::test]
async fn an_end_or_reset_by_the_upstream_within_a_message_reaches_the_browser() {
    for leave in BOTH {
        let app = App::bind().await;
        let sidecar = start(&app, |_config| {}).await;
        let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
        let part = [header(BINARY, 1_000_000, false), vec![7; 100_000]].concat();
        upstream.send(&part).await;
        browser.expect(&part).await;
        leave.of(upstream);
        leave.reaches(browser).await;
        recovered(&app, sidecar, "upstream", 1).await;
    }
}

#[tokio::test]
async fn a_handshake_to_a_frozen_upstream_is_a_504_and_its_connection_is_closed() {
    let app = App::bind().await;
    let sidecar = start(&app, |config| config.handshake_timeout = Duration::from_millis(200)).await;
    let mut browser = sidecar.connect().await;
    browser.send(handshake(STREAM, "")).await;
    let mut frozen = app.accept().await;
    frozen.head().await;
    assert!(browser.head().await.starts_with("HTTP/1.1 504 "));
    frozen.end().await;
    assert_eq!(sidecar.metric("handshakes_total", &[("result", "timeout")]).await, 1.0);
    drop(browser);
    recovered(&app, sidecar, "upstream", 0).await;
}

#[tokio::test]
async fn no_ack_is_sent_for_a_frozen_upstream_and_it_is_reset_with_its_browser() {
    let app = App::bind().await;
    let sidecar = start(&app, |config| config.heartbeat.stall_after = Duration::from_millis(100)).await;
    let Session { mut browser, app: frozen } = sidecar.stream(&app).await;
    browser.send(heartbeat()).await;
    sidecar.until("acks_withheld_total", &[("reason", "upstream_stalled")], 1.0).await;
    assert_eq!(sidecar.metric("acks_total", &[]).await, 0.0);
    Leave::Reset.of(browser);
    Leave::Reset.reaches(frozen).await;
    recovered(&app, sidecar, "browser", 1).await;
}

#[tokio::test]
async fn a_half_closed_session_of_a_frozen_upstream_ends_when_it_thaws() {
    let app = App::bind().await;
    let sidecar = start(&app, |_config| {}).await;
    let Session { mut browser, app: mut frozen } = sidecar.stream(&app).await;
    let message = masked(BINARY, vec![7; 1_000_000]);
    browser.send(&message).await;
    browser.finish().await;
    // A frozen process looks like a busy one: the half-open session stays, since an answer may come.
    sidecar.until("sessions", &[], 1.0).await;
    frozen.expect(&message).await;
    frozen.end().await;
    drop(frozen);
    browser.end().await;
    recovered(&app, sidecar, "browser", 1).await;
}

#[tokio::test]
async fn handshakes_wait_for_an_upstream_that_accepts_late() {
    let app = App::bind().await;
    let sidecar = start(&app, |_config| {}).await;
    let mut waiting = Vec::new();
    for _browser in 0..20 {
        let mut browser = sidecar.connect().await;
        browser.send(handshake(STREAM, "")).await;
        waiting.push(browser);
    }
    // The kernel has accepted the connections for it: the sidecar's requests wait there.
    assert_eq!(sidecar.metric("handshakes_total", &[]).await, 0.0);
    for _browser in &waiting {
        let (_head, upstream) = app.shake_hands("").await;
        drop(upstream);
    }
    for mut browser in waiting {
        assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
        browser.end().await;
    }
    recovered(&app, sidecar, "upstream", 20).await;
}

#[tokio::test]
async fn an_invalid_or_truncated_handshake_response_is_a_502() {
    let wrong = switching("").replace(ACCEPT, "AAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let answers: [&[u8]; 7] = [
        b"",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upg",
        wrong.as_bytes(),
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"HTTP/1.1 999999 What\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
    ];
    for leave in BOTH {
        let app = App::bind().await;
        let sidecar = start(&app, |_config| {}).await;
        for answer in answers {
            let mut browser = sidecar.connect().await;
            browser.send(handshake(STREAM, "")).await;
            let mut upstream = app.accept().await;
            upstream.head().await;
            upstream.send(answer).await;
            leave.of(upstream);
            let head = browser.head().await;
            assert!(head.starts_with("HTTP/1.1 502 "), "{leave:?} after {}: {head}", answer.escape_ascii());
        }
        assert_eq!(sidecar.metric("handshakes_total", &[("result", "invalid")]).await, answers.len() as f64);
        recovered(&app, sidecar, "upstream", 0).await;
    }
}

#[tokio::test]
async fn garbage_after_the_101_passes_and_disables_only_the_tap() {
    for leave in BOTH {
        let app = App::bind().await;
        let sidecar = start(&app, |_config| {}).await;
        let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
        let garbage: Vec<u8> = (0..100_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 | 0x70).collect();
        upstream.send(&garbage).await;
        browser.expect(&garbage).await;
        assert_eq!(sidecar.metric("sessions_unparsable_total", &[]).await, 1.0);
        leave.of(upstream);
        leave.reaches(browser).await;
        recovered(&app, sidecar, "upstream", 1).await;
    }
}

#[tokio::test]
async fn an_incomplete_request_of_a_vanished_browser_never_reaches_the_app() {
    for leave in BOTH {
        let app = App::bind().await;
        let sidecar = start(&app, |_config| {}).await;
        let whole = handshake(STREAM, "");
        for part in [0, 1, whole.len() / 2, whole.len() - 1] {
            let mut browser = sidecar.connect().await;
            browser.send(&whole[..part]).await;
            leave.of(browser);
        }
        // The next session comes after them, and is the app's first.
        recovered(&app, sidecar, "browser", 0).await;
        assert!(app.is_untouched());
    }
}

#[tokio::test]
async fn a_browser_reset_before_the_101_aborts_its_handshake() {
    for first in [true, false] {
        let app = App::bind().await;
        let sidecar = start(&app, |_config| {}).await;
        let mut browser = if first { sidecar.connect().await } else { sidecar.connect_used(&app).await };
        browser.send(handshake(STREAM, "")).await;
        let mut upstream = app.accept().await;
        upstream.head().await;
        browser.reset();
        upstream.end().await;
        sidecar.until("handshakes_total", &[("result", "abandoned")], 1.0).await;
        assert_eq!(sidecar.metric("handshakes_total", &[]).await, 1.0);
        recovered(&app, sidecar, "browser", 0).await;
    }
}

#[tokio::test]
async fn a_browser_closed_before_the_101_is_detected_at_the_apps_answer_or_the_handshake_timeout() {
    for (first, answers) in [(true, true), (false, true), (true, false), (false, false)] {
        let app = App::bind().await;
        let sidecar = start(&app, |config| config.handshake_timeout = Duration::from_millis(500)).await;
        let mut browser = if first { sidecar.connect().await } else { sidecar.connect_used(&app).await };
        browser.send(handshake(STREAM, "")).await;
        let mut upstream = app.accept().await;
        upstream.head().await;
        drop(browser);
        if answers {
            upstream.send(switching("")).await;
            upstream.end().await;
            drop(upstream);
            recovered(&app, sidecar, "browser", 1).await;
        } else {
            upstream.end().await;
            sidecar.until("handshakes_total", &[("result", "timeout")], 1.0).await;
            sidecar.until("client_connections", &[], 0.0).await;
            recovered(&app, sidecar, "browser", 0).await;
        }
    }
}

#[tokio::test]
async fn an_end_or_reset_by_the_browser_within_a_message_reaches_the_app() {
    for leave in BOTH {
        let app = App::bind().await;
        let sidecar = start(&app, |_config| {}).await;
        for part in [
            [header(BINARY, 1_000_000, true), vec![7; 100_000]].concat(),
            header(BINARY, 1_000_000, true)[..5].to_vec(),
            heartbeat()[..7].to_vec(),
            Vec::new(),
        ] {
            let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
            browser.send(&part).await;
            if part.len() > 1000 {
                upstream.expect(&part).await;
            }
            leave.of(browser);
            leave.reaches(upstream).await;
        }
        recovered(&app, sidecar, "browser", 4).await;
    }
}

#[tokio::test]
async fn a_browser_that_vanishes_while_receiving_resets_the_upstream() {
    let app = App::bind().await;
    let sidecar = start(&app, |_config| {}).await;
    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    upstream.send(header(BINARY, 1 << 40, false)).await;
    browser.exactly(10).await;
    while upstream.stream.try_write(&[7; 65_536]).is_ok() {}
    // Data is unread, so the kernel sends a reset.
    soon(browser.stream.peek(&mut [0])).await.unwrap();
    drop(browser);
    Leave::Reset.reaches(upstream).await;
    recovered(&app, sidecar, "browser", 1).await;
}

#[tokio::test]
async fn an_unread_log_pipe_does_not_block_requests() {
    /// Each logs more than a hundred bytes, and a pipe holds 64 KiB.
    const REFUSED: usize = 2000;
    let app = App::bind().await;
    let process = Process::start(&app, &["--log-level=debug"]).await;
    for _request in 0..REFUSED {
        let mut browser = Wire::connect(process.address).await;
        browser.send("TRACE / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
        assert!(browser.head().await.starts_with("HTTP/1.1 405 "));
    }
}

#[tokio::test]
async fn repeated_failures_of_an_app_that_is_down_log_one_line() {
    let app = App::bind().await;
    let process = Process::start(&app, &[]).await;
    let address = app.address();
    drop(app);
    for _request in 0..50 {
        for request in ["GET / HTTP/1.1\r\nHost: app.test\r\n\r\n", &handshake(STREAM, "")] {
            let mut browser = Wire::connect(process.address).await;
            browser.send(request).await;
            assert!(browser.head().await.starts_with("HTTP/1.1 502 "));
        }
    }
    let log = process.stopped().await;
    let lines: Vec<_> = log.iter().filter(|line| line["message"] == "upstream failed").collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((lines[0]["level"].as_str(), lines[0]["suppressed"].as_u64()), (Some("WARN"), Some(0)));
    let error = lines[0]["error"].as_str().unwrap();
    assert!(error.starts_with(&format!("cannot connect to http://{address}: Connection refused")), "{error}");
}
