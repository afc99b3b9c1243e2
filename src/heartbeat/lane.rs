//! One direction of a session: follows its messages and names each from a bounded copy of its front.

use crate::streamlit::messages::{self, BackType, Forward};
use crate::websocket::frame::{self, Header, Opcode};
use crate::websocket::scanner::{Scanner, Sender};

/// The message under way.
#[derive(Debug, Default)]
struct Message {
    bytes: u64,
    binary: bool,
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
    /// A close frame came from the sender.
    pub(super) closed: bool,
    /// A close frame of our own went in, or the sender has ended inside a frame: nothing may follow.
    pub(super) farewell: bool,
}

impl Lane {
    pub(super) fn new(sender: Sender, extensions: bool) -> Self {
        let scanner = Scanner::new(sender, extensions);
        Self { sender, scanner, frame: None, message: Message::default(), closed: false, farewell: false }
    }

    pub(super) fn begin(&mut self, header: Header) {
        self.frame = Some((header, 0));
        if !header.opcode.is_control() && header.opcode != Opcode::Continuation {
            self.message = Message { binary: header.opcode == Opcode::Binary, ..Message::default() };
        }
    }

    /// More of the current frame's payload came; `peek`: look at what it says. Answers what a message was and its length once all of it has come.
    pub(super) fn advance(&mut self, payload: &[u8], ends_frame: bool, peek: bool) -> Option<(Kind, u64)> {
        let (header, before) = self.frame?;
        let after = before + payload.len() as u64;
        self.frame = if ends_frame { None } else { Some((header, after)) };
        if header.opcode.is_control() {
            return None;
        }
        self.message.bytes += payload.len() as u64;
        let ends = ends_frame && header.fin;
        if self.message.kind.is_none() && self.message.binary && peek {
            self.look(payload, header.mask.map(|key| (key, before)), ends);
        }
        if !ends {
            return None;
        }
        let message = std::mem::take(&mut self.message);
        Some((message.kind.unwrap_or_else(|| self.unknown()), message.bytes))
    }

    /// Tries to tell what the message is; `ends` says that no more of it comes.
    fn look(&mut self, payload: &[u8], masked: Option<([u8; 4], u64)>, ends: bool) {
        let limit = match self.sender {
            Sender::Browser => messages::BACK_PREFIX,
            Sender::Upstream => messages::FORWARD_PREFIX,
        };
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
            self.message.kind = Some(self.sender.kind(&front, whole));
        }
    }

    fn unknown(&self) -> Kind {
        match self.sender {
            Sender::Browser => Kind::Back(BackType::Unknown),
            Sender::Upstream => Kind::Forward(Forward::Other(messages::ForwardType::Unknown)),
        }
    }
}

impl Sender {
    fn kind(self, front: &[u8], whole: bool) -> Kind {
        match self {
            // A heartbeat in pieces cannot be withheld; it passes unanswered.
            Self::Browser => match messages::back(front, whole) {
                BackType::AppHeartbeat => Kind::Back(BackType::Unknown),
                kind => Kind::Back(kind),
            },
            Self::Upstream => Kind::Forward(messages::forward(front, whole)),
        }
    }
}
