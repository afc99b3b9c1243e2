//! Idle sessions: their memory, and the CPU time of holding them.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Target;
use crate::page::{self, Page};
use crate::watch::Process;
use crate::wire::{self, ACK, HEARTBEAT};

/// Concurrent handshakes.
const AT_ONCE: usize = 50;
/// After this no data is in flight, monitoring has ended, and allocators have released the memory that they kept.
const REST: Duration = Duration::from_secs(25);
/// Opens sessions, measures their memory, closes them.
#[derive(Debug, clap::Args)]
pub(crate) struct Idle {
    #[command(flatten)]
    target: Target,
    #[arg(long)]
    sessions: usize,
    /// Sessions that are opened before the measurement starts.
    #[arg(long, default_value_t = 200)]
    warm: usize,
    /// Seconds from the close to the measurement of the remaining memory.
    #[arg(long, default_value_t = 25.0)]
    rest: f64,
}

/// Holds sessions that send heartbeats.
#[derive(Debug, clap::Args)]
pub(crate) struct Hold {
    #[command(flatten)]
    target: Target,
    #[arg(long)]
    sessions: usize,
    /// Seconds from one heartbeat of a session to its next.
    #[arg(long, default_value_t = 30.0)]
    every: f64,
    /// Duration in seconds.
    #[arg(long)]
    seconds: f64,
    /// As for `idle`.
    #[arg(long, default_value_t = 25.0)]
    rest: f64,
}

impl Idle {
    pub(crate) fn run(self) -> anyhow::Result<Value> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.idle())
    }

    async fn idle(self) -> anyhow::Result<Value> {
        let process = Process::new(self.target.watch);
        let mut warm = open_all(&self.target, self.warm).await?;
        confirm_all(&self.target.path, &mut warm).await?;
        tokio::time::sleep(REST).await;
        let before = process.memory()?.anonymous;
        let mut sessions = open_all(&self.target, self.sessions).await?;
        confirm_all(&self.target.path, &mut sessions).await?;
        tokio::time::sleep(REST).await;
        let open = process.memory()?.anonymous;
        drop((warm, sessions));
        tokio::time::sleep(Duration::from_secs_f64(self.rest)).await;
        let closed = process.memory()?.anonymous;
        Ok(json!({
            "bytes_per_session": (open - before) as f64 / self.sessions as f64,
            "before_bytes": before,
            "open_bytes": open,
            "closed_bytes": closed,
        }))
    }
}

impl Hold {
    pub(crate) fn run(self) -> anyhow::Result<Value> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.hold())
    }

    async fn hold(self) -> anyhow::Result<Value> {
        let process = Process::new(self.target.watch);
        let before = process.memory()?.anonymous;
        let sessions = open_all(&self.target, self.sessions).await?;
        tokio::time::sleep(REST).await;
        let open = process.memory()?.anonymous;
        let (cpu, started) = (process.cpu()?, Instant::now());
        let every = Duration::from_secs_f64(self.every);
        let until = tokio::time::Instant::now() + Duration::from_secs_f64(self.seconds);
        let mut tasks = Vec::with_capacity(sessions.len());
        let random = RandomState::new();
        for (number, stream) in sessions.into_iter().enumerate() {
            // Random, as from browsers. At even intervals one proxy could always find its core awake.
            let share = random.hash_one(number) as f64 / u64::MAX as f64;
            let first = tokio::time::Instant::now() + every.mul_f64(share);
            tasks.push(tokio::spawn(beat(stream, first, every, until)));
        }
        let (mut acks, mut streams) = (0, Vec::with_capacity(tasks.len()));
        for task in tasks {
            let (stream, acked) = task.await??;
            acks += acked;
            streams.push(stream);
        }
        let (cpu, seconds) = (process.cpu()? - cpu, started.elapsed().as_secs_f64());
        let held = process.memory()?.anonymous;
        drop(streams);
        tokio::time::sleep(Duration::from_secs_f64(self.rest)).await;
        Ok(json!({
            "acks": acks,
            "cpu_seconds": cpu.as_secs_f64(),
            "cpu_us_per_heartbeat": cpu.as_secs_f64() * 1e6 / f64::from(acks),
            "cpu_share": cpu.as_secs_f64() / seconds,
            "before_bytes": before,
            "open_bytes": open,
            "held_bytes": held,
            "closed_bytes": process.memory()?.anonymous,
        }))
    }
}

/// Sends heartbeats until `until`; returns the number of acks.
async fn beat(
    mut stream: TcpStream,
    first: tokio::time::Instant,
    every: Duration,
    until: tokio::time::Instant,
) -> anyhow::Result<(TcpStream, u32)> {
    let (mut due, mut acked) = (first, 0);
    while due < until {
        tokio::time::sleep_until(due).await;
        stream.write_all(&HEARTBEAT).await?;
        let mut ack = ACK;
        stream.read_exact(&mut ack).await?;
        anyhow::ensure!(ack == ACK, "no ack: {ack:02x?}");
        acked += 1;
        due += every;
    }
    tokio::time::sleep_until(until).await;
    Ok((stream, acked))
}

/// Opens sessions and uses each once: one request, if the path selects answers.
pub(crate) async fn open_all(target: &Target, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    let answer = wire::number(&target.path, "answer").map_or(0, |length| wire::delta(length).len());
    let mut sessions = Vec::with_capacity(count);
    while sessions.len() < count {
        let some = AT_ONCE.min(count - sessions.len());
        let tasks: Vec<_> = (0..some)
            .map(|_session| {
                let (at, path) = (target.at, target.path.clone());
                tokio::spawn(async move {
                    let mut stream = wire::open(at, &path).await?;
                    if answer > 0 {
                        stream.write_all(&wire::rerun(100)).await?;
                        let mut buffer = vec![0; answer];
                        match Page::new(&path) {
                            Some(mut page) => page.receive(&mut stream, &mut buffer).await?,
                            None => _ = stream.read_exact(&mut buffer).await?,
                        }
                    }
                    anyhow::Ok(stream)
                })
            })
            .collect();
        for task in tasks {
            sessions.push(task.await??);
        }
    }
    Ok(sessions)
}

/// Pages that can resume confirm after an idle second.
async fn confirm_all(path: &str, sessions: &mut [TcpStream]) -> anyhow::Result<()> {
    let Some(page) = Page::new(path) else { return Ok(()) };
    let used = u64::from(wire::number(path, "answer").is_some());
    tokio::time::sleep(Duration::from_secs(1)).await;
    for stream in sessions {
        stream.write_all(&page::check(page.received() + used)).await?;
        // The sidecar's own confirmation, a frame without a mask.
        let mut answer = [0; 2 + "_heartbeat received 1".len()];
        stream.read_exact(&mut answer).await?;
        anyhow::ensure!(answer[2..].starts_with(b"_heartbeat received "), "no confirmation");
    }
    Ok(())
}
