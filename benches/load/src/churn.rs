//! Opens and closes sessions: each heartbeat gets exactly one ack, memory stays constant, all resources are released.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};

use crate::watch::{Process, micros, per_mille};
use crate::wire::{self, ACK, CLOSE, HEARTBEAT};
use crate::{Target, admin, hold};

/// An ack that takes longer is missed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Holds sessions that send heartbeats, and replaces some of them each second.
#[derive(Debug, clap::Args)]
pub(crate) struct Churn {
    #[command(flatten)]
    target: Target,
    /// The sidecar's admin port.
    #[arg(long)]
    admin: std::net::SocketAddr,
    /// Concurrent sessions; the sidecar needs two file descriptors for each.
    #[arg(long, default_value_t = 9000)]
    sessions: usize,
    /// Seconds from one heartbeat of a session to its next.
    #[arg(long, default_value_t = 10.0)]
    every: f64,
    /// Replaced sessions per second.
    #[arg(long, default_value_t = 20.0)]
    churn: f64,
    /// Duration in seconds.
    #[arg(long, default_value_t = 600.0)]
    seconds: f64,
}

/// The settings of every session.
struct Plan {
    target: Target,
    every: Duration,
    /// The duration of a session.
    life: Duration,
    until: tokio::time::Instant,
}

/// The counts of one slot, which runs one session after the other.
#[derive(Default)]
struct Tally {
    sessions: u64,
    heartbeats: u64,
    /// The latency of each ack, in nanoseconds.
    waited: Vec<u64>,
    missed: u64,
    /// Unexpected bytes, such as a second ack.
    extra: u64,
}

impl Churn {
    pub(crate) fn run(self) -> anyhow::Result<Value> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.churn())
    }

    async fn churn(self) -> anyhow::Result<Value> {
        let process = Process::new(self.target.watch);
        let before = (process.handles()?, admin::metric(self.admin, "heartbeats_total").await?);
        let acked_before = admin::metric(self.admin, "acks_total").await?;
        let streams = hold::open_all(&self.target, self.sessions).await?;
        let (cpu, started) = (process.cpu()?, Instant::now());
        let now = tokio::time::Instant::now();
        let plan = Arc::new(Plan {
            target: self.target.clone(),
            every: Duration::from_secs_f64(self.every),
            life: Duration::from_secs_f64(self.sessions as f64 / self.churn),
            until: now + Duration::from_secs_f64(self.seconds),
        });
        let places: Vec<_> = streams
            .into_iter()
            .enumerate()
            .map(|(number, stream)| {
                let share = number as f64 / self.sessions as f64;
                tokio::spawn(plan.clone().fill(stream, now + plan.every.mul_f64(share), now + plan.life.mul_f64(share)))
            })
            .collect();
        let memory = tokio::spawn(sample(process, now, plan.until));
        let (mut tally, mut broken) = (Tally::default(), Vec::new());
        for place in places {
            match place.await? {
                Ok(place) => tally.add(place),
                Err(error) => broken.push(format!("{error:#}")),
            }
        }
        let (cpu, seconds) = (process.cpu()? - cpu, started.elapsed().as_secs_f64());
        let memory = memory.await??;
        let left = self.left(process, before.0).await?;
        tally.waited.sort_unstable();
        let heartbeats = admin::metric(self.admin, "heartbeats_total").await? - before.1;
        let acks = admin::metric(self.admin, "acks_total").await? - acked_before;
        let at = |share: f64| memory.get((memory.len() as f64 * share) as usize).copied().unwrap_or_default();
        let (early, late) = (at(0.2), memory.last().copied().unwrap_or_default());
        let held = json!({
            "no session broke": broken.is_empty(),
            "each heartbeat got an ack": tally.missed == 0 && tally.heartbeats == tally.waited.len() as u64,
            "none got two": tally.extra == 0,
            "the sidecar counts as many": (heartbeats, acks) == (tally.heartbeats, tally.heartbeats),
            "memory is flat": late as f64 <= early as f64 * 1.05 + 1e6,
            "nothing is left": left.is_null(),
        });
        Ok(json!({
            "sessions": tally.sessions, "heartbeats": tally.heartbeats, "acks": tally.waited.len(),
            "missed": tally.missed, "extra_bytes": tally.extra, "sidecar": {"heartbeats": heartbeats, "acks": acks},
            "broken": broken.len(), "first_broken": broken.first(),
            "ack_ms": latency(&tally.waited),
            "rss_bytes": {"after a fifth": early, "at the end": late, "most": memory.iter().max()},
            "cpu_share": cpu.as_secs_f64() / seconds,
            "left": left,
            "held": held,
        }))
    }

    /// The resources that the sidecar still holds after all sessions have ended and a timeout; null if none.
    async fn left(&self, process: Process, handles: usize) -> anyhow::Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (open, listed) =
                (admin::metric(self.admin, "sessions").await?, admin::ask(self.admin, "/sessions").await?);
            let more = process.handles()?.saturating_sub(handles);
            if open == 0 && listed == "[]" && more == 0 {
                return Ok(Value::Null);
            }
            if Instant::now() > deadline {
                return Ok(json!({"sessions": open, "handles": more}));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// p50, p99 and maximum, in milliseconds.
pub(crate) fn latency(sorted: &[u64]) -> Value {
    let millis = |share| micros(per_mille(sorted, share)) / 1e3;
    json!({"p50": millis(500), "p99": millis(990), "max": millis(1000)})
}

/// The resident memory, once per second.
async fn sample(
    process: Process,
    start: tokio::time::Instant,
    until: tokio::time::Instant,
) -> anyhow::Result<Vec<i64>> {
    let (mut samples, mut ticks) = (Vec::new(), tokio::time::interval_at(start, Duration::from_secs(1)));
    while ticks.tick().await < until {
        samples.push(process.memory()?.resident);
    }
    Ok(samples)
}

impl Plan {
    /// Runs one session after the other until the end of the test.
    async fn fill(
        self: Arc<Self>,
        mut stream: TcpStream,
        first: tokio::time::Instant,
        mut leave: tokio::time::Instant,
    ) -> anyhow::Result<Tally> {
        let (mut tally, mut due) = (Tally::default(), first);
        loop {
            tally.sessions += 1;
            due = self.beat(&mut stream, due, leave.min(self.until), &mut tally).await?;
            stream.write_all(&CLOSE).await?;
            let mut rest = Vec::new();
            timeout(PATIENCE, stream.read_to_end(&mut rest)).await??;
            tally.extra += rest.len() as u64;
            if leave >= self.until {
                return Ok(tally);
            }
            leave += self.life;
            stream = wire::open(self.target.at, &self.target.path).await?;
        }
    }

    /// Sends heartbeats until `leave` and expects only their acks. Returns when the next heartbeat is due.
    async fn beat(
        &self,
        stream: &mut TcpStream,
        mut due: tokio::time::Instant,
        leave: tokio::time::Instant,
        tally: &mut Tally,
    ) -> anyhow::Result<tokio::time::Instant> {
        loop {
            let mut unasked = [0; 64];
            if let Ok(came) = timeout_at(due.min(leave), stream.read(&mut unasked)).await {
                let came = came?;
                ensure!(came > 0, "closed by the other side");
                tally.extra += came as u64;
                continue;
            }
            if leave <= due {
                return Ok(due);
            }
            let started = Instant::now();
            stream.write_all(&HEARTBEAT).await?;
            tally.heartbeats += 1;
            let mut ack = ACK;
            match timeout(PATIENCE, stream.read_exact(&mut ack)).await {
                Ok(came) => {
                    came?;
                    ensure!(ack == ACK, "no ack: {ack:02x?}");
                    tally.waited.push(started.elapsed().as_nanos() as u64);
                }
                Err(_elapsed) => tally.missed += 1,
            }
            due += self.every;
        }
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.sessions += other.sessions;
        self.heartbeats += other.heartbeats;
        self.waited.extend(other.waited);
        self.missed += other.missed;
        self.extra += other.extra;
    }
}
