//! Clients that half-close after a request get their response; clients that are gone hold no resources.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::support::frame::{TEXT, masked, plain};
use crate::support::tls::{Any, Pki, Sides};
use crate::support::{App, Sidecar, Wire, handshake, soon, switching};

const STREAM: &str = "/_stcore/stream";
/// Short to keep tests fast.
const SHORT: Duration = Duration::from_millis(300);

/// A sidecar, with or without TLS, and its app.
struct Scene {
    app: App,
    sidecar: Sidecar,
    pki: Option<Pki>,
}

impl Scene {
    async fn new(encrypted: bool) -> Self {
        Self::with_idle_timeout(encrypted, Duration::from_secs(75)).await
    }

    async fn with_idle_timeout(encrypted: bool, idle_timeout: Duration) -> Self {
        let app = App::bind().await;
        let mut config = app.config();
        config.limits.idle_timeout = idle_timeout;
        let pki = encrypted.then(Pki::new);
        if let Some(pki) = &pki {
            pki.configure(Sides::Browser, &mut config);
        }
        let sidecar = Sidecar::start(config).await;
        Self { app, sidecar, pki }
    }

    /// A connection; unless `first`, it has had a request before.
    async fn browser(&self, first: bool) -> Wire<Any> {
        let mut browser: Wire<Any> = match &self.pki {
            Some(pki) => Wire::new(Box::new(pki.connect(self.sidecar.address).await.stream)),
            None => Wire::new(Box::new(self.sidecar.connect().await.stream)),
        };
        if !first {
            browser.send("GET /first HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
            let mut upstream = self.app.accept().await;
            upstream.head().await;
            upstream.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
            assert!(browser.head().await.starts_with("HTTP/1.1 204 "));
        }
        browser
    }

    /// Waits until the sidecar has processed everything that reached it before.
    async fn settled(&self) {
        for _round in 0..3 {
            self.sidecar.admin("/livez").await;
        }
    }
}

/// Plain and TLS connections, each with a first request and a later one, answered at once and late.
fn cases() -> impl Iterator<Item = (bool, bool, bool)> {
    let both = [false, true];
    both.into_iter().flat_map(move |a| both.into_iter().flat_map(move |b| both.into_iter().map(move |c| (a, b, c))))
}

#[tokio::test]
async fn a_request_before_a_half_close_is_answered() {
    let requests = [
        "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: app.test\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n\r\nbody",
        "POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    ];
    for (encrypted, first, late) in cases() {
        let scene = Scene::new(encrypted).await;
        for request in requests {
            let told = format!("encrypted {encrypted}, first {first}, late {late}: {request:?}");
            let mut browser = scene.browser(first).await;
            browser.send(request).await;
            browser.finish().await;
            let mut upstream = scene.app.accept().await;
            upstream.head().await;
            if request.contains("body") {
                let coded = if request.contains("chunked") { "4\r\nbody\r\n0\r\n\r\n" } else { "body" };
                upstream.expect(coded).await;
            }
            if late {
                scene.settled().await;
            }
            upstream.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\n").await;
            if late {
                assert!(browser.head().await.starts_with("HTTP/1."), "{told}");
                scene.settled().await;
            }
            upstream.send("late").await;
            let answer = String::from_utf8(browser.rest().await.unwrap()).unwrap();
            assert!(answer.ends_with("late"), "{told}: {answer:?}");
        }
        scene.sidecar.until("client_connections", &[], 0.0).await;
    }
}

#[tokio::test]
async fn a_large_response_after_a_half_close_arrives_whole() {
    let body: Vec<u8> = (0..16 << 20).map(|at: u32| (at % 251) as u8).collect();
    for (encrypted, request) in [
        (false, "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"),
        (true, "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"),
        (false, "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody"),
        (true, "GET / HTTP/1.0\r\nHost: app.test\r\n\r\n"),
    ] {
        let scene = Scene::new(encrypted).await;
        let mut browser = scene.browser(true).await;
        browser.send(request).await;
        browser.finish().await;
        let mut upstream = scene.app.accept().await;
        upstream.head().await;
        let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        let answer = [head.as_bytes(), &body].concat();
        let ((), all) = tokio::join!(upstream.send(&answer), async {
            browser.head().await;
            browser.rest().await.unwrap()
        });
        assert!(all == body, "{} bytes of {}", all.len(), body.len());
        scene.sidecar.until("client_connections", &[], 0.0).await;
    }
}

#[tokio::test]
async fn a_websocket_half_closed_before_the_101_is_relayed_in_order() {
    let said = [masked(TEXT, "one"), masked(TEXT, "two")].concat();
    for (encrypted, first, late) in cases() {
        let scene = Scene::new(encrypted).await;
        for (glued, behind) in [(&said[..], &[][..]), (&[], &said), (&[], &[])] {
            let told = format!("encrypted {encrypted}, first {first}, late {late}: {} {}", glued.len(), behind.len());
            let mut browser = scene.browser(first).await;
            browser.send([handshake(STREAM, "").as_bytes(), glued].concat()).await;
            let mut upstream = scene.app.accept().await;
            upstream.head().await;
            browser.send(behind).await;
            browser.finish().await;
            if late {
                scene.settled().await;
            }
            upstream.send(switching("")).await;
            assert!(browser.head().await.starts_with("HTTP/1.1 101 "), "{told}");
            assert_eq!(upstream.rest().await.unwrap(), [glued, behind].concat(), "{told}");
            upstream.send(plain(TEXT, "answer")).await;
            browser.expect(plain(TEXT, "answer")).await;
            upstream.finish().await;
            browser.end().await;
            scene.sidecar.until("sessions", &[], 0.0).await;
        }
        assert_eq!(scene.sidecar.metric("handshakes_total", &[("result", "accepted")]).await, 3.0);
    }
}

#[tokio::test]
async fn a_rejected_handshake_reaches_a_half_closed_browser() {
    for (encrypted, first, late) in cases() {
        let scene = Scene::new(encrypted).await;
        let mut browser = scene.browser(first).await;
        browser.send(handshake(STREAM, "")).await;
        browser.finish().await;
        let mut upstream = scene.app.accept().await;
        upstream.head().await;
        if late {
            scene.settled().await;
        }
        upstream.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
        let answer = String::from_utf8(browser.rest().await.unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.ends_with("no"), "{answer}");
    }
}

/// A plain connection; unless `first`, it has had a request before.
async fn connect(app: &App, sidecar: &Sidecar, first: bool) -> Wire {
    if first { sidecar.connect().await } else { sidecar.connect_used(app).await }
}

const PENDING: [&str; 3] = [
    "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n\r\nbody",
    // A second request waits behind it, unread.
    "GET / HTTP/1.1\r\nHost: app.test\r\n\r\nGET /next HTTP/1.1\r\nHost: app.test\r\n\r\n",
];

#[tokio::test]
async fn a_reset_by_the_browser_aborts_its_request_even_after_a_half_close() {
    for (first, ended) in [(true, false), (true, true), (false, false), (false, true)] {
        let (app, sidecar) = Sidecar::with_app().await;
        for request in PENDING.map(str::to_owned).into_iter().chain([handshake(STREAM, "")]) {
            let mut browser = connect(&app, &sidecar, first).await;
            browser.send(&request).await;
            let mut upstream = app.accept().await;
            upstream.head().await;
            if ended {
                browser.finish().await;
                sidecar.admin("/livez").await;
            }
            browser.reset();
            let _body_and_end = upstream.rest().await;
            sidecar.until("client_connections", &[], 0.0).await;
        }
        assert_eq!(sidecar.metric("handshakes_total", &[("result", "abandoned")]).await, 1.0);
    }
}

#[tokio::test]
async fn a_half_closed_browser_waits_for_a_silent_app_until_the_idle_timeout() {
    for (encrypted, answered) in [(false, false), (false, true), (true, false), (true, true)] {
        let scene = Scene::with_idle_timeout(encrypted, SHORT).await;
        for request in PENDING {
            let mut browser = scene.browser(true).await;
            browser.send(request).await;
            browser.finish().await;
            let mut upstream = scene.app.accept().await;
            upstream.head().await;
            if answered {
                upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart").await;
            }
            let _body_and_end = upstream.rest().await;
            let _part_and_end = browser.rest().await;
            scene.sidecar.until("client_connections", &[], 0.0).await;
        }
    }
}

#[tokio::test]
async fn a_half_closed_browser_receives_a_response_that_outlasts_the_idle_timeout() {
    let scene = Scene::with_idle_timeout(false, SHORT).await;
    let mut browser = scene.browser(true).await;
    browser.send("GET / HTTP/1.0\r\nHost: app.test\r\n\r\n").await;
    browser.finish().await;
    let mut upstream = scene.app.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await;
    browser.head().await;
    for _piece in 0..8 {
        // Each pause is shorter than the timeout; their sum is longer.
        tokio::time::sleep(SHORT / 4).await;
        upstream.send("piece").await;
        browser.expect("piece").await;
    }
    drop(upstream);
    browser.end().await;
}

#[tokio::test]
async fn the_idle_timeout_does_not_apply_to_an_open_browser_that_waits() {
    let scene = Scene::with_idle_timeout(false, SHORT).await;
    let mut browser = scene.browser(true).await;
    browser.send(PENDING[2]).await;
    let mut upstream = scene.app.accept().await;
    upstream.head().await;
    // Nothing may happen meanwhile.
    assert!(upstream.is_silent_for(SHORT * 5).await, "the request was aborted");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert!(browser.head().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_closed_browser_is_detected_when_the_sidecar_writes_to_it() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send(PENDING[0]).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    drop(browser);
    upstream.send("HTTP/1.1 200 OK\r\n\r\n").await;
    let writing = async {
        let _broken = loop {
            if let Err(error) = tokio::io::AsyncWriteExt::write_all(&mut upstream.stream, &[7; 4096]).await {
                break error;
            }
        };
    };
    soon(writing).await;
    sidecar.until("client_connections", &[], 0.0).await;
}

/// A client that sends a request and half-closes before the sidecar reads anything.
#[tokio::test]
async fn a_request_that_arrives_together_with_eof_is_answered() {
    async fn connect(address: SocketAddr) -> Wire {
        let stream = std::net::TcpStream::connect(address).unwrap();
        // Without an await, the sidecar cannot run before all of this is done.
        std::io::Write::write_all(&mut &stream, PENDING[0].as_bytes()).unwrap();
        SockRef::from(&stream).shutdown(std::net::Shutdown::Write).unwrap();
        stream.set_nonblocking(true).unwrap();
        Wire::new(TcpStream::from_std(stream).unwrap())
    }
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = connect(sidecar.address).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert!(browser.rest().await.unwrap().ends_with(b"ok"));
}
