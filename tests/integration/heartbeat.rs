//! Heartbeats over real sockets: which side acks, with which bytes, when, and what is counted.

use heartbeat_sidecar::heartbeat::{Mode, Proof};
use heartbeat_sidecar::streamlit::ack::AckForm;

use crate::support::frame::{BINARY, CLOSE, COMPATIBLE_ACK, PLAIN_ACK, PONG, TEXT, heartbeat, masked, plain};
use crate::support::heartbeat::{NATIVE, SILENT, SOON, session, start};
use crate::support::{App, Session};

#[tokio::test]
async fn a_silent_upstream_is_pinged_and_never_receives_the_heartbeat() {
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
    for round in 1..=3 {
        browser.send([heartbeat(), masked(TEXT, "after")].concat()).await;
        let tag = upstream.ping().await;
        upstream.expect(masked(TEXT, "after")).await;
        upstream.mark().await;
        browser.expect_mark().await;
        upstream.pong(&tag).await;
        upstream.mark().await;
        browser.expect([0x82, 0x05, 0x52, 0x00, 0xd0, 0x01, 0x01]).await;
        browser.expect_mark().await;
        assert_eq!(sidecar.acks("sidecar").await, f64::from(round));
    }
    assert_eq!(sidecar.acks("upstream").await, 0.0);
    assert_eq!(sidecar.metric("heartbeats_total", &[]).await, 3.0);
    assert_eq!(sidecar.metric("proof_rtt_seconds_count", &[]).await, 3.0);
    assert_eq!(sidecar.metric("ack_latency_seconds_count", &[("origin", "sidecar")]).await, 3.0);
    assert_eq!(sidecar.metric("heartbeat_interval_seconds_count", &[]).await, 2.0);
    assert_eq!(sidecar.metric("browser_rtt_seconds_count", &[]).await, 3.0);
    assert_eq!(sidecar.metric("acks_withheld_total", &[]).await, 0.0);
    assert_eq!(sidecar.metric("upstream_acks_natively", &[]).await, 0.0);
}

#[tokio::test]
async fn only_the_pong_for_the_sidecars_ping_releases_the_ack() {
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
    browser.send(heartbeat()).await;
    let tag = upstream.ping().await;
    let mut forged = tag.clone();
    forged[15] ^= 1;
    // Foreign pongs pass; one with our nonce and another count is dropped. None of them is a proof.
    let foreign = [plain(PONG, ""), plain(PONG, "0123456789abcdef"), plain(PONG, "unasked")].concat();
    upstream.send([foreign.clone(), plain(PONG, forged)].concat()).await;
    upstream.mark().await;
    browser.expect(foreign).await;
    browser.expect_mark().await;
    upstream.pong(&tag).await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
    // The same pong again is dropped.
    upstream.pong(&tag).await;
    upstream.mark().await;
    browser.expect_mark().await;
    assert_eq!(sidecar.acks("sidecar").await, 1.0);
}

#[tokio::test]
async fn a_native_upstreams_own_ack_is_the_only_one() {
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, NATIVE).await;
    browser.send(heartbeat()).await;
    upstream.expect(heartbeat()).await;
    upstream.send(plain(BINARY, PLAIN_ACK)).await;
    upstream.mark().await;
    browser.expect(plain(BINARY, PLAIN_ACK)).await;
    browser.expect_mark().await;
    assert_eq!((sidecar.acks("upstream").await, sidecar.acks("sidecar").await), (1.0, 0.0));
    assert_eq!(sidecar.metric("ack_latency_seconds_count", &[("origin", "upstream")]).await, 1.0);
    assert_eq!(sidecar.metric("upstream_acks_natively", &[]).await, 1.0);
    assert_eq!(sidecar.metric("native_acks_missed_total", &[]).await, 0.0);
}

#[tokio::test]
async fn an_unknown_upstream_that_acks_is_learned_as_native() {
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    browser.send(heartbeat()).await;
    upstream.expect(heartbeat()).await;
    assert_eq!(sidecar.metric("upstream_acks_natively", &[]).await, 0.0);
    upstream.send(plain(BINARY, PLAIN_ACK)).await;
    browser.expect(plain(BINARY, PLAIN_ACK)).await;
    assert_eq!(sidecar.metric("upstream_acks_natively", &[]).await, 1.0);
}

#[tokio::test]
async fn an_unknown_upstream_that_does_not_ack_is_learned_as_silent() {
    let (app, sidecar) = start(|config| config.heartbeat.native_deadline = SOON).await;
    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    browser.send(heartbeat()).await;
    upstream.expect(heartbeat()).await;
    let tag = upstream.ping().await;
    upstream.pong(&tag).await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
    assert_eq!(sidecar.metric("native_acks_missed_total", &[]).await, 0.0, "no ack was expected of it");
    browser.send(heartbeat()).await;
    let tag = upstream.ping().await;
    upstream.pong(&tag).await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
    assert_eq!(sidecar.acks("sidecar").await, 2.0);
}

#[tokio::test]
async fn a_lost_native_ack_is_replaced_by_the_sidecars() {
    let (app, sidecar) = start(|config| config.heartbeat.native_deadline = SOON).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, NATIVE).await;
    browser.send(heartbeat()).await;
    upstream.expect(heartbeat()).await;
    let tag = upstream.ping().await;
    upstream.mark().await;
    browser.expect_mark().await;
    upstream.pong(&tag).await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
    assert_eq!(sidecar.metric("native_acks_missed_total", &[]).await, 1.0);
    assert_eq!(sidecar.metric("upstream_acks_natively", &[]).await, 1.0, "one lost ack changes nothing");
    assert_eq!((sidecar.acks("upstream").await, sidecar.acks("sidecar").await), (0.0, 1.0));
    browser.send(heartbeat()).await;
    upstream.expect(heartbeat()).await;
}

#[tokio::test]
async fn mode_answer_removes_heartbeats_even_to_native_upstreams() {
    let (app, sidecar) = start(|config| config.heartbeat.mode = Mode::Answer).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, NATIVE).await;
    browser.send([heartbeat(), masked(TEXT, "after")].concat()).await;
    let tag = upstream.ping().await;
    upstream.expect(masked(TEXT, "after")).await;
    upstream.pong(&tag).await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
}

#[tokio::test]
async fn mode_forward_never_acks() {
    let (app, sidecar) = start(|config| {
        config.heartbeat.mode = Mode::Forward;
        config.heartbeat.native_deadline = SOON;
    })
    .await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
    browser.send(heartbeat()).await;
    upstream.expect(heartbeat()).await;
    sidecar.until("acks_withheld_total", &[("reason", "policy")], 1.0).await;
    upstream.mark().await;
    browser.expect_mark().await;
    browser.send(masked(TEXT, "no ping before this")).await;
    upstream.expect(masked(TEXT, "no ping before this")).await;
    assert_eq!(sidecar.metric("acks_total", &[]).await, 0.0);
}

#[tokio::test]
async fn with_connection_proof_an_open_connection_releases_the_ack() {
    let (app, sidecar) = start(|config| config.heartbeat.proof = Proof::Connection).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
    browser.send(heartbeat()).await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
    browser.send(masked(TEXT, "neither heartbeat nor ping before this")).await;
    upstream.expect(masked(TEXT, "neither heartbeat nor ping before this")).await;
}

#[tokio::test]
async fn the_plain_ack_is_sent_if_configured() {
    let (app, sidecar) = start(|config| config.heartbeat.ack = AckForm::Plain).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
    browser.send(heartbeat()).await;
    let tag = upstream.ping().await;
    upstream.pong(&tag).await;
    browser.expect([0x82, 0x03, 0xd0, 0x01, 0x01]).await;
}

#[tokio::test]
async fn a_learned_version_applies_to_later_connections_of_the_upstream() {
    let (app, sidecar) = start(|_config| {}).await;
    let _first = session(&sidecar, &app, SILENT).await;
    // A quick reconnect gets no new_session.
    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    browser.send(heartbeat()).await;
    let tag = upstream.ping().await;
    upstream.pong(&tag).await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
}

#[tokio::test]
async fn a_new_version_at_the_same_address_replaces_the_learned_one() {
    let (app, sidecar) = start(|_config| {}).await;
    let _old = session(&sidecar, &app, SILENT).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, NATIVE).await;
    browser.send(heartbeat()).await;
    upstream.expect(heartbeat()).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
    browser.send(heartbeat()).await;
    upstream.ping().await;
}

#[tokio::test]
async fn the_learned_version_is_forgotten_when_the_upstream_vanishes() {
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: upstream } = session(&sidecar, &app, SILENT).await;
    drop(upstream);
    browser.end().await;
    drop(browser);
    sidecar.until("sessions", &[], 0.0).await;
    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    browser.send(heartbeat()).await;
    upstream.expect(heartbeat()).await;
}

#[tokio::test]
async fn the_learned_version_is_forgotten_when_the_upstream_refuses_connections() {
    let (app, sidecar) = start(|_config| {}).await;
    // It stays open, so only the refusal can be the cause.
    let _old = session(&sidecar, &app, SILENT).await;
    let address = app.address();
    drop(app);
    let mut browser = sidecar.connect().await;
    browser.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    assert!(browser.head().await.starts_with("HTTP/1.1 502 "));
    let app = App::bind_at(address).await;
    let Session { mut browser, app: mut upstream } = sidecar.stream(&app).await;
    browser.send(heartbeat()).await;
    upstream.expect(heartbeat()).await;
}

#[tokio::test]
async fn heartbeats_while_a_ping_is_outstanding_share_the_next_one() {
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
    browser.send(heartbeat()).await;
    let first = upstream.ping().await;
    browser.send([heartbeat(), heartbeat(), masked(TEXT, "after")].concat()).await;
    upstream.expect(masked(TEXT, "after")).await;
    upstream.pong(&first).await;
    let second = upstream.ping().await;
    upstream.mark().await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
    browser.expect_mark().await;
    upstream.pong(&second).await;
    upstream.mark().await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
    browser.expect_mark().await;
}

#[tokio::test]
async fn a_heartbeat_to_a_frozen_upstream_is_not_acked_and_counted_once() {
    let (app, sidecar) = start(|config| config.heartbeat.stall_after = SOON).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
    browser.send(heartbeat()).await;
    let tag = upstream.ping().await;
    sidecar.until("acks_withheld_total", &[("reason", "upstream_stalled")], 1.0).await;
    upstream.mark().await;
    browser.expect_mark().await;
    assert_eq!(sidecar.metric("acks_total", &[]).await, 0.0);
    // The app continues: the ack is late, as its own would be.
    upstream.pong(&tag).await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
    assert_eq!(sidecar.metric("acks_withheld_total", &[]).await, 1.0);
}

#[tokio::test]
async fn an_ack_withheld_because_the_upstream_closed_is_counted() {
    let (app, sidecar) = start(|_config| {}).await;
    let closed = [("reason", "upstream_closed")];
    for (count, how) in [(1.0, "close frame"), (2.0, "end"), (3.0, "reset")] {
        let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
        browser.send(heartbeat()).await;
        upstream.ping().await;
        match how {
            "close frame" => upstream.send(plain(CLOSE, 1001u16.to_be_bytes())).await,
            "end" => drop(upstream),
            _ => upstream.reset(),
        }
        sidecar.until("acks_withheld_total", &closed, count).await;
    }
    assert_eq!(sidecar.metric("acks_total", &[]).await, 0.0);
    assert_eq!(sidecar.metric("acks_withheld_total", &[]).await, 3.0);
}

#[tokio::test]
async fn a_flood_of_heartbeats_causes_one_ping_at_a_time_and_few_acks() {
    const FLOOD: usize = 20_000;
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
    browser.send(heartbeat().repeat(FLOOD)).await;
    browser.send(masked(TEXT, "after the flood")).await;
    let mut tag = upstream.ping().await;
    upstream.expect(masked(TEXT, "after the flood")).await;
    assert_eq!(sidecar.metric("heartbeats_total", &[]).await, FLOOD as f64);
    assert_eq!(sidecar.metric("acks_total", &[]).await, 0.0);
    // Samples stay in memory until they are folded, so a flood may add few.
    for histogram in ["heartbeat_interval_seconds_count", "browser_rtt_seconds_count"] {
        let samples = sidecar.metric(histogram, &[]).await;
        assert!(samples < FLOOD as f64 / 20.0, "{histogram}: {samples}");
    }
    upstream.pong(&tag).await;
    tag = upstream.ping().await;
    upstream.pong(&tag).await;
    upstream.mark().await;
    let mut acks = 0;
    while browser.frame().await.is(BINARY, COMPATIBLE_ACK) {
        acks += 1;
    }
    assert!((2..=16).contains(&acks), "{acks} acks for the heartbeats during one ping");
    assert_eq!(sidecar.acks("sidecar").await, f64::from(acks));
    // Later heartbeats are acked as usual.
    browser.send(heartbeat()).await;
    tag = upstream.ping().await;
    upstream.pong(&tag).await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
}
