//! The types of values: how they are written as text, and why a text is rejected.

use std::fmt::Display;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use humantime::format_duration;
use rustls::pki_types::ServerName;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::{DrainCode, LogFormat, WatchdogMode};
use crate::heartbeat::{Mode, Proof};
use crate::metrics::Detail;
use crate::streamlit::ack::AckForm;

/// The longest timeout: one day.
pub const DAY: Duration = Duration::from_secs(86_400);

/// The longest duration that a heartbeat may wait for anything: one hour.
const HOUR: Duration = Duration::from_secs(3_600);

/// The text for a disabled duration.
const OFF: &str = "off";

/// No process has file descriptors for more connections.
const MILLION: usize = 1_000_000;

/// Why a value is rejected: names the value and the allowed form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(pub(super) String);

impl InvalidValue {
    /// With this message.
    pub(crate) fn new(reason: String) -> Self {
        Self(reason)
    }
}

/// The type of a value in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TomlType {
    /// In quotes.
    String,
    /// `true` or `false`.
    Boolean,
    /// In digits.
    Integer,
}

/// A type of values.
pub(super) struct Type<T> {
    /// Its type in the file.
    pub(super) toml: TomlType,
    /// Its placeholder in the help.
    pub(super) name: &'static str,
    /// Rejects any text that is not a value.
    pub(super) parse: fn(&str) -> Result<T, InvalidValue>,
    /// A text that `parse` accepts.
    pub(super) text: fn(&T) -> String,
}

/// An address to listen on. Names are not looked up: the bound address must not depend on a resolver.
pub(super) const ADDRESS: Type<SocketAddr> = string("IP:PORT", address, ToString::to_string);
pub(super) const LOG_LEVEL: Type<String> = string("LEVEL", log_filter, Clone::clone);
pub(super) const UP_TO_A_DAY: Type<Duration> = string("DURATION", |text| duration(text, DAY), duration_text);
pub(super) const UP_TO_AN_HOUR: Type<Duration> = string("DURATION", |text| duration(text, HOUR), duration_text);
/// At most a day; `0s` is allowed.
pub(super) const PAUSE: Type<Duration> = string("DURATION", pause, duration_text);
/// At most an hour, or `off`.
pub(super) const OPTIONAL_INTERVAL: Type<Option<Duration>> =
    string("DURATION|off", optional_interval, |value| value.as_ref().map_or_else(|| OFF.to_owned(), duration_text));
/// The path of a file; empty text is none. Every path comes from text.
pub(super) const FILE: Type<Option<PathBuf>> =
    string("FILE", file, |file| file.as_ref().map_or_else(String::new, |file| file.display().to_string()));
/// A name or an IP address that a certificate can be for; empty text is none.
pub(super) const SERVER_NAME: Type<Option<ServerName<'static>>> =
    string("NAME", server_name, |name| name.as_ref().map_or_else(String::new, |name| name.to_str().into_owned()));
pub(super) const SWITCH: Type<bool> = Type { toml: TomlType::Boolean, ..words() };
pub(super) const CLOSE_CODE: Type<DrainCode> = Type { toml: TomlType::Integer, ..words() };
/// A limit; 0 is none.
pub(super) const COUNT: Type<Option<NonZeroUsize>> = Type {
    toml: TomlType::Integer,
    name: "NUMBER",
    parse: |text| number(text, 0..=MILLION).map(NonZeroUsize::new),
    text: |count| count.map_or(0, NonZeroUsize::get).to_string(),
};
/// A number of sessions; at least one.
pub(super) const PARKED: Type<usize> = Type { name: "NUMBER", ..bytes::<1, MILLION>() };
/// From one MiB to 16 GiB.
pub(super) const PARKED_BYTES: Type<u64> = Type {
    toml: TomlType::Integer,
    name: "BYTES",
    parse: |text| number(text, 1 << 20..=1 << 34),
    text: ToString::to_string,
};
/// A limit per second; 0 is none.
pub(super) const RATE: Type<Option<NonZeroU32>> = Type {
    toml: TomlType::Integer,
    name: "NUMBER",
    parse: |text| number(text, 0..=MILLION).map(|rate| u32::try_from(rate).ok().and_then(NonZeroU32::new)),
    text: |rate| rate.map_or(0, NonZeroU32::get).to_string(),
};

/// A type that parses and prints itself.
pub(super) const fn text<T: FromStr<Err = InvalidValue> + Display>(name: &'static str) -> Type<T> {
    string(name, str::parse, ToString::to_string)
}

/// A number of bytes within bounds.
pub(super) const fn bytes<const MIN: usize, const MAX: usize>() -> Type<usize> {
    let parse = |text: &str| number(text, MIN..=MAX);
    Type { toml: TomlType::Integer, name: "BYTES", parse, text: ToString::to_string }
}

const fn string<T>(name: &'static str, parse: fn(&str) -> Result<T, InvalidValue>, text: fn(&T) -> String) -> Type<T> {
    Type { toml: TomlType::String, name, parse, text }
}

/// One of the words of `T`.
pub(super) const fn words<T: Words>() -> Type<T> {
    let parse = |text: &str| {
        let value = T::WORDS.iter().find(|(_, word)| *word == text).map(|(value, _)| *value);
        let words = || T::WORDS.iter().map(|(_, word)| *word).collect::<Vec<_>>().join(", ");
        value.ok_or_else(|| InvalidValue(format!("{text:?} is not one of {}", words())))
    };
    let text = |value: &T| {
        let word = T::WORDS.iter().find(|(it, _)| it == value);
        word.expect("`words!` names every value").1.to_owned()
    };
    string(T::NAME, parse, text)
}

/// A value that is one of a few words.
pub(super) trait Words: Copy + PartialEq + 'static {
    /// Every value with its word, in the order used in messages.
    const WORDS: &'static [(Self, &'static str)];
    /// The words with `|` between.
    const NAME: &'static str;
}

/// The words of every type of values.
macro_rules! words {
    ($($type:ty: $first:expr => $word:literal $(, $other:expr => $other_word:literal)*;)*) => {$(
        impl Words for $type {
            const WORDS: &'static [(Self, &'static str)] = &[($first, $word) $(, ($other, $other_word))*];
            const NAME: &'static str = concat!($word $(, "|", $other_word)*);
        }
    )*};
}

words! {
    bool: true => "true", false => "false";
    Mode: Self::Auto => "auto", Self::Answer => "answer", Self::Forward => "forward";
    Proof: Self::Pong => "pong", Self::Connection => "connection";
    AckForm: Self::Compatible => "compatible", Self::Plain => "plain";
    WatchdogMode: Self::Off => "off", Self::Host => "host", Self::Page => "self";
    DrainCode: Self::GoingAway => "1001", Self::ServiceRestart => "1012";
    LogFormat: Self::Text => "text", Self::Json => "json";
    Detail: Self::Full => "full", Self::Lean => "lean";
}

fn address(text: &str) -> Result<SocketAddr, InvalidValue> {
    text.parse().map_err(|_| {
        InvalidValue(format!("{text:?} is not a socket address: write IP:PORT, such as 0.0.0.0:8500 or [::]:8500"))
    })
}

/// A duration with a unit, more than zero and at most `limit`.
///
/// # Errors
/// Any other text, with the form and the limit in the message.
pub fn duration(text: &str, limit: Duration) -> Result<Duration, InvalidValue> {
    let value = any_duration(text)?;
    if value.is_zero() || value > limit {
        let limit = format_duration(limit);
        return Err(InvalidValue(format!("{text:?} is out of range: write more than 0s and at most {limit}")));
    }
    Ok(value)
}

fn optional_interval(text: &str) -> Result<Option<Duration>, InvalidValue> {
    if text == OFF {
        return Ok(None);
    }
    duration(text, HOUR).map(Some).map_err(|InvalidValue(reason)| InvalidValue(format!("{reason}, or {OFF}")))
}

fn pause(text: &str) -> Result<Duration, InvalidValue> {
    let value = any_duration(text)?;
    if value > DAY {
        return Err(InvalidValue(format!("{text:?} is out of range: write at most {}", format_duration(DAY))));
    }
    Ok(value)
}

fn any_duration(text: &str) -> Result<Duration, InvalidValue> {
    humantime::parse_duration(text).map_err(|_| {
        InvalidValue(format!("{text:?} is not a duration: write a number and a unit, such as 500ms, 2s or 1m 30s"))
    })
}

fn duration_text(value: &Duration) -> String {
    format_duration(*value).to_string()
}

/// A number within bounds, in digits.
fn number<T>(text: &str, bounds: RangeInclusive<T>) -> Result<T, InvalidValue>
where
    T: FromStr + PartialOrd + Display,
{
    let (least, most) = (bounds.start(), bounds.end());
    let value = text.parse().map_err(|_| InvalidValue(format!("{text:?} is not a number from {least} to {most}")))?;
    if bounds.contains(&value) {
        return Ok(value);
    }
    Err(InvalidValue(format!("{text} is out of range: write a number from {least} to {most}")))
}

fn file(text: &str) -> Result<Option<PathBuf>, InvalidValue> {
    if text.ends_with('/') {
        return Err(InvalidValue(format!("{text:?} is a folder: write the path of a file, or nothing")));
    }
    Ok((!text.is_empty()).then(|| text.into()))
}

fn server_name(text: &str) -> Result<Option<ServerName<'static>>, InvalidValue> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = ServerName::try_from(text.to_owned());
    name.map(Some)
        .map_err(|_| InvalidValue(format!("{text:?} is not a server name: write a host name or an IP address")))
}

/// A filter for log lines: a level, or directives `TARGET=LEVEL` and levels with commas between.
///
/// `EnvFilter` takes a bare word that is not a level for a target, so a misspelt level would silence the log.
fn log_filter(text: &str) -> Result<String, InvalidValue> {
    let misspelt = |part: &str| !part.contains('=') && (part.is_empty() || part.parse::<LevelFilter>().is_err());
    if text.split(',').any(misspelt) || EnvFilter::builder().parse(text).is_err() {
        return Err(InvalidValue(format!(
            "{text:?} is not a log level: write error, warn, info, debug or trace, or a filter such as \
             info,heartbeat_sidecar=debug"
        )));
    }
    Ok(text.to_owned())
}
