//! The commands for containers without a shell, run as processes.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::{TcpListener, UnixListener};
use tokio::time::Instant;

use crate::support::frame::{CLOSE, TEXT, masked, plain};
use crate::support::process::{Process, Signal, command, command_with};
use crate::support::{App, Session, Sidecar, Wire, ask_admin, handshake, soon, switching};

const GOING_AWAY: [u8; 2] = 1001u16.to_be_bytes();
/// A delay or window that a test waits for.
const SHORT: Duration = Duration::from_secs(2);
/// A delay that no test waits for.
const LONG_DELAY: Duration = Duration::from_secs(100);
const LONG: [&str; 3] = ["--drain-delay=50s", "--drain-window=50s", "--drain-timeout=500s"];
const HEALTHY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// Runs a command such as `healthcheck` against an admin port; returns its exit code and stderr.
async fn run(line: &str, admin: std::net::SocketAddr) -> (Option<i32>, String) {
    let admin = format!("--admin={admin}");
    command(&line.split_whitespace().chain([admin.as_str()]).collect::<Vec<_>>()).await
}

/// An address without a listener.
async fn unused_address() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_sidecar_is_healthy_and_ready_without_its_app() {
    let app = App::bind().await;
    let mut config = app.config();
    drop(app);
    config.drain.delay = Duration::from_secs(600);
    config.drain.timeout = Duration::from_secs(600);
    let mut sidecar = Sidecar::start(config).await;
    for line in ["healthcheck", "healthcheck --ready"] {
        assert_eq!(run(line, sidecar.admin).await, (Some(0), String::new()), "{line}");
    }
    sidecar.stop();
    sidecar.until("draining", &[], 1.0).await;
    assert_eq!(run("healthcheck", sidecar.admin).await.0, Some(0), "a draining sidecar is live");
    let (code, stderr) = run("healthcheck --ready", sidecar.admin).await;
    let setting = format!("admin = \"{}\" (--admin)", sidecar.admin);
    assert_eq!((code, stderr), (Some(1), format!("error: {setting}: /readyz returned 503 Service Unavailable\n")));
}

#[tokio::test]
async fn an_unreachable_or_silent_admin_port_is_named() {
    let admin = unused_address().await;
    for line in ["healthcheck", "drain", "drain --wait"] {
        let (code, stderr) = run(line, admin).await;
        assert_eq!(code, Some(1), "{line}");
        let expected = format!("error: admin = \"{admin}\" (--admin): cannot connect to http://{admin}: ");
        assert!(stderr.starts_with(&expected), "{stderr}");
    }
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (code, stderr) = run("healthcheck --timeout 100ms", silent.local_addr().unwrap()).await;
    assert_eq!(code, Some(1));
    assert!(stderr.ends_with(": no response within 100ms\n"), "{stderr}");
    let (code, stderr) = command(&["healthcheck", "--admin=127.0.0.1:0"]).await;
    assert_eq!(code, Some(2));
    assert!(stderr.contains("write the port"), "{stderr}");
    assert_eq!(command(&["healthcheck", "--wait"]).await.0, Some(2));
}

#[tokio::test]
async fn healthcheck_accepts_the_address_0_0_0_0_and_only_warns_about_an_invalid_file() {
    let (_app, sidecar) = Sidecar::with_app().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sidecar.toml");
    std::fs::write(&path, format!("admin = '0.0.0.0:{}'\nlog_level = '!'\n", sidecar.admin.port())).unwrap();
    let (code, stderr) = command(&["healthcheck", "--config", path.to_str().unwrap()]).await;
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("warning: ") && stderr.contains("sidecar.toml:2: log_level: "), "{stderr}");
    let (code, stderr) = command(&["wait", "--config", path.to_str().unwrap()]).await;
    assert_eq!(code, Some(2), "`wait` refuses what `run` refuses: {stderr}");
}

/// Answers one request of `wait`.
async fn answer(mut client: Wire, answer: &str) {
    let head = client.head().await;
    assert!(head.starts_with("GET /team/_stcore/health HTTP/1.1\r\n"), "{head}");
    client.send(answer).await;
}

#[tokio::test]
async fn wait_ends_when_the_app_is_healthy() {
    let app = App::bind().await;
    let upstream = format!("--upstream=http://{}", app.address());
    let waiting = tokio::spawn(async move { command(&["wait", "--path=/team/_stcore/health", &upstream]).await });
    answer(app.accept().await, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
    answer(app.accept().await, HEALTHY).await;
    let (code, stderr) = soon(waiting).await.unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(
        stderr,
        format!(
            "waiting for upstream = \"http://{}\" (--upstream): /team/_stcore/health: returned 503 Service Unavailable\n",
            app.address()
        )
    );
}

#[tokio::test]
async fn wait_checks_every_app_below_its_route_path() {
    let apps = [App::bind().await, App::bind().await];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.toml");
    let route = |name: &str, path: &str, app: &App| {
        format!("[[route]]\nname = '{name}'\npath = '{path}'\nupstream = 'http://{}'\n", app.address())
    };
    std::fs::write(&file, route("a", "/", &apps[0]) + &route("b", "/forecast/", &apps[1])).unwrap();
    let config = format!("--config={}", file.display());
    let waiting = tokio::spawn(async move { command(&["wait", &config]).await });
    for (app, expected) in apps.iter().zip(["GET /_stcore/health ", "GET /forecast/_stcore/health "]) {
        let mut wire = app.accept().await;
        let head = wire.head().await;
        assert!(head.starts_with(expected), "{head}");
        wire.send(HEALTHY).await;
    }
    assert_eq!(soon(waiting).await.unwrap(), (Some(0), String::new()));
}

#[tokio::test]
async fn wait_reaches_a_unix_socket_and_ends_at_its_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let upstream = format!("--upstream=unix:{}", path.display());
    let (code, stderr) = command(&["wait", "--timeout=300ms", &upstream]).await;
    assert_eq!(code, Some(1));
    assert!(stderr.contains(": not healthy after 300ms: cannot connect to unix:"), "{stderr}");
    let listener = UnixListener::bind(&path).unwrap();
    let waiting = tokio::spawn(async move { command(&["wait", &upstream]).await });
    let (mut client, _) = soon(listener.accept()).await.unwrap();
    let (mut reader, mut writer) = client.split();
    let mut head = [0; 4];
    soon(tokio::io::AsyncReadExt::read_exact(&mut reader, &mut head)).await.unwrap();
    soon(tokio::io::AsyncWriteExt::write_all(&mut writer, HEALTHY.as_bytes())).await.unwrap();
    assert_eq!(soon(waiting).await.unwrap(), (Some(0), String::new()));
}

#[tokio::test]
async fn drain_starts_a_drain_and_drain_wait_fails_at_its_timeout() {
    let app = App::bind().await;
    let sidecar = Process::start(&app, &["--drain-window=0s"]).await;
    let admin = sidecar.admin;
    let seen = Sidecar::elsewhere(sidecar.address, admin);
    let mut session = seen.stream(&app).await;
    assert_eq!(run("drain", admin).await, (Some(0), String::new()));
    session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    let (code, stderr) = run("drain --wait --timeout 300ms", admin).await;
    assert_eq!(code, Some(1));
    assert!(stderr.ends_with(": the sidecar is still running after 300ms\n"), "{stderr}");
    drop(session);
    assert_eq!(sidecar.exit_code().await, Some(0));
}

#[tokio::test]
async fn drain_succeeds_on_an_idle_sidecar() {
    let app = App::bind().await;
    for line in ["drain", "drain --wait"] {
        let sidecar = Process::start(&app, &[]).await;
        assert_eq!(run(line, sidecar.admin).await, (Some(0), String::new()));
        assert_eq!(sidecar.exit_code().await, Some(0));
    }
}

/// The state of the app around the SIGTERM.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Lives,
    /// It ended before.
    Gone,
    /// It ends while the sidecar drains after the SIGTERM.
    Dies,
    /// It refuses new connections, and still serves its sessions.
    Refuses,
}

/// How the stop is requested, in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum StopRequest {
    DrainThenSignal,
    Signal,
    SignalThenDrain,
}

/// An app and its sessions; empty after the app has ended.
struct Served {
    app: Option<App>,
    sessions: Vec<Session>,
}

impl Served {
    /// Ends the app and its sessions.
    async fn end(&mut self) {
        self.app = None;
        for Session { mut browser, app } in self.sessions.drain(..) {
            drop(app);
            let _end_or_reset = browser.rest().await;
        }
    }

    /// Checks that every session still works.
    async fn assert_alive(&mut self) {
        for session in &mut self.sessions {
            session.app.send(plain(TEXT, "served")).await;
            session.browser.expect(plain(TEXT, "served")).await;
        }
    }

    /// Answers the drain's close frames; returns when the first and the last came.
    async fn expect_closes(&mut self, started: Instant) -> Option<(Duration, Duration)> {
        let closed_after = join_all(self.sessions.drain(..).map(|mut session| async move {
            session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
            let closed_after = started.elapsed();
            assert!(session.app.frame().await.is(CLOSE, GOING_AWAY));
            session.browser.send(masked(CLOSE, GOING_AWAY)).await;
            session.app.send(plain(CLOSE, GOING_AWAY)).await;
            closed_after
        }));
        let closed_after = closed_after.await;
        Some((*closed_after.iter().min()?, *closed_after.iter().max()?))
    }
}

/// A session of an app that the sidecar also checks; a check's connection ends without a byte.
async fn stream_behind_checks(sidecar: &Sidecar, app: &App) -> Session {
    let mut browser = sidecar.connect().await;
    browser.send(handshake("/_stcore/stream", "")).await;
    let mut upstream = app.accept().await;
    while soon(upstream.stream.peek(&mut [0])).await.unwrap() == 0 {
        upstream = app.accept().await;
    }
    upstream.head().await;
    upstream.send(switching("")).await;
    assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
    Session { browser, app: upstream }
}

/// One shutdown of a process, from the first request to the exit.
async fn end_of_a_process(request: StopRequest, fate: Fate, sessions: usize) {
    // There is nothing to wait for only if the app has ended and the signal follows `drain`.
    let ends_early = request == StopRequest::DrainThenSignal && matches!(fate, Fate::Gone | Fate::Dies);
    let (delay, window) = if ends_early { (LONG_DELAY, LONG_DELAY) } else { (SHORT, SHORT) };
    let flags =
        [format!("--drain-delay={delay:?}"), format!("--drain-window={window:?}"), "--drain-timeout=500s".into()];
    let app = App::bind().await;
    let mut process = Process::start(&app, &flags.each_ref().map(String::as_str)).await;
    let seen = Sidecar::elsewhere(process.address, process.admin);
    let mut served = Served { sessions: Vec::new(), app: None };
    for _session in 0..sessions {
        served.sessions.push(seen.stream(&app).await);
    }
    served.app = Some(app);
    let started = Instant::now();
    if request == StopRequest::DrainThenSignal {
        assert_eq!(run("drain", process.admin).await.0, Some(0));
        process.line("drain started").await;
    }
    match fate {
        Fate::Gone => served.end().await,
        Fate::Refuses => served.app = None,
        Fate::Lives | Fate::Dies => {}
    }
    process.signal(Signal::TERM);
    match request {
        StopRequest::DrainThenSignal => process.line("stop signal received: the drain continues").await,
        StopRequest::Signal | StopRequest::SignalThenDrain => process.line("drain started").await,
    };
    if request == StopRequest::SignalThenDrain {
        assert_eq!(run("drain", process.admin).await.0, Some(0), "it drains");
    }
    if fate == Fate::Dies {
        served.assert_alive().await;
        served.end().await;
    }
    served.assert_alive().await;
    if ends_early {
        process.line("the app is gone").await;
        assert_eq!(process.exit_code().await, Some(0));
        assert!(started.elapsed() < LONG_DELAY / 2, "{:?}", started.elapsed());
        return;
    }
    if let (Fate::Lives, Some(app)) = (fate, &served.app) {
        // During the delay everything is served, new sessions too.
        served.sessions.push(stream_behind_checks(&seen, app).await);
        assert!(started.elapsed() < delay, "this machine is too slow: {:?}", started.elapsed());
    }
    if let Some((first, last)) = served.expect_closes(started).await {
        assert!(first >= delay, "closed {first:?} after the drain began");
        // All within a tenth of the window is one case in ten million.
        assert!(sessions < 8 || last - first > window / 10, "all at once: {first:?} to {last:?}");
    }
    assert_eq!(process.exit_code().await, Some(0));
    assert!(started.elapsed() >= delay, "{:?}", started.elapsed());
}

#[tokio::test]
async fn only_an_app_that_has_ended_shortens_a_drain() {
    let ends = [StopRequest::DrainThenSignal, StopRequest::Signal, StopRequest::SignalThenDrain].into_iter().flat_map(
        |request| {
            let ends = [(Fate::Lives, 0), (Fate::Lives, 8), (Fate::Gone, 0), (Fate::Gone, 2)];
            let more = [(Fate::Dies, 0), (Fate::Dies, 2), (Fate::Refuses, 8)];
            ends.into_iter().chain(more).map(move |(fate, sessions)| (request, fate, sessions))
        },
    );
    let ends = ends.map(|(request, fate, sessions)| async move {
        let end = tokio::spawn(end_of_a_process(request, fate, sessions)).await;
        assert!(end.is_ok(), "{request:?}, the app {fate:?}, {sessions} sessions");
    });
    join_all(ends).await;
}

#[tokio::test]
async fn a_drain_is_not_shortened_while_one_of_several_apps_is_alive() {
    let apps = [App::bind().await, App::bind().await];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.toml");
    let route = |name: &str, app: &App| {
        format!("[[route]]\nname = '{name}'\npath = '/{name}'\nupstream = 'http://{}'\n", app.address())
    };
    std::fs::write(&file, route("a", &apps[0]) + &route("b", &apps[1])).unwrap();
    let [gone, alive] = apps;
    drop(gone);
    let config = format!("--config={}", file.display());
    let mut process = Process::start_alone(&[&config, "--drain-delay=60s", "--drain-timeout=500s"]).await;
    assert_eq!(run("drain", process.admin).await.0, Some(0));
    process.line("drain started").await;
    process.signal(Signal::TERM);
    process.line("stop signal received: the drain continues").await;
    // The sidecar checks the living app again and again.
    for _look in 0..2 {
        drop(alive.accept().await);
        assert!(ask_admin(process.admin, "/livez").await.0.starts_with("HTTP/1.1 200 "));
    }
    drop(alive);
    process.line("the app is gone").await;
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_during_a_drain_ends_the_process_at_once() {
    let app = App::bind().await;
    let mut sidecar = Process::start(&app, &LONG).await;
    let seen = Sidecar::elsewhere(sidecar.address, sidecar.admin);
    let _session = seen.stream(&app).await;
    sidecar.signal(Signal::TERM);
    sidecar.line("drain started").await;
    assert_eq!(run("drain", sidecar.admin).await.0, Some(0), "it drains");
    sidecar.signal(Signal::TERM);
    assert_eq!(sidecar.exit_code().await, Some(1));
}

#[tokio::test]
async fn an_invalid_number_of_worker_threads_is_reported() {
    for wrong in ["", "0", "-1", "1.5", "1025", "many"] {
        let run = ["run", "--upstream=http://127.0.0.1:1", "--listen=127.0.0.1:0", "--admin=127.0.0.1:0"];
        let (code, stderr) = command_with(&run, |command| command.env("TOKIO_WORKER_THREADS", wrong)).await;
        let reason = format!("TOKIO_WORKER_THREADS: {wrong:?} is not a whole number from 1 to 1024\n");
        assert_eq!(code, Some(2));
        assert!(stderr.ends_with(&reason), "{stderr}");
    }
}
