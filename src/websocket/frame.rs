//! Frame headers, close codes and the few frames that the sidecar makes itself (RFC 6455 §5.2).

/// Longest frame header: two bytes, a length of eight and a masking key of four (RFC 6455 §5.2).
pub const MAX_HEADER_BYTES: usize = 14;

/// Longest payload of a control frame (RFC 6455 §5.5).
pub const MAX_CONTROL_BYTES: usize = 125;

/// The opcode of a frame (RFC 6455 §11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
    /// 3 to 7 and 11 to 15: unassigned.
    Reserved(u8),
}

impl Opcode {
    fn from_bits(bits: u8) -> Self {
        match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            reserved => Self::Reserved(reserved),
        }
    }

    /// Whether frames of this opcode may come between the frames of a message (RFC 6455 §5.4).
    pub fn is_control(self) -> bool {
        match self {
            Self::Close | Self::Ping | Self::Pong => true,
            Self::Reserved(bits) => bits & 0x8 != 0,
            Self::Continuation | Self::Text | Self::Binary => false,
        }
    }
}

/// A frame's header, as its sender declared it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The last frame of its message.
    pub fin: bool,
    /// RSV1, RSV2 and RSV3 as the three low bits, RSV1 highest.
    pub reserved: u8,
    /// What the frame is.
    pub opcode: Opcode,
    /// The masking key, if the frame is masked.
    pub mask: Option<[u8; 4]>,
    /// Declared payload length in bytes; up to 2^64 - 1, not validated.
    pub payload_length: u64,
    /// Length of the header itself in bytes, 2 to [`MAX_HEADER_BYTES`].
    pub length: usize,
}

impl Header {
    /// Parses the header at the front of `bytes`; `None` while it is incomplete.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [first, second, ..] = *bytes else {
            return None;
        };
        let (payload_length, at) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?)), 4),
            127 => (u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?), 10),
            short => (u64::from(short), 2),
        };
        let mask = if second & 0x80 == 0 { None } else { Some(*bytes.get(at..)?.first_chunk()?) };
        Some(Self {
            fin: first & 0x80 != 0,
            reserved: (first >> 4) & 0x7,
            opcode: Opcode::from_bits(first & 0x0f),
            mask,
            payload_length,
            length: at + if mask.is_some() { 4 } else { 0 },
        })
    }
}

/// Applies a masking key to `bytes` that start at `offset` of their payload (RFC 6455 §5.3).
pub fn mask(bytes: &mut [u8], mut key: [u8; 4], offset: u64) {
    key.rotate_left((offset % 4) as usize);
    let (words, tail) = bytes.as_chunks_mut();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(key)).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key) {
        *byte ^= key;
    }
}

/// A control frame of the sidecar's own, kept on the stack.
#[derive(Clone, Copy, Debug)]
pub struct ControlFrame {
    bytes: [u8; 6 + MAX_CONTROL_BYTES],
    length: usize,
}

impl ControlFrame {
    /// A ping; masked if it goes to a server.
    pub fn ping(payload: [u8; 16], key: Option<[u8; 4]>) -> Self {
        Self::new(0x89, &payload, key)
    }

    /// A masked pong to a server; `payload` is truncated to [`MAX_CONTROL_BYTES`] bytes.
    pub fn pong(payload: &[u8], key: [u8; 4]) -> Self {
        Self::new(0x8a, &payload[..payload.len().min(MAX_CONTROL_BYTES)], Some(key))
    }

    /// A close frame without a reason; masked if it goes to a server.
    pub fn close(code: u16, key: Option<[u8; 4]>) -> Self {
        Self::new(0x88, &code.to_be_bytes(), key)
    }

    fn new(first: u8, payload: &[u8], key: Option<[u8; 4]>) -> Self {
        let mut bytes = [0; 6 + MAX_CONTROL_BYTES];
        let masked = if key.is_some() { 0x80 } else { 0 };
        bytes[0] = first;
        bytes[1] = masked | payload.len() as u8;
        let start = if key.is_some() { 6 } else { 2 };
        let length = start + payload.len();
        bytes[start..length].copy_from_slice(payload);
        if let Some(key) = key {
            bytes[2..6].copy_from_slice(&key);
            mask(&mut bytes[start..length], key, 0);
        }
        Self { bytes, length }
    }

    /// The frame as it goes on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The status code in an unmasked close payload; `None` if it carries none (RFC 6455 §7.1.5: 1005).
pub fn close_code(payload: &[u8]) -> Option<u16> {
    payload.first_chunk().map(|code| u16::from_be_bytes(*code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_parsed_only_when_complete() {
        let wire = [0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4];
        for cut in 0..wire.len() {
            assert_eq!(Header::parse(&wire[..cut]), None, "cut at {cut}");
        }
        let header = Header::parse(&wire).expect("complete");
        assert_eq!((header.length, header.payload_length, header.mask), (14, 65_536, Some([1, 2, 3, 4])));
    }

    #[test]
    fn declared_lengths_are_reported_without_validation() {
        let header = Header::parse(&[0x82, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(header.map(|header| header.payload_length), Some(u64::MAX));
        let header = Header::parse(&[0x82, 0x7e, 0, 3]).expect("non-minimal lengths are accepted");
        assert_eq!((header.payload_length, header.length), (3, 4));
    }

    #[test]
    fn sidecar_frames_unmask_to_their_payload() {
        let ping = ControlFrame::ping(*b"0123456789abcdef", Some([9, 8, 7, 6]));
        let header = Header::parse(ping.as_bytes()).expect("whole");
        assert_eq!((header.opcode, header.payload_length, header.fin), (Opcode::Ping, 16, true));
        let mut payload = ping.as_bytes()[header.length..].to_vec();
        mask(&mut payload, header.mask.expect("masked"), 0);
        assert_eq!(payload, b"0123456789abcdef");
        assert_eq!(ControlFrame::pong(&[7; MAX_CONTROL_BYTES], [0; 4]).as_bytes().len(), 6 + MAX_CONTROL_BYTES);
        assert_eq!(ControlFrame::close(1001, None).as_bytes(), [0x88, 2, 3, 0xe9]);
    }

    #[test]
    fn masking_key_applies_from_any_offset() {
        let mut whole = *b"streamlit";
        mask(&mut whole, [1, 2, 3, 4], 0);
        let mut parts = *b"streamlit";
        let (head, tail) = parts.split_at_mut(3);
        mask(head, [1, 2, 3, 4], 0);
        mask(tail, [1, 2, 3, 4], 3);
        assert_eq!(whole, parts);
    }
}
