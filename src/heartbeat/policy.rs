//! Decides what happens to each heartbeat of one session.
//!
//! Invariant: acks made here ≤ heartbeats received, and none before the upstream was proved alive after its heartbeat.

use std::time::{Duration, Instant};

use super::liveness::{Liveness, PingTag, Pong};
use super::{Capability, HeartbeatSettings, Mode, Proof, Withheld};

/// Most heartbeats that await acks at a time. Further ones share the newest's ack, so a flood needs no more memory.
/// Pages send heartbeats seconds apart: eight are pending only in a flood or a long stall.
pub const MAX_PENDING: usize = 8;

/// Heartbeats this close together may both be pending at a healthy server, which acks within milliseconds.
const ACK_MATCH_WINDOW: Duration = Duration::from_millis(500);

/// What happens to the bytes of a heartbeat, or of another frame that the sidecar may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Disposition {
    /// They pass to the upstream.
    Forward,
    /// They are removed from the stream.
    Remove,
}

/// What to do next for the heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Send a ping with this payload upstream, now, between two frames.
    Ping(PingTag),
    /// Send an ack to the browser, now, between two messages; the time since its heartbeat.
    Ack(Duration),
    /// A forwarded heartbeat got no native ack within `native_deadline`.
    NativeAckOverdue,
    /// The upstream was proved alive after a forwarded heartbeat, but has not acked it.
    NativeAckMissed,
    /// Count a heartbeat as withheld.
    Withheld(Withheld),
}

/// Where a frame can be inserted now.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// To the browser: between messages for an ack, between frames for a ping.
    pub browser: bool,
    /// To the upstream, between frames.
    pub upstream: bool,
}

/// The stage of an unanswered heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PendingStage {
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
struct PendingHeartbeat {
    since: Instant,
    stage: PendingStage,
    /// The upstream received it, and a native ack would be seen.
    is_forwarded: bool,
    /// It was already counted as withheld.
    is_stalled: bool,
}

/// The heartbeats of one session.
#[derive(Debug)]
pub struct Policy {
    settings: HeartbeatSettings,
    liveness: Liveness,
    /// Oldest first, at most [`MAX_PENDING`].
    pending: Vec<PendingHeartbeat>,
    /// Confirmed missed native acks not yet reported.
    missed_acks: u8,
    is_closing: bool,
}

impl Policy {
    /// The policy of a new session; `nonce` must be random.
    pub fn new(settings: HeartbeatSettings, nonce: u64) -> Self {
        Self { settings, liveness: Liveness::new(nonce), pending: Vec::new(), missed_acks: 0, is_closing: false }
    }

    /// The browser sent a heartbeat. Not called after [`Policy::on_closing`].
    pub fn on_heartbeat(&mut self, now: Instant, capability: Capability) -> Disposition {
        let answer_here = match (self.settings.mode, capability) {
            (Mode::Answer, _) | (Mode::Auto, Capability::Silent) => true,
            (Mode::Forward, _) | (Mode::Auto, Capability::Unknown | Capability::Native) => false,
        };
        let stage = if answer_here { self.unproved() } else { PendingStage::Native };
        self.await_ack(now, stage, !answer_here);
        if answer_here { Disposition::Remove } else { Disposition::Forward }
    }

    /// The browser sent a heartbeat that passes, and a native ack to it cannot be seen. It is answered as if the
    /// upstream were silent. A native ack as well does no harm: the page's timer has already stopped. Not called after
    /// [`Policy::on_closing`].
    pub fn on_compressed_heartbeat(&mut self, now: Instant) {
        if self.settings.mode != Mode::Forward {
            self.await_ack(now, self.unproved(), false);
        }
    }

    fn await_ack(&mut self, since: Instant, stage: PendingStage, is_forwarded: bool) {
        debug_assert!(!self.is_closing, "a heartbeat after a close is an ordinary message");
        let full = self.pending.len() == MAX_PENDING;
        match self.pending.last_mut().filter(|_| full) {
            // It shares the newest one's ack, which therefore must not be released by an older proof.
            Some(newest) => {
                newest.stage = stage;
                newest.is_forwarded |= is_forwarded;
            }
            None => self.pending.push(PendingHeartbeat { since, stage, is_forwarded, is_stalled: false }),
        }
    }

    /// The upstream sent its own ack. Returns how long its heartbeat waited, if one did.
    ///
    /// Acks carry no id, but a server acks in order. This ack belongs to the oldest heartbeat that arrived within half
    /// a second of the newest. An older one has lost its ack (Streamlit 1.55 to 1.67). Matching this ack to it would
    /// shift the loss from heartbeat to heartbeat. Heartbeats that await a native ack come first, then other forwarded
    /// ones, whose native ack is late.
    pub fn on_native_ack(&mut self, now: Instant) -> Option<Duration> {
        let answered = self.find_answered(|heartbeat| heartbeat.stage == PendingStage::Native);
        let heartbeat =
            self.pending.remove(answered.or_else(|| self.find_answered(|heartbeat| heartbeat.is_forwarded))?);
        self.release_if_idle();
        Some(now.saturating_duration_since(heartbeat.since))
    }

    fn find_answered(&self, may_be: fn(&PendingHeartbeat) -> bool) -> Option<usize> {
        let newest = self.pending.iter().rfind(|heartbeat| may_be(heartbeat))?.since;
        self.pending.iter().position(|heartbeat| may_be(heartbeat) && heartbeat.since + ACK_MATCH_WINDOW >= newest)
    }

    /// The upstream is silent: forwarded heartbeats no longer wait for native acks.
    pub fn on_silent(&mut self) {
        if self.settings.mode == Mode::Auto {
            let stage = self.unproved();
            for heartbeat in self.pending.iter_mut().filter(|heartbeat| heartbeat.stage == PendingStage::Native) {
                heartbeat.stage = stage;
            }
        }
    }

    /// The upstream sent a pong; only [`Pong::Foreign`] may pass.
    pub fn on_pong(&mut self, payload: &[u8], now: Instant) -> Pong {
        let pong = self.liveness.on_pong(payload, now);
        if let Pong::Proof(_) = pong {
            for heartbeat in self.pending.iter_mut().filter(|heartbeat| heartbeat.stage == PendingStage::Proving) {
                heartbeat.stage = PendingStage::Proved;
                self.missed_acks += u8::from(heartbeat.is_forwarded);
            }
        }
        pong
    }

    /// One side is closing: from now on nothing is sent. If it is the `upstream`, returns how many heartbeats stay
    /// unanswered and were not counted as withheld.
    pub fn on_closing(&mut self, upstream: bool) -> usize {
        self.is_closing = true;
        let unanswered = self.pending.drain(..).filter(|heartbeat| !heartbeat.is_stalled).count();
        if upstream { unanswered } else { 0 }
    }

    /// One side is closing: heartbeats are no longer answered.
    pub fn is_closing(&self) -> bool {
        self.is_closing
    }

    /// No heartbeat or report is pending.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.missed_acks == 0
    }

    /// When [`Policy::next`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.pending.iter().filter_map(|heartbeat| self.due(heartbeat)).min()
    }

    /// The next action; call until it returns `None`.
    pub fn next(&mut self, now: Instant, room: Room) -> Option<Action> {
        if self.missed_acks > 0 {
            self.missed_acks -= 1;
            return Some(Action::NativeAckMissed);
        }
        if let Some(late) = self.pending.iter().position(|heartbeat| self.due(heartbeat).is_some_and(|due| due <= now))
        {
            return Some(self.overdue(late));
        }
        if room.browser
            && let Some(proved) = self.pending.iter().position(|heartbeat| heartbeat.stage == PendingStage::Proved)
        {
            let heartbeat = self.pending.remove(proved);
            self.release_if_idle();
            return Some(Action::Ack(now.saturating_duration_since(heartbeat.since)));
        }
        let mut unproved =
            self.pending.iter_mut().filter(|heartbeat| heartbeat.stage == PendingStage::Unproved).peekable();
        if !room.upstream || self.liveness.is_outstanding() || unproved.peek().is_none() {
            return None;
        }
        unproved.for_each(|heartbeat| heartbeat.stage = PendingStage::Proving);
        Some(Action::Ping(self.liveness.on_ping(now)))
    }

    /// The first stage of a heartbeat that the sidecar answers.
    fn unproved(&self) -> PendingStage {
        match self.settings.proof {
            Proof::Pong => PendingStage::Unproved,
            Proof::Connection => PendingStage::Proved,
        }
    }

    fn due(&self, heartbeat: &PendingHeartbeat) -> Option<Instant> {
        match heartbeat.stage {
            PendingStage::Native => Some(heartbeat.since + self.settings.native_deadline),
            PendingStage::Unproved | PendingStage::Proving if !heartbeat.is_stalled => {
                Some(heartbeat.since + self.settings.stall_after)
            }
            PendingStage::Unproved | PendingStage::Proving | PendingStage::Proved => None,
        }
    }

    fn overdue(&mut self, late: usize) -> Action {
        let native = self.pending[late].stage == PendingStage::Native;
        if native && self.settings.mode == Mode::Forward {
            let _unanswered = self.pending.remove(late);
            self.release_if_idle();
            return Action::Withheld(Withheld::Policy);
        }
        if native {
            let stage = self.unproved();
            self.pending[late].stage = stage;
            self.missed_acks += u8::from(stage == PendingStage::Proved);
            return Action::NativeAckOverdue;
        }
        self.pending[late].is_stalled = true;
        Action::Withheld(Withheld::UpstreamStalled)
    }

    /// An idle session owns no buffer.
    fn release_if_idle(&mut self) {
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests;
