//! The inflater: any chunking gives the original messages, and no input inflates to more than the allowance.
#![no_main]

use std::time::Instant;

use flate2::{Compress, Compression, FlushCompress};
use heartbeat_sidecar::websocket::inflate::{Allowance, DeflateContext, InflateError, Inflater};
use heartbeat_sidecar_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

/// Messages compressed per input. More find nothing more, and zlib is slow.
const MAX_MESSAGES: usize = 8;

/// The end of a compressed message, which its sender removes (RFC 7692 §7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let (flags, sizes, burst) = (input.byte(), [input.byte(), input.byte()], u64::from(input.short()));
    let context = DeflateContext { context_takeover: flags & 1 == 0, window_bits: 9 + (flags >> 1) % 7 };
    if flags & 0x80 == 0 {
        any_bytes(context, burst, sizes, input);
    } else {
        let level = u32::from(flags >> 4) % 8;
        compressed(context, level, sizes, input);
    }
});

/// Random bytes, pushed in pieces and whole: the result is the same and stays within the allowance.
fn any_bytes(context: DeflateContext, burst: u64, sizes: [u8; 2], mut input: Input<'_>) {
    let (now, allowance) = (Instant::now(), Allowance { burst_bytes: burst, bytes_per_second: 0 });
    let (mut in_pieces, mut whole) = (Inflater::new(context, allowance), Inflater::new(context, allowance));
    let (mut inflated, mut inflated_whole) = (Vec::new(), Vec::new());
    while !input.is_empty() {
        let length = usize::from(input.short());
        let message = input.bytes(length);
        let first = push(&mut in_pieces, message, sizes, now, &mut inflated);
        let second = whole.push(message, now, |bytes| inflated_whole.extend_from_slice(bytes));
        let second = second.and_then(|()| whole.finish(now, |bytes| inflated_whole.extend_from_slice(bytes)));
        assert!(inflated.len().max(inflated_whole.len()) as u64 <= burst, "{} of {burst}", inflated.len());
        assert_eq!(first, second, "the chunking changes the result");
        if first.is_err() {
            return;
        }
        assert!(inflated == inflated_whole, "the chunking changes the result");
    }
}

/// Messages that zlib compressed inflate to the originals.
fn compressed(context: DeflateContext, level: u32, sizes: [u8; 2], mut input: Input<'_>) {
    let (now, allowance) = (Instant::now(), Allowance { burst_bytes: u64::MAX, bytes_per_second: 0 });
    let mut inflater = Inflater::new(context, allowance);
    let mut compress = Compress::new_with_window_bits(Compression::new(level), false, context.window_bits);
    for _message in 0..MAX_MESSAGES {
        // Long messages also refer far back.
        let (length, times) = (usize::from(input.byte()), 1 + usize::from(input.byte() % 32));
        let message = input.bytes(length).repeat(times);
        if message.is_empty() {
            // zlib writes nothing for a repeated flush.
            continue;
        }
        let mut payload = Vec::with_capacity(message.len() + 1024);
        compress.compress_vec(&message, &mut payload, FlushCompress::Sync).expect("the buffer is large enough");
        assert!(payload.ends_with(&TAIL));
        payload.truncate(payload.len() - TAIL.len());
        let mut inflated = Vec::new();
        push(&mut inflater, &payload, sizes, now, &mut inflated).expect("valid");
        assert!(inflated == message, "{} bytes of {}", inflated.len(), message.len());
        if !context.context_takeover {
            compress.reset();
        }
    }
}

/// Pushes a whole message in non-empty pieces of these sizes.
fn push(
    inflater: &mut Inflater,
    message: &[u8],
    sizes: [u8; 2],
    now: Instant,
    inflated: &mut Vec<u8>,
) -> Result<(), InflateError> {
    let (mut rest, mut sizes) = (message, sizes.iter().cycle());
    while !rest.is_empty() {
        let size = 1 + usize::from(*sizes.next().expect("cycles"));
        let (piece, later) = rest.split_at(size.min(rest.len()));
        inflater.push(piece, now, |bytes| inflated.extend_from_slice(bytes))?;
        rest = later;
    }
    inflater.finish(now, |bytes| inflated.extend_from_slice(bytes))
}
