//! A plain model of RFC 6455 framing: finds the frames of a whole stream.

use heartbeat_sidecar::websocket::scanner::Side;

/// A frame whose header is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Offset of its first byte in the stream.
    pub start: usize,
    /// Offset of the first byte of its payload.
    pub payload: usize,
    /// Offset after its last byte; it may lie beyond the end of the stream.
    pub end: u128,
    /// Flags and opcode.
    pub first: u8,
    /// The masking key.
    pub mask: Option<[u8; 4]>,
    /// A message ends with it: another may be inserted after it.
    pub ends_message: bool,
}

/// The part of a stream that can be parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The frames, in order.
    pub frames: Vec<Frame>,
    /// Offset of the header of the first invalid frame.
    pub error_at: Option<usize>,
}

impl Frame {
    /// Whether the stream contains all of it.
    pub fn is_whole(&self, stream: &[u8]) -> bool {
        self.end <= stream.len() as u128
    }

    /// The unmasked payload of a whole frame.
    pub fn unmasked(&self, stream: &[u8]) -> Vec<u8> {
        let key = self.mask.unwrap_or_default();
        stream[self.payload..self.end as usize].iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect()
    }

    /// FIN, no reserved bit, and this opcode.
    pub fn is_plain(&self, opcode: u8) -> bool {
        self.first == 0x80 | opcode
    }
}

impl Stream {
    /// Parses a stream from its first byte. `extensions`: reserved bits are allowed.
    pub fn parse(bytes: &[u8], sender: Side, extensions: bool) -> Self {
        let (mut frames, mut at, mut in_message) = (Vec::new(), 0, false);
        while let Some((payload, length, mask)) = bytes.get(at..).and_then(header) {
            let first = bytes[at];
            let (fin, reserved, opcode) = (first & 0x80 != 0, first & 0x70, first & 0x0f);
            let fits = if opcode >= 8 { fin } else { (opcode == 0) == in_message };
            let masked_right = mask.is_some() == (sender == Side::Browser);
            if (reserved != 0 && !extensions) || !masked_right || length >= 1 << 63 || !fits {
                return Self { frames, error_at: Some(at) };
            }
            if opcode < 8 {
                in_message = !fin;
            }
            let end = (at + payload) as u128 + u128::from(length);
            frames.push(Frame { start: at, payload: at + payload, end, first, mask, ends_message: !in_message });
            let Ok(next) = usize::try_from(end) else { break };
            at = next;
        }
        Self { frames, error_at: None }
    }

    /// Whether a control frame (or, with `message`, a whole message) may be at this offset.
    pub fn has_room_at(&self, offset: usize, message: bool) -> bool {
        match self.frames.iter().rfind(|frame| frame.start < offset) {
            None => offset == 0,
            Some(frame) => frame.end == offset as u128 && (frame.ends_message || !message),
        }
    }
}

/// Offset of the payload, its length and the masking key, if the header is complete.
fn header(bytes: &[u8]) -> Option<(usize, u64, Option<[u8; 4]>)> {
    let second = *bytes.get(1)?;
    let extra = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mut length = u64::from(second & 0x7f);
    if extra > 0 {
        length = bytes.get(2..2 + extra)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    }
    let mut at = 2 + extra;
    let mut mask = None;
    if second & 0x80 != 0 {
        mask = Some(bytes.get(at..at + 4)?.try_into().expect("four bytes"));
        at += 4;
    }
    Some((at, length, mask))
}

/// A frame as `sender` would send it, with these flags and opcode.
pub fn frame(sender: Side, first: u8, payload: &[u8]) -> Vec<u8> {
    const KEY: [u8; 4] = [0x11, 0x22, 0x33, 0x44];
    let bit = if sender == Side::Browser { 0x80 } else { 0 };
    let mut bytes = vec![first, bit | payload.len().min(126) as u8];
    if payload.len() > 125 {
        bytes.extend((payload.len() as u16).to_be_bytes());
    }
    if sender == Side::Browser {
        bytes.extend(KEY);
        bytes.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    } else {
        bytes.extend(payload);
    }
    bytes
}
