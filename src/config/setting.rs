//! What a setting is: its key, and how its value is written and read.

use super::values::{InvalidValue, TomlType};
use super::{Config, PREFIX};

/// One setting. Its flag and its environment variable follow from its key.
pub struct Setting {
    /// The key in the file, with its table: `heartbeat.mode`.
    pub key: &'static str,
    /// The type of its value in the file.
    pub toml: TomlType,
    /// Placeholder of the value in the help; words with `|` between are all possible values.
    pub value_name: &'static str,
    /// One line for the help.
    pub help: &'static str,
    /// The value in a form that `set` accepts.
    pub(super) get: fn(&Config) -> String,
    /// Parses and stores a value; an invalid one changes nothing.
    pub(super) set: fn(&mut Config, &str) -> Result<(), InvalidValue>,
}

/// The headings of help and reference, in their order.
pub const HEADINGS: [&str; 9] =
    ["Listen and upstream", "TLS", "Heartbeat", "Session", "Watchdog", "Resume", "Limits", "Drain", "Logs and metrics"];

/// Keys that a reload may change, and tables of which it may change every key. All others are bound, opened or shared
/// for the life of the process.
const RELOADABLE: [&str; 8] = [
    "upstream",
    "heartbeat.",
    "resume.",
    "limits.",
    "log_level",
    "trusted_proxies",
    "allowed_origins",
    "handshake_timeout",
];

impl Setting {
    /// The key's table in the file; empty for the top level.
    pub fn table(&self) -> &'static str {
        self.key.split_once('.').map_or("", |(table, _)| table)
    }

    /// The key within its table.
    pub fn name(&self) -> &'static str {
        self.key.split_once('.').map_or(self.key, |(_, name)| name)
    }

    /// The long flag, without its dashes: `heartbeat-mode`.
    pub fn flag(&self) -> String {
        self.short_key().replace(['.', '_'], "-")
    }

    /// The environment variable: `HEARTBEAT_SIDECAR_HEARTBEAT_MODE`.
    pub fn variable(&self) -> String {
        variable(self.short_key())
    }

    /// Base of flag and variable: `--watchdog self` sets `watchdog.mode`.
    pub(super) fn short_key(&self) -> &'static str {
        if self.key == "watchdog.mode" { self.table() } else { self.key }
    }

    /// The default as text.
    pub fn default_text(&self) -> String {
        (self.get)(&Config::default())
    }

    /// One of [`HEADINGS`].
    pub fn heading(&self) -> &'static str {
        match self.table() {
            "" if self.key.starts_with("log_") => "Logs and metrics",
            "metrics" => "Logs and metrics",
            "" => "Listen and upstream",
            "upstream_tls" => "TLS",
            table => HEADINGS.into_iter().find(|it| it.eq_ignore_ascii_case(table)).expect("each table has a heading"),
        }
    }

    /// Whether a running sidecar takes a new value when the configuration is reloaded.
    pub fn is_reloadable(&self) -> bool {
        RELOADABLE.iter().any(|it| self.key == *it || it.ends_with('.') && self.key.starts_with(it))
    }
}

/// The environment variable of a key.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_ascii_uppercase())
}

/// The known key that `unknown` was likely meant to be, both with their tables.
///
/// A key of the same name in another table (a top-level key written below a table's header), else the nearest by edit
/// distance. Case, dots, dashes and underscores are ignored. At most one edit is allowed, or two from six letters on.
pub(super) fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let letters = |key: &str| key.replace(['.', '-', '_'], "").to_ascii_lowercase();
    let unknown_name = name(unknown);
    let budget = (letters(&unknown_name).chars().count() / 3).clamp(1, 2);
    known
        .map(|key| {
            let edits =
                if name(key) == unknown_name { 0 } else { strsim::osa_distance(&letters(unknown), &letters(key)) };
            (edits, key)
        })
        .filter(|(edits, _)| *edits <= budget)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, key)| key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SETTINGS;

    #[test]
    fn every_reloadable_key_and_every_heading_has_a_setting() {
        for it in RELOADABLE {
            assert!(SETTINGS.iter().any(|setting| setting.key.starts_with(it)), "{it}");
        }
        for heading in HEADINGS {
            assert!(SETTINGS.iter().any(|setting| setting.heading() == heading), "{heading}");
        }
    }
}
