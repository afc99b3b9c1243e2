//! Small messages: each session says one and waits for its answer before it says the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::ValueEnum;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use crate::Target;
use crate::watch::{Process, micros, per_mille};
use crate::wire::{self, HEARTBEAT};

/// Payload bytes of what a browser says.
const SAID: usize = 100;
/// Turns of each session before the clock starts.
const WARM: usize = 20;

/// Says small things.
#[derive(Debug, clap::Args)]
pub(crate) struct Turns {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 64)]
    sessions: usize,
    /// Turns of each session.
    #[arg(long)]
    turns: usize,
    /// Turns a second of all sessions together; without it as many as there can be.
    #[arg(long)]
    rate: Option<f64>,
    #[arg(long, default_value = "rerun")]
    say: Say,
}

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Say {
    /// A `rerun_script`; the path must ask for an `answer` of some length.
    Rerun,
    /// A heartbeat, answered by an ack.
    Heartbeat,
}

impl Turns {
    pub(crate) fn run(self) -> anyhow::Result<Value> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.turn())
    }

    async fn turn(self) -> anyhow::Result<Value> {
        let (said, answer) = match self.say {
            Say::Rerun => {
                (wire::rerun(SAID), wire::number(&self.target.path, "answer").map_or(0, |n| wire::delta(n).len()))
            }
            Say::Heartbeat => (HEARTBEAT.to_vec(), wire::ACK.len()),
        };
        ensure!(answer > 0, "the path asks for no answer");
        let (ready, said) = (Arc::new(Barrier::new(self.sessions + 1)), Arc::new(said));
        let mut tasks = Vec::with_capacity(self.sessions);
        for number in 0..self.sessions {
            let stream = wire::open(self.target.at, &self.target.path).await?;
            let pace = self.rate.map(|rate| {
                let period = Duration::from_secs_f64(self.sessions as f64 / rate);
                (period.mul_f64(number as f64 / self.sessions as f64), period)
            });
            let talker =
                Talker { stream, said: said.clone(), answer: vec![0; answer], waited: Vec::with_capacity(self.turns) };
            tasks.push(tokio::spawn(talker.talk(self.turns, pace, ready.clone())));
        }
        let process = Process::new(self.target.watch);
        ready.wait().await;
        let (before, begun) = (process.cpu()?, Instant::now());
        let (mut waited, mut streams) = (Vec::with_capacity(self.turns * self.sessions), Vec::new());
        for task in tasks {
            let talker = task.await??;
            waited.extend(talker.waited);
            streams.push(talker.stream);
        }
        let (cpu, seconds) = (process.cpu()? - before, begun.elapsed().as_secs_f64());
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
struct Talker {
    stream: TcpStream,
    said: Arc<Vec<u8>>,
    answer: Vec<u8>,
    waited: Vec<u64>,
}

impl Talker {
    /// `pace`: when to begin, and how long from one turn to the next.
    async fn talk(
        mut self,
        turns: usize,
        pace: Option<(Duration, Duration)>,
        ready: Arc<Barrier>,
    ) -> anyhow::Result<Self> {
        for _turn in 0..WARM {
            self.once().await?;
        }
        ready.wait().await;
        let mut ticks =
            pace.map(|(begin, period)| tokio::time::interval_at(tokio::time::Instant::now() + begin, period));
        for _turn in 0..turns {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
            }
            let took = self.once().await?;
            self.waited.push(took);
        }
        Ok(self)
    }

    async fn once(&mut self) -> anyhow::Result<u64> {
        let begun = Instant::now();
        self.stream.write_all(&self.said).await?;
        self.stream.read_exact(&mut self.answer).await?;
        Ok(begun.elapsed().as_nanos() as u64)
    }
}
