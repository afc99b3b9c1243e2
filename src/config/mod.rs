//! What the sidecar is to do: valid by construction, each value with its origin; flag > environment > file > default.

mod drain;
mod origins;
mod proxies;
mod raw;
mod session;
mod settings;
#[cfg(test)]
mod tests;
mod tls;
mod upstream;
mod values;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use drain::{DrainCode, DrainSettings};
pub use origins::AllowedOrigins;
pub use proxies::TrustedProxies;
pub use session::SessionSettings;
pub use settings::{Form, SETTINGS, Setting};
pub use tls::{TlsSettings, UpstreamTlsSettings};
pub use upstream::UpstreamAddress;
pub use values::{DAY, Invalid, duration};

use crate::heartbeat::{Mode, Proof, Settings};
use crate::streamlit::ack::AckForm;

/// The shortest ack timeout that is wise: some round trips of a slow mobile link.
const UNHURRIED: Duration = Duration::from_secs(2);

/// What the name of every environment variable of ours begins with.
pub const PREFIX: &str = "HEARTBEAT_SIDECAR_";

/// A whole configuration. [`load`] makes it of what people wrote; [`Config::default`] is for `demo` and the tests,
/// which set the fields that they need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where browsers connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where probes and metrics are served; port 0 takes a free one.
    pub admin: SocketAddr,
    /// The app server.
    pub upstream: UpstreamAddress,
    /// Whose word counts on for whom a request is.
    pub trusted_proxies: TrustedProxies,
    /// Every connection begins with a header of the PROXY protocol, and comes from a trusted proxy.
    pub proxy_protocol: bool,
    /// Whose pages may open websockets.
    pub allowed_origins: AllowedOrigins,
    /// TLS for browsers.
    pub tls: TlsSettings,
    /// TLS towards an `https://` upstream.
    pub upstream_tls: UpstreamTlsSettings,
    /// What happens to heartbeats.
    pub heartbeat: Settings,
    /// What happens when a browser reconnects.
    pub session: SessionSettings,
    /// How the end goes.
    pub drain: DrainSettings,
    /// Whether pages get a script that watches for acks.
    pub watchdog: WatchdogSettings,
    /// What a client may take.
    pub limits: Limits,
    /// What is logged, and how.
    pub log: LogSettings,
    /// How long a connection to the upstream may take.
    pub connect_timeout: Duration,
    /// How long the upstream may take to answer a websocket handshake.
    pub handshake_timeout: Duration,
}

/// The script that pages get to notice a dead connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchdogSettings {
    /// Whose heartbeats it watches.
    pub mode: WatchdogMode,
    /// From one of its own heartbeats to the next.
    pub interval: Duration,
    /// How long one of its own heartbeats may stay without an ack.
    pub ack_timeout: Duration,
}

/// Whose heartbeats the watchdog watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WatchdogMode {
    /// There is no watchdog; pages pass untouched.
    #[default]
    Off,
    /// Those that the page's host asks for, with the timeout that it names.
    Host,
    /// Also its own.
    Page,
}

/// What a client may take before it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of a request's header: the bytes of its names and values, and four for each line.
    pub header_bytes: usize,
    /// Of a request's target.
    pub uri_bytes: usize,
    /// How long a request's header may take, and how long a kept connection may be idle before it.
    pub idle_timeout: Duration,
    /// How long a request's body may pause.
    pub body_timeout: Duration,
    /// Open connections of clients, websockets among them; `None` is as many as the file handles carry, which is also
    /// the most.
    pub connections: Option<NonZeroUsize>,
    /// Of these, of one client that is no trusted proxy.
    pub connections_per_address: Option<NonZeroUsize>,
    /// Websocket handshakes of one client in a second; in a burst, ten times as many.
    pub handshakes_per_second: Option<NonZeroU32>,
    /// Websocket sessions with the upstream at a time.
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
    /// One JSON object a line.
    Json,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the file.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// The environment variable of this name.
    Environment(String),
    /// The flag, with its dashes.
    Flag(String),
}

/// Everything that a configuration is made of. The file is named here and read by [`load`], at each call anew.
#[derive(Clone, Default)]
pub struct Sources {
    /// The value of `--config`.
    pub config: Option<PathBuf>,
    /// The variables of the environment that begin with [`PREFIX`].
    pub environment: BTreeMap<OsString, OsString>,
    /// The setting flags that were given, with their values.
    pub flags: Vec<(&'static Setting, String)>,
}

/// A configuration, and what there is to say of it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every setting, in the order of [`SETTINGS`].
    pub settings: Vec<Effective>,
    /// What is allowed but unwise, a line each.
    pub warnings: Vec<String>,
}

/// The value that a setting has in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The key, with its table.
    pub key: &'static str,
    /// The value, in the one form in which it is shown.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// One thing that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file, as it was named.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something that was written is wrong.
    #[error("{origin}: {reason}")]
    Written {
        /// Where.
        origin: Origin,
        /// What; in a file, with the key.
        reason: String,
    },
    /// Two settings, each valid, cannot both hold.
    #[error("{0}")]
    Conflict(String),
}

/// Everything that is wrong with a configuration, a line each; never empty.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Problems(pub Vec<Problem>);

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: ([0, 0, 0, 0], 8500).into(),
            admin: ([127, 0, 0, 1], 9600).into(),
            upstream: UpstreamAddress::Http { host: "127.0.0.1".to_owned(), port: 8501 },
            trusted_proxies: TrustedProxies::default(),
            proxy_protocol: false,
            allowed_origins: AllowedOrigins::default(),
            tls: TlsSettings::default(),
            upstream_tls: UpstreamTlsSettings::default(),
            heartbeat: Settings::default(),
            session: SessionSettings::default(),
            drain: DrainSettings::default(),
            watchdog: WatchdogSettings::default(),
            limits: Limits::default(),
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

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

impl Sources {
    /// The file to read, if one is named.
    pub fn file(&self) -> Option<&Path> {
        let named = || self.variable(&settings::variable("config"));
        self.config.as_deref().or_else(|| named().map(Path::new))
    }

    /// The value of an environment variable; an empty one counts as not set.
    fn variable(&self, name: &str) -> Option<&OsStr> {
        self.environment.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// A warning for each variable that looks like one of ours and is none.
    fn unknown_variables(&self) -> impl Iterator<Item = String> {
        let keys = || SETTINGS.iter().map(Setting::short_key).chain(["config"]);
        let set = self.environment.iter().filter(|(_, value)| !value.is_empty());
        set.filter_map(move |(name, _)| {
            let name = name.to_string_lossy();
            let rest = name.strip_prefix(PREFIX)?;
            if is_service_variable(rest) || keys().any(|key| settings::variable(key) == name) {
                return None;
            }
            let hint = settings::nearest(&rest.to_ascii_lowercase(), keys());
            let hint = hint.map(|key| format!("; did you mean {}?", settings::variable(key))).unwrap_or_default();
            Some(format!("{name}: unknown environment variable, ignored{hint}"))
        })
    }
}

/// Whether Kubernetes makes such a variable for a service called `heartbeat-sidecar` (its docs: "Service environment
/// variables"), given the name without [`PREFIX`].
fn is_service_variable(rest: &str) -> bool {
    let rest = format!("_{rest}");
    rest.ends_with("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT")
        || rest.ends_with("_PORT")
        || rest.contains("_PORT_")
}

/// Values on their way into a configuration: later ones replace earlier ones, and every one must be valid.
#[derive(Default)]
struct Assembly {
    config: Config,
    origins: HashMap<&'static str, Origin>,
    problems: Vec<Problem>,
}

/// Puts a configuration together.
///
/// # Errors
/// Everything that is wrong with any of the sources, also where a value would be overridden.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let mut assembly = Assembly::default();
    if let Some(path) = sources.file() {
        assembly.take_file(path);
    }
    for setting in SETTINGS {
        let name = setting.variable();
        if let Some(value) = sources.variable(&name) {
            assembly.take(setting, value.to_str(), Origin::Environment(name));
        }
    }
    for (setting, text) in &sources.flags {
        assembly.take(setting, Some(text), Origin::Flag(format!("--{}", setting.flag())));
    }
    assembly.finish(sources)
}

impl Assembly {
    fn take_file(&mut self, path: &Path) {
        let origin = |line| Origin::File { path: path.to_owned(), line };
        match raw::read(path) {
            Ok(document) => {
                let written = |raw::Mistake { line, reason }| Problem::Written { origin: origin(line), reason };
                self.problems.extend(document.mistakes.into_iter().map(written));
                for entry in document.entries {
                    self.take(entry.setting, Some(&entry.text), origin(entry.line));
                }
                // A file's mistakes come in two lots, of its form and of its values.
                self.problems.sort_by_key(|problem| match problem {
                    Problem::Written { origin: Origin::File { line, .. }, .. } => *line,
                    Problem::Written { .. } | Problem::Unreadable { .. } | Problem::Conflict(_) => 0,
                });
            }
            Err(source) => self.problems.push(Problem::Unreadable { path: path.to_owned(), source }),
        }
    }

    /// Takes a value; `None` is one that is no text.
    fn take(&mut self, setting: &'static Setting, text: Option<&str>, origin: Origin) {
        let result = match text {
            None => Err(Invalid("not valid UTF-8".to_owned())),
            Some(text) if text.chars().any(char::is_control) => {
                Err(Invalid(format!("{text:?} holds a control character")))
            }
            Some(text) => (setting.set)(&mut self.config, text),
        };
        match result {
            Ok(()) => _ = self.origins.insert(setting.key, origin),
            Err(Invalid(reason)) => {
                let reason = match origin {
                    Origin::File { .. } => format!("{}: {reason}", setting.key),
                    Origin::Default | Origin::Environment(_) | Origin::Flag(_) => reason,
                };
                self.problems.push(Problem::Written { origin, reason });
            }
        }
    }

    fn finish(mut self, sources: &Sources) -> Result<Loaded, Problems> {
        // Between values of which one is refused there is nothing to compare.
        if self.problems.is_empty() {
            self.problems = self.conflicts().into_iter().map(Problem::Conflict).collect();
        }
        if !self.problems.is_empty() {
            return Err(Problems(self.problems));
        }
        let warnings = self.unwise().into_iter().chain(sources.unknown_variables()).collect();
        let settings = SETTINGS.iter().map(|Setting { key, get, .. }| Effective {
            key,
            value: get(&self.config),
            origin: self.origins.get(key).cloned().unwrap_or(Origin::Default),
        });
        Ok(Loaded { settings: settings.collect(), warnings, config: self.config })
    }

    /// A setting as messages name it: `admin = "127.0.0.1:9600" (--admin)`.
    fn shown(&self, key: &str) -> String {
        let setting = SETTINGS.iter().find(|setting| setting.key == key).expect("callers name keys of the table");
        let origin = self.origins.get(key).unwrap_or(&Origin::Default);
        format!("{key} = {:?} ({origin})", (setting.get)(&self.config))
    }

    fn conflicts(&self) -> Vec<String> {
        let Config { listen, admin, upstream, heartbeat, watchdog, .. } = &self.config;
        let mut found = Vec::new();
        if watchdog.mode != WatchdogMode::Off && heartbeat.mode == Mode::Forward {
            let (watchdog, mode) = (self.shown("watchdog.mode"), self.shown("heartbeat.mode"));
            found.push(format!(
                "{watchdog} needs acks, which {mode} leaves to the app: its pages would reconnect for ever"
            ));
        }
        let (public, private) = (listen.ip().to_canonical(), admin.ip().to_canonical());
        if listen.port() != 0 && listen.port() == admin.port() && upstream::overlap(public, private) {
            let (listen, admin) = (self.shown("listen"), self.shown("admin"));
            found.push(format!("{listen} and {admin} are one address: each needs its own"));
        }
        for (key, bound) in [("listen", listen), ("admin", admin)] {
            if upstream.leads_to(*bound) {
                let (upstream, bound) = (self.shown("upstream"), self.shown(key));
                found.push(format!("{upstream} leads back to {bound}: the sidecar would proxy itself"));
            }
        }
        found.extend(self.tls_conflicts());
        found
    }

    fn unwise(&self) -> Vec<String> {
        let heartbeat = &self.config.heartbeat;
        let mut found = Vec::new();
        if heartbeat.ack == AckForm::Plain {
            let ack = self.shown("heartbeat.ack");
            found.push(format!("{ack}: opens an error dialog in pages of Streamlit before 1.55, at every ack"));
        }
        if heartbeat.proof == Proof::Connection {
            found.push(format!("{}: acks go out while a frozen server is up", self.shown("heartbeat.proof")));
        }
        if heartbeat.native_deadline >= heartbeat.stall_after {
            let (deadline, stall) = (self.shown("heartbeat.native_deadline"), self.shown("heartbeat.stall_after"));
            found.push(format!("{deadline} is not below {stall}: a lost native ack counts as a stalled upstream"));
        }
        let drain = &self.config.drain;
        if drain.delay + drain.window >= drain.timeout {
            let [delay, window, timeout] = ["drain.delay", "drain.window", "drain.timeout"].map(|key| self.shown(key));
            found.push(format!("{delay} and {window} leave nothing of {timeout}: some websockets are cut, not closed"));
        }
        let Config { upstream, upstream_tls, .. } = &self.config;
        if upstream_tls.is_set() && !matches!(upstream, UpstreamAddress::Https { .. }) {
            found.push(format!("{}: no https:// address, so [upstream_tls] does nothing", self.shown("upstream")));
        }
        let watchdog = &self.config.watchdog;
        if watchdog.mode == WatchdogMode::Page && watchdog.ack_timeout < UNHURRIED {
            let timeout = self.shown("watchdog.ack_timeout");
            found.push(format!("{timeout}: below {UNHURRIED:?} slow links and busy servers count as dead"));
        }
        found
    }
}
