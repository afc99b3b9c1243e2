//! The only table of settings: flags, environment, file keys, `check`, help and reference are derived from it.

use super::setting::Setting;
use super::values::{
    ADDRESS, CLOSE_CODE, COUNT, FILE, LOG_LEVEL, OPTIONAL_INTERVAL, PARKED, PARKED_BYTES, PAUSE, RATE, SERVER_NAME,
    SWITCH, UP_TO_A_DAY, UP_TO_AN_HOUR, bytes, text, words,
};
use super::{AllowedOrigins, Config, LogFormat, TrustedProxies, UpstreamAddress, WatchdogMode};
use crate::heartbeat::{Mode, Proof};
use crate::metrics::Detail;
use crate::streamlit::ack::AckForm;

const MEBIBYTE: usize = 1024 * 1024;
const MOST_BUFFERED: usize = 64 * MEBIBYTE;
/// The HTTP library's limit, in bytes.
const MAX_URI_BYTES: usize = 65_534;

/// One row: the key, the field of [`Config`], the type of its values, and the help.
macro_rules! row {
    ($key:literal, $($field:ident).+, $type:expr, $help:literal) => {
        Setting {
            key: $key,
            toml: $type.toml,
            value_name: $type.name,
            help: $help,
            get: |config: &Config| ($type.text)(&config.$($field).+),
            set: |config: &mut Config, text: &str| ($type.parse)(text).map(|value| config.$($field).+ = value),
        }
    };
}

/// Every setting: the top-level keys first, then each table's keys together, as TOML requires.
#[rustfmt::skip]
pub static SETTINGS: &[Setting] = &[
    row!("listen", listen, ADDRESS,
        "Address that browsers connect to"),
    row!("upstream", upstream, text::<UpstreamAddress>("ADDRESS"),
        "The app: http://HOST:PORT, https://HOST:PORT or unix:/PATH"),
    row!("admin", admin, ADDRESS,
        "Address of probes and metrics; keep it private"),
    row!("log_format", log.format, words::<LogFormat>(),
        "Form of log lines"),
    row!("log_level", log.level, LOG_LEVEL,
        "error, warn, info, debug, trace, off, or a filter such as info,heartbeat_sidecar=debug"),
    row!("connect_timeout", connect_timeout, UP_TO_A_DAY,
        "Timeout of a connection to the app; then 504"),
    row!("handshake_timeout", handshake_timeout, UP_TO_A_DAY,
        "Timeout of the app's response to a websocket handshake; then 504"),
    row!("trusted_proxies", trusted_proxies, text::<TrustedProxies>("CIDRS"),
        "Proxies whose X-Forwarded-* headers are trusted: addresses, CIDRs, private, or none"),
    row!("proxy_protocol", proxy_protocol, SWITCH,
        "Require a PROXY protocol header (v1 or v2) from a trusted proxy on each connection"),
    row!("allowed_origins", allowed_origins, text::<AllowedOrigins>("ORIGINS"),
        "Origins whose pages may open websockets, else 403; any leaves it to the app"),
    row!("tls.certificate", tls.certificate, FILE,
        "PEM file of the certificate and its chain; turns TLS on"),
    row!("tls.key", tls.key, FILE,
        "PEM file of the certificate's key, without a passphrase"),
    row!("tls.client_ca", tls.client_ca, FILE,
        "PEM file of CAs; clients must present a certificate of one of them"),
    row!("tls.http2", tls.http2, SWITCH,
        "Offer HTTP/2; turn it off behind a proxy that would use it for websockets"),
    row!("upstream_tls.ca", upstream_tls.ca, FILE,
        "PEM file of CAs that are trusted for an https:// app, instead of the system's"),
    row!("upstream_tls.certificate", upstream_tls.certificate, FILE,
        "PEM file of the client certificate for an https:// app"),
    row!("upstream_tls.key", upstream_tls.key, FILE,
        "PEM file of the client certificate's key"),
    row!("upstream_tls.server_name", upstream_tls.server_name, SERVER_NAME,
        "Name in the app's certificate, and SNI; empty: the host of its address"),
    row!("heartbeat.mode", heartbeat.mode, words::<Mode>(),
        "Answer heartbeats: auto (if the app does not), answer (always), forward (never)"),
    row!("heartbeat.proof", heartbeat.proof, words::<Proof>(),
        "Proof that the app is alive: pong (it answers a ping), connection (it is connected)"),
    row!("heartbeat.ack", heartbeat.ack, words::<AckForm>(),
        "Form of acks: compatible (all pages), plain (error dialog in pages before 1.55)"),
    row!("heartbeat.native_deadline", heartbeat.native_deadline, UP_TO_AN_HOUR,
        "Timeout of the app's own ack; then the sidecar acks"),
    row!("heartbeat.stall_after", heartbeat.stall_after, UP_TO_AN_HOUR,
        "Count a heartbeat as withheld after this long without a proof"),
    row!("session.takeover", session.takeover, SWITCH,
        "Close a session's old connection when its page reconnects, so that the app resumes it"),
    row!("session.takeover_timeout", session.takeover_timeout, UP_TO_AN_HOUR,
        "Reset the old connection if the app does not close it in time"),
    row!("session.dead_peer_timeout", session.dead_peer_timeout, UP_TO_AN_HOUR,
        "Give up a peer whose kernel acknowledges nothing for this long"),
    row!("session.write_stall_timeout", session.write_stall_timeout, UP_TO_A_DAY,
        "Give up a client that reads nothing of its waiting data for this long"),
    row!("session.browser_ping_interval", session.browser_ping_interval, OPTIONAL_INTERVAL,
        "Ping browsers at this interval, so that load balancers keep idle connections"),
    row!("session.shield_pings", session.shield_pings, SWITCH,
        "Answer the app's pings here; without it Streamlit < 1.47 drops browsers slower than 1 s"),
    row!("drain.delay", drain.delay, PAUSE,
        "Keep serving this long after the stop signal, until load balancers have noticed"),
    row!("drain.window", drain.window, PAUSE,
        "After the delay, close each websocket at a random moment within this time"),
    row!("drain.timeout", drain.timeout, UP_TO_A_DAY,
        "Cut remaining connections this long after the stop signal (includes the delay)"),
    row!("drain.close_code", drain.close_code, CLOSE_CODE,
        "Close code of the websockets: 1001 (going away) or 1012 (service restart)"),
    row!("watchdog.mode", watchdog.mode, words::<WatchdogMode>(),
        "Inject a reconnect script: off; host (use the embedding page's heartbeats); self (send its own)"),
    row!("watchdog.interval", watchdog.interval, UP_TO_AN_HOUR,
        "Interval of the script's own heartbeats"),
    row!("watchdog.ack_timeout", watchdog.ack_timeout, UP_TO_AN_HOUR,
        "Ack timeout of the script's own heartbeats"),
    row!("resume.enabled", resume.enabled, SWITCH,
        "Keep the session of a page whose connection is lost; needs the watchdog"),
    row!("resume.window", resume.window, UP_TO_A_DAY,
        "Keep a session without a connection this long (it is parked)"),
    row!("resume.buffer", resume.buffer_bytes, bytes::<65_536, MOST_BUFFERED>(),
        "Unconfirmed bytes that sidecar and page each keep per session"),
    row!("resume.parked", resume.parked, PARKED,
        "Parked sessions per app; above it, the one parked longest is closed"),
    row!("resume.parked_bytes", resume.parked_bytes, PARKED_BYTES,
        "Close a parked session after this many bytes of its app"),
    row!("resume.max_age", resume.max_age, UP_TO_AN_HOUR,
        "Do not resend input that is older; the page reports it"),
    row!("limits.header_bytes", limits.header_bytes, bytes::<1024, MEBIBYTE>(),
        "Largest request header; then 431"),
    row!("limits.uri_bytes", limits.uri_bytes, bytes::<256, MAX_URI_BYTES>(),
        "Longest request target; then 414"),
    row!("limits.idle_timeout", limits.idle_timeout, UP_TO_A_DAY,
        "Time to receive a request's headers, and idle time of a keep-alive connection"),
    row!("limits.body_timeout", limits.body_timeout, UP_TO_A_DAY,
        "Longest pause in a request's body; then 408"),
    row!("limits.connections", limits.connections, COUNT,
        "Open client connections; then 503. 0: derived from the file-descriptor limit"),
    row!("limits.connections_per_address", limits.connections_per_address, COUNT,
        "Of these, per client that is not a trusted proxy; then 429. 0: no limit"),
    row!("limits.handshakes_per_second", limits.handshakes_per_second, RATE,
        "Websocket handshakes per client, ten times as many in a burst; then 429. 0: no limit"),
    row!("limits.sessions", limits.sessions, COUNT,
        "Concurrent websocket sessions per app; then 503. 0: no limit"),
    row!("metrics.detail", metrics_detail, words::<Detail>(),
        "Number of series: full (at most 430) or lean (at most 160, for all alerts but WatchdogLeftOut)"),
];
