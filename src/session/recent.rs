//! The latest answers to heartbeats of all sessions: the time, kind and latency of each.
//!
//! Invariant: one word each and no lock, because every ack is recorded here.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;

use crate::heartbeat::AckOrigin;

/// Number of answers kept: two seconds at a thousand a second. 16 KiB.
pub const KEPT: usize = 2048;

/// Bits of a word, from the lowest: kind, latency in microseconds, milliseconds since the start.
const KIND_BITS: u32 = 2;
const LATENCY_BITS: u32 = 26;

/// A heartbeat's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An ack, and its delay after the heartbeat.
    Ack(AckOrigin, Duration),
    /// No ack, or none in time.
    Withheld,
}

/// One answer, as in `/status.json`: `[at, kind, latency]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RecentAnswer(
    /// Milliseconds since the sidecar started.
    pub u64,
    /// Its kind.
    pub AnswerKind,
    /// Latency in microseconds, at most 67 s; 0 if the ack was withheld.
    pub u64,
);

/// How a heartbeat was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// By an ack of the sidecar.
    Sidecar = 1,
    /// By an ack of the app server.
    Upstream = 2,
    /// No ack, or none in time.
    Withheld = 3,
}

/// The ring buffer. A read during a write may miss an answer, or return an old one.
#[derive(Debug)]
pub(super) struct RecentAnswers {
    next: AtomicUsize,
    /// Zero where nothing was written yet.
    words: Box<[AtomicU64]>,
}

impl Default for RecentAnswers {
    fn default() -> Self {
        Self { next: AtomicUsize::new(0), words: (0..KEPT).map(|_word| AtomicU64::new(0)).collect() }
    }
}

impl RecentAnswers {
    /// Records an answer given `at` after the start.
    pub(super) fn record(&self, at: Duration, answer: Answer) {
        let index = self.next.fetch_add(1, Relaxed) % KEPT;
        self.words[index].store(RecentAnswer::new(at, answer).pack(), Relaxed);
    }

    /// Answers from `since` to before `until` after the start, oldest first; and whether there were more that are
    /// overwritten.
    pub(super) fn between(&self, since: Duration, until: Duration) -> (Vec<RecentAnswer>, bool) {
        let times = since.as_millis()..until.as_millis();
        let words = self.words.iter().map(|word| word.load(Relaxed));
        let mut answers: Vec<_> = words.filter_map(RecentAnswer::unpack).collect();
        let cut = answers.len() == KEPT && answers.iter().all(|answer| u128::from(answer.0) >= times.start);
        answers.retain(|answer| times.contains(&answer.0.into()));
        answers.sort_unstable_by_key(|answer| answer.0);
        (answers, cut)
    }
}

impl RecentAnswer {
    fn new(at: Duration, answer: Answer) -> Self {
        let (kind, waited) = match answer {
            Answer::Ack(AckOrigin::Sidecar, waited) => (AnswerKind::Sidecar, waited),
            Answer::Ack(AckOrigin::Upstream, waited) => (AnswerKind::Upstream, waited),
            Answer::Withheld => (AnswerKind::Withheld, Duration::ZERO),
        };
        let max = (1 << LATENCY_BITS) - 1;
        Self(at.as_millis() as u64, kind, u64::try_from(waited.as_micros()).unwrap_or(max).min(max))
    }

    fn pack(self) -> u64 {
        let Self(at, kind, latency) = self;
        // The rest of the word lasts two years.
        (at << (KIND_BITS + LATENCY_BITS)) | (latency << KIND_BITS) | kind as u64
    }

    fn unpack(word: u64) -> Option<Self> {
        let kind = match word % (1 << KIND_BITS) {
            0 => return None,
            1 => AnswerKind::Sidecar,
            2 => AnswerKind::Upstream,
            _ => AnswerKind::Withheld,
        };
        let latency = (word >> KIND_BITS) % (1 << LATENCY_BITS);
        Some(Self(word >> (KIND_BITS + LATENCY_BITS), kind, latency))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Duration = Duration::from_secs(365 * 86_400);

    #[test]
    fn answers_are_returned_as_recorded() {
        let recent = RecentAnswers::default();
        recent.record(Duration::from_millis(7), Answer::Ack(AckOrigin::Sidecar, Duration::from_micros(650)));
        recent.record(YEAR, Answer::Ack(AckOrigin::Upstream, Duration::ZERO));
        recent.record(Duration::from_millis(9), Answer::Withheld);
        let year = YEAR.as_millis() as u64;
        let all = [(7, AnswerKind::Sidecar, 650), (9, AnswerKind::Withheld, 0), (year, AnswerKind::Upstream, 0)];
        let millis = Duration::from_millis;
        assert_eq!(recent.between(millis(0), YEAR * 2).0, all.map(|(at, by, latency)| RecentAnswer(at, by, latency)));
        assert_eq!(recent.between(millis(9), YEAR), (vec![RecentAnswer(9, AnswerKind::Withheld, 0)], false));
        assert_eq!(recent.between(millis(10), YEAR).0, [], "adjacent ranges return each answer once");
    }

    #[test]
    fn a_latency_above_the_maximum_is_capped() {
        let recent = RecentAnswers::default();
        recent.record(Duration::from_millis(1), Answer::Ack(AckOrigin::Upstream, YEAR));
        assert_eq!(recent.between(Duration::ZERO, YEAR).0, [RecentAnswer(1, AnswerKind::Upstream, 67_108_863)]);
    }

    #[test]
    fn only_the_latest_answers_are_kept() {
        let recent = RecentAnswers::default();
        for at in 1..=3 * KEPT as u64 + 5 {
            recent.record(Duration::from_millis(at), Answer::Withheld);
        }
        let (answers, cut) = recent.between(Duration::ZERO, YEAR);
        let kept: Vec<_> = answers.iter().map(|answer| answer.0).collect();
        assert!(cut && !recent.between(Duration::from_millis(kept[1]), YEAR).1, "a later range is complete");
        assert_eq!(kept, (2 * KEPT as u64 + 6..=3 * KEPT as u64 + 5).collect::<Vec<_>>());
    }

    #[test]
    fn an_answer_is_serialized_as_an_array_of_three() {
        let json = serde_json::to_string(&RecentAnswer(7, AnswerKind::Sidecar, 650)).unwrap();
        assert_eq!(json, "[7,\"sidecar\",650]");
    }
}
