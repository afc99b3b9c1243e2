//! The websocket pings beside the heartbeats: ours to the browser, and the upstream's, answered in the browser's stead.
//!
//! Law: a pong of ours towards the upstream repeats what its ping carried (RFC 6455 §5.5.3), and goes only where a ping
//! was taken out.

use std::time::{Duration, Instant};

use super::liveness::{Liveness, Pong, Tag};
use crate::websocket::frame::MAX_CONTROL;

/// What is asked of a session's pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingSettings {
    /// From one ping to the browser to the next.
    pub interval: Duration,
    /// The upstream's pings end here: the browser's pong may take longer than the upstream waits for it.
    pub shield: bool,
}

/// What is to be sent, now, between two frames.
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
    /// The upstream's newest ping, while there is no room for its pong: older ones need none (RFC 6455 §5.5.3).
    asked: Option<Box<[u8]>>,
    closing: bool,
}

impl Pings {
    /// Those of a session that begins now; `nonce` must be random, and not the one of its heartbeats.
    pub fn new(settings: PingSettings, nonce: u64, now: Instant) -> Self {
        let (browser, due) = (Liveness::new(nonce), now + settings.interval);
        Self { settings, browser, due, sent: None, asked: None, closing: false }
    }

    /// The upstream's pings are to be taken out.
    pub fn shields(&self) -> bool {
        self.settings.shield && !self.closing
    }

    /// A ping of the upstream's was taken out.
    pub fn on_upstream_ping(&mut self, payload: &[u8]) {
        debug_assert!(payload.len() <= MAX_CONTROL);
        self.asked = Some(payload.into());
    }

    /// A pong came from the browser; only [`Pong::Foreign`] may pass on.
    pub fn on_browser_pong(&mut self, payload: &[u8], now: Instant) -> Pong {
        let pong = self.browser.on_pong(payload, now);
        if let Pong::Proof(_) = pong {
            self.sent = None;
        }
        pong
    }

    /// One side is closing: nothing is sent from here on, and nothing awaited.
    pub fn on_closing(&mut self) {
        self.closing = true;
        (self.asked, self.sent) = (None, None);
    }

    /// Since when a ping has been without its pong.
    pub fn unanswered(&self) -> Option<Instant> {
        self.sent
    }

    /// A pong waits for room.
    pub fn is_idle(&self) -> bool {
        self.asked.is_none()
    }

    /// When [`Pings::next`] must be asked again, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        (!self.closing).then_some(self.due)
    }

    /// What is to be sent now, where there is room for a control frame; ask until it answers `None`.
    pub fn next(&mut self, now: Instant, browser: bool, upstream: bool) -> Option<Outgoing> {
        if upstream && let Some(payload) = self.asked.take() {
            return Some(Outgoing::Pong(payload));
        }
        if self.closing || now < self.due {
            return None;
        }
        // A ping that finds no room, or whose forerunner is unanswered, is left out.
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
    fn the_browser_is_asked_each_interval_and_one_question_at_a_time() {
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
    fn a_ping_without_room_is_left_out_and_nobody_is_blamed() {
        let start = Instant::now();
        let mut pings = Pings::new(SETTINGS, 7, start);
        assert_eq!(pings.next(start + 30 * SECOND, false, true), None);
        assert_eq!((pings.unanswered(), pings.deadline()), (None, Some(start + 60 * SECOND)));
    }

    #[test]
    fn the_upstreams_newest_ping_is_answered_once_there_is_room() {
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
