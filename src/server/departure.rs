//! Notices that a client is gone while it waits for its answer, without a read.
//!
//! A client that has closed its connection looks like one that has ended its side only, and the latter is to be answered.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::relay::stream::{Peer, Stream};

/// From one look at the kernel's state of the connection to the next, once something unread has come.
const LOOK: Duration = Duration::from_secs(1);

/// The watch over one client.
pub(super) struct Departure {
    /// How long a client that has ended its side waits for the next bytes of its answer.
    patience: Duration,
    /// Runs once something has come that nobody reads: no further event may tell of a reset then.
    look: Option<Pin<Box<Sleep>>>,
    /// When the end of the client's side was seen, or bytes were last sent to it after that.
    ended: Option<Instant>,
}

impl Departure {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, look: None, ended: None }
    }

    /// What has come is being read.
    pub(super) fn on_read(&mut self) {
        (self.look, self.ended) = (None, None);
    }

    /// Some of the answer was sent.
    pub(super) fn on_written(&mut self) {
        if self.ended.is_some() {
            self.ended = Some(Instant::now());
        }
    }

    /// Ready when the client has reset the connection, or has ended its side and was sent nothing for too long.
    pub(super) fn poll(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<()> {
        let interval = LOOK.min(self.patience / 4);
        if self.look.is_none() {
            ready!(stream.poll_read_ready(cx));
            // The first look is due at once.
            self.look = Some(Box::pin(sleep(Duration::ZERO)));
        }
        while let Some(look) = &mut self.look {
            ready!(look.as_mut().poll(cx));
            let now = Instant::now();
            match stream.peer() {
                Peer::Gone => return Poll::Ready(()),
                Peer::Ended if now - *self.ended.get_or_insert(now) >= self.patience => return Poll::Ready(()),
                Peer::Ended | Peer::Open => {}
            }
            look.as_mut().reset(now + interval);
        }
        Poll::Pending
    }
}
