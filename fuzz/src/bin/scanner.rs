//! The scanner: any chunking gives the frames of the model, and the protocol error at the same offset.
#![no_main]

use heartbeat_sidecar::websocket::scanner::{Mark, Scanner, Side};
use heartbeat_sidecar_fuzz::input::Input;
use heartbeat_sidecar_fuzz::wire::Stream;
use libfuzzer_sys::fuzz_target;

/// Frames with shorter payloads must be whole.
const MAX_PARTIAL_BYTES: u64 = 20;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let (flags, sizes) = (input.byte(), [input.byte(), input.byte()]);
    let sender = if flags & 1 == 0 { Side::Browser } else { Side::Upstream };
    let (extensions, stream) = (flags & 2 != 0, input.rest());
    let mut scanner = Scanner::new(sender, extensions);
    let mut progress = Progress { model: Stream::parse(stream, sender, extensions), frame: 0, at: 0 };
    let (mut received, mut sizes) = (0, sizes.iter().cycle());
    while received < stream.len() {
        received = (received + 1 + usize::from(*sizes.next().expect("cycles"))).min(stream.len());
        while progress.at < received {
            progress.check_room(&scanner);
            match scanner.next(&stream[progress.at..received], |header| header.payload_length < MAX_PARTIAL_BYTES) {
                Mark::Incomplete => break,
                Mark::Error(_) => {
                    return assert_eq!(progress.model.error_at, Some(progress.at), "the model has no error here");
                }
                Mark::Whole(header) => {
                    progress.start(header.length);
                    progress.advance(header.payload_length as usize);
                }
                Mark::Start(header) => progress.start(header.length),
                Mark::Payload { length, ends_frame } => {
                    assert!(length > 0 && progress.at + length <= received, "a payload that was not received");
                    progress.advance(length);
                    assert_eq!(ends_frame, progress.at as u128 == progress.model.frames[progress.frame - 1].end);
                }
            }
        }
        assert!(received - progress.at < 14 + MAX_PARTIAL_BYTES as usize, "{} bytes are kept", received - progress.at);
    }
    assert!(progress.model.error_at.is_none_or(|at| at >= progress.at), "an error was missed");
});

/// The progress of the marks, checked against the model.
struct Progress {
    model: Stream,
    /// Frames that have started.
    frame: usize,
    at: usize,
}

impl Progress {
    fn start(&mut self, header: usize) {
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
