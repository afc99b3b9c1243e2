//! Websocket pings beside the heartbeats: pings the browser, and answers the upstream's pings in its place.
//!
//! Invariant: a pong to the upstream repeats its ping's payload (RFC 6455 §5.5.3), and is sent only for a removed ping.

use std::time::{Duration, Instant};

use super::liveness::{Liveness, Pong, Tag};
use crate::websocket::frame::MAX_CONTROL;

/// The ping settings of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingSettings {
    /// Time between pings to the browser.
    pub interval: Duration,
    /// The upstream's pings are answered here: the browser's pong may take longer than the upstream waits.
    pub shield: bool,
}

/// A frame to send now, between two frames.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Outgoing {
    /// A ping to the browser.
    Ping(Tag),
    /// A pong to the upstream.
    Pong(Box<[u8]>),
}

/// The pings of one session.
#[derive(Debug)]
pub struct Pings {
    settings: PingSettings,
    browser: Liveness,
    /// When the next ping to the browser is due.
    due: Instant,
    sent: Option<Instant>,
    /// The upstream's newest ping, until its pong is sent; older ones need none (RFC 6455 §5.5.3).
    asked: Option<Box<[u8]>>,
    closing: bool,
}

impl Pings {
    /// The pings of a session that starts `now`. `nonce` must be random and differ from that of its heartbeats.
    pub fn new(settings: PingSettings, nonce: u64, now: Instant) -> Self {
        let (browser, due) = (Liveness::new(nonce), now + settings.interval);
        Self { settings, browser, due, sent: None, asked: None, closing: false }
    }

    /// Whether the upstream's pings are removed.
    pub fn shields(&self) -> bool {
        self.settings.shield && !self.closing
    }

    /// A ping of the upstream was removed.
    pub fn on_upstream_ping(&mut self, payload: &[u8]) {
        debug_assert!(payload.len() <= MAX_CONTROL);
        self.asked = Some(payload.into());
    }

    /// The browser sent a pong; only [`Pong::Foreign`] may pass.
    pub fn on_browser_pong(&mut self, payload: &[u8], now: Instant) -> Pong {
        let pong = self.browser.on_pong(payload, now);
        if let Pong::Proof(_) = pong {
            self.sent = None;
        }
        pong
    }

    /// One side is closing: from now on nothing is sent or awaited.
    pub fn on_closing(&mut self) {
        self.closing = true;
        (self.asked, self.sent) = (None, None);
    }

    /// When the unanswered ping was sent.
    pub fn unanswered(&self) -> Option<Instant> {
        self.sent
    }

    /// No pong waits for room.
    pub fn is_idle(&self) -> bool {
        self.asked.is_none()
    }

    /// When [`Pings::next`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        (!self.closing).then_some(self.due)
    }

    /// The next frame to send, given which side has room for one; call until it returns `None`.
    pub fn next(&mut self, now: Instant, browser: bool, upstream: bool) -> Option<Outgoing> {
        if upstream && let Some(payload) = self.asked.take() {
            return Some(Outgoing::Pong(payload));
        }
        if self.closing || now < self.due {
            return None;
        }
        // Without room, or while the previous ping is unanswered, this ping is skipped.
        self.due = now + self.settings.interval;
        if !browser || self.browser.is_outstanding() {
            return None;
        }
        self.sent = Some(now);
        Some(Outgoing::Ping(self.browser.on_ping(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const SETTINGS: PingSettings = PingSettings { interval: Duration::from_secs(30), shield: true };

    fn ping(pings: &mut Pings, now: Instant) -> Tag {
        match pings.next(now, true, true) {
            Some(Outgoing::Ping(tag)) => tag,
            other => panic!("a ping was due, not {other:?}"),
        }
    }

    #[test]
    fn browser_is_pinged_each_interval_unless_a_ping_is_unanswered() {
        let start = Instant::now();
        let mut pings = Pings::new(SETTINGS, 7, start);
        assert_eq!(pings.next(start + 29 * SECOND, true, true), None);
        let tag = ping(&mut pings, start + 30 * SECOND);
        assert_eq!(pings.unanswered(), Some(start + 30 * SECOND));
        assert_eq!(pings.deadline(), Some(start + 60 * SECOND));
        assert_eq!(pings.next(start + 60 * SECOND, true, true), None, "the first one is unanswered");
        assert_eq!(pings.on_browser_pong(b"somebody else's", start + 61 * SECOND), Pong::Foreign);
        assert_eq!(pings.on_browser_pong(&tag, start + 62 * SECOND), Pong::Proof(32 * SECOND));
        assert_eq!(pings.unanswered(), None);
        assert_ne!(ping(&mut pings, start + 90 * SECOND), tag);
    }

    #[test]
    fn ping_without_room_is_skipped_and_not_counted_as_unanswered() {
        let start = Instant::now();
        let mut pings = Pings::new(SETTINGS, 7, start);
        assert_eq!(pings.next(start + 30 * SECOND, false, true), None);
        assert_eq!((pings.unanswered(), pings.deadline()), (None, Some(start + 60 * SECOND)));
    }

    #[test]
    fn newest_upstream_ping_is_answered_once_there_is_room() {
        let start = Instant::now();
        let mut pings = Pings::new(SETTINGS, 7, start);
        pings.on_upstream_ping(b"old");
        pings.on_upstream_ping(b"new");
        assert_eq!((pings.next(start, true, false), pings.is_idle()), (None, false));
        assert_eq!(pings.next(start, true, true), Some(Outgoing::Pong(Box::from(*b"new"))));
        assert_eq!((pings.next(start, true, true), pings.is_idle()), (None, true));
    }

    #[test]
    fn nothing_is_sent_or_awaited_once_a_side_is_closing() {
        let start = Instant::now();
        let mut pings = Pings::new(SETTINGS, 7, start);
        let _unanswered = ping(&mut pings, start + 30 * SECOND);
        pings.on_upstream_ping(b"late");
        pings.on_closing();
        assert_eq!((pings.unanswered(), pings.deadline(), pings.shields()), (None, None, false));
        assert_eq!(pings.next(start + 60 * SECOND, true, true), None);
    }
}
