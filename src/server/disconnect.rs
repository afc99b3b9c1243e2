//! Detects, without a read, that a client is gone while its response is pending.
//!
//! A closed connection looks like a half-closed one, and a half-closed client must get its response.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::transport::{PeerState, Stream};

/// Interval of checks of the kernel's connection state, once unread data or EOF has arrived.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The detector for one client.
pub(super) struct DisconnectDetector {
    /// How long a half-closed client may go without further bytes of its response.
    timeout: Duration,
    /// Runs once unread data is pending: a reset may then raise no further event.
    check: Option<Pin<Box<Sleep>>>,
    /// When the half-close was seen, or bytes were last sent after it.
    half_closed_since: Option<Instant>,
}

impl DisconnectDetector {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, check: None, half_closed_since: None }
    }

    /// The pending data is being read.
    pub(super) fn on_read(&mut self) {
        (self.check, self.half_closed_since) = (None, None);
    }

    /// Part of the response was sent.
    pub(super) fn on_written(&mut self) {
        if self.half_closed_since.is_some() {
            self.half_closed_since = Some(Instant::now());
        }
    }

    /// Ready when the client has reset the connection, or is half-closed and was sent nothing for `timeout`.
    pub(super) fn poll(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<()> {
        let interval = CHECK_INTERVAL.min(self.timeout / 4);
        if self.check.is_none() {
            ready!(stream.poll_read_ready(cx));
            // The first check is due at once.
            self.check = Some(Box::pin(sleep(Duration::ZERO)));
        }
        while let Some(check) = &mut self.check {
            ready!(check.as_mut().poll(cx));
            let now = Instant::now();
            match stream.peer_state() {
                PeerState::Gone => return Poll::Ready(()),
                PeerState::Ended if now - *self.half_closed_since.get_or_insert(now) >= self.timeout => {
                    return Poll::Ready(());
                }
                PeerState::Ended | PeerState::Open => {}
            }
            check.as_mut().reset(now + interval);
        }
        Poll::Pending
    }
}
