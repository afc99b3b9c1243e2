//! Limits of an HTTP/2 connection: floods, pauses, idle time, concurrent requests, and the drain.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use http::{Request, StatusCode};

use crate::support::http2::{
    END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, Scene, fields, frame, get, request, whole,
};
use crate::support::{Wire, soon};

/// Short to keep tests fast; nothing fails if it takes longer.
const SHORT: Duration = Duration::from_millis(300);
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 11];

#[tokio::test]
async fn a_body_that_pauses_too_long_gets_a_408_and_other_requests_continue() {
    let scene = Scene::with(|config| config.limits.body_timeout = SHORT).await;
    let mut browser = scene.browser().await;
    let (answer, mut body) = browser.start(Request::post("https://app.test/").body(()).unwrap());
    body.send_data("the first part".into(), false).unwrap();
    let mut upstream = scene.app.accept().await;
    upstream.head().await;
    assert_eq!(answer.await.unwrap().status(), StatusCode::REQUEST_TIMEOUT);
    let _end_or_reset = upstream.rest().await;
    assert_eq!(scene.rejected("timeout").await, 1.0);
    scene.forwarded(&mut browser, get("/")).await;
}

#[tokio::test]
async fn a_flood_of_requests_that_are_reset_at_once_ends_the_connection() {
    let scene = Scene::new().await;
    let mut frames = scene.frames().await;
    let storm: Vec<u8> = (0..1000)
        .flat_map(|at| {
            let stream = at * 2 + 1;
            let headers = frame(HEADERS, END_STREAM | END_HEADERS, stream, request(&[]));
            [headers, frame(RST_STREAM, 0, stream, [0, 0, 0, 8])].concat()
        })
        .collect();
    frames.0.send(storm).await;
    let (_stream, payload) = frames.until(GOAWAY).await;
    assert_eq!(payload[4..8], ENHANCE_YOUR_CALM);
    scene.sidecar.until("rejections_total", &[("reason", "malformed")], 1.0).await;
    scene.sidecar.until("client_connections", &[], 0.0).await;
}

#[tokio::test]
async fn an_endless_header_block_ends_the_connection() {
    let scene = Scene::new().await;
    let mut frames = scene.frames().await;
    let mut flood = frame(HEADERS, END_STREAM, 1, request(&[]));
    for _piece in 0..100 {
        flood.extend(frame(9, 0, 1, fields(&[("x", &"y".repeat(8000))])));
    }
    let all = async {
        let _may_be_cut = tokio::io::AsyncWriteExt::write_all(&mut frames.0.stream, &flood).await;
    };
    soon(all).await;
    let _reset_or_end = frames.0.rest().await;
    scene.sidecar.until("client_connections", &[], 0.0).await;
    assert!(scene.app.is_untouched());
    assert_eq!(scene.rejected("malformed").await, 1.0);
}

#[tokio::test]
async fn only_connections_without_an_open_request_close_after_idle_timeout() {
    let scene = Scene::with(|config| config.limits.idle_timeout = SHORT).await;
    let mut browser = scene.browser().await;
    // Busy for longer than idle_timeout, then with a response that alone takes longer.
    let started = Instant::now();
    while started.elapsed() < SHORT * 2 {
        scene.forwarded(&mut browser, get("/")).await;
    }
    let answer = browser.ask(get("/"));
    let mut upstream = scene.app.accept().await;
    upstream.head().await;
    // Meanwhile a later connection without a request is closed.
    scene.browser().await.ended().await.unwrap();
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok").await;
    let mut answer = answer.await.unwrap();
    scene.browser().await.ended().await.unwrap();
    upstream.send("ok").await;
    assert_eq!(whole(answer.body_mut()).await.unwrap(), b"okok");
    drop(answer);
    browser.ended().await.unwrap();
    scene.sidecar.until("client_connections", &[], 0.0).await;
    assert_eq!(scene.sidecar.metric("rejections_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_client_that_never_completes_a_request_is_disconnected() {
    let scene = Scene::with(|config| config.limits.idle_timeout = SHORT).await;
    for bytes in [&b""[..], &PREFACE[..10], &[PREFACE, &frame(SETTINGS, 0, 0, []), &frame(HEADERS, 0, 1, [])].concat()]
    {
        let mut silent = Wire::new(scene.pki.offer(scene.sidecar.address, &[b"h2"]).await);
        silent.send(bytes).await;
        let _end_or_reset = silent.rest().await;
    }
    scene.sidecar.until("client_connections", &[], 0.0).await;
}

#[tokio::test]
async fn a_drain_sends_goaway_and_finishes_open_requests() {
    let mut scene = Scene::new().await;
    let (mut busy, idle) = (scene.browser().await, scene.browser().await);
    let answer = busy.ask(get("/"));
    let mut upstream = scene.app.accept().await;
    upstream.head().await;
    scene.sidecar.stop();
    idle.ended().await.unwrap();
    upstream.send(OK).await;
    let mut answer = answer.await.unwrap();
    assert!(!answer.headers().contains_key("connection"), "{:?}", answer.headers());
    assert_eq!(whole(answer.body_mut()).await.unwrap(), b"ok");
    drop(answer);
    busy.ended().await.unwrap();
    scene.sidecar.stopped().await;
}

#[tokio::test]
async fn concurrent_requests_over_limits_connections_wait() {
    let scene = Scene::with(|config| config.limits.connections = NonZeroUsize::new(3)).await;
    let mut browser = scene.browser().await;
    let answers: Vec<_> = (0..20).map(|_request| tokio::spawn(browser.ask(get("/")))).collect();
    let mut upstreams = Vec::new();
    for _place in 0..3 {
        upstreams.push(scene.app.accept().await);
    }
    assert_eq!(scene.sidecar.metric("client_connections", &[]).await, 3.0);
    for upstream in &mut upstreams {
        upstream.head().await;
    }
    assert!(scene.app.is_untouched(), "requests over the limit wait");
    let apps: Vec<_> = upstreams
        .into_iter()
        .map(|mut upstream| {
            tokio::spawn(async move {
                upstream.send(OK).await;
                let mut served = 1;
                while let Ok(_more) = tokio::time::timeout(SHORT, upstream.head()).await {
                    upstream.send(OK).await;
                    served += 1;
                }
                served
            })
        })
        .collect();
    for answer in answers {
        assert_eq!(answer.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    let mut served = 0;
    for app in apps {
        served += soon(app).await.unwrap_or_default();
    }
    assert_eq!(served, 20);
    scene.sidecar.until("client_connections", &[], 1.0).await;
}

#[tokio::test]
async fn concurrent_requests_count_against_connections_per_address() {
    let scene = Scene::with(|config| {
        config.limits.connections_per_address = NonZeroUsize::new(2);
        config.trusted_proxies = "192.0.2.0/24".parse().unwrap();
    })
    .await;
    let mut browser = scene.browser().await;
    let _answers: Vec<_> = (0..5).map(|_request| tokio::spawn(browser.ask(get("/")))).collect();
    let (mut first, mut second) = (scene.app.accept().await, scene.app.accept().await);
    first.head().await;
    second.head().await;
    assert!(scene.app.is_untouched());
}
