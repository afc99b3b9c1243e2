//! The network of a simulation: legs whose bytes are late, torn off and lost.

use std::collections::VecDeque;

use crate::websocket::frame::{Header, Opcode, mask};

use super::page::Message;

/// First bytes of frames.
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// A deterministic source of choices: SplitMix64.
pub(super) struct Choices(u64);

/// Bytes of one direction of a leg, on their way.
#[derive(Default)]
pub(super) struct Pipe {
    bytes: VecDeque<u8>,
    is_cut: bool,
}

/// What an app sends, in the parts in which a tap passes it on: whole headers, and whole control frames.
#[derive(Default)]
pub(super) struct AppStream {
    bytes: VecDeque<u8>,
    /// Of the current frame.
    payload_left: usize,
    has_closed: bool,
}

/// A peer's view of the websocket frames that reach it.
#[derive(Default)]
pub(super) struct Reader {
    bytes: Vec<u8>,
    message: Option<(Opcode, Vec<u8>)>,
}

/// What a peer reads.
pub(super) enum Read {
    Message(Message),
    Close(u16),
}

impl Choices {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(super) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(super) fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// Frames of a message, at times in fragments and with control frames between them; masked if they come from a page.
    pub(super) fn frames(&mut self, message: &Message, may_fragment: bool, is_masked: bool) -> Vec<u8> {
        let (opcode, payload) = match message {
            Message::Text(text) => (0x1, text.as_bytes()),
            Message::Binary(bytes) => (0x2, &bytes[..]),
        };
        let mut frames = Vec::with_capacity(payload.len() + 14);
        let (mut rest, mut first) = (payload, opcode);
        while may_fragment && self.one_in(8) {
            let (part, others) = rest.split_at(self.below(rest.len() + 1));
            self.frame(first, part, is_masked, &mut frames);
            self.frame(if is_masked { PONG } else { PING }, b"beat", is_masked, &mut frames);
            (rest, first) = (others, 0);
        }
        self.frame(0x80 | first, rest, is_masked, &mut frames);
        frames
    }

    fn frame(&mut self, first: u8, payload: &[u8], is_masked: bool, frames: &mut Vec<u8>) {
        let flag = if is_masked { 0x80 } else { 0 };
        frames.push(first);
        match payload.len() {
            length @ 0..=125 => frames.push(flag | length as u8),
            length @ 126..=0xffff => {
                frames.push(flag | 126);
                frames.extend((length as u16).to_be_bytes());
            }
            length => {
                frames.push(flag | 127);
                frames.extend((length as u64).to_be_bytes());
            }
        }
        let key = (self.next() as u32).to_ne_bytes();
        frames.extend(if is_masked { &key[..] } else { &[] });
        let start = frames.len();
        frames.extend(payload);
        if is_masked {
            mask(&mut frames[start..], key, 0);
        }
    }
}

impl Pipe {
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if !self.is_cut {
            self.bytes.extend(bytes);
        }
    }

    pub(super) fn read(&mut self, most: usize) -> Vec<u8> {
        self.bytes.drain(..most.min(self.bytes.len())).collect()
    }

    /// Only the first bytes of what is on its way still arrive.
    pub(super) fn cut(&mut self, arriving: usize) {
        self.bytes.truncate(arriving);
        self.is_cut = true;
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Nothing comes any more.
    pub(super) fn has_ended(&self) -> bool {
        self.is_cut && self.bytes.is_empty()
    }
}

impl AppStream {
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The app's close frame was read.
    pub(super) fn has_closed(&self) -> bool {
        self.has_closed
    }

    /// A part of at most one frame.
    pub(super) fn read(&mut self, most: usize) -> Vec<u8> {
        let mut length = 0;
        if self.payload_left == 0 {
            let front: Vec<u8> = self.bytes.iter().take(14).copied().collect();
            let Some(header) = Header::parse(&front) else { return Vec::new() };
            (length, self.payload_left) = (header.length, header.payload_length as usize);
            self.has_closed |= header.opcode == Opcode::Close;
            if header.opcode.is_control() {
                length += std::mem::take(&mut self.payload_left);
            }
        }
        let part = most.min(self.payload_left);
        self.payload_left -= part;
        self.bytes.drain(..length + part).collect()
    }
}

impl Reader {
    /// What is complete after these bytes.
    pub(super) fn on_bytes(&mut self, bytes: &[u8]) -> Vec<Read> {
        self.bytes.extend(bytes);
        let (mut reads, mut at) = (Vec::new(), 0);
        while let Some(header) = Header::parse(&self.bytes[at..]) {
            let end = at + header.length + header.payload_length as usize;
            let Some(payload) = self.bytes.get(at + header.length..end) else { break };
            let mut payload = payload.to_vec();
            if let Some(key) = header.mask {
                mask(&mut payload, key, 0);
            }
            reads.extend(self.message_of(&header, payload));
            at = end;
        }
        self.bytes.drain(..at);
        reads
    }

    fn message_of(&mut self, header: &Header, payload: Vec<u8>) -> Option<Read> {
        assert_eq!(header.reserved, 0);
        match header.opcode {
            Opcode::Close => return Some(Read::Close(crate::websocket::frame::close_code(&payload).unwrap_or(1005))),
            Opcode::Ping | Opcode::Pong => return None,
            Opcode::Continuation => self.message.as_mut().expect("a started message").1.extend(payload),
            opcode => assert!(self.message.replace((opcode, payload)).is_none(), "a message inside another"),
        }
        let (opcode, payload) = self.message.take_if(|_message| header.fin)?;
        Some(Read::Message(match opcode {
            Opcode::Text => Message::Text(String::from_utf8(payload).expect("UTF-8")),
            _ => Message::Binary(payload),
        }))
    }
}
