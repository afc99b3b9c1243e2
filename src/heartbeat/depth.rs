//! How much of a session the tap looks at, and which reserved bits that allows.

use crate::websocket::frame::{Header, Opcode};
use crate::websocket::inflate::{COMPRESSED, Deflate};

/// How much of a session the tap looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
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

impl Depth {
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
