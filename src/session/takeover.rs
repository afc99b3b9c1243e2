//! Which connection to the app owns which Streamlit session, so that a reconnect replaces an older one.
//!
//! Invariants: of the connections and handshakes of a session at most one is not stopped, the newest. A handshake that
//! names a session starts after all older ones are closed. An id is kept only while it has an owner, and never shown.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::stop::Stop;
use crate::metrics::Takeover;
use crate::streamlit::handshake::SessionId;

/// The owners of one upstream's sessions; clones share them.
#[derive(Clone, Default)]
pub struct Owners(Arc<Mutex<HashMap<SessionId, Claim>>>);

/// The claim to one session.
#[derive(Default)]
struct Claim {
    /// Stops the newest owner; `None` if that is gone.
    newest: Option<Stop>,
    /// Owners whose handshake or session is not over, stopped ones included.
    open: usize,
    /// When these were stopped for a newer one that waits.
    ending_since: Option<Instant>,
}

/// A connection to the app, and the session it owns. Must be dropped after the connection is closed.
pub struct Owner {
    /// `None` if `session.takeover` is off.
    owners: Option<Owners>,
    stop: Stop,
    session: Option<SessionId>,
    /// Counted in [`Claim::open`].
    open: bool,
}

/// A newer connection has claimed the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superseded;

impl Owners {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Claim>> {
        // No panic can leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Opens the newest owner's handshake if no other is open. Returns how long it had to wait for older ones.
    fn poll_open(&mut self) -> Poll<Option<Duration>> {
        if self.open > 0 {
            return Poll::Pending;
        }
        self.open = 1;
        Poll::Ready(self.ending_since.take().map(|since| since.elapsed()))
    }
}

impl Owner {
    /// Owns no session yet. Without `owners` it never will.
    pub fn new(owners: Option<Owners>) -> Self {
        Self { owners, stop: Stop::default(), session: None, open: false }
    }

    /// Ends the connection when turned.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Claims the session that a handshake names: stops its owner and waits until that is over. The owner ends within
    /// `timeout`, or is aborted then; the result is which, `None` if there was none.
    ///
    /// # Errors
    /// A newer claim came while this one waited.
    pub async fn claim(&mut self, id: SessionId, timeout: Duration) -> Result<Option<Takeover>, Superseded> {
        let Some(owners) = &self.owners else { return Ok(None) };
        self.session = Some(id);
        let older = {
            let mut claims = owners.lock();
            let claim = claims.entry(id).or_default();
            if claim.open > 0 {
                claim.ending_since.get_or_insert_with(Instant::now);
            }
            claim.newest.replace(self.stop.clone())
        };
        if let Some(older) = older {
            older.request();
        }
        let waited = poll_fn(|cx| {
            if self.stop.poll_requested(cx) {
                return Poll::Ready(Err(Superseded));
            }
            owners.lock().entry(id).or_default().poll_open().map(Ok)
        });
        let waited = waited.await?;
        self.open = true;
        Ok(waited.map(|waited| if waited < timeout { Takeover::Closed } else { Takeover::Timeout }))
    }

    /// Resolves when a newer connection claims the session.
    pub async fn superseded(&self) {
        poll_fn(|cx| if self.stop.poll_requested(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// The app has named the session of this connection: it owns only that one from now on. Another owner is stopped.
    pub fn name(&mut self, id: SessionId) {
        if self.session == Some(id) {
            return;
        }
        self.leave();
        let Some(owners) = &self.owners else { return };
        (self.session, self.open) = (Some(id), true);
        let older = {
            let mut claims = owners.lock();
            let claim = claims.entry(id).or_default();
            claim.open += 1;
            // A stopped owner does not stop others.
            if self.stop.is_requested() { None } else { claim.newest.replace(self.stop.clone()) }
        };
        if let Some(older) = older {
            older.request();
        }
    }

    fn leave(&mut self) {
        let (Some(owners), Some(id)) = (&self.owners, self.session.take()) else { return };
        let mut claims = owners.lock();
        let Entry::Occupied(mut claim) = claims.entry(id) else { return };
        claim.get_mut().open -= usize::from(std::mem::take(&mut self.open));
        claim.get_mut().newest.take_if(|newest| newest.is(&self.stop));
        if claim.get().open > 0 {
            return;
        }
        let waiting = claim.get().newest.clone();
        if waiting.is_none() {
            claim.remove();
        }
        drop(claims);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests;
