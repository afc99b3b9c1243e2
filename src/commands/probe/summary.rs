//! The result of a probe, as text and as JSON, and whether it is a success.

use std::fmt;

use serde::Serialize;

use super::browser::AnsweredBy;
use super::heartbeats::{LatencySummary, format_latency};

/// The result of a probe. Its field names are the keys of its JSON and must not change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Summary {
    /// The message stream, without query.
    pub(crate) url: String,
    /// As the server sent it.
    pub(crate) server_version: Option<String>,
    /// `None` if nothing did.
    pub(crate) answered_by: Option<Answerers>,
    /// How many heartbeats were to be sent.
    pub(crate) requested: u32,
    /// How many were sent.
    pub(crate) sent: u32,
    /// How many got an ack in time.
    pub(crate) acked: u32,
    /// How many sent heartbeats got none in time.
    pub(crate) missed: u32,
    /// How many were not sent, because the connection failed or ended, or the probe was interrupted.
    pub(crate) not_sent: u32,
    /// How many of the missed got an ack while the probe still ran.
    pub(crate) late: u32,
    /// Of the acks in time.
    pub(crate) latency_seconds: LatencySummary,
    /// The probe was interrupted.
    pub(crate) interrupted: bool,
    /// Why the connection could not be made, or was lost.
    pub(crate) error: Option<String>,
    /// How often the probe cut its own connection.
    pub(crate) cuts: u32,
    /// How many of these connections were resumed.
    pub(crate) resumed: u32,
    /// How many heartbeats never got an ack: one of the two was lost.
    pub(crate) lost: u32,
    /// How many acks came for no heartbeat: one of the two arrived twice.
    pub(crate) doubled: u32,
}

/// Which side answered heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answerers {
    Sidecar,
    Upstream,
    Both,
}

impl Summary {
    /// Whether every requested heartbeat got its ack in time, and no cut had an effect; a heartbeat that was not sent got
    /// none.
    pub(crate) fn is_success(&self) -> bool {
        let is_unharmed = self.cuts == 0 || (self.resumed == self.cuts && self.lost == 0 && self.doubled == 0);
        self.acked == self.requested && !self.interrupted && self.error.is_none() && is_unharmed
    }

    /// As one line of JSON.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }
}

impl Answerers {
    /// Adds one to those so far.
    pub(crate) fn and(earlier: Option<Self>, one: AnsweredBy) -> Self {
        match (earlier, one) {
            (None | Some(Self::Sidecar), AnsweredBy::Sidecar) => Self::Sidecar,
            (None | Some(Self::Upstream), AnsweredBy::Upstream) => Self::Upstream,
            (Some(_), _) => Self::Both,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Upstream => "upstream",
            Self::Both => "sidecar and upstream",
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format = |latency: Option<_>| latency.map_or_else(|| "-".to_owned(), format_latency);
        let LatencySummary { min, median, p99, max } = self.latency_seconds;
        writeln!(f, "stream          {}", self.url)?;
        writeln!(f, "server version  {}", self.server_version.as_deref().unwrap_or("unknown"))?;
        writeln!(f, "answered by     {}", self.answered_by.map_or("none", Answerers::name))?;
        write!(f, "heartbeats      {} sent, {} acked, {} missed", self.sent, self.acked, self.missed)?;
        if self.late > 0 {
            write!(f, " ({} of them acked late)", self.late)?;
        }
        if self.not_sent > 0 {
            write!(f, ", {} not sent", self.not_sent)?;
        }
        match (&self.error, self.interrupted) {
            (Some(error), _) => writeln!(f, ": {error}")?,
            (None, true) => writeln!(f, ": interrupted")?,
            (None, false) => writeln!(f)?,
        }
        if self.cuts > 0 {
            let Self { cuts, resumed, lost, doubled, .. } = self;
            writeln!(f, "cuts            {cuts} made, {resumed} resumed; messages: {lost} lost, {doubled} doubled")?;
        }
        let [min, median, p99, max] = [min, median, p99, max].map(format);
        write!(f, "ack latency     min {min}, median {median}, p99 {p99}, max {max}")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn good() -> Summary {
        let latency_seconds = LatencySummary { min: Some(Duration::from_micros(250)), ..LatencySummary::default() };
        Summary {
            url: "ws://app/stream".to_owned(),
            requested: 3,
            sent: 3,
            acked: 3,
            latency_seconds,
            ..Summary::default()
        }
    }

    #[test]
    fn only_acks_in_time_for_every_heartbeat_are_success() {
        assert!(good().is_success());
        assert!(!Summary { acked: 2, missed: 1, ..good() }.is_success());
        assert!(!Summary { acked: 2, missed: 1, late: 1, ..good() }.is_success());
        assert!(!Summary { requested: 4, not_sent: 1, ..good() }.is_success());
        assert!(!Summary { interrupted: true, ..good() }.is_success());
        assert!(!Summary { error: Some("gone".to_owned()), ..good() }.is_success());
    }

    #[test]
    fn cuts_are_a_success_if_all_were_resumed_and_nothing_was_lost_or_doubled() {
        let cut = || Summary { cuts: 2, resumed: 2, ..good() };
        assert!(cut().is_success());
        assert!(!Summary { resumed: 1, ..cut() }.is_success());
        assert!(!Summary { lost: 1, ..cut() }.is_success());
        assert!(!Summary { doubled: 1, ..cut() }.is_success());
        let text = Summary { lost: 3, doubled: 4, ..cut() }.to_string();
        assert!(text.contains("\ncuts            2 made, 2 resumed; messages: 3 lost, 4 doubled\n"), "{text}");
    }

    #[test]
    fn the_text_marks_missing_values() {
        let text = Summary { acked: 1, missed: 2, late: 1, ..good() }.to_string();
        assert_eq!(
            text,
            "\
stream          ws://app/stream
server version  unknown
answered by     none
heartbeats      3 sent, 1 acked, 2 missed (1 of them acked late)
ack latency     min 0.25 ms, median -, p99 -, max -"
        );
    }

    #[test]
    fn the_text_names_why_heartbeats_were_not_sent() {
        let heartbeats = |summary: Summary| {
            let text = summary.to_string();
            text.lines().find_map(|line| line.strip_prefix("heartbeats      ")).expect("a line").to_owned()
        };
        let closed = Summary { requested: 40, sent: 16, acked: 16, not_sent: 24, ..good() };
        let error = Some("closed by the server (1001)".to_owned());
        assert_eq!(
            heartbeats(Summary { error: error.clone(), ..closed.clone() }),
            "16 sent, 16 acked, 0 missed, 24 not sent: closed by the server (1001)"
        );
        assert_eq!(
            heartbeats(Summary { interrupted: true, ..closed }),
            "16 sent, 16 acked, 0 missed, 24 not sent: interrupted"
        );
        assert_eq!(
            heartbeats(Summary { acked: 2, missed: 1, error, ..good() }),
            "3 sent, 2 acked, 1 missed: closed by the server (1001)"
        );
        assert_eq!(heartbeats(good()), "3 sent, 3 acked, 0 missed");
    }

    #[test]
    fn the_json_keys_do_not_change() {
        let json = Summary { server_version: Some("1.53.1".to_owned()), ..good() }.json();
        assert_eq!(
            json,
            "{\"url\":\"ws://app/stream\",\"server_version\":\"1.53.1\",\"answered_by\":null,\"requested\":3,\"sent\":3,\
             \"acked\":3,\"missed\":0,\"not_sent\":0,\"late\":0,\"latency_seconds\":{\"min\":0.00025,\"median\":null,\"p99\":null,\
             \"max\":null},\"interrupted\":false,\"error\":null,\"cuts\":0,\"resumed\":0,\"lost\":0,\"doubled\":0}"
        );
    }

    #[test]
    fn acks_of_both_sides_are_both() {
        let (sidecar, upstream) = (AnsweredBy::Sidecar, AnsweredBy::Upstream);
        let of = |acks: &[AnsweredBy]| acks.iter().fold(None, |earlier, one| Some(Answerers::and(earlier, *one)));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[sidecar, sidecar]), Some(Answerers::Sidecar));
        assert_eq!(of(&[upstream]), Some(Answerers::Upstream));
        assert_eq!(of(&[upstream, sidecar, upstream]), Some(Answerers::Both));
    }
}
