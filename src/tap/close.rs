//! The orderly end of a session: inserts close frames and blocks what would follow them.
//!
//! Invariant: nothing follows an inserted close frame. None is inserted in a frame, nor the browser's in a message.

use std::time::Instant;

use super::output::{TapEvent, TapOutput};
use super::{Inspection, Tap};
use crate::heartbeat::Withheld;
use crate::websocket::frame::ControlFrame;
use crate::websocket::scanner::Side;

impl Tap {
    /// Closes both sides with `code`: the browser at the next message boundary, then the upstream between frames.
    /// A stream that cannot be parsed has no known boundaries: it runs to its end or to the drain timeout.
    pub fn close(&mut self, code: u16, now: Instant, output: &mut impl TapOutput) {
        self.close_code.get_or_insert(code);
        self.stop_answering(Side::Browser, output);
        self.drive(now, output);
    }

    /// Closes the browser with `code` if there is room, because another connection takes over the session. Nothing passes
    /// to it afterwards; the upstream's messages are still reported.
    pub fn leave_browser(&mut self, code: u16, output: &mut impl TapOutput) {
        self.stop_answering(Side::Browser, output);
        if self.inspection != Inspection::Off && self.room(output).browser {
            self.close_direction(Side::Upstream, code, output);
        }
        self.upstream.is_sealed = true;
    }

    /// Closes the upstream with `code` at once, after [`Tap::leave_browser`]. Nothing passes afterwards. Returns whether
    /// the upstream got a close frame, which needs room.
    pub fn close_for_takeover(&mut self, code: u16, output: &mut impl TapOutput) -> bool {
        let has_room = self.inspection != Inspection::Off && self.room(output).upstream;
        let is_close_sent = self.browser.close_received || has_room;
        if is_close_sent {
            self.close_direction(Side::Browser, code, output);
        }
        self.browser.is_sealed = true;
        is_close_sent
    }

    /// `from` has sent a close frame.
    pub fn has_closed(&self, from: Side) -> bool {
        self.direction(from).close_received
    }

    /// Nothing more may be sent in either direction, and `from` has sent a close frame.
    pub fn is_closed(&self, from: Side) -> bool {
        self.browser.is_sealed && self.upstream.is_sealed && self.has_closed(from)
    }

    /// Closes the browser first: an app server drops its unsent data when it is closed.
    pub(super) fn send_close_frames(&mut self, output: &mut impl TapOutput) {
        let Some(code) = self.close_code.filter(|_code| self.inspection != Inspection::Off) else { return };
        let room = self.room(output);
        if !self.upstream.is_sealed && (self.upstream.close_received || room.browser) {
            self.close_direction(Side::Upstream, code, output);
        }
        if self.upstream.is_sealed && !self.browser.is_sealed && (self.browser.close_received || room.upstream) {
            self.close_direction(Side::Browser, code, output);
        }
    }

    /// Closes the direction of `from`, with a close frame unless `from` has sent one.
    fn close_direction(&mut self, from: Side, code: u16, output: &mut impl TapOutput) {
        if !self.direction(from).close_received {
            let key = (from == Side::Browser).then(|| self.next_key());
            output.insert(from, ControlFrame::close(code, key).as_bytes());
        }
        self.direction_mut(from).is_sealed = true;
    }

    /// Stops answering heartbeats and pings. If the upstream is the `closer`, unanswered heartbeats count as withheld.
    pub(super) fn stop_answering(&mut self, closer: Side, output: &mut impl TapOutput) {
        if let Some(pings) = &mut self.pings {
            pings.on_closing();
        }
        for _unanswered in 0..self.policy.on_closing(closer == Side::Upstream) {
            output.on_event(TapEvent::Withheld(Withheld::UpstreamClosed));
        }
    }
}
