//! The resumable sessions of one upstream: finds the session of a new leg, and limits how many are parked.
//!
//! Invariant: a leg reaches a session only with the session's secret and the identity of its first leg.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::Duration;

use super::delivery_probe::ProbeHandle;
use super::mailbox::Mailbox;
use crate::metrics::ResumptionRefused;
use crate::resume::control::{ResumeRequest, Secret, close_code};
use crate::session::identity::Identity;
use crate::transport::Upgraded;
use crate::websocket::frame::ControlFrame;

/// How long a refused page may take to close its connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The sessions; clones share them.
#[derive(Clone, Default)]
pub struct ResumableSessions(Arc<Mutex<Registry>>);

#[derive(Default)]
struct Registry {
    sessions: HashMap<u64, Arc<Entry>>,
    /// The parked ones by when they were parked.
    parked: BTreeMap<u64, u64>,
    /// How many have been parked so far.
    parkings: u64,
}

/// What a new leg is compared with, and the way to its session.
struct Entry {
    secret: Secret,
    identity: Identity,
    mailbox: Mailbox<LegEvent>,
}

/// A session's place in [`ResumableSessions`], until dropped.
pub struct LegHandle {
    sessions: ResumableSessions,
    entry: Arc<Entry>,
}

/// A place among the parked sessions, until dropped.
pub(super) struct ParkedPlace {
    sessions: ResumableSessions,
    /// The key in [`Registry::parked`].
    key: u64,
}

/// A connection that asks to continue a session.
pub struct Leg {
    /// The connection after its handshake.
    pub connection: Upgraded,
    /// What it asks for.
    pub request: ResumeRequest,
    /// Lets the page probe it.
    pub probe: Option<ProbeHandle>,
}

/// The way to a session for a leg whose 101 is not sent yet.
pub struct LegTarget(Arc<Entry>);

/// What happens to a resumable session from outside.
pub(super) enum LegEvent {
    /// A leg has come.
    Arrived(Box<Leg>),
    /// Others were parked later, and there are too many.
    Evicted,
}

impl ResumableSessions {
    /// Registers a new session.
    pub fn register(&self, secret: Secret, identity: Identity) -> LegHandle {
        let entry = Arc::new(Entry { secret, identity, mailbox: Mailbox::default() });
        self.lock().sessions.insert(secret.id(), entry.clone());
        LegHandle { sessions: self.clone(), entry }
    }

    /// The session that a leg asks for.
    ///
    /// # Errors
    /// There is none with this secret, or its user is another one.
    pub fn find(&self, secret: &Secret, identity: Identity) -> Result<LegTarget, ResumptionRefused> {
        let registry = self.lock();
        let entry = registry.sessions.get(&secret.id()).filter(|entry| entry.secret.matches(secret));
        let entry = entry.ok_or(ResumptionRefused::Unknown)?;
        if entry.identity != identity {
            return Err(ResumptionRefused::Identity);
        }
        Ok(LegTarget(entry.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // No panic can leave the maps half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leg {
    /// Closes the leg: it cannot continue the session.
    pub fn refuse(self, reason: ResumptionRefused) {
        refuse(
            self.connection,
            if reason == ResumptionRefused::Stale { close_code::REPLACED } else { close_code::UNKNOWN },
        );
    }
}

/// Closes a connection whose page asks for a session that it cannot resume.
pub fn refuse(connection: Upgraded, code: u16) {
    let mut stream = connection.stream;
    tokio::spawn(async move {
        let close = ControlFrame::close(code, None);
        // Without its end of stream, the close frame might be lost in a reset.
        if stream.send(close.as_bytes()).await.is_ok() && stream.shutdown_write().is_ok() {
            let ended =
                async { while poll_fn(|cx| stream.poll_read_some(cx)).await.is_ok_and(|bytes| !bytes.is_empty()) {} };
            _ = tokio::time::timeout(CLOSE_TIMEOUT, ended).await;
        }
    });
}

impl LegTarget {
    /// Hands the leg to the session's task. If that has ended meanwhile, the leg is closed.
    pub fn send(self, leg: Leg) {
        self.0.mailbox.post(LegEvent::Arrived(Box::new(leg)));
    }
}

impl LegHandle {
    /// The pending event, if any; the task is woken by the next.
    pub(super) fn poll_event(&self, cx: &Context<'_>) -> Option<LegEvent> {
        self.entry.mailbox.poll(cx)
    }

    /// The session is parked. If more than `limit` are, the one parked longest is evicted.
    pub(super) fn park(&self, limit: usize) -> ParkedPlace {
        let mut registry = self.sessions.lock();
        let key = registry.parkings;
        registry.parkings += 1;
        registry.parked.insert(key, self.entry.secret.id());
        if registry.parked.len() > limit
            && let Some((_key, id)) = registry.parked.pop_first()
            && let Some(oldest) = registry.sessions.get(&id)
        {
            oldest.mailbox.post(LegEvent::Evicted);
        }
        ParkedPlace { sessions: self.sessions.clone(), key }
    }
}

impl Drop for LegHandle {
    fn drop(&mut self) {
        self.sessions.lock().sessions.remove(&self.entry.secret.id());
    }
}

impl Drop for ParkedPlace {
    fn drop(&mut self) {
        self.sessions.lock().parked.remove(&self.key);
    }
}
