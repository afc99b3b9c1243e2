//! Handshakes: opens and closes sessions.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::SockRef;

use crate::Target;
use crate::watch::Process;
use crate::wire;

/// Opens and closes sessions.
#[derive(Debug, clap::Args)]
pub(crate) struct Shake {
    #[command(flatten)]
    target: Target,
    #[arg(long)]
    times: usize,
    /// Concurrent handshakes.
    #[arg(long, default_value_t = 8)]
    at_once: usize,
}

impl Shake {
    pub(crate) fn run(self) -> anyhow::Result<Value> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.shake())
    }

    async fn shake(self) -> anyhow::Result<Value> {
        let process = Process::new(self.target.watch);
        self.some(self.times / 10).await?;
        let (before, started) = (process.cpu()?, Instant::now());
        self.some(self.times).await?;
        // The proxy still closes the last ones.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (cpu, seconds) = (process.cpu()? - before, started.elapsed().as_secs_f64());
        Ok(json!({
            "cpu_us": cpu.as_secs_f64() * 1e6 / self.times as f64,
            "per_second": self.times as f64 / seconds,
        }))
    }

    async fn some(&self, times: usize) -> anyhow::Result<()> {
        let tasks: Vec<_> = (0..self.at_once)
            .map(|_task| {
                let (at, path, times) = (self.target.at, self.target.path.clone(), times.div_ceil(self.at_once));
                tokio::spawn(async move {
                    for _time in 0..times {
                        let stream = wire::open(at, &path).await?;
                        // A reset leaves no TIME_WAIT socket; these would use up the ports.
                        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok(())
    }
}
