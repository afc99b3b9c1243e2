//! How much of a session the tap looks at, which reserved bits that allows, and which frames it must see whole.

use super::liveness::Tag;
use crate::streamlit::messages;
use crate::websocket::frame::{Header, MAX_CONTROL, Opcode};
use crate::websocket::inflate::{COMPRESSED, Deflate};
use crate::websocket::scanner::Sender;

/// How much of a session the tap looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspection {
    /// Messages too: heartbeats are answered.
    Messages,
    /// Messages too, though some are compressed. A heartbeat is answered but never withheld: what comes later may refer
    /// back to it. Of the upstream only as much is inflated as names its version, so its own acks are not seen.
    Compressed(Deflate),
    /// Frames only, so that a close frame can go in at a boundary. Extensions may have been negotiated.
    Frames,
    /// Nothing any more: the stream could not be followed.
    Off,
}

impl Inspection {
    /// Heartbeats are seen.
    pub fn sees_messages(self) -> bool {
        match self {
            Self::Messages | Self::Compressed(_) => true,
            Self::Frames | Self::Off => false,
        }
    }

    /// Whether the reserved bits of a frame that the scanner has let through mean what was negotiated: permessage-deflate
    /// sets RSV1 on the first frame of a message and nothing else (RFC 7692 §6).
    pub(super) fn allows(self, header: &Header) -> bool {
        let compressible = matches!(header.opcode, Opcode::Text | Opcode::Binary);
        match self {
            Self::Compressed(_) => header.reserved == 0 || (header.reserved == COMPRESSED && compressible),
            Self::Messages | Self::Frames | Self::Off => true,
        }
    }
}

/// Whether a frame must be seen whole before it is known whether it passes. A heartbeat and a pong of ours may be
/// taken out, but not where a reserved bit makes them an extension's; a close frame's code is reported. `shielded` is `Some`
/// where the browser is pinged, and true where it is shielded from the upstream's pings.
pub(super) fn wanted(from: Sender, header: &Header, shielded: Option<bool>) -> bool {
    match header.opcode {
        Opcode::Close => header.payload <= MAX_CONTROL as u64,
        Opcode::Pong => {
            let asked = from == Sender::Upstream || shielded.is_some();
            asked && header.reserved == 0 && header.payload == size_of::<Tag>() as u64
        }
        Opcode::Ping => {
            let shielded = from == Sender::Upstream && shielded == Some(true);
            shielded && header.reserved == 0 && header.payload <= MAX_CONTROL as u64
        }
        Opcode::Binary => {
            let short = header.payload <= messages::MAX_HEARTBEAT as u64;
            from == Sender::Browser && short && header.fin && header.reserved == 0
        }
        Opcode::Continuation | Opcode::Text | Opcode::Reserved(_) => false,
    }
}
