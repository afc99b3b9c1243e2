//! Retries: an app receives a request once, and again only if a reused connection closed without an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::support::{App, Sidecar, Wire};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// How an app fails after reading a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    End,
    Reset,
    /// It sends this, then EOF, or a reset if `true`.
    After(&'static str, bool),
}

use Failure::{After, End, Reset};

const FAILURES: [Failure; 9] = [
    End,
    Reset,
    After("H", false),
    After("HTTP/1.1 200 OK\r\nContent-Le", false),
    After("HTTP/1.1 200 OK\r\nContent-Le", true),
    After("SSH-2.0-OpenSSH_9.6\r\n\r\n", false),
    After("HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nwhole", false),
    After("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", false),
    After("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", false),
];

impl Failure {
    async fn befall(self, mut wire: Wire) {
        match self {
            End => {}
            Reset => wire.reset(),
            After(answer, reset) => {
                wire.send(answer).await;
                if reset {
                    wire.reset();
                }
            }
        }
    }

    /// Whether it sends no byte of an answer.
    fn is_silent(self) -> bool {
        matches!(self, End | Reset)
    }

    /// What the client gets: a 502, or the head of a truncated response. A response to HEAD has no body that could be
    /// truncated or misread.
    fn status(self, method: &str) -> &'static str {
        match self {
            After(answer, _) if answer.ends_with("half") => "200",
            After(answer, _) if method == "HEAD" && answer.starts_with("HTTP") && answer.contains("\r\n\r\n") => "200",
            End | Reset | After(..) => "502",
        }
    }
}

/// An app that answers `/first`, and fails on every `/probe`, which it counts.
async fn fail(app: App, failure: Failure, seen: Arc<AtomicUsize>) {
    loop {
        let mut wire = app.accept().await;
        let seen = seen.clone();
        tokio::spawn(async move {
            loop {
                let head = wire.head().await;
                if head.contains("content-length: 4") {
                    wire.expect("body").await;
                }
                if head.contains(" /probe ") {
                    seen.fetch_add(1, SeqCst);
                    return failure.befall(wire).await;
                }
                wire.send(OK).await;
            }
        });
    }
}

#[tokio::test]
async fn only_a_safe_request_on_a_reused_connection_that_closed_unanswered_is_retried() {
    for (method, body) in [("GET", ""), ("HEAD", ""), ("OPTIONS", ""), ("POST", ""), ("GET", "body"), ("POST", "body")]
    {
        for failure in FAILURES {
            for kept in [false, true] {
                let case = format!(
                    "{method} with {body:?} on a {} connection, {failure:?}",
                    ["new", "kept"][usize::from(kept)]
                );
                let (app, sidecar) = Sidecar::with_app().await;
                let seen = Arc::new(AtomicUsize::new(0));
                let app = tokio::spawn(fail(app, failure, seen.clone()));
                let mut browser = sidecar.connect().await;
                if kept {
                    browser.send("GET /first HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
                    browser.head().await;
                    browser.expect("ok").await;
                }
                let length = if body.is_empty() { "" } else { "content-length: 4\r\n" };
                browser.send(format!("{method} /probe HTTP/1.1\r\nHost: app.test\r\n{length}\r\n{body}")).await;
                let head = browser.head().await;
                assert_eq!(&head[9..12], failure.status(method), "{case}");
                let safe = method != "POST" && body.is_empty();
                let times = if kept && failure.is_silent() && safe { 2 } else { 1 };
                assert_eq!(seen.load(SeqCst), times, "{case}");
                app.abort();
            }
        }
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_retried_uses_a_new_connection() {
    for (method, body) in [("PUT", "body"), ("POST", ""), ("DELETE", ""), ("GET", "body")] {
        let (app, sidecar) = Sidecar::with_app().await;
        let mut browser = sidecar.connect().await;
        browser.send("GET /first HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
        let mut kept = app.accept().await;
        kept.head().await;
        kept.send(OK).await;
        browser.head().await;
        browser.expect("ok").await;
        let length = body.len();
        browser.send(format!("{method} / HTTP/1.1\r\nHost: app.test\r\nContent-Length: {length}\r\n\r\n{body}")).await;
        let mut upstream = app.accept().await;
        assert!(upstream.head().await.starts_with(method), "{method} with {body:?}");
        drop(kept);
        upstream.expect(body).await;
        upstream.send(OK).await;
        assert!(browser.head().await.starts_with("HTTP/1.1 200 "), "{method} with {body:?}");
    }
}

/// Another idle connection might close as well.
#[tokio::test]
async fn a_retry_uses_a_new_connection_even_if_others_are_idle() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browsers = Vec::new();
    let mut upstreams = Vec::new();
    for _connection in 0..5 {
        let mut browser = sidecar.connect().await;
        browser.send("GET /first HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
        let mut upstream = app.accept().await;
        upstream.head().await;
        upstreams.push(upstream);
        browsers.push(browser);
    }
    for (browser, upstream) in browsers.iter_mut().zip(&mut upstreams) {
        upstream.send(OK).await;
        browser.head().await;
        browser.expect("ok").await;
    }
    // All of them are kept, and each closes when data arrives on it.
    let closing: Vec<_> = upstreams
        .into_iter()
        .map(|upstream| {
            tokio::spawn(async move {
                upstream.stream.readable().await.unwrap();
                upstream.reset();
            })
        })
        .collect();
    browsers[0].send("GET /second HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    let mut upstream = app.accept().await;
    assert!(upstream.head().await.starts_with("GET /second "));
    upstream.send(OK).await;
    assert!(browsers[0].head().await.starts_with("HTTP/1.1 200 "));
    for task in closing {
        task.abort();
    }
}
