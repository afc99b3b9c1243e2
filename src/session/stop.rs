//! The request to end one session: only a flag and a waker, because every idle session has one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::Context;

use futures_util::task::AtomicWaker;

/// The request; clones share it. It cannot be withdrawn.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<State>);

#[derive(Debug, Default)]
struct State {
    requested: AtomicBool,
    session: AtomicWaker,
}

impl Stop {
    /// Requests the end of the session.
    pub fn request(&self) {
        self.0.requested.store(true, SeqCst);
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
    pub fn poll_requested(&self, cx: &Context<'_>) -> bool {
        self.0.session.register(cx.waker());
        self.is_requested()
    }

    /// Whether the session must end.
    pub fn is_requested(&self) -> bool {
        self.0.requested.load(SeqCst)
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
        let session = tokio::spawn(poll_fn(move |cx| match waiting.poll_requested(cx) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }));
        tokio::task::yield_now().await;
        assert!(!session.is_finished() && !stop.is_requested());
        stop.request();
        session.await.expect("no panic");
    }
}
