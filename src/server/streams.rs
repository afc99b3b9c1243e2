//! Gives up streams of HTTP/2 whose client leaves no window for them. The connection and its other streams go on.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use hyper::rt::Executor;

use super::stall::{Stall, Watch};

tokio::task_local! {
    /// Of the stream that is being polled.
    static TURN: Arc<Turn>;
}

/// Whether a stream waits for its client, which gives it a window, or for the app, which sends the answer.
#[derive(Default)]
pub(super) struct Turn {
    is_clients: AtomicBool,
    /// Parts of the answer that were handed on.
    parts: AtomicU64,
}

/// Runs the streams of one connection.
#[derive(Clone)]
pub(super) struct Streams {
    stall: Arc<Stall>,
}

impl Turn {
    /// That of the stream whose task this is.
    pub(super) fn current() -> Arc<Self> {
        TURN.try_with(Arc::clone).unwrap_or_default()
    }

    /// A part of the answer is handed on, which waits until there is a window for it.
    pub(super) fn on_part(&self) {
        self.parts.fetch_add(1, Ordering::Relaxed);
        self.is_clients.store(true, Ordering::Relaxed);
    }

    /// Nothing of the answer is there.
    pub(super) fn on_pause(&self) {
        self.is_clients.store(false, Ordering::Relaxed);
    }

    fn poll_stalled(&self, watch: &mut Watch, stall: &Stall, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_clients.load(Ordering::Relaxed) {
            watch.pause();
            return Poll::Pending;
        }
        // While the kernel takes nothing it is the whole connection that is measured.
        watch.poll(stall, || (!stall.is_blocked()).then(|| self.parts.load(Ordering::Relaxed)), cx)
    }
}

impl Streams {
    pub(super) fn new(stall: Arc<Stall>) -> Self {
        Self { stall }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let (stall, turn) = (self.stall.clone(), Arc::new(Turn::default()));
        tokio::spawn(TURN.scope(turn.clone(), async move {
            let mut watch = Watch::default();
            tokio::select! {
                biased;
                () = stream => {}
                // The stream is dropped, and h2 resets it.
                () = poll_fn(|cx| turn.poll_stalled(&mut watch, &stall, cx)) => stall.give_up(),
            }
        }));
    }
}
