//! Limits of connections, sessions and handshakes: what is rejected, how, and that slots become free again.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, Instant};

use heartbeat_sidecar::config::Limits;
use tokio::net::TcpSocket;

use crate::support::frame::{CLOSE, SESSION_ID, new_session, plain};
use crate::support::http::assert_rejected;
use crate::support::{App, Session, Sidecar, Wire, handshake, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
const STREAM: &str = "/_stcore/stream";

/// A sidecar with these limits, which trusts no proxy.
async fn limited(limit: impl FnOnce(&mut Limits)) -> (App, Sidecar) {
    let app = App::bind().await;
    let mut config = app.config();
    config.trusted_proxies = "none".parse().unwrap();
    limit(&mut config.limits);
    (app, Sidecar::start(config).await)
}

/// Like [`limited`], behind a balancer on this machine that sends the PROXY protocol.
async fn balanced(limit: impl FnOnce(&mut Limits)) -> (App, Sidecar) {
    let app = App::bind().await;
    let mut config = app.config();
    config.trusted_proxies = "127.0.0.1".parse().unwrap();
    config.proxy_protocol = true;
    limit(&mut config.limits);
    (app, Sidecar::start(config).await)
}

fn one() -> Option<NonZeroUsize> {
    NonZeroUsize::new(1)
}

/// A client that got a response and keeps its connection.
async fn forward_request(app: &App, mut client: Wire, opening: &str) -> (Wire, Wire) {
    client.send(format!("{opening}{GET}")).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
    client.expect("ok").await;
    (client, upstream)
}

async fn closed(sidecar: &Sidecar, open: f64) {
    sidecar.until("client_connections", &[], open).await;
}

#[tokio::test]
async fn by_default_neither_address_nor_handshake_limits_apply() {
    let app = App::bind().await;
    let mut config = app.config();
    config.trusted_proxies = "none".parse().unwrap();
    let sidecar = Sidecar::start(config).await;
    let mut sessions = Vec::new();
    for _session in 0..100 {
        sessions.push(sidecar.stream(&app).await);
    }
    assert_eq!(sidecar.metric("rejections_total", &[]).await, 0.0);
    assert_eq!(sidecar.metric("client_connections", &[]).await, 100.0);
    assert!(sidecar.metric("client_connections_limit", &[]).await > 100.0);
}

#[tokio::test]
async fn a_connection_over_the_limit_gets_503_until_another_closes() {
    let (app, sidecar) = limited(|limits| limits.connections = NonZeroUsize::new(2)).await;
    assert_eq!(sidecar.metric("client_connections_limit", &[]).await, 2.0);
    let (first, _app) = forward_request(&app, sidecar.connect().await, "").await;
    let (_second, _app) = forward_request(&app, sidecar.connect().await, "").await;
    for _attempt in 0..3 {
        assert_rejected(&sidecar, GET, "503", "connections").await;
    }
    assert_rejected(&sidecar, &handshake(STREAM, ""), "503", "connections").await;
    assert!(app.is_untouched(), "the app got a connection");
    assert_eq!(sidecar.metric("client_connections", &[]).await, 2.0, "rejected connections do not count");
    drop(first);
    closed(&sidecar, 1.0).await;
    forward_request(&app, sidecar.connect().await, "").await;
}

#[tokio::test]
async fn a_websocket_counts_as_a_connection_until_its_socket_closes() {
    let (app, sidecar) = limited(|limits| limits.connections = one()).await;
    let session = sidecar.stream(&app).await;
    assert_eq!(sidecar.metric("client_connections", &[]).await, 1.0);
    assert_rejected(&sidecar, GET, "503", "connections").await;
    session.close().await;
    closed(&sidecar, 0.0).await;
    let Session { browser, app: upstream } = sidecar.stream(&app).await;
    browser.reset();
    closed(&sidecar, 0.0).await;
    drop(upstream);
    forward_request(&app, sidecar.connect().await, "").await;
}

#[tokio::test]
async fn a_503_is_not_lost_if_the_request_has_a_body() {
    let (app, sidecar) = limited(|limits| limits.connections = one()).await;
    let _session = sidecar.stream(&app).await;
    let body = "x".repeat(20_000);
    let request = format!("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 20000\r\n\r\n{body}");
    assert_rejected(&sidecar, &request, "503", "connections").await;
}

#[tokio::test]
async fn silent_clients_over_the_limit_are_disconnected_and_do_not_delay_others() {
    const ANSWERS: usize = 64;
    let (app, sidecar) = limited(|limits| limits.connections = one()).await;
    let session = sidecar.stream(&app).await;
    let mut silent = Vec::new();
    for _client in 0..ANSWERS {
        silent.push(sidecar.connect().await);
    }
    sidecar.until("rejections_total", &[("reason", "connections")], ANSWERS as f64).await;
    let mut next = sidecar.connect().await;
    assert_eq!(next.rest().await.unwrap(), b"", "closed at once while all answers are under way");
    assert!(sidecar.admin("/livez").await.0.starts_with("HTTP/1.1 200 "));
    for mut client in silent {
        assert_eq!(client.rest().await.unwrap(), b"");
    }
    assert_rejected(&sidecar, GET, "503", "connections").await;
    session.close().await;
    closed(&sidecar, 0.0).await;
    forward_request(&app, sidecar.connect().await, "").await;
}

#[tokio::test]
async fn a_client_over_its_connection_quota_gets_429() {
    let (app, sidecar) = limited(|limits| limits.connections_per_address = one()).await;
    let session = sidecar.stream(&app).await;
    assert_rejected(&sidecar, GET, "429", "connections_per_address").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
    let neighbour = Wire::new(soon(socket.connect(sidecar.address)).await.unwrap());
    forward_request(&app, neighbour, "").await;
    session.close().await;
    closed(&sidecar, 0.0).await;
    forward_request(&app, sidecar.connect().await, "").await;
}

#[tokio::test]
async fn the_quota_counts_the_proxy_protocol_source_and_never_the_balancer() {
    let (app, sidecar) = balanced(|limits| limits.connections_per_address = one()).await;
    let opening = |client: &str| format!("PROXY TCP6 {client} 2001:db8::1 4711 80\r\n");
    let (_first, _app) = forward_request(&app, sidecar.connect().await, &opening("2001:db8:0:7::1")).await;
    let request = format!("{}{GET}", opening("2001:db8:0:7:aaaa::2"));
    assert_rejected(&sidecar, &request, "429", "connections_per_address").await;
    let (_second, _app) = forward_request(&app, sidecar.connect().await, &opening("2001:db8:0:8::1")).await;
    let mut of_the_balancer = Vec::new();
    for _check in 0..3 {
        of_the_balancer.push(forward_request(&app, sidecar.connect().await, "PROXY UNKNOWN\r\n").await);
    }
    assert_eq!(sidecar.metric("client_connections", &[]).await, 5.0);
}

#[tokio::test]
async fn a_handshake_over_the_session_limit_gets_503() {
    let (app, sidecar) = limited(|limits| limits.sessions = one()).await;
    let session = sidecar.stream(&app).await;
    assert_rejected(&sidecar, &handshake(STREAM, ""), "503", "sessions").await;
    forward_request(&app, sidecar.connect().await, "").await;
    session.close().await;
    sidecar.until("sessions", &[], 0.0).await;
    let mut browser = sidecar.connect().await;
    browser.send(handshake(STREAM, "")).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    assert_rejected(&sidecar, &handshake(STREAM, ""), "503", "sessions").await;
    upstream.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    assert!(browser.head().await.starts_with("HTTP/1.1 403 "));
    upstream.end().await;
    let _session = sidecar.stream(&app).await;
}

#[tokio::test]
async fn a_reconnect_at_the_session_limit_replaces_its_own_session() {
    let (app, sidecar) = limited(|limits| limits.sessions = one()).await;
    let mut old = sidecar.stream(&app).await;
    old.app.send(new_session("1.53.1")).await;
    old.browser.expect(new_session("1.53.1")).await;
    let mut browser = sidecar.connect().await;
    browser.send(handshake(STREAM, &format!("Sec-WebSocket-Protocol: streamlit, xsrf, {SESSION_ID}\r\n"))).await;
    assert!(old.app.frame().await.is(CLOSE, 1001u16.to_be_bytes()));
    old.app.send(plain(CLOSE, 1001u16.to_be_bytes())).await;
    app.shake_hands("").await;
    assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(sidecar.metric("rejections_total", &[]).await, 0.0);
}

/// Whether a handshake passes the limits; with the app gone, that is a 502.
async fn passes(sidecar: &Sidecar, opening: &str, lines: &str) -> bool {
    let mut browser = sidecar.connect().await;
    browser.send(format!("{opening}{}", handshake(STREAM, lines))).await;
    let head = browser.head().await;
    assert!(head.starts_with("HTTP/1.1 502 ") || head.starts_with("HTTP/1.1 429 "), "{head}");
    head.starts_with("HTTP/1.1 502 ")
}

fn one_a_second(limits: &mut Limits) {
    limits.handshakes_per_second = NonZeroU32::new(1);
}

#[tokio::test]
async fn handshakes_of_an_address_pass_in_a_burst_and_then_at_the_configured_rate() {
    let (app, sidecar) = limited(one_a_second).await;
    drop(app);
    let started = Instant::now();
    let mut passed = 0;
    while passed < 10 {
        assert!(passes(&sidecar, "", "").await, "{passed} passed");
        passed += 1;
    }
    let burst = started.elapsed();
    if burst < Duration::from_millis(900) {
        assert_rejected(&sidecar, &handshake(STREAM, ""), "429", "handshakes_per_second").await;
    }
    let recovered = async { while !passes(&sidecar, "", "").await {} };
    soon(recovered).await;
    assert!(started.elapsed() >= Duration::from_secs(1), "the first token is back after {:?}", started.elapsed());
    assert!(sidecar.metric("rejections_total", &[("reason", "handshakes_per_second")]).await >= 1.0);
}

/// The number that pass, of fifty handshakes in a row.
async fn count_passed(sidecar: &Sidecar, opening: &str, lines: &str) -> usize {
    let mut passed = 0;
    for _attempt in 0..50 {
        passed += usize::from(passes(sidecar, opening, lines).await);
    }
    passed
}

#[tokio::test]
async fn the_handshake_rate_applies_to_the_right_most_untrusted_address() {
    let app = App::bind().await;
    let mut config = app.config();
    one_a_second(&mut config.limits);
    drop(app);
    let sidecar = Sidecar::start(config).await;
    let few = 10..40;
    assert_eq!(count_passed(&sidecar, "", "").await, 50, "a trusted proxy that names no client");
    assert_eq!(count_passed(&sidecar, "", "X-Forwarded-For: 10.0.0.7\r\n").await, 50, "one that names another proxy");
    let spoofed = "X-Forwarded-For: 198.51.100.1, 192.0.2.1\r\nX-Forwarded-For: 10.0.0.7\r\n";
    assert!(few.contains(&count_passed(&sidecar, "", spoofed).await));
    let again = "X-Forwarded-For: 198.51.100.2, 192.0.2.1, 10.0.0.7\r\n";
    assert!(count_passed(&sidecar, "", again).await < 10, "addresses before the client's own are ignored");
    assert!(few.contains(&count_passed(&sidecar, "", "X-Forwarded-For: 192.0.2.2\r\n").await));
    assert!(few.contains(&count_passed(&sidecar, "", "X-Forwarded-For: 2001:db8::1\r\n").await));
    assert!(count_passed(&sidecar, "", "X-Forwarded-For: 2001:db8::ffff:1\r\n").await < 10, "a /64 is one client");
}

#[tokio::test]
async fn x_forwarded_for_of_a_client_behind_the_proxy_protocol_is_ignored() {
    let (app, sidecar) = balanced(one_a_second).await;
    drop(app);
    let opening = "PROXY TCP4 203.0.113.7 10.0.0.1 1 80\r\n";
    assert!((10..40).contains(&count_passed(&sidecar, opening, "X-Forwarded-For: 192.0.2.1\r\n").await));
    assert!(count_passed(&sidecar, opening, "X-Forwarded-For: 192.0.2.2\r\n").await < 10);
}
