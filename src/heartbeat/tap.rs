//! The tap of one session: walks along both directions and slips in or takes out what the policy decides.
//!
//! Law: any chunking of the same bytes gives the same output and the same decisions; what is neither a withheld
//! heartbeat, a pong of ours nor a ping that the browser is shielded from passes on unchanged.

mod close;

use std::time::Instant;

use super::direction::{Direction, Kind};
pub use super::inspection::Inspection;
use super::inspection::wanted;
use super::liveness::Pong;
use super::output::{TapEvent, TapOutput};
use super::pings::{Outgoing, PingSettings, Pings};
use super::policy::{Action, Disposition, Policy, Room};
use super::run::Run;
use super::{Capability, Settings};
use crate::streamlit::ack::AckForm;
use crate::streamlit::messages::{self, BackType, Forward, ForwardType};
use crate::websocket::frame::{self, ControlFrame, Header, MAX_CONTROL, Opcode};
use crate::websocket::scanner::{Lost, Mark, Sender};

/// Longest run of bytes, in one direction, that the tap leaves with the caller until more of it has come: a frame
/// header and the payload of a frame that must be seen whole.
pub const MAX_CARRY: usize = frame::MAX_HEADER + MAX_CONTROL;

/// Both directions of one session.
#[derive(Debug)]
pub struct Tap {
    depth: Inspection,
    ack: AckForm,
    policy: Policy,
    /// `None` where pings and pongs pass.
    pings: Option<Box<Pings>>,
    browser: Direction,
    upstream: Direction,
    /// The code to close both sides with as soon as there is room.
    closing: Option<u16>,
    keys: u64,
}

impl Tap {
    /// The tap of a session whose handshake is done. `nonce` must be random.
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

    /// Pings the browser from now on, and answers the upstream's pings where it is to be shielded from them. `nonce` must
    /// be random, and not the one of the heartbeats.
    pub fn with_pings(mut self, settings: PingSettings, nonce: u64, now: Instant) -> Self {
        self.pings = Some(Box::new(Pings::new(settings, nonce, now)));
        self
    }

    /// Bytes came from `from`. Returns how many were dealt with; the rest, at most [`MAX_CARRY`], must stand at the
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

    /// `from` sends no more bytes; `rest` is what it left unfinished.
    pub fn on_end(&mut self, from: Sender, rest: &[u8], output: &mut impl TapOutput) {
        if !self.is_close_sent(from) {
            output.pass(from, rest);
        }
        // Behind a torn frame one of ours would be read as a part of it.
        self.direction_mut(from).close_sent |= !rest.is_empty();
        self.close_policy(from, output);
    }

    /// Time has passed, or a receiver has caught up: does what is due.
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

    /// When [`Tap::drive`] must be called, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let pings = self.pings.as_ref().and_then(|pings| pings.deadline());
        self.policy.deadline().into_iter().chain(pings).min()
    }

    /// Since when a ping to the browser has been without its pong.
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

    /// Goes past whole messages of the upstream's that nothing has to be done about, nearly all of what it sends. Answers how
    /// many bytes that were.
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

    /// A frame that [`wanted`] to be seen whole.
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

    /// Whether a ping or a pong ends here: a pong of ours, or a ping that the browser is shielded from.
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

    /// A whole message of the browser that is short enough to be a heartbeat.
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

    /// Behind a close frame a heartbeat is a message like any other: nobody waits for its ack (RFC 6455 §5.5.1).
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
            // A frame has ended inside a message: a ping may be waiting for that.
            if ends_frame && !self.is_idle() {
                run.flush(self.is_close_sent(run.from), output);
                self.drive(now, output);
            }
            return;
        };
        self.on_message(kind, bytes, run, now, output);
    }

    /// A whole message passes.
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

    /// Carries out what the policy wants now.
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

    /// Something was learned that may concern heartbeats under way.
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

    /// Whether a control frame can go in behind what `from` has sent.
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

    /// The next masking key. Masking keeps intermediaries from being fed requests of an attacker's choice (RFC 6455
    /// §10.3); these payloads are our own, so a key derived from the session's random nonce will do.
    fn key(&mut self) -> [u8; 4] {
        self.keys = self.keys.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        [(self.keys >> 32) as u8, (self.keys >> 40) as u8, (self.keys >> 48) as u8, (self.keys >> 56) as u8]
    }
}
