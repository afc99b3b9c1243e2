//! Records the ack of each heartbeat of the demo, and judges them.

use std::fmt;
use std::time::Duration;

use crate::commands::probe::ledger::{Figures, Latencies};

/// A part of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// The app server runs.
    Alive,
    /// It is stopped.
    Frozen,
    /// It runs again.
    Thawed,
}

/// A heartbeat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    /// The act in which it was sent.
    pub(super) act: Act,
    /// Its ack.
    pub(super) ack: Option<Ack>,
}

/// An ack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ack {
    /// The act in which it came.
    pub(super) act: Act,
    /// From heartbeat to ack.
    pub(super) waited: Duration,
}

/// Every heartbeat of the demo, in the order in which they were sent.
#[derive(Debug, Default)]
pub(super) struct Story {
    beats: Vec<Beat>,
    /// Acks that answer no heartbeat.
    unasked: u32,
}

/// The result; heartbeats are numbered from 1.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Heartbeats to the running app server that got no ack in the same act.
    missing: Vec<usize>,
    /// Heartbeats that were acked while the app server was frozen.
    lies: Vec<usize>,
    unasked: u32,
}

impl Act {
    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Frozen => "frozen",
            Self::Thawed => "thawed",
        }
    }
}

impl Beat {
    /// The app server was frozen all the time from heartbeat to ack.
    fn is_lie(&self) -> bool {
        self.act == Act::Frozen && self.ack.is_some_and(|ack| ack.act != Act::Thawed)
    }

    /// The app server ran, and no ack came in the same act.
    fn is_missing(&self) -> bool {
        self.act != Act::Frozen && self.ack.is_none_or(|ack| ack.act != self.act)
    }
}

impl Story {
    /// A heartbeat is sent.
    pub(super) fn on_sent(&mut self, act: Act) {
        self.beats.push(Beat { act, ack: None });
    }

    /// Heartbeat `number` is acked; returns whether that is a lie.
    pub(super) fn on_ack(&mut self, number: u32, ack: Ack) -> bool {
        let at = usize::try_from(number).unwrap_or(usize::MAX).wrapping_sub(1);
        let Some(beat) = self.beats.get_mut(at) else {
            self.unasked += 1;
            return true;
        };
        beat.ack = Some(ack);
        beat.is_lie()
    }

    /// An ack came that answers no heartbeat.
    pub(super) fn on_unasked_ack(&mut self) {
        self.unasked += 1;
    }

    /// Ack latencies of heartbeats to the running server.
    pub(super) fn prompt(&self) -> Figures {
        let mut latencies = Latencies::default();
        let prompt = self.beats.iter().filter(|beat| beat.act != Act::Frozen).filter_map(|beat| beat.ack);
        prompt.for_each(|ack| latencies.push(ack.waited));
        latencies.figures()
    }

    /// The number of heartbeats to the frozen server, and how many of them were acked after the thaw.
    pub(super) fn late(&self) -> (usize, usize) {
        let frozen = || self.beats.iter().filter(|beat| beat.act == Act::Frozen);
        (frozen().count(), frozen().filter(|beat| beat.ack.is_some_and(|ack| ack.act == Act::Thawed)).count())
    }

    /// Judges the acks. Heartbeats of the frozen act need none.
    pub(super) fn judge(&self) -> Verdict {
        let numbers = |of: fn(&Beat) -> bool| {
            let found = (1..).zip(&self.beats).filter(|(_, beat)| of(beat));
            found.map(|(number, _)| number).collect()
        };
        Verdict { missing: numbers(Beat::is_missing), lies: numbers(Beat::is_lie), unasked: self.unasked }
    }
}

impl Verdict {
    /// Nothing is wrong.
    pub(super) fn is_good(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_good() {
            return f.write_str("every ack came while the app server lived, none while it was frozen");
        }
        let numbers = |beats: &[usize]| beats.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let mut wrong = Vec::new();
        if !self.lies.is_empty() {
            wrong.push(format!(
                "a lie was told: the app server was frozen when heartbeat {} was acked",
                numbers(&self.lies)
            ));
        }
        if self.unasked > 0 {
            wrong.push(format!("a lie was told: more acks than heartbeats ({} more)", self.unasked));
        }
        if !self.missing.is_empty() {
            wrong.push(format!("an ack was missing: heartbeat {}", numbers(&self.missing)));
        }
        f.write_str(&wrong.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heartbeats, with the act of each and of its ack.
    fn story(beats: &[(Act, Option<Act>)]) -> Story {
        let mut story = Story::default();
        for (number, (act, acked)) in (1..).zip(beats) {
            story.on_sent(*act);
            if let Some(act) = *acked {
                story.on_ack(number, Ack { act, waited: Duration::from_millis(u64::from(number)) });
            }
        }
        story
    }

    #[test]
    fn prompt_acks_and_late_acks_after_the_thaw_are_good() {
        let told = story(&[
            (Act::Alive, Some(Act::Alive)),
            (Act::Frozen, Some(Act::Thawed)),
            (Act::Frozen, None),
            (Act::Thawed, Some(Act::Thawed)),
        ]);
        assert!(told.judge().is_good());
        assert_eq!(told.late(), (2, 1));
        assert_eq!(told.prompt().min, Some(Duration::from_millis(1)));
        assert_eq!(told.prompt().max, Some(Duration::from_millis(4)), "late acks are not among the prompt ones");
    }

    #[test]
    fn an_ack_that_does_not_come_within_its_act_is_missing() {
        let told = story(&[(Act::Alive, None), (Act::Alive, Some(Act::Thawed)), (Act::Thawed, None)]);
        let verdict = told.judge();
        assert!(!verdict.is_good());
        assert_eq!(verdict.to_string(), "an ack was missing: heartbeat 1, 2, 3");
    }

    #[test]
    fn an_ack_during_the_freeze_is_a_lie() {
        let told = story(&[(Act::Alive, Some(Act::Alive)), (Act::Frozen, Some(Act::Frozen))]);
        let verdict = told.judge();
        assert!(!verdict.is_good());
        assert_eq!(verdict.to_string(), "a lie was told: the app server was frozen when heartbeat 2 was acked");
    }

    #[test]
    fn an_ack_without_a_heartbeat_is_a_lie() {
        let mut told = story(&[(Act::Alive, Some(Act::Alive))]);
        told.on_unasked_ack();
        assert_eq!(told.judge().to_string(), "a lie was told: more acks than heartbeats (1 more)");
    }
}
