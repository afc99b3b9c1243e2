//! The commands for containers without a shell, as processes of their own.

use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::time::Instant;

use crate::support::frame::{CLOSE, plain};
use crate::support::process::{Process, Signal, command, command_with};
use crate::support::{App, Sidecar, Wire, soon};

const GOING_AWAY: [u8; 2] = 1001u16.to_be_bytes();
const LONG: [&str; 3] = ["--drain-delay=50s", "--drain-window=50s", "--drain-timeout=500s"];
const HEALTHY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// `healthcheck` and its like against a sidecar's admin port.
async fn asked(line: &str, admin: std::net::SocketAddr) -> (Option<i32>, String) {
    let admin = format!("--admin={admin}");
    command(&line.split_whitespace().chain([admin.as_str()]).collect::<Vec<_>>()).await
}

/// An address at which nobody is.
async fn nowhere() -> std::net::SocketAddr {
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
        assert_eq!(asked(line, sidecar.admin).await, (Some(0), String::new()), "{line}");
    }
    sidecar.stop();
    sidecar.until("draining", &[], 1.0).await;
    assert_eq!(asked("healthcheck", sidecar.admin).await.0, Some(0), "who drains lives");
    let (code, told) = asked("healthcheck --ready", sidecar.admin).await;
    let setting = format!("admin = \"{}\" (--admin)", sidecar.admin);
    assert_eq!(
        (code, told),
        (Some(1), format!("heartbeat-sidecar: {setting}: /readyz answers 503 Service Unavailable\n"))
    );
}

#[tokio::test]
async fn who_is_not_there_or_does_not_answer_is_named() {
    let admin = nowhere().await;
    for line in ["healthcheck", "drain", "drain --wait"] {
        let (code, told) = asked(line, admin).await;
        assert_eq!(code, Some(1), "{line}");
        let expected = format!("heartbeat-sidecar: admin = \"{admin}\" (--admin): cannot connect to http://{admin}: ");
        assert!(told.starts_with(&expected), "{told}");
    }
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (code, told) = asked("healthcheck --timeout 100ms", silent.local_addr().unwrap()).await;
    assert_eq!(code, Some(1));
    assert!(told.ends_with(": no answer within 100ms\n"), "{told}");
    let (code, told) = command(&["healthcheck", "--admin=127.0.0.1:0"]).await;
    assert_eq!(code, Some(2));
    assert!(told.contains("name the port"), "{told}");
    assert_eq!(command(&["healthcheck", "--wait"]).await.0, Some(2));
}

#[tokio::test]
async fn every_address_is_this_machine_and_a_broken_file_is_no_broken_sidecar() {
    let (_app, sidecar) = Sidecar::with_app().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sidecar.toml");
    std::fs::write(&path, format!("admin = '0.0.0.0:{}'\nlog_level = '!'\n", sidecar.admin.port())).unwrap();
    let (code, told) = command(&["healthcheck", "--config", path.to_str().unwrap()]).await;
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("warning: ") && told.contains("sidecar.toml:2: log_level: "), "{told}");
    let (code, told) = command(&["wait", "--config", path.to_str().unwrap()]).await;
    assert_eq!(code, Some(2), "what run would refuse is not waited for: {told}");
}

/// Answers one request of `wait` so.
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
    let (code, told) = soon(waiting).await.unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(
        told,
        format!(
            "heartbeat-sidecar: upstream = \"http://{}\" (--upstream): /team/_stcore/health: waiting: it answers 503 \
             Service Unavailable\n",
            app.address()
        )
    );
}

#[tokio::test]
async fn wait_asks_every_app_below_its_routes_path() {
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
async fn wait_reaches_a_unix_socket_and_gives_up_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let upstream = format!("--upstream=unix:{}", path.display());
    let (code, told) = command(&["wait", "--timeout=300ms", &upstream]).await;
    assert_eq!(code, Some(1));
    assert!(told.contains(": given up after 300ms: cannot connect to unix:"), "{told}");
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
async fn drain_begins_the_drain_and_with_wait_sees_its_end() {
    let app = App::bind().await;
    let sidecar = Process::start(&app, &["--drain-window=0s"]).await;
    let admin = sidecar.admin;
    let seen = Sidecar::elsewhere(sidecar.address, admin);
    let mut session = seen.stream(&app).await;
    assert_eq!(asked("drain", admin).await, (Some(0), String::new()));
    session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    let (code, told) = asked("drain --wait --timeout 300ms", admin).await;
    assert_eq!(code, Some(1));
    assert!(told.ends_with(": still there after 300ms\n"), "{told}");
    drop(session);
    assert_eq!(sidecar.exit_code().await, Some(0));
}

#[tokio::test]
async fn drain_is_answered_also_where_nothing_is_left_to_wait_for() {
    let app = App::bind().await;
    for line in ["drain", "drain --wait"] {
        let sidecar = Process::start(&app, &[]).await;
        assert_eq!(asked(line, sidecar.admin).await, (Some(0), String::new()));
        assert_eq!(sidecar.exit_code().await, Some(0));
    }
}

#[tokio::test]
async fn a_stop_behind_a_drain_of_another_does_not_wait_for_delay_or_window() {
    let app = App::bind().await;
    let mut sidecar = Process::start(&app, &LONG).await;
    let seen = Sidecar::elsewhere(sidecar.address, sidecar.admin);
    let mut session = seen.stream(&app).await;
    assert_eq!(asked("drain", sidecar.admin).await.0, Some(0));
    sidecar.line("draining").await;
    // All is served while the app is alive.
    let mut other = seen.stream(&app).await;
    // The app goes, and takes its sessions along; then comes the stop.
    other.app.finish().await;
    other.browser.end().await;
    let stopped = Instant::now();
    sidecar.signal(Signal::TERM);
    sidecar.line("stopped while draining").await;
    session.browser.expect(plain(CLOSE, GOING_AWAY)).await;
    assert_eq!(sidecar.exit_code().await, Some(0), "also where a browser does not answer");
    assert!(stopped.elapsed() < Duration::from_secs(5), "{:?}", stopped.elapsed());
}

#[tokio::test]
async fn a_second_signal_behind_a_drain_ends_at_once() {
    let app = App::bind().await;
    let mut sidecar = Process::start(&app, &LONG).await;
    let seen = Sidecar::elsewhere(sidecar.address, sidecar.admin);
    let _session = seen.stream(&app).await;
    sidecar.signal(Signal::TERM);
    sidecar.line("draining").await;
    assert_eq!(asked("drain", sidecar.admin).await.0, Some(0), "it drains");
    sidecar.signal(Signal::TERM);
    assert_eq!(sidecar.exit_code().await, Some(1));
}

#[tokio::test]
async fn a_wrong_number_of_worker_threads_is_named() {
    for wrong in ["", "0", "-1", "1.5", "1025", "many"] {
        let run = ["run", "--upstream=http://127.0.0.1:1", "--listen=127.0.0.1:0", "--admin=127.0.0.1:0"];
        let (code, told) = command_with(&run, |command| command.env("TOKIO_WORKER_THREADS", wrong)).await;
        let reason = format!("TOKIO_WORKER_THREADS: {wrong:?} is no whole number from 1 to 1024\n");
        assert_eq!(code, Some(2));
        assert!(told.ends_with(&reason), "{told}");
    }
}
