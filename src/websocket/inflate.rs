//! permessage-deflate (RFC 7692): parses what was negotiated, and inflates a copy of one direction.
//!
//! Invariant: the negotiated window bounds memory and an allowance bounds work, whatever the bytes inflate to.

use std::fmt;
use std::time::{Duration, Instant};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// RSV1 among a header's reserved bits: the message is compressed (RFC 7692 §6).
pub const COMPRESSED: u8 = 0x4;

/// What a sender removes from the end of a compressed message (RFC 7692 §7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// How one direction is compressed (RFC 7692 §7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeflateContext {
    /// Messages may refer back to earlier ones.
    pub context_takeover: bool,
    /// Base-2 logarithm of the window in bytes, 8 to 15.
    pub window_bits: u8,
}

/// The negotiated compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deflate {
    /// The direction of the client.
    pub browser: DeflateContext,
    /// The direction of the server.
    pub upstream: DeflateContext,
}

/// Limit on the inflated bytes of a direction: a token bucket that refills with time.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// Its capacity in bytes.
    pub burst_bytes: u64,
    /// Bytes refilled per second.
    pub bytes_per_second: u64,
}

/// Why a direction cannot be inflated further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// The data is not a deflate stream (RFC 1951).
    #[error("the compressed data is invalid")]
    Invalid,
    /// The output exceeds the rest of the allowance.
    #[error("the compressed data inflates to more than is allowed")]
    LimitExceeded,
}

/// The decompressor of one direction.
pub struct Inflater {
    context: DeflateContext,
    allowance: Allowance,
    /// What remains of the allowance.
    remaining_bytes: u64,
    /// When the allowance was last refilled.
    refilled_at: Option<Instant>,
    /// The latest output, as a ring buffer; empty while nothing may refer to it.
    window: Box<[u8]>,
    /// Where in the window the next output goes.
    position: usize,
    /// The current message; none is needed between messages, since each ends a block at a byte boundary.
    decoder: Option<Box<DecompressorOxide>>,
}

impl Default for DeflateContext {
    /// The defaults if the handshake has no parameters (RFC 7692 §7.1).
    fn default() -> Self {
        Self { context_takeover: true, window_bits: 15 }
    }
}

impl Deflate {
    /// Parses the `Sec-WebSocket-Extensions` lines of a 101; `None` unless they name permessage-deflate and nothing
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
                ("client_no_context_takeover", None) => negotiated.browser.context_takeover = false,
                ("server_no_context_takeover", None) => negotiated.upstream.context_takeover = false,
                ("client_max_window_bits", Some(bits)) => negotiated.browser.window_bits = window_bits(bits)?,
                ("server_max_window_bits", Some(bits)) => negotiated.upstream.window_bits = window_bits(bits)?,
                _unknown => return None,
            }
        }
        Some(negotiated)
    }
}

/// A number from 8 to 15, which may be quoted (RFC 7692 §7.1.2, RFC 6455 §9.1).
fn window_bits(value: &str) -> Option<u8> {
    let value = value.trim_start();
    let digits = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    digits.parse().ok().filter(|bits| (8..=15).contains(bits) && !digits.starts_with(['0', '+']))
}

impl Inflater {
    /// An inflater at the first byte after the handshake. It allocates nothing before the first compressed message.
    pub fn new(context: DeflateContext, allowance: Allowance) -> Self {
        let remaining_bytes = allowance.burst_bytes;
        Self {
            context,
            allowance,
            remaining_bytes,
            refilled_at: None,
            window: Box::default(),
            position: 0,
            decoder: None,
        }
    }

    /// Inflates more of a compressed message's unmasked payload; `output` receives the result in pieces.
    ///
    /// # Errors
    /// The direction cannot be inflated further: the inflater must not be called again.
    pub fn push(&mut self, bytes: &[u8], now: Instant, mut output: impl FnMut(&[u8])) -> Result<(), InflateError> {
        if self.window.is_empty() {
            self.window = vec![0; self.window_size()].into_boxed_slice();
            self.position = 0;
        }
        self.refill(now);
        let decoder = self.decoder.get_or_insert_default();
        let mut rest = bytes;
        loop {
            let (status, read, produced) =
                decompress(decoder, rest, &mut self.window, self.position, TINFL_FLAG_HAS_MORE_INPUT);
            self.remaining_bytes =
                self.remaining_bytes.checked_sub(produced as u64).ok_or(InflateError::LimitExceeded)?;
            rest = &rest[read..];
            output(&self.window[self.position..self.position + produced]);
            self.position = (self.position + produced) % self.window.len();
            match status {
                TINFLStatus::NeedsMoreInput => return Ok(()),
                TINFLStatus::HasMoreOutput => {}
                // After a final block the next starts at a byte boundary, with the same window (RFC 7692 §7.2.3.4).
                TINFLStatus::Done => decoder.init(),
                _failed => return Err(InflateError::Invalid),
            }
        }
    }

    /// Ends the compressed message; `output` receives the rest of it.
    ///
    /// # Errors
    /// As for [`Inflater::push`].
    pub fn finish(&mut self, now: Instant, output: impl FnMut(&[u8])) -> Result<(), InflateError> {
        self.push(&TAIL, now, output)?;
        self.decoder = None;
        if !self.context.context_takeover {
            self.window = Box::default();
        }
        Ok(())
    }

    /// zlib cannot deflate with a window of 256 bytes and uses 512 instead.
    fn window_size(&self) -> usize {
        1 << self.context.window_bits.max(9)
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = self.refilled_at.replace(now).map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let gained = (elapsed.as_secs_f64() * self.allowance.bytes_per_second as f64) as u64;
        self.remaining_bytes = self.remaining_bytes.saturating_add(gained).min(self.allowance.burst_bytes);
    }
}

impl fmt::Debug for Inflater {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { context, remaining_bytes, .. } = self;
        let mut shown = formatter.debug_struct("Inflater");
        shown.field("context", context).field("remaining_bytes", remaining_bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const PLENTY: Allowance = Allowance { burst_bytes: u64::MAX, bytes_per_second: 0 };

    fn inflater(context: DeflateContext) -> Inflater {
        Inflater::new(context, PLENTY)
    }

    /// Compresses a message as in RFC 7692 §7.2.1, with zlib's own code.
    fn deflate(compress: &mut Compress, message: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(message.len() + 1024);
        compress.compress_vec(message, &mut out, FlushCompress::Sync).unwrap();
        assert!(out.ends_with(&TAIL), "the buffer was too small");
        out.truncate(out.len() - TAIL.len());
        out
    }

    /// Inflates a whole message in pieces of these sizes.
    fn inflate(inflater: &mut Inflater, payload: &[u8], sizes: &[usize]) -> Result<Vec<u8>, InflateError> {
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
    fn handshake_parameters_apply_to_their_direction() {
        let context = |context_takeover, window_bits| DeflateContext { context_takeover, window_bits };
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
    fn extensions_other_than_permessage_deflate_alone_are_not_accepted() {
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
    fn rfc_examples_inflate_to_hello() {
        let examples: [&[&[u8]]; 4] = [
            &[&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], &[0xf2, 0x00, 0x11, 0x00, 0x00]],
            &[&[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00]],
            &[&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], &[0xf2, 0x00, 0x11, 0x00, 0x00]],
            &[&[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00]],
        ];
        for messages in examples {
            let mut inflater = inflater(DeflateContext::default());
            for message in messages {
                assert_eq!(inflate(&mut inflater, message, &[1]).as_deref(), Ok(&b"Hello"[..]), "{message:02x?}");
            }
        }
        assert_eq!(inflate(&mut inflater(DeflateContext::default()), &[0x00], &[1]), Ok(Vec::new()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Messages that repeat earlier ones at short and long distances, up to the window's length.
        #[test]
        fn any_chunking_inflates_to_the_original_messages(
            seeds in vec((any::<u8>(), 1..40_000usize, 1..600usize), 1..8),
            sizes in vec(1..3000usize, 1..8),
            context_takeover: bool,
            window_bits in 9..=15u8,
            level in 0..=9u32,
        ) {
            let mut inflater = inflater(DeflateContext { context_takeover, window_bits });
            let mut compress = Compress::new_with_window_bits(Compression::new(level), false, window_bits);
            let noise: Vec<u8> = (0..40_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            for (seed, length, period) in seeds {
                let start = usize::from(seed) * 100;
                let message: Vec<u8> = noise[start..].iter().copied().cycle().take(length.max(period)).collect();
                let payload = deflate(&mut compress, &message);
                prop_assert!(inflate(&mut inflater, &payload, &sizes) == Ok(message));
                if !context_takeover {
                    compress.reset();
                }
            }
        }

        #[test]
        fn random_bytes_never_panic(messages in vec(vec(any::<u8>(), 0..200), 1..5), sizes in vec(1..50usize, 1..4)) {
            let mut inflater = inflater(DeflateContext::default());
            let _readable = messages.iter().all(|message| inflate(&mut inflater, message, &sizes).is_ok());
        }
    }

    #[test]
    fn unknown_block_type_is_an_error() {
        assert_eq!(inflate(&mut inflater(DeflateContext::default()), &[0x06], &[1]), Err(InflateError::Invalid));
    }

    #[test]
    fn nothing_is_kept_before_the_first_message_and_only_the_window_between_messages() {
        for context_takeover in [true, false] {
            let mut inflater = inflater(DeflateContext { context_takeover, window_bits: 12 });
            assert!(inflater.window.is_empty());
            inflater.push(&[0xf2, 0x48], Instant::now(), |_bytes| {}).unwrap();
            assert!(inflater.decoder.is_some());
            assert_eq!(inflater.window.len(), 4096);
            inflater.finish(Instant::now(), |_bytes| {}).unwrap();
            assert!(inflater.decoder.is_none());
            assert_eq!(inflater.window.len(), if context_takeover { 4096 } else { 0 });
        }
        assert!(size_of::<DecompressorOxide>() < 12 * 1024, "{}", size_of::<DecompressorOxide>());
    }

    #[test]
    fn inflating_stops_once_the_allowance_is_spent() {
        const MIB: usize = 1 << 20;
        let bomb = deflate(&mut Compress::new(Compression::best(), false), &vec![0; 4 * MIB]);
        assert!(bomb.len() < 5000, "{}", bomb.len());
        let allowance = Allowance { burst_bytes: MIB as u64, bytes_per_second: 0 };
        for sizes in [[usize::MAX], [1000]] {
            let (mut inflater, mut produced) = (Inflater::new(DeflateContext::default(), allowance), 0);
            let now = Instant::now();
            let ended =
                bomb.chunks(sizes[0]).try_for_each(|piece| inflater.push(piece, now, |bytes| produced += bytes.len()));
            assert_eq!(ended, Err(InflateError::LimitExceeded));
            assert!((MIB - (1 << 15)..=MIB).contains(&produced), "{produced}");
        }
    }

    #[test]
    fn allowance_refills_with_time_up_to_its_burst() {
        let message = deflate(&mut Compress::new(Compression::best(), false), &[7; 1000]);
        let mut inflater =
            Inflater::new(DeflateContext::default(), Allowance { burst_bytes: 2500, bytes_per_second: 1000 });
        let start = Instant::now();
        let mut say = |seconds| {
            let now = start + Duration::from_secs(seconds);
            inflater.push(&message, now, |_bytes| {}).and_then(|()| inflater.finish(now, |_bytes| {}))
        };
        assert_eq!(
            [say(0), say(0), say(1), say(100), say(100), say(100)],
            [Ok(()), Ok(()), Ok(()), Ok(()), Ok(()), Err(InflateError::LimitExceeded)]
        );
    }
}
