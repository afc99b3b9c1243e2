//! Matches acks to heartbeats and measures their latency, with `now` as a parameter.
//!
//! Invariant: acks carry no id, so one answers the oldest heartbeat that is still in time, or else the oldest overdue
//! one. A lost ack thus affects one heartbeat, not all that follow.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

/// The heartbeats of one connection.
#[derive(Debug)]
pub(crate) struct Ledger {
    timeout: Duration,
    sent: u32,
    /// Oldest first.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    number: u32,
    since: Instant,
    /// [`Ledger::on_time`] has returned it.
    overdue: bool,
}

/// The heartbeat that an ack answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    /// Counted from 1.
    pub(crate) number: u32,
    /// From heartbeat to ack.
    pub(crate) waited: Duration,
    /// Longer than the timeout.
    pub(crate) late: bool,
}

/// Ack latencies.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Vec<Duration>);

/// The figures of [`Latencies`]; as JSON in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Figures {
    #[serde(serialize_with = "seconds")]
    pub(crate) min: Option<Duration>,
    /// The mean of the two middle values if their number is even.
    #[serde(serialize_with = "seconds")]
    pub(crate) median: Option<Duration>,
    /// The nearest rank: the smallest that 99 % do not exceed.
    #[serde(serialize_with = "seconds")]
    pub(crate) p99: Option<Duration>,
    #[serde(serialize_with = "seconds")]
    pub(crate) max: Option<Duration>,
}

impl Ledger {
    /// A ledger in which a heartbeat is overdue after `timeout`.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, sent: 0, waiting: VecDeque::new() }
    }

    /// A heartbeat is sent; returns its number.
    pub(crate) fn on_sent(&mut self, now: Instant) -> u32 {
        self.sent += 1;
        self.waiting.push_back(Waiting { number: self.sent, since: now, overdue: false });
        self.sent
    }

    /// An ack came; returns what it answers, or `None` if every heartbeat has its ack already.
    pub(crate) fn on_ack(&mut self, now: Instant) -> Option<Answered> {
        let late = |waiting: &Waiting| now.saturating_duration_since(waiting.since) > self.timeout;
        let in_time = self.waiting.iter().position(|waiting| !late(waiting));
        let waiting = self.waiting.remove(in_time.unwrap_or(0))?;
        let waited = now.saturating_duration_since(waiting.since);
        Some(Answered { number: waiting.number, waited, late: in_time.is_none() })
    }

    /// The number of a heartbeat that has become overdue; call it until `None`.
    pub(crate) fn on_time(&mut self, now: Instant) -> Option<u32> {
        let due = |waiting: &&mut Waiting| !waiting.overdue && waiting.since + self.timeout <= now;
        let waiting = self.waiting.iter_mut().find(due)?;
        waiting.overdue = true;
        Some(waiting.number)
    }

    /// When the next heartbeat becomes overdue; `None` if none is still in time.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().find(|waiting| !waiting.overdue).map(|waiting| waiting.since + self.timeout)
    }

    /// How many heartbeats were sent.
    pub(crate) fn sent(&self) -> u32 {
        self.sent
    }

    /// How many heartbeats may still get their ack in time.
    pub(crate) fn in_time(&self, now: Instant) -> u32 {
        let in_time = |waiting: &&Waiting| waiting.since + self.timeout > now && !waiting.overdue;
        u32::try_from(self.waiting.iter().filter(in_time).count()).unwrap_or(u32::MAX)
    }

    /// The heartbeats without an ack, oldest first.
    pub(crate) fn unanswered(&self) -> impl Iterator<Item = u32> {
        self.waiting.iter().map(|waiting| waiting.number)
    }
}

impl Latencies {
    /// Adds one.
    pub(crate) fn push(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    /// The figures so far.
    pub(crate) fn figures(&self) -> Figures {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let count = sorted.len();
        let at = |rank: usize| sorted.get(rank).copied();
        let median = match count % 2 {
            1 => at(count / 2),
            _ => at(count / 2).zip(count.checked_sub(2).and_then(|last| at(last / 2))).map(|(a, b)| (a + b) / 2),
        };
        let p99 = (count * 99).div_ceil(100).checked_sub(1).and_then(at);
        Figures { min: sorted.first().copied(), median, p99, max: sorted.last().copied() }
    }
}

/// A duration for people: in milliseconds, from one second in seconds.
pub(crate) fn shown(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{:.2} ms", duration.as_secs_f64() * 1e3)
    } else {
        format!("{:.2} s", duration.as_secs_f64())
    }
}

#[allow(clippy::ref_option)] // The signature is serde's.
fn seconds<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64()).serialize(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn figures(millis: impl IntoIterator<Item = u64>) -> [Option<u64>; 4] {
        let mut latencies = Latencies::default();
        millis.into_iter().for_each(|millis| latencies.push(Duration::from_millis(millis)));
        let Figures { min, median, p99, max } = latencies.figures();
        [min, median, p99, max].map(|figure| figure.map(|figure| u64::try_from(figure.as_millis()).expect("small")))
    }

    #[test]
    fn figures_of_small_sets() {
        assert_eq!(figures([]), [None; 4]);
        assert_eq!(figures([7]), [Some(7); 4]);
        assert_eq!(figures([9, 1]), [Some(1), Some(5), Some(9), Some(9)]);
        assert_eq!(figures([9, 1, 3]), [Some(1), Some(3), Some(9), Some(9)]);
        assert_eq!(figures([8, 2, 4, 6]), [Some(2), Some(5), Some(8), Some(8)]);
    }

    #[test]
    fn p99_is_the_nearest_rank() {
        assert_eq!(figures(1..=99)[2], Some(99));
        assert_eq!(figures(1..=100)[2], Some(99));
        assert_eq!(figures(1..=101)[2], Some(100));
        assert_eq!(figures(1..=200)[2], Some(198));
    }

    #[test]
    fn figures_are_seconds_in_json_and_null_if_missing() {
        let one = Figures { min: Some(Duration::from_micros(500)), ..Figures::default() };
        let json = serde_json::to_string(&one).expect("plain data");
        assert_eq!(json, r#"{"min":0.0005,"median":null,"p99":null,"max":null}"#);
    }

    #[test]
    fn an_ack_answers_the_oldest_heartbeat() {
        let (start, mut ledger) = (Instant::now(), Ledger::new(5 * SECOND));
        assert_eq!((ledger.on_sent(start), ledger.on_sent(start + SECOND)), (1, 2));
        let first = ledger.on_ack(start + 2 * SECOND);
        assert_eq!(first, Some(Answered { number: 1, waited: 2 * SECOND, late: false }));
        let second = ledger.on_ack(start + 6 * SECOND);
        assert_eq!(second, Some(Answered { number: 2, waited: 5 * SECOND, late: false }), "just in time");
        assert_eq!(ledger.on_ack(start + 6 * SECOND), None, "one ack too many");
    }

    #[test]
    fn a_heartbeat_becomes_overdue_once() {
        let (start, mut ledger) = (Instant::now(), Ledger::new(SECOND));
        assert_eq!(ledger.deadline(), None);
        ledger.on_sent(start);
        ledger.on_sent(start + SECOND);
        assert_eq!(ledger.deadline(), Some(start + SECOND));
        assert_eq!(ledger.on_time(start + SECOND / 2), None);
        assert_eq!(ledger.on_time(start + SECOND), Some(1));
        assert_eq!(ledger.on_time(start + SECOND), None);
        assert_eq!(ledger.deadline(), Some(start + 2 * SECOND));
        assert_eq!(ledger.unanswered().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_lost_ack_affects_one_heartbeat_only() {
        let (start, mut ledger) = (Instant::now(), Ledger::new(SECOND));
        ledger.on_sent(start);
        assert_eq!(ledger.on_time(start + SECOND), Some(1));
        ledger.on_sent(start + 2 * SECOND);
        let second = ledger.on_ack(start + 2 * SECOND);
        assert_eq!(second, Some(Answered { number: 2, waited: Duration::ZERO, late: false }));
    }

    #[test]
    fn a_late_ack_is_marked_late() {
        let (start, mut ledger) = (Instant::now(), Ledger::new(SECOND));
        ledger.on_sent(start);
        let late = ledger.on_ack(start + 3 * SECOND);
        assert_eq!(late, Some(Answered { number: 1, waited: 3 * SECOND, late: true }));
    }
}
