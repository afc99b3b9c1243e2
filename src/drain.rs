//! The end of a sidecar's life: tells everything alive that the drain has begun, and waits for it.
//!
//! Running → draining ([`Drain::start`]) → over, when the last [`Guard`] is gone or the deadline has passed.

use std::time::Duration;

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The switch and the count; clones share both.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    started: CancellationToken,
    alive: TaskTracker,
}

/// One living thing that the drain waits for, until dropped.
#[derive(Debug)]
pub struct Guard {
    started: CancellationToken,
    _alive: TaskTrackerToken,
}

impl Drain {
    /// Running, with nothing alive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one more living thing. Also while draining: a request that was accepted is served.
    pub fn guard(&self) -> Guard {
        Guard { started: self.started.clone(), _alive: self.alive.token() }
    }

    /// Begins the drain; a second call changes nothing.
    pub fn start(&self) {
        self.started.cancel();
        self.alive.close();
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.started.is_cancelled()
    }

    /// Resolves when the drain begins.
    pub fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.started.cancelled()
    }

    /// Waits until the drain has begun and every guard is gone, at most so long from now.
    ///
    /// # Errors
    /// How many guards were left at the deadline.
    pub async fn finished(&self, deadline: Duration) -> Result<(), usize> {
        tokio::time::timeout(deadline, self.alive.wait()).await.map_err(|_| self.alive.len())
    }
}

impl Guard {
    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.started.is_cancelled()
    }

    /// A switch that the drain turns too, and that can be turned alone.
    pub fn stop(&self) -> CancellationToken {
        self.started.child_token()
    }

    /// Resolves when the drain begins, at once if it has; may be dropped and asked for again.
    pub fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.started.cancelled()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_its_last_guard() {
        let drain = Drain::new();
        let (first, second) = (drain.guard(), drain.guard());
        drain.start();
        let mut finished = pin!(drain.finished(DEADLINE));
        assert_eq!(finished.as_mut().now_or_never(), None);
        drop(first);
        assert_eq!(finished.as_mut().now_or_never(), None);
        drop(second);
        assert_eq!(finished.await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_tells_how_many_were_left() {
        let drain = Drain::new();
        let _left = (drain.guard(), drain.guard());
        drain.start();
        let begun = tokio::time::Instant::now();
        assert_eq!(drain.finished(DEADLINE).await, Err(2));
        assert!(begun.elapsed() >= DEADLINE);
    }

    #[tokio::test]
    async fn every_clone_and_guard_hears_the_start() {
        let drain = Drain::new();
        let guard = drain.clone().guard();
        let stop = guard.stop();
        let mut owned = pin!(stop.cancelled());
        assert!(!drain.is_draining());
        assert!(owned.as_mut().now_or_never().is_none() && guard.draining().now_or_never().is_none());
        drain.clone().start();
        assert!(drain.is_draining());
        owned.await;
        guard.draining().await;
        drain.draining().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_accepted_while_draining_is_waited_for() {
        let drain = Drain::new();
        drain.start();
        let late = drain.guard();
        assert_eq!(drain.finished(DEADLINE).await, Err(1));
        drop(late);
        assert_eq!(drain.finished(DEADLINE).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_finished_before_the_drain_has_begun() {
        assert_eq!(Drain::new().finished(DEADLINE).await, Err(0));
    }
}
