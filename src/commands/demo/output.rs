//! The demo's output: lines and columns on stdout, in colour on a terminal.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Style};

use super::results::Act;

/// Stdout.
pub(super) struct Output {
    colour: bool,
}

/// The meaning of a line, shown by its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Title,
    Good,
    Waiting,
    Bad,
}

/// A row of the table.
pub(super) struct Row<'a> {
    /// Since the first heartbeat.
    pub(super) time: Duration,
    pub(super) act: Act,
    pub(super) heartbeat: u32,
    pub(super) answered_by: &'a str,
    pub(super) latency: String,
    pub(super) tone: Tone,
}

impl Output {
    /// Uses colour on a terminal, unless `NO_COLOR` is set and not empty.
    pub(super) fn new() -> Self {
        let disabled = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: io::stdout().is_terminal() && !disabled }
    }

    /// Writes a line.
    ///
    /// # Errors
    /// Stdout is closed.
    pub(super) fn line(&self, tone: Tone, text: impl Display) -> io::Result<()> {
        writeln!(io::stdout(), "{}", self.styled(tone, text))
    }

    /// Writes the column headers.
    ///
    /// # Errors
    /// Stdout is closed.
    pub(super) fn header(&self) -> io::Result<()> {
        self.line(Tone::Title, columns("time", "act", "heartbeat", "answered by", "latency"))
    }

    /// Writes a row.
    ///
    /// # Errors
    /// Stdout is closed.
    pub(super) fn row(&self, row: &Row<'_>) -> io::Result<()> {
        let Row { time, act, heartbeat, answered_by, latency, tone } = row;
        let time = format!("{:.1} s", time.as_secs_f64());
        let latency = self.styled(*tone, latency);
        self.line(Tone::Plain, columns(&time, act.name(), &heartbeat.to_string(), answered_by, &latency))
    }

    /// Writes an event of an act.
    ///
    /// # Errors
    /// Stdout is closed.
    pub(super) fn note(&self, time: Duration, act: Act, text: impl Display, tone: Tone) -> io::Result<()> {
        let text = self.styled(tone, text);
        self.line(Tone::Plain, format_args!("{:>6.1} s  {:<6}  {text}", time.as_secs_f64(), act.name()))
    }

    fn styled(&self, tone: Tone, text: impl Display) -> String {
        let style = if self.colour { tone.style() } else { Style::new() };
        format!("{style}{text}{style:#}")
    }
}

impl Tone {
    fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Title => Style::new().bold(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Waiting => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
        }
    }
}

fn columns(time: &str, act: &str, heartbeat: &str, answered_by: &str, latency: &str) -> String {
    format!("{time:>8}  {act:<6}  {heartbeat:>9}  {answered_by:<11}  {latency}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_aligned_with_their_column_headers() {
        let heads = columns("time", "act", "heartbeat", "answered by", "latency");
        let row = columns("10.5 s", "frozen", "21", "none", "withheld");
        for (head, value) in [("act", "frozen"), ("answered by", "none"), ("latency", "withheld")] {
            assert_eq!(heads.find(head), row.find(value), "{head}");
        }
    }

    #[test]
    fn colour_is_used_only_if_enabled() {
        assert_eq!(Output { colour: false }.styled(Tone::Bad, "x"), "x");
        assert_eq!(Output { colour: true }.styled(Tone::Plain, "x"), "x");
        let styled = Output { colour: true }.styled(Tone::Good, "x");
        assert!(styled.starts_with("\x1b[") && styled.ends_with("\x1b[0m"), "{styled:?}");
    }
}
