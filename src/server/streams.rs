//! Resets HTTP/2 streams whose client opens no window, and keeps the connection's other streams.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use hyper::rt::Executor;

use super::stall::{Stall, Watch};

tokio::task_local! {
    /// The state of the stream that is being polled.
    static TURN: Arc<Turn>;
}

/// Whether a stream waits for its client's window, or for the app's response.
#[derive(Default)]
pub(super) struct Turn {
    is_clients: AtomicBool,
    /// Response parts passed to hyper.
    parts: AtomicU64,
}

/// Runs the streams of one connection.
#[derive(Clone)]
pub(super) struct Streams {
    stall: Arc<Stall>,
}

impl Turn {
    /// The state of the current task's stream.
    pub(super) fn current() -> Arc<Self> {
        TURN.try_with(Arc::clone).unwrap_or_default()
    }

    /// A part of the response was passed on, and waits for a window.
    pub(super) fn on_part(&self) {
        self.parts.fetch_add(1, Ordering::Relaxed);
        self.is_clients.store(true, Ordering::Relaxed);
    }

    /// The app has sent no further part.
    pub(super) fn on_pause(&self) {
        self.is_clients.store(false, Ordering::Relaxed);
    }

    fn poll_stalled(&self, watch: &mut Watch, stall: &Stall, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_clients.load(Ordering::Relaxed) {
            watch.pause();
            return Poll::Pending;
        }
        // While the kernel accepts nothing, the whole connection is measured instead.
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
                // Drops the stream, so that h2 resets it.
                () = poll_fn(|cx| turn.poll_stalled(&mut watch, &stall, cx)) => stall.give_up(),
            }
        }));
    }
}
