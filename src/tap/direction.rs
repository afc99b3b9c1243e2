//! One direction of a session: tracks its messages and identifies each by a bounded copy of its prefix.

use std::time::Instant;

use crate::streamlit::messages::{self, BackType, Forward};
use crate::websocket::frame::{self, Header, Opcode};
use crate::websocket::inflate::{Allowance, COMPRESSED, Deflate, Inflater, Unreadable};
use crate::websocket::scanner::{Scanner, Sender};

/// Bytes that a browser's messages may inflate to. Real pages send far less. The sustained rate costs at most a tenth
/// of a core (300 MB/s of JSON, 9 GB/s of a bomb's zeros).
const BROWSER: Allowance = Allowance { burst: 64 << 20, per_second: 32 << 20 };

/// Bytes that an upstream's messages may inflate to until it has named its version. It does so at the start of a script
/// run, in one of the first messages.
const UPSTREAM: Allowance = Allowance { burst: 1 << 20, per_second: 0 };

/// Bytes that are unmasked at a time for the inflater.
const UNMASKED: usize = 1024;

/// The type of a complete message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Back(BackType),
    Forward(Forward),
}

/// One direction. Its size matters: idle sessions hold it too.
#[derive(Debug)]
pub(super) struct Direction {
    pub(super) scanner: Scanner,
    sender: Sender,
    /// The current frame is the last of its message.
    last: bool,
    /// The current frame is a control frame.
    control: bool,
    mask: Option<[u8; 4]>,
    /// Payload bytes received of the current frame and message.
    of_frame: u64,
    of_message: u64,
    binary: bool,
    compressed: bool,
    /// The sender has sent a close frame.
    pub(super) closed: bool,
    /// Nothing more may be sent: the sidecar closed the direction, or it ended inside a frame.
    pub(super) close_sent: bool,
    /// The current message, if it comes in pieces.
    pieces: Option<Box<Pieces>>,
    /// Decompressor; `None` if compression is off, no longer needed, or failed.
    inflater: Option<Box<Inflater>>,
}

/// An incomplete message.
#[derive(Debug, Default)]
struct Pieces {
    /// Its type, once the prefix was long enough.
    kind: Option<Kind>,
    /// Its unmasked prefix until then.
    front: Vec<u8>,
}

impl Direction {
    /// `extensions`: reserved bits may be set; `deflate`: the negotiated compression.
    pub(super) fn new(sender: Sender, extensions: bool, deflate: Option<Deflate>) -> Self {
        let inflater = deflate.map(|deflate| match sender {
            Sender::Browser => Inflater::new(deflate.browser, BROWSER),
            Sender::Upstream => Inflater::new(deflate.upstream, UPSTREAM),
        });
        Self {
            scanner: Scanner::new(sender, extensions),
            sender,
            last: false,
            control: false,
            mask: None,
            of_frame: 0,
            of_message: 0,
            binary: false,
            compressed: false,
            closed: false,
            close_sent: false,
            pieces: None,
            inflater: inflater.map(Box::new),
        }
    }

    /// Compressed messages can be read.
    pub(super) fn inflates(&self) -> bool {
        self.inflater.is_some()
    }

    pub(super) fn begin(&mut self, header: Header) {
        self.control = header.opcode.is_control();
        (self.last, self.mask, self.of_frame) = (header.fin, header.mask, 0);
        if !self.control && header.opcode != Opcode::Continuation {
            (self.binary, self.of_message, self.pieces) = (header.opcode == Opcode::Binary, 0, None);
            self.compressed = header.reserved & COMPRESSED != 0;
        }
    }

    /// Handles more payload of the current frame; `peek`: inspect its content. Returns a message's type and its length
    /// on the wire once it is complete.
    pub(super) fn advance(
        &mut self,
        payload: &[u8],
        ends_frame: bool,
        peek: bool,
        now: Instant,
    ) -> Option<(Kind, u64)> {
        let offset = self.of_frame;
        self.of_frame += payload.len() as u64;
        if self.control {
            return None;
        }
        let first = self.of_message == 0 && self.pieces.is_none();
        self.of_message += payload.len() as u64;
        let ends = ends_frame && self.last;
        let (looks, whole) = (self.binary && peek && !self.compressed, ends && first);
        if self.compressed && peek && self.inflate(payload, offset, ends, now).is_err() {
            self.inflater = None;
        }
        if looks && !whole {
            self.look(payload, offset, ends);
        }
        if !ends {
            return None;
        }
        let kind = match looks && whole {
            true => Some(self.name(payload, self.mask, offset)),
            false => self.pieces.take().and_then(|pieces| pieces.kind),
        };
        let kind = match kind {
            // In pieces it cannot be withheld, so it passes unanswered.
            Some(Kind::Back(BackType::AppHeartbeat)) if !self.compressed => self.unknown(),
            Some(Kind::Forward(Forward::NewSession(Some(announcement)))) => {
                // No other upstream message is worth the cost of inflating.
                self.inflater = None;
                Kind::Forward(Forward::NewSession(Some(announcement)))
            }
            Some(kind) => kind,
            None => self.unknown(),
        };
        Some((kind, self.of_message))
    }

    /// Identifies a complete message; `payload` starts at `offset` of its frame.
    fn name(&self, payload: &[u8], mask: Option<[u8; 4]>, offset: u64) -> Kind {
        let front = &payload[..payload.len().min(self.sender.limit())];
        let whole = front.len() == payload.len();
        let Some(key) = mask else {
            return self.sender.kind(front, whole);
        };
        let mut unmasked = [0; messages::BACK_PREFIX];
        let unmasked = &mut unmasked[..front.len()];
        unmasked.copy_from_slice(front);
        frame::mask(unmasked, key, offset);
        self.sender.kind(unmasked, whole)
    }

    /// Tries to identify a message with this piece of it; `ends`: it is the last one.
    fn look(&mut self, payload: &[u8], offset: u64, ends: bool) {
        let (sender, limit) = (self.sender, self.sender.limit());
        let Pieces { kind, front } = &mut **self.pieces.get_or_insert_default();
        if kind.is_some() {
            return;
        }
        let start = front.len();
        let taken = &payload[..payload.len().min(limit - start)];
        let (enough, whole) = (ends || start + taken.len() == limit, ends && taken.len() == payload.len());
        if enough && start == 0 && self.mask.is_none() {
            *kind = Some(sender.kind(taken, whole));
            return;
        }
        front.extend_from_slice(taken);
        if let Some(key) = self.mask {
            frame::mask(&mut front[start..], key, offset);
        }
        if enough {
            *kind = Some(sender.kind(&std::mem::take(front), whole));
        }
    }

    /// Inflates all of a compressed message, since later ones may refer back to any of it, and keeps its prefix.
    fn inflate(&mut self, payload: &[u8], offset: u64, ends: bool, now: Instant) -> Result<(), Unreadable> {
        let Some(inflater) = &mut self.inflater else { return Ok(()) };
        let limit = self.sender.limit();
        let Pieces { kind, front } = &mut **self.pieces.get_or_insert_default();
        // One byte more than the prefix shows that the message is longer.
        let mut output = |bytes: &[u8]| front.extend_from_slice(&bytes[..bytes.len().min(limit + 1 - front.len())]);
        let mut unmasked = [0; UNMASKED];
        for (at, piece) in (offset..).step_by(UNMASKED).zip(payload.chunks(UNMASKED)) {
            let plain = &mut unmasked[..piece.len()];
            plain.copy_from_slice(piece);
            if let Some(key) = self.mask {
                frame::mask(plain, key, at);
            }
            inflater.push(plain, now, &mut output)?;
        }
        if ends {
            inflater.finish(now, output)?;
            let (prefix, whole) = (&front[..front.len().min(limit)], front.len() <= limit);
            *kind = self.binary.then(|| self.sender.kind(prefix, whole));
        }
        Ok(())
    }

    fn unknown(&self) -> Kind {
        match self.sender {
            Sender::Browser => Kind::Back(BackType::Unknown),
            Sender::Upstream => Kind::Forward(Forward::Other(messages::ForwardType::Unknown)),
        }
    }
}

impl Sender {
    /// Length in bytes of the prefix that identifies a message.
    fn limit(self) -> usize {
        match self {
            Self::Browser => messages::BACK_PREFIX,
            Self::Upstream => messages::FORWARD_PREFIX,
        }
    }

    fn kind(self, front: &[u8], whole: bool) -> Kind {
        match self {
            Self::Browser => Kind::Back(messages::back(front, whole)),
            Self::Upstream => Kind::Forward(messages::forward(front, whole)),
        }
    }
}
