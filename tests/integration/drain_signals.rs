//! Drains of the real process: stop signals, exit codes and the log, and sessions under load.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::support::frame::{BINARY, CLOSE, Frame, masked, plain};
use crate::support::process::{Process, Signal};
use crate::support::{App, Session, Wire, ask_admin, handshake, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
const GOING_AWAY: [u8; 2] = 1001u16.to_be_bytes();
const STREAM: &str = "/_stcore/stream";
/// Interval of an endpoint's messages.
const PACE: Duration = Duration::from_millis(50);

/// The message of this number; header lengths take every form in turn.
fn message(number: usize) -> Vec<u8> {
    const LENGTHS: [usize; 6] = [1, 125, 126, 9000, 65_535, 65_536];
    vec![number as u8; LENGTHS[number % LENGTHS.len()]]
}

/// Sends and receives messages until a close frame, and answers it; returns that frame and the messages before it.
async fn converse(wire: Wire, frame: fn(u8, Vec<u8>) -> Vec<u8>, warm: CancellationToken) -> (Frame, usize) {
    let (mut reader, mut writer) = wire.stream.into_split();
    let closed = CancellationToken::new();
    let until = closed.clone();
    let sending = tokio::spawn(async move {
        let mut pace = tokio::time::interval(PACE);
        for number in 0.. {
            tokio::select! {
                () = until.cancelled() => break,
                _due = pace.tick() => {}
            }
            writer.write_all(&frame(BINARY, message(number))).await.unwrap();
        }
        writer
    });
    let (mut received, mut taken) = (Vec::new(), 0);
    let close = loop {
        match Frame::parse(&received) {
            Some((close, length)) if close.first == CLOSE => {
                assert_eq!(received.len(), length, "nothing follows the close");
                break close;
            }
            Some((whole, length)) => {
                assert!(whole.is(BINARY, message(taken)), "message {taken} is damaged");
                received.drain(..length);
                taken += 1;
                if taken == 20 {
                    warm.cancel();
                }
            }
            None => assert!(soon(reader.read_buf(&mut received)).await.unwrap() > 0, "ended without a close"),
        }
    };
    closed.cancel();
    let mut writer = soon(sending).await.unwrap();
    writer.write_all(&frame(CLOSE, GOING_AWAY.to_vec())).await.unwrap();
    let mut rest = Vec::new();
    soon(reader.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty(), "nothing follows the close");
    (close, taken)
}

#[tokio::test]
async fn no_message_is_truncated_when_sigterm_arrives_under_load() {
    for workers in ["1", "2"] {
        no_message_is_truncated_with_workers(workers).await;
    }
}

/// One worker thread uses another kind of runtime than several.
async fn no_message_is_truncated_with_workers(workers: &str) {
    const SESSIONS: usize = 20;
    let app = App::bind().await;
    let flags = ["--drain-window=500ms"];
    let mut process = Process::start_with(&app, &flags, |command| command.env("TOKIO_WORKER_THREADS", workers)).await;
    let (mut ends, mut warm) = (Vec::new(), Vec::new());
    for _session in 0..SESSIONS {
        let Session { browser, app } = stream(&process, &app).await;
        let (one, other) = (CancellationToken::new(), CancellationToken::new());
        ends.push(tokio::spawn(converse(browser, masked, one.clone())));
        ends.push(tokio::spawn(converse(app, plain, other.clone())));
        warm.extend([one, other]);
    }
    soon(join_all(warm.iter().map(CancellationToken::cancelled))).await;
    process.signal(Signal::TERM);
    for end in ends {
        let (close, taken) = end.await.unwrap();
        assert!(close.is(CLOSE, GOING_AWAY) && taken >= 20, "{close:?} after {taken}");
    }
    for _session in 0..SESSIONS {
        let line = process.line("session ended").await;
        assert_eq!((&line["closed_by"], &line["code"]), (&"sidecar".into(), &"1001".into()));
    }
    process.line("drain finished").await;
    assert_eq!(process.exit_code().await, Some(0));
}

/// Both ends of a session through a process.
async fn stream(process: &Process, app: &App) -> Session {
    let mut browser = Wire::connect(process.address).await;
    browser.send(handshake(STREAM, "")).await;
    let (_head, upstream) = app.shake_hands("").await;
    assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
    Session { browser, app: upstream }
}

#[tokio::test]
async fn every_phase_is_logged_and_a_timeout_logs_what_remained() {
    let app = App::bind().await;
    let flags = ["--drain-delay=100ms", "--drain-window=100ms", "--drain-timeout=1s"];
    let mut process = Process::start(&app, &flags).await;
    let mut sessions = [stream(&process, &app).await, stream(&process, &app).await];
    for Session { browser, app } in &mut sessions {
        app.send(&plain(BINARY, [7; 1000])[..500]).await;
        browser.exactly(500).await;
    }
    let mut browser = Wire::connect(process.address).await;
    browser.send(GET).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    process.signal(Signal::TERM);
    let line = process.line("drain started").await;
    assert_eq!((&line["sessions"], &line["delay"], &line["timeout"]), (&2.into(), &"100ms".into(), &"1s".into()));
    let line = process.line("listener closed").await;
    assert_eq!((&line["sessions"], &line["http_connections"]), (&2.into(), &1.into()));
    process.line("drain.window over").await;
    let line = process.line("drain.timeout reached").await;
    assert_eq!((&line["sessions"], &line["http_connections"]), (&2.into(), &1.into()));
    assert_eq!(line["level"], "WARN");
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM), (Signal::TERM, Signal::INT)] {
        let app = App::bind().await;
        let mut process = Process::start(&app, &["--drain-delay=1h", "--drain-timeout=2h"]).await;
        let _session = stream(&process, &app).await;
        process.signal(first);
        process.line("drain started").await;
        assert!(ask_admin(process.admin, "/readyz").await.0.starts_with("HTTP/1.1 503 "));
        process.signal(second);
        process.line("second stop signal").await;
        assert_eq!(process.exit_code().await, Some(1));
    }
}
