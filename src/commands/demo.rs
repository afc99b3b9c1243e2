//! `demo`: an app, a sidecar and a browser in one process, in four acts.

mod legacy;
mod output;
mod results;
mod schedule;
mod steps;

use std::fmt::Display;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::time::{Interval, interval_at, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::failure::failed;
use super::probe::browser::{AnsweredBy, Browser, Received};
use super::probe::heartbeats::{Heartbeats, format_latency};
use super::probe::leg::Leg;
use super::probe::target::Target;
use crate::cli::DemoArgs;
use crate::config::{Config, DAY, UpstreamAddress, WatchdogMode};
use crate::metrics::Metrics;
use crate::sidecar::Sidecar;
use crate::telemetry;
use legacy::LegacyServer;
use output::{Output, Row, Tone};
use results::{Ack, Act, Results};
use schedule::{HEARTBEAT_INTERVAL, Schedule, heartbeats_in};
use steps::Steps;

/// Time after which the sidecar counts a heartbeat as withheld; shorter than [`HEARTBEAT_INTERVAL`], so that all are
/// counted.
const STALL_AFTER: Duration = Duration::from_millis(250);

/// Timeout of the start: connecting, and the first script run.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// Extra time for the last acks, and for the end of the sidecar.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// The browser, and what it has received.
struct Demo {
    browser: Browser,
    heartbeats: Heartbeats,
    results: Results,
    steps: Steps,
    /// The browser's connection while the network is cut: open, but nothing passes.
    dead: Option<Leg>,
    output: Output,
    started: Instant,
    /// The last heartbeat whose row is written.
    last_row: u32,
}

/// Runs the demo. Exit code 0 if every expected ack and every step of the script arrived, and no ack was sent while the
/// app was frozen; else 1.
pub fn demo(args: &DemoArgs) -> ExitCode {
    match start(args.seconds) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error, false),
    }
}

fn start(seconds: u32) -> anyhow::Result<bool> {
    let _log = telemetry::init(false, "warn")?;
    // One thread: a freeze takes effect at once, since no other thread runs the app.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(run(Schedule::new(Duration::from_secs(seconds.into()))))
}

async fn run(schedule: Schedule) -> anyhow::Result<bool> {
    let server = LegacyServer::start(schedule.steps()).await.context("the app cannot listen")?;
    let sidecar = Sidecar::bind(configuration(server.address())).await?;
    let (address, admin, metrics) = (sidecar.address()?, sidecar.admin_address()?, sidecar.metrics());
    let stop = CancellationToken::new();
    let running = tokio::spawn(sidecar.run(stop.clone().cancelled_owned()));

    let output = Output::new();
    introduce(&output, server.address(), address, admin)?;
    let mut demo = Demo::open(address, output).await?;
    demo.alive(&schedule).await?;
    demo.cut(&schedule).await?;
    server.freeze();
    demo.frozen(&schedule).await?;
    server.thaw();
    demo.thawed(&schedule).await?;
    demo.steps.on_end(schedule.steps(), server.streams());
    let passed = demo.print_summary(&metrics)?;

    demo.browser.close().await;
    stop.cancel();
    // Remaining tasks are aborted with the runtime.
    let _ended = timeout(END_TIMEOUT, running).await;
    Ok(passed)
}

fn configuration(upstream: SocketAddr) -> Config {
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut config = Config { listen: free, admin: free, ..Config::default() };
    config.upstream = UpstreamAddress::Http { host: upstream.ip().to_string(), port: upstream.port() };
    config.heartbeat.stall_after = STALL_AFTER;
    // Sessions are resumable only with a watchdog.
    config.watchdog.mode = WatchdogMode::Page;
    (config.drain.window, config.drain.timeout) = (Duration::ZERO, END_TIMEOUT);
    config
}

fn introduce(output: &Output, app: SocketAddr, sidecar: SocketAddr, admin: SocketAddr) -> io::Result<()> {
    let version = legacy::VERSION;
    output.line(
        Tone::Plain,
        format_args!("A Streamlit {version} app never acks a heartbeat; the sidecar in front of it does."),
    )?;
    output.line(Tone::Plain, "")?;
    output
        .line(Tone::Plain, format_args!("  browser  -->  heartbeat-sidecar http://{sidecar}  -->  app http://{app}"))?;
    output.line(Tone::Plain, format_args!("                metrics at http://{admin}/metrics"))
}

impl Demo {
    /// Opens the page and waits for its first script run: the version in it decides which side acks.
    async fn open(sidecar: SocketAddr, output: Output) -> anyhow::Result<Self> {
        let target = Target::parse(&format!("http://{sidecar}/"))?;
        let mut browser = Browser::open(&target, true, START_TIMEOUT).await?;
        browser.rerun().await?;
        timeout(START_TIMEOUT, browser.version()).await.context("the app did not start")??;
        // No heartbeat ever becomes overdue: late acks are expected here.
        let heartbeats = Heartbeats::new(2 * DAY);
        Ok(Self {
            browser,
            heartbeats,
            results: Results::default(),
            steps: Steps::default(),
            dead: None,
            output,
            started: Instant::now(),
            last_row: 0,
        })
    }

    async fn alive(&mut self, schedule: &Schedule) -> anyhow::Result<()> {
        self.print_title("Act 1, alive: the app runs. The sidecar acks after the app has answered a ping.")?;
        self.output.header()?;
        let end = self.started + schedule.alive;
        self.send_until(Act::Alive, end).await?;
        // A slow machine's acks may use part of the next act's time.
        self.await_acks(Act::Alive, end + schedule.cut_after / 2).await
    }

    /// Three parts: before, during and after the outage.
    async fn cut(&mut self, schedule: &Schedule) -> anyhow::Result<()> {
        self.print_title(
            "Act 2, cut: the network fails while a script writes ten steps a second. No step may be lost.",
        )?;
        let start = self.started + schedule.alive;
        let (cut, back) = (start + schedule.cut_after, start + schedule.cut_after + schedule.outage);
        self.send_until(Act::Cut, cut).await?;
        self.dead = self.browser.lose_leg();
        self.note(
            Act::Cut,
            format_args!("network cut without a word after step {}", self.steps.last()),
            Tone::Waiting,
        )?;
        self.send_until(Act::Cut, back).await?;
        self.print_unanswered(Act::Cut)?;
        self.browser.resume().await?;
        self.dead = None;
        let next = self.steps.last() + 1;
        self.note(
            Act::Cut,
            format_args!("network back: resumed over a new connection from step {next} on"),
            Tone::Good,
        )?;
        let end = start + schedule.cut;
        self.send_until(Act::Cut, end).await?;
        // A slow machine's acks may use part of the next act's time before the freeze.
        self.await_acks(Act::Cut, end + schedule.frozen / 2).await
    }

    async fn frozen(&mut self, schedule: &Schedule) -> anyhow::Result<()> {
        self.print_title("Act 3, frozen: the app hangs, its sockets stay open. An ack now would be false.")?;
        let (start, end) = (Instant::now(), self.started + schedule.alive + schedule.cut + schedule.frozen);
        let (left, interval) = (end.saturating_duration_since(start), schedule.frozen_interval);
        // Half an interval is enough to count the last one as withheld.
        self.send(Act::Frozen, heartbeats_in(left + interval / 2, interval), ticks(start, interval)).await?;
        self.receive_until(Act::Frozen, end).await?;
        Ok(self.print_unanswered(Act::Frozen)?)
    }

    async fn thawed(&mut self, schedule: &Schedule) -> anyhow::Result<()> {
        self.print_title("Act 4, thawed: the app runs again. The late acks come first, then prompt ones.")?;
        let start = Instant::now();
        // Leaves half an interval for the last ack.
        let count = heartbeats_in(schedule.thawed.saturating_sub(HEARTBEAT_INTERVAL / 2), HEARTBEAT_INTERVAL);
        self.send(Act::Thawed, count, ticks(start + HEARTBEAT_INTERVAL, HEARTBEAT_INTERVAL)).await?;
        self.await_acks(Act::Thawed, start + schedule.thawed + END_TIMEOUT).await
    }

    /// Sends heartbeats until `end`, the first at once.
    async fn send_until(&mut self, act: Act, end: Instant) -> anyhow::Result<()> {
        let start = Instant::now();
        let count = heartbeats_in(end.saturating_duration_since(start), HEARTBEAT_INTERVAL);
        self.send(act, count, ticks(start, HEARTBEAT_INTERVAL)).await?;
        self.receive_until(act, end).await
    }

    /// Sends `count` heartbeats at the ticks, and handles messages in between.
    async fn send(&mut self, act: Act, count: u128, mut ticks: Interval) -> anyhow::Result<()> {
        let mut left = count;
        while left > 0 {
            tokio::select! {
                received = self.browser.next() => self.on_received(act, &received?)?,
                _tick = ticks.tick() => {
                    left -= 1;
                    self.print_unanswered(act)?;
                    self.heartbeats.on_sent(Instant::now());
                    self.results.on_sent(act);
                    self.browser.heartbeat().await?;
                }
            }
        }
        Ok(())
    }

    /// Handles messages until `end`.
    async fn receive_until(&mut self, act: Act, end: Instant) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                received = self.browser.next() => self.on_received(act, &received?)?,
                () = sleep_until(end.into()) => return Ok(()),
            }
        }
    }

    /// Handles messages until every heartbeat has its ack, at most until `end`.
    async fn await_acks(&mut self, act: Act, end: Instant) -> anyhow::Result<()> {
        while self.heartbeats.unanswered().next().is_some() {
            tokio::select! {
                received = self.browser.next() => self.on_received(act, &received?)?,
                () = sleep_until(end.into()) => return Ok(self.print_unanswered(act)?),
            }
        }
        Ok(())
    }

    fn on_received(&mut self, act: Act, received: &Received) -> io::Result<()> {
        if let Some(step) = legacy::step(received) {
            self.steps.on_step(step);
        }
        let Received::Ack(by) = *received else { return Ok(()) };
        let Some(answered) = self.heartbeats.on_ack(Instant::now()) else {
            self.results.on_unexpected_ack();
            return self
                .output
                .line(Tone::Bad, format_args!("unexpected ack from {}: no heartbeat waits for one", by.name()));
        };
        let (heartbeat, waited) = (answered.number, answered.waited);
        let is_false = self.results.on_ack(heartbeat, Ack { act, waited });
        let late = heartbeat <= self.last_row;
        self.last_row = self.last_row.max(heartbeat);
        let (latency, tone) = match (is_false, late) {
            (true, _) => (format!("{}, false ack", format_latency(waited)), Tone::Bad),
            (false, true) => (format!("{}, late", format_latency(waited)), Tone::Waiting),
            (false, false) => (format_latency(waited), Tone::Good),
        };
        self.row(act, heartbeat, Some(by), latency, tone)
    }

    /// Writes the rows of heartbeats whose ack has not come.
    fn print_unanswered(&mut self, act: Act) -> io::Result<()> {
        let unanswered: Vec<_> = self.heartbeats.unanswered().filter(|number| *number > self.last_row).collect();
        let (text, tone) = match act {
            Act::Frozen => ("withheld", Tone::Waiting),
            Act::Cut if self.dead.is_some() => ("no network", Tone::Waiting),
            Act::Alive | Act::Cut | Act::Thawed => ("no ack yet", Tone::Bad),
        };
        for number in unanswered {
            self.last_row = number;
            self.row(act, number, None, text.to_owned(), tone)?;
        }
        Ok(())
    }

    fn row(&self, act: Act, heartbeat: u32, by: Option<AnsweredBy>, latency: String, tone: Tone) -> io::Result<()> {
        let answered_by = by.map_or("none", AnsweredBy::name);
        self.output.row(&Row { time: self.started.elapsed(), act, heartbeat, answered_by, latency, tone })
    }

    fn note(&self, act: Act, text: impl Display, tone: Tone) -> io::Result<()> {
        self.output.note(self.started.elapsed(), act, text, tone)
    }

    fn print_title(&self, text: &str) -> io::Result<()> {
        self.output.line(Tone::Plain, "")?;
        self.output.line(Tone::Title, text)
    }

    /// Writes the summary and the result; returns whether the demo passed.
    fn print_summary(&self, metrics: &Arc<Metrics>) -> io::Result<bool> {
        let metrics = metrics.render();
        let count = |series, label: &str| total(&metrics, series, label);
        let (heartbeats, withheld) = (count("heartbeats_total", ""), count("acks_withheld_total", ""));
        let acks = |origin: AnsweredBy| count("acks_total", &format!("origin=\"{}\"", origin.name()));
        let (sidecar, upstream) = (acks(AnsweredBy::Sidecar), acks(AnsweredBy::Upstream));
        let latency = self.results.prompt_latency();
        let [min, median, p99] = [latency.min, latency.median, latency.p99]
            .map(|latency| latency.map_or_else(|| "-".to_owned(), format_latency));
        let (frozen, late) = self.results.frozen();
        let (faults, steps, output) = (self.results.faults(), &self.steps, &self.output);

        output.line(Tone::Plain, "")?;
        let counts = format!("{heartbeats} heartbeats, {sidecar} acks by the sidecar, {upstream} by the app");
        output.line(Tone::Plain, format_args!("/metrics     {counts}; {withheld} withheld"))?;
        output
            .line(Tone::Plain, format_args!("ack latency  min {min}, median {median}, p99 {p99} while the app runs"))?;
        output.line(Tone::Plain, format_args!("cut          {steps}"))?;
        output
            .line(Tone::Plain, format_args!("frozen       {frozen} heartbeats, {late} of them acked after the thaw"))?;
        let passed = faults.is_empty() && steps.are_complete();
        let (word, tone) = if passed { ("passed", Tone::Good) } else { ("FAILED", Tone::Bad) };
        let continuity = if steps.are_complete() { "the cut lost nothing" } else { "the cut did harm" };
        output.line(tone, format_args!("result       {word}: {faults}; {continuity}"))?;
        Ok(passed)
    }
}

/// Ticks of heartbeats, the first at `start`.
fn ticks(start: Instant, interval: Duration) -> Interval {
    interval_at(start.into(), interval)
}

/// The sum of a counter's series that have `label`, read from the metrics page.
fn total(metrics: &str, series: &str, label: &str) -> u64 {
    let start = format!("heartbeat_sidecar_{series}{{");
    let lines = metrics.lines().filter(|line| line.starts_with(&start) && line.contains(label));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_unnamed_labels() {
        let metrics = Metrics::new();
        let app = metrics.upstream("default");
        app.ack(crate::heartbeat::AckOrigin::Sidecar, None);
        app.ack(crate::heartbeat::AckOrigin::Sidecar, None);
        app.ack(crate::heartbeat::AckOrigin::Upstream, None);
        let page = metrics.render();
        assert_eq!(total(&page, "acks_total", ""), 3);
        assert_eq!(total(&page, "acks_total", "origin=\"sidecar\""), 2);
        assert_eq!(total(&page, "acks_withheld_total", ""), 0);
    }
}
