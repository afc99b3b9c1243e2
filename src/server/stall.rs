//! Disconnects clients that read nothing of pending data.
//!
//! Invariant: a client whose kernel acknowledges any byte within the limit is not disconnected, however slow it is.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use humantime::format_duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, Rejected};
use crate::transport::Stream;

/// Upper bound of the limit while the drain closes: well below the default `drain.timeout` of 10 s, so that a stalled
/// client does not make the drain time out.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);
/// Number of checks of a blocked client within the shorter of both limits.
const CHECKS: u32 = 4;

/// The limit of one connection.
pub(super) struct StallLimit {
    limit: Duration,
    closing: CancellationToken,
    /// The kernel accepts no more bytes for the client.
    blocked: AtomicBool,
    metrics: Arc<Metrics>,
}

/// Measures how long a client has made no progress. It costs nothing before the first wait.
#[derive(Default)]
pub(super) struct StallTimer {
    /// Reused for later waits. Firing in between is harmless.
    timer: Option<Pin<Box<Sleep>>>,
    /// Time without progress, summed over checks: after a freeze of this process no client is disconnected at once.
    /// `None` if nothing waits for the client.
    stalled_for: Option<Duration>,
    progress: Option<u64>,
}

/// A client's connection. A write that makes no progress within the limit fails, and the connection is then reset.
pub(super) struct TimeoutStream {
    stream: Stream,
    stall: Arc<StallLimit>,
    timer: StallTimer,
}

impl StallLimit {
    /// At most `limit`; less while the drain closes.
    pub(super) fn new(limit: Duration, closing: CancellationToken, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { limit, closing, blocked: AtomicBool::new(false), metrics })
    }

    fn limit(&self) -> Duration {
        if self.closing.is_cancelled() { self.limit.min(DRAIN_LIMIT) } else { self.limit }
    }

    /// Interval of checks. The limit may become shorter in between.
    fn interval(&self) -> Duration {
        self.limit.min(DRAIN_LIMIT) / CHECKS
    }

    /// Whether bytes wait for the kernel to accept them.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Counts and logs a stalled client.
    pub(super) fn record(&self) {
        self.metrics.rejected(Rejected::Stalled);
        tracing::debug!(timeout = %format_duration(self.limit()), "client stalled: its response is aborted");
    }
}

impl StallTimer {
    /// Nothing waits for the client now.
    pub(super) fn pause(&mut self) {
        self.stalled_for = None;
    }

    /// Ready when data has waited for the client for the limit while `progress`, which is polled, stayed the same.
    /// `None` counts as progress.
    pub(super) fn poll(
        &mut self,
        stall: &StallLimit,
        progress: impl Fn() -> Option<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let interval = stall.interval();
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(interval)));
        let stalled_for = self.stalled_for.get_or_insert_with(|| {
            self.progress = None;
            Duration::ZERO
        });
        while timer.as_mut().poll(cx).is_ready() {
            let progress = progress();
            if progress.is_none() || progress != self.progress {
                (self.progress, *stalled_for) = (progress, Duration::ZERO);
            } else {
                *stalled_for += interval;
            }
            if *stalled_for >= stall.limit() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(Instant::now() + interval);
        }
        Poll::Pending
    }
}

impl TimeoutStream {
    pub(super) fn new(stream: Stream, stall: Arc<StallLimit>) -> Self {
        Self { stream, stall, timer: StallTimer::default() }
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Sends EOF after all written data. A close with unread bytes of the client sends a reset, which could overtake a
    /// response.
    pub(super) async fn close(mut self) {
        let _gone_already = self.shutdown().await;
    }

    /// The result of a write or a flush, or an error if the wait exceeds the limit. Nothing is flushed while a write
    /// waits, so each completed call shows progress.
    fn apply_limit<T>(&mut self, result: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let Self { stream, stall, timer } = self;
        if result.is_ready() {
            if timer.stalled_for.is_some() {
                timer.pause();
                stall.blocked.store(false, Ordering::Relaxed);
            }
            return result;
        }
        stall.blocked.store(true, Ordering::Relaxed);
        ready!(timer.poll(stall, || stream.acknowledged(), cx));
        stall.record();
        // Otherwise the kernel's send buffer would stay in memory for minutes.
        stream.reset_on_drop();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for TimeoutStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TimeoutStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.apply_limit(result, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.apply_limit(result, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_flush(cx);
        this.apply_limit(result, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.apply_limit(result, cx)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(120);

    fn stall() -> (Arc<StallLimit>, CancellationToken) {
        let closing = CancellationToken::new();
        (StallLimit::new(LIMIT, closing.clone(), Metrics::new()), closing)
    }

    /// How long a client is waited for; `progress` is a function of the time since the first wait.
    async fn waited(stall: &StallLimit, progress: impl Fn(Duration) -> Option<u64>) -> Duration {
        let (mut timer, started) = (StallTimer::default(), Instant::now());
        let expired = poll_fn(|cx| timer.poll(stall, || progress(started.elapsed()), cx));
        let _elapsed = tokio::time::timeout(LIMIT * 10, expired).await;
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_without_progress_is_disconnected_after_the_limit_and_not_before() {
        let (stall, _closing) = stall();
        for stops in [0, 1, 50, 500] {
            let waited = waited(&stall, |after| Some(after.as_secs().min(stops))).await;
            let max = LIMIT + 2 * stall.interval() + Duration::from_secs(stops);
            assert!((LIMIT + Duration::from_secs(stops)..=max).contains(&waited), "{stops}: {waited:?}");
        }
        let any = waited(&stall, |after| Some(after.as_secs() / 119)).await;
        assert_eq!(any.as_secs(), 1200, "the slowest progress is enough");
        assert_eq!(waited(&stall, |_after| None).await.as_secs(), 1200, "unknown progress disconnects no client");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_shortens_the_limit_also_for_clients_that_are_stalled_already() {
        let (stall, closing) = stall();
        let closes = Duration::from_secs(20);
        let (waited, ()) = tokio::join!(waited(&stall, |_after| Some(1)), async {
            tokio::time::sleep(closes).await;
            closing.cancel();
        });
        assert!(waited >= closes && waited <= closes + stall.interval() * 2, "{waited:?}");
        let waited = self::waited(&stall, |_after| Some(1)).await;
        assert!(waited >= DRAIN_LIMIT && waited <= DRAIN_LIMIT * 2, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_restarts_the_time_without_progress() {
        let (stall, _closing) = stall();
        let (mut timer, waits) = (StallTimer::default(), Cell::new(0));
        let expired = poll_fn(|cx| {
            waits.set(waits.get() + 1);
            timer.pause();
            timer.poll(&stall, || Some(1), cx)
        });
        assert!(tokio::time::timeout(LIMIT * 2, expired).await.is_err());
        assert!(waits.get() > 100);
    }
}
