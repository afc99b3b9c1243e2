//! Builds a configuration from flags, environment and file, with the source of each value.
//!
//! Invariant: every value must be valid, also one that another overrides.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::document::{self, LineError, Table, TableArray};
use super::loaded::{Effective, Loaded, Problem, Problems, Source};
use super::routes::{self, ROUTES};
use super::setting::{self, Setting};
use super::settings::SETTINGS;
use super::tls::{self, CERTIFICATES};
use super::values::InvalidValue;
use super::{Config, LogFormat, PREFIX, Route, validate};

/// The arrays of tables that a file may have.
pub(super) static ARRAYS: [TableArray; 2] = [ROUTES, CERTIFICATES];

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

/// Builds a configuration.
///
/// # Errors
/// All errors in all sources, also in overridden values.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let (mut loaded, mut problems) = read(sources);
    // Only valid values can be compared.
    if problems.is_empty() {
        problems = validate::conflicts(&loaded).into_iter().map(Problem::Conflict).collect();
    }
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    loaded.warnings = validate::warnings(&loaded);
    loaded.warnings.extend(sources.unknown_variables());
    Ok(loaded)
}

/// The likely configuration of a running sidecar, for commands that query it, and the errors in its file. These are
/// tolerated: the file may have changed since the start, which does not make the sidecar dead.
///
/// # Errors
/// The errors in flags and environment.
pub fn load_tolerant(sources: &Sources) -> Result<(Loaded, Vec<Problem>), Problems> {
    let (loaded, problems) = read(sources);
    let in_file = |problem: &Problem| match problem {
        Problem::Unreadable { .. } | Problem::Invalid { at: Source::File { .. }, .. } => true,
        Problem::Invalid { .. } | Problem::Conflict(_) => false,
    };
    let (in_file, elsewhere): (Vec<_>, Vec<_>) = problems.into_iter().partition(in_file);
    if elsewhere.is_empty() { Ok((loaded, in_file)) } else { Err(Problems(elsewhere)) }
}

/// The log format, as far as `sources` can be read; for errors before the log is set up.
pub fn log_format(sources: &Sources) -> LogFormat {
    read(sources).0.config.log.format
}

/// The valid values of all sources, and what is wrong with the others.
fn read(sources: &Sources) -> (Loaded, Vec<Problem>) {
    let mut loader = Loader::default();
    let tables = sources.file().map(|path| loader.read_file(path)).unwrap_or_default();
    for setting in SETTINGS {
        let name = setting.variable();
        if let Some(value) = sources.variable(&name) {
            loader.set(setting, value.to_str(), Source::Environment(name));
        }
    }
    for (setting, text) in &sources.flags {
        loader.set(setting, Some(text), Source::Flag(format!("--{}", setting.flag())));
    }
    if let Some(path) = sources.file() {
        loader.read_certificates(path, &tables);
        loader.read_routes(path, &tables);
    }
    loader.finish()
}

/// Collects the values of a configuration: later ones replace earlier ones, and every one must be valid.
#[derive(Default)]
struct Loader {
    config: Config,
    sources: HashMap<&'static str, Source>,
    problems: Vec<Problem>,
    routes: Vec<Vec<Effective>>,
    certificates: Vec<Vec<Effective>>,
}

impl Loader {
    /// Sets the settings of the file. Returns the tables of its arrays.
    fn read_file(&mut self, path: &Path) -> Vec<Table> {
        match document::read(path, &ARRAYS) {
            Ok(document) => {
                self.reject(path, document.errors);
                for entry in document.entries {
                    self.set(entry.setting, Some(&entry.text), in_file(path, entry.line));
                }
                document.tables
            }
            Err(source) => {
                self.problems.push(Problem::Unreadable { path: path.to_owned(), source });
                Vec::new()
            }
        }
    }

    fn read_certificates(&mut self, path: &Path, tables: &[Table]) {
        for table in tables.iter().filter(|table| table.array == CERTIFICATES.key) {
            match tls::further(table, |line| in_file(path, line)) {
                Ok((pair, effective)) => {
                    self.config.tls.certificates.push(pair);
                    self.certificates.push(effective);
                }
                Err(errors) => self.reject(path, errors),
            }
        }
    }

    /// Reads the routes, which inherit the values of all sources that they do not set.
    fn read_routes(&mut self, path: &Path, tables: &[Table]) {
        let base = self.config.clone();
        let mut lines = Vec::new();
        for table in tables.iter().filter(|table| table.array == ROUTES.key) {
            let inherited = |key: &str| self.sources.get(key).cloned().unwrap_or(Source::Default);
            match routes::read(table, &base, |line| in_file(path, line), inherited) {
                Ok((route, effective)) => {
                    let earlier = self.config.routes.iter().zip(&lines);
                    let twin = earlier.filter_map(|(other, line)| duplicate(&route, other, &in_file(path, *line)));
                    if let Some(reason) = twin.into_iter().next() {
                        self.reject(path, vec![LineError { line: table.line, reason }]);
                    }
                    lines.push(table.line);
                    self.config.routes.push(route);
                    self.routes.push(effective);
                }
                Err(errors) => self.reject(path, errors),
            }
        }
    }

    /// Stores a value; `None` is one that is not UTF-8.
    fn set(&mut self, setting: &'static Setting, text: Option<&str>, source: Source) {
        let result = match text {
            None => Err(InvalidValue("not valid UTF-8".to_owned())),
            Some(text) if text.chars().any(char::is_control) => {
                Err(InvalidValue(format!("{text:?} contains a control character")))
            }
            Some(text) => (setting.set)(&mut self.config, text),
        };
        match result {
            Ok(()) => _ = self.sources.insert(setting.key, source),
            Err(InvalidValue(reason)) => {
                let reason = match source {
                    Source::File { .. } => format!("{}: {reason}", setting.key),
                    Source::Default | Source::Environment(_) | Source::Flag(_) => reason,
                };
                self.problems.push(Problem::Invalid { at: source, reason });
            }
        }
    }

    fn reject(&mut self, path: &Path, errors: Vec<LineError>) {
        let invalid = |LineError { line, reason }| Problem::Invalid { at: in_file(path, line), reason };
        self.problems.extend(errors.into_iter().map(invalid));
    }

    fn finish(mut self) -> (Loaded, Vec<Problem>) {
        // The file's errors come in groups (syntax, values, routes): sort them by line. Others keep their order.
        self.problems.sort_by_key(|problem| match problem {
            Problem::Invalid { at: Source::File { line, .. }, .. } => *line,
            Problem::Invalid { .. } => usize::MAX,
            Problem::Unreadable { .. } | Problem::Conflict(_) => 0,
        });
        let settings = SETTINGS.iter().map(|Setting { key, get, .. }| Effective {
            key,
            value: get(&self.config),
            source: self.sources.get(key).cloned().unwrap_or(Source::Default),
        });
        let settings = settings.collect();
        let Self { config, routes, certificates, problems, .. } = self;
        (Loaded { config, settings, routes, certificates, warnings: Vec::new() }, problems)
    }
}

fn in_file(path: &Path, line: usize) -> Source {
    Source::File { path: path.to_owned(), line }
}

/// The error if a route has the name or the requests of an earlier one.
fn duplicate(route: &Route, earlier: &Route, at: &Source) -> Option<String> {
    if route.name == earlier.name {
        return Some(format!("duplicate route name {:?} (first at {at})", route.name));
    }
    (route.host == earlier.host && route.path == earlier.path)
        .then(|| format!("route {:?}: same host and path as route {:?} (at {at})", route.name, earlier.name))
}
