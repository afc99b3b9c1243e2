//! One direction of a session: follows its messages and names each from a bounded copy of its front.

use std::time::Instant;

use crate::streamlit::messages::{self, BackType, Forward};
use crate::websocket::frame::{self, Header, Opcode};
use crate::websocket::inflate::{Allowance, COMPRESSED, Deflate, Inflater, Unreadable};
use crate::websocket::scanner::{Scanner, Sender};

/// What a browser's messages may inflate to, in bytes. A page says far less in earnest; in the long run it is at most a
/// tenth of a core's work (300 MB/s of JSON, 9 GB/s of a bomb's zeros).
const BROWSER: Allowance = Allowance { burst: 64 << 20, per_second: 32 << 20 };

/// What an upstream's messages may inflate to, in bytes, until it has named its version: it does so at the start of a
/// script run, among the first of them.
const UPSTREAM: Allowance = Allowance { burst: 1 << 20, per_second: 0 };

/// Bytes that are unmasked at a time on their way to the inflater.
const UNMASKED: usize = 1024;

/// The message under way.
#[derive(Debug, Default)]
struct Message {
    bytes: u64,
    binary: bool,
    compressed: bool,
    /// What it is, once its front was enough to tell.
    kind: Option<Kind>,
    /// Its unmasked front, kept only while it comes in pieces.
    front: Vec<u8>,
}

/// What a whole message was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Back(BackType),
    Forward(Forward),
}

/// One direction.
#[derive(Debug)]
pub(super) struct Lane {
    sender: Sender,
    pub(super) scanner: Scanner,
    /// The frame under way: its header and how much of its payload has come.
    frame: Option<(Header, u64)>,
    message: Message,
    /// Reads compressed messages; `None` where there are none, or nothing more is wanted of them or can be had.
    inflater: Option<Box<Inflater>>,
    /// A close frame came from the sender.
    pub(super) closed: bool,
    /// A close frame of our own went in, or the sender has ended inside a frame: nothing may follow.
    pub(super) farewell: bool,
}

impl Lane {
    /// `extensions`: some were negotiated; `deflate`: it was this one.
    pub(super) fn new(sender: Sender, extensions: bool, deflate: Option<Deflate>) -> Self {
        let inflater = deflate.map(|deflate| match sender {
            Sender::Browser => Inflater::new(deflate.browser, BROWSER),
            Sender::Upstream => Inflater::new(deflate.upstream, UPSTREAM),
        });
        Self {
            sender,
            scanner: Scanner::new(sender, extensions),
            frame: None,
            message: Message::default(),
            inflater: inflater.map(Box::new),
            closed: false,
            farewell: false,
        }
    }

    /// Compressed messages can be read.
    pub(super) fn inflates(&self) -> bool {
        self.inflater.is_some()
    }

    pub(super) fn begin(&mut self, header: Header) {
        self.frame = Some((header, 0));
        if !header.opcode.is_control() && header.opcode != Opcode::Continuation {
            let (binary, compressed) = (header.opcode == Opcode::Binary, header.reserved & COMPRESSED != 0);
            self.message = Message { binary, compressed, ..Message::default() };
        }
    }

    /// More of the current frame's payload came; `peek`: look at what it says. Answers what a message was and its
    /// length on the wire once all of it has come.
    pub(super) fn advance(
        &mut self,
        payload: &[u8],
        ends_frame: bool,
        peek: bool,
        now: Instant,
    ) -> Option<(Kind, u64)> {
        let (header, before) = self.frame?;
        let after = before + payload.len() as u64;
        self.frame = if ends_frame { None } else { Some((header, after)) };
        if header.opcode.is_control() {
            return None;
        }
        self.message.bytes += payload.len() as u64;
        let ends = ends_frame && header.fin;
        let masked = header.mask.map(|key| (key, before));
        if self.message.compressed {
            if peek && self.inflate(payload, masked, ends, now).is_err() {
                self.inflater = None;
            }
        } else if self.message.kind.is_none() && self.message.binary && peek {
            self.look(payload, masked, ends);
        }
        if !ends {
            return None;
        }
        let message = std::mem::take(&mut self.message);
        let kind = message.kind.unwrap_or_else(|| self.unknown());
        if let Kind::Forward(Forward::NewSession(Some(_))) = kind {
            // Nothing else that an upstream says is worth inflating all of it.
            self.inflater = None;
        }
        Some((kind, message.bytes))
    }

    /// Tries to tell what the message is; `ends` says that no more of it comes.
    fn look(&mut self, payload: &[u8], masked: Option<([u8; 4], u64)>, ends: bool) {
        let limit = self.sender.prefix();
        let front = &mut self.message.front;
        let taken = &payload[..payload.len().min(limit - front.len())];
        let enough = ends || front.len() + taken.len() == limit;
        let whole = ends && taken.len() == payload.len();
        if enough && front.is_empty() && masked.is_none() {
            self.message.kind = Some(self.sender.kind(taken, whole));
            return;
        }
        let start = front.len();
        front.extend_from_slice(taken);
        if let Some((key, offset)) = masked {
            frame::mask(&mut front[start..], key, offset);
        }
        if enough {
            let front = std::mem::take(front);
            self.message.kind = Some(match self.sender.kind(&front, whole) {
                // A heartbeat in pieces cannot be withheld; it passes unanswered.
                Kind::Back(BackType::AppHeartbeat) => self.unknown(),
                kind => kind,
            });
        }
    }

    /// Inflates all of a compressed message, since later ones may refer back to any of it, and keeps its front.
    fn inflate(
        &mut self,
        payload: &[u8],
        masked: Option<([u8; 4], u64)>,
        ends: bool,
        now: Instant,
    ) -> Result<(), Unreadable> {
        let Some(inflater) = &mut self.inflater else { return Ok(()) };
        let (front, limit) = (&mut self.message.front, self.sender.prefix());
        // One byte more than the front tells that it is not the whole message.
        let mut output = |bytes: &[u8]| front.extend_from_slice(&bytes[..bytes.len().min(limit + 1 - front.len())]);
        let mut unmasked = [0; UNMASKED];
        for (at, piece) in (0..).step_by(UNMASKED).zip(payload.chunks(UNMASKED)) {
            let plain = &mut unmasked[..piece.len()];
            plain.copy_from_slice(piece);
            if let Some((key, offset)) = masked {
                frame::mask(plain, key, offset + at);
            }
            inflater.push(plain, now, &mut output)?;
        }
        if ends {
            inflater.finish(now, output)?;
            let front = std::mem::take(&mut self.message.front);
            let (prefix, whole) = (&front[..front.len().min(limit)], front.len() <= limit);
            self.message.kind = self.message.binary.then(|| self.sender.kind(prefix, whole));
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
    /// Bytes at the front of a message that tell what it is.
    fn prefix(self) -> usize {
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
