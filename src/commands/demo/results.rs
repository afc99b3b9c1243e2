//! Records the ack of each heartbeat of the demo, and finds the missing and the false ones.

use std::fmt;
use std::time::Duration;

use crate::commands::probe::heartbeats::{Latencies, LatencySummary};

/// A part of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// The app runs.
    Alive,
    /// It runs, and the network between browser and sidecar fails for a time.
    Cut,
    /// It is stopped.
    Frozen,
    /// It runs again.
    Thawed,
}

/// A heartbeat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heartbeat {
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
pub(super) struct Results {
    heartbeats: Vec<Heartbeat>,
    /// Acks that answer no heartbeat.
    unexpected: u32,
}

/// What is wrong; heartbeats are numbered from 1.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// Heartbeats to the running app that got no ack in the same act.
    missing: Vec<usize>,
    /// Heartbeats that were acked while the app was frozen.
    false_acks: Vec<usize>,
    unexpected: u32,
}

impl Act {
    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Cut => "cut",
            Self::Frozen => "frozen",
            Self::Thawed => "thawed",
        }
    }
}

impl Heartbeat {
    /// The app was frozen all the time from heartbeat to ack.
    fn has_false_ack(&self) -> bool {
        self.act == Act::Frozen && self.ack.is_some_and(|ack| ack.act != Act::Thawed)
    }

    /// The app ran, and no ack came in the same act.
    fn lacks_ack(&self) -> bool {
        self.act != Act::Frozen && self.ack.is_none_or(|ack| ack.act != self.act)
    }
}

impl Results {
    /// A heartbeat is sent.
    pub(super) fn on_sent(&mut self, act: Act) {
        self.heartbeats.push(Heartbeat { act, ack: None });
    }

    /// Heartbeat `number` is acked; returns whether the ack is false.
    pub(super) fn on_ack(&mut self, number: u32, ack: Ack) -> bool {
        let at = usize::try_from(number).unwrap_or(usize::MAX).wrapping_sub(1);
        let Some(heartbeat) = self.heartbeats.get_mut(at) else {
            self.unexpected += 1;
            return true;
        };
        heartbeat.ack = Some(ack);
        heartbeat.has_false_ack()
    }

    /// An ack came that answers no heartbeat.
    pub(super) fn on_unexpected_ack(&mut self) {
        self.unexpected += 1;
    }

    /// Ack latencies of heartbeats to the running server over a working network.
    pub(super) fn prompt_latency(&self) -> LatencySummary {
        let mut latencies = Latencies::default();
        let prompt = self
            .heartbeats
            .iter()
            .filter(|heartbeat| matches!(heartbeat.act, Act::Alive | Act::Thawed))
            .filter_map(|heartbeat| heartbeat.ack);
        prompt.for_each(|ack| latencies.push(ack.waited));
        latencies.summary()
    }

    /// The number of heartbeats to the frozen server, and how many of them were acked after the thaw.
    pub(super) fn frozen(&self) -> (usize, usize) {
        let sent = || self.heartbeats.iter().filter(|heartbeat| heartbeat.act == Act::Frozen);
        (sent().count(), sent().filter(|heartbeat| heartbeat.ack.is_some_and(|ack| ack.act == Act::Thawed)).count())
    }

    /// The missing and the false acks. Heartbeats of the frozen act need none.
    pub(super) fn faults(&self) -> Faults {
        let numbers = |of: fn(&Heartbeat) -> bool| {
            let found = (1..).zip(&self.heartbeats).filter(|(_, heartbeat)| of(heartbeat));
            found.map(|(number, _)| number).collect()
        };
        Faults {
            missing: numbers(Heartbeat::lacks_ack),
            false_acks: numbers(Heartbeat::has_false_ack),
            unexpected: self.unexpected,
        }
    }
}

impl Faults {
    /// Nothing is wrong.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("every ack came while the app ran, none while it was frozen");
        }
        let numbers = |heartbeats: &[usize]| heartbeats.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let mut wrong = Vec::new();
        if !self.false_acks.is_empty() {
            wrong.push(format!("false ack: the app was frozen when heartbeat {} was acked", numbers(&self.false_acks)));
        }
        if self.unexpected > 0 {
            wrong.push(format!("acks without a heartbeat: {}", self.unexpected));
        }
        if !self.missing.is_empty() {
            wrong.push(format!("missing ack: heartbeat {}", numbers(&self.missing)));
        }
        f.write_str(&wrong.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heartbeats, with the act of each and of its ack.
    fn results(heartbeats: &[(Act, Option<Act>)]) -> Results {
        let mut results = Results::default();
        for (number, (act, acked)) in (1..).zip(heartbeats) {
            results.on_sent(*act);
            if let Some(act) = *acked {
                results.on_ack(number, Ack { act, waited: Duration::from_millis(u64::from(number)) });
            }
        }
        results
    }

    #[test]
    fn prompt_acks_and_late_acks_after_the_thaw_are_correct() {
        let results = results(&[
            (Act::Alive, Some(Act::Alive)),
            (Act::Frozen, Some(Act::Thawed)),
            (Act::Frozen, None),
            (Act::Thawed, Some(Act::Thawed)),
        ]);
        assert!(results.faults().is_empty());
        assert_eq!(results.frozen(), (2, 1));
        assert_eq!(results.prompt_latency().min, Some(Duration::from_millis(1)));
        assert_eq!(
            results.prompt_latency().max,
            Some(Duration::from_millis(4)),
            "late acks are not among the prompt ones"
        );
    }

    #[test]
    fn an_ack_that_does_not_come_within_its_act_lacks_ack() {
        let results =
            results(&[(Act::Alive, None), (Act::Alive, Some(Act::Thawed)), (Act::Cut, None), (Act::Thawed, None)]);
        let faults = results.faults();
        assert!(!faults.is_empty());
        assert_eq!(faults.to_string(), "missing ack: heartbeat 1, 2, 3, 4");
    }

    #[test]
    fn an_ack_during_the_freeze_is_a_fault() {
        let results = results(&[(Act::Alive, Some(Act::Alive)), (Act::Frozen, Some(Act::Frozen))]);
        let faults = results.faults();
        assert!(!faults.is_empty());
        assert_eq!(faults.to_string(), "false ack: the app was frozen when heartbeat 2 was acked");
    }

    #[test]
    fn an_ack_without_a_heartbeat_is_a_fault() {
        let mut results = results(&[(Act::Alive, Some(Act::Alive))]);
        results.on_unexpected_ack();
        assert_eq!(results.faults().to_string(), "acks without a heartbeat: 1");
    }
}
