//! Builds a configuration from flags, environment and file, with the origin of each value.
//!
//! Invariant: every value must be valid, also one that another overrides.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::raw::Item;
use super::setting::{self, Setting};
use super::settings::SETTINGS;
use super::values::Invalid;
use super::{Config, LogFormat, PREFIX, Route, raw, routes, tls};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Not set.
    Default,
    /// A line of the file.
    File {
        /// The file, as given.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// The environment variable of this name.
    Environment(String),
    /// The flag, with its dashes.
    Flag(String),
}

/// The sources of a configuration. [`load`] reads the file again at each call.
#[derive(Clone, Default)]
pub struct Sources {
    /// The value of `--config`.
    pub config: Option<PathBuf>,
    /// The environment variables that start with [`PREFIX`].
    pub environment: BTreeMap<OsString, OsString>,
    /// The setting flags that were given, with their values.
    pub flags: Vec<(&'static Setting, String)>,
}

/// A configuration, with its origins and warnings.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every setting, in the order of [`SETTINGS`].
    pub settings: Vec<Effective>,
    /// Every route, in the order of the file: its keys below `[[route]]`.
    pub routes: Vec<Vec<Effective>>,
    /// Every further certificate, in the order of the file: its keys below `[[tls.certificates]]`.
    pub certificates: Vec<Vec<Effective>>,
    /// Warnings, one line each.
    pub warnings: Vec<String>,
}

/// A configuration as far as it can be read.
#[derive(Debug)]
pub struct Glance {
    /// Its valid values; the others have their defaults.
    pub config: Config,
    /// What is wrong with the file.
    pub problems: Vec<Problem>,
    origins: HashMap<&'static str, Origin>,
}

/// The effective value of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The key, with its table.
    pub key: &'static str,
    /// The value, in normalized form.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// One error in a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file, as given.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Something in a source is invalid.
    #[error("{origin}: {reason}")]
    Written {
        /// Where.
        origin: Origin,
        /// What is wrong; in a file, with the key.
        reason: String,
    },
    /// Two valid settings exclude each other.
    #[error("{0}")]
    Conflict(String),
}

/// All errors in a configuration, one line each; never empty.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Problems(pub Vec<Problem>);

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
        let named = || self.variable(&setting::variable("config"));
        self.config.as_deref().or_else(|| named().map(Path::new))
    }

    /// The value of an environment variable; an empty one counts as not set.
    fn variable(&self, name: &str) -> Option<&OsStr> {
        self.environment.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// A warning for each unknown variable with the sidecar's prefix.
    fn unknown_variables(&self) -> impl Iterator<Item = String> {
        // Possibly meant keys, each with the key of its variable.
        let keys = || SETTINGS.iter().flat_map(|it| [(it.short_key(), it.short_key()), (it.key, it.short_key())]);
        let keys = move || keys().chain([("config", "config")]);
        let set = self.environment.iter().filter(|(_, value)| !value.is_empty());
        set.filter_map(move |(name, value)| {
            let name = name.to_string_lossy();
            let rest = name.strip_prefix(PREFIX)?;
            let known = keys().any(|(_meant, key)| setting::variable(key) == name);
            if known || is_service_variable(rest, &value.to_string_lossy()) {
                return None;
            }
            let nearest = setting::nearest(&rest.to_ascii_lowercase(), keys().map(|(meant, _key)| meant));
            let key = keys().find_map(|(meant, key)| (Some(meant) == nearest).then_some(key));
            let hint = key.map(|key| format!("; did you mean {}?", setting::variable(key))).unwrap_or_default();
            Some(format!("{name}: unknown environment variable, ignored{hint}"))
        })
    }
}

/// Whether Kubernetes sets such a variable for a service whose name starts with `heartbeat-sidecar` (its docs:
/// "Environment variables" of services). `rest` is the name without [`PREFIX`]. Kubernetes sets `…_PORT` to a URL;
/// users write a number.
fn is_service_variable(rest: &str, value: &str) -> bool {
    let rest = format!("_{rest}");
    rest.ends_with("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT")
        || rest.ends_with("_PORT") && value.contains("://")
        || ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| rest.contains("_PORT_") && rest.contains(protocol))
}

/// Collects the values of a configuration: later ones replace earlier ones, and every one must be valid.
#[derive(Default)]
pub(super) struct Loader {
    pub(super) config: Config,
    pub(super) origins: HashMap<&'static str, Origin>,
    problems: Vec<Problem>,
    /// The tables of the file's lists, not validated yet.
    items: Vec<Item>,
    /// The values of the routes.
    routes: Vec<Vec<Effective>>,
    /// The values of further certificates.
    certificates: Vec<Vec<Effective>>,
}

/// Builds a configuration.
///
/// # Errors
/// All errors in all sources, also in overridden values.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    assemble(sources).finish(sources)
}

/// The likely configuration of a running sidecar, for commands that query it. Errors in the file are tolerated: it may
/// have changed since the start, which does not make the sidecar dead.
///
/// # Errors
/// The errors in flags and environment.
pub fn glance(sources: &Sources) -> Result<Glance, Problems> {
    let Loader { config, origins, problems, .. } = assemble(sources);
    let in_file = |problem: &Problem| match problem {
        Problem::Unreadable { .. } | Problem::Written { origin: Origin::File { .. }, .. } => true,
        Problem::Written { .. } | Problem::Conflict(_) => false,
    };
    let (in_file, elsewhere): (Vec<_>, Vec<_>) = problems.into_iter().partition(in_file);
    if elsewhere.is_empty() { Ok(Glance { config, origins, problems: in_file }) } else { Err(Problems(elsewhere)) }
}

/// The log format, as far as `sources` can be read; for errors before the log is set up.
pub fn log_format(sources: &Sources) -> LogFormat {
    assemble(sources).config.log.format
}

fn assemble(sources: &Sources) -> Loader {
    let mut assembly = Loader::default();
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
    if let Some(path) = sources.file() {
        assembly.take_certificates(path);
        assembly.take_routes(path);
    }
    assembly
}

impl Glance {
    /// A setting as shown in messages: `admin = "127.0.0.1:9600" (--admin)`.
    pub fn shown(&self, key: &str) -> String {
        shown(&self.config, &self.origins, key)
    }
}

/// See [`Glance::shown`].
fn shown(config: &Config, origins: &HashMap<&'static str, Origin>, key: &str) -> String {
    let setting = SETTINGS.iter().find(|setting| setting.key == key).expect("callers name keys of the table");
    let origin = origins.get(key).unwrap_or(&Origin::Default);
    format!("{key} = {:?} ({origin})", (setting.get)(config))
}

impl Loader {
    fn take_file(&mut self, path: &Path) {
        let origin = |line| Origin::File { path: path.to_owned(), line };
        match raw::read(path) {
            Ok(document) => {
                let written = |raw::SyntaxError { line, reason }| Problem::Written { origin: origin(line), reason };
                self.problems.extend(document.mistakes.into_iter().map(written));
                self.items = document.items;
                for entry in document.entries {
                    self.take(entry.setting, Some(&entry.text), origin(entry.line));
                }
            }
            Err(source) => self.problems.push(Problem::Unreadable { path: path.to_owned(), source }),
        }
    }

    fn take_certificates(&mut self, path: &Path) {
        let origin = |line| Origin::File { path: path.to_owned(), line };
        for item in self.items.iter().filter(|item| item.list == tls::CERTIFICATES.key) {
            match tls::further(item, origin) {
                Ok((pair, effective)) => {
                    self.config.tls.certificates.push(pair);
                    self.certificates.push(effective);
                }
                Err(mistakes) => {
                    let written = |(line, reason)| Problem::Written { origin: origin(line), reason };
                    self.problems.extend(mistakes.into_iter().map(written));
                }
            }
        }
    }

    /// Reads the routes, which inherit the values of all sources that they do not set.
    fn take_routes(&mut self, path: &Path) {
        let origin = |line| Origin::File { path: path.to_owned(), line };
        let base = self.config.clone();
        for item in std::mem::take(&mut self.items).into_iter().filter(|item| item.list == routes::ROUTES.key) {
            let inherited = |key: &str| self.origins.get(key).cloned().unwrap_or(Origin::Default);
            match Route::read(&item, &base, origin, inherited) {
                Ok((route, effective)) => {
                    let twin = |other: &&Route| other.name == route.name || other.serves_as(&route);
                    if let Some(other) = self.config.routes.iter().find(twin) {
                        let what = if other.name == route.name { "is called as" } else { "serves the same as" };
                        let reason = format!("route: {:?} {what} an earlier one, {:?}", route.name, other.name);
                        self.problems.push(Problem::Written { origin: origin(item.line), reason });
                    }
                    self.config.routes.push(route);
                    self.routes.push(effective);
                }
                Err(mistakes) => {
                    let written = |(line, reason)| Problem::Written { origin: origin(line), reason };
                    self.problems.extend(mistakes.into_iter().map(written));
                }
            }
        }
        // The file's mistakes come in groups (syntax, values, routes): sort them by line. Others keep their order.
        self.problems.sort_by_key(|problem| match problem {
            Problem::Written { origin: Origin::File { line, .. }, .. } => *line,
            Problem::Written { .. } => usize::MAX,
            Problem::Unreadable { .. } | Problem::Conflict(_) => 0,
        });
    }

    /// Stores a value; `None` is one that is not UTF-8.
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
        // Only valid values can be compared.
        if self.problems.is_empty() {
            self.problems = self.conflicts().into_iter().map(Problem::Conflict).collect();
        }
        if !self.problems.is_empty() {
            return Err(Problems(self.problems));
        }
        let warnings = self.warnings().into_iter().chain(sources.unknown_variables()).collect();
        let settings = SETTINGS.iter().map(|Setting { key, get, .. }| Effective {
            key,
            value: get(&self.config),
            origin: self.origins.get(key).cloned().unwrap_or(Origin::Default),
        });
        let settings = settings.collect();
        let Self { config, routes, certificates, .. } = self;
        Ok(Loaded { config, settings, routes, certificates, warnings })
    }

    /// A setting as shown in messages: `admin = "127.0.0.1:9600" (--admin)`.
    pub(super) fn shown(&self, key: &str) -> String {
        shown(&self.config, &self.origins, key)
    }

    /// A setting of an app as shown in messages; apps are in the order of [`Config::apps`].
    pub(super) fn shown_of(&self, app: usize, key: &str) -> String {
        let Some(route) = self.routes.get(app) else { return self.shown(key) };
        let found = route.iter().find(|effective| effective.key == key);
        let Effective { value, origin, .. } = found.expect("callers name keys that a route shares");
        format!("{key} = {value:?} ({origin})")
    }
}
