//! Sessions with permessage-deflate, compressed by zlib's own code.

use flate2::{Compress, Compression, FlushCompress};

use super::*;
use crate::streamlit::proto::{EnvironmentInfo, ForwardMsg, Initialize, NewSession, forward_msg};
use crate::websocket::inflate::DeflateContext;

/// One endpoint's compressor, by zlib's own code (RFC 7692 §7.2.1).
struct Deflater {
    from: Side,
    context_takeover: bool,
    compress: Compress,
}

impl Deflater {
    fn new(from: Side, DeflateContext { context_takeover, window_bits }: DeflateContext) -> Self {
        Self {
            from,
            context_takeover,
            compress: Compress::new_with_window_bits(Compression::default(), false, window_bits),
        }
    }

    /// A message in `pieces` frames, with a ping before each but the first.
    fn message(&mut self, opcode: u8, message: &[u8], pieces: usize) -> Vec<u8> {
        let mut payload = Vec::with_capacity(message.len() + 1024);
        self.compress.compress_vec(message, &mut payload, FlushCompress::Sync).unwrap();
        // zlib writes nothing for a repeated flush: an empty message is an empty block (RFC 7692 §7.2.3.6).
        match payload.len().checked_sub(4) {
            Some(length) => payload.truncate(length),
            None => payload.push(0),
        }
        if !self.context_takeover {
            self.compress.reset();
        }
        let mut rest = payload.chunks(payload.len().div_ceil(pieces)).peekable();
        let mut frames = frame(self.from, opcode | 0x40 | last(rest.len() == 1), rest.next().expect("never empty"));
        while let Some(piece) = rest.next() {
            frames.extend(frame(self.from, 0x89, b"between"));
            frames.extend(frame(self.from, last(rest.len() == 0), piece));
        }
        frames
    }
}

fn last(is_last: bool) -> u8 {
    if is_last { 0x80 } else { 0 }
}

fn new_session(version: &str) -> Vec<u8> {
    let environment_info = Some(EnvironmentInfo { streamlit_version: version.to_owned() });
    let initialize = Some(Initialize { environment_info, session_id: String::new() });
    let kind = Some(forward_msg::Type::NewSession(NewSession { initialize }));
    prost::Message::encode_to_vec(&ForwardMsg { hash: "0123456789".to_owned(), r#type: kind })
}

pub(super) fn compressed_tap(deflate: Deflate, settings: HeartbeatSettings) -> (Tap, Wires) {
    (
        Tap::new(Inspection::Compressed(deflate), settings, NONCE),
        Wires { capability: Capability::Silent, ..Wires::default() },
    )
}

/// A browser message: its content, its number of frames, compressed or not.
#[derive(Clone, Debug)]
struct BrowserMessage {
    text: bool,
    message: Vec<u8>,
    pieces: usize,
    compressed: bool,
}

fn any_message() -> impl Strategy<Value = BrowserMessage> {
    let message = prop_oneof![
        4 => Just(HEARTBEAT.to_vec()),
        1 => Just(vec![0xa0, 0x06, 0x01, 0x88, 0x01, 0x01]),
        1 => Just(vec![0x88, 0x01, 0x01, 0x5a, 0x00]),
        3 => (0..100u8, 0..3000usize).prop_map(|(byte, size)| (0..size).map(|at| byte ^ (at / 7) as u8).collect()),
        1 => Just(vec![0x2a; 70_000]),
    ];
    (prop::bool::weighted(0.1), message, 1..4usize, prop::bool::weighted(0.8))
        .prop_map(|(text, message, pieces, compressed)| BrowserMessage { text, message, pieces, compressed })
}

fn any_context() -> impl Strategy<Value = DeflateContext> {
    (any::<bool>(), 9..=15u8)
        .prop_map(|(context_takeover, window_bits)| DeflateContext { context_takeover, window_bits })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn compressed_heartbeats_are_seen_and_pass_in_any_chunking(
        messages in vec(any_message(), 1..15),
        sizes in vec(1..400usize, 1..8),
        context in any_context(),
        capability in prop::sample::select(vec![Capability::Unknown, Capability::Silent, Capability::Native]),
        mode in prop::sample::select(vec![Mode::Auto, Mode::Answer, Mode::Forward]),
    ) {
        let mut deflater = Deflater::new(Side::Browser, context);
        let (mut bytes, mut heartbeats, now) = (Vec::new(), 0, Instant::now());
        for BrowserMessage { text, message, pieces, compressed } in &messages {
            let opcode = if *text { 1 } else { 2 };
            heartbeats += usize::from(!text && message.ends_with(&HEARTBEAT));
            bytes.extend(match compressed {
                true => deflater.message(opcode, message, *pieces),
                false => frame(Side::Browser, 0x80 | opcode, message),
            });
        }
        let run = |sizes: &[usize]| {
            let deflate = Deflate { browser: context, upstream: DeflateContext::default() };
            let (mut tap, mut wires) = compressed_tap(deflate, HeartbeatSettings { mode, ..HeartbeatSettings::default() });
            wires.capability = capability;
            feed(&mut tap, Side::Browser, &bytes, sizes, now, &mut wires);
            wires
        };
        let wires = run(&sizes);
        prop_assert_eq!(wires.count(|event| *event == TapEvent::Heartbeat), heartbeats);
        let is_heartbeat = |event: &TapEvent| matches!(event, TapEvent::BrowserMessage(BackType::AppHeartbeat, _));
        prop_assert_eq!(wires.count(is_heartbeat), heartbeats);
        prop_assert_eq!(wires.last_tag().is_some(), heartbeats > 0 && mode != Mode::Forward);
        let is_ours = |header: &Header, payload: &[u8]| header.opcode == Opcode::Ping && payload.len() == 16;
        prop_assert!(without(&wires.to_upstream, is_ours) == bytes, "the bytes did not pass unchanged");
        prop_assert_eq!(wires, run(&[usize::MAX]));
    }

    #[test]
    fn upstream_is_inflated_until_it_names_its_version_and_passes_unchanged(
        before in vec(0..3000usize, 0..5),
        pieces in 1..4usize,
        sizes in vec(1..400usize, 1..8),
        context in any_context(),
    ) {
        let mut deflater = Deflater::new(Side::Upstream, context);
        let delta = |size: usize| [&[0x2a, 0x80, 0x80, 0x40][..], &vec![7; size]].concat();
        let mut bytes: Vec<u8> = before.iter().flat_map(|size| deflater.message(2, &delta(*size), pieces)).collect();
        bytes.extend(deflater.message(2, &new_session("1.53.1"), pieces));
        bytes.extend(deflater.message(2, &delta(10), pieces));
        let deflate = Deflate { browser: DeflateContext::default(), upstream: context };
        let (mut tap, mut wires) = compressed_tap(deflate, HeartbeatSettings::default());
        feed(&mut tap, Side::Upstream, &bytes, &sizes, Instant::now(), &mut wires);
        prop_assert_eq!(&wires.to_browser, &bytes);
        let seen: Vec<_> = wires.events.iter().filter_map(|event| match event {
            TapEvent::UpstreamMessage(message, _bytes) => Some(message),
            _ => None,
        }).collect();
        prop_assert!(seen[..before.len()].iter().all(|message| message.kind() == ForwardType::Delta));
        let [ForwardContent::NewSession(Some(announcement)), last] = &seen[before.len()..] else { panic!("{seen:?}") };
        prop_assert_eq!(&announcement.version, "1.53.1");
        prop_assert_eq!(last.kind(), ForwardType::Unknown);
    }
}

/// A compressed session after the browser has sent these bytes and then a heartbeat.
fn after(bytes: &[u8]) -> (Tap, Wires) {
    let (mut tap, mut wires) = compressed_tap(Deflate::default(), HeartbeatSettings::default());
    let sent = [bytes, &frame(Side::Browser, 0x82, &HEARTBEAT)].concat();
    let processed = tap.on_bytes(Side::Browser, &sent, Instant::now(), &mut wires);
    assert_eq!(processed, sent.len());
    assert!(wires.to_upstream.starts_with(&sent), "the bytes pass");
    (tap, wires)
}

#[test]
fn invalid_reserved_bits_turn_the_tap_off() {
    let compressed_start = frame(Side::Browser, 0x42, &[0xf2]);
    for invalid in [
        [compressed_start, frame(Side::Browser, 0xc0, &[0x00])].concat(),
        frame(Side::Browser, 0xc9, b"ping"),
        frame(Side::Browser, 0xc8, &[0x03, 0xe8]),
        frame(Side::Browser, 0xa2, &HEARTBEAT),
        frame(Side::Browser, 0xe2, &HEARTBEAT),
    ] {
        let (_tap, wires) = after(&invalid);
        assert_eq!(
            wires.count(|event| *event == TapEvent::Unparsable(ProtocolError::ReservedBits.into())),
            1,
            "{invalid:02x?}"
        );
        assert_eq!(wires.count(|event| *event == TapEvent::Heartbeat), 0, "{invalid:02x?}");
    }
    let (_tap, wires) = after(&frame(Side::Browser, 0xc1, &[0x00]));
    assert_eq!(wires.count(|event| *event == TapEvent::Heartbeat), 1);
}

#[test]
fn browser_messages_that_cannot_be_inflated_reduce_inspection_to_frames() {
    let mut deflater = Deflater::new(Side::Browser, DeflateContext::default());
    let mebibyte = deflater.message(2, &vec![0; 1 << 20], 3);
    let (_tap, wires) = after(&mebibyte.repeat(63));
    assert_eq!(wires.count(|event| *event == TapEvent::Heartbeat), 1, "63 MiB is allowed");
    let bomb = mebibyte.repeat(65);
    for bytes in [bomb, frame(Side::Browser, 0xc2, &[0x06])] {
        let (mut tap, mut wires) = after(&bytes);
        assert_eq!(wires.count(|event| matches!(event, TapEvent::Unparsable(_))), 1);
        assert_eq!(wires.count(|event| *event == TapEvent::Unparsable(TapError::Compression)), 1);
        assert_eq!(wires.count(|event| *event == TapEvent::Heartbeat), 0);
        tap.close(1001, Instant::now(), &mut wires);
        assert_eq!(wires.to_browser, [0x88, 0x02, 0x03, 0xe9], "frame boundaries are still known");
    }
}

#[test]
fn heartbeats_are_acked_even_if_the_upstream_cannot_be_inflated() {
    let (mut tap, mut wires) = compressed_tap(Deflate::default(), HeartbeatSettings::default());
    let now = Instant::now();
    let mut deflater = Deflater::new(Side::Upstream, DeflateContext::default());
    let sent = [frame(Side::Upstream, 0xc2, &[0x06]), deflater.message(2, &new_session("1.67.0"), 1)].concat();
    let _processed = tap.on_bytes(Side::Upstream, &sent, now, &mut wires);
    let heartbeat = Deflater::new(Side::Browser, DeflateContext::default()).message(2, &HEARTBEAT, 1);
    let _processed = tap.on_bytes(Side::Browser, &heartbeat, now, &mut wires);
    let pong = frame(Side::Upstream, 0x8a, &wires.last_tag().expect("a ping went upstream"));
    let _processed = tap.on_bytes(Side::Upstream, &pong, now, &mut wires);
    assert_eq!(wires.to_browser, [&sent, AckForm::Compatible.frame()].concat());
    assert_eq!(wires.count(|event| matches!(event, TapEvent::Unparsable(_))), 0);
}

#[test]
fn an_ack_waits_for_the_end_of_a_compressed_message() {
    let (mut tap, mut wires) = compressed_tap(Deflate::default(), HeartbeatSettings::default());
    let now = Instant::now();
    let message = Deflater::new(Side::Upstream, DeflateContext::default()).message(2, &new_session("1.53.1"), 2);
    let (front, rest) = message.split_at(40);
    let _processed = tap.on_bytes(Side::Upstream, front, now, &mut wires);
    let heartbeat = Deflater::new(Side::Browser, DeflateContext::default()).message(2, &HEARTBEAT, 1);
    let _processed = tap.on_bytes(Side::Browser, &heartbeat, now, &mut wires);
    let pong = frame(Side::Upstream, 0x8a, &wires.last_tag().expect("a ping went upstream"));
    let _processed = tap.on_bytes(Side::Upstream, &[rest, &pong].concat(), now, &mut wires);
    assert_eq!(wires.to_browser, [&message, AckForm::Compatible.frame()].concat());
}
