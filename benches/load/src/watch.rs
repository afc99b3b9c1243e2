//! CPU time, memory and file descriptors of a process, read from the kernel.

use std::time::Duration;

use anyhow::Context as _;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// The measured process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process(i32);

/// The memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident anonymous pages: allocated and used memory.
    pub(crate) anonymous: i64,
    /// All resident pages.
    pub(crate) resident: i64,
}

impl Process {
    pub(crate) fn new(id: i32) -> Self {
        Self(id)
    }

    /// User and system time of all its threads, also of those that have ended. The tick of utime and stime in
    /// `/proc/PID/stat` (10 ms) is too coarse for short runs; this clock counts nanoseconds of the same.
    pub(crate) fn cpu(self) -> anyhow::Result<Duration> {
        let clock = clock_getcpuclockid(Pid::from_raw(self.0)).with_context(|| format!("no process {}", self.0))?;
        Ok(clock.now()?.into())
    }

    pub(crate) fn memory(self) -> anyhow::Result<Memory> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("missing line")?;
            anyhow::Ok(line.trim().trim_end_matches(" kB").parse::<i64>()? * 1024)
        };
        Ok(Memory { anonymous: of("RssAnon:")?, resident: of("VmRSS:")? })
    }

    /// The number of open file descriptors.
    pub(crate) fn handles(self) -> anyhow::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.0))?.count())
    }
}

/// The quantile at `share` per mille; zero without values.
pub(crate) fn per_mille(sorted: &[u64], share: usize) -> u64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((sorted.len() * share / 1000).min(last)).copied().unwrap_or_default()
}

/// Nanoseconds as microseconds.
pub(crate) fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}
