//! The bytes of an ack, in the two forms that frontends are sent.

/// `ForwardMsg { heartbeat_ack: true }`, as Streamlit 1.55.0 and later send it.
pub const PLAIN: [u8; 3] = [0xd0, 0x01, 0x01];

/// `ForwardMsg { session_event: {} }` followed by `heartbeat_ack: true` in the same message.
///
/// Both are members of one oneof and the last on the wire wins, so a frontend from 1.55.0 on reads an ack. An older
/// one skips field 26 and reads an event that says nothing; a plain ack would open its dialog "Bad message format".
pub const COMPATIBLE: [u8; 5] = [0x52, 0x00, 0xd0, 0x01, 0x01];

/// Which bytes a sidecar-made ack has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AckForm {
    /// The form that every frontend from 1.12 to 1.67 takes.
    #[default]
    Compatible,
    /// The form of Streamlit's own server; an error dialog in every frontend before 1.55.0.
    Plain,
}

impl AckForm {
    /// The ForwardMsg.
    pub fn message(self) -> &'static [u8] {
        match self {
            Self::Compatible => &COMPATIBLE,
            Self::Plain => &PLAIN,
        }
    }

    /// The ForwardMsg as one unmasked binary websocket frame (RFC 6455 §5.2).
    pub fn frame(self) -> &'static [u8] {
        match self {
            Self::Compatible => &[0x82, 0x05, 0x52, 0x00, 0xd0, 0x01, 0x01],
            Self::Plain => &[0x82, 0x03, 0xd0, 0x01, 0x01],
        }
    }
}
