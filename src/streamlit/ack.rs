//! The bytes of an ack, in its two forms.

/// `ForwardMsg { heartbeat_ack: true }`, as Streamlit 1.55.0 and later send it.
pub const PLAIN: [u8; 3] = [0xd0, 0x01, 0x01];

/// `ForwardMsg { session_event: {} }` followed by `heartbeat_ack: true` in the same message.
///
/// Both are members of one oneof and the last on the wire wins, so a frontend from 1.55.0 on reads an ack. An older
/// one skips field 26 and reads an empty event. A plain ack would open its dialog "Bad message format".
pub const COMPATIBLE: [u8; 5] = [0x52, 0x00, 0xd0, 0x01, 0x01];

/// The encoding of a sidecar-made ack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AckForm {
    /// The form that every frontend from 1.12 to 1.67 accepts.
    #[default]
    Compatible,
    /// The form of Streamlit's own server; opens an error dialog in frontends before 1.55.0.
    Plain,
}

impl AckForm {
    /// The ForwardMsg as one unmasked binary websocket frame (RFC 6455 §5.2).
    pub fn frame(self) -> &'static [u8] {
        match self {
            Self::Compatible => &[0x82, 0x05, 0x52, 0x00, 0xd0, 0x01, 0x01],
            Self::Plain => &[0x82, 0x03, 0xd0, 0x01, 0x01],
        }
    }
}
