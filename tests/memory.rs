//! Memory: bodies and messages stream through a constant buffer, and an idle session has none.
//!
//! Invariant: the test's own endpoints keep no data, and one test runs at a time, so this process grows only by the
//! sidecar's memory. Memory after the end of sessions is measured on the real binary.

#[allow(dead_code)]
#[path = "integration/support/mod.rs"]
mod support;

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use rustls::ALL_VERSIONS;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::oneshot;

use support::frame::{BINARY, CLOSE, header, heartbeat, masked, new_session_of, plain};
use support::process::Process;
use support::tls::{Pki, Sides};
use support::{App, Session, Sidecar, Wire, ask_admin, handshake, metric, soon, switching, until};

const MIB: usize = 1 << 20;
const STREAM: &str = "/_stcore/stream";

static ALONE: Mutex<()> = Mutex::new(());
static CHUNK: [u8; 1 << 16] = [0; 1 << 16];

/// Runs one test alone, on one thread.
fn alone(test: impl Future<Output = ()>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> usize {
    status_of("self", name)
}

/// A line of the status of a process, in bytes.
fn status_of(process: impl Display, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<usize>().unwrap() * 1024
}

/// Peak growth of this process's memory during `work`, in bytes (proc(5): 5 resets the peak).
async fn growth(work: impl Future<Output = ()>) -> usize {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    work.await;
    status("VmHWM").saturating_sub(before)
}

#[test]
fn growth_includes_memory_that_was_freed_again() {
    alone(async {
        // 40 MiB never come from memory freed before (mallopt(3), M_MMAP_THRESHOLD: at most 32 MiB). The kernel may
        // evict pages of mapped files meanwhile, which hides as much growth.
        let mut seen = Vec::new();
        for _attempt in 0..5 {
            let grown = growth(async { drop(std::hint::black_box(vec![1u8; 40 * MIB])) }).await;
            if (39 * MIB..44 * MIB).contains(&grown) {
                return;
            }
            seen.push(grown);
        }
        panic!("{seen:?}");
    });
}

/// Writes `bytes` zeros; the last chunk only after the first has arrived.
async fn write_zeros(end: &mut (impl AsyncWrite + Unpin), bytes: usize, first_arrived: oneshot::Receiver<()>) {
    let mut left = bytes;
    while left > CHUNK.len() {
        left -= soon(end.write(&CHUNK)).await.unwrap();
    }
    soon(first_arrived).await.unwrap();
    soon(end.write_all(&CHUNK[..left])).await.unwrap();
}

/// Reads and drops `bytes` bytes.
async fn read_zeros(end: &mut (impl AsyncRead + Unpin), bytes: usize, first_arrived: oneshot::Sender<()>) {
    let (mut buffer, mut left, mut first_arrived) = (vec![0; CHUNK.len()], bytes, Some(first_arrived));
    while left > 0 {
        let limit = left.min(buffer.len());
        let came = soon(end.read(&mut buffer[..limit])).await.unwrap();
        assert!(came > 0, "ended with {left} bytes to come");
        left -= came;
        if let Some(first_arrived) = first_arrived.take() {
            first_arrived.send(()).unwrap();
        }
    }
}

/// Streams `bytes` from one endpoint to the other; the first arrive before the last are sent.
async fn flow(from: &mut Wire, to: &mut Wire, bytes: usize) {
    let (sender, receiver) = oneshot::channel();
    tokio::join!(write_zeros(&mut from.stream, bytes, receiver), read_zeros(&mut to.stream, bytes, sender));
}

#[test]
fn a_200_mb_message_streams_through_in_constant_memory_in_either_direction() {
    const SIZE: usize = 200 * 1000 * 1000;
    alone(async {
        let (app, sidecar) = Sidecar::with_app().await;
        for path in [STREAM, "/other"] {
            let Session { mut browser, app: mut upstream } = sidecar.open(&app, path).await;
            for size in [MIB, SIZE] {
                let grown = growth(async {
                    upstream.send(header(BINARY, size as u64, false)).await;
                    browser.expect(header(BINARY, size as u64, false)).await;
                    flow(&mut upstream, &mut browser, size).await;
                    browser.send(header(BINARY, size as u64, true)).await;
                    upstream.expect(header(BINARY, size as u64, true)).await;
                    flow(&mut browser, &mut upstream, size).await;
                })
                .await;
                println!("{size} bytes each way on {path}: memory grew by {} KiB", grown / 1024);
                assert!(grown < 8 * MIB, "{grown}");
            }
        }
        let sent = [("direction", "upstream_to_browser")];
        assert_eq!(sidecar.metric("message_bytes_total", &sent).await as usize, 2 * (SIZE + MIB));
    });
}

#[test]
fn a_300_mb_upload_and_download_stream_through_in_constant_memory() {
    const SIZE: usize = 300 * 1000 * 1000;
    alone(async {
        let (app, sidecar) = Sidecar::with_app().await;
        let mut browser = sidecar.connect().await;
        let mut upstream = None;
        for size in [MIB, SIZE] {
            let grown = growth(async {
                let line = format!("PUT /upload HTTP/1.1\r\nHost: app.test\r\nContent-Length: {size}\r\n\r\n");
                browser.send(line).await;
                let upstream = match &mut upstream {
                    Some(kept) => kept,
                    none => none.insert(app.accept().await),
                };
                upstream.head().await;
                flow(&mut browser, upstream, size).await;
                upstream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")).await;
                browser.head().await;
                flow(upstream, &mut browser, size).await;
            })
            .await;
            println!("{size} bytes up and down: memory grew by {} KiB", grown / 1024);
            assert!(grown < 16 * MIB, "{grown}");
        }
    });
}

#[test]
fn a_browser_that_does_not_read_costs_no_memory() {
    alone(async {
        let (app, sidecar) = Sidecar::with_app().await;
        let Session { browser, app: mut upstream } = sidecar.stream(&app).await;
        upstream.send(header(BINARY, 200_000_000, false)).await;
        let mut written = 0;
        let grown = growth(async {
            // No event shows that a socket accepts no more, so the test waits for many round trips.
            while let Ok(count) = tokio::time::timeout(Duration::from_millis(300), upstream.stream.write(&CHUNK)).await
            {
                written += count.unwrap();
                assert!(written < 64 * MIB, "64 MiB were accepted");
            }
        })
        .await;
        println!("{written} bytes in the kernel's buffers: memory grew by {} KiB", grown / 1024);
        assert!(written > 0 && grown < 2 * MIB, "{grown}");
        drop(browser);
    });
}

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
fn a_message_of_a_million_empty_fragments_costs_no_memory() {
    const FRAGMENTS: usize = 1_000_000;
    alone(async {
        let (app, sidecar) = Sidecar::with_app().await;
        for masked in [false, true] {
            let Session { browser, app: upstream } = sidecar.stream(&app).await;
            let (mut from, mut to) = if masked { (browser, upstream) } else { (upstream, browser) };
            let (begin, fragment) = (header(0x02, 0, masked), header(0x00, 0, masked));
            let batch = fragment.repeat(1000);
            let grown = growth(async {
                from.send(&begin).await;
                to.expect(&begin).await;
                for _thousand in 0..FRAGMENTS / 1000 {
                    from.send(&batch).await;
                    to.expect(&batch).await;
                }
            })
            .await;
            let last = header(0x80, 0, masked);
            from.send(&last).await;
            to.expect(&last).await;
            println!("a million fragments, masked: {masked}: memory grew by {} KiB", grown / 1024);
            assert!(grown < 2 * MIB, "{grown}");
        }
        assert_eq!(sidecar.metric("sessions_unparsable_total", &[]).await, 0.0);
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
