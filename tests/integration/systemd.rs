//! The systemd integration: notifications over `NOTIFY_SOCKET`, and socket activation.

use std::net::TcpListener;
use std::os::fd::OwnedFd;

use tokio::net::UnixDatagram;
use tokio::process::Command;

use crate::support::process::{Process, Signal, command_with};
use crate::support::{App, Sidecar, soon};

/// The notification socket; removed on drop.
struct NotifySocket {
    socket: UnixDatagram,
    _folder: tempfile::TempDir,
}

/// A sidecar with `NOTIFY_SOCKET` and what `prepare` sets; and that socket.
async fn notified(
    app: &App,
    flags: &[&str],
    prepare: impl FnOnce(&mut Command) -> &mut Command,
) -> (Process, NotifySocket) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let notifications = NotifySocket { socket: UnixDatagram::bind(&path).unwrap(), _folder: folder };
    let process = Process::start_with(app, flags, |command| prepare(command.env("NOTIFY_SOCKET", &path))).await;
    (process, notifications)
}

/// Reads notifications until `line` is among them; returns all lines.
async fn until(notifications: &NotifySocket, line: &str) -> Vec<String> {
    let mut lines = Vec::new();
    while !lines.iter().any(|seen| seen == line) {
        let mut buffer = [0; 4096];
        let length = soon(notifications.socket.recv(&mut buffer)).await.unwrap();
        lines.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
    }
    lines
}

#[tokio::test]
async fn systemd_is_notified_of_start_sessions_watchdog_and_stop() {
    let app = App::bind().await;
    let flags = ["--drain-window=0s", "--drain-timeout=100s"];
    let (process, notifications) =
        notified(&app, &flags, |command| command.env("WATCHDOG_USEC", "200000").env_remove("WATCHDOG_PID")).await;
    let start = until(&notifications, "READY=1").await;
    assert!(start.contains(&"STATUS=serving, sessions: 0".to_owned()), "{start:?}");
    until(&notifications, "WATCHDOG=1").await;
    until(&notifications, "WATCHDOG=1").await;
    let seen = Sidecar::elsewhere(process.address, process.admin);
    let session = seen.stream(&app).await;
    until(&notifications, "STATUS=serving, sessions: 1").await;
    process.signal(Signal::TERM);
    let end = until(&notifications, "STATUS=draining, sessions: 1").await;
    for line in ["STOPPING=1", "EXTEND_TIMEOUT_USEC=105000000"] {
        assert!(end.contains(&line.to_owned()), "{end:?}");
    }
    until(&notifications, "WATCHDOG=1").await;
    drop(session);
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn without_watchdog_usec_only_state_changes_are_notified() {
    let app = App::bind().await;
    let (process, notifications) = notified(&app, &[], |command| command).await;
    assert_eq!(until(&notifications, "READY=1").await, ["READY=1", "STATUS=serving, sessions: 0"]);
    process.signal(Signal::TERM);
    assert_eq!(until(&notifications, "STOPPING=1").await[0], "STOPPING=1");
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn systemd_is_notified_of_a_reload() {
    let app = App::bind().await;
    let (process, notifications) = notified(&app, &[], |command| command).await;
    until(&notifications, "READY=1").await;
    process.signal(Signal::HUP);
    let lines = until(&notifications, "READY=1").await;
    assert!(lines[0] == "RELOADING=1" && lines[1].starts_with("MONOTONIC_USEC="), "{lines:?}");
}

/// A sidecar that inherits these sockets from descriptor 0 on (listenfd's `LISTEN_FDS_FIRST_FD`).
async fn activated(app: &App, names: &str, sockets: [TcpListener; 2]) -> Process {
    let [first, second] = sockets.map(OwnedFd::from);
    Process::start_with(app, &[], |command| {
        command.env("LISTEN_FDS", "2").env("LISTEN_FDS_FIRST_FD", "0").env("LISTEN_FDNAMES", names);
        command.stdin(first).stdout(second)
    })
    .await
}

#[tokio::test]
async fn sockets_passed_by_systemd_are_served() {
    let app = App::bind().await;
    for (names, swapped) in [("listen:admin", false), ("admin:listen", true), ("a.socket:a.socket", false)] {
        let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = [0, 1].map(|socket: usize| sockets[socket].local_addr().unwrap());
        let process = activated(&app, names, sockets).await;
        let [listen, admin] = if swapped { [addresses[1], addresses[0]] } else { addresses };
        assert_eq!([process.address, process.admin], [listen, admin], "{names}");
        let seen = Sidecar::elsewhere(listen, admin);
        assert!(seen.admin("/readyz").await.0.starts_with("HTTP/1.1 200 "));
        let _session = seen.stream(&app).await;
    }
}

#[tokio::test]
async fn more_than_1024_passed_sockets_are_rejected() {
    let (code, error) =
        command_with(&["run"], |command| command.env("LISTEN_FDS", i32::MAX.to_string()).env_remove("LISTEN_PID"))
            .await;
    assert_eq!(code, Some(1));
    assert!(error.contains("LISTEN_FDS=2147483647: at most 1024 sockets are accepted"), "{error}");
}
