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
pub struct Patience {
    /// How long either peer may acknowledge nothing of what was sent to it, and the browser leave a ping unanswered.
    pub dead_peer: Duration,
    /// How long the browser may take nothing of what waits for it.
    pub write_stall: Duration,
    /// How long the upstream may take to close a session that is taken over.
    pub takeover: Duration,
}

/// The watch over both peers while something is on its way to either.
#[derive(Debug)]
pub(super) struct Vigil {
    looked: Instant,
    browser: Peer,
    upstream: Peer,
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
pub(super) struct Sight {
    /// What the kernel says; `waits` also if more waits for the kernel.
    pub(super) delivery: Delivery,
    /// Bytes came from the peer since the last look.
    pub(super) heard: bool,
    /// Since when a ping to the peer has been without its pong.
    pub(super) unanswered: Option<Instant>,
}

impl Vigil {
    /// Something has just been sent.
    pub(super) fn new(now: Instant) -> Self {
        Self { looked: now, browser: Peer::new(now), upstream: Peer::new(now) }
    }

    /// When the next look is due.
    pub(super) fn due(&self, patience: &Patience) -> Instant {
        let interval = patience.dead_peer.min(patience.write_stall) / LOOKS;
        common(self.looked + interval, interval / MOMENTS)
    }

    /// Judges what is seen of `peer`. Answers whether there is anything left to watch.
    ///
    /// # Errors
    /// The peer is to be given up: never before its patience has run out, and at most two intervals after.
    pub(super) fn look(&mut self, peer: Sender, sight: Sight, patience: &Patience, now: Instant) -> Result<bool, Loss> {
        let since_look = now.saturating_duration_since(self.looked);
        let over = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        let known = match peer {
            Sender::Browser => &mut self.browser,
            Sender::Upstream => &mut self.upstream,
        };
        known.see(&sight, since_look, now);
        if over(known.alive, patience.dead_peer) {
            return Err(dead(peer));
        }
        // An app server that takes nothing may be busy; its heartbeats tell.
        if peer == Sender::Browser && over(known.moved, patience.write_stall) {
            return Err(Loss::BrowserStalled);
        }
        if sight.unanswered.is_some_and(|sent| over(sent.max(known.sign), patience.dead_peer)) {
            return Err(Loss::BrowserPongMissed);
        }
        Ok(known.waits || sight.unanswered.is_some())
    }

    /// Both peers were looked at.
    pub(super) fn on_looked(&mut self, now: Instant) {
        self.looked = now;
    }
}

/// The last, by then, of all moments that are so far apart.
fn common(at: Instant, apart: Duration) -> Instant {
    let over = at.saturating_duration_since(*EPOCH).as_nanos() % apart.as_nanos().max(1);
    // It is less than what lies between the looks.
    at - Duration::from_nanos(over as u64)
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self { acknowledged: 0, in_flight: true, waits: true, alive: now, moved: now, sign: now }
    }

    /// What was sent since the last look only is given its whole time.
    fn see(&mut self, Sight { delivery, heard, .. }: &Sight, since_look: Duration, now: Instant) {
        let taken = delivery.acknowledged != self.acknowledged;
        if *heard || !(self.in_flight && delivery.in_flight) || delivery.quiet < since_look {
            self.alive = now;
        }
        if taken || !(self.waits && delivery.waits) {
            self.moved = now;
        }
        if *heard || taken {
            self.sign = now;
        }
        (self.acknowledged, self.in_flight, self.waits) = (delivery.acknowledged, delivery.in_flight, delivery.waits);
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
        let vigils = (0..500).map(|millis| begin + Duration::from_millis(millis)).map(Vigil::new);
        let due: Vec<_> = vigils.map(|vigil| (vigil.looked, vigil.due(&PATIENCE))).collect();
        let moments: std::collections::HashSet<_> = due.iter().map(|(_looked, due)| *due).collect();
        assert!(moments.len() <= 2, "{}", moments.len());
        let sixth = PATIENCE.dead_peer / 6;
        assert!(due.iter().all(|(looked, due)| (sixth * 7 / 8..=sixth).contains(&due.duration_since(*looked))));
    }

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Patience =
        Patience { dead_peer: Duration::from_secs(30), write_stall: Duration::from_secs(120), takeover: SECOND };
    const IDLE: Delivery =
        Delivery { acknowledged: 100, in_flight: false, waits: false, quiet: Duration::from_secs(99) };
    const UNACKED: Delivery = Delivery { in_flight: true, waits: true, ..IDLE };
    /// Its window is shut, and it answers the kernel's probes now and then.
    const SHUT: Delivery = Delivery { waits: true, ..IDLE };

    fn seen(delivery: Delivery) -> Sight {
        Sight { delivery, heard: false, unanswered: None }
    }

    /// One of the moments at which all sessions look: from there on looks are due after whole intervals.
    fn aligned() -> Instant {
        common(Instant::now() + 10 * SECOND, PATIENCE.dead_peer / LOOKS)
    }

    /// Looks whenever it is due; answers after how long which verdict came, if that was not to go on.
    fn verdict(peer: Sender, sight: impl Fn(Duration, Instant) -> Sight) -> (u64, Result<bool, Loss>) {
        let start = aligned();
        let mut vigil = Vigil::new(start);
        loop {
            let now = vigil.due(&PATIENCE);
            let verdict = vigil.look(peer, sight(now - start, start), &PATIENCE, now);
            vigil.on_looked(now);
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
        let silent = |_after, start| Sight { unanswered: Some(start), ..seen(IDLE) };
        assert_eq!(
            verdict(Sender::Browser, silent),
            (35, Err(Loss::BrowserPongMissed)),
            "its system took the ping first"
        );
        let talking = |_after, start| Sight { unanswered: Some(start), heard: true, ..seen(IDLE) };
        assert_eq!(verdict(Sender::Browser, talking), (1005, Ok(true)));
        let loaded = |after: Duration, start| {
            let moving = Delivery { acknowledged: after.as_secs(), quiet: Duration::ZERO, ..UNACKED };
            Sight { unanswered: Some(start), ..seen(moving) }
        };
        assert_eq!(verdict(Sender::Browser, loaded), (1005, Ok(true)));
    }

    #[test]
    fn nothing_under_way_ends_the_watch() {
        assert_eq!(verdict(Sender::Browser, |_after, _start| seen(IDLE)), (5, Ok(false)));
    }
}
