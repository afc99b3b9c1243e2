//! `probe`: acts as a browser that sends heartbeats to an app, and reports the acks.

pub(crate) mod browser;
pub(crate) mod heartbeats;
mod summary;
pub(crate) mod target;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until, timeout};

use super::failure::failed;
use crate::cli::ProbeArgs;
use browser::{AnsweredBy, Browser, OpenError, Received, StreamError};
use heartbeats::{Answered, Heartbeats, Latencies, format_latency};
use summary::{Answerers, Summary};
use target::Target;

/// A probe and its results so far.
struct Probe<'a> {
    args: &'a ProbeArgs,
    target: Target,
    version: Option<String>,
    heartbeats: Heartbeats,
    latencies: Latencies,
    answered_by: Option<Answerers>,
    acked: u32,
    late: u32,
}

/// Why a probe ended early.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Output(#[from] io::Error),
    #[error("interrupted")]
    Interrupted,
}

/// The next event on a probe's connection.
enum Event {
    Received(Received),
    HeartbeatDue,
    AckOverdue,
}

/// Probes the app. Prints the result of each heartbeat, and a summary at the end, also after Ctrl-C. Exit code 0 if
/// every heartbeat was acked in time, 2 if the URL is invalid, 1 otherwise.
pub fn probe(args: &ProbeArgs) -> ExitCode {
    match start(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error, false),
    }
}

fn start(args: &ProbeArgs) -> anyhow::Result<bool> {
    let target = Target::parse(&args.url)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut probe = Probe::new(args, target);
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = probe.run() => ended,
            _signal = tokio::signal::ctrl_c() => Err(ProbeError::Interrupted),
        }
    });
    // Does not wait for a hanging name look-up.
    runtime.shutdown_background();
    if let Err(ProbeError::Output(error)) = ended {
        return Err(error).context("cannot write to stdout");
    }
    let interrupted = matches!(ended, Err(ProbeError::Interrupted));
    let error = ended.err().map(|error| format!("{:#}", anyhow::Error::from(error)));
    if let Some(error) = &error {
        eprintln!("error: {}: {error}", probe.target);
    }
    let summary = probe.summary(interrupted, error.filter(|_| !interrupted));
    if args.json {
        writeln!(io::stdout(), "{}", summary.json())?;
    } else if summary.sent > 0 {
        writeln!(io::stdout(), "\n{summary}")?;
    }
    Ok(summary.is_success())
}

impl<'a> Probe<'a> {
    fn new(args: &'a ProbeArgs, target: Target) -> Self {
        Self {
            args,
            target,
            version: None,
            heartbeats: Heartbeats::new(args.timeout),
            latencies: Latencies::default(),
            answered_by: None,
            acked: 0,
            late: 0,
        }
    }

    async fn run(&mut self) -> Result<(), ProbeError> {
        let mut browser = Browser::open(&self.target, self.args.timeout).await?;
        browser.rerun().await?;
        // A server that does not send its version can still ack heartbeats.
        if let Ok(version) = timeout(self.args.timeout, browser.version()).await {
            self.version = version?;
        }
        let mut ticks = interval(self.args.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Some(event) = self.event(&mut browser, &mut ticks).await? {
            self.on_event(event, &mut browser).await?;
        }
        browser.close().await;
        Ok(())
    }

    /// The next event; `None` if all is done.
    async fn event(&self, browser: &mut Browser, ticks: &mut Interval) -> Result<Option<Event>, StreamError> {
        let deadline = self.heartbeats.deadline();
        let to_send = self.heartbeats.sent() < self.args.count;
        if !to_send && deadline.is_none() {
            return Ok(None);
        }
        let overdue = async {
            match deadline {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            received = browser.next() => Ok(Some(Event::Received(received?))),
            _tick = ticks.tick(), if to_send => Ok(Some(Event::HeartbeatDue)),
            () = overdue => Ok(Some(Event::AckOverdue)),
        }
    }

    async fn on_event(&mut self, event: Event, browser: &mut Browser) -> Result<(), ProbeError> {
        match event {
            Event::Received(Received::Ack(by)) => self.on_ack(by)?,
            Event::Received(Received::NewSession(version)) => self.version = version.or(self.version.take()),
            Event::Received(Received::Other) => {}
            Event::HeartbeatDue => {
                let sent_at = Instant::now();
                browser.heartbeat().await?;
                self.heartbeats.on_sent(sent_at);
            }
            Event::AckOverdue => {
                while let Some(number) = self.heartbeats.next_overdue(Instant::now()) {
                    let timeout = humantime::format_duration(self.args.timeout);
                    self.print(&format!("heartbeat {number}: no ack within {timeout}"))?;
                }
            }
        }
        Ok(())
    }

    fn on_ack(&mut self, by: AnsweredBy) -> io::Result<()> {
        self.answered_by = Some(Answerers::and(self.answered_by, by));
        let by = by.name();
        match self.heartbeats.on_ack(Instant::now()) {
            Some(Answered { number, waited, late: false }) => {
                self.acked += 1;
                self.latencies.push(waited);
                self.print(&format!("heartbeat {number}: ack from {by} in {}", format_latency(waited)))
            }
            Some(Answered { number, waited, late: true }) => {
                self.late += 1;
                self.print(&format!("heartbeat {number}: late ack from {by} after {}", format_latency(waited)))
            }
            None => self.print(&format!("unexpected ack from {by}: no heartbeat waits for one")),
        }
    }

    fn print(&self, line: &str) -> io::Result<()> {
        if self.args.json { Ok(()) } else { writeln!(io::stdout(), "{line}") }
    }

    /// The result at the end.
    fn summary(self, interrupted: bool, error: Option<String>) -> Summary {
        let (requested, sent, acked) = (self.args.count, self.heartbeats.sent(), self.acked);
        // Heartbeats of an interrupted probe could still be acked in time.
        let decided = if interrupted { sent - self.heartbeats.in_time(Instant::now()) } else { sent };
        Summary {
            url: self.target.to_string(),
            server_version: self.version,
            answered_by: self.answered_by,
            requested,
            sent,
            acked,
            missed: decided - acked,
            not_sent: requested - sent,
            late: self.late,
            latency_seconds: self.latencies.summary(),
            interrupted,
            error,
        }
    }
}
