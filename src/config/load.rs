//! Puts a configuration together of flags, environment and file, and tells where each value comes from.
//!
//! Law: every value must be valid, also one that another overrides.

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
    /// Every route, in the order of the file: its keys below `[[route]]`.
    pub routes: Vec<Vec<Effective>>,
    /// Every further certificate, in the order of the file: its keys below `[[tls.certificates]]`.
    pub certificates: Vec<Vec<Effective>>,
    /// What is allowed but unwise, a line each.
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

    /// A warning for each variable that looks like one of ours and is none.
    fn unknown_variables(&self) -> impl Iterator<Item = String> {
        // What one may have meant, and what that is called here.
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

/// Whether Kubernetes makes such a variable for a service whose name begins with `heartbeat-sidecar` (its docs: "Environment
/// variables" of services), given the name without [`PREFIX`]. `…_PORT` is a URL there: a number is what people write.
fn is_service_variable(rest: &str, value: &str) -> bool {
    let rest = format!("_{rest}");
    rest.ends_with("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT")
        || rest.ends_with("_PORT") && value.contains("://")
        || ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| rest.contains("_PORT_") && rest.contains(protocol))
}

/// Values on their way into a configuration: later ones replace earlier ones, and every one must be valid.
#[derive(Default)]
pub(super) struct Loader {
    pub(super) config: Config,
    pub(super) origins: HashMap<&'static str, Origin>,
    problems: Vec<Problem>,
    /// The tables of the file's lists, not judged yet.
    items: Vec<Item>,
    /// The values of the routes.
    routes: Vec<Vec<Effective>>,
    /// Those of the further certificates.
    certificates: Vec<Vec<Effective>>,
}

/// Puts a configuration together.
///
/// # Errors
/// Everything that is wrong with any of the sources, also where a value would be overridden.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    assemble(sources).finish(sources)
}

/// What a running sidecar is likely to have been configured with, for commands that ask it something: its file may have
/// been broken since it was started, which is no reason to take the sidecar for dead.
///
/// # Errors
/// What is wrong with flags and environment.
pub fn glance(sources: &Sources) -> Result<Glance, Problems> {
    let Loader { config, origins, problems, .. } = assemble(sources);
    let in_file = |problem: &Problem| match problem {
        Problem::Unreadable { .. } | Problem::Written { origin: Origin::File { .. }, .. } => true,
        Problem::Written { .. } | Problem::Conflict(_) => false,
    };
    let (in_file, elsewhere): (Vec<_>, Vec<_>) = problems.into_iter().partition(in_file);
    if elsewhere.is_empty() { Ok(Glance { config, origins, problems: in_file }) } else { Err(Problems(elsewhere)) }
}

/// The form of the log, as far as `sources` can be read; for errors of before there is one.
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
    /// A setting as messages name it: `admin = "127.0.0.1:9600" (--admin)`.
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

    /// Takes the routes, which have the values of all sources where they have none of their own.
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
        // A file's mistakes come in lots, of its form, of its values and of its routes; others' places stay.
        self.problems.sort_by_key(|problem| match problem {
            Problem::Written { origin: Origin::File { line, .. }, .. } => *line,
            Problem::Written { .. } => usize::MAX,
            Problem::Unreadable { .. } | Problem::Conflict(_) => 0,
        });
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

    /// A setting as messages name it: `admin = "127.0.0.1:9600" (--admin)`.
    pub(super) fn shown(&self, key: &str) -> String {
        shown(&self.config, &self.origins, key)
    }

    /// A setting of an app as messages name it; apps are in the order of [`Config::apps`].
    pub(super) fn shown_of(&self, app: usize, key: &str) -> String {
        let Some(route) = self.routes.get(app) else { return self.shown(key) };
        let found = route.iter().find(|effective| effective.key == key);
        let Effective { value, origin, .. } = found.expect("callers name keys that a route shares");
        format!("{key} = {value:?} ({origin})")
    }
}
