//! What a page sends over the legs of a session, as one stream: only whole messages pass, each counted once.
//!
//! Invariant: a leg that dies takes no part of a message with it, except of one larger than the buffer.

use super::control;
use crate::websocket::frame::{self, Header, MAX_CONTROL_BYTES, Opcode};
use crate::websocket::scanner::{Mark, Scanner, Side};

/// Bytes of data from the page after which the sidecar confirms unasked. Small beside the buffers of both ends.
const CONFIRM_AFTER_BYTES: u32 = 32 << 10;

/// The page's stream, without control messages. It serves one leg at a time.
#[derive(Debug)]
pub struct PageStream {
    /// Bytes of an incomplete message that are held at most.
    limit: usize,
    scanner: Scanner,
    /// The start of an incomplete message.
    held: Option<Box<Held>>,
    /// The current message has passed in part: it is larger than the buffer.
    is_streaming: bool,
    /// The stream cannot be parsed: everything passes.
    is_broken: bool,
    /// Whole data messages.
    received: u64,
    /// Payload bytes since the last confirmation, at most [`CONFIRM_AFTER_BYTES`].
    unconfirmed_bytes: u32,
    /// The page awaits a confirmation.
    owes_confirmation: bool,
    /// The page has sent a message of any kind.
    is_used: bool,
}

/// Bytes of the current leg that have not passed, from the first byte of a message on.
#[derive(Debug)]
struct Held {
    bytes: Vec<u8>,
    /// How many of them the scanner has passed.
    scanned: usize,
}

/// A part of the page's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum PageInput<'a> {
    /// These bytes go on to the app: whole frames, or parts of a large message.
    Pass(&'a [u8]),
    /// The page has received this many data messages.
    Confirmed(u64),
    /// The page has not sent this many inputs, for this reason.
    Unsent(&'a str, u64),
    /// The page gave the leg up: nothing of it follows.
    GivenUp,
}

/// A frame that is not for the app.
enum OwnFrame {
    /// A control message; its unmasked payload.
    Control(Vec<u8>),
    /// The close frame of a leg that the page gave up.
    GivenUp,
}

impl PageStream {
    /// Nothing has come yet. A message above `limit` bytes passes in parts.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            scanner: Scanner::new(Side::Browser, false),
            held: None,
            is_streaming: false,
            is_broken: false,
            received: 0,
            unconfirmed_bytes: 0,
            owes_confirmation: false,
            is_used: false,
        }
    }

    /// Whether the page has sent a message, data or control, over any leg.
    pub fn is_used(&self) -> bool {
        self.is_used
    }

    /// How many data messages have come.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Whether the page's stream can continue over another leg.
    pub fn may_change_leg(&self) -> bool {
        !self.is_streaming && !self.is_broken
    }

    /// Another leg follows: forgets what the last one did not complete.
    pub fn on_new_leg(&mut self) {
        (self.scanner, self.held) = (Scanner::new(Side::Browser, false), None);
        (self.unconfirmed_bytes, self.owes_confirmation) = (0, false);
    }

    /// Whether [`PageStream::next_confirmation`] is due.
    pub fn owes_confirmation(&self) -> bool {
        self.owes_confirmation || self.unconfirmed_bytes == CONFIRM_AFTER_BYTES
    }

    /// The control message that the page awaits, if it is due. It must be sent.
    pub fn next_confirmation(&mut self) -> Option<Vec<u8>> {
        let is_due = self.owes_confirmation();
        is_due.then(|| {
            (self.unconfirmed_bytes, self.owes_confirmation) = (0, false);
            control::received(self.received)
        })
    }

    /// Parses bytes of the current leg.
    pub fn on_bytes(&mut self, bytes: &[u8], mut sink: impl FnMut(PageInput<'_>)) {
        let Some(mut held) = self.held.take() else {
            let (passed, scanned) = self.scan(bytes, 0, &mut sink);
            if passed < bytes.len() {
                self.held = Some(Box::new(Held { bytes: bytes[passed..].to_vec(), scanned }));
            }
            return;
        };
        held.bytes.extend_from_slice(bytes);
        let (passed, scanned) = self.scan(&held.bytes, held.scanned, &mut sink);
        if passed < held.bytes.len() {
            held.bytes.drain(..passed);
            held.scanned = scanned;
            self.held = Some(held);
        }
    }

    /// Parses `bytes` from `at` on. Returns how many bytes are done, and how many behind them are parsed: those are the
    /// start of an incomplete message.
    fn scan(&mut self, bytes: &[u8], mut at: usize, sink: &mut impl FnMut(PageInput<'_>)) -> (usize, usize) {
        // Bytes before `passed` are done, those from there to `whole` may pass, those from there to `at` are parsed.
        let (mut passed, mut whole) = (0, 0);
        while at < bytes.len() && !self.is_broken {
            let start = at;
            let header = match self.scanner.next(&bytes[at..], must_be_whole) {
                Mark::Incomplete => break,
                Mark::Error(_) => {
                    self.is_broken = true;
                    break;
                }
                Mark::Whole(header) => {
                    at += header.length + header.payload_length as usize;
                    self.on_payload(header.payload_length as usize);
                    Some(header)
                }
                Mark::Start(header) => {
                    at += header.length;
                    None
                }
                Mark::Payload { length, .. } => {
                    at += length;
                    self.on_payload(length);
                    None
                }
            };
            if let Some(own) = header.and_then(|header| own_frame(&header, &bytes[start..at])) {
                pass(&bytes[passed..whole], sink);
                (passed, whole) = (at, at);
                match own {
                    OwnFrame::Control(payload) => self.on_control(&payload, sink),
                    OwnFrame::GivenUp => {
                        sink(PageInput::GivenUp);
                        return (bytes.len(), 0);
                    }
                }
                continue;
            }
            let is_control = header.is_some_and(|header| header.opcode.is_control());
            let ends_message = self.scanner.between_messages();
            let ends_data = ends_message && !is_control;
            self.received += u64::from(ends_data);
            self.is_used |= ends_data;
            self.is_streaming &= !ends_message;
            // Nothing completes a message after a close frame.
            let closes = header.is_some_and(|header| header.opcode == Opcode::Close);
            self.is_streaming |= !ends_message && (closes || at - whole > self.limit);
            if ends_message || self.is_streaming {
                whole = at;
            }
        }
        if self.is_broken {
            (whole, at) = (bytes.len(), bytes.len());
        }
        pass(&bytes[passed..whole], sink);
        (whole, at - whole)
    }

    fn on_payload(&mut self, length: usize) {
        let bytes = (self.unconfirmed_bytes as usize).saturating_add(length);
        self.unconfirmed_bytes = bytes.min(CONFIRM_AFTER_BYTES as usize) as u32;
    }

    fn on_control(&mut self, payload: &[u8], sink: &mut impl FnMut(PageInput<'_>)) {
        if let Some((received, awaits)) = control::confirmed(payload) {
            (self.owes_confirmation, self.is_used) = (self.owes_confirmation | awaits, true);
            sink(PageInput::Confirmed(received));
        } else if let Some((reason, inputs)) = control::unsent(payload) {
            sink(PageInput::Unsent(reason, inputs));
        }
    }
}

fn pass(bytes: &[u8], sink: &mut impl FnMut(PageInput<'_>)) {
    if !bytes.is_empty() {
        sink(PageInput::Pass(bytes));
    }
}

/// Control frames, and what may be a control message: short, so that little is held.
fn must_be_whole(header: &Header) -> bool {
    let may_be = header.opcode.is_control() || (header.opcode == Opcode::Text && header.fin);
    may_be && header.payload_length <= MAX_CONTROL_BYTES as u64
}

/// A whole frame, if it is not for the app.
fn own_frame(header: &Header, frame: &[u8]) -> Option<OwnFrame> {
    let is_short_text = header.opcode == Opcode::Text && must_be_whole(header);
    if !is_short_text && header.opcode != Opcode::Close {
        return None;
    }
    let mut payload = frame[header.length..].to_vec();
    frame::mask(&mut payload, header.mask?, 0);
    if is_short_text {
        control::is_control(&payload).then_some(OwnFrame::Control(payload))
    } else {
        (frame::close_code(&payload) == Some(control::close_code::GIVEN_UP)).then_some(OwnFrame::GivenUp)
    }
}
