//! The tap of one session: walks along both directions and slips in or takes out what the policy decides.
//!
//! Law: any chunking of the same bytes gives the same output and the same decisions; what is neither a withheld
//! heartbeat nor a pong of ours passes on unchanged.

use std::time::Instant;

use super::carrier::{Carrier, Note};
pub use super::depth::Depth;
use super::lane::{Kind, Lane};
use super::liveness::{Pong, Tag};
use super::policy::{Passage, Policy, Room, Verb};
use super::run::Run;
use super::{Capability, Settings, Withheld};
use crate::streamlit::ack::AckForm;
use crate::streamlit::messages::{self, BackType, Forward};
use crate::websocket::frame::{self, ControlFrame, Header, MAX_CONTROL, Opcode};
use crate::websocket::scanner::{Lost, Mark, Sender};

/// Longest run of bytes, in one direction, that the tap leaves with the caller until more of it has come: a frame
/// header and the payload of a frame that must be seen whole.
pub const MAX_CARRY: usize = frame::MAX_HEADER + MAX_CONTROL;

/// Both directions of one session.
#[derive(Debug)]
pub struct Tap {
    depth: Depth,
    ack: AckForm,
    policy: Policy,
    browser: Lane,
    upstream: Lane,
    /// The code to close both sides with as soon as there is room.
    closing: Option<u16>,
    keys: u64,
}

impl Tap {
    /// The tap of a session whose handshake is done. `nonce` must be random.
    pub fn new(depth: Depth, settings: Settings, nonce: u64) -> Self {
        let deflate = match depth {
            Depth::Compressed(deflate) => Some(deflate),
            Depth::Messages | Depth::Frames | Depth::Off => None,
        };
        let lane = |sender| Lane::new(sender, depth != Depth::Messages, deflate);
        Self {
            depth,
            ack: settings.ack,
            policy: Policy::new(settings, nonce),
            browser: lane(Sender::Browser),
            upstream: lane(Sender::Upstream),
            closing: None,
            keys: nonce,
        }
    }

    /// Bytes came from `from`. Returns how many were dealt with; the rest, at most [`MAX_CARRY`], must stand at the
    /// front of the next call.
    pub fn on_bytes(&mut self, from: Sender, bytes: &[u8], now: Instant, carrier: &mut impl Carrier) -> usize {
        let mut run = Run::new(from, bytes);
        while run.at < bytes.len() {
            if self.depth == Depth::Off {
                run.at = bytes.len();
                break;
            }
            match self.lane_mut(from).scanner.next(&bytes[run.at..], |header| wanted(from, header)) {
                Mark::Incomplete => break,
                Mark::Whole(header) | Mark::Start(header) if !self.depth.allows(&header) => {
                    self.lose(Lost::ReservedBits, carrier);
                }
                Mark::Whole(header) => self.on_frame(header, &mut run, now, carrier),
                Mark::Start(header) => {
                    run.at += header.length;
                    self.lane_mut(from).begin(header);
                    if header.payload == 0 {
                        self.on_payload(&[], true, &mut run, now, carrier);
                    }
                }
                Mark::Payload { length, ends_frame } => {
                    let payload = &bytes[run.at..run.at + length];
                    run.at += length;
                    self.on_payload(payload, ends_frame, &mut run, now, carrier);
                }
                Mark::Lost(lost) => self.lose(lost, carrier),
            }
        }
        run.flush(self.muted(from), carrier);
        run.at
    }

    /// `from` sends no more bytes; `rest` is what it left unfinished.
    pub fn on_end(&mut self, from: Sender, rest: &[u8], carrier: &mut impl Carrier) {
        if !self.muted(from) {
            carrier.pass(from, rest);
        }
        // Behind a torn frame one of ours would be read as a part of it.
        self.lane_mut(from).farewell |= !rest.is_empty();
        self.close_policy(from, carrier);
    }

    /// Time has passed, or a receiver has caught up: does what is due.
    pub fn settle(&mut self, now: Instant, carrier: &mut impl Carrier) {
        if !self.policy.is_idle() {
            self.obey(now, carrier);
        }
        if let Some(code) = self.closing {
            self.say_farewell(code, carrier);
        }
    }

    /// [`Tap::settle`] has nothing to do, whatever the time is.
    pub fn is_idle(&self) -> bool {
        self.policy.is_idle() && self.closing.is_none()
    }

    /// When [`Tap::settle`] must be called, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        self.policy.deadline()
    }

    /// Closes both sides with `code`: the browser at the next message boundary, then the upstream between frames.
    /// A stream that cannot be followed has no boundaries: it is left to its end or to the deadline.
    pub fn close(&mut self, code: u16, now: Instant, carrier: &mut impl Carrier) {
        self.closing.get_or_insert(code);
        self.close_policy(Sender::Browser, carrier);
        self.settle(now, carrier);
    }

    /// Closes the upstream with `code` at once, since another connection takes the session over, and the browser if
    /// there is room. Nothing passes any more. Answers whether the upstream could be told: not inside a frame.
    pub fn hand_over(&mut self, code: u16, carrier: &mut impl Carrier) -> bool {
        self.close_policy(Sender::Browser, carrier);
        let (room, followed) = (self.room(carrier), self.depth != Depth::Off);
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

    fn lane(&self, from: Sender) -> &Lane {
        match from {
            Sender::Browser => &self.browser,
            Sender::Upstream => &self.upstream,
        }
    }

    fn lane_mut(&mut self, from: Sender) -> &mut Lane {
        match from {
            Sender::Browser => &mut self.browser,
            Sender::Upstream => &mut self.upstream,
        }
    }

    /// Nothing may follow our close frame, or a torn one.
    fn muted(&self, from: Sender) -> bool {
        self.lane(from).farewell
    }

    /// A frame that [`wanted`] to be seen whole.
    fn on_frame(&mut self, header: Header, run: &mut Run<'_>, now: Instant, carrier: &mut impl Carrier) {
        let start = run.at + header.length;
        run.at = start + header.payload as usize;
        let mut payload = [0; MAX_CONTROL];
        let payload = &mut payload[..run.at - start];
        payload.copy_from_slice(&run.bytes[start..run.at]);
        if let Some(key) = header.mask {
            frame::mask(payload, key, 0);
        }
        let frame = run.at - start + header.length;
        match header.opcode {
            Opcode::Close => {
                self.lane_mut(run.from).closed = true;
                carrier.note(Note::Close(run.from, frame::close_code(payload)));
                self.close_policy(run.from, carrier);
            }
            Opcode::Pong => self.on_pong(payload, frame, run, now, carrier),
            _ => self.on_small_message(payload, frame, run, now, carrier),
        }
    }

    fn on_pong(&mut self, payload: &[u8], frame: usize, run: &mut Run<'_>, now: Instant, carrier: &mut impl Carrier) {
        match self.policy.on_pong(payload, now) {
            Pong::Foreign => return,
            Pong::Stale => run.cut(frame, self.muted(run.from), carrier),
            Pong::Proof(after) => {
                run.cut(frame, self.muted(run.from), carrier);
                carrier.note(Note::Proof(after));
            }
        }
        self.obey(now, carrier);
    }

    /// A whole message of the browser that is short enough to be a heartbeat.
    fn on_small_message(
        &mut self,
        payload: &[u8],
        frame: usize,
        run: &mut Run<'_>,
        now: Instant,
        carrier: &mut impl Carrier,
    ) {
        if !self.depth.sees_messages() {
            return carrier.note(Note::Back(BackType::Unknown, payload.len() as u64));
        }
        let kind = messages::back(payload, true);
        carrier.note(Note::Back(kind, payload.len() as u64));
        if kind != BackType::AppHeartbeat {
            return;
        }
        match self.on_heartbeat(now, carrier) {
            Passage::Withhold => run.cut(frame, self.muted(run.from), carrier),
            Passage::Forward => run.flush(self.muted(run.from), carrier),
        }
        self.obey(now, carrier);
    }

    fn on_heartbeat(&mut self, now: Instant, carrier: &mut impl Carrier) -> Passage {
        carrier.note(Note::Heartbeat);
        if let Depth::Compressed(_) = self.depth {
            self.policy.on_compressed_heartbeat(now);
            return Passage::Forward;
        }
        self.policy.on_heartbeat(now, carrier.capability())
    }

    fn on_payload(
        &mut self,
        payload: &[u8],
        ends_frame: bool,
        run: &mut Run<'_>,
        now: Instant,
        carrier: &mut impl Carrier,
    ) {
        let peek = self.depth.sees_messages();
        let advanced = self.lane_mut(run.from).advance(payload, ends_frame, peek, now);
        if matches!(self.depth, Depth::Compressed(_)) && !self.browser.inflates() {
            carrier.note(Note::Lost(Lost::Compression));
            self.depth = Depth::Frames;
        }
        let Some((kind, bytes)) = advanced else {
            // A frame has ended inside a message: a ping may be waiting for that.
            if ends_frame && !self.is_idle() {
                run.flush(self.muted(run.from), carrier);
                self.settle(now, carrier);
            }
            return;
        };
        let heartbeat = kind == Kind::Back(BackType::AppHeartbeat);
        let native_ack = kind == Kind::Forward(Forward::Other(messages::ForwardType::HeartbeatAck));
        let teaches = matches!(kind, Kind::Forward(Forward::NewSession(_)));
        carrier.note(match kind {
            Kind::Back(kind) => Note::Back(kind, bytes),
            Kind::Forward(kind) => Note::Forward(kind, bytes),
        });
        if heartbeat {
            let _passed = self.on_heartbeat(now, carrier);
        }
        if native_ack {
            carrier.note(Note::NativeAck(self.policy.on_native_ack(now)));
        }
        if teaches {
            self.heed(carrier.capability());
        }
        if !self.is_idle() {
            run.flush(self.muted(run.from), carrier);
            self.settle(now, carrier);
        }
    }

    /// Carries out what the policy wants now.
    fn obey(&mut self, now: Instant, carrier: &mut impl Carrier) {
        while let Some(verb) = self.policy.next(now, self.room(carrier)) {
            match verb {
                Verb::Ping(tag) => {
                    let ping = ControlFrame::ping(tag, self.key());
                    carrier.insert(Sender::Browser, ping.as_bytes());
                }
                Verb::Ack(waited) => {
                    carrier.insert(Sender::Upstream, self.ack.frame());
                    carrier.note(Note::Ack(waited));
                }
                Verb::NativeAckOverdue => carrier.note(Note::NativeAckOverdue),
                Verb::NativeAckMissed => {
                    carrier.note(Note::NativeAckMissed);
                    self.heed(carrier.capability());
                }
                Verb::Withheld(reason) => carrier.note(Note::Withheld(reason)),
            }
        }
    }

    /// Something was learned that may concern heartbeats under way.
    fn heed(&mut self, capability: Capability) {
        if capability == Capability::Silent {
            self.policy.on_silent();
        }
    }

    fn room(&self, carrier: &impl Carrier) -> Room {
        Room {
            browser: !self.muted(Sender::Upstream)
                && self.upstream.scanner.between_messages()
                && carrier.is_clear(Sender::Upstream),
            upstream: !self.muted(Sender::Browser)
                && self.browser.scanner.between_frames()
                && carrier.is_clear(Sender::Browser),
        }
    }

    /// The browser is told first: an app server that is told drops what it still had to send.
    fn say_farewell(&mut self, code: u16, carrier: &mut impl Carrier) {
        if self.depth == Depth::Off {
            return;
        }
        let room = self.room(carrier);
        if !self.upstream.farewell && (self.upstream.closed || room.browser) {
            self.bid_farewell(Sender::Upstream, code, carrier);
        }
        if self.upstream.farewell && !self.browser.farewell && (self.browser.closed || room.upstream) {
            self.bid_farewell(Sender::Browser, code, carrier);
        }
    }

    /// Ends the direction that `from` sends in with a close frame of ours, unless its sender has sent one.
    fn bid_farewell(&mut self, from: Sender, code: u16, carrier: &mut impl Carrier) {
        if !self.lane(from).closed {
            let key = (from == Sender::Browser).then(|| self.key());
            carrier.insert(from, ControlFrame::close(code, key).as_bytes());
        }
        self.lane_mut(from).farewell = true;
    }

    fn close_policy(&mut self, closer: Sender, carrier: &mut impl Carrier) {
        for _unanswered in 0..self.policy.on_closing(closer == Sender::Upstream) {
            carrier.note(Note::Withheld(Withheld::UpstreamClosed));
        }
    }

    fn lose(&mut self, lost: Lost, carrier: &mut impl Carrier) {
        if self.depth.sees_messages() {
            carrier.note(Note::Lost(lost));
        }
        self.depth = Depth::Off;
        self.close_policy(Sender::Browser, carrier);
    }

    /// The next masking key. Masking keeps intermediaries from being fed requests of an attacker's choice (RFC 6455
    /// §10.3); these payloads are our own, so a key derived from the session's random nonce will do.
    fn key(&mut self) -> [u8; 4] {
        self.keys = self.keys.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        [(self.keys >> 32) as u8, (self.keys >> 40) as u8, (self.keys >> 48) as u8, (self.keys >> 56) as u8]
    }
}

/// Whether a frame must be seen whole before it is known whether it passes. A heartbeat and a pong of ours may be
/// taken out; a close frame's code is reported.
fn wanted(from: Sender, header: &Header) -> bool {
    match header.opcode {
        Opcode::Close => header.payload <= MAX_CONTROL as u64,
        Opcode::Pong => from == Sender::Upstream && header.payload == size_of::<Tag>() as u64,
        Opcode::Binary => {
            let short = header.payload <= messages::MAX_HEARTBEAT as u64;
            from == Sender::Browser && short && header.fin && header.reserved == 0
        }
        Opcode::Continuation | Opcode::Text | Opcode::Ping | Opcode::Reserved(_) => false,
    }
}
