//! Decides what happens to each heartbeat of one session.
//!
//! Law: acks made here ≤ heartbeats in, and none before the upstream has proved itself alive since that heartbeat.

use std::time::{Duration, Instant};

use super::liveness::{Liveness, Pong, Tag};
use super::{Capability, Mode, Proof, Settings, Withheld};

/// Heartbeats that may await their acks at a time. One more shares the ack of the newest, so that a flood grows nothing.
pub const MAX_WAITING: usize = 8;

/// What becomes of the heartbeat's own bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Passage {
    /// They go on to the upstream.
    Forward,
    /// They are taken out of the stream.
    Withhold,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verb {
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
    /// The upstream has seen it and may still answer it.
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
    pub fn on_heartbeat(&mut self, now: Instant, capability: Capability) -> Passage {
        if self.closing {
            return Passage::Forward;
        }
        let answer_here = match (self.settings.mode, capability) {
            (Mode::Answer, _) | (Mode::Auto, Capability::Silent) => true,
            (Mode::Forward, _) | (Mode::Auto, Capability::Unknown | Capability::Native) => false,
        };
        let stage = if answer_here { self.unproved() } else { Stage::Native };
        let full = self.waiting.len() == MAX_WAITING;
        match self.waiting.last_mut().filter(|_| full) {
            // It shares the newest one's ack, which therefore must not be released by a proof older than itself.
            Some(newest) => {
                newest.stage = stage;
                newest.forwarded |= !answer_here;
            }
            None => self.waiting.push(Waiting { since: now, stage, forwarded: !answer_here, stalled: false }),
        }
        if answer_here { Passage::Withhold } else { Passage::Forward }
    }

    /// An ack of the upstream's own came by: how long its heartbeat waited, if one did.
    pub fn on_native_ack(&mut self, now: Instant) -> Option<Duration> {
        let in_time = self.waiting.iter().position(|waiting| waiting.stage == Stage::Native);
        let answered = in_time.or_else(|| self.waiting.iter().position(|waiting| waiting.forwarded))?;
        let waiting = self.waiting.remove(answered);
        self.release_if_idle();
        Some(now.saturating_duration_since(waiting.since))
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

    /// Nothing awaits anything.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.misses == 0
    }

    /// When [`Policy::next`] must be asked again, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(|waiting| self.due(waiting)).min()
    }

    /// What is to be done now; ask until it answers `None`.
    pub fn next(&mut self, now: Instant, room: Room) -> Option<Verb> {
        if self.misses > 0 {
            self.misses -= 1;
            return Some(Verb::NativeAckMissed);
        }
        if let Some(late) = self.waiting.iter().position(|waiting| self.due(waiting).is_some_and(|due| due <= now)) {
            return Some(self.overdue(late));
        }
        if room.browser
            && let Some(proved) = self.waiting.iter().position(|waiting| waiting.stage == Stage::Proved)
        {
            let waiting = self.waiting.remove(proved);
            self.release_if_idle();
            return Some(Verb::Ack(now.saturating_duration_since(waiting.since)));
        }
        let mut unproved = self.waiting.iter_mut().filter(|waiting| waiting.stage == Stage::Unproved).peekable();
        if !room.upstream || self.liveness.is_outstanding() || unproved.peek().is_none() {
            return None;
        }
        unproved.for_each(|waiting| waiting.stage = Stage::Proving);
        Some(Verb::Ping(self.liveness.on_ping(now)))
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

    fn overdue(&mut self, late: usize) -> Verb {
        let native = self.waiting[late].stage == Stage::Native;
        if native && self.settings.mode == Mode::Forward {
            let _unanswered = self.waiting.remove(late);
            self.release_if_idle();
            return Verb::Withheld(Withheld::Policy);
        }
        if native {
            let stage = self.unproved();
            self.waiting[late].stage = stage;
            self.misses += u8::from(stage == Stage::Proved);
            return Verb::NativeAckOverdue;
        }
        self.waiting[late].stalled = true;
        Verb::Withheld(Withheld::UpstreamStalled)
    }

    /// An idle session owns no buffer.
    fn release_if_idle(&mut self) {
        if self.waiting.is_empty() {
            self.waiting = Vec::new();
        }
    }
}
