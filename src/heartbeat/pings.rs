//! Websocket pings beside the heartbeats: pings the browser, and answers the upstream's pings in its place.
//!
//! Invariant: a pong to the upstream is sent only for a removed ping and repeats its payload (RFC 6455 §5.5.3).

use std::time::{Duration, Instant};

use super::liveness::{Liveness, PingTag, Pong};
use super::policy::Room;
use crate::websocket::frame::MAX_CONTROL_BYTES;

/// The ping settings of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingSettings {
    /// Time between pings to the browser; `None` if it gets none.
    pub interval: Option<Duration>,
    /// The upstream's pings are answered here: the browser's pong may take longer than the upstream waits.
    pub shield: bool,
}

/// What to send now, between two frames.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum PingAction {
    /// A ping to the browser.
    Ping(PingTag),
    /// A pong to the upstream.
    Pong(Box<[u8]>),
}

/// The pings of one session.
#[derive(Debug)]
pub struct Pings {
    /// `None` if the browser is not pinged.
    browser: Option<Box<BrowserPings>>,
    shield: bool,
    /// The upstream's newest ping, until its pong is sent; older ones need none (RFC 6455 §5.5.3).
    pending_pong: Option<Box<[u8]>>,
    is_closing: bool,
}

/// The pings to the browser.
#[derive(Debug)]
struct BrowserPings {
    liveness: Liveness,
    interval: Duration,
    /// When the next one is due.
    next: Instant,
}

impl Pings {
    /// The pings of a session that starts `now`. `nonce` must be random and differ from that of its heartbeats.
    pub fn new(settings: PingSettings, nonce: u64, now: Instant) -> Self {
        let browser = settings
            .interval
            .map(|interval| Box::new(BrowserPings { liveness: Liveness::new(nonce), interval, next: now + interval }));
        Self { browser, shield: settings.shield, pending_pong: None, is_closing: false }
    }

    /// Whether the upstream's pings are removed.
    pub fn shields(&self) -> bool {
        self.shield && !self.is_closing
    }

    /// A ping of the upstream was removed.
    pub fn on_upstream_ping(&mut self, payload: &[u8]) {
        debug_assert!(payload.len() <= MAX_CONTROL_BYTES);
        self.pending_pong = Some(payload.into());
    }

    /// The browser sent a pong; only [`Pong::Foreign`] may pass.
    pub fn on_browser_pong(&mut self, payload: &[u8], now: Instant) -> Pong {
        self.browser.as_mut().map_or(Pong::Foreign, |browser| browser.liveness.on_pong(payload, now))
    }

    /// One side is closing: from now on nothing is sent or awaited.
    pub fn on_closing(&mut self) {
        (self.is_closing, self.pending_pong) = (true, None);
    }

    /// The browser uses a new connection: the pong to an earlier ping is lost.
    pub fn on_new_leg(&mut self) {
        if let Some(browser) = &mut self.browser {
            browser.liveness = browser.liveness.next();
        }
    }

    /// When the unanswered ping was sent.
    pub fn unanswered_since(&self) -> Option<Instant> {
        self.browser.as_ref().filter(|_browser| !self.is_closing)?.liveness.outstanding_since()
    }

    /// No pong waits for room.
    pub fn is_idle(&self) -> bool {
        self.pending_pong.is_none()
    }

    /// When [`Pings::next`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.browser.as_ref().filter(|_browser| !self.is_closing).map(|browser| browser.next)
    }

    /// The next frame to send; call until it returns `None`.
    pub fn next(&mut self, now: Instant, room: Room) -> Option<PingAction> {
        if room.upstream
            && let Some(payload) = self.pending_pong.take()
        {
            return Some(PingAction::Pong(payload));
        }
        let browser = self.browser.as_mut().filter(|browser| !self.is_closing && browser.next <= now)?;
        // Without room, or while the previous ping is unanswered, this ping is skipped.
        browser.next = now + browser.interval;
        let may_ping = room.browser && !browser.liveness.is_outstanding();
        may_ping.then(|| PingAction::Ping(browser.liveness.on_ping(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const ROOM: Room = Room { browser: true, upstream: true };
    const SETTINGS: PingSettings = PingSettings { interval: Some(Duration::from_secs(30)), shield: true };

    fn ping(pings: &mut Pings, now: Instant) -> PingTag {
        match pings.next(now, ROOM) {
            Some(PingAction::Ping(tag)) => tag,
            other => panic!("a ping was due, not {other:?}"),
        }
    }

    #[test]
    fn browser_is_pinged_each_interval_unless_a_ping_is_unanswered() {
        let start = Instant::now();
        let mut pings = Pings::new(SETTINGS, 7, start);
        assert_eq!(pings.next(start + 29 * SECOND, ROOM), None);
        let tag = ping(&mut pings, start + 30 * SECOND);
        assert_eq!(pings.unanswered_since(), Some(start + 30 * SECOND));
        assert_eq!(pings.deadline(), Some(start + 60 * SECOND));
        assert_eq!(pings.next(start + 60 * SECOND, ROOM), None, "the first one is unanswered");
        assert_eq!(pings.on_browser_pong(b"somebody else's", start + 61 * SECOND), Pong::Foreign);
        assert_eq!(pings.on_browser_pong(&tag, start + 62 * SECOND), Pong::Proof(32 * SECOND));
        assert_eq!(pings.unanswered_since(), None);
        assert_ne!(ping(&mut pings, start + 90 * SECOND), tag);
    }

    #[test]
    fn ping_without_room_is_skipped_and_not_counted_as_unanswered() {
        let start = Instant::now();
        let mut pings = Pings::new(SETTINGS, 7, start);
        assert_eq!(pings.next(start + 30 * SECOND, Room { browser: false, ..ROOM }), None);
        assert_eq!((pings.unanswered_since(), pings.deadline()), (None, Some(start + 60 * SECOND)));
    }

    #[test]
    fn newest_upstream_ping_is_answered_once_there_is_room() {
        let start = Instant::now();
        let mut pings = Pings::new(SETTINGS, 7, start);
        pings.on_upstream_ping(b"old");
        pings.on_upstream_ping(b"new");
        assert_eq!((pings.next(start, Room { upstream: false, ..ROOM }), pings.is_idle()), (None, false));
        assert_eq!(pings.next(start, ROOM), Some(PingAction::Pong(Box::from(*b"new"))));
        assert_eq!((pings.next(start, ROOM), pings.is_idle()), (None, true));
    }

    #[test]
    fn nothing_is_sent_or_awaited_once_a_side_is_closing() {
        let start = Instant::now();
        let mut pings = Pings::new(SETTINGS, 7, start);
        let _unanswered = ping(&mut pings, start + 30 * SECOND);
        pings.on_upstream_ping(b"late");
        pings.on_closing();
        assert_eq!((pings.unanswered_since(), pings.deadline(), pings.shields()), (None, None, false));
        assert_eq!(pings.next(start + 60 * SECOND, ROOM), None);
    }
}
