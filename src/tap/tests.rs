//! Properties of the tap: bytes pass in any chunking, and no ack is sent without proof.

mod compressed;
mod pings;

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use self::compressed::compressed_tap;
use super::output::{TapError, TapEvent, TapOutput};
use super::{Inspection, MAX_INCOMPLETE_BYTES, Tap};
use crate::heartbeat::liveness::PingTag;
use crate::heartbeat::{Capability, HeartbeatSettings, Mode, Proof};
use crate::streamlit::ack::AckForm;
use crate::streamlit::messages::{BackType, ForwardContent, ForwardType};
use crate::websocket::frame::{Header, Opcode, mask};
use crate::websocket::inflate::Deflate;
use crate::websocket::scanner::{ProtocolError, Side};

const NONCE: u64 = 42;
const HEARTBEAT: [u8; 3] = [0x88, 0x01, 0x01];
const NATIVE_ACK: [u8; 5] = [0x82, 0x03, 0xd0, 0x01, 0x01];
const SETTINGS: [(Mode, Proof); 4] = [
    (Mode::Auto, Proof::Pong),
    (Mode::Auto, Proof::Connection),
    (Mode::Answer, Proof::Pong),
    (Mode::Forward, Proof::Pong),
];

/// Records a tap's output.
#[derive(Debug, Default, PartialEq)]
struct Wires {
    to_browser: Vec<u8>,
    to_upstream: Vec<u8>,
    inserted: Vec<(Side, Vec<u8>)>,
    events: Vec<TapEvent>,
    capability: Capability,
    blocked: bool,
}

impl Wires {
    fn wire(&mut self, from: Side) -> &mut Vec<u8> {
        match from {
            Side::Browser => &mut self.to_upstream,
            Side::Upstream => &mut self.to_browser,
        }
    }

    fn count(&self, wanted: impl Fn(&TapEvent) -> bool) -> usize {
        self.events.iter().filter(|event| wanted(event)).count()
    }

    /// The tag of the last ping to the upstream.
    fn last_tag(&self) -> Option<PingTag> {
        let (_sender, frame) = self.inserted.iter().rfind(|(from, _frame)| *from == Side::Browser)?;
        let header = Header::parse(frame)?;
        let mut payload = frame[header.length..].to_vec();
        mask(&mut payload, header.mask?, 0);
        payload.try_into().ok()
    }
}

impl TapOutput for Wires {
    fn pass(&mut self, from: Side, bytes: &[u8]) {
        self.wire(from).extend_from_slice(bytes);
    }

    fn insert(&mut self, from: Side, bytes: &[u8]) {
        self.inserted.push((from, bytes.to_vec()));
        self.wire(from).extend_from_slice(bytes);
    }

    fn is_clear(&self, _from: Side) -> bool {
        !self.blocked
    }

    fn capability(&self) -> Capability {
        self.capability
    }

    fn on_event(&mut self, event: TapEvent) {
        self.events.push(event);
    }
}

/// A frame as `from` would send it.
fn frame(from: Side, first: u8, payload: &[u8]) -> Vec<u8> {
    let masked = if from == Side::Browser { 0x80 } else { 0 };
    let mut bytes = match payload.len() {
        length @ 0..126 => vec![first, masked | length as u8],
        length @ 126..0x1_0000 => [&[first, masked | 126][..], &(length as u16).to_be_bytes()].concat(),
        length => [&[first, masked | 127][..], &(length as u64).to_be_bytes()].concat(),
    };
    let start = bytes.len();
    bytes.extend_from_slice(payload);
    if from == Side::Browser {
        let key = [0x11, 0x22, 0x33, 0x44];
        mask(&mut bytes[start..], key, 0);
        bytes.splice(start..start, key);
    }
    bytes
}

fn tap(settings: HeartbeatSettings) -> (Tap, Wires) {
    (Tap::new(Inspection::Messages, settings, NONCE), Wires { capability: Capability::Silent, ..Wires::default() })
}

/// Feeds bytes in reads of these sizes.
fn feed(tap: &mut Tap, from: Side, bytes: &[u8], sizes: &[usize], now: Instant, wires: &mut Wires) {
    let (mut incomplete, mut rest, mut sizes) = (Vec::new(), bytes, sizes.iter().cycle());
    while !rest.is_empty() {
        let size = (*sizes.next().expect("cycles")).clamp(1, rest.len());
        incomplete.extend_from_slice(&rest[..size]);
        rest = &rest[size..];
        let processed = tap.on_bytes(from, &incomplete, now, wires);
        incomplete.drain(..processed);
        assert!(incomplete.len() <= MAX_INCOMPLETE_BYTES, "{} bytes kept", incomplete.len());
    }
    tap.on_end(from, &incomplete, wires);
}

#[test]
fn heartbeat_after_a_close_frame_passes_and_is_not_counted() {
    let deflate = Deflate::negotiated(["permessage-deflate"]).expect("permessage-deflate is supported");
    for (mode, proof) in SETTINGS {
        for closer in [Side::Browser, Side::Upstream] {
            for compressed in [false, true] {
                let settings = HeartbeatSettings { mode, proof, ..HeartbeatSettings::default() };
                let now = Instant::now();
                let (mut tap, mut wires) = if compressed { compressed_tap(deflate, settings) } else { tap(settings) };
                let bytes = [frame(Side::Browser, 0x82, &HEARTBEAT), frame(Side::Browser, 0x02, &HEARTBEAT)].concat();
                let close = frame(closer, 0x88, &1000_u16.to_be_bytes());
                assert_eq!(tap.on_bytes(closer, &close, now, &mut wires), close.len());
                wires.to_upstream.clear();
                assert_eq!(tap.on_bytes(Side::Browser, &bytes, now, &mut wires), bytes.len());
                assert_eq!(wires.to_upstream, bytes, "{mode:?} {closer:?}");
                assert_eq!(wires.count(|event| matches!(event, TapEvent::Heartbeat)), 0, "{mode:?} {closer:?}");
            }
        }
    }
}

/// One message, whole or fragmented, or a control frame.
fn any_frames(from: Side) -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![0..80usize, 120..130usize, 1000..1100usize, 65_530..65_540usize];
    prop_oneof![
        4 => Just(frame(from, 0x82, &HEARTBEAT)),
        1 => Just(frame(from, 0x82, &[0xd0, 0x01, 0x01])),
        3 => (size, 0x81..=0x82u8).prop_map(move |(size, first)| frame(from, first, &vec![0x2a; size])),
        2 => vec(0..200usize, 2..5).prop_map(move |sizes| {
            let last = sizes.len() - 1;
            let pieces = sizes.iter().enumerate().flat_map(|(at, size)| {
                let first = if at == 0 { 0x02 } else { 0x00 } | if at == last { 0x80 } else { 0 };
                [frame(from, first, &vec![7; *size]), if at == last { vec![] } else { frame(from, 0x89, b"p") }].concat()
            });
            pieces.collect()
        }),
        1 => (0..126usize, 0x89..=0x8au8).prop_map(move |(size, first)| frame(from, first, &vec![b'c'; size])),
    ]
}

fn any_settings() -> impl Strategy<Value = HeartbeatSettings> {
    prop::sample::select(&SETTINGS[..]).prop_map(|(mode, proof)| HeartbeatSettings {
        mode,
        proof,
        ..HeartbeatSettings::default()
    })
}

/// The frames of a stream without those that `removed` selects.
fn without(mut bytes: &[u8], removed: impl Fn(&Header, &[u8]) -> bool) -> Vec<u8> {
    let mut left = Vec::new();
    while let Some(header) = Header::parse(bytes) {
        let end = header.length + header.payload_length as usize;
        if !removed(&header, &bytes[header.length..end]) {
            left.extend_from_slice(&bytes[..end]);
        }
        bytes = &bytes[end..];
    }
    left
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_chunking_gives_the_same_output_and_the_same_decisions(
        frames in vec(any_frames(Side::Browser), 1..12),
        replies in vec(any_frames(Side::Upstream), 1..12),
        sizes in vec(1..400usize, 1..8),
        settings in any_settings(),
        capability in prop::sample::select(vec![Capability::Unknown, Capability::Silent, Capability::Native]),
    ) {
        let (frames, replies, now) = (frames.concat(), replies.concat(), Instant::now());
        let run = |sizes: &[usize]| {
            let (mut tap, mut wires) = tap(settings);
            wires.capability = capability;
            feed(&mut tap, Side::Upstream, &replies, sizes, now, &mut wires);
            let (mut tap, _wires) = (Tap::new(Inspection::Messages, settings, NONCE), ());
            feed(&mut tap, Side::Browser, &frames, sizes, now, &mut wires);
            wires
        };
        prop_assert_eq!(run(&sizes), run(&[usize::MAX]));
    }

    #[test]
    fn all_frames_except_heartbeats_reach_the_upstream_unchanged(
        frames in vec(any_frames(Side::Browser), 1..12),
        sizes in vec(1..400usize, 1..8),
    ) {
        let (bytes, now) = (frames.concat(), Instant::now());
        let (mut tap, mut wires) = tap(HeartbeatSettings::default());
        feed(&mut tap, Side::Browser, &bytes, &sizes, now, &mut wires);
        let unmasked = |header: &Header, payload: &[u8]| {
            let mut payload = payload.to_vec();
            mask(&mut payload, header.mask.expect("masked"), 0);
            payload
        };
        let is_ours = |header: &Header, payload: &[u8]| {
            header.opcode == Opcode::Ping && unmasked(header, payload).starts_with(&NONCE.to_be_bytes())
        };
        let is_heartbeat = |header: &Header, payload: &[u8]| {
            header.opcode == Opcode::Binary && header.fin && unmasked(header, payload) == HEARTBEAT
        };
        prop_assert_eq!(without(&wires.to_upstream, is_ours), without(&bytes, is_heartbeat));
    }

    #[test]
    fn random_bytes_pass_unchanged(bytes in vec(any::<u8>(), 0..600), sizes in vec(1..50usize, 1..5)) {
        for from in [Side::Browser, Side::Upstream] {
            let settings = HeartbeatSettings { mode: Mode::Forward, ..HeartbeatSettings::default() };
            for (mut tap, mut wires) in [tap(settings), compressed_tap(Deflate::default(), settings)] {
                feed(&mut tap, from, &bytes, &sizes, Instant::now(), &mut wires);
                prop_assert_eq!(&*wires.wire(from), &bytes);
            }
        }
    }

    /// Heartbeats, pongs, native acks and time steps in random order.
    #[test]
    fn no_ack_is_sent_without_a_newer_proof(events in vec((0..6u8, 0..4000u64), 1..80), settings in any_settings()) {
        let (mut tap, mut wires) = tap(settings);
        let (mut now, mut heartbeats, mut acks) = (Instant::now(), 0, 0);
        // When the last ping was sent, and the last one that was answered.
        let (mut pinged, mut proved) = (None, None);
        for (event, wait) in events {
            now += Duration::from_millis(wait);
            let (events, inserted) = (wires.events.len(), wires.inserted.len());
            match event {
                0 | 1 => {
                    heartbeats += 1;
                    let heartbeat = frame(Side::Browser, 0x82, &HEARTBEAT);
                    let _processed = tap.on_bytes(Side::Browser, &heartbeat, now, &mut wires);
                }
                2 => if let Some(tag) = wires.last_tag() {
                    proved = pinged;
                    let pong = frame(Side::Upstream, 0x8a, &tag);
                    let _processed = tap.on_bytes(Side::Upstream, &pong, now, &mut wires);
                },
                3 => { let _processed = tap.on_bytes(Side::Upstream, &NATIVE_ACK, now, &mut wires); }
                4 => wires.blocked = !wires.blocked,
                _ => wires.capability = [Capability::Unknown, Capability::Silent, Capability::Native][wait as usize % 3],
            }
            tap.drive(now, &mut wires);
            for event in &wires.events[events..] {
                if let TapEvent::Ack(waited) = event {
                    acks += 1;
                    prop_assert!(acks <= heartbeats, "more acks than heartbeats");
                    prop_assert!(settings.mode != Mode::Forward, "an ack in mode forward");
                    let since = now - *waited;
                    let lie = settings.proof == Proof::Pong && proved.is_none_or(|proved| proved < since);
                    prop_assert!(!lie, "the last proof is older than the heartbeat");
                }
            }
            if wires.inserted[inserted..].iter().any(|(from, _frame)| *from == Side::Browser) {
                pinged = Some(now);
            }
        }
        let sent = wires.inserted.iter().filter(|(from, _frame)| *from == Side::Upstream).count();
        prop_assert_eq!(sent, acks);
    }
}

#[test]
fn an_ack_waits_for_the_end_of_a_fragmented_message() {
    let (mut tap, mut wires) = tap(HeartbeatSettings::default());
    let now = Instant::now();
    let _processed = tap.on_bytes(Side::Upstream, &[0x02, 0x01, 7], now, &mut wires);
    let _processed = tap.on_bytes(Side::Browser, &frame(Side::Browser, 0x82, &HEARTBEAT), now, &mut wires);
    let pong = frame(Side::Upstream, 0x8a, &wires.last_tag().expect("a ping went upstream"));
    let _processed = tap.on_bytes(Side::Upstream, &pong, now, &mut wires);
    assert_eq!(wires.to_browser, [0x02, 0x01, 7], "the pong is removed, the ack waits");
    let _processed = tap.on_bytes(Side::Upstream, &[0x80, 0x01, 8, 0x81, 0x00], now, &mut wires);
    let ack = AckForm::Compatible.frame();
    assert_eq!(wires.to_browser, [&[0x02, 0x01, 7, 0x80, 0x01, 8], ack, &[0x81, 0x00]].concat());
}

#[test]
fn a_ping_waits_for_the_end_of_a_frame() {
    let settings = HeartbeatSettings { mode: Mode::Auto, ..HeartbeatSettings::default() };
    let (mut tap, mut wires) = tap(settings);
    wires.capability = Capability::Native;
    let now = Instant::now();
    let _processed = tap.on_bytes(Side::Browser, &frame(Side::Browser, 0x82, &HEARTBEAT), now, &mut wires);
    let large = frame(Side::Browser, 0x82, &[1; 200]);
    let _processed = tap.on_bytes(Side::Browser, &large[..100], now, &mut wires);
    let late = now + settings.native_deadline;
    tap.drive(late, &mut wires);
    assert_eq!(wires.inserted, [], "nothing is inserted inside a frame");
    let _processed = tap.on_bytes(Side::Browser, &large[100..], late, &mut wires);
    assert!(wires.last_tag().is_some(), "the ping is inserted at its end");
    assert!(wires.to_upstream.starts_with(&[frame(Side::Browser, 0x82, &HEARTBEAT), large].concat()));
}

#[test]
fn stream_that_cannot_be_parsed_passes_without_acks() {
    let (mut tap, mut wires) = tap(HeartbeatSettings::default());
    let now = Instant::now();
    let _processed = tap.on_bytes(Side::Browser, &frame(Side::Browser, 0x82, &HEARTBEAT), now, &mut wires);
    let pong = frame(Side::Upstream, 0x8a, &wires.last_tag().expect("a ping went upstream"));
    let _processed = tap.on_bytes(Side::Upstream, &[0xf2, 0x01, 7], now, &mut wires);
    let _processed = tap.on_bytes(Side::Upstream, &pong, now, &mut wires);
    assert_eq!(wires.to_browser, [&[0xf2, 0x01, 7][..], &pong].concat());
    assert_eq!(wires.count(|event| matches!(event, TapEvent::Unparsable(_))), 1);
}

#[test]
fn a_heartbeat_behind_an_incomplete_frame_passes_unread() {
    // A short frame waits in the relay until it is complete; a long one passes at once.
    for length in [40, 100] {
        let (mut tap, mut wires) = tap(HeartbeatSettings::default());
        let incomplete = &frame(Side::Browser, 0x82, &vec![1; length])[..20];
        let bytes = [incomplete, &frame(Side::Browser, 0x82, &HEARTBEAT)].concat();
        feed(&mut tap, Side::Browser, &bytes, &[incomplete.len()], Instant::now(), &mut wires);
        assert_eq!(wires.to_upstream, bytes);
        assert_eq!(wires.events, [], "neither a heartbeat nor a message");
    }
}

#[test]
fn close_frame_is_sent_to_the_browser_at_a_message_boundary_then_to_the_upstream() {
    let (mut tap, mut wires) = tap(HeartbeatSettings::default());
    let now = Instant::now();
    let _processed = tap.on_bytes(Side::Upstream, &[0x82, 0x03, 1, 2], now, &mut wires);
    tap.close(1001, now, &mut wires);
    assert_eq!(wires.inserted, []);
    let _processed = tap.on_bytes(Side::Upstream, &[3, 0x82, 0x01, 9], now, &mut wires);
    assert_eq!(wires.to_browser, [0x82, 0x03, 1, 2, 3, 0x88, 0x02, 0x03, 0xe9], "nothing follows the close frame");
    assert_eq!(wires.to_upstream.len(), 8, "a masked close frame");
    assert!(!tap.is_closed(Side::Browser));
    let _processed = tap.on_bytes(Side::Browser, &frame(Side::Browser, 0x88, &[0x03, 0xe9]), now, &mut wires);
    assert!(tap.is_closed(Side::Browser) && !tap.is_closed(Side::Upstream));
    assert_eq!(wires.to_upstream.len(), 8, "the browser's answer is not passed on");
}

#[test]
fn no_close_frame_is_sent_after_an_incomplete_frame() {
    let (mut tap, mut wires) = tap(HeartbeatSettings::default());
    let now = Instant::now();
    let incomplete = [0x82];
    assert_eq!(tap.on_bytes(Side::Upstream, &incomplete, now, &mut wires), 0);
    tap.on_end(Side::Upstream, &incomplete, &mut wires);
    tap.close(1001, now, &mut wires);
    assert_eq!(wires.to_browser, incomplete);
    assert_eq!(wires.to_upstream.len(), 8, "the other side gets a close frame");

    let (mut tap, mut wires) = self::tap(HeartbeatSettings::default());
    tap.on_end(Side::Browser, &incomplete, &mut wires);
    tap.leave_browser(1001, &mut wires);
    assert!(!tap.close_for_takeover(1001, &mut wires), "the upstream got no close frame");
    assert_eq!(wires.to_upstream, incomplete);
}
