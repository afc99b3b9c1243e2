//! Detects dead and stalled peers of a session by the kernel's state of the bytes sent to them.
//!
//! Invariant: a peer that acknowledges anything is alive. `TCP_USER_TIMEOUT` is not used: it also ends a connection
//! whose peer answers every probe but has no room (Linux, `tcp_probe_timer`).

#[cfg(test)]
mod tests;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::metrics::Loss;
use crate::transport::Delivery;
use crate::websocket::scanner::Side;

/// Number of checks in the shorter timeout. Each may be a little early.
const CHECKS_PER_TIMEOUT: u32 = 6;

/// Checks are rounded to shared ticks (8 per interval) so that one wake-up of an idle core serves many sessions.
const TICKS_PER_INTERVAL: u32 = 8;

/// The first tick.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Timeouts for the peers of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// How long either peer may acknowledge nothing sent to it, and the browser may leave a ping unanswered.
    pub dead_peer: Duration,
    /// How long the browser may read none of its waiting bytes, and a session that a peer has left may stall.
    pub write_stall: Duration,
    /// How long the upstream may take to close a session that is taken over.
    pub takeover: Duration,
}

/// Monitors both peers while bytes are pending for either.
#[derive(Debug)]
pub(super) struct PeerMonitor {
    checked: Instant,
    /// When the next check is due.
    due: Instant,
    /// Started by a heartbeat; everything sent since will be at least one timeout old at the next check.
    after_heartbeat: bool,
    browser: PeerState,
    upstream: PeerState,
    /// When bytes last moved in the session, or neither peer had left.
    progress: Instant,
}

/// State of one peer.
#[derive(Debug)]
struct PeerState {
    acknowledged: u64,
    in_flight: bool,
    pending: bool,
    /// When it was last known to be alive.
    alive: Instant,
    /// When it last acknowledged bytes or had none waiting.
    progress: Instant,
    /// When it last sent bytes or acknowledged new ones.
    active: Instant,
}

/// What a check observes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    /// The kernel's report; `pending` also covers bytes that the kernel has not accepted.
    pub(super) delivery: Delivery,
    /// Bytes came from the peer since the last check.
    pub(super) received: bool,
    /// When a ping to the peer was sent that has no pong yet.
    pub(super) unanswered: Option<Instant>,
}

impl PeerMonitor {
    /// Starts when bytes were just sent.
    pub(super) fn new(now: Instant, timeouts: &Timeouts) -> Self {
        let due = timeouts.next_check(now);
        Self {
            checked: now,
            due,
            after_heartbeat: false,
            browser: PeerState::new(now, 0),
            upstream: PeerState::new(now, 0),
            progress: now,
        }
    }

    /// Starts at a heartbeat with nothing in flight; the peers have acknowledged `browser` and `upstream` bytes. The
    /// next heartbeat brings a check. Separate ones cost more, so none is due before bytes sent for this one are late.
    pub(super) fn after_heartbeat(now: Instant, timeouts: &Timeouts, browser: u64, upstream: u64) -> Self {
        let due = timeouts.next_check(now + timeouts.shorter());
        Self {
            checked: now,
            due,
            after_heartbeat: true,
            browser: PeerState::new(now, browser),
            upstream: PeerState::new(now, upstream),
            progress: now,
        }
    }

    /// When the next check is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Whether [`PeerMonitor::on_sent`] must be called after a write.
    pub(super) fn expects_on_sent(&self) -> bool {
        self.after_heartbeat
    }

    /// More was sent. No check gives the peer up before the timeout of these bytes.
    pub(super) fn on_sent(&mut self, now: Instant, timeouts: &Timeouts) {
        if now + timeouts.shorter() > self.due {
            self.after_heartbeat = false;
            self.due = self.due.min(timeouts.next_check(now));
        }
    }

    /// Checks an observation of `peer`. Returns whether anything is left to monitor.
    ///
    /// # Errors
    /// The peer must be given up: never before its timeout, and at most two intervals after it. A browser that stalls
    /// right after a heartbeat gets the shorter timeout in addition.
    pub(super) fn check(
        &mut self,
        peer: Side,
        observation: Observation,
        timeouts: &Timeouts,
        now: Instant,
    ) -> Result<bool, Loss> {
        let since_check = now.saturating_duration_since(self.checked);
        let sent_by = if self.after_heartbeat { self.due - timeouts.shorter() } else { now };
        let expired = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        let state = match peer {
            Side::Browser => &mut self.browser,
            Side::Upstream => &mut self.upstream,
        };
        if state.update(&observation, since_check, sent_by, now) {
            self.progress = now;
        }
        if expired(state.alive, timeouts.dead_peer) {
            return Err(dead(peer));
        }
        // An app that reads nothing may be busy; heartbeats reveal a stall.
        if peer == Side::Browser && expired(state.progress, timeouts.write_stall) {
            return Err(Loss::BrowserStalled);
        }
        if observation.unanswered.is_some_and(|sent| expired(sent.max(state.active), timeouts.dead_peer)) {
            return Err(Loss::BrowserPongMissed);
        }
        Ok(state.pending || observation.unanswered.is_some())
    }

    /// Bytes were read or written since the last check, or neither peer has left.
    pub(super) fn on_progress(&mut self, now: Instant) {
        self.progress = now;
    }

    /// Whether no byte has moved for `write_stall` in a session that one peer has left.
    pub(super) fn is_stalled(&self, timeouts: &Timeouts, now: Instant) -> bool {
        now.saturating_duration_since(self.progress) >= timeouts.write_stall
    }

    /// Both peers were checked.
    pub(super) fn on_checked(&mut self, now: Instant, timeouts: &Timeouts) {
        (self.checked, self.due, self.after_heartbeat) = (now, timeouts.next_check(now), false);
    }
}

impl Timeouts {
    fn shorter(&self) -> Duration {
        self.dead_peer.min(self.write_stall)
    }

    /// When the check after one at `checked` is due.
    fn next_check(&self, checked: Instant) -> Instant {
        let interval = self.shorter() / CHECKS_PER_TIMEOUT;
        last_tick(checked + interval, interval / TICKS_PER_INTERVAL)
    }
}

/// The last shared tick up to `at`; ticks are `tick` apart.
fn last_tick(at: Instant, tick: Duration) -> Instant {
    let since_tick = at.saturating_duration_since(*EPOCH).as_nanos() % tick.as_nanos().max(1);
    // Less than the time between checks, so the cast is exact.
    at - Duration::from_nanos(since_tick as u64)
}

impl PeerState {
    fn new(now: Instant, acknowledged: u64) -> Self {
        Self { acknowledged, in_flight: true, pending: true, alive: now, progress: now, active: now }
    }

    /// Bytes in flight were sent at `sent_by` at the latest. Bytes sent since the last check get their whole timeout.
    /// Returns whether the peer has acknowledged any since then.
    fn update(
        &mut self,
        Observation { delivery, received, .. }: &Observation,
        since_check: Duration,
        sent_by: Instant,
        now: Instant,
    ) -> bool {
        let acknowledged = delivery.acknowledged != self.acknowledged;
        if !(self.in_flight && delivery.in_flight) {
            self.alive = now;
        } else if *received || delivery.quiet < since_check {
            self.alive = now.checked_sub(delivery.quiet).map_or(sent_by, |answered| answered.max(sent_by));
        }
        if acknowledged || !(self.pending && delivery.pending) {
            self.progress = now;
        }
        if *received || acknowledged {
            self.active = now;
        }
        (self.acknowledged, self.in_flight, self.pending) =
            (delivery.acknowledged, delivery.in_flight, delivery.pending);
        acknowledged
    }
}

/// The loss reported for a peer whose kernel is silent.
pub(super) fn dead(peer: Side) -> Loss {
    match peer {
        Side::Browser => Loss::BrowserDead,
        Side::Upstream => Loss::UpstreamDead,
    }
}
