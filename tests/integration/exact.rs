//! Byte-exactness: any bytes in any pieces arrive unchanged, except for heartbeats, acks and the sidecar's pings.

use heartbeat_sidecar::config::Config;
use heartbeat_sidecar::heartbeat::{Mode, Proof};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};

use crate::support::frame::{COMPATIBLE_ACK, Frame, HEARTBEAT, PING, TEXT, heartbeat, masked, plain};
use crate::support::soon;
use crate::support::tls::{Any, ENCRYPTED, Pki, Session, Sides};

const LAST: &str = "the last message";

/// What one end sends, and the sizes of its writes, repeated.
#[derive(Clone, Debug)]
struct Script {
    bytes: Vec<u8>,
    writes: Vec<usize>,
}

impl Script {
    async fn play(&self, end: &mut WriteHalf<Any>) {
        let (mut rest, mut sizes) = (&self.bytes[..], self.writes.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            end.write_all(now).await.unwrap();
            end.flush().await.unwrap();
            rest = later;
            tokio::task::yield_now().await;
        }
    }
}

/// Sends everything, then EOF.
async fn send_all(script: &Script, mut end: WriteHalf<Any>) {
    script.play(&mut end).await;
    end.shutdown().await.unwrap();
}

async fn read_all(mut end: ReadHalf<Any>) -> Vec<u8> {
    let mut came = Vec::new();
    end.read_to_end(&mut came).await.unwrap();
    came
}

/// Reads until `last` has arrived.
async fn read_through(end: &mut ReadHalf<Any>, last: &[u8]) -> Vec<u8> {
    let (mut came, mut searched) = (Vec::new(), 0);
    while !came[searched..].windows(last.len()).any(|window| window == last) {
        searched = came.len().saturating_sub(last.len());
        assert!(end.read_buf(&mut came).await.unwrap() > 0, "ended without the last message");
    }
    came
}

/// The bytes without the frames that `taken` selects, and how many those are.
fn without(mut bytes: &[u8], taken: impl Fn(&Frame) -> bool) -> (Vec<u8>, usize) {
    let (mut kept, mut count) = (Vec::new(), 0);
    while let Some((frame, length)) = Frame::parse(bytes) {
        if taken(&frame) {
            count += 1;
        } else {
            kept.extend_from_slice(&bytes[..length]);
        }
        bytes = &bytes[length..];
    }
    assert!(bytes.is_empty(), "ends within a frame");
    (kept, count)
}

fn is_own_ping(frame: &Frame) -> bool {
    frame.first == PING && frame.payload.len() == 16
}

fn is_own_ack(frame: &Frame) -> bool {
    frame.payload == COMPATIBLE_ACK
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(soon(test))
}

/// A session through a new sidecar, as the halves of both connections.
async fn split(sides: Sides, path: &str, settings: impl FnOnce(&mut Config)) -> [(ReadHalf<Any>, WriteHalf<Any>); 2] {
    let versions = if rand::random() { rustls::ALL_VERSIONS } else { &[&rustls::version::TLS12] };
    let (_sidecar, Session { browser, app }) = Pki::new().session(sides, versions, path, settings).await;
    [browser.stream, app.stream].map(tokio::io::split)
}

/// What arrives at the browser and at the app.
fn relayed(sides: Sides, path: &str, browser: &Script, app: &Script) -> (Vec<u8>, Vec<u8>) {
    run(async {
        let [(browser_reads, browser_writes), (app_reads, app_writes)] = split(sides, path, |_config| {}).await;
        let (at_browser, at_app, (), ()) = tokio::join!(
            read_all(browser_reads),
            read_all(app_reads),
            send_all(browser, browser_writes),
            send_all(app, app_writes)
        );
        (at_browser, at_app)
    })
}

/// At least one is large: 200 KB byte by byte exceeds the tests' timeout on a busy machine.
fn writes() -> impl Strategy<Value = Vec<usize>> {
    (vec(prop_oneof![1..4usize, 1..200usize, 1000..70_000usize], 0..8), 1000..70_000usize)
        .prop_map(|(sizes, large)| sizes.into_iter().chain([large]).collect())
}

fn script(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Script> {
    (bytes, writes()).prop_map(|(bytes, writes)| Script { bytes, writes })
}

/// A frame with any flags, opcode and mask; its length may be non-minimal, or false.
fn hostile_frame() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![4 => Just(None), 1 => prop::sample::select(&[0, 1, 125, 126, 1 << 40, u64::MAX][..]).prop_map(Some)];
    (any::<u8>(), any::<bool>(), 0..3u8, length, vec(any::<u8>(), 0..200)).prop_map(
        |(first, is_masked, form, lie, payload)| {
            let declared = lie.unwrap_or(payload.len() as u64);
            let bit = if is_masked { 0x80 } else { 0 };
            let mut frame = match form {
                0 if declared < 126 => vec![first, bit | declared as u8],
                0 | 1 if declared < 1 << 16 => [&[first, bit | 126][..], &(declared as u16).to_be_bytes()].concat(),
                _ => [&[first, bit | 127][..], &declared.to_be_bytes()].concat(),
            };
            if is_masked {
                frame.extend([1, 2, 3, 4]);
            }
            [frame, payload].concat()
        },
    )
}

fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..3000),
        vec(hostile_frame(), 0..30).prop_map(|frames| frames.concat()),
        (valid_frames(true), hostile_frame()).prop_map(|(valid, hostile)| [valid, hostile].concat()),
        (valid_frames(false), hostile_frame()).prop_map(|(valid, hostile)| [valid, hostile].concat()),
    ]
}

/// Whole and fragmented messages and control frames of a browser or a server; no heartbeat, no ack, and nothing that
/// looks like a ping of the sidecar.
fn valid_frames(browser: bool) -> impl Strategy<Value = Vec<u8>> {
    let frame = move |first, payload: &[u8]| if browser { masked(first, payload) } else { plain(first, payload) };
    let size = prop_oneof![8 => 0..80usize, 4 => 120..130usize, 4 => 1000..1100usize, 1 => 65_530..65_540usize];
    let message = prop_oneof![
        3 => (0x81..=0x82u8, size).prop_map(move |(first, size)| frame(first, &vec![b'm'; size])),
        2 => vec(0..200usize, 2..5).prop_map(move |sizes| {
            let last = sizes.len() - 1;
            let piece = |(at, size): (usize, &usize)| {
                let first = if at == 0 { 0x02 } else { 0x00 } | if at == last { 0x80 } else { 0 };
                [frame(first, &vec![b'p'; *size]), if at == last { vec![] } else { frame(PING, b"in between") }].concat()
            };
            sizes.iter().enumerate().flat_map(piece).collect()
        }),
        1 => (0x89..=0x8au8, 17..126usize).prop_map(move |(first, size)| frame(first, &vec![b'c'; size])),
    ];
    vec(message, 0..12).prop_map(|messages| messages.concat())
}

/// A browser's messages with heartbeats between them, and the number of heartbeats.
fn with_heartbeats() -> impl Strategy<Value = (Vec<u8>, usize)> {
    vec((valid_frames(true), 1..4usize), 1..6).prop_map(|parts| {
        let beats = parts.iter().map(|(_, beats)| beats).sum();
        let bytes =
            parts.into_iter().flat_map(|(frames, beats)| [frames, heartbeat().repeat(beats)].concat()).collect();
        (bytes, beats)
    })
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 8, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn any_bytes_pass_untapped(browser in script(any_stream()), app in script(any_stream())) {
        let (at_browser, at_app) = relayed(Sides::None, "/other", &browser, &app);
        prop_assert!(at_app == browser.bytes && at_browser == app.bytes);
    }

    #[test]
    fn any_bytes_without_a_heartbeat_pass_the_tap(browser in script(any_stream()), app in script(any_stream())) {
        let (at_browser, at_app) = relayed(Sides::None, "/_stcore/stream", &browser, &app);
        prop_assert!(at_app == browser.bytes && at_browser == app.bytes);
    }

    #[test]
    fn any_bytes_pass_under_tls_on_either_side(
        browser in script(any_stream()),
        app in script(any_stream()),
        sides in prop::sample::select(&ENCRYPTED[..]),
    ) {
        let (at_browser, at_app) = relayed(sides, "/_stcore/stream", &browser, &app);
        prop_assert!(at_app == browser.bytes && at_browser == app.bytes);
    }

    #[test]
    fn heartbeats_and_acks_are_the_only_difference(
        (bytes, beats) in with_heartbeats(),
        app in script(valid_frames(false)),
        writes in writes(),
        sides in prop::sample::select(&[Sides::None, Sides::None, Sides::Both][..]),
        proof in prop::sample::select(&[Proof::Connection, Proof::Pong][..]),
    ) {
        let browser = Script { bytes, writes };
        let (at_browser, at_app, late) = run(async {
            let [(mut browser_reads, mut browser_writes), (mut app_reads, mut app_writes)] =
                split(sides, "/_stcore/stream", |config| {
                    config.heartbeat.mode = Mode::Answer;
                    config.heartbeat.proof = proof;
                })
                .await;
            let last = (plain(TEXT, LAST), masked(TEXT, LAST));
            let say = async |script: &Script, end: &mut WriteHalf<Any>, last: &[u8]| {
                script.play(end).await;
                end.write_all(last).await.unwrap();
                end.flush().await.unwrap();
            };
            let (at_browser, at_app, (), ()) = tokio::join!(
                read_through(&mut browser_reads, &last.0),
                read_through(&mut app_reads, &last.1),
                say(&browser, &mut browser_writes, &last.1),
                say(&app, &mut app_writes, &last.0),
            );
            for mut end in [browser_writes, app_writes] {
                end.shutdown().await.unwrap();
            }
            let late = tokio::join!(read_all(browser_reads), read_all(app_reads));
            (at_browser, at_app, late)
        });
        let (sent, _beats) = without(&browser.bytes, |frame| frame.payload == HEARTBEAT);
        let (came, pings) = without(&[at_app, late.1].concat(), is_own_ping);
        prop_assert!(came == [sent, masked(TEXT, LAST)].concat());
        let (came, acks) = without(&[at_browser, late.0].concat(), is_own_ack);
        prop_assert!(came == [app.bytes, plain(TEXT, LAST)].concat());
        match proof {
            Proof::Connection => prop_assert!(pings == 0 && (1..=beats).contains(&acks), "{acks} acks, {beats} heartbeats"),
            Proof::Pong => prop_assert!(pings == 1 && acks == 0, "{pings} pings and {acks} acks without a pong"),
        }
    }
}
