//! Detects dead and stalled peers of a session by the kernel's state of the bytes sent to them.
//!
//! Invariant: a peer that acknowledges anything is alive. `TCP_USER_TIMEOUT` is not used: it also ends a connection
//! whose peer answers every probe but has no room (Linux, `tcp_probe_timer`).

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::metrics::Loss;
use crate::transport::Delivery;
use crate::websocket::scanner::Sender;

/// Number of checks in the shorter timeout; each may come a little early.
const LOOKS: u32 = 6;

/// Checks are rounded to shared ticks (8 per interval) so that one wake-up of an idle core serves many sessions.
const MOMENTS: u32 = 8;

/// The first of these ticks.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Timeouts for the peers of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// How long either peer may acknowledge nothing sent to it, and the browser may leave a ping unanswered.
    pub dead_peer: Duration,
    /// How long the browser may take none of its waiting bytes, and a session that a peer has left may stall.
    pub write_stall: Duration,
    /// How long the upstream may take to close a session that is taken over.
    pub takeover: Duration,
}

/// Monitors both peers while bytes are pending for either.
#[derive(Debug)]
pub(super) struct PeerMonitor {
    looked: Instant,
    /// When the next check is due.
    due: Instant,
    /// Started by a heartbeat; everything sent since will be at least one timeout old at the next check.
    is_of_heartbeat: bool,
    browser: Peer,
    upstream: Peer,
    /// When bytes last moved in the session, or neither peer had left.
    moved: Instant,
}

/// State of one peer.
#[derive(Debug)]
struct Peer {
    acknowledged: u64,
    in_flight: bool,
    waits: bool,
    /// When it was last known to be alive.
    alive: Instant,
    /// When it last took bytes or had none waiting.
    moved: Instant,
    /// When it last sent bytes or acknowledged new ones.
    sign: Instant,
}

/// What a check observes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    /// The kernel's report; `waits` also covers bytes that wait for the kernel.
    pub(super) delivery: Delivery,
    /// Bytes came from the peer since the last check.
    pub(super) heard: bool,
    /// When a ping to the peer was sent that has no pong yet.
    pub(super) unanswered: Option<Instant>,
}

impl PeerMonitor {
    /// Starts when bytes were just sent.
    pub(super) fn new(now: Instant, timeouts: &Timeouts) -> Self {
        let due = timeouts.next_look(now);
        Self {
            looked: now,
            due,
            is_of_heartbeat: false,
            browser: Peer::new(now, 0),
            upstream: Peer::new(now, 0),
            moved: now,
        }
    }

    /// Starts at a heartbeat with nothing in flight; the peers have acknowledged `browser` and `upstream` bytes. The
    /// next heartbeat brings a check. Separate ones cost more, so none is due before bytes sent for this one are late.
    pub(super) fn of_heartbeat(now: Instant, timeouts: &Timeouts, browser: u64, upstream: u64) -> Self {
        let due = timeouts.next_look(now + timeouts.shorter());
        Self {
            looked: now,
            due,
            is_of_heartbeat: true,
            browser: Peer::new(now, browser),
            upstream: Peer::new(now, upstream),
            moved: now,
        }
    }

    /// When the next check is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Whether [`PeerMonitor::on_sent`] must be called after a write.
    pub(super) fn is_of_heartbeat(&self) -> bool {
        self.is_of_heartbeat
    }

    /// More was sent. It gets its whole timeout before a check judges it.
    pub(super) fn on_sent(&mut self, now: Instant, timeouts: &Timeouts) {
        if now + timeouts.shorter() > self.due {
            self.is_of_heartbeat = false;
            self.due = self.due.min(timeouts.next_look(now));
        }
    }

    /// Judges an observation of `peer`. Returns whether anything is left to monitor.
    ///
    /// # Errors
    /// The peer must be given up: never before its timeout, and at most two intervals after it. A browser that stalls
    /// right after a heartbeat gets the shorter timeout in addition.
    pub(super) fn look(
        &mut self,
        peer: Sender,
        sight: Observation,
        timeouts: &Timeouts,
        now: Instant,
    ) -> Result<bool, Loss> {
        let since_look = now.saturating_duration_since(self.looked);
        let sent_by = if self.is_of_heartbeat { self.due - timeouts.shorter() } else { now };
        let over = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        let known = match peer {
            Sender::Browser => &mut self.browser,
            Sender::Upstream => &mut self.upstream,
        };
        if known.see(&sight, since_look, sent_by, now) {
            self.moved = now;
        }
        if over(known.alive, timeouts.dead_peer) {
            return Err(dead(peer));
        }
        // An app server that takes nothing may be busy; heartbeats reveal a stall.
        if peer == Sender::Browser && over(known.moved, timeouts.write_stall) {
            return Err(Loss::BrowserStalled);
        }
        if sight.unanswered.is_some_and(|sent| over(sent.max(known.sign), timeouts.dead_peer)) {
            return Err(Loss::BrowserPongMissed);
        }
        Ok(known.waits || sight.unanswered.is_some())
    }

    /// Bytes were read or written since the last check, or neither peer has left.
    pub(super) fn on_moved(&mut self, now: Instant) {
        self.moved = now;
    }

    /// Whether a session that a peer has left has stalled for too long: no one waits for what the other peer does not
    /// take or send.
    pub(super) fn stands_still(&self, timeouts: &Timeouts, now: Instant) -> bool {
        now.saturating_duration_since(self.moved) >= timeouts.write_stall
    }

    /// Both peers were checked.
    pub(super) fn on_looked(&mut self, now: Instant, timeouts: &Timeouts) {
        (self.looked, self.due, self.is_of_heartbeat) = (now, timeouts.next_look(now), false);
    }
}

impl Timeouts {
    fn shorter(&self) -> Duration {
        self.dead_peer.min(self.write_stall)
    }

    /// When the check after one at `looked` is due.
    fn next_look(&self, looked: Instant) -> Instant {
        let interval = self.shorter() / LOOKS;
        common(looked + interval, interval / MOMENTS)
    }
}

/// The last shared tick up to `at`; ticks are `apart`.
fn common(at: Instant, apart: Duration) -> Instant {
    let over = at.saturating_duration_since(*EPOCH).as_nanos() % apart.as_nanos().max(1);
    // Less than the time between checks, so the cast is exact.
    at - Duration::from_nanos(over as u64)
}

impl Peer {
    fn new(now: Instant, acknowledged: u64) -> Self {
        Self { acknowledged, in_flight: true, waits: true, alive: now, moved: now, sign: now }
    }

    /// Bytes in flight were sent at `sent_by` at the latest. Those sent since the last check get their whole timeout.
    /// Returns whether the peer has acknowledged any since then.
    fn see(
        &mut self,
        Observation { delivery, heard, .. }: &Observation,
        since_look: Duration,
        sent_by: Instant,
        now: Instant,
    ) -> bool {
        let taken = delivery.acknowledged != self.acknowledged;
        if !(self.in_flight && delivery.in_flight) {
            self.alive = now;
        } else if *heard || delivery.quiet < since_look {
            self.alive = now.checked_sub(delivery.quiet).map_or(sent_by, |answered| answered.max(sent_by));
        }
        if taken || !(self.waits && delivery.waits) {
            self.moved = now;
        }
        if *heard || taken {
            self.sign = now;
        }
        (self.acknowledged, self.in_flight, self.waits) = (delivery.acknowledged, delivery.in_flight, delivery.waits);
        taken
    }
}

/// The loss reported for a peer whose kernel is silent.
pub(super) fn dead(peer: Sender) -> Loss {
    match peer {
        Sender::Browser => Loss::BrowserDead,
        Sender::Upstream => Loss::UpstreamDead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_started_apart_share_check_ticks_and_are_checked_in_time() {
        let begin = Instant::now() + 2 * SECOND;
        let monitors = (0..500).map(|millis| PeerMonitor::new(begin + Duration::from_millis(millis), &TIMEOUTS));
        let due: Vec<_> = monitors.map(|monitor| (monitor.looked, monitor.due())).collect();
        let moments: std::collections::HashSet<_> = due.iter().map(|(_looked, due)| *due).collect();
        assert!(moments.len() <= 2, "{}", moments.len());
        let sixth = TIMEOUTS.dead_peer / 6;
        assert!(due.iter().all(|(looked, due)| (sixth * 7 / 8..=sixth).contains(&due.duration_since(*looked))));
    }

    const SECOND: Duration = Duration::from_secs(1);
    const TIMEOUTS: Timeouts =
        Timeouts { dead_peer: Duration::from_secs(30), write_stall: Duration::from_secs(120), takeover: SECOND };
    const IDLE: Delivery = Delivery {
        acknowledged: 100,
        in_flight: false,
        waits: false,
        quiet: Duration::from_secs(99),
        round_trip: None,
    };
    const UNACKED: Delivery = Delivery { in_flight: true, waits: true, ..IDLE };
    /// Its window is closed, and it answers some of the kernel's probes.
    const SHUT: Delivery = Delivery { waits: true, ..IDLE };

    fn seen(delivery: Delivery) -> Observation {
        Observation { delivery, heard: false, unanswered: None }
    }

    /// A shared tick: checks after it are due after whole intervals.
    fn aligned() -> Instant {
        common(Instant::now() + 10 * SECOND, TIMEOUTS.dead_peer / LOOKS)
    }

    /// Runs due checks; returns the seconds until a verdict other than to go on, and that verdict.
    fn verdict(peer: Sender, sight: impl Fn(Duration, Instant) -> Observation) -> (u64, Result<bool, Loss>) {
        let start = aligned();
        watch(PeerMonitor::new(start, &TIMEOUTS), peer, |after| sight(after, start))
    }

    fn watch(
        mut monitor: PeerMonitor,
        peer: Sender,
        sight: impl Fn(Duration) -> Observation,
    ) -> (u64, Result<bool, Loss>) {
        let start = monitor.looked;
        loop {
            let now = monitor.due();
            let verdict = monitor.look(peer, sight(now - start), &TIMEOUTS, now);
            monitor.on_looked(now, &TIMEOUTS);
            let after = (now - start).as_secs();
            if verdict != Ok(true) || after > 1000 {
                return (after, verdict);
            }
        }
    }

    #[test]
    fn a_peer_that_acknowledges_nothing_is_dead_after_its_timeout() {
        assert_eq!(verdict(Sender::Browser, |_after, _start| seen(UNACKED)), (30, Err(Loss::BrowserDead)));
        assert_eq!(verdict(Sender::Upstream, |_after, _start| seen(UNACKED)), (30, Err(Loss::UpstreamDead)));
    }

    #[test]
    fn bytes_sent_late_get_their_whole_timeout() {
        let late = |after: Duration, _start| seen(if after.as_secs() < 50 { SHUT } else { UNACKED });
        assert_eq!(verdict(Sender::Browser, late), (80, Err(Loss::BrowserDead)));
    }

    #[test]
    fn any_acknowledgement_keeps_a_peer_alive() {
        let slow = |after: Duration, _start| seen(Delivery { acknowledged: after.as_secs() / 20, ..UNACKED });
        assert_eq!(verdict(Sender::Browser, slow), (30, Err(Loss::BrowserDead)), "its last packet came 99 s ago");
        let slow = |after: Duration, _start| {
            let quiet = Duration::from_secs(after.as_secs() % 20);
            seen(Delivery { acknowledged: after.as_secs() / 20, quiet, ..UNACKED })
        };
        assert_eq!(verdict(Sender::Browser, slow), (1005, Ok(true)));
    }

    #[test]
    fn a_closed_window_means_a_stalled_browser_but_only_a_busy_upstream() {
        assert_eq!(verdict(Sender::Browser, |_after, _start| seen(SHUT)), (125, Err(Loss::BrowserStalled)));
        assert_eq!(verdict(Sender::Upstream, |_after, _start| seen(SHUT)), (1005, Ok(true)));
    }

    #[test]
    fn a_slow_reader_is_not_stalled() {
        let slow = |after: Duration, _start| seen(Delivery { acknowledged: after.as_secs() / 100, ..SHUT });
        assert_eq!(verdict(Sender::Browser, slow), (1005, Ok(true)));
    }

    #[test]
    fn an_unanswered_ping_ends_the_session_after_the_timeout_unless_bytes_move() {
        let silent = |_after, start| Observation { unanswered: Some(start), ..seen(IDLE) };
        assert_eq!(
            verdict(Sender::Browser, silent),
            (35, Err(Loss::BrowserPongMissed)),
            "its kernel acknowledged the ping first"
        );
        let talking = |_after, start| Observation { unanswered: Some(start), heard: true, ..seen(IDLE) };
        assert_eq!(verdict(Sender::Browser, talking), (1005, Ok(true)));
        let loaded = |after: Duration, start| {
            let moving = Delivery { acknowledged: after.as_secs(), quiet: Duration::ZERO, ..UNACKED };
            Observation { unanswered: Some(start), ..seen(moving) }
        };
        assert_eq!(verdict(Sender::Browser, loaded), (1005, Ok(true)));
    }

    /// The verdict on a browser whose heartbeat started the monitor, with 100 bytes acknowledged.
    fn behind_heartbeat(sight: impl Fn(Duration) -> Delivery) -> (u64, Result<bool, Loss>) {
        let monitor = PeerMonitor::of_heartbeat(aligned(), &TIMEOUTS, 100, 0);
        watch(monitor, Sender::Browser, |after| seen(sight(after)))
    }

    #[test]
    fn after_a_heartbeat_the_first_check_is_due_when_its_ack_is_late() {
        assert_eq!(behind_heartbeat(|_after| UNACKED), (35, Err(Loss::BrowserDead)));
        assert_eq!(behind_heartbeat(|_after| Delivery { acknowledged: 107, ..IDLE }), (35, Ok(false)));
        let shut = |_after| Delivery { quiet: SECOND, ..SHUT };
        assert_eq!(behind_heartbeat(shut), (120, Err(Loss::BrowserStalled)));
    }

    #[test]
    fn an_acknowledgement_after_a_heartbeat_counts_from_its_arrival() {
        let answered_at = |moment: u32| {
            move |after: Duration| Delivery { acknowledged: 107, quiet: after - moment * SECOND, ..UNACKED }
        };
        assert_eq!(behind_heartbeat(answered_at(1)), (35, Err(Loss::BrowserDead)));
        assert_eq!(behind_heartbeat(answered_at(20)), (50, Err(Loss::BrowserDead)));
    }

    #[test]
    fn bytes_sent_after_a_heartbeat_get_their_whole_timeout_and_no_more() {
        let start = aligned();
        let begin = || PeerMonitor::of_heartbeat(start, &TIMEOUTS, 100, 0);
        let mut monitor = begin();
        monitor.on_sent(start + 5 * SECOND, &TIMEOUTS);
        assert_eq!(monitor.due() - start, 35 * SECOND, "its timeout is over by then");
        let mut monitor = begin();
        monitor.on_sent(start + 10 * SECOND, &TIMEOUTS);
        assert_eq!(monitor.due() - start, 15 * SECOND);
        let dead =
            |after: Duration| seen(Delivery { acknowledged: 107, quiet: after.saturating_sub(SECOND), ..UNACKED });
        assert_eq!(watch(monitor, Sender::Browser, dead), (45, Err(Loss::BrowserDead)));
        let mut monitor = begin();
        monitor.on_sent(start + 34 * SECOND, &TIMEOUTS);
        assert_eq!(monitor.due() - start, 35 * SECOND, "no check is postponed");
    }

    #[test]
    fn monitoring_ends_when_nothing_is_in_flight() {
        assert_eq!(verdict(Sender::Browser, |_after, _start| seen(IDLE)), (5, Ok(false)));
    }
}
