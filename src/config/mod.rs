//! The configuration: valid by construction, each value with its source; flag > environment > file > default.

mod document;
mod drain;
mod load;
mod loaded;
mod origins;
mod proxies;
mod reload;
mod resume;
mod routes;
mod schema;
mod session;
mod setting;
mod settings;
#[cfg(test)]
mod tests;
mod tls;
mod upstream;
mod validate;
mod values;

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

pub use drain::{DrainCode, DrainSettings};
pub use load::{Sources, load, load_tolerant, log_format};
pub use loaded::{Effective, Loaded, Problem, Problems, Source};
pub use origins::AllowedOrigins;
pub use proxies::TrustedProxies;
pub use reload::Reloader;
pub use resume::ResumeSettings;
pub use routes::{HostPattern, PathPrefix, Route};
pub use schema::schema;
pub use session::SessionSettings;
pub use setting::{HEADINGS, Setting};
pub use settings::SETTINGS;
pub use tls::{TlsSettings, UpstreamTlsSettings};
pub use upstream::UpstreamAddress;
pub use values::{DAY, InvalidValue, TomlType, duration};

use crate::heartbeat::HeartbeatSettings;
use crate::metrics::Detail;

/// Prefix of every environment variable of the sidecar.
pub const PREFIX: &str = "HEARTBEAT_SIDECAR_";

/// A complete configuration. [`load`] builds it from its sources; [`Config::default`] is for `demo` and the tests,
/// which set the fields that they need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where browsers connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where probes and metrics are served; port 0 takes a free one.
    pub admin: SocketAddr,
    /// The app server; unused if there are routes.
    pub upstream: UpstreamAddress,
    /// Several apps, each with its own app server; empty for the one of `upstream`.
    pub routes: Vec<Route>,
    /// Proxies whose forwarding headers are trusted.
    pub trusted_proxies: TrustedProxies,
    /// Every connection must start with a PROXY protocol header and come from a trusted proxy.
    pub proxy_protocol: bool,
    /// Origins whose pages may open websockets.
    pub allowed_origins: AllowedOrigins,
    /// TLS for browsers.
    pub tls: TlsSettings,
    /// TLS towards an `https://` upstream.
    pub upstream_tls: UpstreamTlsSettings,
    /// What happens to heartbeats.
    pub heartbeat: HeartbeatSettings,
    /// What happens when a browser reconnects.
    pub session: SessionSettings,
    /// How the sidecar drains.
    pub drain: DrainSettings,
    /// Whether pages get a script that watches for acks.
    pub watchdog: WatchdogSettings,
    /// What a lost connection costs the user of a page with that script.
    pub resume: ResumeSettings,
    /// The limits on clients.
    pub limits: Limits,
    /// How many series are exported.
    pub metrics_detail: Detail,
    /// What is logged, and how.
    pub log: LogSettings,
    /// How long a connection to the upstream may take.
    pub connect_timeout: Duration,
    /// How long the upstream may take to answer a websocket handshake.
    pub handshake_timeout: Duration,
}

/// The script that detects dead connections in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchdogSettings {
    /// Which heartbeats it watches.
    pub mode: WatchdogMode,
    /// Interval of its own heartbeats.
    pub interval: Duration,
    /// Ack timeout of its own heartbeats.
    pub ack_timeout: Duration,
}

/// Which heartbeats the watchdog watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WatchdogMode {
    /// No watchdog; pages are not changed.
    #[default]
    Off,
    /// Those that the page's host requests, with the host's timeout.
    Host,
    /// Also its own.
    Page,
}

/// The limits above which clients are rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of a request's header: the bytes of its names and values, and four per line.
    pub header_bytes: usize,
    /// Length of a request's target, in bytes.
    pub uri_bytes: usize,
    /// Time to receive a request's header, and idle time of a keep-alive connection.
    pub idle_timeout: Duration,
    /// How long a request's body may pause.
    pub body_timeout: Duration,
    /// Open client connections, including websockets. `None`: derived from the file-descriptor limit, which also caps
    /// any other value.
    pub connections: Option<NonZeroUsize>,
    /// Of these, per client that is not a trusted proxy.
    pub connections_per_address: Option<NonZeroUsize>,
    /// Websocket handshakes per client and second; ten times as many in a burst.
    pub handshakes_per_second: Option<NonZeroU32>,
    /// Concurrent websocket sessions with the upstream.
    pub sessions: Option<NonZeroUsize>,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// The form of a line.
    pub format: LogFormat,
    /// A level or a filter that `tracing_subscriber::EnvFilter` takes.
    pub level: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: ([0, 0, 0, 0], 8500).into(),
            admin: ([127, 0, 0, 1], 9600).into(),
            upstream: UpstreamAddress::Http { host: "127.0.0.1".to_owned(), port: 8501 },
            routes: Vec::new(),
            trusted_proxies: TrustedProxies::default(),
            proxy_protocol: false,
            allowed_origins: AllowedOrigins::default(),
            tls: TlsSettings::default(),
            upstream_tls: UpstreamTlsSettings::default(),
            heartbeat: HeartbeatSettings::default(),
            session: SessionSettings::default(),
            drain: DrainSettings::default(),
            watchdog: WatchdogSettings::default(),
            resume: ResumeSettings::default(),
            limits: Limits::default(),
            metrics_detail: Detail::default(),
            log: LogSettings { format: LogFormat::default(), level: "info".to_owned() },
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(30),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let (idle_timeout, body_timeout) = (Duration::from_secs(75), Duration::from_secs(60));
        Self {
            header_bytes: 64 * 1024,
            uri_bytes: 16 * 1024,
            idle_timeout,
            body_timeout,
            connections: None,
            connections_per_address: None,
            handshakes_per_second: None,
            sessions: None,
        }
    }
}

impl Default for WatchdogSettings {
    fn default() -> Self {
        let (interval, ack_timeout) = (Duration::from_secs(10), Duration::from_secs(5));
        Self { mode: WatchdogMode::default(), interval, ack_timeout }
    }
}
