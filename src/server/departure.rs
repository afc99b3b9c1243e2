//! Detects, without a read, that a client is gone while its response is pending.
//!
//! A closed connection looks like a half-closed one, and a half-closed client must get its response.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::transport::{PeerState, Stream};

/// Interval of checks of the kernel's connection state, once unread data or EOF has arrived.
const LOOK: Duration = Duration::from_secs(1);

/// The detector for one client.
pub(super) struct Departure {
    /// How long a half-closed client may go without further bytes of its response.
    patience: Duration,
    /// Runs once unread data is pending: a reset may then raise no further event.
    look: Option<Pin<Box<Sleep>>>,
    /// When the half-close was seen, or bytes were last sent after it.
    ended: Option<Instant>,
}

impl Departure {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, look: None, ended: None }
    }

    /// The pending data is being read.
    pub(super) fn on_read(&mut self) {
        (self.look, self.ended) = (None, None);
    }

    /// Part of the response was sent.
    pub(super) fn on_written(&mut self) {
        if self.ended.is_some() {
            self.ended = Some(Instant::now());
        }
    }

    /// Ready when the client has reset the connection, or is half-closed and was sent nothing for `patience`.
    pub(super) fn poll(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<()> {
        let interval = LOOK.min(self.patience / 4);
        if self.look.is_none() {
            ready!(stream.poll_read_ready(cx));
            // The first check is due at once.
            self.look = Some(Box::pin(sleep(Duration::ZERO)));
        }
        while let Some(look) = &mut self.look {
            ready!(look.as_mut().poll(cx));
            let now = Instant::now();
            match stream.peer_state() {
                PeerState::Gone => return Poll::Ready(()),
                PeerState::Ended if now - *self.ended.get_or_insert(now) >= self.patience => return Poll::Ready(()),
                PeerState::Ended | PeerState::Open => {}
            }
            look.as_mut().reset(now + interval);
        }
        Poll::Pending
    }
}
