//! Routes of several apps behind one sidecar: their names, and which requests are for them.

use std::fmt;
use std::str::FromStr;

use super::Config;
use super::document::{Field, LineError, Table, TableArray};
use super::loaded::{Effective, Source};
use super::setting::Setting;
use super::settings::SETTINGS;
use super::upstream::UpstreamAddress;
use super::values::InvalidValue;
use crate::heartbeat::HeartbeatSettings;

/// The longest name, in bytes; every series of the app contains it.
const MAX_NAME_BYTES: usize = 63;

/// The array of tables of routes.
pub(super) const ROUTES: TableArray = TableArray {
    key: "route",
    fields: &[
        "name",
        "host",
        "path",
        "upstream",
        "heartbeat.mode",
        "heartbeat.proof",
        "heartbeat.ack",
        "heartbeat.native_deadline",
        "heartbeat.stall_after",
    ],
};

/// How many of its fields the top level does not have.
pub(super) const OWN_FIELDS: usize = 3;

/// One app, and the requests that are for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The name in metrics and logs; unique.
    pub name: String,
    /// The hosts that it serves; `None` is any.
    pub host: Option<HostPattern>,
    /// Prefix of the paths that it serves.
    pub path: PathPrefix,
    /// The app server.
    pub upstream: UpstreamAddress,
    /// What happens to its heartbeats.
    pub heartbeat: HeartbeatSettings,
}

/// A host name, or all names below one: `app.example`, `*.apps.example`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    /// In lower case, without the star; a star's dot is kept at the start.
    name: String,
}

/// Whole leading segments of a path; `/` is every path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathPrefix {
    /// Without a slash at its end; empty for every path.
    segments: String,
}

impl Config {
    /// The name of the only app if there are no routes.
    pub const ONLY_APP: &'static str = "default";

    /// The apps: those of the routes, or else the one upstream, for all requests.
    pub fn apps(&self) -> Vec<Route> {
        if !self.routes.is_empty() {
            return self.routes.clone();
        }
        vec![Route {
            name: Self::ONLY_APP.to_owned(),
            host: None,
            path: PathPrefix::default(),
            upstream: self.upstream.clone(),
            heartbeat: self.heartbeat,
        }]
    }
}

impl Route {
    /// Whether a request for this host, without its port, and this path is for the app.
    pub fn matches(&self, host: &str, path: &str) -> bool {
        self.host.as_ref().is_none_or(|pattern| pattern.matches(host)) && self.path.matches(path)
    }

    /// How specific a route is: a name ranks above a star, a longer star or path above a shorter one, and any host
    /// above any path. Of two matching routes, the higher rank gets the request.
    pub fn rank(&self) -> impl Ord + use<> {
        let host = self.host.as_ref().map(|pattern| (!pattern.name.starts_with('.'), pattern.name.len()));
        (host, self.path.segments.len())
    }
}

/// Reads a route: its own values from the file, the others from `base`. Also returns all of them with their sources.
///
/// # Errors
/// What is wrong, with the line.
pub(super) fn read(
    table: &Table,
    base: &Config,
    source: impl Fn(usize) -> Source,
    inherited: impl Fn(&str) -> Source,
) -> Result<(Route, Vec<Effective>), Vec<LineError>> {
    let (mut config, mut errors) = (base.clone(), Vec::new());
    let (mut name, mut host, mut path) = (String::new(), None::<HostPattern>, PathPrefix::default());
    for Field { key, text, line } in &table.fields {
        let parsed = match *key {
            "name" => parse_name(text).map(|read| name = read),
            "host" => text.parse().map(|read| host = Some(read)),
            "path" => text.parse().map(|read| path = read),
            key => (top_level(key).set)(&mut config, text),
        };
        if let Err(InvalidValue(reason)) = parsed {
            errors.push(LineError { line: *line, reason: format!("route.{key}: {reason}") });
        }
    }
    let line_of = |key: &str| table.fields.iter().find(|field| field.key == key).map(|field| field.line);
    for key in ["name", "upstream"] {
        if line_of(key).is_none() {
            errors.push(LineError { line: table.line, reason: format!("route: needs {key}") });
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let effective = |(key, value): (&'static str, String)| {
        let source = line_of(key).map_or_else(|| inherited(key), &source);
        Effective { key, value, source }
    };
    let host_text = host.as_ref().map(|host| ("host", host.to_string()));
    let own = [Some(("name", name.clone())), host_text, Some(("path", path.to_string()))];
    let shared = ROUTES.fields[OWN_FIELDS..].iter().map(|key| (*key, (top_level(key).get)(&config)));
    let effective = own.into_iter().flatten().chain(shared).map(effective).collect();
    Ok((Route { name, host, path, upstream: config.upstream, heartbeat: config.heartbeat }, effective))
}

/// The top-level setting that a route can override.
fn top_level(key: &str) -> &'static Setting {
    SETTINGS.iter().find(|setting| setting.key == key).expect("routes share these keys with the top level")
}

fn parse_name(text: &str) -> Result<String, InvalidValue> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.is_empty() || text.len() > MAX_NAME_BYTES || !text.bytes().all(allowed) {
        return Err(InvalidValue(format!(
            "{text:?} is not a route name: write at most {MAX_NAME_BYTES} letters, digits, dashes, dots and underscores"
        )));
    }
    Ok(text.to_owned())
}

impl HostPattern {
    fn matches(&self, host: &str) -> bool {
        let Some(head) = host.len().checked_sub(self.name.len()) else { return false };
        let below = self.name.starts_with('.');
        let tail = host.as_bytes()[head..].eq_ignore_ascii_case(self.name.as_bytes());
        tail && if below { head > 0 } else { head == 0 }
    }
}

impl FromStr for HostPattern {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let (star, name) = text.strip_prefix("*.").map_or((false, text), |name| (true, name));
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let is_address = address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let is_name = !name.is_empty() && name.bytes().all(allowed) && !name.split('.').any(str::is_empty);
        if !is_name && (star || !is_address) {
            let remedy = "write a host name without scheme, port or path: app.example or *.apps.example";
            return Err(InvalidValue(format!("{text:?}: {remedy}")));
        }
        Ok(Self { name: format!("{}{}", if star { "." } else { "" }, name.to_ascii_lowercase()) })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.name.starts_with('.') { "*" } else { "" }, self.name)
    }
}

impl PathPrefix {
    /// The prefix itself; empty for every path.
    pub fn segments(&self) -> &str {
        &self.segments
    }

    fn matches(&self, path: &str) -> bool {
        path.strip_prefix(&*self.segments).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            || self.segments.is_empty()
    }
}

impl FromStr for PathPrefix {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let segments = text.strip_suffix('/').unwrap_or(text);
        let allowed = |byte: u8| byte.is_ascii_graphic() && !b"?#*\\".contains(&byte);
        let has_no_name = |segment: &str| matches!(segment, "" | "." | "..");
        if !text.starts_with('/') {
            return Err(InvalidValue(format!("{text:?} must start with \"/\", such as \"/forecast\"")));
        }
        if !text.bytes().all(allowed) || segments.split('/').skip(1).any(has_no_name) {
            let remedy = "write whole segments, percent-encoded as in requests, such as \"/forecast\"";
            return Err(InvalidValue(format!("{text:?} is not a path prefix: {remedy}")));
        }
        Ok(Self { segments: segments.to_owned() })
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.segments.is_empty() { "/" } else { &self.segments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_all_names_below_one() {
        for (pattern, host, matches) in [
            ("app.example", "APP.example", true),
            ("app.example", "x.app.example", false),
            ("app.example", "app.example.evil", false),
            ("*.Example", "app.example", true),
            ("*.example", "a.b.example", true),
            ("*.example", "example", false),
            ("*.example", ".example", false),
            ("*.example", "badexample", false),
            ("[::1]", "[::1]", true),
            ("127.0.0.1", "127.0.0.1", true),
        ] {
            let read: HostPattern = pattern.parse().expect(pattern);
            assert_eq!(read.matches(host), matches, "{pattern} {host}");
            assert_eq!(read.to_string(), pattern.to_ascii_lowercase());
        }
        for text in ["", "*", "*.", "a:80", "a/b", "*.*.a", "a..b", "*.[::1]", "[x]", "a b", "é"] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_path_prefix_matches_whole_segments() {
        for (prefix, shown, path, matches) in [
            ("/", "/", "/", true),
            ("/", "/", "*", true),
            ("/app", "/app", "/app", true),
            ("/app/", "/app", "/app/x", true),
            ("/app", "/app", "/apple", false),
            ("/app", "/app", "/App", false),
            ("/a/b", "/a/b", "/a", false),
            ("/a/b", "/a/b", "/a/b/_stcore/stream", true),
        ] {
            let read: PathPrefix = prefix.parse().expect(prefix);
            assert_eq!((read.to_string().as_str(), read.matches(path)), (shown, matches), "{prefix} {path}");
        }
        for text in ["", "app", "/a//b", "//", "/a/../b", "/./a", "/a?b", "/a#b", "/a b", "/é", "/a*"] {
            assert!(text.parse::<PathPrefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_ranks_above_a_star_and_any_host_above_any_path() {
        let route = |host: &str, path: &str| Route {
            name: String::new(),
            host: (!host.is_empty()).then(|| host.parse().expect(host)),
            path: path.parse().expect(path),
            upstream: Config::default().upstream,
            heartbeat: HeartbeatSettings::default(),
        };
        let ascending = [
            route("", "/"),
            route("", "/a/long/path"),
            route("*.example", "/"),
            route("*.apps.example", "/"),
            route("a.io", "/"),
            route("a.io", "/x"),
        ];
        assert!(ascending.windows(2).all(|pair| pair[0].rank() < pair[1].rank()));
    }

    #[test]
    fn a_route_has_every_heartbeat_key() {
        let heartbeat = SETTINGS.iter().map(|setting| setting.key).filter(|key| key.starts_with("heartbeat."));
        assert_eq!(ROUTES.fields[4..], heartbeat.collect::<Vec<_>>());
    }
}
