//! Reads on the side what permessage-deflate has compressed: what was negotiated, and one direction's inflating (RFC 7692).
//!
//! Law: memory is bounded by the negotiated window and work by an allowance, whatever the bytes inflate to.

use std::fmt;
use std::time::{Duration, Instant};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// RSV1 among a header's reserved bits: the message is compressed (RFC 7692 §6).
pub const COMPRESSED: u8 = 0x4;

/// What a sender takes off the end of a compressed message (RFC 7692 §7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// How one direction is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Messages may refer back to earlier ones.
    pub takeover: bool,
    /// Base-2 logarithm of the window in bytes, 8 to 15.
    pub window_bits: u8,
}

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deflate {
    /// The direction of the client.
    pub browser: Context,
    /// The direction of the server.
    pub upstream: Context,
}

/// How much may come out of a direction: a stock that what comes out uses up and that fills again with time.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// The full stock in bytes.
    pub burst: u64,
    /// Bytes that it gains each second.
    pub per_second: u64,
}

/// Why a direction cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is no deflate stream (RFC 1951).
    #[error("the compressed data is broken")]
    Broken,
    /// More came out than the allowance has left.
    #[error("the compressed data inflates to too much")]
    TooMuch,
}

/// One direction's inflating.
pub struct Inflater {
    context: Context,
    allowance: Allowance,
    left: u64,
    /// Up to when the stock has been filled.
    filled: Option<Instant>,
    /// What came out last, as a ring; empty while nothing may refer to it.
    window: Box<[u8]>,
    at: usize,
    /// The message under way; none is needed between messages, since each ends with a block and at a byte.
    decoder: Option<Box<DecompressorOxide>>,
}

impl Default for Context {
    /// What holds unless the handshake says otherwise (RFC 7692 §7.1).
    fn default() -> Self {
        Self { takeover: true, window_bits: 15 }
    }
}

impl Deflate {
    /// Reads the `Sec-WebSocket-Extensions` lines of a 101; `None` unless they say permessage-deflate and nothing
    /// else, in the form of RFC 7692 §7.1.
    pub fn negotiated<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut lines = lines.into_iter();
        let mut parts = lines.next()?.split(';').map(str::trim);
        if parts.next() != Some("permessage-deflate") || lines.next().is_some() {
            return None;
        }
        let mut negotiated = Self::default();
        for part in parts {
            let (name, value) = part.split_once('=').map_or((part, None), |(name, value)| (name, Some(value)));
            match (name.trim_end(), value) {
                ("client_no_context_takeover", None) => negotiated.browser.takeover = false,
                ("server_no_context_takeover", None) => negotiated.upstream.takeover = false,
                ("client_max_window_bits", Some(bits)) => negotiated.browser.window_bits = window_bits(bits)?,
                ("server_max_window_bits", Some(bits)) => negotiated.upstream.window_bits = window_bits(bits)?,
                _unknown => return None,
            }
        }
        Some(negotiated)
    }
}

/// A number of 8 to 15, which may stand in quotes (RFC 7692 §7.1.2, RFC 6455 §9.1).
fn window_bits(value: &str) -> Option<u8> {
    let value = value.trim_start();
    let digits = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    digits.parse().ok().filter(|bits| (8..=15).contains(bits) && !digits.starts_with(['0', '+']))
}

impl Inflater {
    /// An inflater at the first byte after the handshake. It takes no memory before the first compressed message.
    pub fn new(context: Context, allowance: Allowance) -> Self {
        let left = allowance.burst;
        Self { context, allowance, left, filled: None, window: Box::default(), at: 0, decoder: None }
    }

    /// More of a compressed message's payload came, unmasked; `output` gets what it inflates to, piece by piece.
    ///
    /// # Errors
    /// The direction cannot be read any further: the inflater must not be asked again.
    pub fn push(&mut self, bytes: &[u8], now: Instant, mut output: impl FnMut(&[u8])) -> Result<(), Unreadable> {
        if self.window.is_empty() {
            self.window = vec![0; self.window_size()].into_boxed_slice();
            self.at = 0;
        }
        self.fill(now);
        let decoder = self.decoder.get_or_insert_default();
        let mut rest = bytes;
        loop {
            let (status, read, came) = decompress(decoder, rest, &mut self.window, self.at, TINFL_FLAG_HAS_MORE_INPUT);
            self.left = self.left.checked_sub(came as u64).ok_or(Unreadable::TooMuch)?;
            rest = &rest[read..];
            output(&self.window[self.at..self.at + came]);
            self.at = (self.at + came) % self.window.len();
            match status {
                TINFLStatus::NeedsMoreInput => return Ok(()),
                TINFLStatus::HasMoreOutput => {}
                // Behind a final block the next one begins at a byte, with the same window (RFC 7692 §7.2.3.4).
                TINFLStatus::Done => decoder.init(),
                _failed => return Err(Unreadable::Broken),
            }
        }
    }

    /// The compressed message has ended; `output` gets the rest of it.
    ///
    /// # Errors
    /// As for [`Inflater::push`].
    pub fn finish(&mut self, now: Instant, output: impl FnMut(&[u8])) -> Result<(), Unreadable> {
        self.push(&TAIL, now, output)?;
        self.decoder = None;
        if !self.context.takeover {
            self.window = Box::default();
        }
        Ok(())
    }

    /// zlib cannot deflate with a window of 256 bytes and takes one of 512 instead.
    fn window_size(&self) -> usize {
        1 << self.context.window_bits.max(9)
    }

    fn fill(&mut self, now: Instant) {
        let since = self.filled.replace(now).map_or(Duration::ZERO, |filled| now.saturating_duration_since(filled));
        let gained = (since.as_secs_f64() * self.allowance.per_second as f64) as u64;
        self.left = self.left.saturating_add(gained).min(self.allowance.burst);
    }
}

impl fmt::Debug for Inflater {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { context, left, .. } = self;
        formatter.debug_struct("Inflater").field("context", context).field("left", left).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const PLENTY: Allowance = Allowance { burst: u64::MAX, per_second: 0 };

    fn inflater(context: Context) -> Inflater {
        Inflater::new(context, PLENTY)
    }

    /// Compresses a message as RFC 7692 §7.2.1 has it, with zlib's own code.
    fn deflate(compress: &mut Compress, message: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(message.len() + 1024);
        compress.compress_vec(message, &mut out, FlushCompress::Sync).unwrap();
        assert!(out.ends_with(&TAIL), "the buffer was too small");
        out.truncate(out.len() - TAIL.len());
        out
    }

    /// A whole message, in pieces of these sizes.
    fn inflate(inflater: &mut Inflater, payload: &[u8], sizes: &[usize]) -> Result<Vec<u8>, Unreadable> {
        let (mut out, mut rest, mut sizes, now) = (Vec::new(), payload, sizes.iter().cycle(), Instant::now());
        while !rest.is_empty() {
            let (piece, later) = rest.split_at((*sizes.next().expect("cycles")).clamp(1, rest.len()));
            inflater.push(piece, now, |bytes| out.extend_from_slice(bytes))?;
            rest = later;
        }
        inflater.finish(now, |bytes| out.extend_from_slice(bytes))?;
        Ok(out)
    }

    #[test]
    fn the_handshake_says_how_each_direction_is_compressed() {
        let context = |takeover, window_bits| Context { takeover, window_bits };
        let cases = [
            ("permessage-deflate", context(true, 15), context(true, 15)),
            ("permessage-deflate; client_no_context_takeover", context(false, 15), context(true, 15)),
            (
                "permessage-deflate;server_no_context_takeover;client_max_window_bits=8",
                context(true, 8),
                context(false, 15),
            ),
            ("permessage-deflate; server_max_window_bits = \"10\"", context(true, 15), context(true, 10)),
        ];
        for (line, browser, upstream) in cases {
            assert_eq!(Deflate::negotiated([line]), Some(Deflate { browser, upstream }), "{line}");
        }
    }

    #[test]
    fn what_is_not_permessage_deflate_alone_is_not_read() {
        let lines = [
            "",
            "x-webkit-deflate-frame",
            "permessage-deflate, x-other",
            "permessage-deflate; server_no_context_takeover, permessage-deflate",
            "permessage-deflate; x-parameter",
            "permessage-deflate; client_no_context_takeover=1",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=09",
            "permessage-deflate; client_max_window_bits=+9",
        ];
        for line in lines {
            assert_eq!(Deflate::negotiated([line]), None, "{line}");
        }
        assert_eq!(Deflate::negotiated(["permessage-deflate", "permessage-deflate"]), None);
        assert_eq!(Deflate::negotiated([]), None);
    }

    /// RFC 7692 §7.2.3.
    #[test]
    fn the_examples_of_the_standard_say_hello() {
        let examples: [&[&[u8]]; 4] = [
            &[&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], &[0xf2, 0x00, 0x11, 0x00, 0x00]],
            &[&[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00]],
            &[&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], &[0xf2, 0x00, 0x11, 0x00, 0x00]],
            &[&[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00]],
        ];
        for messages in examples {
            let mut inflater = inflater(Context::default());
            for message in messages {
                assert_eq!(inflate(&mut inflater, message, &[1]).as_deref(), Ok(&b"Hello"[..]), "{message:02x?}");
            }
        }
        assert_eq!(inflate(&mut inflater(Context::default()), &[0x00], &[1]), Ok(Vec::new()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Messages that repeat earlier ones from near and from far, up to the window's whole length.
        #[test]
        fn any_chunking_of_any_messages_gives_what_was_compressed(
            seeds in vec((any::<u8>(), 1..40_000usize, 1..600usize), 1..8),
            sizes in vec(1..3000usize, 1..8),
            takeover: bool,
            window_bits in 9..=15u8,
            level in 0..=9u32,
        ) {
            let mut inflater = inflater(Context { takeover, window_bits });
            let mut compress = Compress::new_with_window_bits(Compression::new(level), false, window_bits);
            let noise: Vec<u8> = (0..40_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            for (seed, length, period) in seeds {
                let start = usize::from(seed) * 100;
                let message: Vec<u8> = noise[start..].iter().copied().cycle().take(length.max(period)).collect();
                let payload = deflate(&mut compress, &message);
                prop_assert!(inflate(&mut inflater, &payload, &sizes) == Ok(message));
                if !takeover {
                    compress.reset();
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(messages in vec(vec(any::<u8>(), 0..200), 1..5), sizes in vec(1..50usize, 1..4)) {
            let mut inflater = inflater(Context::default());
            let _readable = messages.iter().all(|message| inflate(&mut inflater, message, &sizes).is_ok());
        }
    }

    #[test]
    fn a_block_of_no_known_type_is_broken() {
        assert_eq!(inflate(&mut inflater(Context::default()), &[0x06], &[1]), Err(Unreadable::Broken));
    }

    #[test]
    fn nothing_is_kept_before_the_first_message_and_only_the_window_between_two() {
        for takeover in [true, false] {
            let mut inflater = inflater(Context { takeover, window_bits: 12 });
            assert!(inflater.window.is_empty());
            inflater.push(&[0xf2, 0x48], Instant::now(), |_bytes| {}).unwrap();
            assert!(inflater.decoder.is_some());
            assert_eq!(inflater.window.len(), 4096);
            inflater.finish(Instant::now(), |_bytes| {}).unwrap();
            assert!(inflater.decoder.is_none());
            assert_eq!(inflater.window.len(), if takeover { 4096 } else { 0 });
        }
        assert!(size_of::<DecompressorOxide>() < 12 * 1024, "{}", size_of::<DecompressorOxide>());
    }

    #[test]
    fn a_bomb_is_given_up_once_the_allowance_is_spent() {
        const MIB: usize = 1 << 20;
        let bomb = deflate(&mut Compress::new(Compression::best(), false), &vec![0; 4 * MIB]);
        assert!(bomb.len() < 5000, "{}", bomb.len());
        let allowance = Allowance { burst: MIB as u64, per_second: 0 };
        for sizes in [[usize::MAX], [1000]] {
            let (mut inflater, mut came) = (Inflater::new(Context::default(), allowance), 0);
            let now = Instant::now();
            let ended =
                bomb.chunks(sizes[0]).try_for_each(|piece| inflater.push(piece, now, |bytes| came += bytes.len()));
            assert_eq!(ended, Err(Unreadable::TooMuch));
            assert!((MIB - (1 << 15)..=MIB).contains(&came), "{came}");
        }
    }

    #[test]
    fn the_allowance_fills_with_time_up_to_its_burst() {
        let message = deflate(&mut Compress::new(Compression::best(), false), &[7; 1000]);
        let mut inflater = Inflater::new(Context::default(), Allowance { burst: 2500, per_second: 1000 });
        let start = Instant::now();
        let mut say = |seconds| {
            let now = start + Duration::from_secs(seconds);
            inflater.push(&message, now, |_bytes| {}).and_then(|()| inflater.finish(now, |_bytes| {}))
        };
        assert_eq!(
            [say(0), say(0), say(1), say(100), say(100), say(100)],
            [Ok(()), Ok(()), Ok(()), Ok(()), Ok(()), Err(Unreadable::TooMuch)]
        );
    }
}
