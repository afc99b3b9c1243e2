//! Large messages, which are read in growing pieces: bytes, boundaries and ends stay unchanged.

use heartbeat_sidecar::heartbeat::{Mode, Proof};
use tokio::io::AsyncWriteExt as _;

use crate::support::frame::{BINARY, COMPATIBLE_ACK, TEXT, header, heartbeat, masked, plain};
use crate::support::{App, Session, Sidecar, pattern, soon};

const MIB: usize = 1 << 20;

/// A session whose heartbeats are acked at once.
async fn answering() -> (Sidecar, Session) {
    let app = App::bind().await;
    let mut config = app.config();
    config.heartbeat.mode = Mode::Answer;
    config.heartbeat.proof = Proof::Connection;
    let sidecar = Sidecar::start(config).await;
    let session = sidecar.stream(&app).await;
    (sidecar, session)
}

#[tokio::test]
async fn large_messages_pass_in_both_directions_at_once_byte_for_byte() {
    let (_sidecar, Session { browser, app }) = answering().await;
    let sizes = [8 * MIB + 7, 1, 3 * MIB, 100, 5 * MIB - 1];
    let down: Vec<u8> = sizes.iter().flat_map(|&size| plain(BINARY, pattern(size))).collect();
    let up: Vec<u8> = sizes.iter().rev().flat_map(|&size| masked(BINARY, pattern(size))).collect();
    let ((mut browser_reads, mut browser_writes), (mut app_reads, mut app_writes)) =
        (browser.stream.into_split(), app.stream.into_split());
    let (at_browser, at_app, ..) = soon(async {
        let read = async |end: &mut tokio::net::tcp::OwnedReadHalf, length: usize| {
            let mut came = vec![0; length];
            tokio::io::AsyncReadExt::read_exact(end, &mut came).await.unwrap();
            came
        };
        tokio::join!(
            read(&mut browser_reads, down.len()),
            read(&mut app_reads, up.len()),
            async { app_writes.write_all(&down).await.unwrap() },
            async { browser_writes.write_all(&up).await.unwrap() },
        )
    })
    .await;
    assert!(at_browser == down && at_app == up);
}

#[tokio::test]
async fn an_ack_comes_after_the_current_large_message_and_before_the_next_one() {
    let (_sidecar, Session { mut browser, app: mut upstream }) = answering().await;
    let message = plain(BINARY, pattern(6 * MIB));
    let (first, rest) = message.split_at(4 * MIB);
    let (sent, ()) = tokio::join!(browser.exactly(first.len()), upstream.send(first));
    assert!(sent == first);
    browser.send([heartbeat(), masked(TEXT, "seen")].concat()).await;
    upstream.expect(masked(TEXT, "seen")).await;
    // The heartbeat is processed; the rest of the message and the next one may arrive in one read.
    let next = plain(BINARY, pattern(2 * MIB));
    let all = [rest, &plain(BINARY, COMPATIBLE_ACK), &next].concat();
    let both = [rest, &next].concat();
    let (came, ()) = tokio::join!(browser.exactly(all.len()), upstream.send(&both));
    assert!(came == all);
}

#[tokio::test]
async fn eof_inside_a_large_message_arrives_after_all_of_its_bytes() {
    let (_sidecar, Session { mut browser, app: mut upstream }) = answering().await;
    let part = [header(BINARY, 64 * MIB as u64, false), pattern(9 * MIB)].concat();
    let (rest, ()) = tokio::join!(browser.rest(), async {
        upstream.send(&part).await;
        upstream.finish().await;
    });
    assert!(rest.unwrap() == part);
    browser.send(masked(TEXT, "the other way is open")).await;
    upstream.expect(masked(TEXT, "the other way is open")).await;
}

#[tokio::test]
async fn a_reset_inside_a_large_message_reaches_its_reader() {
    let (sidecar, Session { mut browser, app: mut upstream }) = answering().await;
    let part = [header(BINARY, 64 * MIB as u64, false), pattern(9 * MIB)].concat();
    let (came, ()) = tokio::join!(browser.exactly(part.len()), upstream.send(&part));
    assert!(came == part);
    upstream.reset();
    let error = browser.rest().await.expect_err("a reset, not an end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    sidecar.until("sessions", &[], 0.0).await;
}

#[tokio::test]
async fn a_drain_sends_its_close_frame_at_the_end_of_a_large_message() {
    let (mut sidecar, Session { mut browser, app: mut upstream }) = answering().await;
    let message = plain(BINARY, pattern(5 * MIB));
    let (first, rest) = message.split_at(2 * MIB);
    let (came, ()) = tokio::join!(browser.exactly(first.len()), upstream.send(first));
    assert!(came == first);
    sidecar.stop();
    sidecar.until("draining", &[], 1.0).await;
    let goodbye = [rest, &[0x88, 2, 3, 0xe9]].concat();
    let (came, ()) = tokio::join!(browser.exactly(goodbye.len()), upstream.send(rest));
    assert!(came == goodbye);
}
