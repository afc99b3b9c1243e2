//! The tap of one session: parses both directions, and inserts or removes frames as the policy decides.
//!
//! Invariant: any chunking of the same bytes gives the same output and the same decisions. Withheld heartbeats, pongs
//! to our pings and shielded pings are removed; all other bytes pass unchanged until the sidecar closes the direction.
//!
//! `relay::Session` makes all calls, in this order at each wake-up; [`TapOutput`] receives the results:
//! 1. [`Tap::close`] (drain) or [`Tap::hand_over`] (takeover), at most once.
//! 2. [`Tap::on_bytes`] for each read, then [`Tap::on_end`] at EOF or reset: upstream first, then browser.
//! 3. [`Tap::drive`], unless [`Tap::is_idle`], and again at [`Tap::deadline`]. Not after `hand_over`.
//! 4. [`Tap::unanswered`], when peers are checked; `on_end` for a dead one.
//! 5. [`Tap::has_closed`] and [`Tap::is_closed`], to end the session.

mod close;
mod direction;
mod inspection;
pub mod output;
mod run;

#[cfg(test)]
mod tests;

use std::time::Instant;

use self::direction::{Direction, Kind};
pub use self::inspection::Inspection;
use self::inspection::wanted;
use self::output::{TapEvent, TapOutput};
use self::run::Run;
use crate::heartbeat::liveness::Pong;
use crate::heartbeat::pings::{Outgoing, PingSettings, Pings};
use crate::heartbeat::policy::{Action, Disposition, Policy, Room};
use crate::heartbeat::{Capability, Settings};
use crate::streamlit::ack::AckForm;
use crate::streamlit::messages::{self, BackType, Forward, ForwardType};
use crate::websocket::frame::{self, ControlFrame, Header, MAX_CONTROL, Opcode};
use crate::websocket::scanner::{Lost, Mark, Sender};

/// Longest remainder of [`Tap::on_bytes`], in bytes: a frame header and the payload of a frame that must be complete.
pub const MAX_CARRY: usize = frame::MAX_HEADER + MAX_CONTROL;

/// Both directions of one session.
#[derive(Debug)]
pub struct Tap {
    depth: Inspection,
    ack: AckForm,
    policy: Policy,
    /// `None` if the browser is not pinged.
    pings: Option<Box<Pings>>,
    browser: Direction,
    upstream: Direction,
    /// Close code to send to both sides once there is room.
    closing: Option<u16>,
    keys: u64,
}

impl Tap {
    /// A tap for a session after its handshake. `nonce` must be random.
    pub fn new(depth: Inspection, settings: Settings, nonce: u64) -> Self {
        let deflate = match depth {
            Inspection::Compressed(deflate) => Some(deflate),
            Inspection::Messages | Inspection::Frames | Inspection::Off => None,
        };
        let direction = |sender| Direction::new(sender, depth != Inspection::Messages, deflate);
        Self {
            depth,
            ack: settings.ack,
            policy: Policy::new(settings, nonce),
            pings: None,
            browser: direction(Sender::Browser),
            upstream: direction(Sender::Upstream),
            closing: None,
            keys: nonce,
        }
    }

    /// Pings the browser from `now` on and, if `settings.shield` is set, answers the upstream's pings. `nonce` must be
    /// random and differ from that of [`Tap::new`].
    pub fn with_pings(mut self, settings: PingSettings, nonce: u64, now: Instant) -> Self {
        self.pings = Some(Box::new(Pings::new(settings, nonce, now)));
        self
    }

    /// Handles bytes from `from`. Returns how many were processed. The remainder, at most [`MAX_CARRY`], must be at the
    /// front of the next call.
    pub fn on_bytes(&mut self, from: Sender, bytes: &[u8], now: Instant, output: &mut impl TapOutput) -> usize {
        let mut run = Run::new(from, bytes);
        let shielded = self.pings.as_ref().map(|pings| pings.shields());
        while run.at < bytes.len() {
            if self.depth == Inspection::Off {
                run.at = bytes.len();
                break;
            }
            if from == Sender::Upstream {
                run.at += self.plain_messages(&bytes[run.at..], output);
                if run.at == bytes.len() {
                    break;
                }
            }
            match self.direction_mut(from).scanner.next(&bytes[run.at..], |header| wanted(from, header, shielded)) {
                Mark::Incomplete => break,
                Mark::Whole(header) | Mark::Start(header) if !self.depth.allows(&header) => {
                    self.lose(Lost::ReservedBits, output);
                }
                Mark::Whole(header) => {
                    let payload = &bytes[run.at + header.length..][..header.payload as usize];
                    run.at += header.length + payload.len();
                    if wanted(from, &header, shielded) {
                        self.on_frame(header, payload, &mut run, now, output);
                    } else {
                        self.direction_mut(from).begin(header);
                        self.on_payload(payload, true, &mut run, now, output);
                    }
                }
                Mark::Start(header) => {
                    run.at += header.length;
                    self.direction_mut(from).begin(header);
                }
                Mark::Payload { length, ends_frame } => {
                    let payload = &bytes[run.at..run.at + length];
                    run.at += length;
                    self.on_payload(payload, ends_frame, &mut run, now, output);
                }
                Mark::Lost(lost) => self.lose(lost, output),
            }
        }
        run.flush(self.is_close_sent(from), output);
        run.at
    }

    /// `from` sends no more bytes; `rest` is its incomplete frame.
    pub fn on_end(&mut self, from: Sender, rest: &[u8], output: &mut impl TapOutput) {
        if !self.is_close_sent(from) {
            output.pass(from, rest);
        }
        // After a truncated frame an inserted one would be read as part of it.
        self.direction_mut(from).close_sent |= !rest.is_empty();
        self.close_policy(from, output);
    }

    /// Does what is due after time has passed or a receiver has caught up.
    pub fn drive(&mut self, now: Instant, output: &mut impl TapOutput) {
        if !self.policy.is_idle() {
            self.apply_actions(now, output);
        }
        self.send_pings(now, output);
        self.send_close_frames(output);
    }

    /// [`Tap::drive`] has nothing to do before [`Tap::deadline`].
    pub fn is_idle(&self) -> bool {
        self.policy.is_idle() && self.closing.is_none() && self.pings.as_ref().is_none_or(|pings| pings.is_idle())
    }

    /// When [`Tap::drive`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let pings = self.pings.as_ref().and_then(|pings| pings.deadline());
        self.policy.deadline().into_iter().chain(pings).min()
    }

    /// When the browser's unanswered ping was sent.
    pub fn unanswered(&self) -> Option<Instant> {
        self.pings.as_ref()?.unanswered()
    }

    fn direction(&self, from: Sender) -> &Direction {
        match from {
            Sender::Browser => &self.browser,
            Sender::Upstream => &self.upstream,
        }
    }

    fn direction_mut(&mut self, from: Sender) -> &mut Direction {
        match from {
            Sender::Browser => &mut self.browser,
            Sender::Upstream => &mut self.upstream,
        }
    }

    /// Skips complete upstream messages that need no action, nearly all that it sends. Returns their length in bytes.
    fn plain_messages(&self, bytes: &[u8], output: &mut impl TapOutput) -> usize {
        let peek = match self.depth {
            Inspection::Messages => true,
            Inspection::Frames => false,
            Inspection::Compressed(_) | Inspection::Off => return 0,
        };
        let mut left = bytes;
        if self.is_idle() {
            while let Some((payload, behind)) = self.upstream.scanner.plain_message(left) {
                let kind = if peek { messages::glance(payload) } else { Some(ForwardType::Unknown) };
                let Some(kind) = kind else { break };
                output.note(TapEvent::Forward(Forward::Other(kind), payload.len() as u64));
                left = behind;
            }
        }
        bytes.len() - left.len()
    }

    /// Handles a complete frame that [`wanted`] selected.
    fn on_frame(&mut self, header: Header, wire: &[u8], run: &mut Run<'_>, now: Instant, output: &mut impl TapOutput) {
        let frame = header.length + wire.len();
        let mut payload = [0; MAX_CONTROL];
        let payload = &mut payload[..wire.len()];
        payload.copy_from_slice(wire);
        if let Some(key) = header.mask {
            frame::mask(payload, key, 0);
        }
        match header.opcode {
            Opcode::Close => {
                self.direction_mut(run.from).closed = true;
                output.note(TapEvent::Close(run.from, frame::close_code(payload)));
                self.close_policy(run.from, output);
            }
            Opcode::Ping | Opcode::Pong => {
                if self.takes(header.opcode, run.from, payload, now, output) {
                    run.cut(frame, self.is_close_sent(run.from), output);
                    self.drive(now, output);
                }
            }
            _ => self.on_small_message(payload, frame, run, now, output),
        }
    }

    /// Handles a ping or pong. Returns whether to remove it: a pong to a ping of ours, or a shielded ping.
    fn takes(
        &mut self,
        opcode: Opcode,
        from: Sender,
        payload: &[u8],
        now: Instant,
        output: &mut impl TapOutput,
    ) -> bool {
        let pong = match (opcode, from, &mut self.pings) {
            (Opcode::Ping, _, Some(pings)) if pings.shields() => {
                pings.on_upstream_ping(payload);
                return true;
            }
            (Opcode::Pong, Sender::Upstream, _) => self.policy.on_pong(payload, now),
            (Opcode::Pong, Sender::Browser, Some(pings)) => {
                return pings.on_browser_pong(payload, now) != Pong::Foreign;
            }
            _ => Pong::Foreign,
        };
        if let Pong::Proof(after) = pong {
            output.note(TapEvent::Proof(after));
        }
        pong != Pong::Foreign
    }

    /// Handles a complete browser message that is short enough to be a heartbeat.
    fn on_small_message(
        &mut self,
        payload: &[u8],
        frame: usize,
        run: &mut Run<'_>,
        now: Instant,
        output: &mut impl TapOutput,
    ) {
        if !self.depth.sees_messages() {
            return output.note(TapEvent::Back(BackType::Unknown, payload.len() as u64));
        }
        let kind = messages::back(payload, true);
        output.note(TapEvent::Back(kind, payload.len() as u64));
        if kind != BackType::AppHeartbeat {
            return;
        }
        match self.on_heartbeat(now, output) {
            Disposition::Withhold => run.cut(frame, self.is_close_sent(run.from), output),
            Disposition::Forward => run.flush(self.is_close_sent(run.from), output),
        }
        self.apply_actions(now, output);
    }

    /// After a close frame a heartbeat is an ordinary message: no ack is expected (RFC 6455 §5.5.1).
    fn on_heartbeat(&mut self, now: Instant, output: &mut impl TapOutput) -> Disposition {
        if self.policy.is_closing() {
            return Disposition::Forward;
        }
        output.note(TapEvent::Heartbeat);
        if let Inspection::Compressed(_) = self.depth {
            self.policy.on_compressed_heartbeat(now);
            return Disposition::Forward;
        }
        self.policy.on_heartbeat(now, output.capability())
    }

    fn on_payload(
        &mut self,
        payload: &[u8],
        ends_frame: bool,
        run: &mut Run<'_>,
        now: Instant,
        output: &mut impl TapOutput,
    ) {
        let peek = self.depth.sees_messages();
        let advanced = self.direction_mut(run.from).advance(payload, ends_frame, peek, now);
        if matches!(self.depth, Inspection::Compressed(_)) && !self.browser.inflates() {
            output.note(TapEvent::Lost(Lost::Compression));
            self.depth = Inspection::Frames;
        }
        let Some((kind, bytes)) = advanced else {
            // A frame has ended inside a message: a waiting ping can now be sent.
            if ends_frame && !self.is_idle() {
                run.flush(self.is_close_sent(run.from), output);
                self.drive(now, output);
            }
            return;
        };
        self.on_message(kind, bytes, run, now, output);
    }

    /// Handles a complete message, which passes.
    fn on_message(&mut self, kind: Kind, bytes: u64, run: &mut Run<'_>, now: Instant, output: &mut impl TapOutput) {
        let heartbeat = kind == Kind::Back(BackType::AppHeartbeat);
        let native_ack = kind == Kind::Forward(Forward::Other(ForwardType::HeartbeatAck));
        let teaches = matches!(kind, Kind::Forward(Forward::NewSession(_)));
        output.note(match kind {
            Kind::Back(kind) => TapEvent::Back(kind, bytes),
            Kind::Forward(kind) => TapEvent::Forward(kind, bytes),
        });
        if heartbeat {
            let _passed = self.on_heartbeat(now, output);
        }
        if native_ack {
            output.note(TapEvent::NativeAck(self.policy.on_native_ack(now)));
        }
        if teaches {
            self.on_capability(output.capability());
        }
        if !self.is_idle() {
            run.flush(self.is_close_sent(run.from), output);
            self.drive(now, output);
        }
    }

    /// Executes the policy's pending actions.
    fn apply_actions(&mut self, now: Instant, output: &mut impl TapOutput) {
        while let Some(verb) = self.policy.next(now, self.room(output)) {
            match verb {
                Action::Ping(tag) => {
                    let ping = ControlFrame::ping(tag, Some(self.key()));
                    output.insert(Sender::Browser, ping.as_bytes());
                }
                Action::Ack(waited) => {
                    output.insert(Sender::Upstream, self.ack.frame());
                    output.note(TapEvent::Ack(waited));
                }
                Action::NativeAckOverdue => output.note(TapEvent::NativeAckOverdue),
                Action::NativeAckMissed => {
                    output.note(TapEvent::NativeAckMissed);
                    self.on_capability(output.capability());
                }
                Action::Withheld(reason) => output.note(TapEvent::Withheld(reason)),
            }
        }
    }

    /// Sends the pings and pongs that are due.
    fn send_pings(&mut self, now: Instant, output: &mut impl TapOutput) {
        if self.pings.is_none() {
            return;
        }
        let (browser, upstream) = (self.frame_room(Sender::Upstream, output), self.frame_room(Sender::Browser, output));
        while let Some(outgoing) = self.pings.as_mut().and_then(|pings| pings.next(now, browser, upstream)) {
            match outgoing {
                Outgoing::Ping(tag) => output.insert(Sender::Upstream, ControlFrame::ping(tag, None).as_bytes()),
                Outgoing::Pong(payload) => {
                    let pong = ControlFrame::pong(&payload, self.key());
                    output.insert(Sender::Browser, pong.as_bytes());
                }
            }
        }
    }

    /// Applies what was learned to pending heartbeats.
    fn on_capability(&mut self, capability: Capability) {
        if capability == Capability::Silent {
            self.policy.on_silent();
        }
    }

    fn room(&self, output: &impl TapOutput) -> Room {
        Room {
            browser: self.upstream.scanner.between_messages() && self.frame_room(Sender::Upstream, output),
            upstream: self.frame_room(Sender::Browser, output),
        }
    }

    /// Whether a control frame can be inserted after what `from` has sent.
    fn frame_room(&self, from: Sender, output: &impl TapOutput) -> bool {
        !self.is_close_sent(from) && self.direction(from).scanner.between_frames() && output.is_clear(from)
    }

    fn lose(&mut self, lost: Lost, output: &mut impl TapOutput) {
        if self.depth.sees_messages() {
            output.note(TapEvent::Lost(lost));
        }
        self.depth = Inspection::Off;
        self.close_policy(Sender::Browser, output);
    }

    /// The next masking key. Masking keeps attackers from choosing the bytes that intermediaries see (RFC 6455 §10.3).
    /// A browser chooses none of these payloads, so a key derived from the session's random nonce is enough.
    fn key(&mut self) -> [u8; 4] {
        self.keys = self.keys.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        [(self.keys >> 32) as u8, (self.keys >> 40) as u8, (self.keys >> 48) as u8, (self.keys >> 56) as u8]
    }
}
