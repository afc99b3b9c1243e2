//! How deep the tap inspects a session, which reserved bits are valid then, and which frames must be complete.

use crate::heartbeat::liveness::PingTag;
use crate::streamlit::messages;
use crate::websocket::frame::{Header, MAX_CONTROL_BYTES, Opcode};
use crate::websocket::inflate::{COMPRESSED, Deflate};
use crate::websocket::scanner::Side;

/// How deep the tap inspects a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inspection {
    /// Messages: heartbeats are answered.
    Messages,
    /// Messages, some of them compressed. A heartbeat is answered but never removed: later messages may refer back to
    /// it. The upstream is inflated only until it names its version, so its own acks are not seen.
    Compressed(Deflate),
    /// Frames only, to insert control frames at boundaries. Extensions may have been negotiated.
    Frames,
    /// Nothing: the stream could not be parsed.
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

    /// Whether the reserved bits of a frame that passed the scanner match what was negotiated. permessage-deflate sets
    /// only RSV1, and only on the first frame of a message (RFC 7692 §6).
    pub(super) fn allows(self, header: &Header) -> bool {
        let compressible = matches!(header.opcode, Opcode::Text | Opcode::Binary);
        match self {
            Self::Compressed(_) => header.reserved == 0 || (header.reserved == COMPRESSED && compressible),
            Self::Messages | Self::Frames | Self::Off => true,
        }
    }
}

/// Which pings the sidecar sends or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pinging {
    /// None.
    Off,
    /// It pings the browser.
    Browser,
    /// It pings the browser and answers the upstream's pings.
    Shield,
}

/// Whether a frame must be complete before it is processed. A heartbeat, a pong to our ping and a shielded ping may be
/// removed, unless a reserved bit makes them an extension's. A close frame's code is reported.
pub(super) fn must_be_whole(from: Side, header: &Header, pinging: Pinging) -> bool {
    match header.opcode {
        Opcode::Close => header.payload_length <= MAX_CONTROL_BYTES as u64,
        Opcode::Pong => {
            let is_pinged = from == Side::Upstream || pinging != Pinging::Off;
            is_pinged && header.reserved == 0 && header.payload_length == size_of::<PingTag>() as u64
        }
        Opcode::Ping => {
            let shielded = from == Side::Upstream && pinging == Pinging::Shield;
            shielded && header.reserved == 0 && header.payload_length <= MAX_CONTROL_BYTES as u64
        }
        Opcode::Binary => {
            let short = header.payload_length <= messages::MAX_HEARTBEAT_BYTES as u64;
            from == Side::Browser && short && header.fin && header.reserved == 0
        }
        Opcode::Continuation | Opcode::Text | Opcode::Reserved(_) => false,
    }
}
