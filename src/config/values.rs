//! Parses the texts of values, or rejects them with a message for the user.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::{DrainCode, LogFormat, WatchdogMode};
use crate::heartbeat::{Mode, Proof};
use crate::metrics::Detail;
use crate::streamlit::ack::AckForm;

/// The longest timeout: one day.
pub const DAY: Duration = Duration::from_secs(86_400);

/// The longest duration that a heartbeat may wait for anything: one hour.
pub(super) const HOUR: Duration = Duration::from_secs(3_600);

/// Why a value is rejected: names the value and the allowed form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub(super) String);

impl Invalid {
    /// With this message.
    pub(crate) fn new(reason: String) -> Self {
        Self(reason)
    }
}

/// A value that is one of a few words.
pub(super) trait Choice: Copy + 'static {
    /// Every value, in the order used in messages.
    const ALL: &'static [Self];

    /// The word.
    fn word(self) -> &'static str;
}

impl Choice for Mode {
    const ALL: &'static [Self] = &[Self::Auto, Self::Answer, Self::Forward];

    fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Answer => "answer",
            Self::Forward => "forward",
        }
    }
}

impl Choice for Proof {
    const ALL: &'static [Self] = &[Self::Pong, Self::Connection];

    fn word(self) -> &'static str {
        match self {
            Self::Pong => "pong",
            Self::Connection => "connection",
        }
    }
}

impl Choice for AckForm {
    const ALL: &'static [Self] = &[Self::Compatible, Self::Plain];

    fn word(self) -> &'static str {
        match self {
            Self::Compatible => "compatible",
            Self::Plain => "plain",
        }
    }
}

impl Choice for LogFormat {
    const ALL: &'static [Self] = &[Self::Text, Self::Json];

    fn word(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl Choice for WatchdogMode {
    const ALL: &'static [Self] = &[Self::Off, Self::Host, Self::Page];

    fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Host => "host",
            Self::Page => "self",
        }
    }
}

impl Choice for Detail {
    const ALL: &'static [Self] = &[Self::Full, Self::Lean];

    fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Lean => "lean",
        }
    }
}

impl Choice for DrainCode {
    const ALL: &'static [Self] = &[Self::GoingAway, Self::ServiceRestart];

    fn word(self) -> &'static str {
        match self {
            Self::GoingAway => "1001",
            Self::ServiceRestart => "1012",
        }
    }
}

impl Choice for bool {
    const ALL: &'static [Self] = &[true, false];

    fn word(self) -> &'static str {
        if self { "true" } else { "false" }
    }
}

/// One of the words of `T`.
pub(super) fn choice<T: Choice>(text: &str) -> Result<T, Invalid> {
    T::ALL.iter().copied().find(|value| value.word() == text).ok_or_else(|| {
        let words: Vec<_> = T::ALL.iter().map(|value| value.word()).collect();
        Invalid(format!("{text:?} is none of {}", words.join(", ")))
    })
}

/// An address to listen on. Names are not looked up: the bound address must not depend on a resolver.
pub(super) fn address(text: &str) -> Result<SocketAddr, Invalid> {
    text.parse().map_err(|_| {
        Invalid(format!("{text:?} is no socket address: write IP:PORT, such as 0.0.0.0:8500 or [::]:8500"))
    })
}

/// A duration with a unit, more than zero and at most `limit`.
///
/// # Errors
/// Any other text, with the form and the limit in the message.
pub fn duration(text: &str, limit: Duration) -> Result<Duration, Invalid> {
    let value = any_duration(text)?;
    if value.is_zero() || value > limit {
        let limit = humantime::format_duration(limit);
        return Err(Invalid(format!("{text:?} is out of bounds: more than 0s and at most {limit}")));
    }
    Ok(value)
}

/// The text for a disabled duration.
const OFF: &str = "off";

/// A duration as in [`duration`], or `off`.
pub(super) fn optional_duration(text: &str, limit: Duration) -> Result<Option<Duration>, Invalid> {
    if text == OFF {
        return Ok(None);
    }
    duration(text, limit).map(Some).map_err(|Invalid(why)| Invalid(format!("{why}, or {OFF}")))
}

/// The text that [`optional_duration`] parses.
pub(super) fn optional(value: Option<Duration>) -> String {
    value.map_or_else(|| OFF.to_owned(), |value| humantime::format_duration(value).to_string())
}

/// A duration with a unit, at most `limit`; `0s` is allowed.
pub(super) fn pause(text: &str, limit: Duration) -> Result<Duration, Invalid> {
    let value = any_duration(text)?;
    if value > limit {
        let limit = humantime::format_duration(limit);
        return Err(Invalid(format!("{text:?} is out of bounds: at most {limit}")));
    }
    Ok(value)
}

fn any_duration(text: &str) -> Result<Duration, Invalid> {
    humantime::parse_duration(text).map_err(|_| {
        Invalid(format!("{text:?} is no duration: write a number and a unit, such as 500ms, 2s or 1m 30s"))
    })
}

/// A number within bounds, in digits.
pub(super) fn number(text: &str, bounds: RangeInclusive<usize>) -> Result<usize, Invalid> {
    let (least, most) = (bounds.start(), bounds.end());
    let value = text.parse().map_err(|_| Invalid(format!("{text:?} is no number between {least} and {most}")))?;
    if bounds.contains(&value) {
        return Ok(value);
    }
    Err(Invalid(format!("{text} is out of bounds: at least {least} and at most {most}")))
}

/// A filter for log lines: a level, or directives `TARGET=LEVEL` and levels with commas between.
///
/// `EnvFilter` takes a bare word that is not a level for a target, so a misspelt level would silence the log.
pub(super) fn log_filter(text: &str) -> Result<String, Invalid> {
    let misspelt = |part: &str| !part.contains('=') && (part.is_empty() || part.parse::<LevelFilter>().is_err());
    if text.split(',').any(misspelt) || EnvFilter::builder().parse(text).is_err() {
        return Err(Invalid(format!(
            "{text:?} is no log level: write error, warn, info, debug or trace, or a filter such as \
             info,heartbeat_sidecar=debug"
        )));
    }
    Ok(text.to_owned())
}
