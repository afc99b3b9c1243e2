//! Matches acks to heartbeats and measures their latency, with `now` as a parameter.
//!
//! Invariant: acks carry no id, so one answers the oldest heartbeat that is still in time, or else the oldest overdue
//! one. A lost ack thus affects one heartbeat, not all that follow.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

/// The sent heartbeats of one connection, and which of them wait for an ack.
#[derive(Debug)]
pub(crate) struct Heartbeats {
    timeout: Duration,
    sent: u32,
    /// Oldest first.
    pending: VecDeque<Pending>,
}

#[derive(Debug)]
struct Pending {
    number: u32,
    since: Instant,
    /// [`Heartbeats::next_overdue`] has returned it.
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

/// The summary of [`Latencies`]; as JSON in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct LatencySummary {
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

impl Heartbeats {
    /// No heartbeat yet; each will be overdue `timeout` after it was sent.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, sent: 0, pending: VecDeque::new() }
    }

    /// A heartbeat is sent; returns its number.
    pub(crate) fn on_sent(&mut self, now: Instant) -> u32 {
        self.sent += 1;
        self.pending.push_back(Pending { number: self.sent, since: now, overdue: false });
        self.sent
    }

    /// An ack came; returns what it answers, or `None` if every heartbeat has its ack already.
    pub(crate) fn on_ack(&mut self, now: Instant) -> Option<Answered> {
        let late = |pending: &Pending| now.saturating_duration_since(pending.since) > self.timeout;
        let in_time = self.pending.iter().position(|pending| !late(pending));
        let pending = self.pending.remove(in_time.unwrap_or(0))?;
        let waited = now.saturating_duration_since(pending.since);
        Some(Answered { number: pending.number, waited, late: in_time.is_none() })
    }

    /// The number of a heartbeat that has become overdue; call it until `None`.
    pub(crate) fn next_overdue(&mut self, now: Instant) -> Option<u32> {
        let due = |pending: &&mut Pending| !pending.overdue && pending.since + self.timeout <= now;
        let pending = self.pending.iter_mut().find(due)?;
        pending.overdue = true;
        Some(pending.number)
    }

    /// When the next heartbeat becomes overdue; `None` if none is still in time.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.pending.iter().find(|pending| !pending.overdue).map(|pending| pending.since + self.timeout)
    }

    /// How many heartbeats were sent.
    pub(crate) fn sent(&self) -> u32 {
        self.sent
    }

    /// How many heartbeats may still get their ack in time.
    pub(crate) fn in_time(&self, now: Instant) -> u32 {
        let in_time = |pending: &&Pending| pending.since + self.timeout > now && !pending.overdue;
        u32::try_from(self.pending.iter().filter(in_time).count()).unwrap_or(u32::MAX)
    }

    /// The heartbeats without an ack, oldest first.
    pub(crate) fn unanswered(&self) -> impl Iterator<Item = u32> {
        self.pending.iter().map(|pending| pending.number)
    }
}

impl Latencies {
    /// Adds one.
    pub(crate) fn push(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    /// The summary so far.
    pub(crate) fn summary(&self) -> LatencySummary {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let count = sorted.len();
        let at = |rank: usize| sorted.get(rank).copied();
        let median = match count % 2 {
            1 => at(count / 2),
            _ => at(count / 2).zip(count.checked_sub(2).and_then(|last| at(last / 2))).map(|(a, b)| (a + b) / 2),
        };
        let p99 = (count * 99).div_ceil(100).checked_sub(1).and_then(at);
        LatencySummary { min: sorted.first().copied(), median, p99, max: sorted.last().copied() }
    }
}

/// A duration for people: in milliseconds, from one second in seconds.
pub(crate) fn format_latency(duration: Duration) -> String {
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

    fn summary(millis: impl IntoIterator<Item = u64>) -> [Option<u64>; 4] {
        let mut latencies = Latencies::default();
        millis.into_iter().for_each(|millis| latencies.push(Duration::from_millis(millis)));
        let LatencySummary { min, median, p99, max } = latencies.summary();
        [min, median, p99, max].map(|latency| latency.map(|latency| u64::try_from(latency.as_millis()).expect("small")))
    }

    #[test]
    fn small_sets_are_summarized() {
        assert_eq!(summary([]), [None; 4]);
        assert_eq!(summary([7]), [Some(7); 4]);
        assert_eq!(summary([9, 1]), [Some(1), Some(5), Some(9), Some(9)]);
        assert_eq!(summary([9, 1, 3]), [Some(1), Some(3), Some(9), Some(9)]);
        assert_eq!(summary([8, 2, 4, 6]), [Some(2), Some(5), Some(8), Some(8)]);
    }

    #[test]
    fn p99_is_the_nearest_rank() {
        assert_eq!(summary(1..=99)[2], Some(99));
        assert_eq!(summary(1..=100)[2], Some(99));
        assert_eq!(summary(1..=101)[2], Some(100));
        assert_eq!(summary(1..=200)[2], Some(198));
    }

    #[test]
    fn a_summary_is_in_seconds_in_json_and_null_if_missing() {
        let one = LatencySummary { min: Some(Duration::from_micros(500)), ..LatencySummary::default() };
        let json = serde_json::to_string(&one).expect("plain data");
        assert_eq!(json, r#"{"min":0.0005,"median":null,"p99":null,"max":null}"#);
    }

    #[test]
    fn an_ack_answers_the_oldest_heartbeat() {
        let (start, mut heartbeats) = (Instant::now(), Heartbeats::new(5 * SECOND));
        assert_eq!((heartbeats.on_sent(start), heartbeats.on_sent(start + SECOND)), (1, 2));
        let first = heartbeats.on_ack(start + 2 * SECOND);
        assert_eq!(first, Some(Answered { number: 1, waited: 2 * SECOND, late: false }));
        let second = heartbeats.on_ack(start + 6 * SECOND);
        assert_eq!(second, Some(Answered { number: 2, waited: 5 * SECOND, late: false }), "just in time");
        assert_eq!(heartbeats.on_ack(start + 6 * SECOND), None, "one ack too many");
    }

    #[test]
    fn a_heartbeat_becomes_overdue_once() {
        let (start, mut heartbeats) = (Instant::now(), Heartbeats::new(SECOND));
        assert_eq!(heartbeats.deadline(), None);
        heartbeats.on_sent(start);
        heartbeats.on_sent(start + SECOND);
        assert_eq!(heartbeats.deadline(), Some(start + SECOND));
        assert_eq!(heartbeats.next_overdue(start + SECOND / 2), None);
        assert_eq!(heartbeats.next_overdue(start + SECOND), Some(1));
        assert_eq!(heartbeats.next_overdue(start + SECOND), None);
        assert_eq!(heartbeats.deadline(), Some(start + 2 * SECOND));
        assert_eq!(heartbeats.unanswered().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_lost_ack_affects_one_heartbeat_only() {
        let (start, mut heartbeats) = (Instant::now(), Heartbeats::new(SECOND));
        heartbeats.on_sent(start);
        assert_eq!(heartbeats.next_overdue(start + SECOND), Some(1));
        heartbeats.on_sent(start + 2 * SECOND);
        let second = heartbeats.on_ack(start + 2 * SECOND);
        assert_eq!(second, Some(Answered { number: 2, waited: Duration::ZERO, late: false }));
    }

    #[test]
    fn a_late_ack_is_marked_late() {
        let (start, mut heartbeats) = (Instant::now(), Heartbeats::new(SECOND));
        heartbeats.on_sent(start);
        let late = heartbeats.on_ack(start + 3 * SECOND);
        assert_eq!(late, Some(Answered { number: 1, waited: 3 * SECOND, late: true }));
    }
}
