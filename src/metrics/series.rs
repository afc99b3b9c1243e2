//! The name, help and buckets of every series; a name ends with its unit.

/// One metric family.
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    /// The upper bounds of a histogram; empty for counters and gauges.
    pub(super) buckets: &'static [f64],
    /// Whether [`Detail::Lean`](super::Detail::Lean) includes it: alerts, or a first look after one, need it.
    pub(super) lean: bool,
}

impl Series {
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
const SCRIPT: &[f64] = &[0.01, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10., 30., 60., 300., 1800.];

pub(super) const HEARTBEATS: Series =
    Series::new("heartbeat_sidecar_heartbeats_total", "Heartbeats read from browsers.").lean();
pub(super) const ACKS: Series =
    Series::new("heartbeat_sidecar_acks_total", "Heartbeat acks handed to browsers, by who made them.").lean();
pub(super) const ACKS_WITHHELD: Series = Series::new(
    "heartbeat_sidecar_acks_withheld_total",
    "Heartbeats that the sidecar did not ack, or not in time, by why: a stalled or closed app server, or policy.",
)
.lean();
pub(super) const NATIVE_ACKS_MISSED: Series = Series::new(
    "heartbeat_sidecar_native_acks_missed_total",
    "Forwarded heartbeats that the app server itself did not ack before native_deadline.",
)
.lean();
pub(super) const HANDSHAKES: Series =
    Series::new("heartbeat_sidecar_handshakes_total", "Websocket handshakes, by how they ended.").lean();
pub(super) const CONNECTIONS_CLOSED: Series = Series::new(
    "heartbeat_sidecar_connections_closed_total",
    "Ended websocket connections, by who ended them and with which close code (1006: without a Close frame).",
)
.lean();
pub(super) const PEERS_LOST: Series = Series::new(
    "heartbeat_sidecar_peers_lost_total",
    "Websocket connections that the sidecar cut since a peer was silent or took nothing for too long, by which and how.",
).lean();
pub(super) const RECONNECTS: Series = Series::new(
    "heartbeat_sidecar_reconnects_total",
    "Accepted websocket handshakes that carried the id of an earlier session, by whether the page's watchdog caused them.",
).lean();
pub(super) const WATCHDOG_PAGES: Series = Series::new(
    "heartbeat_sidecar_watchdog_pages_total",
    "HTML pages that browsers asked for while the watchdog is on, by whether its script was added, or why not.",
);
pub(super) const TAKEOVERS: Series = Series::new(
    "heartbeat_sidecar_takeovers_total",
    "Reconnects that first closed an older connection or handshake of their session, by whether it closed in time.",
)
.lean();
pub(super) const MESSAGES: Series =
    Series::new("heartbeat_sidecar_messages_total", "Websocket messages relayed, by direction and Streamlit type.");
pub(super) const MESSAGE_BYTES: Series = Series::new(
    "heartbeat_sidecar_message_bytes_total",
    "Payload bytes of websocket messages relayed, by direction and Streamlit type.",
);
pub(super) const SCRIPT_RUNS: Series =
    Series::new("heartbeat_sidecar_script_runs_total", "Script runs that ended, by how.");
pub(super) const TAP_DISABLED: Series = Series::new(
    "heartbeat_sidecar_tap_disabled_total",
    "Websocket connections whose bytes are relayed unseen, without heartbeats, by why.",
)
.lean();
pub(super) const WRITE_STALLS: Series = Series::new(
    "heartbeat_sidecar_write_stalls_total",
    "Times that a websocket connection's receiver took no more bytes, by direction.",
);
pub(super) const HTTP_REQUESTS: Series = Series::new(
    "heartbeat_sidecar_http_requests_total",
    "Plain HTTP requests answered, by method and class of the status code.",
);

pub(super) const HTTP_REJECTED: Series = Series::new(
    "heartbeat_sidecar_http_rejected_total",
    "HTTP requests and connections that were refused, wholly or half way: the app server could misread them, or a limit is \
     reached; by why.",
).lean();
pub(super) const CLIENT_CONNECTIONS: Series = Series::new(
    "heartbeat_sidecar_client_connections",
    "Connections of clients that are open now, websockets among them.",
)
.lean();
pub(super) const CLIENT_CONNECTIONS_LIMIT: Series = Series::new(
    "heartbeat_sidecar_client_connections_limit",
    "Connections of clients that may be open at a time: limits.connections, or what the file handles carry.",
)
.lean();

pub(super) const CONFIG_RELOADS: Series = Series::new(
    "heartbeat_sidecar_config_reloads_total",
    "Changes of the configuration while the sidecar runs, by what became of them.",
)
.lean();
pub(super) const CONFIG_CURRENT: Series = Series::new(
    "heartbeat_sidecar_config_last_reload_successful",
    "1 if what the configuration says is in force, 0 if it was refused when it was read last.",
)
.lean();
pub(super) const TLS_RELOADS: Series = Series::new(
    "heartbeat_sidecar_tls_reloads_total",
    "Changes of TLS certificates and keys, of either side, by what became of them.",
)
.lean();
pub(super) const TLS_NOT_AFTER: Series = Series::new(
    "heartbeat_sidecar_tls_certificate_not_after_seconds",
    "When the certificate that browsers are shown expires, in seconds of Unix time; 0 without TLS.",
)
.lean();

pub(super) const CONNECTIONS: Series =
    Series::new("heartbeat_sidecar_connections", "Websocket connections that are open now.").lean();
pub(super) const UPSTREAM_ACKS_NATIVELY: Series = Series::new(
    "heartbeat_sidecar_upstream_acks_natively",
    "1 if the app server is known to ack heartbeats itself (Streamlit 1.55.0 and later), else 0.",
)
.lean();
pub(super) const DRAINING: Series =
    Series::new("heartbeat_sidecar_draining", "1 while the sidecar drains before it exits, else 0.").lean();
pub(super) const BUILD_INFO: Series =
    Series::new("heartbeat_sidecar_build_info", "Always 1; the label tells the sidecar's version.").lean();

pub(super) const ACK_LATENCY: Series = Series::histogram(
    "heartbeat_sidecar_ack_latency_seconds",
    "From a heartbeat read to its ack handed to the browser's socket, by who made the ack.",
    ROUND_TRIP,
)
.lean();
pub(super) const PROOF_RTT: Series = Series::histogram(
    "heartbeat_sidecar_proof_rtt_seconds",
    "From a websocket ping handed to the app server's socket to its pong.",
    ROUND_TRIP,
)
.lean();
pub(super) const BROWSER_RTT: Series = Series::histogram(
    "heartbeat_sidecar_browser_rtt_seconds",
    "Smoothed TCP round-trip time of the browser's connection, read at each heartbeat.",
    ROUND_TRIP,
);
pub(super) const HEARTBEAT_INTERVAL: Series = Series::histogram(
    "heartbeat_sidecar_heartbeat_interval_seconds",
    "From one heartbeat of a websocket connection to its next.",
    INTERVAL,
);
pub(super) const CONNECTION_DURATION: Series = Series::histogram(
    "heartbeat_sidecar_connection_duration_seconds",
    "How long ended websocket connections had been open.",
    LIFETIME,
);
pub(super) const HANDSHAKE_DURATION: Series = Series::histogram(
    "heartbeat_sidecar_handshake_seconds",
    "From the browser's websocket handshake read to its answer, whatever the answer.",
    REQUEST,
);
pub(super) const SCRIPT_RUN_DURATION: Series = Series::histogram(
    "heartbeat_sidecar_script_run_seconds",
    "From new_session to script_finished, as relayed.",
    SCRIPT,
);
pub(super) const HTTP_REQUEST_DURATION: Series = Series::histogram(
    "heartbeat_sidecar_http_request_seconds",
    "From a plain HTTP request's head read to its response's head sent.",
    REQUEST,
);

/// Every histogram: the recorder must know the buckets before the first one is registered.
pub(super) const HISTOGRAMS: &[Series] = &[
    ACK_LATENCY,
    PROOF_RTT,
    BROWSER_RTT,
    HEARTBEAT_INTERVAL,
    CONNECTION_DURATION,
    HANDSHAKE_DURATION,
    SCRIPT_RUN_DURATION,
    HTTP_REQUEST_DURATION,
];
