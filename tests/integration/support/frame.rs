//! Websocket frames (RFC 6455 §5.2) and Streamlit messages, written and read without the code under test.

use heartbeat_sidecar::streamlit::proto::{EnvironmentInfo, ForwardMsg, Initialize, NewSession, forward_msg};
use prost::Message as _;

pub(crate) const TEXT: u8 = 0x81;
pub(crate) const BINARY: u8 = 0x82;
pub(crate) const CLOSE: u8 = 0x88;
pub(crate) const PING: u8 = 0x89;
pub(crate) const PONG: u8 = 0x8a;

/// `BackMsg { app_heartbeat: true }`.
pub(crate) const HEARTBEAT: [u8; 3] = [0x88, 0x01, 0x01];
/// `ForwardMsg { heartbeat_ack: true }`.
pub(crate) const PLAIN_ACK: [u8; 3] = [0xd0, 0x01, 0x01];
/// The ack that every frontend accepts.
pub(crate) const COMPATIBLE_ACK: [u8; 5] = [0x52, 0x00, 0xd0, 0x01, 0x01];

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A frame as it was read, unmasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Flags and opcode.
    pub(crate) first: u8,
    pub(crate) masked: bool,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The frame at the start of `bytes`, and its length; `None` if it is incomplete.
    pub(crate) fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let (first, second) = (*bytes.first()?, *bytes.get(1)?);
        let (length, mut at) = match second & 0x7f {
            126 => (usize::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?)), 4),
            127 => (usize::try_from(u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)).ok()?, 10),
            short => (usize::from(short), 2),
        };
        let masked = second & 0x80 != 0;
        let mut key = [0; 4];
        if masked {
            key = *bytes.get(at..)?.first_chunk()?;
            at += 4;
        }
        let payload = bytes.get(at..at.checked_add(length)?)?;
        let payload = payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        Some((Self { first, masked, payload }, at + length))
    }

    pub(crate) fn is(&self, first: u8, payload: impl AsRef<[u8]>) -> bool {
        self.first == first && self.payload == payload.as_ref()
    }
}

/// A server's frame.
pub(crate) fn plain(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    [&header(first, payload.len() as u64, false)[..], payload].concat()
}

/// A browser's frame.
pub(crate) fn masked(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut frame = header(first, payload.len() as u64, true);
    frame.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// The header of a frame that declares this length.
pub(crate) fn header(first: u8, length: u64, masked: bool) -> Vec<u8> {
    let bit = if masked { 0x80 } else { 0 };
    let mut header = match length {
        0..126 => vec![first, bit | length as u8],
        126..0x1_0000 => [&[first, bit | 126][..], &(length as u16).to_be_bytes()].concat(),
        _ => [&[first, bit | 127][..], &length.to_be_bytes()].concat(),
    };
    if masked {
        header.extend(KEY);
    }
    header
}

/// A browser's heartbeat.
pub(crate) fn heartbeat() -> Vec<u8> {
    masked(BINARY, HEARTBEAT)
}

/// The session id in every [`new_session`].
pub(crate) const SESSION_ID: &str = "7a4fd3b1-25b0-4f38-9d05-0a55b18df5c2";

/// The first message of a script run, from a server of this version.
pub(crate) fn new_session(version: &str) -> Vec<u8> {
    new_session_of(version, SESSION_ID)
}

/// The same with another session id. The older of two connections with one id is closed.
pub(crate) fn new_session_of(version: &str, session_id: &str) -> Vec<u8> {
    let environment_info = Some(EnvironmentInfo { streamlit_version: version.to_owned() });
    let session_id = session_id.to_owned();
    let initialize = Some(Initialize { environment_info, session_id });
    let kind = Some(forward_msg::Type::NewSession(NewSession { initialize }));
    plain(BINARY, ForwardMsg { hash: "0123456789".to_owned(), r#type: kind }.encode_to_vec())
}
