//! Memory: bodies and messages stream through a constant buffer, and an idle session has none.
//!
//! Invariant: the test's own endpoints keep no data, and one test runs at a time, so this process grows only by the
//! sidecar's memory. Memory after the end of sessions is measured on the real binary.

mod sessions;
mod streaming;
#[allow(dead_code)]
#[path = "../integration/support/mod.rs"]
mod support;

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

const MIB: usize = 1 << 20;
const STREAM: &str = "/_stcore/stream";
static ALONE: Mutex<()> = Mutex::new(());

/// Runs one test alone, on one thread.
fn alone(test: impl Future<Output = ()>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> usize {
    status_of("self", name)
}

/// A line of the status of a process, in bytes.
fn status_of(process: impl Display, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<usize>().unwrap() * 1024
}

/// Peak growth of this process's memory during `work`, in bytes (proc(5): 5 resets the peak).
async fn growth(work: impl Future<Output = ()>) -> usize {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    work.await;
    status("VmHWM").saturating_sub(before)
}

#[test]
fn growth_includes_memory_that_was_freed_again() {
    alone(async {
        // 40 MiB never come from memory freed before (mallopt(3), M_MMAP_THRESHOLD: at most 32 MiB). The kernel may
        // evict pages of mapped files meanwhile, which hides as much growth.
        let mut seen = Vec::new();
        for _attempt in 0..5 {
            let grown = growth(async { drop(std::hint::black_box(vec![1u8; 40 * MIB])) }).await;
            if (39 * MIB..44 * MIB).contains(&grown) {
                return;
            }
            seen.push(grown);
        }
        panic!("{seen:?}");
    });
}
