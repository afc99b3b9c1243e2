//! The data of one live session, and its published view.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::stop::Stop;
use crate::heartbeat::AckOrigin;
use crate::metrics::DirectionLabel;

/// What is known of a session when it starts.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// The configured name of the upstream.
    pub upstream: Arc<str>,
    /// Whether the sidecar can see the session's messages.
    pub tapped: bool,
    /// Ends it: at a drain, or because of a takeover.
    pub stop: Stop,
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
    /// Whether its page has lost its connection, and may resume the session.
    pub parked: bool,
    /// How long it has been parked in all.
    pub parked_seconds: f64,
    /// How often its page has resumed it.
    pub resumed: u32,
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

/// The data of one session; each idle session pays for every byte.
#[derive(Debug)]
pub(super) struct SessionData {
    pub(super) upstream: Arc<str>,
    pub(super) started: Instant,
    pub(super) version: OnceLock<Box<str>>,
    pub(super) to_browser: Traffic,
    pub(super) to_upstream: Traffic,
    pub(super) heartbeats: AtomicU64,
    pub(super) acks_sidecar: AtomicU64,
    pub(super) acks_upstream: AtomicU64,
    pub(super) last_heartbeat: AtomicDuration,
    pub(super) last_ack_latency: AtomicDuration,
    pub(super) browser_rtt: AtomicDuration,
    pub(super) proof_rtt: AtomicDuration,
    /// When it was parked, counted from its start; none if it is not.
    pub(super) parked_at: AtomicDuration,
    /// Microseconds for which it was parked before.
    pub(super) parked_before: AtomicU64,
    pub(super) resumed: AtomicU32,
    pub(super) stop: Stop,
    pub(super) tapped: bool,
    pub(super) withheld: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) bytes: AtomicU64,
    pub(super) messages: AtomicU64,
}

/// An optional duration in one word: microseconds plus one, zero for none.
#[derive(Debug, Default)]
pub(super) struct AtomicDuration(AtomicU64);

impl SessionData {
    pub(super) fn new(info: SessionInfo) -> Self {
        Self {
            upstream: info.upstream,
            started: Instant::now(),
            version: OnceLock::new(),
            to_browser: Traffic::default(),
            to_upstream: Traffic::default(),
            heartbeats: AtomicU64::new(0),
            acks_sidecar: AtomicU64::new(0),
            acks_upstream: AtomicU64::new(0),
            last_heartbeat: AtomicDuration::default(),
            last_ack_latency: AtomicDuration::default(),
            browser_rtt: AtomicDuration::default(),
            proof_rtt: AtomicDuration::default(),
            parked_at: AtomicDuration::default(),
            parked_before: AtomicU64::new(0),
            resumed: AtomicU32::new(0),
            stop: info.stop,
            tapped: info.tapped,
            withheld: AtomicBool::new(false),
        }
    }

    pub(super) fn acks(&self, origin: AckOrigin) -> &AtomicU64 {
        match origin {
            AckOrigin::Sidecar => &self.acks_sidecar,
            AckOrigin::Upstream => &self.acks_upstream,
        }
    }

    pub(super) fn traffic(&self, direction: DirectionLabel) -> &Traffic {
        match direction {
            DirectionLabel::BrowserToUpstream => &self.to_upstream,
            DirectionLabel::UpstreamToBrowser => &self.to_browser,
        }
    }

    pub(super) fn view(&self, id: u64) -> SessionView {
        let age = self.started.elapsed();
        let parked = self.parked_at.get().map(|at| age.saturating_sub(at));
        let parked_before = Duration::from_micros(self.parked_before.load(Relaxed));
        SessionView {
            id,
            upstream: self.upstream.to_string(),
            age_seconds: age.as_secs_f64(),
            tapped: self.tapped,
            parked: parked.is_some(),
            parked_seconds: (parked_before + parked.unwrap_or_default()).as_secs_f64(),
            resumed: self.resumed.load(Relaxed),
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

    pub(super) fn version(&self) -> Option<String> {
        self.version.get().map(|version| version.to_string())
    }
}

impl AtomicDuration {
    pub(super) fn set(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.0.store(micros.saturating_add(1), Relaxed);
    }

    pub(super) fn get(&self) -> Option<Duration> {
        self.0.load(Relaxed).checked_sub(1).map(Duration::from_micros)
    }

    /// Its value, which it no longer has then.
    pub(super) fn take(&self) -> Option<Duration> {
        self.0.swap(0, Relaxed).checked_sub(1).map(Duration::from_micros)
    }

    fn seconds(&self) -> Option<f64> {
        self.get().map(|duration| duration.as_secs_f64())
    }
}
