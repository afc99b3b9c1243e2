//! What a setting is: its key, and how its value is written and read.

use super::values::{Choice as _, Invalid};
use super::{Config, PREFIX};

/// One setting. Its flag and its environment variable follow from its key.
pub struct Setting {
    /// The key in the file, with its table: `heartbeat.mode`.
    pub key: &'static str,
    /// Placeholder of the value in the help.
    pub value_name: &'static str,
    /// One line for the help.
    pub help: &'static str,
    /// The value in a form that `set` accepts.
    pub(super) get: fn(&Config) -> String,
    /// Parses and stores a value; an invalid one changes nothing.
    pub(super) set: fn(&mut Config, &str) -> Result<(), Invalid>,
}

/// How a value is written in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In quotes.
    Text,
    /// `true` or `false`.
    Switch,
    /// In digits.
    Number,
}

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

    /// The form of the value in the file, derived from the default.
    pub fn form(&self) -> Form {
        let default = self.default_text();
        if bool::ALL.iter().any(|value| value.word() == default) {
            Form::Switch
        } else if default.parse::<u64>().is_ok() {
            Form::Number
        } else {
            Form::Text
        }
    }

    /// The default as text.
    pub fn default_text(&self) -> String {
        (self.get)(&Config::default())
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
