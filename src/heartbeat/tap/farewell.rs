//! How a session ends in order: which close frames of ours go in, and what may follow them.
//!
//! Law: nothing follows a close frame of ours; none goes into a frame, and the browser's goes into no message.

use std::time::Instant;

use super::Tap;
use crate::heartbeat::Withheld;
use crate::heartbeat::carrier::{TapEvent, TapOutput};
use crate::heartbeat::depth::Inspection;
use crate::websocket::frame::ControlFrame;
use crate::websocket::scanner::Sender;

impl Tap {
    /// Closes both sides with `code`: the browser at the next message boundary, then the upstream between frames.
    /// A stream that cannot be followed has no boundaries: it is left to its end or to the deadline.
    pub fn close(&mut self, code: u16, now: Instant, carrier: &mut impl TapOutput) {
        self.closing.get_or_insert(code);
        self.close_policy(Sender::Browser, carrier);
        self.settle(now, carrier);
    }

    /// Closes the upstream with `code` at once, since another connection takes the session over, and the browser if
    /// there is room. Nothing passes any more. Answers whether the upstream could be told: not inside a frame.
    pub fn hand_over(&mut self, code: u16, carrier: &mut impl TapOutput) -> bool {
        self.close_policy(Sender::Browser, carrier);
        let (room, followed) = (self.room(carrier), self.depth != Inspection::Off);
        if followed && room.browser {
            self.bid_farewell(Sender::Upstream, code, carrier);
        }
        let told = self.browser.closed || (followed && room.upstream);
        if told {
            self.bid_farewell(Sender::Browser, code, carrier);
        }
        self.upstream.farewell = true;
        self.browser.farewell = true;
        told
    }

    /// A close frame came from `from`.
    pub fn has_closed(&self, from: Sender) -> bool {
        self.lane(from).closed
    }

    /// Both sides have their farewell, and `from` has answered it or sent its own.
    pub fn is_closed(&self, from: Sender) -> bool {
        self.browser.farewell && self.upstream.farewell && self.has_closed(from)
    }

    /// Nothing may follow our close frame, or a torn one.
    pub(super) fn muted(&self, from: Sender) -> bool {
        self.lane(from).farewell
    }

    /// The browser is told first: an app server that is told drops what it still had to send.
    pub(super) fn say_farewell(&mut self, carrier: &mut impl TapOutput) {
        let Some(code) = self.closing.filter(|_code| self.depth != Inspection::Off) else { return };
        let room = self.room(carrier);
        if !self.upstream.farewell && (self.upstream.closed || room.browser) {
            self.bid_farewell(Sender::Upstream, code, carrier);
        }
        if self.upstream.farewell && !self.browser.farewell && (self.browser.closed || room.upstream) {
            self.bid_farewell(Sender::Browser, code, carrier);
        }
    }

    /// Ends the direction that `from` sends in with a close frame of ours, unless its sender has sent one.
    fn bid_farewell(&mut self, from: Sender, code: u16, carrier: &mut impl TapOutput) {
        if !self.lane(from).closed {
            let key = (from == Sender::Browser).then(|| self.key());
            carrier.insert(from, ControlFrame::close(code, key).as_bytes());
        }
        self.lane_mut(from).farewell = true;
    }

    pub(super) fn close_policy(&mut self, closer: Sender, carrier: &mut impl TapOutput) {
        if let Some(pings) = &mut self.pings {
            pings.on_closing();
        }
        for _unanswered in 0..self.policy.on_closing(closer == Sender::Upstream) {
            carrier.note(TapEvent::Withheld(Withheld::UpstreamClosed));
        }
    }
}
