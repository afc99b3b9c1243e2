//! The tap: in any order of events it removes only heartbeats and pongs to its pings, inserts frames only at
//! boundaries, and sends no ack without a newer proof.
#![no_main]

use std::time::{Duration, Instant};

use heartbeat_sidecar::heartbeat::{Capability, HeartbeatSettings, Mode, Proof};
use heartbeat_sidecar::tap::output::{TapEvent, TapOutput};
use heartbeat_sidecar::tap::{Inspection, MAX_INCOMPLETE_BYTES, Tap};
use heartbeat_sidecar::websocket::scanner::Side;
use heartbeat_sidecar_fuzz::input::Input;
use heartbeat_sidecar_fuzz::protobuf::{BACK, last_member};
use heartbeat_sidecar_fuzz::wire::{Frame, Stream, frame};
use libfuzzer_sys::fuzz_target;

const NONCE: u64 = 0x6e6f_6e63_6521_2121;
const BOTH: [Side; 2] = [Side::Browser, Side::Upstream];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let flags = input.byte();
    let settings = HeartbeatSettings {
        mode: [Mode::Auto, Mode::Answer, Mode::Forward, Mode::Auto][usize::from(flags & 3)],
        proof: if flags & 4 == 0 { Proof::Pong } else { Proof::Connection },
        ..HeartbeatSettings::default()
    };
    let inspection = if flags & 8 == 0 { Inspection::Messages } else { Inspection::Frames };
    let mut harness = Harness::new(inspection, settings);
    while !input.is_empty() {
        harness.event(&mut input);
        harness.tap.drive(harness.now, &mut harness.wires);
        harness.check_acks();
        if let Some(deadline) = harness.tap.deadline() {
            assert!(deadline > harness.now, "a deadline that stays due would never end");
        }
    }
    harness.check_bytes();
});

/// One direction: the bytes that its sender sent, and those that its receiver got.
#[derive(Default)]
struct Direction {
    sent: Vec<u8>,
    passed: Vec<u8>,
    /// Frames of the sidecar, each with the number of bytes that passed before it.
    inserted: Vec<(usize, Vec<u8>)>,
    /// Bytes of an incomplete frame that the last call did not process.
    incomplete: Vec<u8>,
    ended: bool,
}

/// Both directions, and the tap's events.
#[derive(Default)]
struct Wires {
    browser: Direction,
    upstream: Direction,
    blocked: [bool; 2],
    capability: Capability,
    events: Vec<TapEvent>,
}

struct Harness {
    tap: Tap,
    inspection: Inspection,
    settings: HeartbeatSettings,
    wires: Wires,
    now: Instant,
    /// The tag of the last ping, and when it was sent.
    pinged: Option<(Vec<u8>, Instant)>,
    /// When the last answered ping was sent.
    proved: Option<Instant>,
    /// How many events and pings were checked.
    checked: (usize, usize),
    heartbeats: usize,
    acks: usize,
    /// A side has closed or was closed: the sidecar may send only close frames.
    closing: bool,
    /// `close` or `close_for_takeover` was called.
    stopped: bool,
}

impl Wires {
    fn direction(&mut self, from: Side) -> &mut Direction {
        match from {
            Side::Browser => &mut self.browser,
            Side::Upstream => &mut self.upstream,
        }
    }
}

impl TapOutput for Wires {
    fn pass(&mut self, from: Side, bytes: &[u8]) {
        self.direction(from).passed.extend_from_slice(bytes);
    }

    fn insert(&mut self, from: Side, bytes: &[u8]) {
        let direction = self.direction(from);
        direction.inserted.push((direction.passed.len(), bytes.to_vec()));
    }

    fn is_clear(&self, from: Side) -> bool {
        !self.blocked[from as usize]
    }

    fn capability(&self) -> Capability {
        self.capability
    }

    fn on_event(&mut self, event: TapEvent) {
        self.events.push(event);
    }
}

impl Harness {
    fn new(inspection: Inspection, settings: HeartbeatSettings) -> Self {
        Self {
            tap: Tap::new(inspection, settings, NONCE),
            inspection,
            settings,
            wires: Wires::default(),
            now: Instant::now(),
            pinged: None,
            proved: None,
            checked: (0, 0),
            heartbeats: 0,
            acks: 0,
            closing: false,
            stopped: false,
        }
    }

    fn event(&mut self, input: &mut Input<'_>) {
        let event = input.byte();
        let from = BOTH[usize::from(event & 1)];
        match event >> 1 & 0xf {
            0 | 1 => {
                let length = input.short();
                self.send(from, input.bytes(length.into()));
            }
            2..=5 => {
                let (first, length) = (input.byte(), input.byte());
                self.send(from, &frame(from, first, input.bytes(length.into())));
            }
            6 | 7 => self.send(Side::Browser, &frame(Side::Browser, 0x82, &[0x88, 0x01, 0x01])),
            8 | 9 => self.pong(),
            10 => self.send(Side::Upstream, &frame(Side::Upstream, 0x82, &[0xd0, 0x01, 0x01])),
            11 | 12 => self.now += Duration::from_millis(input.short().into()),
            13 => self.wires.blocked[from as usize] ^= true,
            14 => {
                self.wires.capability =
                    [Capability::Unknown, Capability::Silent, Capability::Native][usize::from(input.byte() % 3)];
            }
            _ => self.end(from, input.byte()),
        }
    }

    /// Sends bytes in one read, after the incomplete frame of the last one.
    fn send(&mut self, from: Side, bytes: &[u8]) {
        let direction = self.wires.direction(from);
        if direction.ended || bytes.is_empty() {
            return;
        }
        direction.sent.extend_from_slice(bytes);
        let read = [std::mem::take(&mut direction.incomplete), bytes.to_vec()].concat();
        let processed = self.tap.on_bytes(from, &read, self.now, &mut self.wires);
        assert!(read.len() - processed <= MAX_INCOMPLETE_BYTES, "{} bytes remain", read.len() - processed);
        self.wires.direction(from).incomplete = read[processed..].to_vec();
    }

    /// The upstream answers the last ping, if it is between two frames.
    fn pong(&mut self) {
        let Some((tag, sent)) = self.pinged.clone() else { return };
        let upstream = &self.wires.upstream;
        let stream = Stream::parse(&upstream.sent, Side::Upstream, self.inspection == Inspection::Frames);
        if !upstream.ended && stream.error_at.is_none() && stream.has_room_at(upstream.sent.len(), false) {
            self.proved = self.proved.max(Some(sent));
            self.send(Side::Upstream, &frame(Side::Upstream, 0x8a, &tag));
        }
    }

    fn end(&mut self, from: Side, how: u8) {
        match how % 4 {
            0 | 1 => {
                let direction = self.wires.direction(from);
                if !direction.ended {
                    direction.ended = true;
                    let incomplete = std::mem::take(&mut direction.incomplete);
                    self.tap.on_end(from, &incomplete, &mut self.wires);
                }
            }
            // The relay stops a session once.
            _ if self.stopped => return,
            2 => {
                self.stopped = true;
                self.tap.close(1001, self.now, &mut self.wires);
            }
            _ => {
                self.stopped = true;
                let before = self.wires.upstream.passed.len();
                self.tap.leave_browser(1001, &mut self.wires);
                let _close_sent = self.tap.close_for_takeover(1001, &mut self.wires);
                assert_eq!(self.wires.upstream.passed.len(), before);
            }
        }
        self.closing = true;
    }

    /// Acks ≤ heartbeats; none without a newer proof, and none after a side has closed.
    fn check_acks(&mut self) {
        let (events, pings) = self.checked;
        for event in &self.wires.events[events..] {
            match event {
                TapEvent::Heartbeat => {
                    assert!(!self.closing, "a heartbeat is counted after a close");
                    self.heartbeats += 1;
                }
                TapEvent::Ack(waited) => {
                    self.acks += 1;
                    assert!(self.acks <= self.heartbeats, "more acks than heartbeats");
                    assert!(self.settings.mode != Mode::Forward, "an ack in mode forward");
                    let proved = self.proved.is_some_and(|proved| proved >= self.now - *waited);
                    assert!(
                        proved || self.settings.proof == Proof::Connection,
                        "the last proof is older than the heartbeat"
                    );
                    assert!(!self.closing, "an ack after a close");
                }
                TapEvent::CloseReceived(..) | TapEvent::Unparsable(_) => self.closing = true,
                TapEvent::BrowserMessage(..)
                | TapEvent::UpstreamMessage(..)
                | TapEvent::NativeAck(_)
                | TapEvent::NativeAckOverdue
                | TapEvent::NativeAckMissed
                | TapEvent::Proof(_)
                | TapEvent::Withheld(_) => {}
            }
        }
        for (_at, bytes) in &self.wires.browser.inserted[pings..] {
            let ping = Stream::parse(bytes, Side::Browser, false).frames[0];
            if ping.is_plain(0x9) {
                self.pinged = Some((ping.unmasked(bytes), self.now));
            }
        }
        self.checked = (self.wires.events.len(), self.wires.browser.inserted.len());
    }

    fn check_bytes(&self) {
        let extensions = self.inspection == Inspection::Frames;
        let is_unparsable = self.wires.events.iter().any(|event| matches!(event, TapEvent::Unparsable(_)));
        for (from, direction) in [(Side::Browser, &self.wires.browser), (Side::Upstream, &self.wires.upstream)] {
            let stream = Stream::parse(&direction.sent, from, extensions);
            self.check_passed(from, direction, &stream);
            let passed = Stream::parse(&direction.passed, from, extensions);
            for (at, bytes) in &direction.inserted {
                let ours = Stream::parse(bytes, from, false);
                assert!(ours.error_at.is_none() && ours.frames.len() == 1 && ours.frames[0].is_whole(bytes));
                assert!(passed.has_room_at(*at, from == Side::Upstream), "{bytes:02x?} at {at}");
            }
            let acks = direction.inserted.iter().filter(|(_at, bytes)| bytes[0] == 0x82).count();
            assert_eq!(acks, if from == Side::Upstream { self.acks } else { 0 });
            if from == Side::Browser && !is_unparsable && !self.closing && self.inspection == Inspection::Messages {
                let heartbeats =
                    stream.frames.iter().filter(|frame| is_heartbeat(&stream, frame, &direction.sent)).count();
                assert_eq!(heartbeats, self.heartbeats);
            }
        }
    }

    /// All sent bytes pass, except removed frames, an incomplete frame, and what follows a close frame of the sidecar.
    fn check_passed(&self, from: Side, direction: &Direction, stream: &Stream) {
        let (mut sent, mut passed) = (0, 0);
        while passed < direction.passed.len() {
            let frame = stream.frames.iter().find(|frame| frame.start == sent).copied();
            let end = frame.map_or(direction.sent.len(), |frame| frame.end.min(direction.sent.len() as u128) as usize);
            let (bytes, rest) = (&direction.sent[sent..end], &direction.passed[passed..]);
            let same = bytes.iter().zip(rest).take_while(|(sent, passed)| sent == passed).count();
            if same == bytes.len() || same == rest.len() {
                passed += same;
            } else {
                let frame = frame.expect("nothing is removed from a stream that cannot be parsed");
                assert!(
                    self.may_be_removed(from, stream, &frame, &direction.sent),
                    "{bytes:02x?} of {from:?} is missing"
                );
            }
            assert!(sent < end, "more bytes passed than were sent");
            sent = end;
        }
        if self.closing || self.wires.events.iter().any(|event| matches!(event, TapEvent::Unparsable(_))) {
            return;
        }
        let rest = stream.frames.iter().filter(|frame| frame.start >= sent && frame.is_whole(&direction.sent));
        for frame in rest {
            assert!(self.may_be_removed(from, stream, frame, &direction.sent), "{frame:?} of {from:?} was removed");
        }
    }

    fn may_be_removed(&self, from: Side, stream: &Stream, frame: &Frame, sent: &[u8]) -> bool {
        match from {
            Side::Browser => self.inspection == Inspection::Messages && is_heartbeat(stream, frame, sent),
            Side::Upstream => {
                frame.is_plain(0xa) && {
                    let payload = frame.unmasked(sent);
                    payload.len() == 16 && payload.starts_with(&NONCE.to_be_bytes())
                }
            }
        }
    }
}

/// A whole binary message in one frame that protobuf reads as a heartbeat.
fn is_heartbeat(stream: &Stream, frame: &Frame, sent: &[u8]) -> bool {
    let fits = frame.is_whole(sent) && frame.is_plain(0x2) && stream.has_room_at(frame.start, true);
    fits && {
        let payload = frame.unmasked(sent);
        payload.len() <= 64 && last_member(&payload, BACK) == (Some(17), true)
    }
}
