//! Inserts the frames of the sidecar: acks, pings and pongs.
//!
//! Invariant: a message is inserted only between messages, a control frame only between frames, neither after a close.

use std::time::Instant;

use super::Tap;
use super::output::{TapEvent, TapOutput};
use crate::heartbeat::pings::PingAction;
use crate::heartbeat::policy::{Action, Room};
use crate::websocket::frame::ControlFrame;
use crate::websocket::scanner::Side;

impl Tap {
    /// Executes the policy's pending actions.
    pub(super) fn apply_actions(&mut self, now: Instant, output: &mut impl TapOutput) {
        while let Some(action) = self.policy.next(now, self.room(output)) {
            match action {
                Action::Ping(tag) => {
                    let ping = ControlFrame::ping(tag, Some(self.next_key()));
                    output.insert(Side::Browser, ping.as_bytes());
                }
                Action::Ack(waited) => {
                    output.insert(Side::Upstream, self.ack.frame());
                    output.on_event(TapEvent::Ack(waited));
                }
                Action::NativeAckOverdue => output.on_event(TapEvent::NativeAckOverdue),
                Action::NativeAckMissed => {
                    output.on_event(TapEvent::NativeAckMissed);
                    self.on_capability(output.capability());
                }
                Action::Withheld(reason) => output.on_event(TapEvent::Withheld(reason)),
            }
        }
    }

    /// Sends the pings and pongs that are due.
    pub(super) fn send_pings(&mut self, now: Instant, output: &mut impl TapOutput) {
        if self.pings.is_none() {
            return;
        }
        let room = Room {
            browser: self.has_frame_room(Side::Upstream, output),
            upstream: self.has_frame_room(Side::Browser, output),
        };
        while let Some(action) = self.pings.as_mut().and_then(|pings| pings.next(now, room)) {
            match action {
                PingAction::Ping(tag) => output.insert(Side::Upstream, ControlFrame::ping(tag, None).as_bytes()),
                PingAction::Pong(payload) => {
                    let pong = ControlFrame::pong(&payload, self.next_key());
                    output.insert(Side::Browser, pong.as_bytes());
                }
            }
        }
    }

    /// What can be inserted now: a message to the browser, a control frame to the upstream.
    pub(super) fn room(&self, output: &impl TapOutput) -> Room {
        Room {
            browser: self.upstream.scanner.between_messages() && self.has_frame_room(Side::Upstream, output),
            upstream: self.has_frame_room(Side::Browser, output),
        }
    }

    /// Whether a control frame can be inserted after what `from` has sent.
    fn has_frame_room(&self, from: Side, output: &impl TapOutput) -> bool {
        let direction = self.direction(from);
        !direction.is_sealed && direction.scanner.between_frames() && output.is_clear(from)
    }

    /// The next masking key. Masking keeps attackers from choosing the bytes that intermediaries see (RFC 6455 §10.3).
    /// A browser chooses none of these payloads, so a key derived from the session's random nonce is enough.
    pub(super) fn next_key(&mut self) -> [u8; 4] {
        // Knuth's linear congruential generator for 64 bits (MMIX).
        self.key_state = self.key_state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        [32, 40, 48, 56].map(|shift| (self.key_state >> shift) as u8)
    }
}
