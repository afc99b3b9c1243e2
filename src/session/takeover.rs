//! Who holds which Streamlit session of one upstream, so that a reconnect can take it over.
//!
//! Law: an id is kept no longer than its session lives or is being taken over, and is never shown.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::stop::Stop;
use crate::metrics::Takeover;
use crate::streamlit::handshake::SessionId;

/// The sessions of one upstream that can be taken over; clones share them.
#[derive(Clone, Default)]
pub struct Holders(Arc<Registry>);

#[derive(Default)]
struct Registry {
    bound: AtomicU64,
    held: Mutex<HashMap<SessionId, Held>>,
}

/// A session that is held, or whose takeover is under way.
#[derive(Default)]
struct Held {
    /// Whoever takes over goes first; the next one waits until the new holder is bound.
    turn: Arc<tokio::sync::Mutex<()>>,
    holder: Option<Holder>,
}

/// What is needed to end the holding connection.
#[derive(Clone)]
struct Holder {
    serial: u64,
    stop: Stop,
    over: CancellationToken,
}

/// What a connection holds, and how it is told to let go.
pub struct Holding {
    /// `None` where sessions are not taken over.
    holders: Option<Holders>,
    stop: Stop,
    binding: Option<Binding>,
}

/// Makes a connection the holder of a session until dropped, which is also when the takeover goes on.
struct Binding {
    holders: Holders,
    id: SessionId,
    serial: u64,
    _over: DropGuard,
}

/// The right to take a session's place; the next takeover of it waits until this is dropped.
pub struct Turn {
    holders: Holders,
    id: SessionId,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Holders {
    fn bind(&self, id: SessionId, stop: Stop) -> Binding {
        let serial = self.0.bound.fetch_add(1, Relaxed);
        let over = CancellationToken::new();
        self.lock().entry(id).or_default().holder = Some(Holder { serial, stop, over: over.clone() });
        Binding { holders: self.clone(), id, serial, _over: over.drop_guard() }
    }

    /// Ends the connection that holds the session `id` and waits, at most so long, until it is over. `None`, at no
    /// cost, if nobody holds it.
    pub async fn take_over(&self, id: SessionId, timeout: Duration) -> Option<(Turn, Takeover)> {
        // Stands before what it tidies up after, also when the browser leaves while this waits.
        let mut turn = Turn { holders: self.clone(), id, guard: None };
        let queue = self.lock().get(&id)?.turn.clone();
        let deadline = tokio::time::Instant::now() + timeout;
        turn.guard = tokio::time::timeout_at(deadline, queue.lock_owned()).await.ok();
        let holder = self.lock().get(&id)?.holder.clone()?;
        holder.stop.turn();
        let over = tokio::time::timeout_at(deadline, holder.over.cancelled()).await;
        Some((turn, if over.is_ok() { Takeover::Closed } else { Takeover::Timeout }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Held>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets an id that nobody holds and nobody takes over.
    fn tidy(&self, id: SessionId) {
        let mut held = self.lock();
        if held.get(&id).is_some_and(|held| held.holder.is_none() && Arc::strong_count(&held.turn) == 1) {
            held.remove(&id);
        }
    }
}

impl Holding {
    /// Holds nothing yet; `stop` ends the connection. Without `holders` nothing is ever held.
    pub fn new(holders: Option<Holders>, stop: Stop) -> Self {
        Self { holders, stop, binding: None }
    }

    /// The connection holds this session from now on, and no other.
    pub fn hold(&mut self, id: SessionId) {
        if let Some(holders) = &self.holders
            && self.binding.as_ref().is_none_or(|binding| binding.id != id)
        {
            self.binding = Some(holders.bind(id, self.stop.clone()));
        }
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        if let Some(held) = self.holders.lock().get_mut(&self.id)
            && held.holder.as_ref().is_some_and(|holder| holder.serial == self.serial)
        {
            held.holder = None;
        }
        self.holders.tidy(self.id);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        self.holders.tidy(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(500);

    fn id() -> SessionId {
        SessionId::parse("7a4fd3b1-25b0-4f38-9d05-0a55b18df5c2").expect("a UUID")
    }

    /// A connection that holds the session, and what tells it to stop.
    fn connection(holders: &Holders) -> (Holding, Stop) {
        let stop = Stop::default();
        let mut holding = Holding::new(Some(holders.clone()), stop.clone());
        holding.hold(id());
        (holding, stop)
    }

    fn is_empty(holders: &Holders) -> bool {
        holders.lock().is_empty()
    }

    #[tokio::test(start_paused = true)]
    async fn a_takeover_waits_until_the_old_connection_is_over() {
        let holders = Holders::default();
        let (holding, stop) = connection(&holders);
        let mut takeover = pin!(holders.take_over(id(), TIMEOUT));
        assert!(takeover.as_mut().now_or_never().is_none());
        assert!(stop.is_turned());
        drop(holding);
        let (turn, result) = takeover.await.expect("somebody held it");
        assert_eq!(result, Takeover::Closed);
        drop(turn);
        assert!(is_empty(&holders), "an id is kept no longer than its session");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_end_is_waited_for_no_longer_than_told() {
        let holders = Holders::default();
        let (_holding, _stop) = connection(&holders);
        let begun = tokio::time::Instant::now();
        let (_turn, result) = holders.take_over(id(), TIMEOUT).await.expect("somebody held it");
        assert_eq!((result, begun.elapsed()), (Takeover::Timeout, TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn two_takeovers_at_once_end_with_one_connection() {
        let holders = Holders::default();
        let (first, _stop) = connection(&holders);
        let (mut one, mut two) = (pin!(holders.take_over(id(), TIMEOUT)), pin!(holders.take_over(id(), TIMEOUT)));
        assert!(one.as_mut().now_or_never().is_none() && two.as_mut().now_or_never().is_none());
        drop(first);
        let (turn, _result) = one.await.expect("the first one held it");
        assert!(two.as_mut().now_or_never().is_none(), "the second waits for its turn");
        let (second, stop) = connection(&holders);
        drop(turn);
        assert!(two.as_mut().now_or_never().is_none(), "now for the new connection");
        assert!(stop.is_turned());
        drop(second);
        let (turn, result) = two.await.expect("the second one held it");
        assert_eq!(result, Takeover::Closed);
        drop(turn);
        assert!(is_empty(&holders));
    }

    #[tokio::test(start_paused = true)]
    async fn a_browser_that_leaves_while_it_waits_leaves_nothing_behind() {
        let holders = Holders::default();
        let (holding, _stop) = connection(&holders);
        let mut one = Box::pin(holders.take_over(id(), TIMEOUT));
        let mut two = Box::pin(holders.take_over(id(), TIMEOUT));
        assert!(one.as_mut().now_or_never().is_none() && two.as_mut().now_or_never().is_none());
        drop(holding);
        drop((one, two));
        assert!(is_empty(&holders));
    }

    #[tokio::test]
    async fn an_id_that_nobody_holds_costs_nothing() {
        let holders = Holders::default();
        assert!(holders.take_over(id(), TIMEOUT).await.is_none());
        assert!(is_empty(&holders));
        let mut off = Holding::new(None, Stop::default());
        off.hold(id());
        assert!(holders.take_over(id(), TIMEOUT).await.is_none(), "where sessions are not taken over");
    }

    #[tokio::test]
    async fn the_id_that_the_server_gave_replaces_the_one_that_was_asked_for() {
        let holders = Holders::default();
        let (mut holding, stop) = connection(&holders);
        let given = SessionId::parse("00000000-0000-4000-8000-000000000000").expect("a UUID");
        holding.hold(given);
        assert!(holders.take_over(id(), TIMEOUT).await.is_none());
        assert!(holders.take_over(given, TIMEOUT).now_or_never().is_none());
        assert!(stop.is_turned());
    }
}
