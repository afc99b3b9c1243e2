//! Decides what happens to each heartbeat of one session.
//!
//! Invariant: acks made here ≤ heartbeats received, and none before the upstream was proved alive after its heartbeat.

use std::time::{Duration, Instant};

use super::liveness::{Liveness, Pong, Tag};
use super::{Capability, Mode, Proof, Settings, Withheld};

/// Heartbeats that may await acks at a time. Any more share the ack of the newest, so a flood needs no more memory.
pub const MAX_WAITING: usize = 8;

/// Heartbeats that come within this time may both be pending at a healthy server.
const BURST: Duration = Duration::from_millis(500);

/// What happens to the heartbeat's own bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Disposition {
    /// They pass to the upstream.
    Forward,
    /// They are removed from the stream.
    Withhold,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Send a ping with this payload upstream, now, between two frames.
    Ping(Tag),
    /// Send an ack to the browser, now, between two messages; the time since its heartbeat.
    Ack(Duration),
    /// A forwarded heartbeat got no native ack within `native_deadline`.
    NativeAckOverdue,
    /// The upstream was proved alive after a forwarded heartbeat, but has not acked it.
    NativeAckMissed,
    /// Count a heartbeat as withheld.
    Withheld(Withheld),
}

/// What can be inserted now.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// A message to the browser.
    pub browser: bool,
    /// A control frame to the upstream.
    pub upstream: bool,
}

/// The stage of an unanswered heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Awaits the upstream's own ack; `Unproved` or `Proved` follows at `native_deadline`.
    Native,
    /// Awaits a ping that is sent after it; `Proving` follows.
    Unproved,
    /// Awaits the outstanding pong; `Proved` follows.
    Proving,
    /// Awaits room for its ack; nothing follows.
    Proved,
}

/// An unanswered heartbeat.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: Instant,
    stage: Stage,
    /// The upstream received it, and a native ack would be seen.
    forwarded: bool,
    /// It was already counted as withheld.
    stalled: bool,
}

/// The heartbeats of one session.
#[derive(Debug)]
pub struct Policy {
    settings: Settings,
    liveness: Liveness,
    /// Oldest first, at most [`MAX_WAITING`].
    waiting: Vec<Waiting>,
    /// Confirmed missed native acks not yet reported.
    misses: u8,
    closing: bool,
}

impl Policy {
    /// The policy of a new session; `nonce` must be random.
    pub fn new(settings: Settings, nonce: u64) -> Self {
        Self { settings, liveness: Liveness::new(nonce), waiting: Vec::new(), misses: 0, closing: false }
    }

    /// The browser sent a heartbeat.
    pub fn on_heartbeat(&mut self, now: Instant, capability: Capability) -> Disposition {
        if self.closing {
            return Disposition::Forward;
        }
        let answer_here = match (self.settings.mode, capability) {
            (Mode::Answer, _) | (Mode::Auto, Capability::Silent) => true,
            (Mode::Forward, _) | (Mode::Auto, Capability::Unknown | Capability::Native) => false,
        };
        let stage = if answer_here { self.unproved() } else { Stage::Native };
        self.await_ack(now, stage, !answer_here);
        if answer_here { Disposition::Withhold } else { Disposition::Forward }
    }

    /// The browser sent a heartbeat that passes, and a native ack to it cannot be seen. It is answered as if the
    /// upstream were silent. A native ack as well does no harm: the page's timer has already stopped.
    pub fn on_compressed_heartbeat(&mut self, now: Instant) {
        if !self.closing && self.settings.mode != Mode::Forward {
            self.await_ack(now, self.unproved(), false);
        }
    }

    fn await_ack(&mut self, since: Instant, stage: Stage, forwarded: bool) {
        let full = self.waiting.len() == MAX_WAITING;
        match self.waiting.last_mut().filter(|_| full) {
            // It shares the newest one's ack, which therefore must not be released by an older proof.
            Some(newest) => {
                newest.stage = stage;
                newest.forwarded |= forwarded;
            }
            None => self.waiting.push(Waiting { since, stage, forwarded, stalled: false }),
        }
    }

    /// The upstream sent its own ack. Returns how long its heartbeat waited, if one did.
    ///
    /// Acks carry no id, but a server acks in order. This ack belongs to the oldest heartbeat that arrived within half
    /// a second of the newest. An older one has lost its ack (Streamlit 1.55 to 1.67). Matching this ack to it would
    /// shift the loss from heartbeat to heartbeat.
    pub fn on_native_ack(&mut self, now: Instant) -> Option<Duration> {
        let answered = self.answered(|waiting| waiting.stage == Stage::Native);
        let waiting = self.waiting.remove(answered.or_else(|| self.answered(|waiting| waiting.forwarded))?);
        self.release_if_idle();
        Some(now.saturating_duration_since(waiting.since))
    }

    fn answered(&self, may_be: fn(&Waiting) -> bool) -> Option<usize> {
        let newest = self.waiting.iter().rfind(|waiting| may_be(waiting))?.since;
        self.waiting.iter().position(|waiting| may_be(waiting) && waiting.since + BURST >= newest)
    }

    /// The upstream is silent: forwarded heartbeats no longer wait for native acks.
    pub fn on_silent(&mut self) {
        if self.settings.mode == Mode::Auto {
            let stage = self.unproved();
            for waiting in self.waiting.iter_mut().filter(|waiting| waiting.stage == Stage::Native) {
                waiting.stage = stage;
            }
        }
    }

    /// The upstream sent a pong; only [`Pong::Foreign`] may pass.
    pub fn on_pong(&mut self, payload: &[u8], now: Instant) -> Pong {
        let pong = self.liveness.on_pong(payload, now);
        if let Pong::Proof(_) = pong {
            for waiting in self.waiting.iter_mut().filter(|waiting| waiting.stage == Stage::Proving) {
                waiting.stage = Stage::Proved;
                self.misses += u8::from(waiting.forwarded);
            }
        }
        pong
    }

    /// One side is closing: from now on nothing is sent. If it is the `upstream`, returns how many heartbeats stay
    /// unanswered and were not counted as withheld.
    pub fn on_closing(&mut self, upstream: bool) -> usize {
        self.closing = true;
        let unanswered = self.waiting.drain(..).filter(|waiting| !waiting.stalled).count();
        if upstream { unanswered } else { 0 }
    }

    /// One side is closing: heartbeats are no longer answered.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// No heartbeat or report is pending.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.misses == 0
    }

    /// When [`Policy::next`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(|waiting| self.due(waiting)).min()
    }

    /// The next action; call until it returns `None`.
    pub fn next(&mut self, now: Instant, room: Room) -> Option<Action> {
        if self.misses > 0 {
            self.misses -= 1;
            return Some(Action::NativeAckMissed);
        }
        if let Some(late) = self.waiting.iter().position(|waiting| self.due(waiting).is_some_and(|due| due <= now)) {
            return Some(self.overdue(late));
        }
        if room.browser
            && let Some(proved) = self.waiting.iter().position(|waiting| waiting.stage == Stage::Proved)
        {
            let waiting = self.waiting.remove(proved);
            self.release_if_idle();
            return Some(Action::Ack(now.saturating_duration_since(waiting.since)));
        }
        let mut unproved = self.waiting.iter_mut().filter(|waiting| waiting.stage == Stage::Unproved).peekable();
        if !room.upstream || self.liveness.is_outstanding() || unproved.peek().is_none() {
            return None;
        }
        unproved.for_each(|waiting| waiting.stage = Stage::Proving);
        Some(Action::Ping(self.liveness.on_ping(now)))
    }

    /// The first stage of a heartbeat that the sidecar answers.
    fn unproved(&self) -> Stage {
        match self.settings.proof {
            Proof::Pong => Stage::Unproved,
            Proof::Connection => Stage::Proved,
        }
    }

    fn due(&self, waiting: &Waiting) -> Option<Instant> {
        match waiting.stage {
            Stage::Native => Some(waiting.since + self.settings.native_deadline),
            Stage::Unproved | Stage::Proving if !waiting.stalled => Some(waiting.since + self.settings.stall_after),
            Stage::Unproved | Stage::Proving | Stage::Proved => None,
        }
    }

    fn overdue(&mut self, late: usize) -> Action {
        let native = self.waiting[late].stage == Stage::Native;
        if native && self.settings.mode == Mode::Forward {
            let _unanswered = self.waiting.remove(late);
            self.release_if_idle();
            return Action::Withheld(Withheld::Policy);
        }
        if native {
            let stage = self.unproved();
            self.waiting[late].stage = stage;
            self.misses += u8::from(stage == Stage::Proved);
            return Action::NativeAckOverdue;
        }
        self.waiting[late].stalled = true;
        Action::Withheld(Withheld::UpstreamStalled)
    }

    /// An idle session owns no buffer.
    fn release_if_idle(&mut self) {
        if self.waiting.is_empty() {
            self.waiting = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { browser: true, upstream: true };
    const MS: Duration = Duration::from_millis(1);

    fn policy(settings: Settings) -> Policy {
        Policy::new(settings, 7)
    }

    fn ping(policy: &mut Policy, now: Instant) -> Tag {
        match policy.next(now, ROOM) {
            Some(Action::Ping(tag)) => tag,
            other => panic!("a ping was due, not {other:?}"),
        }
    }

    #[test]
    fn a_silent_upstream_is_proved_alive_before_the_ack() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        assert_eq!(policy.on_heartbeat(start, Capability::Silent), Disposition::Withhold);
        let tag = ping(&mut policy, start);
        assert_eq!(policy.next(start + MS, ROOM), None);
        assert_eq!(policy.on_pong(&tag, start + 2 * MS), Pong::Proof(2 * MS));
        assert_eq!(policy.next(start + 2 * MS, ROOM), Some(Action::Ack(2 * MS)));
        assert_eq!(policy.next(start + 2 * MS, ROOM), None);
        assert!(policy.is_idle());
    }

    #[test]
    fn heartbeat_during_an_outstanding_ping_waits_for_the_next_ping() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        let _withheld = policy.on_heartbeat(start, Capability::Silent);
        let first = ping(&mut policy, start);
        let _withheld = policy.on_heartbeat(start + MS, Capability::Silent);
        assert_eq!(policy.next(start + MS, ROOM), None, "one ping at a time");
        let _proof = policy.on_pong(&first, start + 2 * MS);
        assert_eq!(policy.next(start + 2 * MS, ROOM), Some(Action::Ack(2 * MS)));
        let second = ping(&mut policy, start + 2 * MS);
        assert_eq!(policy.next(start + 3 * MS, ROOM), None, "the first pong proves nothing for the second heartbeat");
        let _proof = policy.on_pong(&second, start + 4 * MS);
        assert_eq!(policy.next(start + 4 * MS, ROOM), Some(Action::Ack(3 * MS)));
    }

    #[test]
    fn stalled_upstream_is_counted_once_and_a_late_pong_still_acks() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        let _withheld = policy.on_heartbeat(start, Capability::Silent);
        let tag = ping(&mut policy, start);
        let stalled = start + Settings::default().stall_after;
        assert_eq!(policy.deadline(), Some(stalled));
        assert_eq!(policy.next(stalled - MS, ROOM), None);
        assert_eq!(policy.next(stalled, ROOM), Some(Action::Withheld(Withheld::UpstreamStalled)));
        assert_eq!((policy.next(stalled, ROOM), policy.deadline()), (None, None));
        let _proof = policy.on_pong(&tag, stalled + MS);
        assert_eq!(policy.next(stalled + MS, ROOM), Some(Action::Ack(Settings::default().stall_after + MS)));
    }

    #[test]
    fn native_upstream_gets_no_sidecar_ack() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        assert_eq!(policy.on_heartbeat(start, Capability::Native), Disposition::Forward);
        assert_eq!(policy.next(start, ROOM), None);
        assert_eq!(policy.on_native_ack(start + MS), Some(MS));
        assert_eq!((policy.next(start + Duration::from_secs(60), ROOM), policy.deadline()), (None, None));
        assert_eq!(policy.on_native_ack(start + MS), None, "no heartbeat waits for this ack");
    }

    #[test]
    fn missing_native_ack_is_replaced_once_the_upstream_is_proved_alive() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        let _forwarded = policy.on_heartbeat(start, Capability::Native);
        let late = start + Settings::default().native_deadline;
        assert_eq!(policy.next(late, ROOM), Some(Action::NativeAckOverdue));
        let tag = ping(&mut policy, late);
        let _proof = policy.on_pong(&tag, late + MS);
        assert_eq!(policy.next(late + MS, ROOM), Some(Action::NativeAckMissed));
        assert_eq!(policy.next(late + MS, ROOM), Some(Action::Ack(Settings::default().native_deadline + MS)));
    }

    #[test]
    fn forwarded_heartbeats_stop_waiting_once_the_upstream_is_known_as_silent() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        let _forwarded = policy.on_heartbeat(start, Capability::Unknown);
        assert_eq!(policy.next(start + MS, ROOM), None);
        policy.on_silent();
        let tag = ping(&mut policy, start + MS);
        let _proof = policy.on_pong(&tag, start + 2 * MS);
        let actions: Vec<_> = std::iter::from_fn(|| policy.next(start + 2 * MS, ROOM)).collect();
        assert_eq!(actions, [Action::NativeAckMissed, Action::Ack(2 * MS)]);
    }

    #[test]
    fn lost_native_ack_affects_only_its_own_heartbeat() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        let _lost = policy.on_heartbeat(start, Capability::Native);
        for beat in 1..=3 {
            let sent = start + beat * 600 * MS;
            let _forwarded = policy.on_heartbeat(sent, Capability::Native);
            assert_eq!(policy.on_native_ack(sent + MS), Some(MS));
        }
        let late = start + Settings::default().native_deadline;
        assert_eq!(policy.next(late, ROOM), Some(Action::NativeAckOverdue), "only the first heartbeat is left");
        let tag = ping(&mut policy, late);
        let _proof = policy.on_pong(&tag, late + MS);
        assert_eq!(policy.next(late + MS, ROOM), Some(Action::NativeAckMissed));
        assert_eq!(policy.next(late + MS, ROOM), Some(Action::Ack(Settings::default().native_deadline + MS)));
        assert_eq!(policy.next(late + MS, ROOM), None);
    }

    #[test]
    fn heartbeats_faster_than_their_acks_are_answered_in_order() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        let _forwarded = policy.on_heartbeat(start, Capability::Native);
        for beat in 1..=200 {
            let sent = start + beat * 25 * MS;
            let _forwarded = policy.on_heartbeat(sent, Capability::Native);
            assert_eq!(policy.on_native_ack(sent + MS), Some(26 * MS));
            assert_eq!(policy.next(sent + MS, ROOM), None);
        }
    }

    #[test]
    fn native_ack_during_the_proof_cancels_the_sidecar_ack() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        let _forwarded = policy.on_heartbeat(start, Capability::Unknown);
        let late = start + Settings::default().native_deadline;
        assert_eq!(policy.next(late, ROOM), Some(Action::NativeAckOverdue));
        let tag = ping(&mut policy, late);
        assert_eq!(policy.on_native_ack(late + MS), Some(Settings::default().native_deadline + MS));
        let _proof = policy.on_pong(&tag, late + 2 * MS);
        assert_eq!(policy.next(late + 2 * MS, ROOM), None);
    }

    #[test]
    fn mode_forward_never_answers_and_counts_the_heartbeat_as_withheld() {
        let (start, mut policy) = (Instant::now(), policy(Settings { mode: Mode::Forward, ..Settings::default() }));
        assert_eq!(policy.on_heartbeat(start, Capability::Silent), Disposition::Forward);
        let late = start + Settings::default().native_deadline;
        assert_eq!(policy.next(late, ROOM), Some(Action::Withheld(Withheld::Policy)));
        assert_eq!(policy.next(late, ROOM), None);
    }

    #[test]
    fn mode_answer_withholds_from_a_native_upstream_too() {
        let (start, mut policy) = (Instant::now(), policy(Settings { mode: Mode::Answer, ..Settings::default() }));
        assert_eq!(policy.on_heartbeat(start, Capability::Native), Disposition::Withhold);
    }

    #[test]
    fn compressed_heartbeat_is_answered_after_a_proof_and_reports_no_missed_native_ack() {
        for mode in [Mode::Auto, Mode::Answer] {
            let (start, mut policy) = (Instant::now(), policy(Settings { mode, ..Settings::default() }));
            policy.on_compressed_heartbeat(start);
            let tag = ping(&mut policy, start);
            assert_eq!(policy.next(start + MS, ROOM), None);
            let _proof = policy.on_pong(&tag, start + 2 * MS);
            assert_eq!(policy.next(start + 2 * MS, ROOM), Some(Action::Ack(2 * MS)));
            assert_eq!(policy.next(start + Duration::from_secs(60), ROOM), None);
        }
        let (start, mut policy) = (Instant::now(), policy(Settings { mode: Mode::Forward, ..Settings::default() }));
        policy.on_compressed_heartbeat(start);
        assert!(policy.is_idle());
    }

    #[test]
    fn proof_connection_acks_without_a_ping() {
        let settings = Settings { proof: Proof::Connection, ..Settings::default() };
        let (start, mut policy) = (Instant::now(), policy(settings));
        assert_eq!(policy.on_heartbeat(start, Capability::Silent), Disposition::Withhold);
        assert_eq!(policy.next(start, ROOM), Some(Action::Ack(Duration::ZERO)));
    }

    #[test]
    fn nothing_is_sent_without_room() {
        let none = Room { browser: false, upstream: false };
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        let _withheld = policy.on_heartbeat(start, Capability::Silent);
        assert_eq!(policy.next(start, none), None);
        let tag = ping(&mut policy, start + MS);
        let _proof = policy.on_pong(&tag, start + 2 * MS);
        assert_eq!(policy.next(start + 2 * MS, none), None);
        assert_eq!(policy.next(start + 3 * MS, ROOM), Some(Action::Ack(3 * MS)));
    }

    #[test]
    fn nothing_is_sent_once_a_side_is_closing() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        let _withheld = policy.on_heartbeat(start, Capability::Silent);
        assert_eq!(policy.on_closing(true), 1, "the upstream closed before it was proved alive");
        assert_eq!((policy.next(start, ROOM), policy.deadline()), (None, None));
        assert_eq!(policy.on_heartbeat(start, Capability::Silent), Disposition::Forward);
        assert_eq!(policy.on_closing(true), 0);
    }

    #[test]
    fn flooded_heartbeats_share_the_newest_ack_in_bounded_memory() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        let _withheld = policy.on_heartbeat(start, Capability::Silent);
        let first = ping(&mut policy, start);
        for _heartbeat in 0..100_000 {
            let _withheld = policy.on_heartbeat(start + MS, Capability::Silent);
        }
        assert_eq!(policy.waiting.len(), MAX_WAITING);
        let _proof = policy.on_pong(&first, start + 2 * MS);
        assert_eq!(policy.next(start + 2 * MS, ROOM), Some(Action::Ack(2 * MS)));
        let second = ping(&mut policy, start + 2 * MS);
        let _proof = policy.on_pong(&second, start + 3 * MS);
        let acks = std::iter::from_fn(|| policy.next(start + 3 * MS, ROOM)).count();
        assert_eq!(acks, MAX_WAITING - 1);
    }
}
