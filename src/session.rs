//! The live websocket sessions: one guard each, and what may be told about them.
//!
//! Law: nothing that identifies a user is kept here: no Streamlit session id, path, query, cookie or address.

pub mod ended;
pub mod recent;
pub mod stop;
pub mod takeover;
pub mod totals;
pub mod trace;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Context;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use self::ended::{Ended, EndedView};
use self::recent::{Answer, Recent, RecentAnswer};
use self::stop::Stop;
use self::totals::{Sums, Totals};
use crate::heartbeat::{AckOrigin, Withheld};
use crate::metrics::{CloseCode, Direction, Initiator, Loss};

/// The registry; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Registry>);

/// What is known of a session when it begins.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// The configured name of the upstream.
    pub upstream: Arc<str>,
    /// Whether the sidecar can see the session's messages.
    pub tapped: bool,
    /// Ends it when turned: for a drain that is closing, else because it is taken over.
    pub stop: Stop,
}

/// A live session; leaves the registry when dropped. Its functions are relaxed atomics, no lock.
#[derive(Debug)]
pub struct Session {
    id: u64,
    live: Arc<Live>,
    sessions: Sessions,
}

/// What may be told about a session.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionView {
    /// Counted up from 1 in this process; means nothing elsewhere.
    pub id: u64,
    /// The configured name of the upstream.
    pub upstream: String,
    /// How long ago the session began.
    pub age_seconds: f64,
    /// Whether the sidecar can see the session's messages.
    pub tapped: bool,
    /// Streamlit's version, once it was seen.
    pub version: Option<String>,
    /// Bytes on the wire, framing and the sidecar's own frames included.
    pub bytes_to_browser: u64,
    /// Bytes on the wire, framing and the sidecar's own frames included.
    pub bytes_to_upstream: u64,
    /// Whole messages relayed.
    pub messages_to_browser: u64,
    /// Whole messages relayed.
    pub messages_to_upstream: u64,
    /// Heartbeats read.
    pub heartbeats: u64,
    /// Acks handed to the browser's socket.
    pub acks: Acks,
    /// How long ago the last heartbeat was read.
    pub last_heartbeat_seconds_ago: Option<f64>,
    /// How long the last acked heartbeat waited for its ack.
    pub last_ack_latency_seconds: Option<f64>,
    /// Whether an ack was withheld and none has come since.
    pub withheld: bool,
    /// The kernel's round-trip time to the browser, at the last heartbeat.
    pub browser_rtt_seconds: Option<f64>,
    /// How long the app server took for the last pong that proved it alive.
    pub proof_rtt_seconds: Option<f64>,
}

/// Acks by who made them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Acks {
    /// Made by the sidecar.
    pub sidecar: u64,
    /// Made by the app server.
    pub upstream: u64,
}

#[derive(Debug)]
struct Registry {
    began: Instant,
    live: Mutex<BTreeMap<u64, Arc<Live>>>,
    sums: Sums,
    recent: Recent,
    ended: Ended,
}

/// A session's numbers; every byte of it counts for each idle session.
#[derive(Debug)]
struct Live {
    upstream: Arc<str>,
    began: Instant,
    version: OnceLock<Box<str>>,
    to_browser: Traffic,
    to_upstream: Traffic,
    heartbeats: AtomicU64,
    acks_sidecar: AtomicU64,
    acks_upstream: AtomicU64,
    last_heartbeat: Moment,
    last_ack_latency: Moment,
    browser_rtt: Moment,
    proof_rtt: Moment,
    stop: Stop,
    tapped: bool,
    withheld: AtomicBool,
}

#[derive(Debug, Default)]
struct Traffic {
    bytes: AtomicU64,
    messages: AtomicU64,
}

/// An optional duration in one word: microseconds plus one, zero for none.
#[derive(Debug, Default)]
struct Moment(AtomicU64);

impl Default for Registry {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            live: Mutex::default(),
            sums: Sums::default(),
            recent: Recent::default(),
            ended: Ended::default(),
        }
    }
}

impl Sessions {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// A session begins now.
    pub fn open(&self, info: SessionInfo) -> Session {
        let id = self.0.sums.open();
        let live = Arc::new(Live {
            upstream: info.upstream,
            began: Instant::now(),
            version: OnceLock::new(),
            to_browser: Traffic::default(),
            to_upstream: Traffic::default(),
            heartbeats: AtomicU64::new(0),
            acks_sidecar: AtomicU64::new(0),
            acks_upstream: AtomicU64::new(0),
            last_heartbeat: Moment::default(),
            last_ack_latency: Moment::default(),
            browser_rtt: Moment::default(),
            proof_rtt: Moment::default(),
            stop: info.stop,
            tapped: info.tapped,
            withheld: AtomicBool::new(false),
        });
        self.lock().insert(id, Arc::clone(&live));
        Session { id, live, sessions: self.clone() }
    }

    /// What ends each of the sessions that live now.
    pub fn stops(&self) -> Vec<Stop> {
        self.lock().values().map(|live| live.stop.clone()).collect()
    }

    /// How many sessions live.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none lives.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// What may be told about each, oldest first. The numbers of one session may be some events apart.
    pub fn snapshot(&self) -> Vec<SessionView> {
        let live: Vec<_> = self.lock().iter().map(|(id, live)| (*id, Arc::clone(live))).collect();
        live.iter().map(|(id, live)| live.view(*id)).collect()
    }

    /// How long ago the registry was made, and the sidecar began.
    pub fn uptime(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// What all sessions have done so far.
    pub fn totals(&self) -> Totals {
        self.0.sums.totals()
    }

    /// The answers to heartbeats between these two times after the beginning, the first included, oldest first; at most
    /// [`recent::KEPT`]. And whether there were more.
    pub fn answers_between(&self, since: Duration, until: Duration) -> (Vec<RecentAnswer>, bool) {
        self.0.recent.between(since, until)
    }

    /// How the last sessions ended, latest first; at most [`ended::KEPT`].
    pub fn ended(&self) -> Vec<EndedView> {
        self.0.ended.view()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Live>>> {
        // No panic can leave the map half changed.
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// The number that `/sessions` and the log call it by.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether it is to end; whoever asks last is woken when that changes.
    pub fn poll_stop(&self, cx: &Context<'_>) -> bool {
        self.live.stop.poll_turned(cx)
    }

    /// The configured name of its upstream.
    pub fn upstream(&self) -> &str {
        &self.live.upstream
    }

    /// What may be told about it now.
    pub fn view(&self) -> SessionView {
        self.live.view(self.id)
    }

    /// So many bytes were written in this direction.
    pub fn bytes(&self, direction: Direction, bytes: u64) {
        self.live.traffic(direction).bytes.fetch_add(bytes, Relaxed);
    }

    /// So many whole messages were relayed in this direction.
    pub fn messages(&self, direction: Direction, count: u64) {
        self.live.traffic(direction).messages.fetch_add(count, Relaxed);
    }

    /// How long ago it began.
    pub fn age(&self) -> Duration {
        self.live.began.elapsed()
    }

    /// A heartbeat was read now; how long after the one before, if there was one.
    pub fn heartbeat(&self) -> Option<Duration> {
        let now = self.age();
        let interval = self.live.last_heartbeat.get().map(|last| now.saturating_sub(last));
        self.live.heartbeats.fetch_add(1, Relaxed);
        self.sessions.0.sums.heartbeat();
        self.live.last_heartbeat.set(now);
        interval
    }

    /// An ack was handed to the browser's socket, so long after its heartbeat was read, if that is known.
    pub fn ack(&self, origin: AckOrigin, waited: Option<Duration>) {
        let Registry { sums, recent, began, .. } = &*self.sessions.0;
        let acks = match origin {
            AckOrigin::Sidecar => &self.live.acks_sidecar,
            AckOrigin::Upstream => &self.live.acks_upstream,
        };
        acks.fetch_add(1, Relaxed);
        sums.ack(origin);
        self.live.withheld.store(false, Relaxed);
        if let Some(waited) = waited {
            self.live.last_ack_latency.set(waited);
            recent.record(began.elapsed(), Answer::Ack(origin, waited));
        }
    }

    /// A heartbeat got no ack of the sidecar's, or gets it late.
    pub fn withheld(&self, reason: Withheld) {
        let Registry { sums, recent, began, .. } = &*self.sessions.0;
        sums.withheld(reason);
        if reason != Withheld::Policy {
            // By policy the upstream alone is to answer: that says nothing about how it is.
            self.live.withheld.store(true, Relaxed);
            recent.record(began.elapsed(), Answer::Withheld);
        }
    }

    /// The kernel's round-trip time to the browser is this now.
    pub fn browser_rtt(&self, rtt: Duration) {
        self.live.browser_rtt.set(rtt);
    }

    /// The app server's pong came, so long after the ping.
    pub fn proof_rtt(&self, rtt: Duration) {
        self.live.proof_rtt.set(rtt);
    }

    /// It ends now; what is told of it is kept for a while.
    pub fn ended(&self, initiator: Initiator, code: CloseCode, gave_up: Option<Loss>) {
        self.sessions.0.ended.record(EndedView {
            at_seconds: self.sessions.uptime().as_secs_f64(),
            id: self.id,
            upstream: self.live.upstream.to_string(),
            version: self.live.version(),
            age_seconds: self.age().as_secs_f64(),
            initiator,
            code,
            gave_up,
        });
    }

    /// Streamlit's version; the first one stays.
    pub fn version(&self, version: &str) {
        self.live.version.get_or_init(|| version.into());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.id);
    }
}

impl Live {
    fn traffic(&self, direction: Direction) -> &Traffic {
        match direction {
            Direction::BrowserToUpstream => &self.to_upstream,
            Direction::UpstreamToBrowser => &self.to_browser,
        }
    }

    fn view(&self, id: u64) -> SessionView {
        let age = self.began.elapsed();
        SessionView {
            id,
            upstream: self.upstream.to_string(),
            age_seconds: age.as_secs_f64(),
            tapped: self.tapped,
            version: self.version(),
            bytes_to_browser: self.to_browser.bytes.load(Relaxed),
            bytes_to_upstream: self.to_upstream.bytes.load(Relaxed),
            messages_to_browser: self.to_browser.messages.load(Relaxed),
            messages_to_upstream: self.to_upstream.messages.load(Relaxed),
            heartbeats: self.heartbeats.load(Relaxed),
            acks: Acks { sidecar: self.acks_sidecar.load(Relaxed), upstream: self.acks_upstream.load(Relaxed) },
            last_heartbeat_seconds_ago: self.last_heartbeat.get().map(|at| age.saturating_sub(at).as_secs_f64()),
            last_ack_latency_seconds: self.last_ack_latency.seconds(),
            withheld: self.withheld.load(Relaxed),
            browser_rtt_seconds: self.browser_rtt.seconds(),
            proof_rtt_seconds: self.proof_rtt.seconds(),
        }
    }

    fn version(&self) -> Option<String> {
        self.version.get().map(|version| version.to_string())
    }
}

impl Moment {
    fn set(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.0.store(micros.saturating_add(1), Relaxed);
    }

    fn get(&self) -> Option<Duration> {
        self.0.load(Relaxed).checked_sub(1).map(Duration::from_micros)
    }

    fn seconds(&self) -> Option<f64> {
        self.get().map(|duration| duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::totals::WithheldCounts;
    use super::*;

    fn info() -> SessionInfo {
        SessionInfo { upstream: "app".into(), tapped: true, stop: Stop::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_tells_its_numbers() {
        let sessions = Sessions::new();
        let session = sessions.open(info());
        tokio::time::advance(Duration::from_secs(10)).await;
        session.heartbeat();
        session.ack(AckOrigin::Sidecar, Some(Duration::from_millis(250)));
        session.ack(AckOrigin::Upstream, Some(Duration::from_micros(500)));
        session.ack(AckOrigin::Sidecar, Some(Duration::from_millis(125)));
        session.browser_rtt(Duration::from_millis(40));
        session.proof_rtt(Duration::from_millis(2));
        session.bytes(Direction::BrowserToUpstream, 9);
        session.bytes(Direction::UpstreamToBrowser, 4096);
        session.bytes(Direction::UpstreamToBrowser, 1);
        session.messages(Direction::UpstreamToBrowser, 1);
        session.version("1.39.0");
        session.version("1.55.0");
        tokio::time::advance(Duration::from_secs(5)).await;
        let expected = json!([{
            "id": session.id(), "upstream": "app", "age_seconds": 15.0, "tapped": true, "version": "1.39.0",
            "bytes_to_browser": 4097, "bytes_to_upstream": 9, "messages_to_browser": 1, "messages_to_upstream": 0,
            "heartbeats": 1, "acks": {"sidecar": 2, "upstream": 1},
            "last_heartbeat_seconds_ago": 5.0, "last_ack_latency_seconds": 0.125, "withheld": false,
            "browser_rtt_seconds": 0.04, "proof_rtt_seconds": 0.002,
        }]);
        assert_eq!(serde_json::to_value(sessions.snapshot()).unwrap(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_has_happened_to_a_new_session() {
        let sessions = Sessions::new();
        let _session = sessions.open(info());
        let [view] = &sessions.snapshot()[..] else { panic!("one session lives") };
        assert_eq!((view.heartbeats, view.acks), (0, Acks::default()));
        assert_eq!((view.last_heartbeat_seconds_ago, view.last_ack_latency_seconds), (None, None));
        assert_eq!(view.version, None);
    }

    #[test]
    fn a_dropped_session_leaves_and_its_id_stays_its_own() {
        let sessions = Sessions::new();
        let (first, second) = (sessions.open(info()), sessions.clone().open(info()));
        assert_eq!(sessions.len(), 2);
        drop(first);
        let third = sessions.open(info());
        let ids: Vec<_> = sessions.snapshot().iter().map(|view| view.id).collect();
        assert_eq!(ids, [second.id(), third.id()]);
        drop((second, third));
        assert!(sessions.is_empty());
    }

    #[test]
    fn an_ack_is_withheld_until_one_comes() {
        let sessions = Sessions::new();
        let session = sessions.open(info());
        session.withheld(Withheld::Policy);
        assert!(!session.view().withheld, "that the app alone may answer is no trouble");
        session.withheld(Withheld::UpstreamStalled);
        assert!(session.view().withheld);
        session.ack(AckOrigin::Sidecar, None);
        assert!(!session.view().withheld);
    }

    #[test]
    fn totals_outlive_their_sessions() {
        let sessions = Sessions::new();
        let session = sessions.open(info());
        session.heartbeat();
        session.ack(AckOrigin::Upstream, None);
        session.withheld(Withheld::UpstreamClosed);
        drop((session, sessions.open(info())));
        let withheld = WithheldCounts { upstream_closed: 1, ..WithheldCounts::default() };
        let expected = Totals { opened: 2, heartbeats: 1, acks: Acks { sidecar: 0, upstream: 1 }, withheld };
        assert_eq!(sessions.totals(), expected);
    }

    #[test]
    fn a_moment_at_zero_is_not_none() {
        let moment = Moment::default();
        assert_eq!(moment.get(), None);
        moment.set(Duration::ZERO);
        assert_eq!(moment.get(), Some(Duration::ZERO));
    }

    #[test]
    fn a_session_is_small() {
        let size = size_of::<Live>() + size_of::<Session>();
        assert!(size <= 192, "{size} bytes");
    }
}
