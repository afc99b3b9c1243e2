//! TLS on either side: everything works as without it, and certificates are reloaded while sessions live.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use heartbeat_sidecar::heartbeat::{Mode, Proof};
use heartbeat_sidecar::sidecar;
use rustls::ALL_VERSIONS;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::frame::{BINARY, CLOSE, COMPATIBLE_ACK, PING, PONG, TEXT, header, heartbeat, masked, plain};
use crate::support::process::Process;
use crate::support::tls::{ENCRYPTED, Pki, Session, Sides};
use crate::support::{App, Sidecar, Wire, handshake, soon, switching};

const MIB: usize = 1 << 20;
const STREAM: &str = "/_stcore/stream";
/// Short to keep tests fast; nothing fails if it takes longer.
const SHORT: Duration = Duration::from_millis(300);

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n";
const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Bytes whose period is not a power of two, so that a misplaced piece shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

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

/// The head of the response to a request, which the app answers with 200.
async fn ask(pki: &Pki, app: &App, sidecar: &Sidecar) -> String {
    let mut browser = pki.connect(sidecar.address).await;
    browser.send(REQUEST).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send(ANSWER).await;
    browser.head().await
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
        // No event shows that a writer waits for ever.
        assert!(tokio::time::timeout(SHORT, &mut sent).await.is_err(), "{sides:?}: all 48 MiB written");
        let came = session.browser.exactly(length).await;
        let (mut app, message) = sent.await.unwrap();
        assert!(came == message, "{sides:?}");
        session.browser.send(masked(TEXT, "still there")).await;
        app.expect(masked(TEXT, "still there")).await;
    }
}

#[tokio::test]
async fn a_browser_that_reads_nothing_is_disconnected() {
    for sides in ENCRYPTED {
        let patience = |config: &mut heartbeat_sidecar::config::Config| {
            config.session.write_stall_timeout = SHORT;
        };
        let (sidecar, mut session) = Pki::new().session(sides, ALL_VERSIONS, STREAM, patience).await;
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
            let (came, ()) = tokio::join!(session.browser.exactly(large.len()), session.app.send(&large));
            assert!(came == large, "{sides:?}");
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
        let mut stranger = sidecar.connect().await;
        stranger.send([&wrong[..], &wrong, &[21, 3, 3, 0, 2, 2, 40, 23, 3, 3, 0, 1, 0]].concat()).await;
        stranger.finish().await;
        let _answer_or_reset = stranger.rest().await;
    }
    assert!(hello.len() > 100);
    // A handshake that panicked would not be counted.
    sidecar.until("rejections_total", &[("reason", "tls")], hello.len() as f64).await;
    assert!(ask(&pki, &app, &sidecar).await.starts_with("HTTP/1.1 200 "));
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
            let mut upstream: Wire<crate::support::tls::Any> = match sides {
                Sides::Browser => Wire::new(Box::new(app.accept().await.stream)),
                _ => Wire::new(Box::new(pki.accept(&app).await.stream)),
            };
            let mut told = String::new();
            // The second request uses the connection of the first.
            for _request in 0..2 {
                told = upstream.head().await;
                assert!(upstream.exactly(body.len()).await == body);
                upstream.send(&answer).await;
            }
            told
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
        let (told, ()) = tokio::join!(serve, browse);
        let scheme = if encrypted { "https" } else { "http" };
        assert!(told.to_lowercase().contains(&format!("x-forwarded-proto: {scheme}\r\n")), "{told}");
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
    let mut stranger = sidecar.connect().await;
    stranger.send([22, 3, 1, 0, 5, 1, 0, 0, 1, 0]).await;
    // A TLS alert.
    assert_eq!(stranger.rest().await.unwrap()[..2], [21, 3]);
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
    assert!(silent.rest().await.is_ok_and(|said| said.is_empty()));
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
    let told = app.accept().await.head().await;
    assert!(told.to_lowercase().contains("x-forwarded-for: 192.0.2.7\r\n"), "{told}");
}

#[tokio::test]
async fn a_connection_over_the_limit_is_closed_without_a_tls_handshake() {
    let (pki, app) = (Pki::new(), App::bind().await);
    let mut config = app.config();
    pki.configure(Sides::Browser, &mut config);
    config.limits.connections = std::num::NonZeroUsize::new(1);
    let sidecar = Sidecar::start(config).await;
    let _first = pki.connect(sidecar.address).await;
    assert!(!sidecar.connect().await.rest().await.is_ok_and(|said| !said.is_empty()), "nothing in plain text");
    sidecar.until("rejections_total", &[("reason", "connections")], 1.0).await;
}

#[tokio::test]
async fn with_client_ca_set_clients_without_its_certificate_are_rejected() {
    let (pki, app) = (Pki::new(), App::bind().await);
    let mut config = app.config();
    pki.configure(Sides::Browser, &mut config);
    config.tls.client_ca = Some(pki.path("ca.crt"));
    let sidecar = Sidecar::start(config).await;
    let stranger = Pki::new();
    fs::copy(pki.path("ca.crt"), stranger.path("ca.crt")).unwrap();
    for (config, welcome) in [
        (pki.client(ALL_VERSIONS, true), true),
        (pki.client(ALL_VERSIONS, false), false),
        (pki.client(&[&TLS12], true), true),
        (pki.client(&[&TLS12], false), false),
        (stranger.client(ALL_VERSIONS, true), false),
    ] {
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let socket = sidecar.connect().await.stream;
        let served = soon(async {
            let mut browser = connector.connect("app.test".try_into().unwrap(), socket).await?;
            browser.write_all(REQUEST.as_bytes()).await?;
            if welcome {
                let mut upstream = app.accept().await;
                upstream.head().await;
                upstream.send(ANSWER).await;
            }
            browser.read_u8().await
        });
        assert_eq!(served.await.is_ok(), welcome);
    }
    assert!(app.is_untouched());
    sidecar.until("rejections_total", &[("reason", "tls")], 3.0).await;
}

#[tokio::test]
async fn the_sidecar_sends_its_certificate_to_an_app_that_requires_one() {
    let (pki, app) = (Pki::new(), App::bind().await);
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(pki.server(true)));
    for shows in [true, false] {
        let mut config = app.config();
        pki.configure(Sides::Upstream, &mut config);
        if shows {
            let pair = (Some(pki.path("client.crt")), Some(pki.path("client.key")));
            (config.upstream_tls.certificate, config.upstream_tls.key) = pair;
        }
        let sidecar = Sidecar::start(config).await;
        let mut browser = sidecar.connect().await;
        browser.send(REQUEST).await;
        let serve = async {
            let accepted = soon(acceptor.accept(app.accept().await.stream)).await;
            assert_eq!(accepted.is_ok(), shows);
            if let Ok(stream) = accepted {
                let mut upstream = Wire::new(stream);
                upstream.head().await;
                upstream.send(ANSWER).await;
            }
        };
        let ((), head) = tokio::join!(serve, browser.head());
        assert!(head.starts_with(if shows { "HTTP/1.1 200 " } else { "HTTP/1.1 502 " }), "{head}");
    }
}

#[tokio::test]
async fn an_app_with_an_invalid_certificate_gets_no_request_and_the_reason_is_logged() {
    let (pki, other, app) = (Pki::new(), Pki::new(), App::bind().await);
    let (ca, other_ca) = (pki.path("ca.crt"), other.path("ca.crt"));
    let upstream = format!("--upstream=https://{}", app.address());
    for (ca, name, reason) in [
        (&ca, "wrong.test", "not valid for name"),
        (&other_ca, "", "invalid peer certificate: UnknownIssuer"),
        (&ca, "", ""),
        (&ca, "app.test", ""),
    ] {
        let (ca, name) = (format!("--upstream-tls-ca={}", ca.display()), format!("--upstream-tls-server-name={name}"));
        let mut process = Process::start_alone(&[&upstream, &ca, &name]).await;
        for websocket in [false, true] {
            let mut browser = Wire::connect(process.address).await;
            browser.send(if websocket { handshake(STREAM, "") } else { REQUEST.to_owned() }).await;
            let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(pki.server(false)));
            let serve = async {
                let accepted = soon(acceptor.accept(app.accept().await.stream)).await;
                assert_eq!(accepted.is_ok(), reason.is_empty());
                let Ok(stream) = accepted else { return };
                let mut upstream = Wire::new(stream);
                upstream.head().await;
                upstream.send(if websocket { switching("") } else { ANSWER.to_owned() }).await;
            };
            let ((), head) = tokio::join!(serve, browser.head());
            if reason.is_empty() {
                assert!(!head.starts_with("HTTP/1.1 502 "), "{head}");
                continue;
            }
            assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
            // The second failure is too soon to be logged.
            if !websocket {
                let line = process.line("upstream failed").await;
                assert!(line["error"].as_str().unwrap().contains(reason), "{line}");
            }
        }
    }
}

#[tokio::test]
async fn valid_certificates_are_reloaded_under_live_sessions_and_broken_ones_are_not() {
    let (pki, app) = (Pki::new(), App::bind().await);
    // As Kubernetes mounts a secret: files are links into a folder that is a link.
    let place = |folder: &str, year: i32| {
        fs::create_dir(pki.path(folder)).unwrap();
        pki.issue(&format!("{folder}/tls"), year);
    };
    let swap = |folder: &str| {
        symlink(folder, pki.path("..new")).unwrap();
        fs::rename(pki.path("..new"), pki.path("..data")).unwrap();
    };
    place("..1", 2041);
    symlink("..1", pki.path("..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        fs::remove_file(pki.path(name)).unwrap();
        symlink(format!("..data/{name}"), pki.path(name)).unwrap();
    }
    let mut config = app.config();
    pki.configure(Sides::Browser, &mut config);
    let sidecar = Sidecar::start(config).await;
    let mut browser = pki.connect(sidecar.address).await;
    browser.send(handshake(STREAM, "")).await;
    let (_head, mut upstream) = app.shake_hands("").await;
    browser.head().await;
    let expires = async || sidecar.metric("tls_certificate_not_after_timestamp_seconds", &[]).await;
    let shown = async || {
        let wire = pki.connect(sidecar.address).await;
        wire.stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let (first, first_expires) = (shown().await, expires().await);
    assert!(first_expires == 2_240_611_200.0, "{first_expires}");

    place("..2", 2042);
    swap("..2");
    sidecar.until("tls_reloads_total", &[("result", "accepted")], 1.0).await;
    let second = shown().await;
    assert!(second != first && expires().await == 2_272_147_200.0);

    place("..3", 2043);
    fs::copy(pki.path("..1/tls.key"), pki.path("..3/tls.key")).unwrap();
    swap("..3");
    sidecar.until("tls_reloads_total", &[("result", "refused")], 1.0).await;
    assert!(shown().await == second && expires().await == 2_272_147_200.0);
    fs::remove_file(pki.path("..data")).unwrap();
    sidecar.until("tls_reloads_total", &[("result", "refused")], 2.0).await;
    assert!(shown().await == second, "a missing file changes nothing");

    browser.send(masked(TEXT, "still here")).await;
    upstream.expect(masked(TEXT, "still here")).await;
    assert!(ask(&pki, &app, &sidecar).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(sidecar.metric("tls_reloads_total", &[]).await, 3.0, "each change is counted once");
}

#[tokio::test]
async fn an_invalid_certificate_or_key_is_an_error_that_names_its_file() {
    let (pki, other) = (Pki::new(), Pki::new());
    let said = |flags: &[String]| {
        let mut check = Command::new(env!("CARGO_BIN_EXE_heartbeat-sidecar"));
        // Otherwise the sidecar would warn about the variables of the test run.
        let output = check.arg("check").args(flags).env_clear().output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), said.is_empty(), "{said}");
        said.replace(&format!("{}/", pki.path("").display()), "").replace(&format!("{}", pki.path("").display()), "")
    };
    let flag = |name: &str, file: &std::path::Path| format!("--{name}={}", file.display());
    let (certificate, key) = (flag("tls-certificate", &pki.path("tls.crt")), flag("tls-key", &pki.path("tls.key")));
    assert_eq!(said(&[certificate.clone(), key.clone()]), "");
    fs::write(pki.path("empty"), "").unwrap();
    fs::copy(other.path("tls.key"), pki.path("other.key")).unwrap();
    let rest = |flags: [String; 2], expected: &str| {
        let said = said(&flags);
        assert!(said.starts_with(&format!("error: {expected}")), "{said}");
    };
    rest(
        [certificate.clone(), flag("tls-key", &pki.path("other.key"))],
        "tls.key = \"other.key\": is not the key of the certificate in tls.crt",
    );
    rest(
        [certificate.clone(), flag("tls-key", &pki.path("none"))],
        "tls.key = \"none\": cannot be read: No such file or directory",
    );
    rest(
        [certificate.clone(), flag("tls-key", &pki.path("empty"))],
        "tls.key = \"empty\": contains no PEM private key",
    );
    rest(
        [flag("tls-certificate", &pki.path("empty")), key],
        "tls.certificate = \"empty\": contains no PEM certificate",
    );
    rest(
        [certificate.clone(), String::from("--log-level=info")],
        "tls.certificate = \"tls.crt\" (--tls-certificate) also needs tls.key",
    );
    let upstream = "--upstream=https://127.0.0.1:1".to_owned();
    rest(
        [upstream, flag("upstream-tls-ca", &pki.path("empty"))],
        "upstream_tls.ca = \"empty\": contains no PEM certificate",
    );

    let mut config = App::bind().await.config();
    pki.configure(Sides::Browser, &mut config);
    config.tls.key = Some(pki.path("empty"));
    let error = sidecar::Sidecar::bind(config).await.err().expect("no key").to_string();
    assert!(error.contains("/empty\": contains no PEM private key"), "{error}");
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
    let (came, ()) = tokio::join!(session.browser.exactly(all.len()), session.app.send(rest));
    assert!(came == all);
}
