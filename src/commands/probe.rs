//! `probe`: acts as a browser that sends heartbeats to an app, and reports the acks.

pub(crate) mod browser;
pub(crate) mod ledger;
mod summary;
pub(crate) mod target;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until, timeout};

use super::failure::failed;
use crate::cli::ProbeArgs;
use browser::{AnsweredBy, Browser, Lost, OpenError, Seen};
use ledger::{Answered, Latencies, Ledger, shown};
use summary::{Answerers, Summary};
use target::Target;

/// A probe and its results so far.
struct Probe<'a> {
    args: &'a ProbeArgs,
    target: Target,
    version: Option<String>,
    ledger: Ledger,
    latencies: Latencies,
    answered_by: Option<Answerers>,
    acked: u32,
    late: u32,
}

/// Why a probe ended before it was done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error(transparent)]
    Output(#[from] io::Error),
    #[error("interrupted")]
    Interrupted,
}

/// The next event on a probe's connection.
enum Event {
    Seen(Seen),
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
            _signal = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
        }
    });
    // Does not wait for a hanging name look-up.
    runtime.shutdown_background();
    if let Err(Failure::Output(error)) = ended {
        return Err(error).context("cannot write");
    }
    let interrupted = matches!(ended, Err(Failure::Interrupted));
    let error = ended.err().map(|failure| format!("{:#}", anyhow::Error::from(failure)));
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
            ledger: Ledger::new(args.timeout),
            latencies: Latencies::default(),
            answered_by: None,
            acked: 0,
            late: 0,
        }
    }

    async fn run(&mut self) -> Result<(), Failure> {
        let mut browser = Browser::open(&self.target, self.args.timeout).await?;
        browser.rerun().await?;
        // A server that does not send its version can still ack heartbeats.
        if let Ok(told) = timeout(self.args.timeout, browser.version()).await {
            self.version = told?;
        }
        let mut beats = interval(self.args.interval);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Some(event) = self.event(&mut browser, &mut beats).await? {
            self.on_event(event, &mut browser).await?;
        }
        browser.close().await;
        Ok(())
    }

    /// The next event; `None` if all is done.
    async fn event(&self, browser: &mut Browser, beats: &mut Interval) -> Result<Option<Event>, Lost> {
        let deadline = self.ledger.deadline();
        let to_send = self.ledger.sent() < self.args.count;
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
            seen = browser.next() => Ok(Some(Event::Seen(seen?))),
            _tick = beats.tick(), if to_send => Ok(Some(Event::HeartbeatDue)),
            () = overdue => Ok(Some(Event::AckOverdue)),
        }
    }

    async fn on_event(&mut self, event: Event, browser: &mut Browser) -> Result<(), Failure> {
        match event {
            Event::Seen(Seen::Ack(by)) => self.on_ack(by)?,
            Event::Seen(Seen::NewSession(told)) => self.version = told.or(self.version.take()),
            Event::Seen(Seen::Other) => {}
            Event::HeartbeatDue => {
                let begun = Instant::now();
                browser.heartbeat().await?;
                self.ledger.on_sent(begun);
            }
            Event::AckOverdue => {
                while let Some(number) = self.ledger.on_time(Instant::now()) {
                    let timeout = humantime::format_duration(self.args.timeout);
                    self.say(&format!("heartbeat {number}: no ack within {timeout}"))?;
                }
            }
        }
        Ok(())
    }

    fn on_ack(&mut self, by: AnsweredBy) -> io::Result<()> {
        self.answered_by = Some(Answerers::and(self.answered_by, by));
        let by = by.name();
        match self.ledger.on_ack(Instant::now()) {
            Some(Answered { number, waited, late: false }) => {
                self.acked += 1;
                self.latencies.push(waited);
                self.say(&format!("heartbeat {number}: ack from {by} in {}", shown(waited)))
            }
            Some(Answered { number, waited, late: true }) => {
                self.late += 1;
                self.say(&format!("heartbeat {number}: late ack from {by} after {}", shown(waited)))
            }
            None => self.say(&format!("an ack from {by} that answers no heartbeat")),
        }
    }

    fn say(&self, line: &str) -> io::Result<()> {
        if self.args.json { Ok(()) } else { writeln!(io::stdout(), "{line}") }
    }

    /// The result at the end.
    fn summary(self, interrupted: bool, error: Option<String>) -> Summary {
        let (requested, sent, acked) = (self.args.count, self.ledger.sent(), self.acked);
        // Heartbeats of an interrupted probe could still be acked in time.
        let awaited = if interrupted { sent - self.ledger.in_time(Instant::now()) } else { sent };
        Summary {
            url: self.target.to_string(),
            server_version: self.version,
            answered_by: self.answered_by,
            requested,
            sent,
            acked,
            missed: awaited - acked,
            not_sent: requested - sent,
            late: self.late,
            latency_seconds: self.latencies.figures(),
            interrupted,
            error,
        }
    }
}
