//! The name, help and buckets of every metric family.
//!
//! Invariant: a name ends with its unit, and a help text is one line. `docs/metrics.md` is generated from them.

/// How many series are exported. One Prometheus may scrape thousands of sidecars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// All: at most 430 with one upstream.
    #[default]
    Full,
    /// Those that alerts need: at most 160 with one upstream.
    Lean,
}

/// A metric family: all series of one name.
pub(super) struct MetricFamily {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    /// The upper bounds of a histogram; empty for counters and gauges.
    pub(super) buckets: &'static [f64],
    /// Whether [`Detail::Lean`] includes it: alerts, or the first look after one, need it.
    pub(super) lean: bool,
}

impl MetricFamily {
    const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, buckets: &[], lean: false }
    }

    const fn histogram(name: &'static str, help: &'static str, buckets: &'static [f64]) -> Self {
        Self { name, help, buckets, lean: false }
    }

    const fn lean(self) -> Self {
        Self { lean: true, ..self }
    }
}

/// From a pong over loopback to the longest setting of a browser's heartbeat timer.
const ROUND_TRIP: &[f64] =
    &[0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10., 60.];
/// With the usual intervals (5, 10, 30 s) and the one that idle load balancers need (60 s).
const INTERVAL: &[f64] = &[0.5, 1., 2., 5., 7.5, 10., 15., 20., 30., 60., 120., 300.];
/// With 30, 60, 240 and 3600 s, where load balancers close connections.
const LIFETIME: &[f64] = &[1., 5., 15., 30., 60., 120., 240., 600., 1800., 3600., 14400., 86400.];
const REQUEST: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 10., 60.];
/// From a short loss to the default of `resume.window`, and the hour that is sensible where sessions are small.
const PARKED: &[f64] = &[1., 5., 15., 60., 300., 3600.];
const SCRIPT: &[f64] = &[0.01, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10., 30., 60., 300., 1800.];

pub(super) const HEARTBEATS: MetricFamily =
    MetricFamily::new("heartbeat_sidecar_heartbeats_total", "Heartbeats received from browsers.").lean();
pub(super) const ACKS: MetricFamily =
    MetricFamily::new("heartbeat_sidecar_acks_total", "Heartbeat acks written to browsers, by origin.").lean();
pub(super) const ACKS_WITHHELD: MetricFamily =
    MetricFamily::new("heartbeat_sidecar_acks_withheld_total", "Heartbeats acked late or not at all, by reason.")
        .lean();
pub(super) const NATIVE_ACKS_MISSED: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_native_acks_missed_total",
    "Forwarded heartbeats that the app did not ack within heartbeat.native_deadline.",
)
.lean();
pub(super) const HANDSHAKES: MetricFamily =
    MetricFamily::new("heartbeat_sidecar_handshakes_total", "Websocket handshakes, by result.").lean();
pub(super) const SESSIONS_CLOSED: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_sessions_closed_total",
    "Closed sessions, by initiator and close code (1006: no close frame).",
)
.lean();
pub(super) const PEERS_LOST: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_peers_lost_total",
    "Sessions aborted because a peer was dead or stalled, by reason.",
)
.lean();
pub(super) const RECONNECTS: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_reconnects_total",
    "Accepted websocket handshakes that name an earlier session, by cause.",
)
.lean();
pub(super) const WATCHDOG_PAGES: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_watchdog_pages_total",
    "HTML pages served while the watchdog is on, by whether its script was added.",
);
pub(super) const TAKEOVERS: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_takeovers_total",
    "Reconnects to a session that had an older connection, by what became of that one.",
)
.lean();
pub(super) const MESSAGES: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_messages_total",
    "Relayed websocket messages, by direction and Streamlit type.",
);
pub(super) const MESSAGE_BYTES: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_message_bytes_total",
    "Payload bytes of relayed websocket messages, by direction and Streamlit type.",
);
pub(super) const SCRIPT_RUNS: MetricFamily =
    MetricFamily::new("heartbeat_sidecar_script_runs_total", "Finished script runs, by result.");
pub(super) const SESSIONS_UNPARSABLE: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_sessions_unparsable_total",
    "Sessions whose heartbeats are not answered, by why they cannot be parsed.",
)
.lean();
pub(super) const WRITE_STALLS: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_write_stalls_total",
    "Times that a websocket peer accepted no more bytes, by direction.",
);
pub(super) const HTTP_REQUESTS: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_http_requests_total",
    "Answered HTTP requests other than websocket handshakes, by method and status class.",
);

pub(super) const PARKED_SESSIONS: MetricFamily =
    MetricFamily::new("heartbeat_sidecar_parked_sessions", "Open sessions that wait for their page to reconnect.")
        .lean();
pub(super) const PARKED_SESSIONS_ENDED: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_parked_sessions_ended_total",
    "Sessions that stopped being parked, by result.",
)
.lean();
pub(super) const RESUMPTIONS: MetricFamily =
    MetricFamily::new("heartbeat_sidecar_resumptions_total", "Lost connections that cost the user nothing, by level.")
        .lean();
pub(super) const RESUMPTIONS_REFUSED: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_resumptions_refused_total",
    "Pages that could not resume their session, by reason.",
)
.lean();
pub(super) const RESENT_MESSAGES: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_resent_messages_total",
    "Messages sent again after a lost connection, by direction.",
);
pub(super) const RESUME_DROPPED_BYTES: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_resume_dropped_bytes_total",
    "Bytes of unconfirmed messages dropped because they exceeded resume.buffer.",
);
pub(super) const INPUTS_NOT_SENT: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_inputs_not_sent_total",
    "Inputs made while a connection was lost that did not reach the app, by reason.",
);

pub(super) const REJECTIONS: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_rejections_total",
    "Requests and connections rejected by the sidecar, by reason.",
)
.lean();
pub(super) const CLIENT_CONNECTIONS: MetricFamily =
    MetricFamily::new("heartbeat_sidecar_client_connections", "Open client connections, including websockets.").lean();
pub(super) const CLIENT_CONNECTIONS_LIMIT: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_client_connections_limit",
    "Maximum of open client connections (limits.connections and file descriptors).",
)
.lean();

pub(super) const CONFIG_RELOADS: MetricFamily =
    MetricFamily::new("heartbeat_sidecar_config_reloads_total", "Configuration reloads, by result.").lean();
pub(super) const CONFIG_LAST_RELOAD_SUCCESSFUL: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_config_last_reload_successful",
    "1 if the last configuration reload was accepted, 0 if it was refused.",
)
.lean();
pub(super) const TLS_RELOADS: MetricFamily =
    MetricFamily::new("heartbeat_sidecar_tls_reloads_total", "Reloads of TLS certificates and keys, by result.").lean();
pub(super) const TLS_CERTIFICATE_NOT_AFTER: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_tls_certificate_not_after_timestamp_seconds",
    "Expiry of the certificate for browsers as Unix time; 0 without TLS.",
)
.lean();

pub(super) const SESSIONS: MetricFamily =
    MetricFamily::new("heartbeat_sidecar_sessions", "Open sessions (websockets to the app).").lean();
pub(super) const UPSTREAM_ACKS_NATIVELY: MetricFamily = MetricFamily::new(
    "heartbeat_sidecar_upstream_acks_natively",
    "1 if the app is known to ack heartbeats itself (Streamlit 1.55 and later), else 0.",
)
.lean();
pub(super) const DRAINING: MetricFamily =
    MetricFamily::new("heartbeat_sidecar_draining", "1 while the sidecar drains, else 0.").lean();
pub(super) const BUILD_INFO: MetricFamily =
    MetricFamily::new("heartbeat_sidecar_build_info", "Always 1; the label is the version of the sidecar.").lean();

pub(super) const ACK_LATENCY: MetricFamily = MetricFamily::histogram(
    "heartbeat_sidecar_ack_latency_seconds",
    "Time from reading a heartbeat to writing its ack, by origin.",
    ROUND_TRIP,
)
.lean();
pub(super) const PROOF_RTT: MetricFamily = MetricFamily::histogram(
    "heartbeat_sidecar_proof_rtt_seconds",
    "Time from writing a websocket ping to the app to reading its pong.",
    ROUND_TRIP,
)
.lean();
pub(super) const BROWSER_RTT: MetricFamily = MetricFamily::histogram(
    "heartbeat_sidecar_browser_rtt_seconds",
    "Smoothed TCP round-trip time to the browser, sampled at each heartbeat.",
    ROUND_TRIP,
);
pub(super) const HEARTBEAT_INTERVAL: MetricFamily = MetricFamily::histogram(
    "heartbeat_sidecar_heartbeat_interval_seconds",
    "Time between two heartbeats of a session.",
    INTERVAL,
);
pub(super) const SESSION_DURATION: MetricFamily =
    MetricFamily::histogram("heartbeat_sidecar_session_duration_seconds", "Lifetime of closed sessions.", LIFETIME);
pub(super) const HANDSHAKE_DURATION: MetricFamily = MetricFamily::histogram(
    "heartbeat_sidecar_handshake_duration_seconds",
    "Time from reading a websocket handshake to answering it.",
    REQUEST,
);
pub(super) const SCRIPT_RUN_DURATION: MetricFamily = MetricFamily::histogram(
    "heartbeat_sidecar_script_run_duration_seconds",
    "Time from relaying new_session to relaying script_finished.",
    SCRIPT,
);
pub(super) const PARKED_DURATION: MetricFamily =
    MetricFamily::histogram("heartbeat_sidecar_parked_duration_seconds", "Time that a session was parked.", PARKED);
pub(super) const HTTP_REQUEST_DURATION: MetricFamily = MetricFamily::histogram(
    "heartbeat_sidecar_http_request_duration_seconds",
    "Time from reading a request's head to sending its response's head.",
    REQUEST,
);

/// Every histogram: the recorder must know the buckets before the first one is registered.
pub(super) const HISTOGRAMS: &[MetricFamily] = &[
    ACK_LATENCY,
    PROOF_RTT,
    BROWSER_RTT,
    HEARTBEAT_INTERVAL,
    SESSION_DURATION,
    HANDSHAKE_DURATION,
    SCRIPT_RUN_DURATION,
    PARKED_DURATION,
    HTTP_REQUEST_DURATION,
];
