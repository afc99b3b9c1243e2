//! The real binary as a child process, and its log.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::Stdio;

use rustix::process::{Pid, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

pub(crate) use rustix::process::Signal;

use super::{App, soon};

/// A sidecar that runs until it is stopped or dropped.
pub(crate) struct Process {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
}

impl Process {
    /// `run` in front of this app, with these additional flags.
    pub(crate) async fn start(app: &App, flags: &[&str]) -> Self {
        Self::start_with(app, flags, |command| command).await
    }

    /// Like [`Self::start`], with a command changed by `prepare`.
    pub(crate) async fn start_with(
        app: &App,
        flags: &[&str],
        prepare: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Self {
        let upstream = format!("--upstream=http://{}", app.address());
        Self::spawn(&[&[upstream.as_str()], flags].concat(), prepare).await
    }

    /// `run` with only these flags.
    pub(crate) async fn start_alone(flags: &[&str]) -> Self {
        Self::spawn(flags, |command| command).await
    }

    async fn spawn(flags: &[&str], prepare: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let mut command = Command::new(binary());
        command.args(["run", "--listen=127.0.0.1:0", "--admin=127.0.0.1:0", "--log-format=json"]);
        let mut child = prepare(command.args(flags)).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = bound(&mut log, "listening on ").await;
        let admin = bound(&mut log, "admin on ").await;
        Self { address, admin, child, log }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().expect("it runs").try_into().unwrap()).unwrap()
    }

    /// The next log line whose message starts with `message`.
    pub(crate) async fn line(&mut self, message: &str) -> Value {
        line(&mut self.log, message).await
    }

    /// Stops the sidecar; returns the rest of its log.
    pub(crate) async fn stopped(mut self) -> Vec<Value> {
        self.signal(Signal::TERM);
        let mut lines = Vec::new();
        while let Some(line) = soon(self.log.next_line()).await.unwrap() {
            lines.push(serde_json::from_str(&line).unwrap());
        }
        lines
    }

    /// The exit code; `None` if a signal killed the process.
    pub(crate) async fn exit_code(mut self) -> Option<i32> {
        soon(self.child.wait()).await.unwrap().code()
    }
}

/// Runs another command until it exits; returns its exit code and stderr.
pub(crate) async fn command(arguments: &[&str]) -> (Option<i32>, String) {
    command_with(arguments, |command| command).await
}

/// Like [`command`], with stdout.
pub(crate) async fn printed(arguments: &[&str]) -> (Option<i32>, String) {
    let output = soon(Command::new(binary()).args(arguments).kill_on_drop(true).output()).await.unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// Like [`command`], with a command changed by `prepare`.
pub(crate) async fn command_with(
    arguments: &[&str],
    prepare: impl FnOnce(&mut Command) -> &mut Command,
) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    let output = soon(prepare(command.args(arguments)).kill_on_drop(true).output()).await.unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// `HEARTBEAT_SIDECAR_TEST_BINARY` names another build than the one of this test.
fn binary() -> OsString {
    std::env::var_os("HEARTBEAT_SIDECAR_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_heartbeat-sidecar").into())
}

async fn line(log: &mut Lines<BufReader<ChildStderr>>, message: &str) -> Value {
    let mut seen = String::new();
    loop {
        let Some(line) = soon(log.next_line()).await.unwrap() else { panic!("no {message:?} in the log:\n{seen}") };
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        if event["message"].as_str().is_some_and(|text| text.starts_with(message)) {
            return event;
        }
        seen += &line;
        seen += "\n";
    }
}

async fn bound(log: &mut Lines<BufReader<ChildStderr>>, message: &str) -> SocketAddr {
    let event = line(log, message).await;
    event["message"].as_str().unwrap()[message.len()..].parse().unwrap()
}
