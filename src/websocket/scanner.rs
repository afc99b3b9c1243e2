//! Parses one direction of a websocket and marks where frames and messages start and end.
//!
//! Invariant: it holds no bytes and allocates nothing by a declared length. A protocol error is reported once.

use super::frame::{Header, Opcode};

/// A side of a session. A browser masks every frame, an upstream none (RFC 6455 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Its frames are masked.
    Browser,
    /// Its frames are not masked.
    Upstream,
}

/// Why a stream can no longer be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ProtocolError {
    /// A reserved bit is set that no extension was negotiated for (RFC 6455 §5.2).
    #[error("a reserved bit is set")]
    ReservedBits,
    /// A browser's frame without a mask, or a server's with one (RFC 6455 §5.1).
    #[error("a browser frame is not masked, or an upstream frame is")]
    Masking,
    /// A payload length with its top bit set (RFC 6455 §5.2).
    #[error("a frame declares more than 2^63 - 1 bytes")]
    Length,
    /// A continuation without a message, new data inside one, or a fragmented control frame (RFC 6455 §5.4).
    #[error("a fragment is out of order")]
    Fragmentation,
}

/// What is at the front of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Too few bytes: an incomplete header, or an incomplete frame that must be whole. Pass the same bytes again, with
    /// more after them.
    Incomplete,
    /// The header of a complete frame; its payload follows in the same bytes.
    Whole(Header),
    /// The header of an incomplete frame; its payload follows as [`Mark::Payload`].
    Start(Header),
    /// Bytes of the current frame's payload.
    Payload {
        /// How many, up to the end of the bytes or of the frame.
        length: usize,
        /// The frame ends with them.
        ends_frame: bool,
    },
    /// The stream cannot be parsed further; the scanner must not be called again.
    Error(ProtocolError),
}

/// The parser of one direction.
#[derive(Clone, Copy, Debug)]
pub struct Scanner {
    sender: Side,
    /// Reserved bits that a negotiated extension may set.
    allowed_reserved: u8,
    /// Bytes of the current frame's payload that are still to come; 0 before a header.
    payload_left: u64,
    /// A message has started; its last frame is still to come.
    in_message: bool,
}

impl Scanner {
    /// A scanner at the first byte after the handshake. `extensions`: reserved bits may be set.
    pub fn new(sender: Side, extensions: bool) -> Self {
        Self { sender, allowed_reserved: if extensions { 0x7 } else { 0 }, payload_left: 0, in_message: false }
    }

    /// The next byte starts a frame: a control frame may be inserted before it.
    pub fn between_frames(&self) -> bool {
        self.payload_left == 0
    }

    /// The next byte starts a frame outside a message: a message may be inserted before it.
    pub fn between_messages(&self) -> bool {
        self.between_frames() && !self.in_message
    }

    /// Marks what is at the front of `bytes`, which must not be empty. `must_be_whole` selects frames that are marked
    /// only when complete. It must bound their payload, or a caller would buffer without limit.
    pub fn next(&mut self, bytes: &[u8], must_be_whole: impl Fn(&Header) -> bool) -> Mark {
        if self.payload_left > 0 {
            return self.on_payload(bytes.len());
        }
        match Header::parse(bytes) {
            None => Mark::Incomplete,
            Some(header) => self.on_header(header, bytes.len(), must_be_whole),
        }
    }

    /// The payload of a server's complete binary message in one frame, and the bytes after it. [`Scanner::next`] would
    /// mark it as whole, in five times the instructions. `None` for anything else.
    #[inline]
    pub fn plain_message<'a>(&self, bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        if self.sender != Side::Upstream || !self.between_messages() {
            return None;
        }
        let (length, rest) = match bytes {
            [0x82, short @ 0..126, rest @ ..] => (u64::from(*short), rest),
            [0x82, 126, rest @ ..] => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            [0x82, 127, rest @ ..] => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest)
            }
            _ => return None,
        };
        rest.split_at_checked(usize::try_from(length).ok()?)
    }

    fn on_payload(&mut self, available: usize) -> Mark {
        let length = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(available);
        self.payload_left -= length as u64;
        Mark::Payload { length, ends_frame: self.payload_left == 0 }
    }

    fn on_header(&mut self, header: Header, available: usize, must_be_whole: impl Fn(&Header) -> bool) -> Mark {
        if let Err(error) = self.validate(&header) {
            return Mark::Error(error);
        }
        let control = header.opcode.is_control();
        let whole = (available - header.length) as u64 >= header.payload_length;
        if !whole && (control || !self.in_message) && must_be_whole(&header) {
            return Mark::Incomplete;
        }
        if !control {
            self.in_message = !header.fin;
        }
        if whole {
            return Mark::Whole(header);
        }
        self.payload_left = header.payload_length;
        Mark::Start(header)
    }

    /// Whether the stream can be parsed past this header.
    fn validate(&self, header: &Header) -> Result<(), ProtocolError> {
        if header.reserved & !self.allowed_reserved != 0 {
            return Err(ProtocolError::ReservedBits);
        }
        if header.mask.is_some() != (self.sender == Side::Browser) {
            return Err(ProtocolError::Masking);
        }
        if header.payload_length > i64::MAX as u64 {
            return Err(ProtocolError::Length);
        }
        let fits = match header.opcode {
            opcode if opcode.is_control() => header.fin,
            Opcode::Continuation => self.in_message,
            _ => !self.in_message,
        };
        if fits { Ok(()) } else { Err(ProtocolError::Fragmentation) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(sender: Side, bytes: &[u8]) -> Mark {
        Scanner::new(sender, false).next(bytes, |_header| false)
    }

    #[test]
    fn protocol_errors_are_reported_with_their_reason() {
        assert_eq!(first(Side::Upstream, &[0xc2, 0x00]), Mark::Error(ProtocolError::ReservedBits));
        assert_eq!(first(Side::Upstream, &[0x82, 0x80, 0, 0, 0, 0]), Mark::Error(ProtocolError::Masking));
        assert_eq!(first(Side::Browser, &[0x82, 0x00]), Mark::Error(ProtocolError::Masking));
        let top_bit = [0x82, 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(first(Side::Upstream, &top_bit), Mark::Error(ProtocolError::Length));
        assert_eq!(first(Side::Upstream, &[0x80, 0x00]), Mark::Error(ProtocolError::Fragmentation));
        assert_eq!(first(Side::Upstream, &[0x09, 0x00]), Mark::Error(ProtocolError::Fragmentation));
        let mut scanner = Scanner::new(Side::Upstream, false);
        assert!(matches!(scanner.next(&[0x02, 0x00], |_header| false), Mark::Whole(_)));
        assert_eq!(scanner.next(&[0x82, 0x00], |_header| false), Mark::Error(ProtocolError::Fragmentation));
    }

    #[test]
    fn an_extension_may_set_reserved_bits() {
        let mut scanner = Scanner::new(Side::Upstream, true);
        assert!(matches!(scanner.next(&[0xc2, 0x00], |_header| false), Mark::Whole(_)));
    }

    #[test]
    fn declared_length_of_2_to_the_63_minus_1_is_not_allocated() {
        let mut scanner = Scanner::new(Side::Upstream, false);
        let header = [0x82, 0x7f, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(scanner.next(&header, |_header| false), Mark::Start(_)));
        assert_eq!(scanner.next(&[0; 1000], |_header| false), Mark::Payload { length: 1000, ends_frame: false });
        assert!(!scanner.between_frames());
    }

    #[test]
    fn frame_that_must_be_whole_is_marked_only_when_complete() {
        let mut scanner = Scanner::new(Side::Upstream, false);
        let frame = [0x8a, 0x03, 1, 2, 3];
        for cut in 1..frame.len() {
            assert_eq!(scanner.next(&frame[..cut], |_header| true), Mark::Incomplete, "cut at {cut}");
        }
        assert!(matches!(scanner.next(&frame, |_header| true), Mark::Whole(_)));
        assert!(scanner.between_messages());
    }

    #[test]
    fn plain_message_agrees_with_next_on_whole_messages() {
        let lengths = [0_usize, 125, 126, 65_535, 65_536];
        let frames = lengths.map(|length| {
            let header = match length {
                0..126 => vec![0x82, length as u8],
                126..65_536 => [&[0x82, 126][..], &(length as u16).to_be_bytes()].concat(),
                _ => [&[0x82, 127][..], &(length as u64).to_be_bytes()].concat(),
            };
            [header, vec![7; length]].concat()
        });
        for (frame, length) in frames.iter().zip(lengths) {
            let mut scanner = Scanner::new(Side::Upstream, false);
            let stream = [&frame[..], &[0x82]].concat();
            let (payload, rest) = scanner.plain_message(&stream).expect("complete");
            assert_eq!((payload.len(), rest), (length, &[0x82][..]));
            let mark = scanner.next(&stream, |_header| false);
            assert!(matches!(mark, Mark::Whole(header) if header.payload_length == length as u64));
            assert_eq!(scanner.plain_message(&frame[..frame.len() - 1]), None, "incomplete");
            assert_eq!(Scanner::new(Side::Browser, false).plain_message(frame), None);
        }
        for other in [[0x02, 0], [0x80, 0], [0xc2, 0], [0x81, 0], [0x89, 0], [0x82, 0x80]] {
            assert_eq!(Scanner::new(Side::Upstream, false).plain_message(&other), None, "{other:02x?}");
        }
        let mut inside = Scanner::new(Side::Upstream, false);
        assert!(matches!(inside.next(&[0x02, 0x00], |_header| false), Mark::Whole(_)));
        assert_eq!(inside.plain_message(&frames[0]), None, "inside a message");
    }

    #[test]
    fn control_frames_may_come_between_fragments_of_a_message() {
        let mut scanner = Scanner::new(Side::Upstream, false);
        let pieces: [(&[u8], bool); 4] =
            [(&[0x02, 0x00], false), (&[0x89, 0x00], false), (&[0x00, 0x00], false), (&[0x80, 0x00], true)];
        for (frame, between_messages) in pieces {
            assert!(matches!(scanner.next(frame, |_header| false), Mark::Whole(_)));
            assert!(scanner.between_frames());
            assert_eq!(scanner.between_messages(), between_messages, "after {frame:02x?}");
        }
    }
}
