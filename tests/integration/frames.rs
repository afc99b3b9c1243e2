//! Frames that no correct endpoint sends: they pass unchanged, and the tap turns off if it cannot parse them.

use heartbeat_sidecar::heartbeat::{Mode, Proof};

use crate::support::frame::{
    BINARY, CLOSE, COMPATIBLE_ACK, PING, PONG, TEXT, header, heartbeat, masked, new_session, plain,
};
use crate::support::{App, Session, Sidecar, handshake, switching};

const STREAM: &str = "/_stcore/stream";

/// The sender of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Browser,
    Upstream,
}

impl From {
    /// A frame as this end sends it.
    fn frame(self, first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
        match self {
            Self::Browser => masked(first, payload),
            Self::Upstream => plain(first, payload),
        }
    }

    /// A frame as the other end would send it.
    fn wrongly_masked(self, payload: &str) -> Vec<u8> {
        match self {
            Self::Browser => plain(TEXT, payload),
            Self::Upstream => masked(TEXT, payload),
        }
    }

    fn header(self, first: u8, length: u64) -> Vec<u8> {
        header(first, length, self == Self::Browser)
    }

    /// A frame of three zeros whose length takes `extra` bytes more than necessary.
    fn padded(self, extra: u8) -> Vec<u8> {
        let mut frame = self.header(BINARY, 3);
        let form = if extra == 2 { 126 } else { 127 };
        frame[1] = frame[1] & 0x80 | form;
        frame.splice(2..2, [vec![0; usize::from(extra) - 1], vec![3]].concat());
        frame.extend([0; 3]);
        frame
    }
}

/// What the tap does after the bytes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tap {
    /// The next heartbeat is answered.
    On,
    /// Off, for this reason.
    Off(&'static str),
    /// A close frame has passed: heartbeats pass unanswered.
    Closed,
    /// The next bytes belong to the current frame.
    Inside,
}

type Row = (&'static str, Vec<u8>, Tap);

/// Unusual or invalid headers.
fn odd_headers(from: From) -> Vec<Row> {
    let data = |first| from.frame(first, "data");
    vec![
        ("masked the wrong way", from.wrongly_masked("x"), Tap::Off("masking")),
        ("RSV1 without an extension", data(0xc1), Tap::Off("reserved_bits")),
        ("RSV2", data(0xa2), Tap::Off("reserved_bits")),
        ("RSV3 on a ping", data(0x99), Tap::Off("reserved_bits")),
        ("reserved data opcodes", [0x83, 0x84, 0x85, 0x86, 0x87].map(data).concat(), Tap::On),
        ("reserved control opcodes", [0x8b, 0x8c, 0x8d, 0x8e, 0x8f].map(data).concat(), Tap::On),
        ("a reserved opcode in pieces", [data(0x03), data(PING), data(0x80)].concat(), Tap::On),
        ("a reserved control opcode in pieces", data(0x0b), Tap::Off("fragmentation")),
        ("a 16-bit length of 3", from.padded(2), Tap::On),
        ("a 64-bit length of 3", from.padded(8), Tap::On),
        ("a length of 2^63", from.header(BINARY, 1 << 63), Tap::Off("length")),
        ("a length of 2^64 - 1", from.header(TEXT, u64::MAX), Tap::Off("length")),
        ("a length of 2^40", [from.header(BINARY, 1 << 40), vec![7; 100_000]].concat(), Tap::Inside),
        ("a length of 2^63 - 1", [from.header(TEXT, i64::MAX as u64), vec![7; 100_000]].concat(), Tap::Inside),
    ]
}

/// Invalid or very long sequences of frames.
fn odd_sequences(from: From) -> Vec<Row> {
    let data = |first| from.frame(first, "data");
    let large = |first, size| from.frame(first, vec![b'c'; size]);
    let empty = |first| from.frame(first, "");
    let fragments = [empty(0x02), empty(0x00).repeat(4094), empty(0x80)].concat();
    let pings: Vec<_> = (0..1000u32).flat_map(|count| from.frame(PING, count.to_be_bytes())).collect();
    vec![
        ("a ping in pieces", [data(0x09), data(0x80)].concat(), Tap::Off("fragmentation")),
        ("a close frame in pieces", data(0x08), Tap::Off("fragmentation")),
        ("pings of 126 and 70,000 bytes", [large(PING, 126), large(PING, 70_000)].concat(), Tap::On),
        ("a pong of 126 bytes", large(PONG, 126), Tap::On),
        ("a close frame of 126 bytes", large(CLOSE, 126), Tap::On),
        ("a continuation of nothing", data(0x80), Tap::Off("fragmentation")),
        ("a continuation that goes on", data(0x00), Tap::Off("fragmentation")),
        ("a continuation of a whole message", [data(TEXT), data(0x80)].concat(), Tap::Off("fragmentation")),
        ("new text inside a message", [data(0x01), data(TEXT)].concat(), Tap::Off("fragmentation")),
        ("a new message inside a message", [data(0x02), data(0x02)].concat(), Tap::Off("fragmentation")),
        ("4,096 empty fragments", fragments, Tap::On),
        ("1,000 pings", pings, Tap::On),
        ("1,000 pongs that nobody asked for", data(PONG).repeat(1000), Tap::On),
    ]
}

/// Unusual or invalid payloads.
fn odd_payloads(from: From) -> Vec<Row> {
    let close = |payload: &[u8]| from.frame(CLOSE, payload);
    let code = |code: u16| from.frame(CLOSE, code.to_be_bytes());
    let codes = [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65_535].map(code).concat();
    let euro = [from.frame(0x01, [0xe2]), from.frame(PING, ""), from.frame(0x80, [0x82, 0x28])].concat();
    vec![
        ("bad UTF-8", from.frame(TEXT, [0xff, 0xfe, 0xc0, 0x80, 0xed, 0xa0, 0x80]), Tap::On),
        ("bad UTF-8 in pieces", euro, Tap::On),
        ("a protobuf that is none", from.frame(BINARY, [0x0f, 0xff, 0xff]), Tap::On),
        ("half a close code", close(&[0x03]), Tap::Closed),
        ("a close reason of bad UTF-8", close(&[0x03, 0xe8, 0xff, 0xff]), Tap::Closed),
        ("close codes that nobody may send", codes, Tap::Closed),
        ("data after a close frame", [code(1000), from.frame(TEXT, "late"), code(1001)].concat(), Tap::Closed),
    ]
}

fn table(from: From) -> Vec<Row> {
    [odd_headers(from), odd_sequences(from), odd_payloads(from)].concat()
}

/// A sidecar that answers every heartbeat at once.
async fn start() -> (App, Sidecar) {
    let app = App::bind().await;
    let mut config = app.config();
    config.heartbeat.mode = Mode::Answer;
    config.heartbeat.proof = Proof::Connection;
    let sidecar = Sidecar::start(config).await;
    (app, sidecar)
}

/// Sends a row, then a heartbeat, then a mark each way, and expects all of it in order.
async fn check(sidecar: &Sidecar, app: &App, from: From, (name, bytes, tap): Row) {
    println!("{name}, from {from:?}");
    let off = async || match tap {
        Tap::Off(reason) => sidecar.metric("sessions_unparsable_total", &[("reason", reason)]).await,
        Tap::On | Tap::Closed | Tap::Inside => sidecar.metric("sessions_unparsable_total", &[]).await,
    };
    let before = off().await;
    let Session { mut browser, app: mut upstream } = sidecar.stream(app).await;
    let (sender, receiver) = match from {
        From::Browser => (&mut browser, &mut upstream),
        From::Upstream => (&mut upstream, &mut browser),
    };
    sender.send(&bytes).await;
    receiver.expect(&bytes).await;
    browser.send(heartbeat()).await;
    let passes = match tap {
        Tap::On => false,
        Tap::Off(_) | Tap::Closed => true,
        Tap::Inside => from == From::Browser,
    };
    let mark = masked(TEXT, "mark");
    browser.send(&mark).await;
    upstream.expect(if passes { [heartbeat(), mark].concat() } else { mark }).await;
    upstream.send(plain(TEXT, "mark")).await;
    if tap == Tap::On {
        browser.expect(plain(BINARY, COMPATIBLE_ACK)).await;
    }
    browser.expect(plain(TEXT, "mark")).await;
    let expected = if matches!(tap, Tap::Off(_)) { before + 1.0 } else { before };
    assert_eq!(off().await, expected, "{name}, from {from:?}");
}

#[tokio::test]
async fn odd_browser_frames_pass_unchanged_and_turn_the_tap_off_if_it_cannot_parse_them() {
    let (app, sidecar) = start().await;
    for row in table(From::Browser) {
        check(&sidecar, &app, From::Browser, row).await;
    }
    sidecar.until("sessions", &[], 0.0).await;
}

#[tokio::test]
async fn odd_upstream_frames_pass_unchanged_and_turn_the_tap_off_if_it_cannot_parse_them() {
    let (app, sidecar) = start().await;
    for row in table(From::Upstream) {
        check(&sidecar, &app, From::Upstream, row).await;
    }
    sidecar.until("sessions", &[], 0.0).await;
}

#[tokio::test]
async fn odd_frames_pass_unchanged_without_a_tap() {
    let (app, sidecar) = start().await;
    let Session { mut browser, app: mut upstream } = sidecar.open(&app, "/other").await;
    let both = [From::Browser, From::Upstream];
    let [from_browser, from_upstream] = both.map(|from| table(from).into_iter().flat_map(|row| row.1).collect());
    let (from_browser, from_upstream): (Vec<u8>, Vec<u8>) = (from_browser, from_upstream);
    assert!(from_browser.len() > 250_000 && from_upstream.len() > 250_000);
    tokio::join!(browser.send(&from_browser), async { upstream.expect(&from_browser).await });
    tokio::join!(upstream.send(&from_upstream), async { browser.expect(&from_upstream).await });
    assert_eq!(sidecar.metric("sessions_unparsable_total", &[]).await, 0.0);
}

#[tokio::test]
async fn odd_frames_sent_with_the_handshake_pass_in_order() {
    let (app, sidecar) = start().await;
    for ((name, early, _), (_, glued, _)) in table(From::Browser).into_iter().zip(table(From::Upstream)) {
        println!("{name}");
        let mut browser = sidecar.connect().await;
        let mut upstream = {
            browser.send([handshake(STREAM, "").as_bytes(), &early[..]].concat()).await;
            app.accept().await
        };
        upstream.head().await;
        upstream.send([switching("").as_bytes(), &glued[..]].concat()).await;
        upstream.expect(&early).await;
        assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
        browser.expect(&glued).await;
    }
    sidecar.until("sessions", &[], 0.0).await;
}

#[tokio::test]
async fn a_reset_anywhere_in_the_stream_resets_the_other_side() {
    let (app, sidecar) = start().await;
    let mut resets = 0.0;
    for from in [From::Browser, From::Upstream] {
        let parts = [
            ("a header", from.header(BINARY, 1 << 40)[..5].to_vec()),
            ("a frame that is seen whole", masked(CLOSE, [3, 0xe8])[..7].to_vec()),
            ("a giant frame", [from.header(BINARY, 1 << 40), vec![7; 300_000]].concat()),
            ("a fragmented message", [from.frame(0x02, "one"), from.frame(0x00, "two")].concat()),
            ("a stream that is not followed", [from.frame(0xf2, "x"), vec![7; 1000]].concat()),
        ];
        for (name, part) in parts {
            println!("{name}, from {from:?}");
            let Session { browser, app: upstream } = sidecar.stream(&app).await;
            let (mut sender, mut receiver) = match from {
                From::Browser => (browser, upstream),
                From::Upstream => (upstream, browser),
            };
            sender.send(from.frame(TEXT, "mark")).await;
            receiver.expect(from.frame(TEXT, "mark")).await;
            sender.send(&part).await;
            sender.reset();
            let error = receiver.rest().await.expect_err("a reset, not an end");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{name}");
            resets += 1.0;
            let initiator = if from == From::Browser { "browser" } else { "upstream" };
            sidecar.until("sessions_closed_total", &[("code", "1006")], resets).await;
            assert!(sidecar.metric("sessions_closed_total", &[("initiator", initiator)]).await > 0.0);
        }
    }
    sidecar.until("sessions", &[], 0.0).await;
    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    upstream.send(new_session("1.53.1")).await;
    browser.expect(new_session("1.53.1")).await;
    browser.send(heartbeat()).await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK), "the next session works");
}
