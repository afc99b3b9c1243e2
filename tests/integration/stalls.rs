//! Clients that stop reading a response are disconnected; clients that read slowly receive all of it.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use heartbeat_sidecar::config::Config;
use http::StatusCode;
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinHandle;

use crate::support::http2::{
    Browser, END_HEADERS, END_STREAM, Frames, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame, get, request,
};
use crate::support::tls::{Any, Pki, Sides};
use crate::support::{App, Sidecar, Wire, pattern, soon};

const MIB: usize = 1 << 20;
const GET: &str = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
/// `session.write_stall_timeout`.
const LIMIT: Duration = Duration::from_millis(600);
/// Bytes; more than all buffers on the way hold.
const LARGE: usize = 32 * MIB;
const WINDOW_UPDATE: u8 = 8;

struct Scene {
    app: App,
    sidecar: Sidecar,
    pki: Pki,
    encrypted: bool,
}

/// How much of its response a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadBehaviour {
    /// It reads nothing.
    Nothing,
    /// It reads a part, then stops.
    Part,
    /// It half-closes and reads nothing.
    NothingAndEnds,
}

const READ_BEHAVIOURS: [ReadBehaviour; 3] =
    [ReadBehaviour::Nothing, ReadBehaviour::Part, ReadBehaviour::NothingAndEnds];

impl Scene {
    async fn new(encrypted: bool) -> Self {
        Self::with(encrypted, |config| {
            config.session.write_stall_timeout = LIMIT;
            config.limits.idle_timeout = LIMIT;
        })
        .await
    }

    async fn with(encrypted: bool, settings: impl FnOnce(&mut Config)) -> Self {
        let (app, pki) = (App::bind().await, Pki::new());
        let mut config = app.config();
        settings(&mut config);
        if encrypted {
            pki.configure(Sides::Browser, &mut config);
        }
        let sidecar = Sidecar::start(config).await;
        Self { app, sidecar, pki, encrypted }
    }

    async fn browser(&self) -> Wire<Any> {
        if self.encrypted {
            return Wire::new(Box::new(self.pki.connect(self.sidecar.address).await.stream));
        }
        Wire::new(Box::new(self.sidecar.connect().await.stream))
    }

    /// Answers the next request with `body`; returns the result of that write.
    async fn answers(&self, body: Vec<u8>) -> JoinHandle<std::io::Result<()>> {
        let mut upstream = self.app.accept().await;
        upstream.head().await;
        tokio::spawn(async move {
            let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            upstream.stream.write_all(head.as_bytes()).await?;
            upstream.stream.write_all(&body).await
        })
    }

    async fn stalled(&self) -> f64 {
        self.sidecar.metric("rejections_total", &[("reason", "stalled")]).await
    }
}

/// A client that has sent a request and stops reading; connected until dropped.
async fn stop_reading(scene: &Scene, behaviour: ReadBehaviour) -> (Wire<Any>, JoinHandle<std::io::Result<()>>) {
    let mut browser = scene.browser().await;
    browser.send(GET).await;
    if behaviour == ReadBehaviour::NothingAndEnds {
        browser.finish().await;
    }
    let answer = scene.answers(vec![7; LARGE]).await;
    if behaviour == ReadBehaviour::Part {
        browser.exactly(3 * MIB).await;
    }
    (browser, answer)
}

#[tokio::test]
async fn a_client_that_stops_reading_its_response_is_disconnected() {
    for encrypted in [false, true] {
        for behaviour in READ_BEHAVIOURS {
            let scene = Scene::new(encrypted).await;
            let (browser, answer) = stop_reading(&scene, behaviour).await;
            assert!(soon(answer).await.unwrap().is_err(), "encrypted {encrypted}, {behaviour:?}: all 32 MiB written");
            scene.sidecar.until("client_connections", &[], 0.0).await;
            assert_eq!(scene.stalled().await, 1.0, "encrypted {encrypted}, {behaviour:?}");
            drop(browser);
        }
    }
}

/// A scene whose timeouts are too long to end the drain.
async fn with_long_timeouts(encrypted: bool) -> Scene {
    let long = Duration::from_secs(600);
    Scene::with(encrypted, |config| {
        config.session.write_stall_timeout = long;
        (config.drain.window, config.drain.timeout) = (Duration::ZERO, long);
    })
    .await
}

#[tokio::test]
async fn a_drain_does_not_wait_for_clients_that_stop_reading() {
    let cases = [false, true].into_iter().flat_map(|encrypted| READ_BEHAVIOURS.map(|behaviour| (encrypted, behaviour)));
    let drained = cases.map(|(encrypted, behaviour)| async move {
        let mut scene = with_long_timeouts(encrypted).await;
        let (browser, answer) = stop_reading(&scene, behaviour).await;
        scene.sidecar.stop();
        scene.sidecar.stopped().await;
        assert!(soon(answer).await.unwrap().is_err(), "encrypted {encrypted}, {behaviour:?}");
        drop(browser);
    });
    join_all(drained).await;
}

#[tokio::test]
async fn a_client_that_reads_slowly_receives_the_whole_response() {
    const LENGTH: usize = 16 * MIB;
    for encrypted in [false, true] {
        let scene = Scene::new(encrypted).await;
        let mut browser = scene.browser().await;
        let started = Instant::now();
        browser.send(GET).await;
        let answer = scene.answers(pattern(LENGTH)).await;
        browser.head().await;
        let mut came = Vec::new();
        while came.len() < LENGTH {
            // The pause makes the client slow.
            tokio::time::sleep(LIMIT / 12).await;
            came.extend(browser.exactly((LENGTH - came.len()).min(LENGTH / 50)).await);
        }
        assert!(came == pattern(LENGTH), "encrypted {encrypted}");
        assert!(started.elapsed() > LIMIT * 3);
        soon(answer).await.unwrap().unwrap();
        assert_eq!(scene.stalled().await, 0.0);
    }
}

#[tokio::test]
async fn the_stall_timeout_does_not_apply_to_idle_connections() {
    let scene = Scene::with(false, |config| config.session.write_stall_timeout = LIMIT).await;
    let mut browser = scene.browser().await;
    for _request in 0..2 {
        browser.send(GET).await;
        // Large enough that writes block now and then.
        let answer = scene.answers(vec![7; 8 * MIB]).await;
        browser.head().await;
        browser.exactly(8 * MIB).await;
        soon(answer).await.unwrap().unwrap();
        // Nothing may happen meanwhile.
        assert!(browser.is_silent_for(LIMIT * 2).await);
    }
    assert_eq!(scene.stalled().await, 0.0);
}

/// An HTTP/2 client that has sent these settings and this window update for the connection.
async fn frames(scene: &Scene, settings: &[(u16, u32)], window: u32) -> Frames {
    let mut wire = Wire::new(scene.pki.offer(scene.sidecar.address, &[b"h2"]).await);
    let settings: Vec<u8> =
        settings.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    wire.send([PREFACE, &frame(SETTINGS, 0, 0, settings), &frame(SETTINGS, 1, 0, [])].concat()).await;
    if window > 0 {
        wire.send(frame(WINDOW_UPDATE, 0, 0, window.to_be_bytes())).await;
    }
    Frames(wire)
}

const INITIAL_WINDOW_SIZE: u16 = 4;
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

#[tokio::test]
async fn an_http_2_client_that_stops_reading_its_response_is_disconnected() {
    for behaviour in READ_BEHAVIOURS {
        let scene = Scene::new(true).await;
        let mut frames = frames(&scene, &[(INITIAL_WINDOW_SIZE, LARGEST_WINDOW)], LARGEST_WINDOW - 65_535).await;
        frames.0.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, request(&[]))).await;
        let answer = scene.answers(vec![7; LARGE]).await;
        if behaviour == ReadBehaviour::NothingAndEnds {
            frames.0.finish().await;
        }
        if behaviour == ReadBehaviour::Part {
            frames.0.exactly(3 * MIB).await;
        }
        assert!(soon(answer).await.unwrap().is_err(), "{behaviour:?}: all 32 MiB written");
        scene.sidecar.until("client_connections", &[], 0.0).await;
        if behaviour != ReadBehaviour::NothingAndEnds {
            assert_eq!(scene.stalled().await, 1.0, "{behaviour:?}");
        }
        drop(frames);
    }
}

#[tokio::test]
async fn a_stream_without_window_is_reset_and_other_streams_continue() {
    // No window from the start, after a part, and for all streams together.
    for (initial, window) in [(0, LARGEST_WINDOW - 65_535), (100_000, LARGEST_WINDOW - 65_535), (LARGEST_WINDOW, 0)] {
        let scene = Scene::with(true, |config| config.session.write_stall_timeout = LIMIT).await;
        let mut frames = frames(&scene, &[(INITIAL_WINDOW_SIZE, initial)], window).await;
        frames.0.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, request(&[]))).await;
        let answer = scene.answers(vec![7; LARGE]).await;
        let (stream, code) = frames.until(RST_STREAM).await;
        assert_eq!((stream, &code[..]), (1, &[0, 0, 0, 8][..]), "CANCEL (RFC 9113 §7)");
        assert!(soon(answer).await.unwrap().is_err(), "{initial} {window}: all 32 MiB written");
        assert_eq!(scene.stalled().await, 1.0);
        frames.0.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, request(&[]))).await;
        let mut upstream = scene.app.accept().await;
        upstream.head().await;
        upstream.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        assert_eq!(frames.until(HEADERS).await.0, 3);
        assert_eq!(scene.sidecar.metric("client_connections", &[]).await, 1.0);
    }
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_stream_without_window() {
    let mut scene = with_long_timeouts(true).await;
    let mut frames = frames(&scene, &[(INITIAL_WINDOW_SIZE, 0)], 0).await;
    frames.0.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, request(&[]))).await;
    let answer = scene.answers(vec![7; LARGE]).await;
    frames.until(HEADERS).await;
    scene.sidecar.stop();
    frames.until(RST_STREAM).await;
    assert!(soon(answer).await.unwrap().is_err());
    drop(frames);
    scene.sidecar.stopped().await;
}

#[tokio::test]
async fn a_stream_that_is_read_slowly_arrives_whole() {
    const LENGTH: usize = MIB;
    const STEP: usize = LENGTH / 32;
    let scene = Scene::new(true).await;
    let mut browser = Browser::connect(&scene.pki, scene.sidecar.address).await;
    let started = Instant::now();
    let asked = browser.ask(get("/"));
    let answer = scene.answers(pattern(LENGTH)).await;
    let mut asked = asked.await.unwrap();
    assert_eq!(asked.status(), StatusCode::OK);
    let mut came = Vec::new();
    while let Some(data) = soon(asked.body_mut().data()).await {
        let data = data.unwrap();
        came.extend_from_slice(&data);
        if came.len() / STEP > (came.len() - data.len()) / STEP {
            // The pause makes the client slow.
            tokio::time::sleep(LIMIT / 12).await;
        }
        asked.body_mut().flow_control().release_capacity(data.len()).unwrap();
    }
    assert!(came == pattern(LENGTH));
    assert!(started.elapsed() > LIMIT * 2, "{:?}", started.elapsed());
    soon(answer).await.unwrap().unwrap();
    assert_eq!(scene.stalled().await, 0.0);
}

#[tokio::test]
async fn a_pause_of_the_app_within_its_response_is_not_a_stall() {
    for encrypted in [false, true] {
        let scene = Scene::with(encrypted, |config| config.session.write_stall_timeout = LIMIT / 3).await;
        let mut browser = scene.browser().await;
        browser.send(GET).await;
        let mut upstream = scene.app.accept().await;
        upstream.head().await;
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha").await;
        browser.head().await;
        browser.expect("ha").await;
        // Nothing may happen meanwhile.
        assert!(browser.is_silent_for(LIMIT).await);
        upstream.send("lf").await;
        browser.expect("lf").await;
    }
    let scene = Scene::with(true, |config| config.session.write_stall_timeout = LIMIT / 3).await;
    let mut browser = Browser::connect(&scene.pki, scene.sidecar.address).await;
    let asked = browser.ask(get("/"));
    let mut upstream = scene.app.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha").await;
    let mut asked = asked.await.unwrap();
    assert_eq!(soon(asked.body_mut().data()).await.unwrap().unwrap(), "ha");
    // Nothing may happen meanwhile.
    assert!(upstream.is_silent_for(LIMIT).await);
    upstream.send("lf").await;
    assert_eq!(soon(asked.body_mut().data()).await.unwrap().unwrap(), "lf");
}
