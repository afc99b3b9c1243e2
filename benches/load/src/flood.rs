//! One session floods while others send heartbeats: measures its throughput and the others' ack latency.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::churn::latency;
use crate::watch::Process;
use crate::wire::{self, ACK, HEARTBEAT, PING};
use crate::{Target, hold};

/// Frames per write.
const AT_ONCE: usize = 1000;

/// Measures other sessions' acks without a flood, then with each kind of flood.
#[derive(Debug, clap::Args)]
pub(crate) struct Flood {
    #[command(flatten)]
    target: Target,
    /// Sessions that send heartbeats at an interval.
    #[arg(long, default_value_t = 200)]
    others: usize,
    /// Seconds between two heartbeats of such a session.
    #[arg(long, default_value_t = 1.0)]
    every: f64,
    /// Seconds for each measurement.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Maximum frames per second of the flood; by default as many as possible.
    #[arg(long)]
    rate: Option<f64>,
}

/// The frames of the flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Nothing,
    Heartbeats,
    Pings,
}

impl Flood {
    pub(crate) fn run(self) -> anyhow::Result<Value> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.flood())
    }

    async fn flood(self) -> anyhow::Result<Value> {
        let mut measured = serde_json::Map::new();
        for (name, kind) in [
            ("nothing", Kind::Nothing),
            ("heartbeats", Kind::Heartbeats),
            ("pings", Kind::Pings),
            ("nothing again", Kind::Nothing),
        ] {
            measured.insert(name.to_owned(), self.measure(kind).await?);
        }
        Ok(measured.into())
    }

    async fn measure(&self, kind: Kind) -> anyhow::Result<Value> {
        let process = Process::new(self.target.watch);
        let streams = hold::open_all(&self.target, self.others).await?;
        let flood = Torrent::start(&self.target, kind, self.rate).await?;
        let memory = process.memory()?.resident;
        let every = Duration::from_secs_f64(self.every);
        let started = tokio::time::Instant::now();
        let until = started + Duration::from_secs_f64(self.seconds);
        let others = self.others as f64;
        let beating: Vec<_> = (0..)
            .zip(streams)
            .map(|(number, mut stream)| {
                let mut due = started + every.mul_f64(f64::from(number) / others);
                tokio::spawn(async move {
                    let mut waited = Vec::new();
                    while due < until {
                        tokio::time::sleep_until(due).await;
                        let started = Instant::now();
                        stream.write_all(&HEARTBEAT).await?;
                        let mut ack = ACK;
                        stream.read_exact(&mut ack).await?;
                        anyhow::ensure!(ack == ACK, "no ack: {ack:02x?}");
                        waited.push(started.elapsed().as_nanos() as u64);
                        due += every;
                    }
                    Ok(waited)
                })
            })
            .collect();
        let (mut most, mut ticks) = (memory, tokio::time::interval(Duration::from_millis(100)));
        while ticks.tick().await < until {
            most = most.max(process.memory()?.resident);
        }
        let mut waited = Vec::new();
        for task in beating {
            waited.extend(task.await??);
        }
        let seconds = started.elapsed().as_secs_f64();
        waited.sort_unstable();
        let (sent, came) = flood.map_or((0, 0), Torrent::stop);
        Ok(json!({
            "others_ack_ms": latency(&waited), "others_acks": waited.len(),
            "frames_per_second": sent as f64 / seconds, "bytes_back_per_second": came as f64 / seconds,
            "rss_growth_bytes": most - memory,
        }))
    }
}

/// A session that writes without a pause, in two threads.
struct Torrent {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    came: Arc<AtomicU64>,
    socket: std::net::TcpStream,
}

impl Torrent {
    async fn start(target: &Target, kind: Kind, rate: Option<f64>) -> anyhow::Result<Option<Self>> {
        let frame: &[u8] = match kind {
            Kind::Nothing => return Ok(None),
            Kind::Heartbeats => &HEARTBEAT,
            Kind::Pings => &PING,
        };
        let socket = wire::open(target.at, &target.path).await?.into_std()?;
        socket.set_nonblocking(false)?;
        let (stop, sent, came) = (Arc::default(), Arc::default(), Arc::default());
        let flood = Self { stop, sent, came, socket };
        let (many, mut writer, mut reader) =
            (frame.repeat(AT_ONCE), flood.socket.try_clone()?, flood.socket.try_clone()?);
        let (stop, sent, came) = (flood.stop.clone(), flood.sent.clone(), flood.came.clone());
        std::thread::spawn(move || {
            let started = Instant::now();
            while !stop.load(Relaxed) && writer.write_all(&many).is_ok() {
                let sent = sent.fetch_add(AT_ONCE as u64, Relaxed) + AT_ONCE as u64;
                if let Some(rate) = rate {
                    std::thread::sleep(Duration::from_secs_f64(sent as f64 / rate).saturating_sub(started.elapsed()));
                }
            }
        });
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                came.fetch_add(count as u64, Relaxed);
            }
        });
        Ok(Some(flood))
    }

    /// Stops the flood; returns the number of sent frames and received bytes.
    fn stop(self) -> (u64, u64) {
        self.stop.store(true, Relaxed);
        // Wakes both threads. An error means that the connection is already closed.
        let _left_already = self.socket.shutdown(std::net::Shutdown::Both);
        (self.sent.load(Relaxed), self.came.load(Relaxed))
    }
}
