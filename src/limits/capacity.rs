//! Divides the process's file descriptors among their uses.
//!
//! Invariant: clients leave enough descriptors to serve the admin port, to reject, and to finish.

use rlimit::Resource;

/// The sidecar's own (listeners, epoll, signals, the log) and the admin port's 60 connections.
const OWN: u64 = 80;
/// Concurrent rejections that send a response.
const RESPONSES: u64 = 64;
/// Idle connections to the app, kept for the next request.
const IDLE_UPSTREAM: u64 = 1024;

/// Limits derived from the file descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Client connections. Each may take a second descriptor, for the app's side of its session or request.
    pub connections: usize,
    /// Idle connections to an app.
    pub idle_upstream: usize,
    /// Concurrent rejections that send a response.
    pub responses: usize,
}

impl Capacity {
    /// Of this process, by its current soft limit of file descriptors.
    pub fn of_process() -> Self {
        // POSIX defines no failure for reading a process's own limit.
        Self::of(Resource::NOFILE.get_soft().unwrap_or(1024))
    }

    /// Of `descriptors` file descriptors; few are divided in proportion.
    pub fn of(descriptors: u64) -> Self {
        let (own, responses) = (OWN.min(descriptors / 4), RESPONSES.min(descriptors / 16));
        let idle_upstream = IDLE_UPSTREAM.min(descriptors / 8);
        let connections = ((descriptors - own - responses - idle_upstream) / 2).max(1);
        let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Self { connections: number(connections), idle_upstream: number(idle_upstream), responses: number(responses) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_descriptors_stay_free_under_any_limit() {
        for descriptors in [0, 1, 3, 16, 64, 256, 1024, 4096, 20_000, 1 << 20, u64::MAX] {
            let Capacity { connections, idle_upstream, responses } = Capacity::of(descriptors);
            assert!(connections >= 1, "{descriptors}");
            if descriptors >= 64 {
                let taken = 2 * connections as u64 + (idle_upstream + responses) as u64;
                assert!(descriptors - taken >= (descriptors / 4).min(OWN), "{descriptors}: {taken}");
                assert!(connections as u64 > descriptors / 4, "{descriptors}: {connections}");
            }
        }
        assert_eq!(Capacity::of(1024), Capacity { connections: 376, idle_upstream: 128, responses: 64 });
    }
}
