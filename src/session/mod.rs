//! The registry of live websocket sessions: one guard each, and their published data.
//!
//! Invariant: nothing that identifies a user is kept here: no Streamlit session id, path, query, cookie or address.

mod data;
pub mod ended;
pub mod identity;
pub mod recent;
pub mod stop;
pub mod takeover;
#[cfg(test)]
mod tests;
pub mod totals;
pub mod trace;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::Duration;

use tokio::time::Instant;

use self::data::SessionData;
pub use self::data::{Acks, SessionInfo, SessionView};
use self::ended::{EndedSessions, EndedView};
use self::recent::{Answer, RecentAnswer, RecentAnswers};
use self::stop::Stop;
use self::totals::{Sums, Totals};
use crate::heartbeat::{AckOrigin, Withheld};
use crate::metrics::{CloseCode, DirectionLabel, Initiator, Loss};

/// The registry; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Registry>);

/// A live session; leaves the registry when dropped. Its counters are relaxed atomics, no lock.
#[derive(Debug)]
pub struct Session {
    id: u64,
    data: Arc<SessionData>,
    sessions: Sessions,
}

#[derive(Debug)]
struct Registry {
    started: Instant,
    live: Mutex<BTreeMap<u64, Arc<SessionData>>>,
    sums: Sums,
    recent: RecentAnswers,
    ended: EndedSessions,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            live: Mutex::default(),
            sums: Sums::default(),
            recent: RecentAnswers::default(),
            ended: EndedSessions::default(),
        }
    }
}

impl Sessions {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a new session.
    pub fn open(&self, info: SessionInfo) -> Session {
        let id = self.0.sums.open();
        let data = Arc::new(SessionData::new(info));
        self.lock().insert(id, Arc::clone(&data));
        Session { id, data, sessions: self.clone() }
    }

    /// The stops of all live sessions.
    pub fn stops(&self) -> Vec<Stop> {
        self.lock().values().map(|live| live.stop.clone()).collect()
    }

    /// Requests the end of the sessions that are parked: no page sees it.
    pub fn stop_parked(&self) {
        for parked in self.lock().values().filter(|live| live.parked_at.get().is_some()) {
            parked.stop.request();
        }
    }

    /// Number of live sessions.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no session is live.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Data of each session, oldest first. The numbers of one session may be a few events apart.
    pub fn snapshot(&self) -> Vec<SessionView> {
        let live: Vec<_> = self.lock().iter().map(|(id, live)| (*id, Arc::clone(live))).collect();
        live.iter().map(|(id, live)| live.view(*id)).collect()
    }

    /// Time since the registry was created, when the sidecar started.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Totals of all sessions so far.
    pub fn totals(&self) -> Totals {
        self.0.sums.totals()
    }

    /// The answers to heartbeats from `since` to before `until` after the start, oldest first, at most
    /// [`recent::KEPT`]; and whether there were more.
    pub fn answers_between(&self, since: Duration, until: Duration) -> (Vec<RecentAnswer>, bool) {
        self.0.recent.between(since, until)
    }

    /// How the last sessions ended, latest first; at most [`ended::KEPT`].
    pub fn ended(&self) -> Vec<EndedView> {
        self.0.ended.view()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<SessionData>>> {
        // No panic can leave the map half changed.
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Its number in `/sessions`.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether it must end; the last task to poll is woken when that changes.
    pub fn poll_stop(&self, cx: &Context<'_>) -> bool {
        self.data.stop.poll_requested(cx)
    }

    /// The configured name of its upstream.
    pub fn upstream(&self) -> &str {
        &self.data.upstream
    }

    /// Its current data.
    pub fn view(&self) -> SessionView {
        self.data.view(self.id)
    }

    /// Counts bytes written in this direction.
    pub fn bytes(&self, direction: DirectionLabel, bytes: u64) {
        self.data.traffic(direction).bytes.fetch_add(bytes, Relaxed);
    }

    /// Counts whole messages relayed in this direction.
    pub fn messages(&self, direction: DirectionLabel, count: u64) {
        self.data.traffic(direction).messages.fetch_add(count, Relaxed);
    }

    /// How long ago it started.
    pub fn age(&self) -> Duration {
        self.data.started.elapsed()
    }

    /// Records a heartbeat read now; returns the time since the one before, if any.
    pub fn heartbeat(&self) -> Option<Duration> {
        let now = self.age();
        let interval = self.data.last_heartbeat.get().map(|last| now.saturating_sub(last));
        self.data.heartbeats.fetch_add(1, Relaxed);
        self.sessions.0.sums.heartbeat();
        self.data.last_heartbeat.set(now);
        interval
    }

    /// Records an ack written to the browser's socket, and the delay since its heartbeat was read, if known.
    pub fn ack(&self, origin: AckOrigin, waited: Option<Duration>) {
        let Registry { sums, recent, started, .. } = &*self.sessions.0;
        self.data.acks(origin).fetch_add(1, Relaxed);
        sums.ack(origin);
        self.data.withheld.store(false, Relaxed);
        if let Some(waited) = waited {
            self.data.last_ack_latency.set(waited);
            recent.record(started.elapsed(), Answer::Ack(origin, waited));
        }
    }

    /// Records a heartbeat that got no ack of the sidecar, or gets it late.
    pub fn withheld(&self, reason: Withheld) {
        let Registry { sums, recent, started, .. } = &*self.sessions.0;
        sums.withheld(reason);
        if reason != Withheld::Policy {
            // By policy only the upstream may answer: that is not a sign of a stall.
            self.data.withheld.store(true, Relaxed);
            recent.record(started.elapsed(), Answer::Withheld);
        }
    }

    /// Sets the kernel's round-trip time to the browser.
    pub fn browser_rtt(&self, rtt: Duration) {
        self.data.browser_rtt.set(rtt);
    }

    /// Sets the time from ping to pong of the app server.
    pub fn proof_rtt(&self, rtt: Duration) {
        self.data.proof_rtt.set(rtt);
    }

    /// Sets whether its page has lost its connection.
    pub fn set_parked(&self, parked: bool) {
        let (now, before) = (self.age(), self.data.parked_at.take());
        if let Some(lasted) = before.map(|at| now.saturating_sub(at)) {
            self.data.parked_before.fetch_add(lasted.as_micros() as u64, Relaxed);
        }
        if parked {
            self.data.parked_at.set(now);
        }
    }

    /// Counts that its page has resumed it.
    pub fn resumed(&self) {
        self.data.resumed.fetch_add(1, Relaxed);
    }

    /// Records its end, among the last ended sessions.
    pub fn ended(&self, initiator: Initiator, code: CloseCode, gave_up: Option<Loss>) {
        self.sessions.0.ended.record(EndedView {
            at_seconds: self.sessions.uptime().as_secs_f64(),
            id: self.id,
            upstream: self.data.upstream.to_string(),
            version: self.data.version(),
            age_seconds: self.age().as_secs_f64(),
            initiator,
            code,
            gave_up,
        });
    }

    /// Sets Streamlit's version; the first one stays.
    pub fn version(&self, version: &str) {
        self.data.version.get_or_init(|| version.into());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.id);
    }
}
