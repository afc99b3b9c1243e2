//! The scanner: whatever the chunks, it marks the frames that the model sees, and loses the stream where that does.
#![no_main]

use heartbeat_sidecar::websocket::scanner::{Mark, Scanner, Sender};
use heartbeat_sidecar_fuzz::input::Input;
use heartbeat_sidecar_fuzz::wire::Stream;
use libfuzzer_sys::fuzz_target;

/// Frames with shorter payloads are asked for whole.
const WHOLE: u64 = 20;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let (flags, sizes) = (input.byte(), [input.byte(), input.byte()]);
    let sender = if flags & 1 == 0 { Sender::Browser } else { Sender::Upstream };
    let (extensions, stream) = (flags & 2 != 0, input.rest());
    let mut scanner = Scanner::new(sender, extensions);
    let mut seen = Seen { model: Stream::follow(stream, sender, extensions), frame: 0, at: 0 };
    let (mut come, mut sizes) = (0, sizes.iter().cycle());
    while come < stream.len() {
        come = (come + 1 + usize::from(*sizes.next().expect("cycles"))).min(stream.len());
        while seen.at < come {
            seen.check_room(&scanner);
            match scanner.next(&stream[seen.at..come], |header| header.payload_length < WHOLE) {
                Mark::Incomplete => break,
                Mark::Error(_) => return assert_eq!(seen.model.lost, Some(seen.at), "lost for no reason"),
                Mark::Whole(header) => {
                    seen.begin(header.length);
                    seen.advance(header.payload_length as usize);
                }
                Mark::Start(header) => seen.begin(header.length),
                Mark::Payload { length, ends_frame } => {
                    assert!(length > 0 && seen.at + length <= come, "a payload that has not come");
                    seen.advance(length);
                    assert_eq!(ends_frame, seen.at as u128 == seen.model.frames[seen.frame - 1].end);
                }
            }
        }
        assert!(come - seen.at < 14 + WHOLE as usize, "{} bytes are kept", come - seen.at);
    }
    assert!(seen.model.lost.is_none_or(|lost| lost >= seen.at), "the model lost it before");
});

/// How far the marks have come, against the model.
struct Seen {
    model: Stream,
    /// Frames that have begun.
    frame: usize,
    at: usize,
}

impl Seen {
    fn begin(&mut self, header: usize) {
        let frame = self.model.frames[self.frame];
        assert_eq!((self.at, self.at + header), (frame.start, frame.payload));
        self.frame += 1;
        self.at += header;
    }

    fn advance(&mut self, length: usize) {
        self.at += length;
        assert!(self.at as u128 <= self.model.frames[self.frame - 1].end);
    }

    fn check_room(&self, scanner: &Scanner) {
        assert_eq!(scanner.between_frames(), self.model.has_room_at(self.at, false));
        assert_eq!(scanner.between_messages(), self.model.has_room_at(self.at, true));
    }
}
