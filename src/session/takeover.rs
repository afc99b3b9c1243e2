//! Which connection to the app owns which Streamlit session, so that a reconnect replaces an older one.
//!
//! Invariants: of the connections and handshakes of a session at most one is not stopped, the newest. A handshake that
//! names a session starts after all older ones are closed. All of them have one identity: another user's handshake ends
//! none and owns nothing. An id is kept only while it has an owner, and never shown.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use super::identity::Identity;
use super::stop::Stop;
use crate::metrics::Takeover;
use crate::streamlit::handshake::SessionId;

/// The owners of one upstream's sessions; clones share them.
#[derive(Clone, Default)]
pub struct Owners(Arc<Mutex<HashMap<SessionId, Claim>>>);

/// The claim to one session.
struct Claim {
    /// That of all owners.
    identity: Identity,
    /// Stops the newest owner; `None` if that is gone.
    newest: Option<Stop>,
    /// Owners whose handshake or session is not over, stopped ones included.
    open: usize,
    /// How these end, which were stopped for a newer one that waits.
    ending: Option<Ended>,
}

/// How the older connections and handshakes of a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// For the metrics.
    pub result: Takeover,
    /// How many data messages of its page the newest of them has passed to the app, if they are counted.
    pub received: Option<u64>,
}

/// A connection to the app, and the session it owns. Must be dropped after the connection is closed.
pub struct Owner {
    /// With the identity of the handshake. `None` if `session.takeover` is off.
    owners: Option<(Owners, Identity)>,
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
    /// The claim to this session; `None` if it is another user's.
    fn of(claims: &mut HashMap<SessionId, Self>, id: SessionId, identity: Identity) -> Option<&mut Self> {
        let claim = claims.entry(id).or_insert(Self { identity, newest: None, open: 0, ending: None });
        (claim.identity == identity).then_some(claim)
    }

    /// Opens the newest owner's handshake if no other is open. Returns how the older ones ended, if it had to wait.
    fn poll_open(&mut self) -> Poll<Option<Ended>> {
        if self.open > 0 {
            return Poll::Pending;
        }
        self.open = 1;
        Poll::Ready(self.ending.take())
    }
}

impl Owner {
    /// Owns no session yet. Without `owners` it never will.
    pub fn new(owners: Option<(Owners, Identity)>) -> Self {
        Self { owners, stop: Stop::default(), session: None, open: false }
    }

    /// Ends the connection when turned.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Claims the session that a handshake names: stops its owner and waits until that is over. Returns how it ended,
    /// `None` if there was none. The session of another user is left alone: up to Streamlit 1.60 its id is the only proof
    /// of who may resume it.
    ///
    /// # Errors
    /// A newer claim came while this one waited.
    pub async fn claim(&mut self, id: SessionId) -> Result<Option<Ended>, Superseded> {
        let Some((owners, identity)) = &self.owners else { return Ok(None) };
        let older = {
            let mut claims = owners.lock();
            let Some(claim) = Claim::of(&mut claims, id, *identity) else {
                return Ok(Some(Ended { result: Takeover::OtherUser, received: None }));
            };
            self.session = Some(id);
            if claim.open > 0 {
                claim.ending.get_or_insert(Ended { result: Takeover::Closed, received: None });
            }
            claim.newest.replace(self.stop.clone())
        };
        if let Some(older) = older {
            older.request();
        }
        let ended = poll_fn(|cx| {
            if self.stop.poll_requested(cx) {
                return Poll::Ready(Err(Superseded));
            }
            // Until it is superseded, this claim keeps the entry.
            owners.lock().get_mut(&id).map_or(Poll::Pending, |claim| claim.poll_open().map(Ok))
        });
        let ended = ended.await?;
        self.open = true;
        Ok(ended)
    }

    /// The app did not close this connection in time; it is aborted.
    pub fn on_timeout(&self) {
        self.with_ending(|ending| ending.result = Takeover::Timeout);
    }

    /// This connection is being closed, and has passed this many data messages of its page to the app.
    pub fn on_closing(&self, received: u64) {
        self.with_ending(|ending| ending.received = Some(received));
    }

    fn with_ending(&self, change: impl FnOnce(&mut Ended)) {
        let (Some((owners, _identity)), Some(id)) = (&self.owners, self.session) else { return };
        if let Some(ending) = owners.lock().get_mut(&id).and_then(|claim| claim.ending.as_mut()) {
            change(ending);
        }
    }

    /// Resolves when a newer connection claims the session.
    pub async fn superseded(&self) {
        poll_fn(|cx| if self.stop.poll_requested(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// The app has named the session of this connection: it owns only that one from now on. Another owner is stopped,
    /// unless it is another user's.
    pub fn name(&mut self, id: SessionId) {
        if self.session == Some(id) {
            return;
        }
        self.leave();
        let Some((owners, identity)) = &self.owners else { return };
        let older = {
            let mut claims = owners.lock();
            let Some(claim) = Claim::of(&mut claims, id, *identity) else { return };
            (self.session, self.open) = (Some(id), true);
            claim.open += 1;
            // A stopped owner does not stop others.
            if self.stop.is_requested() { None } else { claim.newest.replace(self.stop.clone()) }
        };
        if let Some(older) = older {
            older.request();
        }
    }

    fn leave(&mut self) {
        let (Some((owners, _identity)), Some(id)) = (&self.owners, self.session.take()) else { return };
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
