//! Plain HTTP when one side fails: upstream failures become matching 5xx responses, and cut messages stay incomplete.

use std::net::SocketAddr;
use std::time::Duration;

use heartbeat_sidecar::config::UpstreamAddress;
use socket2::{Domain, Socket, Type};

use crate::support::http::values;
use crate::support::{App, Sidecar, config};

const GET: &str = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The response to a request that never reaches an app: head and body.
async fn answer(sidecar: &Sidecar, request: &str) -> (String, String) {
    let mut browser = sidecar.connect().await;
    browser.send(request).await;
    let head = browser.head().await;
    let length = values(&head.to_ascii_lowercase(), "content-length")[0].parse().unwrap();
    let body = String::from_utf8(browser.exactly(length).await).unwrap();
    (head, body)
}

#[tokio::test]
async fn an_upstream_that_is_down_is_a_502_that_names_no_address() {
    let sidecar = {
        let app = App::bind().await;
        Sidecar::start(app.config()).await
    };
    let (head, body) = answer(&sidecar, GET).await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    assert!(head.to_ascii_lowercase().contains("content-type: text/plain"), "{head}");
    assert!(body.starts_with("502 ") && body.len() < 200 && !body.contains("127.0.0.1"), "{body}");
    sidecar.until("http_requests_total", &[("method", "GET"), ("code", "5xx")], 1.0).await;
}

/// A socket whose queue is full: the kernel accepts no further connection.
async fn full_listener() -> (Socket, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    loop {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if socket.connect_timeout(&address, Duration::from_millis(200)).is_err() {
            return (listener, queued);
        }
        queued.push(socket);
    }
}

#[tokio::test]
async fn an_upstream_that_accepts_no_connection_is_a_504() {
    let (listener, _queued) = full_listener().await;
    let port = listener.local_addr().unwrap().as_socket().unwrap().port();
    let upstream = UpstreamAddress::Http { host: "127.0.0.1".to_owned(), port };
    let mut config = config(upstream);
    config.connect_timeout = Duration::from_millis(100);
    let sidecar = Sidecar::start(config).await;
    let (head, body) = answer(&sidecar, GET).await;
    assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
    assert!(body.starts_with("504 ") && !body.contains("127.0.0.1"), "{body}");
    let (head, _body) = answer(&sidecar, &crate::support::handshake("/_stcore/stream", "")).await;
    assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
    sidecar.until("handshakes_total", &[("result", "timeout")], 1.0).await;
}

#[tokio::test]
async fn an_upstream_response_that_is_not_http_is_a_502() {
    for nonsense in ["", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200 OK\r\nContent-Le"] {
        let (app, sidecar) = Sidecar::with_app().await;
        let mut browser = sidecar.connect().await;
        browser.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 0\r\n\r\n").await;
        let mut upstream = app.accept().await;
        upstream.head().await;
        upstream.send(nonsense).await;
        drop(upstream);
        let head = browser.head().await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{nonsense:?}: {head}");
    }
}

#[tokio::test]
async fn an_unrequested_101_is_a_502() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 0\r\n\r\n").await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send(crate::support::switching("")).await;
    let head = browser.head().await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
}

#[tokio::test]
async fn a_truncated_response_is_aborted_and_not_completed() {
    let (app, sidecar) = Sidecar::with_app().await;
    for framing in ["Content-Length: 100\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        let mut browser = sidecar.connect().await;
        browser.send(GET).await;
        let mut upstream = app.accept().await;
        upstream.head().await;
        upstream.send(format!("HTTP/1.1 200 OK\r\n{framing}")).await;
        browser.head().await;
        let received = &framing[framing.find("\r\n\r\n").unwrap() + 4..];
        browser.expect(received).await;
        drop(upstream);
        let rest = browser.rest().await.unwrap_or_default();
        assert!(rest.is_empty(), "{:?} looks like an end", rest.escape_ascii());
    }
}

#[tokio::test]
async fn a_truncated_upload_is_aborted_and_not_completed() {
    let (app, sidecar) = Sidecar::with_app().await;
    for framing in ["Content-Length: 100\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        let mut browser = sidecar.connect().await;
        browser.send(format!("PUT / HTTP/1.1\r\nHost: app.test\r\n{framing}")).await;
        let mut upstream = app.accept().await;
        upstream.head().await;
        let received = &framing[framing.find("\r\n\r\n").unwrap() + 4..];
        upstream.expect(received).await;
        drop(browser);
        let rest = upstream.rest().await.unwrap_or_default();
        assert!(rest.is_empty(), "{:?} looks like an end", rest.escape_ascii());
    }
}

#[tokio::test]
async fn a_browser_reset_before_the_response_frees_the_upstream() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send(GET).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    browser.reset();
    assert!(upstream.rest().await.unwrap_or_default().is_empty());
}

#[tokio::test]
async fn a_pooled_connection_that_the_upstream_closed_is_not_an_error() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send(GET).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send(OK).await;
    browser.head().await;
    browser.expect("ok").await;

    // It closes after the sidecar has sent the next request, without an answer.
    browser.send(GET).await;
    upstream.head().await;
    drop(upstream);
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send(OK).await;
    assert!(browser.head().await.starts_with("HTTP/1.1 200 "));
    browser.expect("ok").await;

    // It closes between requests.
    drop(upstream);
    browser.send(GET).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send(OK).await;
    assert!(browser.head().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn an_upstream_connection_with_bytes_after_its_response_is_not_reused() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send(GET).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send(format!("{OK}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")).await;
    browser.head().await;
    browser.expect("ok").await;
    browser.send(GET).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send(OK).await;
    browser.head().await;
    browser.expect("ok").await;
}
