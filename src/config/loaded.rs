//! A loaded configuration: its values with their sources, or the problems that prevent it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Config;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
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

/// A configuration, with its sources and warnings.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every setting, in the order of [`SETTINGS`](super::SETTINGS).
    pub settings: Vec<Effective>,
    /// Every route, in the order of the file: its keys below `[[route]]`.
    pub routes: Vec<Vec<Effective>>,
    /// Every further certificate, in the order of the file: its keys below `[[tls.certificates]]`.
    pub certificates: Vec<Vec<Effective>>,
    /// Warnings, one line each.
    pub warnings: Vec<String>,
}

/// The effective value of a setting. `Display` is the form of messages: `admin = "127.0.0.1:9600" (--admin)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The key, with its table.
    pub key: &'static str,
    /// The value, in normalized form.
    pub value: String,
    /// Where it comes from.
    pub source: Source,
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
    /// A source contains something invalid.
    #[error("{at}: {reason}")]
    Invalid {
        /// Where.
        at: Source,
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

impl Loaded {
    /// A setting of the table.
    ///
    /// # Panics
    /// There is no such key.
    pub fn setting(&self, key: &str) -> &Effective {
        find(&self.settings, key)
    }

    /// A setting of an app, in the order of [`Config::apps`]. Routes share it with the top level.
    pub(super) fn setting_of(&self, app: usize, key: &str) -> &Effective {
        self.routes.get(app).map_or_else(|| self.setting(key), |route| find(route, key))
    }
}

fn find<'a>(settings: &'a [Effective], key: &str) -> &'a Effective {
    settings.iter().find(|setting| setting.key == key).expect("callers name known keys")
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:?} ({})", self.key, self.value, self.source)
    }
}
