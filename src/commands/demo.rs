//! `demo`: app server, sidecar and page in one process, in three acts.

mod legacy;
mod table;
mod verdict;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::time::{Interval, interval_at, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::failure::failed;
use super::probe::browser::{AnsweredBy, Browser, Seen};
use super::probe::ledger::{Ledger, shown};
use super::probe::target::Target;
use crate::app::Sidecar;
use crate::cli::DemoArgs;
use crate::config::{Config, DAY, UpstreamAddress};
use crate::heartbeat::policy::MAX_WAITING;
use crate::metrics::Metrics;
use crate::telemetry;
use legacy::LegacyServer;
use table::{Page, Row, Tone};
use verdict::{Ack, Act, Story};

/// Time between heartbeats; longer in a long frozen act.
const PACE: Duration = Duration::from_millis(500);

/// Time after which the sidecar counts a heartbeat as withheld; shorter than [`PACE`], so that all are counted.
const STALL_AFTER: Duration = Duration::from_millis(250);

/// Timeout of the start: connecting, and the first script run.
const PATIENCE: Duration = Duration::from_secs(5);

/// Extra time for the last acks.
const GRACE: Duration = Duration::from_millis(500);

/// The length of each act, and the frozen one's pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedule {
    alive: Duration,
    frozen: Duration,
    thawed: Duration,
    /// Time between heartbeats of the frozen act.
    frozen_pace: Duration,
}

/// The browser's page and what it has received.
struct Stage {
    browser: Browser,
    ledger: Ledger,
    story: Story,
    page: Page,
    began: Instant,
    /// The last heartbeat whose row is written.
    told: u32,
}

/// Runs the demo. Exit code 0 if every heartbeat to the running app server was acked and none to the frozen one before
/// the thaw; 1 otherwise, with the reason.
pub fn demo(args: &DemoArgs) -> ExitCode {
    match start(args.seconds) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error, false),
    }
}

fn start(seconds: u32) -> anyhow::Result<bool> {
    let _log = telemetry::init(false, "warn")?;
    // One thread: a freeze takes effect at once, since no other thread runs the app server.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(play(Schedule::new(Duration::from_secs(seconds.into()))))
}

async fn play(schedule: Schedule) -> anyhow::Result<bool> {
    let server = LegacyServer::start().await.context("cannot listen")?;
    let sidecar = Sidecar::bind(configuration(server.address())).await?;
    let (address, admin, metrics) = (sidecar.address()?, sidecar.admin_address()?, sidecar.metrics());
    let stop = CancellationToken::new();
    let running = tokio::spawn(sidecar.run(stop.clone().cancelled_owned()));

    let page = Page::new();
    introduce(&page, server.address(), address, admin)?;
    let mut stage = Stage::open(address, page).await?;
    stage.alive(&schedule).await?;
    server.freeze();
    stage.frozen(&schedule).await?;
    server.thaw();
    stage.thawed(&schedule).await?;
    let good = stage.conclude(&metrics)?;

    stage.browser.close().await;
    stop.cancel();
    // Remaining tasks are aborted with the runtime.
    let _ended = timeout(GRACE, running).await;
    Ok(good)
}

fn configuration(upstream: SocketAddr) -> Config {
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut config = Config { listen: free, admin: free, ..Config::default() };
    config.upstream = UpstreamAddress::Http { host: upstream.ip().to_string(), port: upstream.port() };
    config.heartbeat.stall_after = STALL_AFTER;
    (config.drain.window, config.drain.timeout) = (Duration::ZERO, GRACE);
    config
}

fn introduce(page: &Page, server: SocketAddr, sidecar: SocketAddr, admin: SocketAddr) -> io::Result<()> {
    let version = legacy::VERSION;
    page.line(
        Tone::Plain,
        format_args!("A Streamlit {version} app server never answers a heartbeat; a sidecar before it does."),
    )?;
    page.line(Tone::Plain, "")?;
    page.line(
        Tone::Plain,
        format_args!("  browser  -->  heartbeat-sidecar http://{sidecar}  -->  app server http://{server}"),
    )?;
    page.line(Tone::Plain, format_args!("                metrics at http://{admin}/metrics"))
}

impl Schedule {
    /// About a half alive, a third frozen, the rest thawed.
    fn new(whole: Duration) -> Self {
        let (alive, frozen) = (whole / 2, whole / 3);
        // The sidecar tracks `MAX_WAITING` heartbeats separately; one more would share an ack.
        let most = u32::try_from(MAX_WAITING).unwrap_or(u32::MAX);
        Self { alive, frozen, thawed: whole - alive - frozen, frozen_pace: PACE.max(frozen / most) }
    }
}

/// How many heartbeats fit; the first is sent at once.
fn beats(length: Duration, pace: Duration) -> u128 {
    (length.as_micros() / pace.as_micros()).max(1)
}

impl Stage {
    /// Opens the page and waits for its first script run: the version in it decides which side acks.
    async fn open(sidecar: SocketAddr, page: Page) -> anyhow::Result<Self> {
        let target = Target::parse(&format!("http://{sidecar}/"))?;
        let mut browser = Browser::open(&target, PATIENCE).await?;
        browser.rerun().await?;
        timeout(PATIENCE, browser.version()).await.context("the app did not start")??;
        // No heartbeat ever becomes overdue: late acks are expected here.
        let ledger = Ledger::new(2 * DAY);
        Ok(Self { browser, ledger, story: Story::default(), page, began: Instant::now(), told: 0 })
    }

    async fn alive(&mut self, schedule: &Schedule) -> anyhow::Result<()> {
        self.announce("Act 1, alive: the app server runs. Each ack waits for its pong to a ping of the sidecar's.")?;
        self.page.heads()?;
        let end = self.began + schedule.alive;
        self.beat(Act::Alive, beats(schedule.alive, PACE), ticks(self.began, PACE)).await?;
        self.watch(Act::Alive, end).await?;
        // A slow machine's acks may use part of the next act's time before the freeze.
        self.settle(Act::Alive, end + schedule.frozen / 2).await
    }

    async fn frozen(&mut self, schedule: &Schedule) -> anyhow::Result<()> {
        self.announce("Act 2, frozen: the app server hangs, its sockets stay open. Now an ack would be a lie.")?;
        let (start, end) = (Instant::now(), self.began + schedule.alive + schedule.frozen);
        let (left, pace) = (end.saturating_duration_since(start), schedule.frozen_pace);
        // Half an interval is enough to count the last one as withheld.
        self.beat(Act::Frozen, beats(left + pace / 2, pace), ticks(start, pace)).await?;
        self.watch(Act::Frozen, end).await?;
        Ok(self.tell_unanswered(Act::Frozen)?)
    }

    async fn thawed(&mut self, schedule: &Schedule) -> anyhow::Result<()> {
        self.announce("Act 3, thawed: the app server runs again. Late acks are released, then prompt ones.")?;
        let start = Instant::now();
        // Leaves half an interval for the last ack.
        let count = beats(schedule.thawed.saturating_sub(PACE / 2), PACE);
        self.beat(Act::Thawed, count, ticks(start + PACE, PACE)).await?;
        self.settle(Act::Thawed, start + schedule.thawed + GRACE).await
    }

    /// Sends `count` heartbeats at the ticks, and handles messages in between.
    async fn beat(&mut self, act: Act, count: u128, mut ticks: Interval) -> anyhow::Result<()> {
        let mut left = count;
        while left > 0 {
            tokio::select! {
                seen = self.browser.next() => self.on_seen(act, &seen?)?,
                _tick = ticks.tick() => {
                    left -= 1;
                    self.tell_unanswered(act)?;
                    self.ledger.on_sent(Instant::now());
                    self.story.on_sent(act);
                    self.browser.heartbeat().await?;
                }
            }
        }
        Ok(())
    }

    /// Handles messages until `end`.
    async fn watch(&mut self, act: Act, end: Instant) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                seen = self.browser.next() => self.on_seen(act, &seen?)?,
                () = sleep_until(end.into()) => return Ok(()),
            }
        }
    }

    /// Handles messages until every heartbeat has its ack, at most until `end`.
    async fn settle(&mut self, act: Act, end: Instant) -> anyhow::Result<()> {
        while self.ledger.unanswered().next().is_some() {
            tokio::select! {
                seen = self.browser.next() => self.on_seen(act, &seen?)?,
                () = sleep_until(end.into()) => return Ok(self.tell_unanswered(act)?),
            }
        }
        Ok(())
    }

    fn on_seen(&mut self, act: Act, seen: &Seen) -> io::Result<()> {
        let Seen::Ack(by) = *seen else { return Ok(()) };
        let Some(answered) = self.ledger.on_ack(Instant::now()) else {
            self.story.on_unasked_ack();
            return self.page.line(Tone::Bad, format_args!("an ack from {} that answers no heartbeat", by.name()));
        };
        let (heartbeat, waited) = (answered.number, answered.waited);
        let lie = self.story.on_ack(heartbeat, Ack { act, waited });
        let late = heartbeat <= self.told;
        self.told = self.told.max(heartbeat);
        let (latency, tone) = match (lie, late) {
            (true, _) => (format!("{}, a lie", shown(waited)), Tone::Bad),
            (false, true) => (format!("{}, late", shown(waited)), Tone::Waiting),
            (false, false) => (shown(waited), Tone::Good),
        };
        self.row(act, heartbeat, Some(by), latency, tone)
    }

    /// Writes the rows of heartbeats whose ack has not come.
    fn tell_unanswered(&mut self, act: Act) -> io::Result<()> {
        let unanswered: Vec<_> = self.ledger.unanswered().filter(|number| *number > self.told).collect();
        let (text, tone) = match act {
            Act::Frozen => ("withheld", Tone::Waiting),
            Act::Alive | Act::Thawed => ("no ack yet", Tone::Bad),
        };
        for number in unanswered {
            self.told = number;
            self.row(act, number, None, text.to_owned(), tone)?;
        }
        Ok(())
    }

    fn row(&self, act: Act, heartbeat: u32, by: Option<AnsweredBy>, latency: String, tone: Tone) -> io::Result<()> {
        let answered_by = by.map_or("nobody", AnsweredBy::name);
        self.page.row(&Row { time: self.began.elapsed(), act, heartbeat, answered_by, latency, tone })
    }

    fn announce(&self, text: &str) -> io::Result<()> {
        self.page.line(Tone::Plain, "")?;
        self.page.line(Tone::Title, text)
    }

    /// Writes the summary and the verdict; returns whether it is good.
    fn conclude(&self, metrics: &Arc<Metrics>) -> io::Result<bool> {
        let metrics = metrics.render();
        let count = |series, label: &str| total(&metrics, series, label);
        let (heartbeats, withheld) = (count("heartbeats_total", ""), count("acks_withheld_total", ""));
        let acks = |origin: AnsweredBy| count("acks_total", &format!("origin=\"{}\"", origin.name()));
        let (sidecar, upstream) = (acks(AnsweredBy::Sidecar), acks(AnsweredBy::Upstream));
        let figures = self.story.prompt();
        let [min, median, p99] =
            [figures.min, figures.median, figures.p99].map(|figure| figure.map_or_else(|| "-".to_owned(), shown));
        let (frozen, late) = self.story.late();
        let (verdict, page) = (self.story.judge(), &self.page);

        page.line(Tone::Plain, "")?;
        let counts = format!("{heartbeats} heartbeats, {sidecar} acks by the sidecar, {upstream} by the app server");
        page.line(Tone::Plain, format_args!("/metrics     {counts}; {withheld} withheld"))?;
        page.line(
            Tone::Plain,
            format_args!("ack latency  min {min}, median {median}, p99 {p99} while the app server runs"),
        )?;
        page.line(Tone::Plain, format_args!("frozen       {frozen} heartbeats, {late} of them acked after the thaw"))?;
        let (word, tone) = if verdict.is_good() { ("good", Tone::Good) } else { ("BAD", Tone::Bad) };
        page.line(tone, format_args!("verdict      {word}: {verdict}"))?;
        Ok(verdict.is_good())
    }
}

/// Ticks of heartbeats, the first at `start`.
fn ticks(start: Instant, pace: Duration) -> Interval {
    interval_at(start.into(), pace)
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
    fn the_acts_fill_the_time_and_each_has_a_heartbeat() {
        for seconds in [6, 8, 15, 60, 86_400] {
            let whole = Duration::from_secs(seconds);
            let schedule = Schedule::new(whole);
            assert_eq!(schedule.alive + schedule.frozen + schedule.thawed, whole);
            assert!(schedule.alive >= 6 * PACE && schedule.thawed >= 2 * PACE, "{schedule:?}");
            let frozen = beats(schedule.frozen + schedule.frozen_pace / 2, schedule.frozen_pace);
            assert!((4..=MAX_WAITING as u128).contains(&frozen), "{seconds}: {frozen}");
            assert!(schedule.frozen_pace / 2 >= STALL_AFTER);
        }
    }

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
