//! Measures several targets alternately, so that a pause of the machine affects all of them equally.

use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::task::JoinHandle;

use crate::turns::{Say, Talker};
use crate::watch::{micros, per_mille};

/// Sends small messages to all targets, one message per time slot.
#[derive(Debug, clap::Args)]
pub(crate) struct Latency {
    /// The address for browsers; once for each target.
    #[arg(long, required = true)]
    at: Vec<SocketAddr>,
    /// Path and query of the websocket; must contain `answer=N`.
    #[arg(long)]
    path: String,
    /// Sessions with each target.
    #[arg(long, default_value_t = 64)]
    sessions: usize,
    /// Turns of each session.
    #[arg(long)]
    turns: usize,
    /// Slots per second.
    #[arg(long)]
    rate: f64,
}

/// A target.
struct Lane {
    at: SocketAddr,
    sessions: Vec<Arc<Mutex<Talker>>>,
    /// Nanoseconds of each turn.
    turns: Vec<JoinHandle<anyhow::Result<u64>>>,
}

impl Latency {
    pub(crate) fn run(self) -> anyhow::Result<Value> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.latency())
    }

    async fn latency(self) -> anyhow::Result<Value> {
        let mut lanes = Vec::with_capacity(self.at.len());
        for at in self.at {
            let mut sessions = Vec::with_capacity(self.sessions);
            for _session in 0..self.sessions {
                let mut talker = Talker::open(at, &self.path, Say::Rerun).await?;
                talker.warm().await?;
                sessions.push(Arc::new(Mutex::new(talker)));
            }
            lanes.push(Lane { at, sessions, turns: Vec::with_capacity(self.sessions * self.turns) });
        }
        let (random, mut slots) = (RandomState::new(), slots(self.rate));
        for cycle in 0..self.sessions * self.turns {
            // A different order each time, so that no target always follows the same one.
            lanes.sort_by_cached_key(|lane| random.hash_one((cycle, lane.at)));
            for lane in &mut lanes {
                slots.recv().await.context("no clock")?;
                let session = lane.sessions[cycle % self.sessions].clone();
                lane.turns.push(tokio::spawn(async move {
                    // The time includes waiting for the session's previous answer.
                    let started = Instant::now();
                    session.lock().await.once(started).await
                }));
            }
        }
        let mut measured = Map::new();
        for lane in lanes {
            let mut waited = Vec::with_capacity(lane.turns.len());
            for turn in lane.turns {
                waited.push(turn.await??);
            }
            waited.sort_unstable();
            let sample = json!({"p50_us": micros(per_mille(&waited, 500)), "p99_us": micros(per_mille(&waited, 990))});
            measured.insert(lane.at.to_string(), sample);
        }
        Ok(measured.into())
    }
}

/// The slots, from a thread that sleeps. Tokio's timer rounds up to milliseconds, so that some slots would coincide.
fn slots(rate: f64) -> UnboundedReceiver<()> {
    let (sender, slots) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let (started, mut due) = (Instant::now(), Duration::ZERO);
        while sender.send(()).is_ok() {
            due += Duration::from_secs_f64(1.0 / rate);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
    });
    slots
}
