//! The tap: whatever happens in whatever order, bytes out are bytes in without withheld heartbeats and our pongs, with
//! ours where there is room for them, and no ack lies.
#![no_main]

use std::time::{Duration, Instant};

use heartbeat_sidecar::heartbeat::{Capability, Mode, Proof, Settings};
use heartbeat_sidecar::tap::output::{TapEvent, TapOutput};
use heartbeat_sidecar::tap::{Inspection, MAX_REMAINDER_BYTES, Tap};
use heartbeat_sidecar::websocket::scanner::Sender;
use heartbeat_sidecar_fuzz::input::Input;
use heartbeat_sidecar_fuzz::protobuf::{BACK, last_member};
use heartbeat_sidecar_fuzz::wire::{Frame, Stream, frame};
use libfuzzer_sys::fuzz_target;

const NONCE: u64 = 0x6e6f_6e63_6521_2121;
const BOTH: [Sender; 2] = [Sender::Browser, Sender::Upstream];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let flags = input.byte();
    let settings = Settings {
        mode: [Mode::Auto, Mode::Answer, Mode::Forward, Mode::Auto][usize::from(flags & 3)],
        proof: if flags & 4 == 0 { Proof::Pong } else { Proof::Connection },
        ..Settings::default()
    };
    let depth = if flags & 8 == 0 { Inspection::Messages } else { Inspection::Frames };
    let mut world = World::new(depth, settings);
    while !input.is_empty() {
        world.event(&mut input);
        world.tap.drive(world.now, &mut world.wires);
        world.check_acks();
        if let Some(deadline) = world.tap.deadline() {
            assert!(deadline > world.now, "what is due at once would be asked for for ever");
        }
    }
    world.check_bytes();
});

/// One direction, as its sender sent it and as its receiver got it.
#[derive(Default)]
struct Way {
    sent: Vec<u8>,
    passed: Vec<u8>,
    /// Bytes of the sidecar's own, and how much had passed before them.
    inserted: Vec<(usize, Vec<u8>)>,
    /// What the tap left with its caller.
    carry: Vec<u8>,
    ended: bool,
}

/// Both directions, and what the tap said.
#[derive(Default)]
struct Wires {
    browser: Way,
    upstream: Way,
    blocked: [bool; 2],
    capability: Capability,
    events: Vec<TapEvent>,
}

struct World {
    tap: Tap,
    depth: Inspection,
    settings: Settings,
    wires: Wires,
    now: Instant,
    /// The tag of the last ping and when it was sent; when the last one that was answered had been.
    pinged: Option<(Vec<u8>, Instant)>,
    proved: Option<Instant>,
    /// How many events and pings were looked at.
    seen: (usize, usize),
    heartbeats: usize,
    acks: usize,
    /// Somebody has closed, or was closed: nothing of ours may follow but our own close frames.
    closing: bool,
    /// The tap was told to end both sides.
    stopped: bool,
}

impl Wires {
    fn way(&mut self, from: Sender) -> &mut Way {
        match from {
            Sender::Browser => &mut self.browser,
            Sender::Upstream => &mut self.upstream,
        }
    }
}

impl TapOutput for Wires {
    fn pass(&mut self, from: Sender, bytes: &[u8]) {
        self.way(from).passed.extend_from_slice(bytes);
    }

    fn insert(&mut self, from: Sender, bytes: &[u8]) {
        let way = self.way(from);
        way.inserted.push((way.passed.len(), bytes.to_vec()));
    }

    fn is_clear(&self, from: Sender) -> bool {
        !self.blocked[from as usize]
    }

    fn capability(&self) -> Capability {
        self.capability
    }

    fn on_event(&mut self, event: TapEvent) {
        self.events.push(event);
    }
}

impl World {
    fn new(depth: Inspection, settings: Settings) -> Self {
        Self {
            tap: Tap::new(depth, settings, NONCE),
            depth,
            settings,
            wires: Wires::default(),
            now: Instant::now(),
            pinged: None,
            proved: None,
            seen: (0, 0),
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
            6 | 7 => self.send(Sender::Browser, &frame(Sender::Browser, 0x82, &[0x88, 0x01, 0x01])),
            8 | 9 => self.pong(),
            10 => self.send(Sender::Upstream, &frame(Sender::Upstream, 0x82, &[0xd0, 0x01, 0x01])),
            11 | 12 => self.now += Duration::from_millis(input.short().into()),
            13 => self.wires.blocked[from as usize] ^= true,
            14 => {
                self.wires.capability =
                    [Capability::Unknown, Capability::Silent, Capability::Native][usize::from(input.byte() % 3)];
            }
            _ => self.end(from, input.byte()),
        }
    }

    /// Bytes come in one read, behind what was left of the last one.
    fn send(&mut self, from: Sender, bytes: &[u8]) {
        let way = self.wires.way(from);
        if way.ended || bytes.is_empty() {
            return;
        }
        way.sent.extend_from_slice(bytes);
        let read = [std::mem::take(&mut way.carry), bytes.to_vec()].concat();
        let processed = self.tap.on_bytes(from, &read, self.now, &mut self.wires);
        assert!(read.len() - processed <= MAX_REMAINDER_BYTES, "{} bytes are kept", read.len() - processed);
        self.wires.way(from).carry = read[processed..].to_vec();
    }

    /// The upstream answers the last ping, where a frame of its own may stand.
    fn pong(&mut self) {
        let Some((tag, sent)) = self.pinged.clone() else { return };
        let upstream = &self.wires.upstream;
        let stream = Stream::follow(&upstream.sent, Sender::Upstream, self.depth == Inspection::Frames);
        if !upstream.ended && stream.lost.is_none() && stream.has_room_at(upstream.sent.len(), false) {
            self.proved = self.proved.max(Some(sent));
            self.send(Sender::Upstream, &frame(Sender::Upstream, 0x8a, &tag));
        }
    }

    fn end(&mut self, from: Sender, how: u8) {
        match how % 4 {
            0 | 1 => {
                let way = self.wires.way(from);
                if !way.ended {
                    way.ended = true;
                    let rest = std::mem::take(&mut way.carry);
                    self.tap.on_end(from, &rest, &mut self.wires);
                }
            }
            // The relay is told to stop once.
            _ if self.stopped => return,
            2 => {
                self.stopped = true;
                self.tap.close(1001, self.now, &mut self.wires);
            }
            _ => {
                self.stopped = true;
                let before = self.wires.upstream.passed.len();
                let _told = self.tap.hand_over(1001, &mut self.wires);
                assert_eq!(self.wires.upstream.passed.len(), before);
            }
        }
        self.closing = true;
    }

    /// Acks ≤ heartbeats, none before the upstream has proved itself alive since, nothing once somebody closes.
    fn check_acks(&mut self) {
        let (events, pings) = self.seen;
        for event in &self.wires.events[events..] {
            match event {
                TapEvent::Heartbeat => {
                    assert!(!self.closing, "a heartbeat is counted after somebody has closed");
                    self.heartbeats += 1;
                }
                TapEvent::Ack(waited) => {
                    self.acks += 1;
                    assert!(self.acks <= self.heartbeats, "more acks than heartbeats");
                    assert!(self.settings.mode != Mode::Forward, "an ack that nobody wanted");
                    let proved = self.proved.is_some_and(|proved| proved >= self.now - *waited);
                    assert!(proved || self.settings.proof == Proof::Connection, "a proof older than the heartbeat");
                    assert!(!self.closing, "an ack after somebody has closed");
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
            let ping = Stream::follow(bytes, Sender::Browser, false).frames[0];
            if ping.is_plain(0x9) {
                self.pinged = Some((ping.unmasked(bytes), self.now));
            }
        }
        self.seen = (self.wires.events.len(), self.wires.browser.inserted.len());
    }

    fn check_bytes(&self) {
        let extensions = self.depth == Inspection::Frames;
        let lost = self.wires.events.iter().any(|event| matches!(event, TapEvent::Unparsable(_)));
        for (from, way) in [(Sender::Browser, &self.wires.browser), (Sender::Upstream, &self.wires.upstream)] {
            let stream = Stream::follow(&way.sent, from, extensions);
            self.check_passed(from, way, &stream);
            let passed = Stream::follow(&way.passed, from, extensions);
            for (at, bytes) in &way.inserted {
                let ours = Stream::follow(bytes, from, false);
                assert!(ours.lost.is_none() && ours.frames.len() == 1 && ours.frames[0].is_whole(bytes));
                assert!(passed.has_room_at(*at, from == Sender::Upstream), "{bytes:02x?} at {at}");
            }
            let acks = way.inserted.iter().filter(|(_at, bytes)| bytes[0] == 0x82).count();
            assert_eq!(acks, if from == Sender::Upstream { self.acks } else { 0 });
            if from == Sender::Browser && !lost && !self.closing && self.depth == Inspection::Messages {
                let heartbeats = stream.frames.iter().filter(|frame| is_heartbeat(&stream, frame, &way.sent)).count();
                assert_eq!(heartbeats, self.heartbeats);
            }
        }
    }

    /// What passed is what was sent, but for whole heartbeats, pongs of ours, what is kept, and what a farewell cut off.
    fn check_passed(&self, from: Sender, way: &Way, stream: &Stream) {
        let (mut sent, mut passed) = (0, 0);
        while passed < way.passed.len() {
            let frame = stream.frames.iter().find(|frame| frame.start == sent).copied();
            let end = frame.map_or(way.sent.len(), |frame| frame.end.min(way.sent.len() as u128) as usize);
            let (bytes, rest) = (&way.sent[sent..end], &way.passed[passed..]);
            let same = bytes.iter().zip(rest).take_while(|(sent, passed)| sent == passed).count();
            if same == bytes.len() || same == rest.len() {
                passed += same;
            } else {
                let frame = frame.expect("nothing is taken out of what cannot be followed");
                assert!(self.may_vanish(from, stream, &frame, &way.sent), "{bytes:02x?} of {from:?} is missing");
            }
            assert!(sent < end, "more has passed than was sent");
            sent = end;
        }
        if self.closing || self.wires.events.iter().any(|event| matches!(event, TapEvent::Unparsable(_))) {
            return;
        }
        let left = stream.frames.iter().filter(|frame| frame.start >= sent && frame.is_whole(&way.sent));
        for frame in left {
            assert!(self.may_vanish(from, stream, frame, &way.sent), "{frame:?} of {from:?} was swallowed");
        }
    }

    fn may_vanish(&self, from: Sender, stream: &Stream, frame: &Frame, sent: &[u8]) -> bool {
        match from {
            Sender::Browser => self.depth == Inspection::Messages && is_heartbeat(stream, frame, sent),
            Sender::Upstream => {
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
