//! `probe`: acts as a browser that sends heartbeats to an app, and reports the acks.

pub(crate) mod browser;
pub(crate) mod heartbeats;
pub(crate) mod leg;
mod resumption;
mod summary;
pub(crate) mod target;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until, timeout};

use super::failure::failed;
use crate::cli::ProbeArgs;
use browser::{AnsweredBy, Browser, Received, ResumeError};
use heartbeats::{Answered, Heartbeats, Latencies, format_latency};
use leg::{OpenError, StreamError};
use resumption::ProtocolError;
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
    /// Acks that answer no heartbeat.
    doubled: u32,
    /// How often the probe has cut its connection.
    cuts: u32,
    resumed: u32,
}

/// Why a probe ended early.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Resume(#[from] ResumeError),
    #[error("the sidecar has not confirmed all messages within {}", humantime::format_duration(*.0))]
    Unconfirmed(Duration),
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
/// every heartbeat was acked in time and every cut connection resumed, 2 if the URL is invalid, 1 otherwise.
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
            doubled: 0,
            cuts: 0,
            resumed: 0,
        }
    }

    async fn run(&mut self) -> Result<(), ProbeError> {
        let cuts = self.args.cut > 0;
        let mut browser = Browser::open(&self.target, cuts, self.args.timeout).await?;
        browser.rerun().await?;
        // A server that does not send its version can still ack heartbeats.
        if let Ok(version) = timeout(self.args.timeout, browser.version()).await {
            self.version = version?;
        }
        if cuts && !browser.is_greeted() {
            return Err(StreamError::from(ProtocolError::NotOffered).into());
        }
        let mut ticks = interval(self.args.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Some(event) = self.event(&mut browser, &mut ticks).await? {
            self.on_event(event, &mut browser).await?;
        }
        let limit = self.args.timeout;
        timeout(limit, self.settle(&mut browser)).await.map_err(|_elapsed| ProbeError::Unconfirmed(limit))??;
        browser.close().await;
        Ok(())
    }

    /// Exchanges counts with the sidecar once more. What a cut has doubled arrives before its answer.
    async fn settle(&mut self, browser: &mut Browser) -> Result<(), ProbeError> {
        browser.confirm().await?;
        while !browser.is_settled() {
            let received = browser.next().await?;
            self.on_event(Event::Received(received), browser).await?;
        }
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
            Event::Received(Received::Delta(_) | Received::Other) => {}
            Event::HeartbeatDue => self.heartbeat(browser).await?,
            Event::AckOverdue => {
                while let Some(number) = self.heartbeats.next_overdue(Instant::now()) {
                    let timeout = humantime::format_duration(self.args.timeout);
                    self.print(&format!("heartbeat {number}: no ack within {timeout}"))?;
                }
            }
        }
        Ok(())
    }

    /// Sends a heartbeat, and cuts the connection as often as is due. The ack is on its way then; at every second cut the
    /// heartbeat itself is lost.
    async fn heartbeat(&mut self, browser: &mut Browser) -> Result<(), ProbeError> {
        let due = cuts_due(self.heartbeats.sent() + 1, self.args) - self.cuts;
        let mut lost = if due > 0 && self.cuts % 2 == 1 { browser.lose_leg() } else { None };
        let sent_at = Instant::now();
        browser.heartbeat().await?;
        self.heartbeats.on_sent(sent_at);
        for _cut in 0..due {
            if let Some(leg) = lost.take().or_else(|| browser.lose_leg()) {
                leg.reset();
            }
            self.cuts += 1;
            let cut_at = Instant::now();
            let resent = browser.resume().await?;
            self.resumed += 1;
            let (cut, waited) = (self.cuts, format_latency(cut_at.elapsed()));
            let messages = if resent == 1 { "message" } else { "messages" };
            self.print(&format!("cut {cut}: resumed in {waited}, {resent} {messages} sent again"))?;
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
            None => {
                self.doubled += 1;
                self.print(&format!("unexpected ack from {by}: no heartbeat waits for one"))
            }
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
            cuts: self.cuts,
            resumed: self.resumed,
            lost: decided - acked - self.late,
            doubled: self.doubled,
        }
    }
}

/// How many cuts are due with heartbeat `number`: spread evenly, one in the middle.
fn cuts_due(number: u32, &ProbeArgs { count, cut, .. }: &ProbeArgs) -> u32 {
    let [number, count, cut] = [number, count, cut].map(u64::from);
    ((2 * number * cut + count) / (2 * count)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_spread_over_the_heartbeats() {
        let due = |count, cut| {
            let (url, time) = (String::new(), Duration::ZERO);
            let args = ProbeArgs { url, count, cut, interval: time, timeout: time, json: false };
            (1..=count).map(|number| cuts_due(number, &args)).collect::<Vec<_>>()
        };
        assert_eq!(due(4, 0), [0, 0, 0, 0]);
        assert_eq!(due(5, 1), [0, 0, 1, 1, 1]);
        assert_eq!(due(8, 3), [0, 1, 1, 2, 2, 2, 3, 3]);
        assert_eq!(due(3, 3), [1, 2, 3]);
        assert_eq!(due(2, 5), [3, 5]);
        assert_eq!(due(1, 1), [1]);
        assert_eq!(due(3, u32::MAX).last(), Some(&u32::MAX));
    }
}
