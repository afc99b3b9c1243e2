//! A place for one request to a session's task, which owns the sockets.

use std::sync::{Mutex, PoisonError};
use std::task::Context;

use futures_util::task::AtomicWaker;

/// Holds at most one request, the newest.
pub(super) struct Mailbox<T> {
    session: AtomicWaker,
    pending: Mutex<Option<T>>,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self { session: AtomicWaker::new(), pending: Mutex::new(None) }
    }
}

impl<T> Mailbox<T> {
    /// Posts a request and wakes the session. An older one that it has not taken is dropped.
    pub(super) fn post(&self, request: T) {
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
        self.session.wake();
    }

    /// Takes the pending request, and registers the task to be woken by the next.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Option<T> {
        self.session.register(cx.waker());
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
