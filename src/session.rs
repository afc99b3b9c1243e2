//! The registry of live websocket sessions: one guard each, and their published data.
//!
//! Invariant: nothing that identifies a user is kept here: no Streamlit session id, path, query, cookie or address.

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

/// What is known of a session when it starts.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// The configured name of the upstream.
    pub upstream: Arc<str>,
    /// Whether the sidecar can see the session's messages.
    pub tapped: bool,
    /// Ends it when turned: because a drain is closing, or because of a takeover.
    pub stop: Stop,
}

/// A live session; leaves the registry when dropped. Its counters are relaxed atomics, no lock.
#[derive(Debug)]
pub struct Session {
    id: u64,
    live: Arc<Live>,
    sessions: Sessions,
}

/// Published data of a session.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionView {
    /// Counted up from 1 in this process; means nothing elsewhere.
    pub id: u64,
    /// The configured name of the upstream.
    pub upstream: String,
    /// How long ago the session started.
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
    /// Acks written to the browser's socket.
    pub acks: Acks,
    /// How long ago the last heartbeat was read.
    pub last_heartbeat_seconds_ago: Option<f64>,
    /// How long the last acked heartbeat waited for its ack.
    pub last_ack_latency_seconds: Option<f64>,
    /// Whether an ack was withheld and none was sent since.
    pub withheld: bool,
    /// The kernel's round-trip time to the browser, at the last heartbeat.
    pub browser_rtt_seconds: Option<f64>,
    /// How long the app server took for the last pong that proved it alive.
    pub proof_rtt_seconds: Option<f64>,
}

/// Acks by origin.
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

/// A session's numbers; each idle session pays for every byte.
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

    /// Registers a new session.
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

    /// The stops of all live sessions.
    pub fn stops(&self) -> Vec<Stop> {
        self.lock().values().map(|live| live.stop.clone()).collect()
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
        self.0.began.elapsed()
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

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Live>>> {
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
        self.live.stop.poll_turned(cx)
    }

    /// The configured name of its upstream.
    pub fn upstream(&self) -> &str {
        &self.live.upstream
    }

    /// Its current data.
    pub fn view(&self) -> SessionView {
        self.live.view(self.id)
    }

    /// Counts bytes written in this direction.
    pub fn bytes(&self, direction: Direction, bytes: u64) {
        self.live.traffic(direction).bytes.fetch_add(bytes, Relaxed);
    }

    /// Counts whole messages relayed in this direction.
    pub fn messages(&self, direction: Direction, count: u64) {
        self.live.traffic(direction).messages.fetch_add(count, Relaxed);
    }

    /// How long ago it started.
    pub fn age(&self) -> Duration {
        self.live.began.elapsed()
    }

    /// Records a heartbeat read now; returns the time since the one before, if any.
    pub fn heartbeat(&self) -> Option<Duration> {
        let now = self.age();
        let interval = self.live.last_heartbeat.get().map(|last| now.saturating_sub(last));
        self.live.heartbeats.fetch_add(1, Relaxed);
        self.sessions.0.sums.heartbeat();
        self.live.last_heartbeat.set(now);
        interval
    }

    /// Records an ack written to the browser's socket, and the delay since its heartbeat was read, if known.
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

    /// Records a heartbeat that got no ack of the sidecar, or gets it late.
    pub fn withheld(&self, reason: Withheld) {
        let Registry { sums, recent, began, .. } = &*self.sessions.0;
        sums.withheld(reason);
        if reason != Withheld::Policy {
            // By policy only the upstream may answer: that is not a sign of a stall.
            self.live.withheld.store(true, Relaxed);
            recent.record(began.elapsed(), Answer::Withheld);
        }
    }

    /// Sets the kernel's round-trip time to the browser.
    pub fn browser_rtt(&self, rtt: Duration) {
        self.live.browser_rtt.set(rtt);
    }

    /// Sets the time from ping to pong of the app server.
    pub fn proof_rtt(&self, rtt: Duration) {
        self.live.proof_rtt.set(rtt);
    }

    /// Records its end, among the last ended sessions.
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

    /// Sets Streamlit's version; the first one stays.
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
    async fn a_session_view_contains_its_numbers() {
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
    async fn a_new_session_has_zero_counts_and_no_times() {
        let sessions = Sessions::new();
        let _session = sessions.open(info());
        let [view] = &sessions.snapshot()[..] else { panic!("one session lives") };
        assert_eq!((view.heartbeats, view.acks), (0, Acks::default()));
        assert_eq!((view.last_heartbeat_seconds_ago, view.last_ack_latency_seconds), (None, None));
        assert_eq!(view.version, None);
    }

    #[test]
    fn a_dropped_session_leaves_the_registry_and_its_id_is_not_reused() {
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
    fn withheld_is_true_until_the_next_ack() {
        let sessions = Sessions::new();
        let session = sessions.open(info());
        session.withheld(Withheld::Policy);
        assert!(!session.view().withheld, "a policy is not a sign of a stall");
        session.withheld(Withheld::UpstreamStalled);
        assert!(session.view().withheld);
        session.ack(AckOrigin::Sidecar, None);
        assert!(!session.view().withheld);
    }

    #[test]
    fn totals_include_ended_sessions() {
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
    fn a_zero_duration_is_not_none() {
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
