//! Decides what happens to each heartbeat of one session.
//!
//! Law: acks made here ≤ heartbeats in, and none before the upstream has proved itself alive since that heartbeat.

use std::time::{Duration, Instant};

use super::liveness::{Liveness, Pong, Tag};
use super::{Capability, Mode, Proof, Settings, Withheld};

/// Heartbeats that may await their acks at a time. One more shares the ack of the newest, so that a flood grows nothing.
pub const MAX_WAITING: usize = 8;

/// Heartbeats that come so close together may both be under way at a healthy server.
const BURST: Duration = Duration::from_millis(500);

/// What becomes of the heartbeat's own bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Disposition {
    /// They go on to the upstream.
    Forward,
    /// They are taken out of the stream.
    Withhold,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Send a ping with this payload upstream, now, between two frames.
    Ping(Tag),
    /// Send an ack to the browser, now, between two messages; its heartbeat came so long ago.
    Ack(Duration),
    /// A forwarded heartbeat got no native ack within `native_deadline`.
    NativeAckOverdue,
    /// That upstream has since proved itself alive: it could have answered and did not.
    NativeAckMissed,
    /// Count a heartbeat as withheld.
    Withheld(Withheld),
}

/// Where something can be slipped in at this moment.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// A message towards the browser.
    pub browser: bool,
    /// A control frame towards the upstream.
    pub upstream: bool,
}

/// How far a heartbeat has come.
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

/// A heartbeat that has not been answered.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: Instant,
    stage: Stage,
    /// The upstream has seen it and may still answer it, which would be seen.
    forwarded: bool,
    /// It was counted as withheld already.
    stalled: bool,
}

/// The heartbeats of one session.
#[derive(Debug)]
pub struct Policy {
    settings: Settings,
    liveness: Liveness,
    /// Oldest first, at most [`MAX_WAITING`].
    waiting: Vec<Waiting>,
    /// Misses that the last proof turned into facts, still to be told.
    misses: u8,
    closing: bool,
}

impl Policy {
    /// The policy of a session that has just begun; `nonce` must be random.
    pub fn new(settings: Settings, nonce: u64) -> Self {
        Self { settings, liveness: Liveness::new(nonce), waiting: Vec::new(), misses: 0, closing: false }
    }

    /// A heartbeat came from the browser.
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

    /// A heartbeat came from the browser that passes on, in a session whose native acks cannot be seen. It is answered
    /// as if the upstream were silent: should there be a native ack too, it stops a timer that has stopped already.
    pub fn on_compressed_heartbeat(&mut self, now: Instant) {
        if !self.closing && self.settings.mode != Mode::Forward {
            self.await_ack(now, self.unproved(), false);
        }
    }

    fn await_ack(&mut self, since: Instant, stage: Stage, forwarded: bool) {
        let full = self.waiting.len() == MAX_WAITING;
        match self.waiting.last_mut().filter(|_| full) {
            // It shares the newest one's ack, which therefore must not be released by a proof older than itself.
            Some(newest) => {
                newest.stage = stage;
                newest.forwarded |= forwarded;
            }
            None => self.waiting.push(Waiting { since, stage, forwarded, stalled: false }),
        }
    }

    /// An ack of the upstream's own came by: how long its heartbeat waited, if one did.
    ///
    /// Acks carry no id, but a server acks in order: it answers the oldest of the heartbeats that came within
    /// half a second of the newest. One from long before has lost its ack (Streamlit 1.55 to 1.67); taking this one for it
    /// would pass the loss on from heartbeat to heartbeat.
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

    /// The upstream turned out to be silent: forwarded heartbeats need not wait for acks of its own any longer.
    pub fn on_silent(&mut self) {
        if self.settings.mode == Mode::Auto {
            let stage = self.unproved();
            for waiting in self.waiting.iter_mut().filter(|waiting| waiting.stage == Stage::Native) {
                waiting.stage = stage;
            }
        }
    }

    /// A pong came from the upstream; only [`Pong::Foreign`] may pass on.
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

    /// One side is closing, `upstream` says which: nothing is sent from here on. Returns how many heartbeats go
    /// unanswered because the upstream went.
    pub fn on_closing(&mut self, upstream: bool) -> usize {
        self.closing = true;
        let unanswered = self.waiting.drain(..).filter(|waiting| !waiting.stalled).count();
        if upstream { unanswered } else { 0 }
    }

    /// One side is closing: heartbeats are not answered any more.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Nothing awaits anything.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.misses == 0
    }

    /// When [`Policy::next`] must be asked again, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(|waiting| self.due(waiting)).min()
    }

    /// What is to be done now; ask until it answers `None`.
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

    /// The stage of a heartbeat that the sidecar is to answer.
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
    fn a_heartbeat_that_comes_while_a_ping_is_outstanding_waits_for_the_next_one() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        let _withheld = policy.on_heartbeat(start, Capability::Silent);
        let first = ping(&mut policy, start);
        let _withheld = policy.on_heartbeat(start + MS, Capability::Silent);
        assert_eq!(policy.next(start + MS, ROOM), None, "one ping at a time");
        let _proof = policy.on_pong(&first, start + 2 * MS);
        assert_eq!(policy.next(start + 2 * MS, ROOM), Some(Action::Ack(2 * MS)));
        let second = ping(&mut policy, start + 2 * MS);
        assert_eq!(policy.next(start + 3 * MS, ROOM), None, "the first pong says nothing about the second heartbeat");
        let _proof = policy.on_pong(&second, start + 4 * MS);
        assert_eq!(policy.next(start + 4 * MS, ROOM), Some(Action::Ack(3 * MS)));
    }

    #[test]
    fn a_stalled_upstream_counts_once_and_a_late_pong_acks_late() {
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
    fn a_native_upstream_answers_by_itself() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        assert_eq!(policy.on_heartbeat(start, Capability::Native), Disposition::Forward);
        assert_eq!(policy.next(start, ROOM), None);
        assert_eq!(policy.on_native_ack(start + MS), Some(MS));
        assert_eq!((policy.next(start + Duration::from_secs(60), ROOM), policy.deadline()), (None, None));
        assert_eq!(policy.on_native_ack(start + MS), None, "an ack that nobody waits for");
    }

    #[test]
    fn a_native_ack_that_stays_away_is_made_up_for_once_the_upstream_is_proved_alive() {
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
    fn heartbeats_that_were_forwarded_to_an_upstream_that_turns_out_silent_wait_no_longer() {
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
    fn a_lost_native_ack_is_not_passed_on_from_heartbeat_to_heartbeat() {
        let (start, mut policy) = (Instant::now(), policy(Settings::default()));
        let _lost = policy.on_heartbeat(start, Capability::Native);
        for beat in 1..=3 {
            let sent = start + beat * 600 * MS;
            let _forwarded = policy.on_heartbeat(sent, Capability::Native);
            assert_eq!(policy.on_native_ack(sent + MS), Some(MS));
        }
        let late = start + Settings::default().native_deadline;
        assert_eq!(policy.next(late, ROOM), Some(Action::NativeAckOverdue), "the first one alone is left");
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
    fn a_native_ack_during_the_proof_makes_ours_needless() {
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
    fn mode_forward_never_answers_and_says_so() {
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
    fn a_heartbeat_whose_native_ack_cannot_be_seen_is_answered_after_a_proof_and_teaches_nothing() {
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
    fn an_open_connection_is_proof_enough_if_told_so() {
        let settings = Settings { proof: Proof::Connection, ..Settings::default() };
        let (start, mut policy) = (Instant::now(), policy(settings));
        assert_eq!(policy.on_heartbeat(start, Capability::Silent), Disposition::Withhold);
        assert_eq!(policy.next(start, ROOM), Some(Action::Ack(Duration::ZERO)));
    }

    #[test]
    fn nothing_is_sent_where_there_is_no_room() {
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
        assert_eq!(policy.on_closing(true), 1, "the upstream went before it had proved itself");
        assert_eq!((policy.next(start, ROOM), policy.deadline()), (None, None));
        assert_eq!(policy.on_heartbeat(start, Capability::Silent), Disposition::Forward);
        assert_eq!(policy.on_closing(true), 0);
    }

    #[test]
    fn a_flood_shares_the_newest_ack_and_grows_nothing() {
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
