//! Random whole configurations within the documented bounds, from the table of settings.
//!
//! The bounds are found by trying values on each setting, so a new setting in the table is drawn too. Only a new kind
//! of value (`value_name`) has to be added to [`Values::of`].

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use heartbeat_sidecar::config::{Problem, Problems, SETTINGS, Setting, Sources, TomlType, load};
use proptest::prelude::*;

/// Addresses and files for the values that refer to this machine.
pub(crate) struct World {
    /// Addresses of app servers.
    pub(crate) upstreams: Vec<String>,
    /// The folder of `tls.crt`, `tls.key` and `ca.crt`.
    pub(crate) folder: std::path::PathBuf,
}

/// A value for every setting, in the order of the table.
#[derive(Clone, Debug)]
pub(crate) struct Drawn {
    values: Vec<String>,
    /// How many routes replace `upstream`.
    routes: usize,
}

/// What a setting accepts.
#[derive(Clone, Debug)]
enum Values {
    /// All numbers from `least` to `most`, written with `unit`, and these words.
    Range { least: u64, most: u64, unit: &'static str, words: Vec<String> },
    /// These samples; the setting may accept more.
    Listed(Vec<String>),
}

impl Values {
    fn of(setting: &'static Setting, world: &World) -> Self {
        let listed = |texts: &[&str]| Self::Listed(texts.iter().map(|&text| text.to_owned()).collect());
        let default = setting.default_text();
        match setting.value_name {
            "NUMBER" | "BYTES" => Self::range(setting, default.parse().unwrap(), ""),
            "DURATION" | "DURATION|off" => {
                let default = humantime::parse_duration(&default).unwrap_or(Duration::from_secs(1));
                let mut values = Self::range(setting, u64::try_from(default.as_nanos()).unwrap(), "ns");
                if let (Self::Range { words, .. }, true) = (&mut values, setting.value_name.ends_with("|off")) {
                    words.push("off".to_owned());
                }
                values
            }
            "IP:PORT" => listed(&["127.0.0.1:0"]),
            "ADDRESS" => Self::Listed(world.upstreams.clone()),
            "LEVEL" => listed(&["info", "info,heartbeat_sidecar=trace", "info,hyper[a{b=.*}]=trace"]),
            "CIDRS" => listed(&["private", "none", "0.0.0.0/0, ::/0", "192.0.2.1"]),
            "ORIGINS" => listed(&["any", "https://app.test, http://[::1]:8500"]),
            "NAME" => listed(&["", "app.test", "192.0.2.1"]),
            "FILE" => {
                let file = match setting.name() {
                    "certificate" => "tls.crt",
                    "key" => "tls.key",
                    "client_ca" | "ca" => "ca.crt",
                    other => panic!("which file is {other}?"),
                };
                listed(&["", world.folder.join(file).to_str().unwrap()])
            }
            words if words == words.to_lowercase() => listed(&words.split('|').collect::<Vec<_>>()),
            other => panic!("{}: add a case for values of the kind {other}", setting.key),
        }
    }

    /// The widest accepted range around an accepted value.
    fn range(setting: &'static Setting, accepted: u64, unit: &'static str) -> Self {
        let accepts = |value: u64| is_within_bounds(setting, &format!("{value}{unit}"));
        assert!(accepts(accepted), "{} rejects its default", setting.key);
        // Binary search for each bound.
        let (mut least, mut below) = (accepted, 0);
        while below < least {
            let middle = below + (least - below) / 2;
            if accepts(middle) { least = middle } else { below = middle + 1 }
        }
        let (mut most, mut above) = (accepted, u64::MAX);
        while most < above {
            let middle = above - (above - most) / 2;
            if accepts(middle) { most = middle } else { above = middle - 1 }
        }
        Self::Range { least, most, unit, words: Vec::new() }
    }

    /// The minimum and the maximum, or the first and the last.
    fn extremes(&self) -> [String; 2] {
        match self {
            Self::Range { least, most, unit, .. } => [format!("{least}{unit}"), format!("{most}{unit}")],
            Self::Listed(texts) => [texts[0].clone(), texts[texts.len() - 1].clone()],
        }
    }

    /// Weights of a range: 3 for extremes and words, 2 for values between, 2 for the default.
    fn strategy(self, default: String) -> BoxedStrategy<String> {
        match self {
            Self::Listed(texts) => prop::sample::select(texts).boxed(),
            Self::Range { least, most, unit, words } => {
                let ends = [least, (least + 1).min(most), most.saturating_sub(1).max(least), most];
                let ends = ends.map(|end| format!("{end}{unit}")).into_iter().chain(words).collect::<Vec<_>>();
                let between = (least..=most).prop_map(move |value| format!("{value}{unit}"));
                // Bounds are far apart, so most values between them are large.
                let magnitude =
                    (0..64_u32).prop_map(move |bits| format!("{}{unit}", 1_u64.wrapping_shl(bits).clamp(least, most)));
                prop_oneof![3 => prop::sample::select(ends), 1 => between, 1 => magnitude, 2 => Just(default)].boxed()
            }
        }
    }
}

impl World {
    /// A value for each setting, and how many routes there are.
    pub(crate) fn configurations(&self) -> impl Strategy<Value = Drawn> + use<> {
        let values = SETTINGS.iter().map(|setting| Values::of(setting, self).strategy(setting.default_text()));
        (values.collect::<Vec<_>>(), 0..3_usize).prop_map(|(values, routes)| Drawn { values, routes })
    }

    /// All settings at their minimum, and all at their maximum.
    pub(crate) fn extremes(&self) -> [Drawn; 2] {
        let ends: Vec<_> = SETTINGS.iter().map(|setting| Values::of(setting, self).extremes()).collect();
        [0, 1].map(|end| Drawn { values: ends.iter().map(|ends| ends[end].clone()).collect(), routes: 0 })
    }
}

impl Drawn {
    /// The value of a setting.
    pub(crate) fn get(&self, key: &str) -> &str {
        &self.values[place(key)]
    }

    /// The same with another value.
    #[must_use]
    pub(crate) fn with(mut self, key: &str, value: &str) -> Self {
        value.clone_into(&mut self.values[place(key)]);
        self
    }

    /// The same, with `other`'s values for these settings; routes go with `upstream`.
    #[must_use]
    pub(crate) fn but(mut self, other: &Self, keys: &[&str]) -> Self {
        if keys.contains(&"upstream") {
            self.routes = other.routes;
        }
        for key in keys {
            self.values[place(key)].clone_from(&other.values[place(key)]);
        }
        self
    }

    /// Writes a valid file: conflicting values, each within its bounds, are replaced by defaults until no conflict is
    /// left.
    ///
    /// # Panics
    /// A value within its setting's bounds is rejected.
    pub(crate) fn write(mut self, path: &Path) -> Self {
        let sources = Sources { config: Some(path.to_owned()), ..Sources::default() };
        loop {
            std::fs::write(path, self.text()).unwrap();
            let Err(Problems(problems)) = load(&sources) else { return self };
            let before = self.values.clone();
            for problem in problems {
                let Problem::Conflict(text) = problem else { panic!("rejected although within its bounds: {problem}") };
                let named = SETTINGS.iter().position(|it| {
                    text.contains(&format!("{} = ", it.key)) && self.values[place(it.key)] != it.default_text()
                });
                let at = named.unwrap_or_else(|| panic!("a conflict that no default solves: {text}"));
                self.values[at] = SETTINGS[at].default_text();
            }
            assert!(before != self.values);
        }
    }

    /// The file's text.
    fn text(&self) -> String {
        let (mut text, mut table) = (String::new(), "");
        for (setting, value) in SETTINGS.iter().zip(&self.values) {
            if setting.table() != table {
                table = setting.table();
                writeln!(text, "[{table}]").unwrap();
            }
            if setting.key == "upstream" && self.routes > 0 {
                continue;
            }
            let value = if setting.toml == TomlType::String { format!("{value:?}") } else { value.clone() };
            writeln!(text, "{} = {value}", setting.name()).unwrap();
        }
        for number in 0..self.routes {
            let name = number.to_string().repeat(63);
            let path = if number == 0 { "/" } else { "/longer" };
            let upstream = self.get("upstream");
            writeln!(text, "[[route]]\nname = {name:?}\npath = {path:?}\nupstream = {upstream:?}").unwrap();
        }
        text
    }
}

fn place(key: &str) -> usize {
    SETTINGS.iter().position(|setting| setting.key == key).expect("a key of the table")
}

/// Whether a setting accepts a value; conflicts with other settings are ignored.
fn is_within_bounds(setting: &'static Setting, text: &str) -> bool {
    let sources = Sources { flags: vec![(setting, text.to_owned())], ..Sources::default() };
    match load(&sources) {
        Ok(_) => true,
        Err(Problems(problems)) => problems.iter().all(|problem| matches!(problem, Problem::Conflict(_))),
    }
}
