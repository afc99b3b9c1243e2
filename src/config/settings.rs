//! The only table of settings: flags, environment, file keys, `check` and help are derived from it.

use std::num::{NonZeroU32, NonZeroUsize};

use super::setting::Setting;
use super::tls::{file, file_text, server_name};
use super::values::{
    Choice as _, DAY, HOUR, address, choice, duration, log_filter, number, optional, optional_duration, pause,
};

const MEBIBYTE: usize = 1024 * 1024;
/// The HTTP library's limit, in bytes.
const LONGEST_URI: usize = 65_534;
/// No process has file descriptors for more connections.
const MILLION: usize = 1_000_000;

/// Every setting: the top-level keys first, then each table's keys together, as TOML requires.
pub static SETTINGS: &[Setting] = &[
    Setting {
        key: "listen",
        value_name: "IP:PORT",
        help: "Where browsers connect",
        get: |config| config.listen.to_string(),
        set: |config, text| address(text).map(|value| config.listen = value),
    },
    Setting {
        key: "upstream",
        value_name: "ADDRESS",
        help: "The app server: http://HOST:PORT, https://HOST:PORT or unix:/PATH",
        get: |config| config.upstream.to_string(),
        set: |config, text| text.parse().map(|value| config.upstream = value),
    },
    Setting {
        key: "admin",
        value_name: "IP:PORT",
        help: "Where probes and metrics are served",
        get: |config| config.admin.to_string(),
        set: |config, text| address(text).map(|value| config.admin = value),
    },
    Setting {
        key: "log_format",
        value_name: "text|json",
        help: "The form of log lines",
        get: |config| config.log.format.word().to_owned(),
        set: |config, text| choice(text).map(|value| config.log.format = value),
    },
    Setting {
        key: "log_level",
        value_name: "LEVEL",
        help: "error, warn, info, debug, trace, or a filter such as info,heartbeat_sidecar=debug",
        get: |config| config.log.level.clone(),
        set: |config, text| log_filter(text).map(|value| config.log.level = value),
    },
    Setting {
        key: "connect_timeout",
        value_name: "DURATION",
        help: "How long a connection to the upstream may take",
        get: |config| humantime::format_duration(config.connect_timeout).to_string(),
        set: |config, text| duration(text, DAY).map(|value| config.connect_timeout = value),
    },
    Setting {
        key: "handshake_timeout",
        value_name: "DURATION",
        help: "How long the upstream may take to answer a websocket handshake",
        get: |config| humantime::format_duration(config.handshake_timeout).to_string(),
        set: |config, text| duration(text, DAY).map(|value| config.handshake_timeout = value),
    },
    Setting {
        key: "trusted_proxies",
        value_name: "CIDRS",
        help: "Whose X-Forwarded-* fields are believed: addresses and networks with commas between, private, or none",
        get: |config| config.trusted_proxies.to_string(),
        set: |config, text| text.parse().map(|value| config.trusted_proxies = value),
    },
    Setting {
        key: "proxy_protocol",
        value_name: "true|false",
        help: "Whether connections begin with a header of the PROXY protocol, as of load balancers that pass bytes",
        get: |config| config.proxy_protocol.word().to_owned(),
        set: |config, text| choice(text).map(|value| config.proxy_protocol = value),
    },
    Setting {
        key: "allowed_origins",
        value_name: "ORIGINS",
        help: "Whose pages may open websockets: origins with commas between, or any, which leaves it to the app",
        get: |config| config.allowed_origins.to_string(),
        set: |config, text| text.parse().map(|value| config.allowed_origins = value),
    },
    Setting {
        key: "tls.certificate",
        value_name: "FILE",
        help: "Serves browsers over TLS with this certificate and its chain (PEM); read anew when it changes",
        get: |config| file_text(config.tls.certificate.as_ref()),
        set: |config, text| file(text).map(|value| config.tls.certificate = value),
    },
    Setting {
        key: "tls.key",
        value_name: "FILE",
        help: "The certificate's key (PEM)",
        get: |config| file_text(config.tls.key.as_ref()),
        set: |config, text| file(text).map(|value| config.tls.key = value),
    },
    Setting {
        key: "tls.client_ca",
        value_name: "FILE",
        help: "Clients must show a certificate of one of these (PEM)",
        get: |config| file_text(config.tls.client_ca.as_ref()),
        set: |config, text| file(text).map(|value| config.tls.client_ca = value),
    },
    Setting {
        key: "tls.http2",
        value_name: "true|false",
        help: "Whether HTTP/2 is offered; false is for a proxy that would speak it for websockets too",
        get: |config| config.tls.http2.word().to_owned(),
        set: |config, text| choice(text).map(|value| config.tls.http2 = value),
    },
    Setting {
        key: "upstream_tls.ca",
        value_name: "FILE",
        help: "Whose certificates an https:// app server may have (PEM), instead of the system's roots",
        get: |config| file_text(config.upstream_tls.ca.as_ref()),
        set: |config, text| file(text).map(|value| config.upstream_tls.ca = value),
    },
    Setting {
        key: "upstream_tls.certificate",
        value_name: "FILE",
        help: "What is shown to an https:// app server (PEM)",
        get: |config| file_text(config.upstream_tls.certificate.as_ref()),
        set: |config, text| file(text).map(|value| config.upstream_tls.certificate = value),
    },
    Setting {
        key: "upstream_tls.key",
        value_name: "FILE",
        help: "That certificate's key (PEM)",
        get: |config| file_text(config.upstream_tls.key.as_ref()),
        set: |config, text| file(text).map(|value| config.upstream_tls.key = value),
    },
    Setting {
        key: "upstream_tls.server_name",
        value_name: "NAME",
        help: "Who an https:// app server has to prove to be, instead of the host in its address",
        get: |config| {
            config.upstream_tls.server_name.as_ref().map_or_else(String::new, |name| name.to_str().into_owned())
        },
        set: |config, text| server_name(text).map(|value| config.upstream_tls.server_name = value),
    },
    Setting {
        key: "heartbeat.mode",
        value_name: "auto|answer|forward",
        help: "Who answers heartbeats: the upstream where it can, always the sidecar, never the sidecar",
        get: |config| config.heartbeat.mode.word().to_owned(),
        set: |config, text| choice(text).map(|value| config.heartbeat.mode = value),
    },
    Setting {
        key: "heartbeat.proof",
        value_name: "pong|connection",
        help: "What shows that the upstream is alive: a pong since the heartbeat, or an open connection",
        get: |config| config.heartbeat.proof.word().to_owned(),
        set: |config, text| choice(text).map(|value| config.heartbeat.proof = value),
    },
    Setting {
        key: "heartbeat.ack",
        value_name: "compatible|plain",
        help: "The bytes of the sidecar's acks: for every page, or for pages of Streamlit 1.55 and later",
        get: |config| config.heartbeat.ack.word().to_owned(),
        set: |config, text| choice(text).map(|value| config.heartbeat.ack = value),
    },
    Setting {
        key: "heartbeat.native_deadline",
        value_name: "DURATION",
        help: "How long a forwarded heartbeat waits for the upstream's own ack",
        get: |config| humantime::format_duration(config.heartbeat.native_deadline).to_string(),
        set: |config, text| duration(text, HOUR).map(|value| config.heartbeat.native_deadline = value),
    },
    Setting {
        key: "heartbeat.stall_after",
        value_name: "DURATION",
        help: "How long a heartbeat may stay unproved before it counts as withheld",
        get: |config| humantime::format_duration(config.heartbeat.stall_after).to_string(),
        set: |config, text| duration(text, HOUR).map(|value| config.heartbeat.stall_after = value),
    },
    Setting {
        key: "session.takeover",
        value_name: "true|false",
        help: "Whether a reconnect first closes the session's old connection, so that the app resumes it",
        get: |config| config.session.takeover.word().to_owned(),
        set: |config, text| choice(text).map(|value| config.session.takeover = value),
    },
    Setting {
        key: "session.takeover_timeout",
        value_name: "DURATION",
        help: "How long the upstream may take to close the old connection",
        get: |config| humantime::format_duration(config.session.timeouts.takeover).to_string(),
        set: |config, text| duration(text, HOUR).map(|value| config.session.timeouts.takeover = value),
    },
    Setting {
        key: "session.dead_peer_timeout",
        value_name: "DURATION",
        help: "How long a browser or an upstream may acknowledge nothing of what was sent to it",
        get: |config| humantime::format_duration(config.session.timeouts.dead_peer).to_string(),
        set: |config, text| duration(text, HOUR).map(|value| config.session.timeouts.dead_peer = value),
    },
    Setting {
        key: "session.write_stall_timeout",
        value_name: "DURATION",
        help: "How long a browser that is there may take nothing of what waits for it",
        get: |config| humantime::format_duration(config.session.timeouts.write_stall).to_string(),
        set: |config, text| duration(text, DAY).map(|value| config.session.timeouts.write_stall = value),
    },
    Setting {
        key: "session.browser_ping_interval",
        value_name: "DURATION|off",
        help: "How often browsers are pinged, so that nothing on the way takes their connections for idle",
        get: |config| optional(config.session.browser_ping_interval),
        set: |config, text| optional_duration(text, HOUR).map(|value| config.session.browser_ping_interval = value),
    },
    Setting {
        key: "session.shield_pings",
        value_name: "true|false",
        help: "Whether the upstream's pings are answered here: before Streamlit 1.47, slow browsers are cut without",
        get: |config| config.session.shield_pings.word().to_owned(),
        set: |config, text| choice(text).map(|value| config.session.shield_pings = value),
    },
    Setting {
        key: "drain.delay",
        value_name: "DURATION",
        help: "How long everything is still served after a stop is asked for, until load balancers have noticed",
        get: |config| humantime::format_duration(config.drain.delay).to_string(),
        set: |config, text| pause(text, DAY).map(|value| config.drain.delay = value),
    },
    Setting {
        key: "drain.window",
        value_name: "DURATION",
        help: "Within how long after that the websockets are closed, each at a random moment",
        get: |config| humantime::format_duration(config.drain.window).to_string(),
        set: |config, text| pause(text, DAY).map(|value| config.drain.window = value),
    },
    Setting {
        key: "drain.timeout",
        value_name: "DURATION",
        help: "How long after a stop is asked for what is left is cut, the delay included",
        get: |config| humantime::format_duration(config.drain.timeout).to_string(),
        set: |config, text| duration(text, DAY).map(|value| config.drain.timeout = value),
    },
    Setting {
        key: "drain.close_code",
        value_name: "1001|1012",
        help: "What the websockets are closed with: going away, or service restart",
        get: |config| config.drain.close_code.word().to_owned(),
        set: |config, text| choice(text).map(|value| config.drain.close_code = value),
    },
    Setting {
        key: "watchdog.mode",
        value_name: "off|host|self",
        help: "Whether pages get a script that reconnects when acks stay out: to heartbeats of their host, or to its own",
        get: |config| config.watchdog.mode.word().to_owned(),
        set: |config, text| choice(text).map(|value| config.watchdog.mode = value),
    },
    Setting {
        key: "watchdog.interval",
        value_name: "DURATION",
        help: "From one heartbeat of the script's own to the next",
        get: |config| humantime::format_duration(config.watchdog.interval).to_string(),
        set: |config, text| duration(text, HOUR).map(|value| config.watchdog.interval = value),
    },
    Setting {
        key: "watchdog.ack_timeout",
        value_name: "DURATION",
        help: "How long a heartbeat of the script's own may stay without an ack",
        get: |config| humantime::format_duration(config.watchdog.ack_timeout).to_string(),
        set: |config, text| duration(text, HOUR).map(|value| config.watchdog.ack_timeout = value),
    },
    Setting {
        key: "limits.header_bytes",
        value_name: "BYTES",
        help: "How large the header of a request may be",
        get: |config| config.limits.header_bytes.to_string(),
        set: |config, text| number(text, 1024..=MEBIBYTE).map(|value| config.limits.header_bytes = value),
    },
    Setting {
        key: "limits.uri_bytes",
        value_name: "BYTES",
        help: "How long the target of a request may be",
        get: |config| config.limits.uri_bytes.to_string(),
        set: |config, text| number(text, 256..=LONGEST_URI).map(|value| config.limits.uri_bytes = value),
    },
    Setting {
        key: "limits.idle_timeout",
        value_name: "DURATION",
        help: "How long the header of a request may take, and how long a kept connection may be idle before it",
        get: |config| humantime::format_duration(config.limits.idle_timeout).to_string(),
        set: |config, text| duration(text, DAY).map(|value| config.limits.idle_timeout = value),
    },
    Setting {
        key: "limits.body_timeout",
        value_name: "DURATION",
        help: "How long the body of a request may pause",
        get: |config| humantime::format_duration(config.limits.body_timeout).to_string(),
        set: |config, text| duration(text, DAY).map(|value| config.limits.body_timeout = value),
    },
    Setting {
        key: "limits.connections",
        value_name: "NUMBER",
        help: "How many connections of clients may be open; 0 is as many as the file handles carry",
        get: |config| config.limits.connections.map_or(0, NonZeroUsize::get).to_string(),
        set: |config, text| number(text, 0..=MILLION).map(|value| config.limits.connections = NonZeroUsize::new(value)),
    },
    Setting {
        key: "limits.connections_per_address",
        value_name: "NUMBER",
        help: "How many of them may be of one address that is no trusted proxy's; 0 is any number",
        get: |config| config.limits.connections_per_address.map_or(0, NonZeroUsize::get).to_string(),
        set: |config, text| {
            number(text, 0..=MILLION).map(|value| config.limits.connections_per_address = NonZeroUsize::new(value))
        },
    },
    Setting {
        key: "limits.handshakes_per_second",
        value_name: "NUMBER",
        help: "How many websocket handshakes an address may make in a second, and ten times as many in a burst; 0 is any number",
        get: |config| config.limits.handshakes_per_second.map_or(0, NonZeroU32::get).to_string(),
        set: |config, text| {
            let number = number(text, 0..=MILLION)?;
            config.limits.handshakes_per_second = u32::try_from(number).ok().and_then(NonZeroU32::new);
            Ok(())
        },
    },
    Setting {
        key: "limits.sessions",
        value_name: "NUMBER",
        help: "How many websocket sessions the app may have at a time; 0 is any number",
        get: |config| config.limits.sessions.map_or(0, NonZeroUsize::get).to_string(),
        set: |config, text| number(text, 0..=MILLION).map(|value| config.limits.sessions = NonZeroUsize::new(value)),
    },
    Setting {
        key: "metrics.detail",
        value_name: "full|lean",
        help: "How many series are shown: at most 400, or 150, which is what alerts need",
        get: |config| config.metrics_detail.word().to_owned(),
        set: |config, text| choice(text).map(|value| config.metrics_detail = value),
    },
];
