//! Small messages: each session sends one and waits for its answer before it sends the next.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use clap::ValueEnum;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use crate::Target;
use crate::page::Page;
use crate::watch::{Process, micros, per_mille};
use crate::wire::{self, HEARTBEAT};

/// Payload bytes of a browser's message.
const SAID: usize = 100;
/// Turns of each session before the clock starts.
const WARM: usize = 20;

/// Sends small messages.
#[derive(Debug, clap::Args)]
pub(crate) struct Turns {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 64)]
    sessions: usize,
    /// Turns of each session.
    #[arg(long)]
    turns: usize,
    #[arg(long, default_value = "rerun")]
    say: Say,
}

/// The browser's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Say {
    /// A `rerun_script`; the path must contain `answer=N`.
    Rerun,
    /// A heartbeat, answered by an ack.
    Heartbeat,
}

impl Turns {
    pub(crate) fn run(self) -> anyhow::Result<Value> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.turn())
    }

    async fn turn(self) -> anyhow::Result<Value> {
        let ready = Arc::new(Barrier::new(self.sessions + 1));
        let mut tasks = Vec::with_capacity(self.sessions);
        for _session in 0..self.sessions {
            let talker = Talker::open(self.target.at, &self.target.path, self.say).await?;
            tasks.push(tokio::spawn(talker.talk(self.turns, ready.clone())));
        }
        let process = Process::new(self.target.watch);
        ready.wait().await;
        let (before, started) = (process.cpu()?, Instant::now());
        let (mut waited, mut talkers) = (Vec::with_capacity(self.turns * self.sessions), Vec::new());
        for task in tasks {
            let (talker, more) = task.await??;
            waited.extend(more);
            talkers.push(talker);
        }
        let (cpu, seconds) = (process.cpu()? - before, started.elapsed().as_secs_f64());
        waited.sort_unstable();
        Ok(json!({
            "cpu_us": cpu.as_secs_f64() * 1e6 / waited.len() as f64,
            "p50_us": micros(per_mille(&waited, 500)),
            "p99_us": micros(per_mille(&waited, 990)),
            "per_second": waited.len() as f64 / seconds,
        }))
    }
}

/// One session.
pub(crate) struct Talker {
    stream: TcpStream,
    said: Vec<u8>,
    answer: Vec<u8>,
    /// Set if it can resume.
    page: Option<Page>,
}

impl Talker {
    /// `path` contains the length of answers.
    pub(crate) async fn open(at: SocketAddr, path: &str, say: Say) -> anyhow::Result<Self> {
        let (said, answer) = match say {
            Say::Rerun => (wire::rerun(SAID), wire::number(path, "answer").map_or(0, |n| wire::delta(n).len())),
            Say::Heartbeat => (HEARTBEAT.to_vec(), wire::ACK.len()),
        };
        ensure!(answer > 0, "the path has no answer=N");
        Ok(Self { stream: wire::open(at, path).await?, said, answer: vec![0; answer], page: Page::new(path) })
    }

    /// Takes the warm-up turns, then the measured ones; returns the nanoseconds of each measured turn.
    async fn talk(mut self, turns: usize, ready: Arc<Barrier>) -> anyhow::Result<(Self, Vec<u64>)> {
        let mut waited = Vec::with_capacity(turns);
        self.warm().await?;
        ready.wait().await;
        for _turn in 0..turns {
            waited.push(self.once(Instant::now()).await?);
        }
        Ok((self, waited))
    }

    /// Takes the warm-up turns.
    pub(crate) async fn warm(&mut self) -> anyhow::Result<()> {
        for _turn in 0..WARM {
            self.once(Instant::now()).await?;
        }
        Ok(())
    }

    /// Takes one turn; returns the nanoseconds from its due time to its end.
    pub(crate) async fn once(&mut self, started: Instant) -> anyhow::Result<u64> {
        self.stream.write_all(&self.said).await?;
        match &mut self.page {
            Some(page) => page.receive(&mut self.stream, &mut self.answer).await?,
            None => _ = self.stream.read_exact(&mut self.answer).await?,
        }
        Ok(started.elapsed().as_nanos() as u64)
    }
}
