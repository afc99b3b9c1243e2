//! The switch that ends one session: only a flag and a waker, because every idle session has one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::Context;

use futures_util::task::AtomicWaker;

/// The switch; clones share it. Once turned it stays turned.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Switch>);

#[derive(Debug, Default)]
struct Switch {
    turned: AtomicBool,
    session: AtomicWaker,
}

impl Stop {
    /// Ends the session.
    pub fn turn(&self) {
        self.0.turned.store(true, SeqCst);
        self.wake();
    }

    /// Wakes the polling task.
    pub(super) fn wake(&self) {
        self.0.session.wake();
    }

    /// Whether `other` is a clone of this one.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the session must end; the last task to poll is woken when that changes.
    pub fn poll_turned(&self, cx: &Context<'_>) -> bool {
        self.0.session.register(cx.waker());
        self.is_turned()
    }

    /// Whether the session must end.
    pub fn is_turned(&self) -> bool {
        self.0.turned.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn any_clone_wakes_the_task_that_waits_for_a_stop() {
        let stop = Stop::default();
        let waiting = stop.clone();
        let session = tokio::spawn(poll_fn(move |cx| match waiting.poll_turned(cx) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }));
        tokio::task::yield_now().await;
        assert!(!session.is_finished() && !stop.is_turned());
        stop.turn();
        session.await.expect("no panic");
    }
}
