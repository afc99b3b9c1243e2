//! Divides the process's file handles among their uses.
//!
//! Invariant: clients leave enough handles to serve the admin port, to reject, and to finish.

use rlimit::Resource;

/// The sidecar's own (listeners, epoll, signals, the log) and the admin port's 60 connections.
const OWN: u64 = 80;
/// Concurrent rejections that are answered.
const ANSWERS: u64 = 64;
/// Idle connections to the app, kept for the next request.
const IDLE_UPSTREAM: u64 = 1024;

/// Limits derived from the file handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Client connections. Each may take a second handle, for the app's side of its session or request.
    pub connections: usize,
    /// Idle connections to an app.
    pub idle_upstream: usize,
    /// Concurrent rejections that are answered.
    pub answers: usize,
}

impl Capacity {
    /// Of this process, by its current soft limit of file handles.
    pub fn of_process() -> Self {
        // POSIX defines no failure for reading a process's own limit.
        Self::of(Resource::NOFILE.get_soft().unwrap_or(1024))
    }

    /// Of `handles` file handles; few are divided in proportion.
    pub fn of(handles: u64) -> Self {
        let (own, answers) = (OWN.min(handles / 4), ANSWERS.min(handles / 16));
        let idle_upstream = IDLE_UPSTREAM.min(handles / 8);
        let connections = ((handles - own - answers - idle_upstream) / 2).max(1);
        let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Self { connections: number(connections), idle_upstream: number(idle_upstream), answers: number(answers) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_handles_stay_free_under_any_limit() {
        for handles in [0, 1, 3, 16, 64, 256, 1024, 4096, 20_000, 1 << 20, u64::MAX] {
            let Capacity { connections, idle_upstream, answers } = Capacity::of(handles);
            assert!(connections >= 1, "{handles}");
            if handles >= 64 {
                let taken = 2 * connections as u64 + (idle_upstream + answers) as u64;
                assert!(handles - taken >= (handles / 4).min(OWN), "{handles}: {taken}");
                assert!(connections as u64 > handles / 4, "{handles}: {connections}");
            }
        }
        assert_eq!(Capacity::of(1024), Capacity { connections: 376, idle_upstream: 128, answers: 64 });
    }
}
