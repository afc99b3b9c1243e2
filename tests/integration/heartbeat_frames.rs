//! Heartbeats among other frames: which messages count as one, and where acks and pings are inserted.

use heartbeat_sidecar::heartbeat::Proof;

use crate::support::Session;
use crate::support::frame::{
    BINARY, CLOSE, COMPATIBLE_ACK, HEARTBEAT, PING, PONG, TEXT, header, heartbeat, masked, plain,
};
use crate::support::heartbeat::{NATIVE, SILENT, SOON, session, start};

#[tokio::test]
async fn an_ack_waits_for_the_end_of_a_fragmented_message() {
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
    upstream.send(plain(0x02, "one")).await;
    browser.expect(plain(0x02, "one")).await;
    browser.send(heartbeat()).await;
    let tag = upstream.ping().await;
    let rest = [plain(0x00, "two"), plain(PING, "between"), plain(0x00, ""), plain(0x80, "three")].concat();
    upstream.pong(&tag).await;
    upstream.send([&rest[..], &plain(TEXT, "mark")].concat()).await;
    browser.expect(&rest).await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
    browser.expect_mark().await;
}

#[tokio::test]
async fn an_ack_waits_for_the_end_of_a_large_frame() {
    let (app, sidecar) = start(|config| config.heartbeat.proof = Proof::Connection).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
    let frame = plain(BINARY, vec![0x2a; 300_000]);
    upstream.send(&frame[..100_000]).await;
    browser.expect(&frame[..100_000]).await;
    browser.send([heartbeat(), masked(TEXT, "read")].concat()).await;
    upstream.expect(masked(TEXT, "read")).await;
    upstream.send(&frame[100_000..]).await;
    browser.expect(&frame[100_000..]).await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
}

#[tokio::test]
async fn a_ping_waits_for_the_end_of_the_browsers_frame() {
    let (app, sidecar) = start(|config| config.heartbeat.native_deadline = SOON).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, NATIVE).await;
    let frame = masked(BINARY, vec![7; 10_000]);
    browser.send([&heartbeat()[..], &frame[..5000]].concat()).await;
    upstream.expect(heartbeat()).await;
    upstream.expect(&frame[..5000]).await;
    // The deadline passes in the middle of the frame.
    assert!(upstream.is_silent_for(4 * SOON).await);
    browser.send(&frame[5000..]).await;
    upstream.expect(&frame[5000..]).await;
    upstream.ping().await;
}

#[tokio::test]
async fn nothing_is_sent_after_a_close_frame() {
    for browser_closes in [true, false] {
        let (app, sidecar) = start(|_config| {}).await;
        let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
        browser.send(heartbeat()).await;
        let tag = upstream.ping().await;
        if browser_closes {
            browser.send(masked(CLOSE, 1000u16.to_be_bytes())).await;
            upstream.expect(masked(CLOSE, 1000u16.to_be_bytes())).await;
            upstream.pong(&tag).await;
            upstream.send(plain(CLOSE, 1000u16.to_be_bytes())).await;
        } else {
            upstream.send([plain(CLOSE, 1000u16.to_be_bytes()), plain(PONG, &tag)].concat()).await;
        }
        upstream.finish().await;
        browser.expect(plain(CLOSE, 1000u16.to_be_bytes())).await;
        browser.end().await;
        assert_eq!(sidecar.metric("acks_total", &[]).await, 0.0);
    }
}

#[tokio::test]
async fn messages_that_only_resemble_a_heartbeat_pass_unanswered() {
    let (app, sidecar) = start(|_config| {}).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
    let long = [&HEARTBEAT[..], &[0x6a, 62], &[b'x'; 62]].concat();
    let lookalikes = [
        masked(TEXT, HEARTBEAT),
        masked(BINARY, [0x88, 0x01]),
        masked(BINARY, [0x88, 0x01, 0x01, 0x5a, 0x00]),
        masked(BINARY, [0x8a, 0x01, 0x00]),
        masked(BINARY, ""),
        masked(BINARY, &long),
        [masked(0x02, [0x88, 0x01]), masked(0x80, [0x01])].concat(),
        masked(PING, HEARTBEAT),
        masked(PONG, HEARTBEAT),
    ]
    .concat();
    browser.send(&lookalikes).await;
    upstream.expect(&lookalikes).await;
    upstream.mark().await;
    browser.expect_mark().await;
    assert_eq!(sidecar.metric("heartbeats_total", &[]).await, 0.0);
}

#[tokio::test]
async fn unusual_encodings_of_a_heartbeat_are_answered() {
    let (app, sidecar) = start(|config| config.heartbeat.proof = Proof::Connection).await;
    let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
    let encodings: [&[u8]; 4] = [
        &[0x88, 0x01, 0x00],
        &[0x88, 0x01, 0x81, 0x00],
        &[0x6a, 0x01, b'x', 0x88, 0x01, 0x01],
        &[0x5a, 0x00, 0x88, 0x01, 0x01],
    ];
    for encoding in encodings {
        browser.send(masked(BINARY, encoding)).await;
        assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK), "{encoding:02x?}");
    }
    // A length in more bytes than necessary is accepted too.
    let mut padded = vec![0x82, 0xfe, 0x00, 0x03, 0, 0, 0, 0];
    padded.extend(HEARTBEAT);
    browser.send([padded, masked(TEXT, "after")].concat()).await;
    assert!(browser.frame().await.is(BINARY, COMPATIBLE_ACK));
    upstream.expect(masked(TEXT, "after")).await;
}

#[tokio::test]
async fn a_stream_that_cannot_be_parsed_is_relayed_and_counted() {
    let (app, sidecar) = start(|_config| {}).await;
    for (reason, broken) in [
        ("reserved_bits", masked(0xc2, "x")),
        ("masking", plain(BINARY, "x")),
        ("fragmentation", masked(0x80, "x")),
        ("length", header(BINARY, 1 << 63, true)),
    ] {
        let Session { mut browser, app: mut upstream } = session(&sidecar, &app, SILENT).await;
        let sent = [&broken[..], &heartbeat(), b"any later bytes"].concat();
        browser.send(&sent).await;
        upstream.expect(&sent).await;
        assert_eq!(sidecar.metric("sessions_unparsable_total", &[("reason", reason)]).await, 1.0, "{reason}");
        upstream.mark().await;
        browser.expect_mark().await;
    }
    assert_eq!(sidecar.metric("heartbeats_total", &[]).await, 0.0);
    assert_eq!(sidecar.metric("sessions_unparsable_total", &[]).await, 4.0);
}
