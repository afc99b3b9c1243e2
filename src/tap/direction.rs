//! One direction of a session: tracks its messages and identifies each by a bounded copy of its prefix.

use std::time::Instant;

use crate::streamlit::messages::{self, BackType, ForwardContent, ForwardType};
use crate::websocket::frame::{self, Header, Opcode};
use crate::websocket::inflate::{Allowance, COMPRESSED, Deflate, InflateError, Inflater};
use crate::websocket::scanner::{Scanner, Side};

/// Bytes that a browser's messages may inflate to. Real pages send far less. The sustained rate costs at most a tenth
/// of a core (300 MB/s of JSON, 9 GB/s of a bomb's zeros).
const BROWSER_ALLOWANCE: Allowance = Allowance { burst_bytes: 64 << 20, bytes_per_second: 32 << 20 };

/// Bytes that an upstream's messages may inflate to until it has named its version. It does so at the start of a script
/// run, in one of the first messages.
const UPSTREAM_ALLOWANCE: Allowance = Allowance { burst_bytes: 1 << 20, bytes_per_second: 0 };

/// Bytes that are unmasked at a time for the inflater: few enough for the stack.
const UNMASK_CHUNK_BYTES: usize = 1024;

/// The type of a complete message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum MessageType {
    Browser(BackType),
    Upstream(ForwardContent),
}

/// One direction. Its size matters: idle sessions hold it too.
#[derive(Debug)]
pub(super) struct Direction {
    pub(super) scanner: Scanner,
    sender: Side,
    /// The current frame is the last of its message.
    ends_message: bool,
    /// The current frame is a control frame.
    is_control: bool,
    mask: Option<[u8; 4]>,
    /// Payload bytes received of the current frame.
    frame_bytes: u64,
    /// Payload bytes received of the current message.
    message_bytes: u64,
    /// The current message is binary.
    is_binary: bool,
    /// The current message is compressed.
    is_compressed: bool,
    /// The sender has sent a close frame.
    pub(super) close_received: bool,
    /// Nothing more may be sent: the sidecar closed the direction, or it ended inside a frame.
    pub(super) is_sealed: bool,
    /// The current message, if it arrives in parts.
    partial: Option<Box<PartialMessage>>,
    /// Decompressor; `None` if compression is off, no longer needed, or failed.
    inflater: Option<Box<Inflater>>,
}

/// An incomplete message.
#[derive(Debug, Default)]
struct PartialMessage {
    /// Its type, once the prefix was long enough.
    kind: Option<MessageType>,
    /// Its unmasked prefix until then.
    prefix: Vec<u8>,
}

impl Direction {
    /// `extensions`: reserved bits may be set; `deflate`: the negotiated compression.
    pub(super) fn new(sender: Side, extensions: bool, deflate: Option<Deflate>) -> Self {
        let inflater = deflate.map(|deflate| match sender {
            Side::Browser => Inflater::new(deflate.browser, BROWSER_ALLOWANCE),
            Side::Upstream => Inflater::new(deflate.upstream, UPSTREAM_ALLOWANCE),
        });
        Self {
            scanner: Scanner::new(sender, extensions),
            sender,
            ends_message: false,
            is_control: false,
            mask: None,
            frame_bytes: 0,
            message_bytes: 0,
            is_binary: false,
            is_compressed: false,
            close_received: false,
            is_sealed: false,
            partial: None,
            inflater: inflater.map(Box::new),
        }
    }

    /// Compressed messages can be read.
    pub(super) fn inflates(&self) -> bool {
        self.inflater.is_some()
    }

    /// A frame starts.
    pub(super) fn on_header(&mut self, header: Header) {
        self.is_control = header.opcode.is_control();
        (self.ends_message, self.mask, self.frame_bytes) = (header.fin, header.mask, 0);
        if !self.is_control && header.opcode != Opcode::Continuation {
            (self.is_binary, self.message_bytes, self.partial) = (header.opcode == Opcode::Binary, 0, None);
            self.is_compressed = header.reserved & COMPRESSED != 0;
        }
    }

    /// More payload of the current frame arrived. `is_inspected`: its content is inspected. Once a message is complete,
    /// returns its type and its length on the wire.
    pub(super) fn on_payload(
        &mut self,
        payload: &[u8],
        ends_frame: bool,
        is_inspected: bool,
        now: Instant,
    ) -> Option<(MessageType, u64)> {
        let offset = self.frame_bytes;
        self.frame_bytes += payload.len() as u64;
        if self.is_control {
            return None;
        }
        let is_first = self.message_bytes == 0 && self.partial.is_none();
        self.message_bytes += payload.len() as u64;
        let ends = ends_frame && self.ends_message;
        let (reads_prefix, whole) = (self.is_binary && is_inspected && !self.is_compressed, ends && is_first);
        if self.is_compressed && is_inspected && self.inflate(payload, offset, ends, now).is_err() {
            self.inflater = None;
        }
        if reads_prefix && !whole {
            self.identify_partial(payload, offset, ends);
        }
        if !ends {
            return None;
        }
        let kind = if reads_prefix && whole {
            Some(self.identify(payload, self.mask, offset))
        } else {
            self.partial.take().and_then(|partial| partial.kind)
        };
        let kind = match kind {
            // Parts of it have passed already, so it cannot be removed and is not answered.
            Some(MessageType::Browser(BackType::AppHeartbeat)) if !self.is_compressed => self.unknown_type(),
            Some(MessageType::Upstream(ForwardContent::NewSession(Some(announcement)))) => {
                // No other upstream message is worth the cost of inflating.
                self.inflater = None;
                MessageType::Upstream(ForwardContent::NewSession(Some(announcement)))
            }
            Some(kind) => kind,
            None => self.unknown_type(),
        };
        Some((kind, self.message_bytes))
    }

    /// Identifies a complete message; `payload` starts at `offset` of its frame.
    fn identify(&self, payload: &[u8], mask: Option<[u8; 4]>, offset: u64) -> MessageType {
        let prefix = &payload[..payload.len().min(self.sender.prefix_bytes())];
        let whole = prefix.len() == payload.len();
        let Some(key) = mask else {
            return self.sender.message_type(prefix, whole);
        };
        let mut unmasked = [0; messages::BACK_PREFIX_BYTES];
        let unmasked = &mut unmasked[..prefix.len()];
        unmasked.copy_from_slice(prefix);
        frame::mask(unmasked, key, offset);
        self.sender.message_type(unmasked, whole)
    }

    /// Tries to identify a message with this part of it; `ends`: it is the last one.
    fn identify_partial(&mut self, payload: &[u8], offset: u64, ends: bool) {
        let (sender, limit) = (self.sender, self.sender.prefix_bytes());
        let PartialMessage { kind, prefix } = &mut **self.partial.get_or_insert_default();
        if kind.is_some() {
            return;
        }
        let start = prefix.len();
        let taken = &payload[..payload.len().min(limit - start)];
        let (enough, whole) = (ends || start + taken.len() == limit, ends && taken.len() == payload.len());
        if enough && start == 0 && self.mask.is_none() {
            *kind = Some(sender.message_type(taken, whole));
            return;
        }
        prefix.extend_from_slice(taken);
        if let Some(key) = self.mask {
            frame::mask(&mut prefix[start..], key, offset);
        }
        if enough {
            *kind = Some(sender.message_type(&std::mem::take(prefix), whole));
        }
    }

    /// Inflates all of a compressed message, since later ones may refer back to any of it, and keeps its prefix.
    fn inflate(&mut self, payload: &[u8], offset: u64, ends: bool, now: Instant) -> Result<(), InflateError> {
        let Some(inflater) = &mut self.inflater else { return Ok(()) };
        let limit = self.sender.prefix_bytes();
        let PartialMessage { kind, prefix } = &mut **self.partial.get_or_insert_default();
        // One byte more than the prefix shows that the message is longer.
        let mut output = |bytes: &[u8]| prefix.extend_from_slice(&bytes[..bytes.len().min(limit + 1 - prefix.len())]);
        let mut unmasked = [0; UNMASK_CHUNK_BYTES];
        for (at, chunk) in (offset..).step_by(UNMASK_CHUNK_BYTES).zip(payload.chunks(UNMASK_CHUNK_BYTES)) {
            let plain = &mut unmasked[..chunk.len()];
            plain.copy_from_slice(chunk);
            if let Some(key) = self.mask {
                frame::mask(plain, key, at);
            }
            inflater.push(plain, now, &mut output)?;
        }
        if ends {
            inflater.finish(now, output)?;
            let (prefix, whole) = (&prefix[..prefix.len().min(limit)], prefix.len() <= limit);
            *kind = self.is_binary.then(|| self.sender.message_type(prefix, whole));
        }
        Ok(())
    }

    fn unknown_type(&self) -> MessageType {
        match self.sender {
            Side::Browser => MessageType::Browser(BackType::Unknown),
            Side::Upstream => MessageType::Upstream(ForwardContent::Other(ForwardType::Unknown)),
        }
    }
}

impl Side {
    /// Length in bytes of the prefix that identifies a message.
    fn prefix_bytes(self) -> usize {
        match self {
            Self::Browser => messages::BACK_PREFIX_BYTES,
            Self::Upstream => messages::FORWARD_PREFIX_BYTES,
        }
    }

    fn message_type(self, prefix: &[u8], whole: bool) -> MessageType {
        match self {
            Self::Browser => MessageType::Browser(messages::parse_back(prefix, whole)),
            Self::Upstream => MessageType::Upstream(messages::parse_forward(prefix, whole)),
        }
    }
}
