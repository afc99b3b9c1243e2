//! One direction of a session: follows its messages and names each from a bounded copy of its front.

use crate::streamlit::messages::{self, BackType, Forward};
use crate::websocket::frame::{self, Header, Opcode};
use crate::websocket::scanner::{Scanner, Sender};

/// What a whole message was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Back(BackType),
    Forward(Forward),
}

/// One direction; every byte of it counts for each idle session.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) scanner: Scanner,
    sender: Sender,
    /// The frame under way is the last one of its message; control frames count as none.
    last: bool,
    control: bool,
    mask: Option<[u8; 4]>,
    /// Payload bytes of the frame and of the message under way that have come.
    of_frame: u64,
    of_message: u64,
    binary: bool,
    /// A close frame came from the sender.
    pub(super) closed: bool,
    /// A close frame of our own went in: nothing may follow it.
    pub(super) farewell: bool,
    /// What is known of a message that comes in pieces.
    pieces: Option<Box<Pieces>>,
}

/// A message of which more is to come.
#[derive(Debug, Default)]
struct Pieces {
    /// What it is, once its front was enough to tell.
    kind: Option<Kind>,
    /// Its unmasked front, until then.
    front: Vec<u8>,
}

impl Lane {
    pub(super) fn new(sender: Sender, extensions: bool) -> Self {
        Self {
            scanner: Scanner::new(sender, extensions),
            sender,
            last: false,
            control: false,
            mask: None,
            of_frame: 0,
            of_message: 0,
            binary: false,
            closed: false,
            farewell: false,
            pieces: None,
        }
    }

    pub(super) fn begin(&mut self, header: Header) {
        self.control = header.opcode.is_control();
        (self.last, self.mask, self.of_frame) = (header.fin, header.mask, 0);
        if !self.control && header.opcode != Opcode::Continuation {
            (self.binary, self.of_message, self.pieces) = (header.opcode == Opcode::Binary, 0, None);
        }
    }

    /// More of the current frame's payload came; `peek`: look at what it says. Answers what a message was and its
    /// length once all of it has come.
    pub(super) fn advance(&mut self, payload: &[u8], ends_frame: bool, peek: bool) -> Option<(Kind, u64)> {
        let offset = self.of_frame;
        self.of_frame += payload.len() as u64;
        if self.control {
            return None;
        }
        let first = self.of_message == 0 && self.pieces.is_none();
        self.of_message += payload.len() as u64;
        let ends = ends_frame && self.last;
        let looks = self.binary && peek;
        if !ends {
            if looks {
                self.look(payload, offset, false);
            }
            return None;
        }
        let kind = match looks {
            true if first => Some(self.name(payload, offset)),
            true => {
                self.look(payload, offset, true);
                self.pieces.take().and_then(|pieces| pieces.kind)
            }
            false => None,
        };
        Some((kind.unwrap_or_else(|| self.unknown()), self.of_message))
    }

    /// Names a message that is all here.
    fn name(&self, payload: &[u8], offset: u64) -> Kind {
        let front = &payload[..payload.len().min(self.sender.limit())];
        let whole = front.len() == payload.len();
        let Some(key) = self.mask else {
            return self.sender.kind(front, whole);
        };
        let mut unmasked = [0; messages::BACK_PREFIX];
        let unmasked = &mut unmasked[..front.len()];
        unmasked.copy_from_slice(front);
        frame::mask(unmasked, key, offset);
        self.sender.kind(unmasked, whole)
    }

    /// Tries to tell what a message is of which this is a piece; `ends` says that no more of it comes.
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

    fn unknown(&self) -> Kind {
        match self.sender {
            Sender::Browser => Kind::Back(BackType::Unknown),
            Sender::Upstream => Kind::Forward(Forward::Other(messages::ForwardType::Unknown)),
        }
    }
}

impl Sender {
    /// Bytes at the front of a message that are enough to name it.
    fn limit(self) -> usize {
        match self {
            Self::Browser => messages::BACK_PREFIX,
            Self::Upstream => messages::FORWARD_PREFIX,
        }
    }

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
