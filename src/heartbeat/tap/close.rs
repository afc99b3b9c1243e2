//! How a session ends in order: which close frames of ours go in, and what may follow them.
//!
//! Law: nothing follows a close frame of ours; none goes into a frame, and the browser's goes into no message.

use std::time::Instant;

use super::Tap;
use crate::heartbeat::Withheld;
use crate::heartbeat::inspection::Inspection;
use crate::heartbeat::output::{TapEvent, TapOutput};
use crate::websocket::frame::ControlFrame;
use crate::websocket::scanner::Sender;

impl Tap {
    /// Closes both sides with `code`: the browser at the next message boundary, then the upstream between frames.
    /// A stream that cannot be followed has no boundaries: it is left to its end or to the deadline.
    pub fn close(&mut self, code: u16, now: Instant, output: &mut impl TapOutput) {
        self.closing.get_or_insert(code);
        self.close_policy(Sender::Browser, output);
        self.drive(now, output);
    }

    /// Closes the upstream with `code` at once, since another connection takes the session over, and the browser if
    /// there is room. Nothing passes any more. Answers whether the upstream could be told: not inside a frame.
    pub fn hand_over(&mut self, code: u16, output: &mut impl TapOutput) -> bool {
        self.close_policy(Sender::Browser, output);
        let (room, followed) = (self.room(output), self.depth != Inspection::Off);
        if followed && room.browser {
            self.close_direction(Sender::Upstream, code, output);
        }
        let told = self.browser.closed || (followed && room.upstream);
        if told {
            self.close_direction(Sender::Browser, code, output);
        }
        self.upstream.close_sent = true;
        self.browser.close_sent = true;
        told
    }

    /// A close frame came from `from`.
    pub fn has_closed(&self, from: Sender) -> bool {
        self.direction(from).closed
    }

    /// Both sides have our close frame, and `from` has answered it or sent its own.
    pub fn is_closed(&self, from: Sender) -> bool {
        self.browser.close_sent && self.upstream.close_sent && self.has_closed(from)
    }

    /// Nothing may follow our close frame, or a torn one.
    pub(super) fn is_close_sent(&self, from: Sender) -> bool {
        self.direction(from).close_sent
    }

    /// The browser is told first: an app server that is told drops what it still had to send.
    pub(super) fn send_close_frames(&mut self, output: &mut impl TapOutput) {
        let Some(code) = self.closing.filter(|_code| self.depth != Inspection::Off) else { return };
        let room = self.room(output);
        if !self.upstream.close_sent && (self.upstream.closed || room.browser) {
            self.close_direction(Sender::Upstream, code, output);
        }
        if self.upstream.close_sent && !self.browser.close_sent && (self.browser.closed || room.upstream) {
            self.close_direction(Sender::Browser, code, output);
        }
    }

    /// Ends the direction that `from` sends in with a close frame of ours, unless its sender has sent one.
    fn close_direction(&mut self, from: Sender, code: u16, output: &mut impl TapOutput) {
        if !self.direction(from).closed {
            let key = (from == Sender::Browser).then(|| self.key());
            output.insert(from, ControlFrame::close(code, key).as_bytes());
        }
        self.direction_mut(from).close_sent = true;
    }

    pub(super) fn close_policy(&mut self, closer: Sender, output: &mut impl TapOutput) {
        if let Some(pings) = &mut self.pings {
            pings.on_closing();
        }
        for _unanswered in 0..self.policy.on_closing(closer == Sender::Upstream) {
            output.note(TapEvent::Withheld(Withheld::UpstreamClosed));
        }
    }
}
