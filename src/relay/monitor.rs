//! Whether the peers of a session are still there, told by what the kernel knows of the bytes on their way to them.
//!
//! Law: a peer that acknowledges anything is alive. `TCP_USER_TIMEOUT` is not used, since it also ends a connection
//! whose peer answers every probe but has no room just now (Linux, `tcp_probe_timer`).

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use super::progress::Delivery;
use crate::metrics::Loss;
use crate::websocket::scanner::Sender;

/// A look is due each such part of the shorter patience, or a little sooner.
const LOOKS: u32 = 6;

/// The moments at which looks are due, so many in the time from one to the next, are those of all sessions: one wake of an idle core
/// then serves many.
const MOMENTS: u32 = 8;

/// What these moments are counted from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// How long the peers of a session are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// How long either peer may acknowledge nothing of what was sent to it, and the browser leave a ping unanswered.
    pub dead_peer: Duration,
    /// How long the browser may take nothing of what waits for it, and a session that a peer has left may stand still.
    pub write_stall: Duration,
    /// How long the upstream may take to close a session that is taken over.
    pub takeover: Duration,
}

/// The watch over both peers while something is on its way to either.
#[derive(Debug)]
pub(super) struct PeerMonitor {
    looked: Instant,
    /// When the next look is due.
    due: Instant,
    /// A heartbeat began it, and nothing was sent since that would not have had its whole time by the next look.
    is_of_heartbeat: bool,
    browser: Peer,
    upstream: Peer,
    /// When anything last moved in the session, or both peers were still there.
    moved: Instant,
}

/// What is known of one peer.
#[derive(Debug)]
struct Peer {
    acknowledged: u64,
    in_flight: bool,
    waits: bool,
    /// When it was last known to be there.
    alive: Instant,
    /// When it was last known to take something, or to have been sent nothing.
    moved: Instant,
    /// When it last gave a sign by itself: bytes of its own, or an acknowledgement of ours.
    sign: Instant,
}

/// What is seen at a look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    /// What the kernel says; `waits` also if more waits for the kernel.
    pub(super) delivery: Delivery,
    /// Bytes came from the peer since the last look.
    pub(super) heard: bool,
    /// Since when a ping to the peer has been without its pong.
    pub(super) unanswered: Option<Instant>,
}

impl PeerMonitor {
    /// Something has just been sent.
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

    /// A heartbeat came, nothing is under way, and the peers have acknowledged so many bytes. The next heartbeat will bring a look
    /// along, so there is none before what is sent for this one is late: looks of their own cost more than heartbeats do.
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

    /// When the next look is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Whether [`PeerMonitor::on_sent`] is to be told of what is sent.
    pub(super) fn is_of_heartbeat(&self) -> bool {
        self.is_of_heartbeat
    }

    /// More was sent, which is to have its whole time before the look that judges it.
    pub(super) fn on_sent(&mut self, now: Instant, timeouts: &Timeouts) {
        if now + timeouts.shorter() > self.due {
            self.is_of_heartbeat = false;
            self.due = self.due.min(timeouts.next_look(now));
        }
    }

    /// Judges what is seen of `peer`. Answers whether there is anything left to watch.
    ///
    /// # Errors
    /// The peer is to be given up: never before its patience has run out, and at most two intervals after. A browser that stalls
    /// right behind a heartbeat has the shorter patience in addition.
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
        // An app server that takes nothing may be busy; its heartbeats tell.
        if peer == Sender::Browser && over(known.moved, timeouts.write_stall) {
            return Err(Loss::BrowserStalled);
        }
        if sight.unanswered.is_some_and(|sent| over(sent.max(known.sign), timeouts.dead_peer)) {
            return Err(Loss::BrowserPongMissed);
        }
        Ok(known.waits || sight.unanswered.is_some())
    }

    /// Something was read or written since the last look, or both peers are still there.
    pub(super) fn on_moved(&mut self, now: Instant) {
        self.moved = now;
    }

    /// Whether a session that a peer has left has stood still for too long: nobody waits for what the other peer does not take
    /// or send.
    pub(super) fn stands_still(&self, timeouts: &Timeouts, now: Instant) -> bool {
        now.saturating_duration_since(self.moved) >= timeouts.write_stall
    }

    /// Both peers were looked at.
    pub(super) fn on_looked(&mut self, now: Instant, timeouts: &Timeouts) {
        (self.looked, self.due, self.is_of_heartbeat) = (now, timeouts.next_look(now), false);
    }
}

impl Timeouts {
    fn shorter(&self) -> Duration {
        self.dead_peer.min(self.write_stall)
    }

    /// When the look behind one at `looked` is due.
    fn next_look(&self, looked: Instant) -> Instant {
        let interval = self.shorter() / LOOKS;
        common(looked + interval, interval / MOMENTS)
    }
}

/// The last, by then, of all moments that are so far apart.
fn common(at: Instant, apart: Duration) -> Instant {
    let over = at.saturating_duration_since(*EPOCH).as_nanos() % apart.as_nanos().max(1);
    // It is less than what lies between the looks.
    at - Duration::from_nanos(over as u64)
}

impl Peer {
    fn new(now: Instant, acknowledged: u64) -> Self {
        Self { acknowledged, in_flight: true, waits: true, alive: now, moved: now, sign: now }
    }

    /// What is under way was sent at `sent_by` at the latest. What was sent since the last look only is given its whole time.
    /// Answers whether the peer has acknowledged anything since then.
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

/// What is told of a peer whose system is silent.
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
    fn sessions_that_begin_apart_are_looked_at_together_and_in_time() {
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
    /// Its window is shut, and it answers the kernel's probes now and then.
    const SHUT: Delivery = Delivery { waits: true, ..IDLE };

    fn seen(delivery: Delivery) -> Observation {
        Observation { delivery, heard: false, unanswered: None }
    }

    /// One of the moments at which all sessions look: from there on looks are due after whole intervals.
    fn aligned() -> Instant {
        common(Instant::now() + 10 * SECOND, TIMEOUTS.dead_peer / LOOKS)
    }

    /// Looks whenever it is due; answers after how long which verdict came, if that was not to go on.
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
    fn a_peer_that_acknowledges_nothing_is_dead_after_its_patience() {
        assert_eq!(verdict(Sender::Browser, |_after, _start| seen(UNACKED)), (30, Err(Loss::BrowserDead)));
        assert_eq!(verdict(Sender::Upstream, |_after, _start| seen(UNACKED)), (30, Err(Loss::UpstreamDead)));
    }

    #[test]
    fn what_was_sent_late_has_its_whole_time() {
        let late = |after: Duration, _start| seen(if after.as_secs() < 50 { SHUT } else { UNACKED });
        assert_eq!(verdict(Sender::Browser, late), (80, Err(Loss::BrowserDead)));
    }

    #[test]
    fn any_acknowledgement_is_a_sign_of_life() {
        let slow = |after: Duration, _start| seen(Delivery { acknowledged: after.as_secs() / 20, ..UNACKED });
        assert_eq!(verdict(Sender::Browser, slow), (30, Err(Loss::BrowserDead)), "its last packet came 99 s ago");
        let slow = |after: Duration, _start| {
            let quiet = Duration::from_secs(after.as_secs() % 20);
            seen(Delivery { acknowledged: after.as_secs() / 20, quiet, ..UNACKED })
        };
        assert_eq!(verdict(Sender::Browser, slow), (1005, Ok(true)));
    }

    #[test]
    fn a_browser_whose_window_is_shut_is_stalled_and_an_upstream_is_busy() {
        assert_eq!(verdict(Sender::Browser, |_after, _start| seen(SHUT)), (125, Err(Loss::BrowserStalled)));
        assert_eq!(verdict(Sender::Upstream, |_after, _start| seen(SHUT)), (1005, Ok(true)));
    }

    #[test]
    fn a_slow_reader_is_no_stalled_one() {
        let slow = |after: Duration, _start| seen(Delivery { acknowledged: after.as_secs() / 100, ..SHUT });
        assert_eq!(verdict(Sender::Browser, slow), (1005, Ok(true)));
    }

    #[test]
    fn a_ping_is_answered_within_the_patience_unless_bytes_move() {
        let silent = |_after, start| Observation { unanswered: Some(start), ..seen(IDLE) };
        assert_eq!(
            verdict(Sender::Browser, silent),
            (35, Err(Loss::BrowserPongMissed)),
            "its system took the ping first"
        );
        let talking = |_after, start| Observation { unanswered: Some(start), heard: true, ..seen(IDLE) };
        assert_eq!(verdict(Sender::Browser, talking), (1005, Ok(true)));
        let loaded = |after: Duration, start| {
            let moving = Delivery { acknowledged: after.as_secs(), quiet: Duration::ZERO, ..UNACKED };
            Observation { unanswered: Some(start), ..seen(moving) }
        };
        assert_eq!(verdict(Sender::Browser, loaded), (1005, Ok(true)));
    }

    /// The verdict on a browser whose heartbeat began the watch, with 100 bytes acknowledged.
    fn behind_heartbeat(sight: impl Fn(Duration) -> Delivery) -> (u64, Result<bool, Loss>) {
        let monitor = PeerMonitor::of_heartbeat(aligned(), &TIMEOUTS, 100, 0);
        watch(monitor, Sender::Browser, |after| seen(sight(after)))
    }

    #[test]
    fn behind_a_heartbeat_there_is_one_look_when_its_ack_is_late() {
        assert_eq!(behind_heartbeat(|_after| UNACKED), (35, Err(Loss::BrowserDead)));
        assert_eq!(behind_heartbeat(|_after| Delivery { acknowledged: 107, ..IDLE }), (35, Ok(false)));
        let shut = |_after| Delivery { quiet: SECOND, ..SHUT };
        assert_eq!(behind_heartbeat(shut), (120, Err(Loss::BrowserStalled)));
    }

    #[test]
    fn a_sign_of_life_behind_a_heartbeat_counts_from_when_it_came() {
        let answered_at = |moment: u32| {
            move |after: Duration| Delivery { acknowledged: 107, quiet: after - moment * SECOND, ..UNACKED }
        };
        assert_eq!(behind_heartbeat(answered_at(1)), (35, Err(Loss::BrowserDead)));
        assert_eq!(behind_heartbeat(answered_at(20)), (50, Err(Loss::BrowserDead)));
    }

    #[test]
    fn what_is_sent_behind_a_heartbeat_has_its_whole_time_and_no_more() {
        let start = aligned();
        let begin = || PeerMonitor::of_heartbeat(start, &TIMEOUTS, 100, 0);
        let mut monitor = begin();
        monitor.on_sent(start + 5 * SECOND, &TIMEOUTS);
        assert_eq!(monitor.due() - start, 35 * SECOND, "its timeouts is over by then");
        let mut monitor = begin();
        monitor.on_sent(start + 10 * SECOND, &TIMEOUTS);
        assert_eq!(monitor.due() - start, 15 * SECOND);
        let dead =
            |after: Duration| seen(Delivery { acknowledged: 107, quiet: after.saturating_sub(SECOND), ..UNACKED });
        assert_eq!(watch(monitor, Sender::Browser, dead), (45, Err(Loss::BrowserDead)));
        let mut monitor = begin();
        monitor.on_sent(start + 34 * SECOND, &TIMEOUTS);
        assert_eq!(monitor.due() - start, 35 * SECOND, "no look is put off");
    }

    #[test]
    fn nothing_under_way_ends_the_watch() {
        assert_eq!(verdict(Sender::Browser, |_after, _start| seen(IDLE)), (5, Ok(false)));
    }
}
