//! The tap of one session: parses both directions, and inserts or removes frames as the policy decides.
//!
//! Invariant: any chunking of the same bytes gives the same output and the same decisions. Answered heartbeats, pongs
//! to our pings and shielded pings are removed; all other bytes pass unchanged until the sidecar closes the direction.
//!
//! # Order of calls
//!
//! The tap does no I/O and reads no clock. `relay::Relay` owns it and makes every call; [`TapOutput`] receives the
//! results. At each wake-up the order is:
//!
//! 1. [`Tap::close`] at a drain, or [`Tap::leave_browser`] at a takeover; one of them, once. Between `leave_browser` and
//!    [`Tap::close_for_takeover`] the browser sends nothing.
//! 2. For the upstream, then for the browser: [`Tap::on_bytes`] after each read, and [`Tap::on_end`] after EOF or a
//!    reset. No `on_bytes` follows an `on_end` of the same side.
//! 3. [`Tap::drive`] unless [`Tap::is_idle`], and whenever [`Tap::deadline`] has passed. Not after `close_for_takeover`.
//! 4. [`Tap::ping_unanswered_since`] when the peers are checked; `on_end` for a peer that is given up.
//! 5. [`Tap::on_new_leg`] when the browser's connection is replaced, between two frames of the browser.
//! 6. [`Tap::has_closed`] and [`Tap::is_closed`], to decide whether the session is over.

mod close;
mod direction;
mod insert;
mod inspection;
pub mod output;
#[cfg(test)]
mod tests;

use std::time::Instant;

use self::direction::{Direction, MessageType};
pub use self::inspection::Inspection;
use self::inspection::{Pinging, must_be_whole};
use self::output::{TapError, TapEvent, TapOutput};
use crate::heartbeat::liveness::Pong;
use crate::heartbeat::pings::{PingSettings, Pings};
use crate::heartbeat::policy::{Disposition, Policy};
use crate::heartbeat::{Capability, HeartbeatSettings};
use crate::streamlit::ack::AckForm;
use crate::streamlit::messages::{self, BackType, ForwardContent, ForwardType};
use crate::websocket::frame::{self, Header, MAX_CONTROL_BYTES, Opcode};
use crate::websocket::scanner::{Mark, ProtocolError, Side};

/// Longest part of an incomplete frame that [`Tap::on_bytes`] does not process: the header and payload of a frame that
/// must be complete.
pub const MAX_INCOMPLETE_BYTES: usize = frame::MAX_HEADER_BYTES + MAX_CONTROL_BYTES;

/// Both directions of one session.
#[derive(Debug)]
pub struct Tap {
    inspection: Inspection,
    ack: AckForm,
    policy: Policy,
    /// `None` if the browser is not pinged.
    pings: Option<Box<Pings>>,
    browser: Direction,
    upstream: Direction,
    /// Close code to send to both sides once there is room.
    close_code: Option<u16>,
    /// State of the generator of masking keys.
    key_state: u64,
}

impl Tap {
    /// A tap for a session after its handshake. `nonce` must be random.
    pub fn new(inspection: Inspection, settings: HeartbeatSettings, nonce: u64) -> Self {
        let deflate = match inspection {
            Inspection::Compressed(deflate) => Some(deflate),
            Inspection::Messages | Inspection::Frames | Inspection::Off => None,
        };
        let direction = |sender| Direction::new(sender, inspection != Inspection::Messages, deflate);
        Self {
            inspection,
            ack: settings.ack,
            policy: Policy::new(settings, nonce),
            pings: None,
            browser: direction(Side::Browser),
            upstream: direction(Side::Upstream),
            close_code: None,
            key_state: nonce,
        }
    }

    /// Pings the browser from `now` on and, if `settings.shield` is set, answers the upstream's pings. `nonce` must be
    /// random and differ from that of [`Tap::new`].
    pub fn with_pings(mut self, settings: PingSettings, nonce: u64, now: Instant) -> Self {
        self.pings = Some(Box::new(Pings::new(settings, nonce, now)));
        self
    }

    /// Handles bytes from `from`. Returns how many were processed. After them comes an incomplete frame, at most
    /// [`MAX_INCOMPLETE_BYTES`], which must be at the front of the next call.
    pub fn on_bytes(&mut self, from: Side, bytes: &[u8], now: Instant, output: &mut impl TapOutput) -> usize {
        // Bytes before `passed` are done; those from there to `at` are processed, but not passed on yet.
        let (mut passed, mut at) = (0, 0);
        let pinging = self.pinging();
        while at < bytes.len() && self.inspection != Inspection::Off {
            if from == Side::Upstream {
                at += self.skip_plain_messages(&bytes[at..], output);
                if at == bytes.len() {
                    break;
                }
            }
            let start = at;
            let mark =
                self.direction_mut(from).scanner.next(&bytes[at..], |header| must_be_whole(from, header, pinging));
            let disposition = match mark {
                Mark::Incomplete => break,
                Mark::Error(error) => {
                    self.on_protocol_error(error, output);
                    break;
                }
                Mark::Whole(header) | Mark::Start(header) if !self.inspection.allows(&header) => {
                    self.on_protocol_error(ProtocolError::ReservedBits, output);
                    break;
                }
                Mark::Start(header) => {
                    at += header.length;
                    self.direction_mut(from).on_header(header);
                    continue;
                }
                Mark::Whole(header) => {
                    let payload = &bytes[at + header.length..][..header.payload_length as usize];
                    at += header.length + payload.len();
                    self.on_frame(from, header, payload, now, output)
                }
                Mark::Payload { length, ends_frame } => {
                    at += length;
                    self.on_payload(from, &bytes[start..at], ends_frame, now, output);
                    if !ends_frame {
                        continue;
                    }
                    Disposition::Forward
                }
            };
            if disposition == Disposition::Remove {
                self.pass(from, &bytes[passed..start], output);
                passed = at;
            }
            // Between two frames there may be room for what waits.
            if !self.is_idle() {
                self.pass(from, &bytes[passed..at], output);
                passed = at;
                self.drive(now, output);
            }
        }
        if self.inspection == Inspection::Off {
            at = bytes.len();
        }
        self.pass(from, &bytes[passed..at], output);
        at
    }

    /// `from` sends no more bytes; `incomplete` are those of an incomplete frame that were not processed.
    pub fn on_end(&mut self, from: Side, incomplete: &[u8], output: &mut impl TapOutput) {
        if !self.direction(from).is_sealed {
            output.pass(from, incomplete);
        }
        // A frame inserted after an incomplete one would be read as part of it.
        self.direction_mut(from).is_sealed |= !incomplete.is_empty();
        self.stop_answering(from, output);
    }

    /// The browser's connection is replaced. Its next bytes start a frame: none was left incomplete.
    pub fn on_new_leg(&mut self) {
        if let Some(pings) = &mut self.pings {
            pings.on_new_leg();
        }
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
        self.policy.is_idle() && self.close_code.is_none() && self.pings.as_ref().is_none_or(|pings| pings.is_idle())
    }

    /// When [`Tap::drive`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let pings = self.pings.as_ref().and_then(|pings| pings.deadline());
        self.policy.deadline().into_iter().chain(pings).min()
    }

    /// Whether the app has sent the start of a message, and not its end.
    pub fn is_within_message(&self) -> bool {
        !self.upstream.scanner.between_messages()
    }

    /// When the browser's unanswered ping was sent.
    pub fn ping_unanswered_since(&self) -> Option<Instant> {
        self.pings.as_ref()?.unanswered_since()
    }

    fn pinging(&self) -> Pinging {
        match &self.pings {
            None => Pinging::Off,
            Some(pings) if pings.shields() => Pinging::Shield,
            Some(_) => Pinging::Browser,
        }
    }

    fn direction(&self, from: Side) -> &Direction {
        match from {
            Side::Browser => &self.browser,
            Side::Upstream => &self.upstream,
        }
    }

    fn direction_mut(&mut self, from: Side) -> &mut Direction {
        match from {
            Side::Browser => &mut self.browser,
            Side::Upstream => &mut self.upstream,
        }
    }

    /// Passes processed bytes on, unless the sidecar closed the direction.
    fn pass(&self, from: Side, bytes: &[u8], output: &mut impl TapOutput) {
        if !bytes.is_empty() && !self.direction(from).is_sealed {
            output.pass(from, bytes);
        }
    }

    /// Skips complete upstream messages that need no action, nearly all that it sends. Returns their length in bytes.
    fn skip_plain_messages(&self, bytes: &[u8], output: &mut impl TapOutput) -> usize {
        let reads_type = match self.inspection {
            Inspection::Messages => true,
            Inspection::Frames => false,
            Inspection::Compressed(_) | Inspection::Off => return 0,
        };
        let mut rest = bytes;
        if self.is_idle() {
            while let Some((payload, after)) = self.upstream.scanner.plain_message(rest) {
                let kind = if reads_type { messages::peek_forward(payload) } else { Some(ForwardType::Unknown) };
                let Some(kind) = kind else { break };
                output.on_event(TapEvent::UpstreamMessage(ForwardContent::Other(kind), payload.len() as u64));
                rest = after;
            }
        }
        bytes.len() - rest.len()
    }

    /// Handles a complete frame.
    fn on_frame(
        &mut self,
        from: Side,
        header: Header,
        wire: &[u8],
        now: Instant,
        output: &mut impl TapOutput,
    ) -> Disposition {
        if !must_be_whole(from, &header, self.pinging()) {
            self.direction_mut(from).on_header(header);
            self.on_payload(from, wire, true, now, output);
            return Disposition::Forward;
        }
        let mut payload = [0; MAX_CONTROL_BYTES];
        let payload = &mut payload[..wire.len()];
        payload.copy_from_slice(wire);
        if let Some(key) = header.mask {
            frame::mask(payload, key, 0);
        }
        match header.opcode {
            Opcode::Close => {
                self.direction_mut(from).close_received = true;
                output.on_event(TapEvent::CloseReceived(from, frame::close_code(payload)));
                self.stop_answering(from, output);
                Disposition::Forward
            }
            Opcode::Ping => self.on_upstream_ping(payload),
            Opcode::Pong => self.on_pong(from, payload, now, output),
            Opcode::Continuation | Opcode::Text | Opcode::Binary | Opcode::Reserved(_) => {
                let is_inspected = self.inspection.sees_messages();
                let kind = if is_inspected { messages::parse_back(payload, true) } else { BackType::Unknown };
                self.on_browser_message(kind, payload.len() as u64, now, output)
            }
        }
    }

    /// Removes a ping that the sidecar answers.
    fn on_upstream_ping(&mut self, payload: &[u8]) -> Disposition {
        match &mut self.pings {
            Some(pings) if pings.shields() => {
                pings.on_upstream_ping(payload);
                Disposition::Remove
            }
            Some(_) | None => Disposition::Forward,
        }
    }

    /// Removes a pong to a ping of the sidecar.
    fn on_pong(&mut self, from: Side, payload: &[u8], now: Instant, output: &mut impl TapOutput) -> Disposition {
        let pong = match (from, &mut self.pings) {
            (Side::Upstream, _) => self.policy.on_pong(payload, now),
            (Side::Browser, Some(pings)) => pings.on_browser_pong(payload, now),
            (Side::Browser, None) => Pong::Foreign,
        };
        match pong {
            Pong::Foreign => return Disposition::Forward,
            Pong::Proof(round_trip) if from == Side::Upstream => output.on_event(TapEvent::Proof(round_trip)),
            Pong::Proof(_) | Pong::Stale => {}
        }
        Disposition::Remove
    }

    fn on_payload(&mut self, from: Side, payload: &[u8], ends_frame: bool, now: Instant, output: &mut impl TapOutput) {
        let is_inspected = self.inspection.sees_messages();
        let message = self.direction_mut(from).on_payload(payload, ends_frame, is_inspected, now);
        if matches!(self.inspection, Inspection::Compressed(_)) && !self.browser.inflates() {
            output.on_event(TapEvent::Unparsable(TapError::Compression));
            self.inspection = Inspection::Frames;
        }
        match message {
            Some((MessageType::Browser(kind), length)) => {
                // Only a compressed heartbeat is recognised here, and it passes.
                let _forwarded = self.on_browser_message(kind, length, now, output);
            }
            Some((MessageType::Upstream(content), length)) => self.on_upstream_message(content, length, now, output),
            None => {}
        }
    }

    /// Handles a complete message of the browser.
    fn on_browser_message(
        &mut self,
        kind: BackType,
        length: u64,
        now: Instant,
        output: &mut impl TapOutput,
    ) -> Disposition {
        output.on_event(TapEvent::BrowserMessage(kind, length));
        // After a close frame a heartbeat is an ordinary message: no ack is expected (RFC 6455 §5.5.1).
        if kind != BackType::AppHeartbeat || self.policy.is_closing() {
            return Disposition::Forward;
        }
        output.on_event(TapEvent::Heartbeat);
        if let Inspection::Compressed(_) = self.inspection {
            self.policy.on_compressed_heartbeat(now);
            return Disposition::Forward;
        }
        self.policy.on_heartbeat(now, output.capability())
    }

    /// Handles a complete message of the upstream, which passes.
    fn on_upstream_message(&mut self, content: ForwardContent, length: u64, now: Instant, output: &mut impl TapOutput) {
        let is_native_ack = content == ForwardContent::Other(ForwardType::HeartbeatAck);
        let names_version = matches!(content, ForwardContent::NewSession(_));
        output.on_event(TapEvent::UpstreamMessage(content, length));
        if is_native_ack {
            output.on_event(TapEvent::NativeAck(self.policy.on_native_ack(now)));
        }
        if names_version {
            self.on_capability(output.capability());
        }
    }

    /// Applies what was learned about the upstream to pending heartbeats.
    fn on_capability(&mut self, capability: Capability) {
        if capability == Capability::Silent {
            self.policy.on_silent();
        }
    }

    fn on_protocol_error(&mut self, error: ProtocolError, output: &mut impl TapOutput) {
        if self.inspection.sees_messages() {
            output.on_event(TapEvent::Unparsable(error.into()));
        }
        self.inspection = Inspection::Off;
        self.stop_answering(Side::Browser, output);
    }
}
