//! TLS on either side: sessions and requests pass as without it; a broken record or handshake ends only its connection.

use std::time::Duration;

use heartbeat_sidecar::heartbeat::{Mode, Proof};
use rustls::ALL_VERSIONS;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::frame::{BINARY, CLOSE, COMPATIBLE_ACK, PING, PONG, TEXT, header, heartbeat, masked, plain};
use crate::support::tls::{ENCRYPTED, Pki, REQUEST, Session, Sides};
use crate::support::{App, Sidecar, Wire, handshake, pattern, soon};

const MIB: usize = 1 << 20;
const STREAM: &str = "/_stcore/stream";
/// Short to keep tests fast; nothing fails if it takes longer.
const SHORT: Duration = Duration::from_millis(300);

async fn session(pki: &Pki, sides: Sides) -> (Sidecar, Session) {
    pki.session(sides, ALL_VERSIONS, STREAM, |config| config.heartbeat.mode = Mode::Answer).await
}

/// An app, and a sidecar in front of it with TLS for browsers.
async fn listener(pki: &Pki) -> (App, Sidecar) {
    let app = App::bind().await;
    let mut config = app.config();
    pki.configure(Sides::Browser, &mut config);
    let sidecar = Sidecar::start(config).await;
    (app, sidecar)
}

#[tokio::test]
async fn large_messages_pass_in_both_directions_at_once_byte_for_byte() {
    for sides in ENCRYPTED {
        for version in [&TLS12, &TLS13] {
            let pki = Pki::new();
            let (_sidecar, Session { browser, app }) = pki.session(sides, &[version], STREAM, |_config| {}).await;
            let sizes = [4 * MIB + 7, 1, 3 * MIB, 100, 16 * 1024, 2 * MIB - 1];
            let down: Vec<u8> = sizes.iter().flat_map(|&size| plain(BINARY, pattern(size))).collect();
            let up: Vec<u8> = sizes.iter().rev().flat_map(|&size| masked(BINARY, pattern(size))).collect();
            let [(mut browser_reads, mut browser_writes), (mut app_reads, mut app_writes)] =
                [browser.stream, app.stream].map(tokio::io::split);
            let (mut at_browser, mut at_app) = (vec![0; down.len()], vec![0; up.len()]);
            let all = soon(async {
                tokio::join!(
                    browser_reads.read_exact(&mut at_browser),
                    app_reads.read_exact(&mut at_app),
                    async { app_writes.write_all(&down).await.and(app_writes.flush().await) },
                    async { browser_writes.write_all(&up).await.and(browser_writes.flush().await) },
                )
            });
            let (down_read, up_read, down_written, up_written) = all.await;
            assert!(down_read.is_ok() && up_read.is_ok() && down_written.is_ok() && up_written.is_ok());
            assert!(at_browser == down && at_app == up, "{sides:?}");
        }
    }
}

#[tokio::test]
async fn a_heartbeat_is_acked_after_a_pong_and_not_before() {
    for sides in ENCRYPTED {
        let (sidecar, mut session) = session(&Pki::new(), sides).await;
        session.browser.send(heartbeat()).await;
        let ping = session.app.frame().await;
        assert_eq!(ping.first, PING);
        assert_eq!(sidecar.metric("acks_total", &[]).await, 0.0);
        session.app.send(plain(PONG, &ping.payload)).await;
        session.browser.expect(plain(BINARY, COMPATIBLE_ACK)).await;
        assert_eq!(sidecar.metric("acks_total", &[("origin", "sidecar")]).await, 1.0);
    }
}

#[tokio::test]
async fn a_slow_reader_blocks_the_sender_and_receives_everything() {
    for sides in ENCRYPTED {
        let (sidecar, mut session) = session(&Pki::new(), sides).await;
        let message = [header(BINARY, 48 * MIB as u64, false), pattern(48 * MIB)].concat();
        let (mut app, length) = (session.app, message.len());
        let mut sent = tokio::spawn(async move {
            app.stream.write_all(&message).await.unwrap();
            app.stream.flush().await.unwrap();
            (app, message)
        });
        sidecar.until("write_stalls_total", &[("direction", "upstream_to_browser")], 1.0).await;
        // No event shows that a write never ends.
        assert!(tokio::time::timeout(SHORT, &mut sent).await.is_err(), "{sides:?}: all 48 MiB written");
        let received = session.browser.exactly(length).await;
        let (mut app, message) = sent.await.unwrap();
        assert!(received == message, "{sides:?}");
        session.browser.send(masked(TEXT, "still there")).await;
        app.expect(masked(TEXT, "still there")).await;
    }
}

#[tokio::test]
async fn a_browser_that_reads_nothing_is_disconnected() {
    for sides in ENCRYPTED {
        let short_timeout = |config: &mut heartbeat_sidecar::config::Config| {
            config.session.write_stall_timeout = SHORT;
        };
        let (sidecar, mut session) = Pki::new().session(sides, ALL_VERSIONS, STREAM, short_timeout).await;
        let more_than_sockets_hold = [header(BINARY, 1 << 40, false), vec![0; 32 * MIB]].concat();
        let refused = soon(session.app.stream.write_all(&more_than_sockets_hold)).await;
        assert!(refused.is_err(), "the app's side is reset");
        sidecar.until("sessions", &[], 0.0).await;
        assert_eq!(sidecar.metric("peers_lost_total", &[("reason", "browser_stalled")]).await, 1.0);
    }
}

#[tokio::test]
async fn a_half_closed_session_goes_on_in_the_other_direction() {
    for sides in ENCRYPTED {
        for version in [&TLS12, &TLS13] {
            let (_sidecar, mut session) = Pki::new().session(sides, &[version], STREAM, |_config| {}).await;
            session.browser.send(masked(TEXT, "the last words")).await;
            session.browser.finish().await;
            session.app.expect(masked(TEXT, "the last words")).await;
            session.app.end().await;
            let large = plain(BINARY, pattern(3 * MIB));
            let (received, ()) = tokio::join!(session.browser.exactly(large.len()), session.app.send(&large));
            assert!(received == large, "{sides:?}");
            session.app.finish().await;
            session.browser.end().await;
        }
    }
}

#[tokio::test]
async fn eof_without_close_notify_is_an_end_and_loses_nothing() {
    let pki = Pki::new();
    let (app, sidecar) = listener(&pki).await;
    let mut browser = pki.connect(sidecar.address).await;
    browser.send(handshake(STREAM, "")).await;
    let (_head, mut upstream) = app.shake_hands("").await;
    browser.head().await;
    browser.send(masked(TEXT, "the last words")).await;
    browser.stream.get_mut().0.shutdown().await.unwrap();
    upstream.expect(masked(TEXT, "the last words")).await;
    upstream.end().await;
}

#[tokio::test]
async fn eof_inside_a_tls_record_resets_the_other_side() {
    let pki = Pki::new();
    let (app, sidecar) = listener(&pki).await;
    let mut browser = pki.connect(sidecar.address).await;
    browser.send(handshake(STREAM, "")).await;
    let (_head, mut upstream) = app.shake_hands("").await;
    browser.head().await;
    browser.send(masked(TEXT, "whole")).await;
    let socket = &mut browser.stream.get_mut().0;
    socket.write_all(&[23, 3, 3, 1, 0, 1, 2, 3]).await.unwrap();
    socket.shutdown().await.unwrap();
    upstream.expect(masked(TEXT, "whole")).await;
    assert!(upstream.rest().await.is_err(), "a reset, not an end");
    sidecar.until("sessions", &[], 0.0).await;
}

#[tokio::test]
async fn a_forged_tls_record_resets_the_session_after_the_data_before_it() {
    for version in [&TLS12, &TLS13] {
        let pki = Pki::new();
        let (app, sidecar) = listener(&pki).await;
        let mut browser = Wire::new(pki.secure(sidecar.connect().await.stream, &[version]).await);
        browser.send(handshake(STREAM, "")).await;
        let (_head, mut upstream) = app.shake_hands("").await;
        browser.head().await;
        browser.send(masked(TEXT, "true")).await;
        let socket = &mut browser.stream.get_mut().0;
        socket.write_all(&[&[23, 3, 3, 0, 40][..], &[7; 40]].concat().repeat(3)).await.unwrap();
        upstream.expect(masked(TEXT, "true")).await;
        assert!(upstream.rest().await.is_err(), "a reset, not an end");
        sidecar.until("sessions", &[], 0.0).await;
    }
}

#[tokio::test]
async fn a_corrupt_client_hello_does_not_affect_other_connections() {
    let pki = Pki::new();
    let (app, sidecar) = listener(&pki).await;
    let mut client = rustls::ClientConnection::new(
        std::sync::Arc::new(pki.client(ALL_VERSIONS, false)),
        "app.test".try_into().unwrap(),
    )
    .unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    for at in 0..hello.len() {
        let mut wrong = hello.clone();
        wrong[at] ^= 1 << (at % 8);
        let mut client = sidecar.connect().await;
        client.send([&wrong[..], &wrong, &[21, 3, 3, 0, 2, 2, 40, 23, 3, 3, 0, 1, 0]].concat()).await;
        client.finish().await;
        let _answer_or_reset = client.rest().await;
    }
    assert!(hello.len() > 100);
    // A handshake that panicked would not be counted.
    sidecar.until("rejections_total", &[("reason", "tls")], hello.len() as f64).await;
    assert!(pki.ask(&app, &sidecar).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_reset_reaches_the_other_side() {
    let pki = Pki::new();
    let (app, sidecar) = listener(&pki).await;
    let mut browser = pki.connect(sidecar.address).await;
    browser.send(handshake(STREAM, "")).await;
    let (_head, upstream) = app.shake_hands("").await;
    browser.head().await;
    upstream.reset();
    let error = browser.rest().await.expect_err("a reset, not an end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    sidecar.until("sessions", &[], 0.0).await;
}

#[tokio::test]
async fn a_drain_sends_close_frames_and_close_notify() {
    let (mut sidecar, mut session) = session(&Pki::new(), Sides::Both).await;
    sidecar.stop();
    session.browser.expect(plain(CLOSE, [3, 0xe9])).await;
    session.browser.send(masked(CLOSE, [3, 0xe9])).await;
    let close = session.app.frame().await;
    assert!(close.is(CLOSE, [3, 0xe9]), "{close:?}");
    session.app.send(plain(CLOSE, [3, 0xe9])).await;
    session.app.end().await;
    session.browser.end().await;
    sidecar.stopped().await;
}

#[tokio::test]
async fn http_requests_pass_and_x_forwarded_proto_names_the_scheme() {
    for sides in ENCRYPTED {
        let (pki, app) = (Pki::new(), App::bind().await);
        let mut config = app.config();
        pki.configure(sides, &mut config);
        let sidecar = Sidecar::start(config).await;
        let encrypted = sides != Sides::Upstream;
        let body = pattern(300_000);
        let mut head =
            format!("POST /x HTTP/1.1\r\nHost: app.test\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        head.extend(&body);
        let answer = [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
        let serve = async {
            let mut head = String::new();
            for _request in 0..2 {
                let mut upstream: Wire<crate::support::tls::Any> = match sides {
                    Sides::Browser => Wire::new(Box::new(app.accept().await.stream)),
                    _ => Wire::new(Box::new(pki.accept(&app).await.stream)),
                };
                head = upstream.head().await;
                assert!(upstream.exactly(body.len()).await == body);
                upstream.send(&answer).await;
            }
            head
        };
        let browse = async {
            let mut browser: Wire<crate::support::tls::Any> = match encrypted {
                true => Wire::new(Box::new(pki.connect(sidecar.address).await.stream)),
                false => Wire::new(Box::new(sidecar.connect().await.stream)),
            };
            for _request in 0..2 {
                browser.send(&head).await;
                assert!(browser.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
                assert!(browser.exactly(body.len()).await == body);
            }
        };
        let (head, ()) = tokio::join!(serve, browse);
        let scheme = if encrypted { "https" } else { "http" };
        assert!(head.to_lowercase().contains(&format!("x-forwarded-proto: {scheme}\r\n")), "{head}");
    }
}

#[tokio::test]
async fn plain_http_on_the_tls_port_gets_400_and_is_counted() {
    let (_app, sidecar) = listener(&Pki::new()).await;
    let mut browser = sidecar.connect().await;
    browser.send(REQUEST).await;
    assert!(browser.head().await.starts_with("HTTP/1.1 400 "));
    assert!(browser.rest().await.unwrap().starts_with(b"400 Bad Request: this port speaks HTTPS"));
    sidecar.until("rejections_total", &[("reason", "tls")], 1.0).await;
    let mut client = sidecar.connect().await;
    client.send([22, 3, 1, 0, 5, 1, 0, 0, 1, 0]).await;
    // A TLS alert.
    assert_eq!(client.rest().await.unwrap()[..2], [21, 3]);
    sidecar.until("rejections_total", &[("reason", "tls")], 2.0).await;
    drop(sidecar.connect().await);
    assert_eq!(
        sidecar.metric("rejections_total", &[("reason", "tls")]).await,
        2.0,
        "a bare connection is not an error"
    );
}

#[tokio::test]
async fn a_tls_handshake_that_times_out_is_closed_and_counted() {
    let (pki, app) = (Pki::new(), App::bind().await);
    let mut config = app.config();
    pki.configure(Sides::Browser, &mut config);
    config.limits.idle_timeout = SHORT;
    let sidecar = Sidecar::start(config).await;
    let mut silent = sidecar.connect().await;
    silent.send([22, 3, 1]).await;
    assert!(silent.rest().await.is_ok_and(|bytes| bytes.is_empty()));
    sidecar.until("rejections_total", &[("reason", "tls")], 1.0).await;
}

#[tokio::test]
async fn the_proxy_protocol_header_precedes_tls() {
    let (pki, app) = (Pki::new(), App::bind().await);
    let mut config = app.config();
    config.proxy_protocol = true;
    pki.configure(Sides::Browser, &mut config);
    let sidecar = Sidecar::start(config).await;
    let mut balancer = sidecar.connect().await;
    balancer.send("PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n").await;
    let mut browser = Wire::new(pki.secure(balancer.stream, ALL_VERSIONS).await);
    browser.send(REQUEST).await;
    let head = app.accept().await.head().await;
    assert!(head.to_lowercase().contains("x-forwarded-for: 192.0.2.7\r\n"), "{head}");
}

#[tokio::test]
async fn a_connection_over_the_limit_is_closed_without_a_tls_handshake() {
    let (pki, app) = (Pki::new(), App::bind().await);
    let mut config = app.config();
    pki.configure(Sides::Browser, &mut config);
    config.limits.connections = std::num::NonZeroUsize::new(1);
    let sidecar = Sidecar::start(config).await;
    let _first = pki.connect(sidecar.address).await;
    assert!(!sidecar.connect().await.rest().await.is_ok_and(|bytes| !bytes.is_empty()), "nothing in plain text");
    sidecar.until("rejections_total", &[("reason", "connections")], 1.0).await;
}

#[tokio::test]
async fn with_connection_proof_an_ack_waits_only_for_the_current_message() {
    let answer = |config: &mut heartbeat_sidecar::config::Config| {
        (config.heartbeat.mode, config.heartbeat.proof) = (Mode::Answer, Proof::Connection);
    };
    let (_sidecar, mut session) = Pki::new().session(Sides::Both, ALL_VERSIONS, STREAM, answer).await;
    let message = plain(BINARY, pattern(6 * MIB));
    let (first, rest) = message.split_at(4 * MIB);
    let (sent, ()) = tokio::join!(session.browser.exactly(first.len()), session.app.send(first));
    assert!(sent == first, "the message is streamed");
    session.browser.send([heartbeat(), masked(TEXT, "seen")].concat()).await;
    session.app.expect(masked(TEXT, "seen")).await;
    let all = [rest, &plain(BINARY, COMPATIBLE_ACK)].concat();
    let (received, ()) = tokio::join!(session.browser.exactly(all.len()), session.app.send(rest));
    assert!(received == all);
}
