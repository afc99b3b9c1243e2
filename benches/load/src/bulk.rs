//! Large messages: read at full speed, slowly, or not at all.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use socket2::SockRef;

use crate::Target;
use crate::page::Page;
use crate::watch::{Process, micros, per_mille};
use crate::wire;

/// Bytes per read.
const READ: usize = 1 << 20;

/// Reads messages at full speed, or at the speed of a slow link.
#[derive(Debug, clap::Args)]
pub(crate) struct Bulk {
    #[command(flatten)]
    target: Target,
    /// Payload bytes of each message.
    #[arg(long)]
    size: usize,
    /// Payload bytes of all messages.
    #[arg(long)]
    total: usize,
    /// Maximum MB per second, read 16 KiB at a time with a receive buffer of 64 KiB.
    #[arg(long)]
    rate: Option<u64>,
}

/// Requests one large message and does not read it.
#[derive(Debug, clap::Args)]
pub(crate) struct Stall {
    #[command(flatten)]
    target: Target,
    /// Payload bytes.
    #[arg(long)]
    size: usize,
    /// Milliseconds without a read.
    #[arg(long, default_value_t = 1500)]
    millis: u64,
}

/// Measures the time to the first byte of a message that its server sends slowly.
#[derive(Debug, clap::Args)]
pub(crate) struct First {
    #[command(flatten)]
    target: Target,
    /// Payload bytes.
    #[arg(long)]
    size: usize,
    /// Number of messages.
    #[arg(long, default_value_t = 20)]
    times: usize,
}

/// Opens a websocket, then returns it as a blocking socket.
fn open(target: &Target, path: &str, receive_buffer: Option<usize>) -> anyhow::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stream = runtime.block_on(wire::open(target.at, path))?;
    let stream = stream.into_std()?;
    if let Some(size) = receive_buffer {
        SockRef::from(&stream).set_recv_buffer_size(size)?;
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn query(path: &str, more: &str) -> String {
    format!("{path}{}{more}", if path.contains('?') { '&' } else { '?' })
}

impl Bulk {
    pub(crate) fn run(self) -> anyhow::Result<Value> {
        let path = query(&self.target.path, &format!("send={}&total={}", self.size, self.total));
        let mut stream = open(&self.target, &path, self.rate.map(|_rate| 32 << 10))?;
        let messages = self.total.div_ceil(self.size);
        let bytes = messages * (wire::header(self.size).len() + self.size);
        let process = Process::new(self.target.watch);
        let (before, started) = (process.cpu()?, Instant::now());
        stream.write_all(&wire::rerun(20))?;
        let mut left = bytes;
        match (self.rate, Page::new(&path)) {
            (None, Some(page)) => confirming(stream, page, messages as u64)?,
            (None, None) => {
                while left > 0 {
                    left -= discard(&stream, READ.min(left))?;
                }
            }
            (Some(rate), _) => {
                let mut buffer = vec![0; 16 << 10];
                while left > 0 {
                    let limit = left.min(buffer.len());
                    left -= some(stream.read(&mut buffer[..limit])?)?;
                    let due = Duration::from_micros((bytes - left) as u64 / rate);
                    std::thread::sleep(due.saturating_sub(started.elapsed()));
                }
            }
        }
        let (cpu, seconds) = (process.cpu()? - before, started.elapsed().as_secs_f64());
        Ok(json!({
            "seconds_per_gb": cpu.as_secs_f64() / (bytes as f64 / 1e9),
            "cpu_seconds": cpu.as_secs_f64(),
            "gb_per_second": bytes as f64 / 1e9 / seconds,
        }))
    }
}

impl Stall {
    pub(crate) fn run(self) -> anyhow::Result<Value> {
        let process = Process::new(self.target.watch);
        let path = query(&self.target.path, &format!("send={}", self.size));
        let mut stream = open(&self.target, &path, None)?;
        let before = process.memory()?.anonymous;
        stream.write_all(&wire::rerun(20))?;
        std::thread::sleep(Duration::from_millis(self.millis));
        let after = process.memory()?.anonymous;
        Ok(json!({ "growth_bytes": after - before }))
    }
}

impl First {
    pub(crate) fn run(self) -> anyhow::Result<Value> {
        let path = query(&self.target.path, &format!("send={}&pause=2000", self.size));
        let mut waited = Vec::with_capacity(self.times);
        for _time in 0..self.times {
            let mut stream = open(&self.target, &path, None)?;
            let started = Instant::now();
            stream.write_all(&wire::rerun(20))?;
            some(stream.read(&mut [0; 64])?)?;
            waited.push(started.elapsed().as_nanos() as u64);
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        }
        waited.sort_unstable();
        Ok(json!({ "p50_us": micros(per_mille(&waited, 500)), "max_us": micros(per_mille(&waited, 1000)) }))
    }
}

/// Reads messages as a page that can resume: it finds where each one ends.
fn confirming(mut stream: TcpStream, mut page: Page, messages: u64) -> anyhow::Result<()> {
    let (mut buffer, until) = (vec![0; 64 << 10], page.received() + messages);
    while page.received() < until {
        // The rest of a large message need not be copied.
        let confirmations = if page.left() > buffer.len() {
            page.on_payload(discard(&stream, READ.min(page.left()))?)
        } else {
            let count = some(stream.read(&mut buffer)?)?;
            page.on_bytes(&buffer[..count])
        };
        if !confirmations.is_empty() {
            stream.write_all(&confirmations)?;
        }
    }
    Ok(())
}

/// Discards bytes without copying them (tcp(7), `MSG_TRUNC`), so that the reader is not the bottleneck.
#[allow(unsafe_code)]
fn discard(stream: &TcpStream, limit: usize) -> anyhow::Result<usize> {
    loop {
        // SAFETY: with MSG_TRUNC a TCP socket writes nothing to the buffer; the descriptor is open while borrowed.
        let count = unsafe { libc::recv(stream.as_raw_fd(), std::ptr::null_mut(), limit, libc::MSG_TRUNC) };
        match usize::try_from(count).map_err(|_negative| std::io::Error::last_os_error()) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return some(result?),
        }
    }
}

fn some(count: usize) -> anyhow::Result<usize> {
    ensure!(count > 0, "ended too early");
    Ok(count)
}
