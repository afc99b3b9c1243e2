//! Memory of open sessions, and of those that have ended.

use std::fmt::Display;
use std::time::Duration;

use futures_util::StreamExt as _;
use rustls::ALL_VERSIONS;

use crate::support::frame::{BINARY, CLOSE, heartbeat, masked, new_session_of, plain};
use crate::support::process::Process;
use crate::support::tls::{Pki, Sides};
use crate::support::{App, Session, Sidecar, Wire, ask_admin, handshake, metric, switching, until};
use crate::{MIB, STREAM, alone, growth, status, status_of};

/// Opens sessions one after the other, through the sidecar or directly to the app.
async fn open_all(count: usize, app: &App, sidecar: Option<&Sidecar>) -> Vec<Session> {
    let mut sessions = Vec::with_capacity(count);
    for _session in 0..count {
        sessions.push(match sidecar {
            Some(sidecar) => sidecar.stream(app).await,
            None => {
                let mut browser = Wire::connect(app.address()).await;
                let mut app = app.accept().await;
                browser.send(handshake(STREAM, "")).await;
                app.head().await;
                app.send(switching("")).await;
                browser.head().await;
                Session { browser, app }
            }
        });
    }
    // Each session has been used: a message in two pieces from the app.
    for Session { browser, app } in &mut sessions {
        let message = plain(BINARY, [0x2a; 40_000]);
        app.send(&message[..10_000]).await;
        browser.expect(&message[..10_000]).await;
        app.send(&message[10_000..]).await;
        browser.expect(&message[10_000..]).await;
    }
    sessions
}

#[test]
fn an_idle_session_holds_no_buffer() {
    const SESSIONS: usize = 2000;
    alone(async {
        let (app, sidecar) = Sidecar::with_app().await;
        let _warm = open_all(50, &app, Some(&sidecar)).await;
        let before = status("VmRSS");
        let direct = open_all(SESSIONS, &app, None).await;
        let ends = status("VmRSS").saturating_sub(before);
        let before = status("VmRSS");
        let sessions = open_all(SESSIONS, &app, Some(&sidecar)).await;
        sidecar.until("sessions", &[], (SESSIONS + 50) as f64).await;
        let all = status("VmRSS").saturating_sub(before);
        let each = all.saturating_sub(ends) / SESSIONS;
        println!("an idle session: {} bytes with the test's two endpoints, {each} without", all / SESSIONS);
        assert!(each < 8192, "{each} bytes");
        drop((direct, sessions));
    });
}

#[test]
fn a_compressed_session_holds_only_its_window() {
    const SESSIONS: usize = 300;
    /// Random bytes from the browser, which do not compress.
    const MESSAGE: usize = 1 << 18;
    alone(async {
        let (app, sidecar) = Sidecar::with_app().await;
        let mut noise = vec![0; MESSAGE];
        rand::fill(&mut noise[..]);
        let mut compress = flate2::Compress::new(flate2::Compression::fast(), false);
        let mut payload = Vec::with_capacity(2 * MESSAGE);
        compress.compress_vec(&noise, &mut payload, flate2::FlushCompress::Sync).unwrap();
        payload.truncate(payload.len() - 4);
        let mut each = Vec::new();
        for lines in ["", "Sec-WebSocket-Extensions: permessage-deflate\r\n"] {
            let first = if lines.is_empty() { BINARY } else { 0xc2 };
            let message = masked(first, &payload);
            let mut sessions = Vec::with_capacity(SESSIONS);
            let grown = growth(async {
                for _session in 0..SESSIONS {
                    let mut session = sidecar.open_with(&app, STREAM, lines).await;
                    let Session { browser, app: upstream } = &mut session;
                    tokio::join!(browser.send(&message), async { upstream.expect(&message).await });
                    sessions.push(session);
                }
            })
            .await;
            each.push(grown / SESSIONS);
        }
        assert_eq!(sidecar.metric("sessions_unparsable_total", &[]).await, 0.0, "every message was inflated");
        println!("a session: {} bytes plain, {} bytes compressed", each[0], each[1]);
        assert!(each[1] < each[0] + 40 * 1024, "{each:?}");
        assert!(each[1] > each[0] + 16 * 1024, "the window is kept: {each:?}");
    });
}

#[test]
fn an_idle_session_under_tls_holds_no_buffer() {
    // Few, because handshakes are slow without optimization.
    const SESSIONS: usize = 200;
    alone(async {
        for sides in [Sides::Browser, Sides::Both] {
            let (pki, app) = (Pki::new(), App::bind().await);
            let scheme = if sides == Sides::Both { "https" } else { "http" };
            let flag = |name: &str, file: &str| format!("--{name}={}", pki.path(file).display());
            let mut flags = vec![format!("--upstream={scheme}://{}", app.address()), flag("upstream-tls-ca", "ca.crt")];
            flags.extend([flag("tls-certificate", "tls.crt"), flag("tls-key", "tls.key")]);
            let flags: Vec<_> = flags.iter().map(String::as_str).collect();
            let process = Process::start_alone(&flags).await;
            let mut sessions = Vec::new();
            let mut before = 0;
            for number in 0..SESSIONS + 50 {
                if number == 50 {
                    before = status_of(process.pid().as_raw_nonzero(), "RssAnon");
                }
                let mut session = pki.open(sides, ALL_VERSIONS, process.address, &app, STREAM).await;
                // The session has been used: a message in two pieces from the app, and one back.
                let (from, to) = (&mut session.app, &mut session.browser);
                let message = plain(BINARY, [0x2a; 40_000]);
                from.send(&message[..10_000]).await;
                to.expect(&message[..10_000]).await;
                from.send(&message[10_000..]).await;
                to.expect(&message[10_000..]).await;
                to.send(masked(BINARY, "an answer")).await;
                from.expect(masked(BINARY, "an answer")).await;
                sessions.push(session);
            }
            let all = status_of(process.pid().as_raw_nonzero(), "RssAnon").saturating_sub(before);
            println!("an idle session with TLS on {sides:?}: {} bytes", all / SESSIONS);
            assert!(all / SESSIONS < 16 * 1024, "{sides:?}: {} bytes", all / SESSIONS);
        }
    });
}

/// How a short session ends. The browser sends it to the app in the query.
#[derive(Clone, Copy, Debug)]
enum Ending {
    BrowserCloses,
    BrowserResets,
    AppEnds,
    AppResets,
}

const ENDINGS: [Ending; 4] = [Ending::BrowserCloses, Ending::BrowserResets, Ending::AppEnds, Ending::AppResets];
const NORMAL: [u8; 2] = 1000u16.to_be_bytes();

/// An app whose sessions end as named in their query.
async fn serve(app: App) {
    for number in 0_u32.. {
        let mut end = app.accept().await;
        tokio::spawn(async move {
            let head = end.head().await;
            let named = new_session_of("1.67.0", &format!("{number:08x}-25b0-4f38-9d05-0a55b18df5c2"));
            end.send([switching("").as_bytes(), &named].concat()).await;
            if head.contains("BrowserResets") {
                let _end_or_reset = end.rest().await;
                return;
            }
            assert_eq!(end.frame().await.first, BINARY, "a heartbeat");
            if head.contains("AppResets") {
                return end.reset();
            }
            if head.contains("BrowserCloses") {
                assert_eq!(end.frame().await.first, CLOSE);
                end.send(plain(CLOSE, NORMAL)).await;
                end.end().await;
            }
        });
    }
}

/// A session from its handshake to its end, with a message each way.
async fn run_session(process: &Process, ending: Ending) {
    let mut browser = Wire::connect(process.address).await;
    browser.send(handshake(&format!("{STREAM}?{ending:?}"), "")).await;
    assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
    browser.frame().await;
    browser.send(heartbeat()).await;
    match ending {
        Ending::BrowserCloses => {
            browser.send(masked(CLOSE, NORMAL)).await;
            assert_eq!(browser.frame().await.first, CLOSE);
            browser.finish().await;
            browser.end().await;
        }
        Ending::BrowserResets => browser.reset(),
        Ending::AppEnds => browser.end().await,
        Ending::AppResets => assert!(browser.rest().await.is_err()),
    }
}

/// The number of open file descriptors of a process.
fn handles(process: impl Display) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

/// Runs `count` sessions, 200 at a time, until all have ended.
async fn run_sessions(process: &Process, count: usize) {
    let run_sessions = (0..count).map(|number| run_session(process, ENDINGS[number % ENDINGS.len()]));
    futures_util::stream::iter(run_sessions).buffer_unordered(200).for_each(async |()| ()).await;
    until(process.admin, "sessions", &[], 0.0).await;
}

#[test]
fn memory_and_descriptors_of_20_000_ended_sessions_are_released() {
    const WARM: usize = 200;
    const SESSIONS: usize = 20_000;
    alone(async {
        let app = App::bind().await;
        let process = Process::start(&app, &["--log-level=info,heartbeat_sidecar::relay=warn"]).await;
        let pid = process.pid().as_raw_nonzero().get();
        tokio::spawn(serve(app));
        let handles_before = handles(pid);
        run_sessions(&process, WARM).await;
        let memory = status_of(pid, "RssAnon");
        run_sessions(&process, SESSIONS).await;
        assert_eq!(metric(process.admin, "sessions_closed_total", &[]).await as usize, WARM + SESSIONS);
        assert_eq!(ask_admin(process.admin, "/sessions").await.1, "[]");
        let most = status_of(pid, "RssAnon");
        // No event shows when the allocator has returned the memory that it keeps for ten seconds.
        let mut poll = tokio::time::interval(Duration::from_millis(100));
        let settled = async {
            while handles(pid) != handles_before || status_of(pid, "RssAnon") > memory + MIB / 2 {
                poll.tick().await;
            }
        };
        let settled = tokio::time::timeout(Duration::from_secs(30), settled).await;
        let (handles, after) = (handles(pid), status_of(pid, "RssAnon"));
        println!(
            "{SESSIONS} sessions: {handles_before} handles, then {handles}; {memory} bytes, then {most}, {after} later"
        );
        assert!(settled.is_ok());
    });
}
