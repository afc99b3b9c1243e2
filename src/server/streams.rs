//! Resets HTTP/2 streams whose client opens no window, and keeps the connection's other streams.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use hyper::rt::Executor;

use super::stall::{StallLimit, StallTimer};

tokio::task_local! {
    /// The state of the stream that is being polled.
    static PROGRESS: Arc<StreamProgress>;
}

/// Whether a stream waits for its client's window, or for the app's response.
#[derive(Default)]
pub(super) struct StreamProgress {
    waits_for_client: AtomicBool,
    /// Response parts passed to hyper.
    parts: AtomicU64,
}

/// Runs the streams of one connection.
#[derive(Clone)]
pub(super) struct StreamExecutor {
    stall: Arc<StallLimit>,
}

impl StreamProgress {
    /// The state of the current task's stream.
    pub(super) fn current() -> Arc<Self> {
        PROGRESS.try_with(Arc::clone).unwrap_or_default()
    }

    /// A part of the response was passed on, and waits for a window.
    pub(super) fn on_part(&self) {
        self.parts.fetch_add(1, Ordering::Relaxed);
        self.waits_for_client.store(true, Ordering::Relaxed);
    }

    /// The app has sent no further part.
    pub(super) fn on_pause(&self) {
        self.waits_for_client.store(false, Ordering::Relaxed);
    }

    fn poll_stalled(&self, timer: &mut StallTimer, stall: &StallLimit, cx: &mut Context<'_>) -> Poll<()> {
        if !self.waits_for_client.load(Ordering::Relaxed) {
            timer.pause();
            return Poll::Pending;
        }
        // While the kernel accepts nothing, the whole connection is measured instead.
        timer.poll(stall, || (!stall.is_blocked()).then(|| self.parts.load(Ordering::Relaxed)), cx)
    }
}

impl StreamExecutor {
    pub(super) fn new(stall: Arc<StallLimit>) -> Self {
        Self { stall }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        let (stall, progress) = (self.stall.clone(), Arc::new(StreamProgress::default()));
        tokio::spawn(PROGRESS.scope(progress.clone(), async move {
            let mut timer = StallTimer::default();
            tokio::select! {
                biased;
                () = stream => {}
                // Drops the stream, so that h2 resets it.
                () = poll_fn(|cx| progress.poll_stalled(&mut timer, &stall, cx)) => stall.record(),
            }
        }));
    }
}
