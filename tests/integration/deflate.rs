//! Sessions with permessage-deflate (RFC 7692): their heartbeats pass to the app, and are answered too.

use std::time::Duration;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use heartbeat_sidecar::config::Config;
use heartbeat_sidecar::heartbeat::{Mode, Proof};

use crate::support::frame::{
    BINARY, CLOSE, COMPATIBLE_ACK, Frame, HEARTBEAT, PING, PLAIN_ACK, PONG, SESSION_ID, TEXT, heartbeat, masked,
    new_session, plain,
};
use crate::support::{App, Session, Sidecar, Wire, handshake};

const STREAM: &str = "/_stcore/stream";
const NEGOTIATED: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
/// A binary message with RSV1 set: it is compressed.
const COMPRESSED: u8 = 0xc2;
const SOON: Duration = Duration::from_millis(50);

/// An endpoint's two contexts, by zlib-rs.
struct Contexts {
    compress: Compress,
    decompress: Decompress,
}

impl Contexts {
    fn new() -> Self {
        Self { compress: Compress::new(Compression::default(), false), decompress: Decompress::new(false) }
    }

    /// The payload of a compressed message (RFC 7692 §7.2.1).
    fn deflate(&mut self, message: &[u8]) -> Vec<u8> {
        let mut payload = Vec::with_capacity(message.len() + 1024);
        self.compress.compress_vec(message, &mut payload, FlushCompress::Sync).unwrap();
        assert_eq!(payload.split_off(payload.len() - 4), [0x00, 0x00, 0xff, 0xff]);
        payload
    }

    /// The content of a compressed message (RFC 7692 §7.2.2).
    fn inflate(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut message = Vec::with_capacity(1 << 20);
        let payload = [payload, &[0x00, 0x00, 0xff, 0xff]].concat();
        self.decompress.decompress_vec(&payload, &mut message, FlushDecompress::Sync).unwrap();
        message
    }
}

async fn start(settings: impl FnOnce(&mut Config)) -> (App, Sidecar) {
    let app = App::bind().await;
    let mut config = app.config();
    config.heartbeat.native_deadline = SOON;
    config.heartbeat.stall_after = Duration::from_secs(600);
    settings(&mut config);
    let sidecar = Sidecar::start(config).await;
    (app, sidecar)
}

async fn compressed(sidecar: &Sidecar, app: &App) -> Session {
    sidecar.open_with(app, STREAM, NEGOTIATED).await
}

/// Expects a ping from the sidecar; returns its pong.
async fn pong(upstream: &mut Wire) -> Vec<u8> {
    let Frame { first, masked, payload } = upstream.frame().await;
    assert_eq!((first, masked, payload.len()), (PING, true, 16), "{payload:02x?}");
    plain(PONG, payload)
}

/// Answers the ping for a heartbeat and expects its ack.
async fn prove(browser: &mut Wire, upstream: &mut Wire) {
    let pong = pong(upstream).await;
    upstream.send(pong).await;
    browser.expect(plain(BINARY, COMPATIBLE_ACK)).await;
}

/// The message of a version's first script run, compressed.
fn compressed_new_session(contexts: &mut Contexts, version: &str) -> Vec<u8> {
    let (frame, _length) = Frame::parse(&new_session(version)).unwrap();
    plain(COMPRESSED, contexts.deflate(&frame.payload))
}

#[tokio::test]
async fn a_compressed_heartbeat_passes_and_is_answered_after_a_proof() {
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: mut upstream } = compressed(&sidecar, &app).await;
    let mut contexts = Contexts::new();
    for round in 1..=5 {
        // From the second round on it refers back to the first; `after` refers back to it.
        let heartbeat = masked(COMPRESSED, contexts.deflate(&HEARTBEAT));
        let after = masked(COMPRESSED, contexts.deflate(&[&[0x5a, 0x02][..], &HEARTBEAT[..2]].concat()));
        browser.send([&heartbeat[..], &after].concat()).await;
        upstream.expect(heartbeat).await;
        let pong = pong(&mut upstream).await;
        upstream.expect(after).await;
        upstream.send(plain(TEXT, "nothing before this")).await;
        browser.expect(plain(TEXT, "nothing before this")).await;
        upstream.send(pong).await;
        browser.expect(plain(BINARY, COMPATIBLE_ACK)).await;
        assert_eq!(sidecar.metric("acks_total", &[("origin", "sidecar")]).await, f64::from(round));
    }
    assert_eq!(sidecar.metric("heartbeats_total", &[]).await, 5.0);
    assert_eq!(sidecar.metric("messages_total", &[("type", "app_heartbeat")]).await, 5.0);
    assert_eq!(sidecar.metric("messages_total", &[("type", "rerun_script")]).await, 5.0);
    assert_eq!(sidecar.metric("ack_latency_seconds_count", &[("origin", "sidecar")]).await, 5.0);
    assert_eq!(sidecar.metric("sessions_unparsable_total", &[]).await, 0.0);
    assert_eq!(sidecar.metric("native_acks_missed_total", &[]).await, 0.0);
}

#[tokio::test]
async fn both_ends_can_decompress_every_message_while_acks_and_pings_are_inserted() {
    const ROUNDS: usize = 60;
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: mut upstream } = compressed(&sidecar, &app).await;
    let (mut page, mut server) = (Contexts::new(), Contexts::new());
    let (mut acks, mut pings) = (0, 0);
    for round in 0..ROUNDS {
        let said = format!("{round} and what all messages have in common").repeat(1 + round % 7);
        let payload = page.deflate(said.as_bytes());
        let (front, rest) = payload.split_at(payload.len() / 2);
        let pieces = [masked(0x41, front), masked(PING, "between"), masked(0x80, rest)].concat();
        browser.send([pieces, masked(COMPRESSED, page.deflate(&HEARTBEAT))].concat()).await;
        upstream.send(plain(COMPRESSED, server.deflate(said.as_bytes()))).await;
        let (mut heard, mut message) = (Vec::new(), Vec::new());
        while heard.len() < 2 {
            let frame = upstream.frame().await;
            match frame.first {
                PING if frame.payload == b"between" => {}
                PING => {
                    pings += 1;
                    upstream.send(plain(PONG, frame.payload)).await;
                }
                first => {
                    message.extend(frame.payload);
                    if first & 0x80 != 0 {
                        heard.push(server.inflate(&std::mem::take(&mut message)));
                    }
                }
            }
        }
        assert_eq!(heard, [said.as_bytes(), &HEARTBEAT]);
        let mut came = browser.frame().await;
        while came.is(BINARY, COMPATIBLE_ACK) {
            acks += 1;
            came = browser.frame().await;
        }
        assert_eq!((came.first, page.inflate(&came.payload)), (COMPRESSED, said.into_bytes()));
    }
    while acks < ROUNDS {
        if pings < ROUNDS && acks == pings {
            let pong = pong(&mut upstream).await;
            upstream.send(pong).await;
            pings += 1;
        }
        assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
        acks += 1;
    }
    assert_eq!(sidecar.metric("acks_total", &[("origin", "sidecar")]).await, ROUNDS as f64);
}

#[tokio::test]
async fn no_ack_is_sent_for_an_upstream_that_does_not_pong() {
    let (app, sidecar) = start(|config| config.heartbeat.stall_after = SOON).await;
    let Session { mut browser, app: mut upstream } = compressed(&sidecar, &app).await;
    browser.send(masked(COMPRESSED, Contexts::new().deflate(&HEARTBEAT))).await;
    sidecar.until("acks_withheld_total", &[("reason", "upstream_stalled")], 1.0).await;
    upstream.send(plain(TEXT, "nothing before this")).await;
    browser.expect(plain(TEXT, "nothing before this")).await;
    assert_eq!(sidecar.metric("acks_total", &[]).await, 0.0);
}

#[tokio::test]
async fn an_upstream_whose_compressed_acks_cannot_be_read_stays_native() {
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: mut upstream } = compressed(&sidecar, &app).await;
    let (mut page, mut server) = (Contexts::new(), Contexts::new());
    let named = compressed_new_session(&mut server, "1.67.0");
    upstream.send(&named).await;
    browser.expect(&named).await;
    assert_eq!(sidecar.metric("upstream_acks_natively", &[]).await, 1.0);
    for _round in 0..5 {
        let heartbeat = masked(COMPRESSED, page.deflate(&HEARTBEAT));
        browser.send(&heartbeat).await;
        upstream.expect(&heartbeat).await;
        let ack = plain(COMPRESSED, server.deflate(&PLAIN_ACK));
        upstream.send(&ack).await;
        browser.expect(&ack).await;
        prove(&mut browser, &mut upstream).await;
    }
    assert_eq!(sidecar.metric("upstream_acks_natively", &[]).await, 1.0);
    assert_eq!(sidecar.metric("native_acks_missed_total", &[]).await, 0.0);
    // In an uncompressed session of the same upstream, only the upstream acks.
    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    browser.send(heartbeat()).await;
    upstream.expect(heartbeat()).await;
    upstream.send(plain(BINARY, PLAIN_ACK)).await;
    browser.expect(plain(BINARY, PLAIN_ACK)).await;
    assert_eq!(sidecar.metric("acks_total", &[("origin", "upstream")]).await, 1.0);
}

#[tokio::test]
async fn a_version_from_a_compressed_message_applies_to_every_session() {
    let (app, sidecar) = start(|_config| {}).await;
    let mut session = compressed(&sidecar, &app).await;
    let named = compressed_new_session(&mut Contexts::new(), "1.53.1");
    session.app.send(&named).await;
    session.browser.expect(&named).await;
    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    browser.send(heartbeat()).await;
    prove(&mut browser, &mut upstream).await;
}

#[tokio::test]
async fn a_session_whose_id_was_compressed_can_be_taken_over() {
    let (app, sidecar) = start(|_config| {}).await;
    let mut old = compressed(&sidecar, &app).await;
    let named = compressed_new_session(&mut Contexts::new(), "1.53.1");
    old.app.send(&named).await;
    old.browser.expect(&named).await;
    let mut browser = sidecar.connect().await;
    browser.send(handshake(STREAM, &format!("Sec-WebSocket-Protocol: streamlit, xsrf, {SESSION_ID}\r\n"))).await;
    assert!(old.app.frame().await.is(CLOSE, 1001u16.to_be_bytes()));
}

#[tokio::test]
async fn an_uncompressed_heartbeat_in_a_compressed_session_is_answered() {
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: mut upstream } = compressed(&sidecar, &app).await;
    let mut contexts = Contexts::new();
    for heartbeat in [heartbeat(), masked(COMPRESSED, contexts.deflate(&HEARTBEAT)), heartbeat()] {
        browser.send(&heartbeat).await;
        upstream.expect(&heartbeat).await;
        prove(&mut browser, &mut upstream).await;
    }
}

#[tokio::test]
async fn negotiated_context_and_window_parameters_are_used() {
    let (app, sidecar) = start(|_config| {}).await;
    let parameters = "client_no_context_takeover; client_max_window_bits=9; server_max_window_bits=\"10\"";
    let lines = format!("Sec-WebSocket-Extensions: permessage-deflate; {parameters}\r\n");
    let Session { mut browser, app: mut upstream } = sidecar.open_with(&app, STREAM, &lines).await;
    for _round in 0..3 {
        let mut contexts = Contexts::new();
        contexts.compress = Compress::new_with_window_bits(Compression::default(), false, 9);
        let heartbeat = masked(COMPRESSED, contexts.deflate(&HEARTBEAT));
        browser.send(&heartbeat).await;
        upstream.expect(&heartbeat).await;
        prove(&mut browser, &mut upstream).await;
    }
}

#[tokio::test]
async fn forward_mode_and_connection_proof_work_in_compressed_sessions() {
    let heartbeat = masked(COMPRESSED, Contexts::new().deflate(&HEARTBEAT));
    let (app, sidecar) = start(|config| config.heartbeat.mode = Mode::Forward).await;
    let Session { mut browser, app: mut upstream } = compressed(&sidecar, &app).await;
    browser.send([&heartbeat[..], &masked(TEXT, "no ping before this")].concat()).await;
    upstream.expect([&heartbeat[..], &masked(TEXT, "no ping before this")].concat()).await;
    assert_eq!(sidecar.metric("heartbeats_total", &[]).await, 1.0);
    assert_eq!(sidecar.metric("acks_withheld_total", &[]).await, 0.0, "its own ack cannot be read");
    let (app, sidecar) = start(|config| config.heartbeat.proof = Proof::Connection).await;
    let Session { mut browser, app: mut upstream } = compressed(&sidecar, &app).await;
    browser.send(&heartbeat).await;
    upstream.expect(&heartbeat).await;
    browser.expect(plain(BINARY, COMPATIBLE_ACK)).await;
}

#[tokio::test]
async fn a_decompression_bomb_passes_and_disables_acks_only_in_its_own_session() {
    const SIZE: usize = 1 << 20;
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: mut upstream } = compressed(&sidecar, &app).await;
    let mut contexts = Contexts::new();
    let zeros = contexts.deflate(&[0; SIZE]);
    assert!(zeros.len() < SIZE / 900, "{}", zeros.len());
    let bomb = masked(COMPRESSED, &zeros).repeat(128);
    let sent = [bomb, masked(COMPRESSED, contexts.deflate(&HEARTBEAT)), masked(TEXT, "no ping before this")].concat();
    browser.send(&sent).await;
    upstream.expect(&sent).await;
    assert_eq!(sidecar.metric("sessions_unparsable_total", &[("reason", "compression")]).await, 1.0);
    assert_eq!(sidecar.metric("heartbeats_total", &[]).await, 0.0);
    upstream.send(plain(TEXT, "it flows")).await;
    browser.expect(plain(TEXT, "it flows")).await;
    let Session { mut browser, app: mut upstream } = compressed(&sidecar, &app).await;
    let heartbeat = masked(COMPRESSED, Contexts::new().deflate(&HEARTBEAT));
    browser.send(&heartbeat).await;
    upstream.expect(&heartbeat).await;
    prove(&mut browser, &mut upstream).await;
}
