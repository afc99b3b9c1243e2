//! Properties of the pings beside the heartbeats: the shield removes the upstream's and nothing else.

use std::cell::RefCell;

use super::*;
use crate::heartbeat::pings::PingSettings;

const OTHER_NONCE: u64 = 43;
const INTERVAL: Duration = Duration::from_secs(30);

fn shielded(start: Instant) -> (Tap, Wires) {
    let (tap, wires) = tap(HeartbeatSettings::default());
    (tap.with_pings(PingSettings { interval: Some(INTERVAL), shield: true }, OTHER_NONCE, start), wires)
}

fn is_ping(header: &Header, _payload: &[u8]) -> bool {
    header.opcode == Opcode::Ping && header.payload_length <= 125
}

/// The payloads of the pongs sent to the upstream.
fn pongs(wires: &Wires) -> Vec<Vec<u8>> {
    let to_upstream = wires.inserted.iter().filter(|(from, _frame)| *from == Side::Browser);
    let frames = to_upstream.map(|(_from, frame)| {
        let header = Header::parse(frame).expect("whole");
        let mut payload = frame[header.length..].to_vec();
        mask(&mut payload, header.mask.expect("masked"), 0);
        (header.opcode, payload)
    });
    frames.filter(|(opcode, _payload)| *opcode == Opcode::Pong).map(|(_opcode, payload)| payload).collect()
}

/// The payload of the ping that is due after the interval.
fn ping_of_ours(tap: &mut Tap, wires: &mut Wires, start: Instant) -> Vec<u8> {
    tap.drive(start + INTERVAL, wires);
    match &wires.inserted[..] {
        [(Side::Upstream, frame)] => {
            assert_eq!(frame[..2], [0x89, 16], "unmasked");
            frame[2..].to_vec()
        }
        other => panic!("one ping was due, not {other:?}"),
    }
}

proptest! {
    #[test]
    fn shield_removes_and_answers_each_upstream_ping(
        frames in vec(any_frames(Side::Upstream), 1..12), sizes in vec(1..300usize, 1..6),
    ) {
        let (start, stream) = (Instant::now(), frames.concat());
        let (mut tap, mut wires) = shielded(start);
        feed(&mut tap, Side::Upstream, &stream, &sizes, start, &mut wires);
        prop_assert_eq!(&wires.to_browser, &without(&stream, is_ping));
        let upstream_pings = RefCell::new(Vec::new());
        let _others = without(&stream, |header, payload| {
            upstream_pings.borrow_mut().extend(is_ping(header, payload).then(|| payload.to_vec()));
            false
        });
        prop_assert_eq!(pongs(&wires), upstream_pings.into_inner());
    }

    #[test]
    fn all_browser_frames_pass_except_pongs_to_our_pings(
        frames in vec(any_frames(Side::Browser), 1..12), sizes in vec(1..300usize, 1..6),
    ) {
        let (start, foreign) = (Instant::now(), frames.concat());
        let (mut tap, mut wires) = shielded(start);
        wires.capability = Capability::Native;
        let tag = ping_of_ours(&mut tap, &mut wires, start);
        let stream = [frame(Side::Browser, 0x8a, &tag), foreign.clone(), frame(Side::Browser, 0x8a, &tag)].concat();
        feed(&mut tap, Side::Browser, &stream, &sizes, start, &mut wires);
        prop_assert_eq!(&wires.to_upstream, &foreign);
    }
}

#[test]
fn a_pong_waits_for_the_end_of_the_browsers_frame() {
    let start = Instant::now();
    let (mut tap, mut wires) = shielded(start);
    let message = frame(Side::Browser, 0x82, &[7; 1000]);
    let processed = tap.on_bytes(Side::Browser, &message[..500], start, &mut wires);
    assert_eq!(processed, 500);
    tap.on_bytes(Side::Upstream, &frame(Side::Upstream, 0x89, b"old"), start, &mut wires);
    tap.on_bytes(Side::Upstream, &frame(Side::Upstream, 0x89, b"new"), start, &mut wires);
    assert_eq!((pongs(&wires).len(), tap.is_idle()), (0, false));
    tap.on_bytes(Side::Browser, &message[500..], start, &mut wires);
    assert_eq!(pongs(&wires), [b"new"]);
    assert!(wires.to_upstream.starts_with(&message) && wires.to_browser.is_empty());
}

#[test]
fn unanswered_ping_is_reported_until_a_side_closes() {
    let start = Instant::now();
    let (mut tap, mut wires) = shielded(start);
    assert_eq!(tap.deadline(), Some(start + INTERVAL));
    let _tag = ping_of_ours(&mut tap, &mut wires, start);
    assert_eq!(tap.ping_unanswered_since(), Some(start + INTERVAL));
    tap.on_bytes(Side::Upstream, &frame(Side::Upstream, 0x88, &[3, 0xe8]), start, &mut wires);
    assert_eq!((tap.ping_unanswered_since(), tap.deadline()), (None, None));
    let ping = frame(Side::Upstream, 0x89, b"after");
    tap.on_bytes(Side::Upstream, &ping, start, &mut wires);
    assert!(wires.to_browser.ends_with(&ping) && pongs(&wires).is_empty());
}

#[test]
fn pings_and_pongs_with_a_reserved_bit_pass() {
    let start = Instant::now();
    let settings = PingSettings { interval: Some(INTERVAL), shield: true };
    let mut tap =
        Tap::new(Inspection::Frames, HeartbeatSettings::default(), NONCE).with_pings(settings, OTHER_NONCE, start);
    let tag = [NONCE.to_be_bytes(), [0; 8]].concat();
    let control = |reserved: u8| {
        [(0x8a, &tag[..]), (0x89, b"ping")]
            .map(|(first, payload)| frame(Side::Upstream, first | reserved, payload))
            .concat()
    };
    let mut wires = Wires::default();
    let _processed = tap.on_bytes(Side::Upstream, &control(0x20), start, &mut wires);
    assert_eq!((&wires.to_browser, wires.inserted.len()), (&control(0x20), 0));
    let _processed = tap.on_bytes(Side::Upstream, &control(0), start, &mut wires);
    assert_eq!(
        (&wires.to_browser, pongs(&wires)),
        (&control(0x20), vec![b"ping".to_vec()]),
        "without a reserved bit they are removed"
    );
}
