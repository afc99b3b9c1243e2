//! Inflating: what was compressed comes out whatever the chunks, and of any other bytes no more than is allowed.
#![no_main]

use std::time::Instant;

use flate2::{Compress, Compression, FlushCompress};
use heartbeat_sidecar::websocket::inflate::{Allowance, DeflateContext, InflateError, Inflater};
use heartbeat_sidecar_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

/// Messages that are compressed for one input: more show nothing more, and zlib takes its time.
const MOST_MESSAGES: usize = 8;

/// What ends a compressed message and is left out (RFC 7692 §7.2.1).
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

/// Messages of any bytes, pushed in pieces and whole: the result is the same and stays within the allowance.
fn any_bytes(context: DeflateContext, burst: u64, sizes: [u8; 2], mut input: Input<'_>) {
    let (now, allowance) = (Instant::now(), Allowance { burst_bytes: burst, bytes_per_second: 0 });
    let (mut in_pieces, mut whole) = (Inflater::new(context, allowance), Inflater::new(context, allowance));
    let (mut came, mut came_whole) = (Vec::new(), Vec::new());
    while !input.is_empty() {
        let length = usize::from(input.short());
        let message = input.bytes(length);
        let first = push(&mut in_pieces, message, sizes, now, &mut came);
        let second = whole.push(message, now, |bytes| came_whole.extend_from_slice(bytes));
        let second = second.and_then(|()| whole.finish(now, |bytes| came_whole.extend_from_slice(bytes)));
        assert!(came.len().max(came_whole.len()) as u64 <= burst, "{} of {burst}", came.len());
        assert_eq!(first, second, "the chunks make a difference");
        if first.is_err() {
            return;
        }
        assert!(came == came_whole, "the chunks make a difference");
    }
}

/// Messages that zlib has compressed come out as they were.
fn compressed(context: DeflateContext, level: u32, sizes: [u8; 2], mut input: Input<'_>) {
    let (now, allowance) = (Instant::now(), Allowance { burst_bytes: u64::MAX, bytes_per_second: 0 });
    let mut inflater = Inflater::new(context, allowance);
    let mut compress = Compress::new_with_window_bits(Compression::new(level), false, context.window_bits);
    for _message in 0..MOST_MESSAGES {
        // Repeats come from far, too.
        let (length, times) = (usize::from(input.byte()), 1 + usize::from(input.byte() % 32));
        let message = input.bytes(length).repeat(times);
        if message.is_empty() {
            // zlib flushes nothing twice.
            continue;
        }
        let mut payload = Vec::with_capacity(message.len() + 1024);
        compress.compress_vec(&message, &mut payload, FlushCompress::Sync).expect("there is room");
        assert!(payload.ends_with(&TAIL));
        payload.truncate(payload.len() - TAIL.len());
        let mut came = Vec::new();
        push(&mut inflater, &payload, sizes, now, &mut came).expect("zlib made it");
        assert!(came == message, "{} bytes of {}", came.len(), message.len());
        if !context.context_takeover {
            compress.reset();
        }
    }
}

/// A whole message in pieces of these sizes, none of them empty.
fn push(
    inflater: &mut Inflater,
    message: &[u8],
    sizes: [u8; 2],
    now: Instant,
    came: &mut Vec<u8>,
) -> Result<(), InflateError> {
    let (mut rest, mut sizes) = (message, sizes.iter().cycle());
    while !rest.is_empty() {
        let size = 1 + usize::from(*sizes.next().expect("cycles"));
        let (piece, later) = rest.split_at(size.min(rest.len()));
        inflater.push(piece, now, |bytes| came.extend_from_slice(bytes))?;
        rest = later;
    }
    inflater.finish(now, |bytes| came.extend_from_slice(bytes))
}
