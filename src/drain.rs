//! The drain: signals its phases to everything that is alive, and waits for it.
//!
//! Serving → draining ([`Drain::start`]): not ready, but everything is served → closing ([`Drain::close`]): nothing new
//! is accepted → over, when the last [`Guard`] is dropped.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The close code of an endpoint that is going away (RFC 6455 §7.4.1).
const GOING_AWAY: u16 = 1001;

/// The phases and the count; clones share both.
#[derive(Clone, Debug)]
pub struct Drain {
    phases: Arc<Phases>,
    alive: TaskTracker,
}

/// The phases of a drain.
#[derive(Debug)]
struct Phases {
    draining: CancellationToken,
    closing: CancellationToken,
    close_code: u16,
}

/// Keeps the drain waiting until dropped.
#[derive(Debug)]
pub struct Guard {
    phases: Arc<Phases>,
    _alive: TaskTrackerToken,
}

impl Default for Drain {
    fn default() -> Self {
        Self::with_close_code(GOING_AWAY)
    }
}

impl Drain {
    /// Serving, without guards.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Drain::new`]; websockets are closed with this code of RFC 6455 §7.4.
    pub fn with_close_code(close_code: u16) -> Self {
        let (draining, closing) = (CancellationToken::new(), CancellationToken::new());
        Self { phases: Arc::new(Phases { draining, closing, close_code }), alive: TaskTracker::new() }
    }

    /// Adds a guard. Also while draining: an accepted request is served.
    pub fn guard(&self) -> Guard {
        Guard { phases: self.phases.clone(), _alive: self.alive.token() }
    }

    /// Starts the drain; a second call changes nothing.
    pub fn start(&self) {
        self.phases.draining.cancel();
    }

    /// Nothing new is accepted from now on; starts the drain if it has not started.
    pub fn close(&self) {
        self.start();
        self.phases.closing.cancel();
        self.alive.close();
    }

    /// Whether the drain has started.
    pub fn is_draining(&self) -> bool {
        self.phases.draining.is_cancelled()
    }

    /// Resolves when the drain starts.
    pub fn draining(&self) -> WaitForCancellationFuture<'_> {
        self.phases.draining.cancelled()
    }

    /// Resolves when nothing new is accepted any more.
    pub fn closing(&self) -> WaitForCancellationFuture<'_> {
        self.phases.closing.cancelled()
    }

    /// Waits until nothing new is accepted and every guard is dropped.
    pub async fn finished(&self) {
        self.alive.wait().await;
    }

    /// Number of guards.
    pub fn alive(&self) -> usize {
        self.alive.len()
    }
}

impl Guard {
    /// Whether the drain has started.
    pub fn is_draining(&self) -> bool {
        self.phases.draining.is_cancelled()
    }

    /// Whether nothing new is accepted any more.
    pub fn is_closing(&self) -> bool {
        self.phases.closing.is_cancelled()
    }

    /// Resolves when idle connections must be closed, at once if already so; may be dropped and called again.
    pub fn closing(&self) -> WaitForCancellationFuture<'_> {
        self.phases.closing.cancelled()
    }

    /// The token behind [`Guard::is_closing`], for a holder that the drain does not wait for.
    pub fn closing_token(&self) -> CancellationToken {
        self.phases.closing.clone()
    }

    /// The code with which a drain closes websockets.
    pub fn close_code(&self) -> u16 {
        self.phases.close_code
    }
}

/// Applies `stop` to each target at a random moment within `window`, so that clients do not all reconnect at the same
/// time. Resolves with the last one.
pub async fn spread<S>(targets: Vec<S>, window: Duration, stop: impl Fn(S)) {
    let started = Instant::now();
    let mut due: Vec<_> =
        targets.into_iter().map(|target| (started + window.mul_f64(rand::random()), target)).collect();
    due.sort_unstable_by_key(|(moment, _switch)| *moment);
    for (moment, target) in due {
        tokio::time::sleep_until(moment).await;
        stop(target);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_drain_ends_with_its_last_guard() {
        let drain = Drain::new();
        let (first, second) = (drain.guard(), drain.guard());
        drain.close();
        let mut finished = pin!(drain.finished());
        assert_eq!(finished.as_mut().now_or_never(), None);
        drop(first);
        assert_eq!((finished.as_mut().now_or_never(), drain.alive()), (None, 1));
        drop(second);
        finished.await;
    }

    #[tokio::test]
    async fn a_draining_sidecar_still_accepts() {
        let drain = Drain::new();
        let guard = drain.guard();
        drain.clone().start();
        drain.draining().await;
        assert!(drain.is_draining() && guard.is_draining() && !guard.is_closing());
        assert!(drain.closing().now_or_never().is_none() && guard.closing().now_or_never().is_none());
        drop(guard);
        assert!(drain.finished().now_or_never().is_none(), "more may come");
        drain.close();
        drain.finished().await;
    }

    #[tokio::test]
    async fn every_clone_and_guard_sees_the_close() {
        let drain = Drain::with_close_code(1012);
        let guard = drain.clone().guard();
        drain.clone().close();
        assert!(drain.is_draining() && guard.is_closing());
        guard.closing().await;
        drain.closing().await;
        assert_eq!(guard.close_code(), 1012);
    }

    #[tokio::test]
    async fn a_guard_taken_after_the_close_is_waited_for() {
        let drain = Drain::new();
        drain.close();
        let late = drain.guard();
        assert!(drain.finished().now_or_never().is_none());
        drop(late);
        drain.finished().await;
    }

    #[tokio::test(start_paused = true)]
    async fn stops_are_spread_at_random_over_the_window() {
        const WINDOW: Duration = Duration::from_secs(10);
        let targets: Vec<_> = (0..1000).map(|_session| CancellationToken::new()).collect();
        let started = Instant::now();
        let stopped = targets.iter().map(|target| target.cancelled().map(|()| started.elapsed()));
        let (moments, ()) = tokio::join!(
            futures_util::future::join_all(stopped),
            spread(targets.clone(), WINDOW, |target| target.cancel())
        );
        let early = moments.iter().filter(|moment| **moment < WINDOW / 4).count();
        let late = moments.iter().filter(|moment| **moment > WINDOW * 3 / 4).count();
        // 250 are expected in each quarter: the bounds allow eight standard deviations.
        assert!((140..360).contains(&early) && (140..360).contains(&late), "{early} {late}");
        assert!(moments.iter().all(|moment| *moment <= WINDOW + Duration::from_millis(1)));
        assert!(!moments.is_sorted());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_window_all_targets_stop_at_once() {
        let targets = vec![CancellationToken::new(); 3];
        let started = Instant::now();
        spread(targets.clone(), Duration::ZERO, |target| target.cancel()).await;
        assert!(targets.iter().all(CancellationToken::is_cancelled) && started.elapsed() < Duration::from_millis(2));
    }
}
