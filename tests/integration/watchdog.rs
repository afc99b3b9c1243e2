//! The sidecar's part of the watchdog: the script in the page, and answers to its queries.

use std::time::Duration;

use heartbeat_sidecar::config::{WatchdogMode, WatchdogSettings};
use socket2::SockRef;

use crate::support::frame::{BINARY, SESSION_ID, new_session, plain};
use crate::support::{App, Session, Sidecar, Wire, handshake, soon};

const PAGE: &str =
    "<!DOCTYPE html>\n<html lang=\"en\">\n  <head>\n    <title>Streamlit</title></head><body></body></html>";
const SCRIPT: &str = "<script src=\"./_heartbeat/watchdog.js\" data-mode=\"self\" data-interval=\"10000\" \
                      data-ack-timeout=\"5000\" data-max-age=\"60000\"></script>";
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A browser's request for a page, with these additional lines.
fn navigation(method: &str, lines: &str) -> String {
    format!(
        "{method} /base/ HTTP/1.1\r\nHost: app.test\r\nAccept: text/html,*/*;q=0.8\r\nAccept-Encoding: gzip\r\n{lines}\r\n"
    )
}

async fn watching() -> (App, Sidecar) {
    let app = App::bind().await;
    let mut config = app.config();
    config.watchdog = WatchdogSettings { mode: WatchdogMode::Page, ..WatchdogSettings::default() };
    let sidecar = Sidecar::start(config).await;
    (app, sidecar)
}

/// One exchange: the request that the app received, and the response's head and body that the browser received.
async fn exchange(app: &App, sidecar: &Sidecar, request: &str, response: &str) -> (String, String, String) {
    let mut browser = sidecar.connect().await;
    browser.send(request).await;
    let mut upstream = app.accept().await;
    let asked = upstream.head().await;
    upstream.send(response).await;
    drop(upstream);
    let head = browser.head().await;
    browser.finish().await;
    (asked.to_ascii_lowercase(), head.to_ascii_lowercase(), String::from_utf8(browser.rest().await.unwrap()).unwrap())
}

fn html(lines: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{lines}Content-Length: {}\r\n\r\n{body}", body.len())
}

async fn pages(sidecar: &Sidecar, result: &str) -> f64 {
    sidecar.metric("watchdog_pages_total", &[("result", result)]).await
}

#[tokio::test]
async fn the_script_is_inserted_first_in_the_head_and_the_rest_is_unchanged() {
    let (app, sidecar) = watching().await;
    let response = html("ETag: \"a\"\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nX-Own: 1\r\n", PAGE);
    let request = navigation("GET", "If-None-Match: \"a\"\r\nSec-Fetch-Dest: iframe\r\n");
    let (asked, head, body) = exchange(&app, &sidecar, &request, &response).await;
    assert!(asked.contains("\r\naccept-encoding: identity\r\n") && !asked.contains("if-none-match"), "{asked}");
    assert_eq!(body, PAGE.replace("<head>", &format!("<head>{SCRIPT}")));
    assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())) && head.contains("\r\nx-own: 1\r\n"));
    assert!(!head.contains("\r\netag:") && !head.contains("\r\nlast-modified:"), "{head}");
    assert_eq!(pages(&sidecar, "added").await, 1.0);
}

#[tokio::test]
async fn a_page_sent_byte_by_byte_gets_the_script() {
    let (app, sidecar) = watching().await;
    let mut browser = sidecar.connect().await;
    browser.send(navigation("GET", "")).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    for byte in PAGE.chars() {
        upstream.send(format!("1\r\n{byte}\r\n")).await;
    }
    upstream.send("0\r\n\r\n").await;
    assert!(browser.head().await.to_ascii_lowercase().contains("transfer-encoding: chunked"));
    browser.finish().await;
    let body = String::from_utf8(browser.rest().await.unwrap()).unwrap();
    let content: String = body.split("\r\n").skip(1).step_by(2).collect();
    assert_eq!(content, PAGE.replace("<head>", &format!("<head>{SCRIPT}")));
}

#[tokio::test]
async fn pages_that_are_not_streamlits_or_cannot_take_the_script_pass_unchanged() {
    let other = "<html><head><title>Other</title></head></html>";
    for (lines, body, result) in [
        ("ETag: \"a\"\r\n", other, "not_streamlit"),
        ("ETag: \"a\"\r\n", "<html><he", "not_streamlit"),
        ("ETag: \"a\"\r\n", "", "not_streamlit"),
        ("ETag: \"a\"\r\nContent-Encoding: gzip\r\n", "\x1f", "encoded"),
        ("ETag: \"a\"\r\nContent-Security-Policy: script-src 'nonce-a'\r\n", PAGE, "forbidden"),
        ("ETag: \"a\"\r\n", &PAGE.replace("<head>", &format!("<head>{SCRIPT}")), "present"),
    ] {
        let (app, sidecar) = watching().await;
        let (_asked, head, came) = exchange(&app, &sidecar, &navigation("GET", ""), &html(lines, body)).await;
        assert_eq!(came, body);
        assert!(head.contains("\r\netag: \"a\"\r\n"), "{head}");
        assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{head}");
        assert_eq!((pages(&sidecar, result).await, pages(&sidecar, "added").await), (1.0, 0.0), "{result}");
    }
}

#[tokio::test]
async fn a_streamed_page_that_is_not_streamlits_is_not_delayed() {
    let (app, sidecar) = watching().await;
    let mut browser = sidecar.connect().await;
    browser.send(navigation("GET", "")).await;
    let mut upstream = app.accept().await;
    upstream.head().await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>first").await;
    browser.head().await;
    browser.expect("8\r\n<p>first\r\n").await;
    upstream.send("second").await;
    browser.expect("6\r\nsecond\r\n").await;
    drop(upstream);
    browser.expect("0\r\n\r\n").await;
}

#[tokio::test]
async fn only_page_requests_of_browsers_are_changed() {
    let kept = "If-None-Match: \"a\"\r\n";
    for request in [
        format!("GET / HTTP/1.1\r\nHost: app.test\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n{kept}\r\n"),
        navigation("GET", &format!("{kept}Sec-Fetch-Dest: script\r\n")),
        navigation("GET", &format!("{kept}Range: bytes=0-9\r\n")),
        navigation("POST", kept),
    ] {
        let (app, sidecar) = watching().await;
        let (asked, head, body) = exchange(&app, &sidecar, &request, &html("ETag: \"a\"\r\n", PAGE)).await;
        assert!(
            asked.contains("\r\naccept-encoding: gzip\r\n") && asked.contains("\r\nif-none-match: \"a\"\r\n"),
            "{asked}"
        );
        assert_eq!(body, PAGE);
        assert!(head.contains("\r\netag: \"a\"\r\n"), "{head}");
        assert_eq!(sidecar.metric("watchdog_pages_total", &[]).await, 0.0);
    }
}

#[tokio::test]
async fn a_head_response_omits_etag_and_length_of_the_page_without_the_script() {
    let (app, sidecar) = watching().await;
    let response = html("ETag: \"a\"\r\n", "").replace("Content-Length: 0", "Content-Length: 99");
    let (_asked, head, body) = exchange(&app, &sidecar, &navigation("HEAD", ""), &response).await;
    assert!(!head.contains("\r\netag:") && !head.contains("\r\ncontent-length:"), "{head}");
    assert_eq!(body, "");
}

#[tokio::test]
async fn an_app_that_closes_within_the_html_head_is_a_502() {
    let (app, sidecar) = watching().await;
    let response = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 99\r\n\r\n<html><head>";
    let (_asked, head, _body) = exchange(&app, &sidecar, &navigation("GET", ""), response).await;
    assert!(head.starts_with("http/1.1 502 "), "{head}");
}

#[tokio::test]
async fn trailers_pass_wherever_the_page_ends() {
    for page in ["", "<html><head>", PAGE, "other"] {
        let (app, sidecar) = watching().await;
        let chunk = if page.is_empty() { String::new() } else { format!("{:x}\r\n{page}\r\n", page.len()) };
        let response = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
             {chunk}0\r\nX-Sum: 1\r\n\r\n"
        );
        let (_asked, head, body) = exchange(&app, &sidecar, &navigation("GET", "TE: trailers\r\n"), &response).await;
        assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
        assert!(body.to_ascii_lowercase().ends_with("0\r\nx-sum: 1\r\n\r\n"), "{page:?}: {body:?}");
    }
}

#[tokio::test]
async fn the_script_is_served_under_any_base_path() {
    let (_app, sidecar) = watching().await;
    for (method, path, status) in [
        ("GET", "/_heartbeat/watchdog.js", "200"),
        ("GET", "/base/path/_heartbeat/watchdog.js", "200"),
        ("HEAD", "/_heartbeat/watchdog.js", "200"),
        ("POST", "/_heartbeat/watchdog.js", "405"),
        ("GET", "/_heartbeat/alive", "404"),
    ] {
        let (head, body) = ask(&sidecar, method, path).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(head.contains("\r\nx-content-type-options: nosniff\r\n"), "{head}");
        if status == "200" {
            assert!(head.contains("\r\ncontent-type: text/javascript; charset=utf-8\r\n"), "{head}");
            assert!(head.contains("\r\ncache-control: no-cache\r\n"), "{head}");
            assert_eq!(body.contains("class StreamSocket"), method == "GET");
        }
    }
}

#[tokio::test]
async fn without_a_watchdog_its_paths_and_pages_are_left_to_the_app() {
    let (app, sidecar) = Sidecar::with_app().await;
    for path in ["/_heartbeat/watchdog.js", "/_heartbeat/alive"] {
        let request = navigation("GET", "If-None-Match: \"a\"\r\n").replace("/base/", path);
        let (asked, _head, body) = exchange(&app, &sidecar, &request, &html("ETag: \"a\"\r\n", PAGE)).await;
        assert!(asked.starts_with(&format!("get {path} ")) && asked.contains("if-none-match"), "{asked}");
        assert_eq!(body, PAGE);
    }
}

/// An answer of the sidecar itself.
async fn ask(sidecar: &Sidecar, method: &str, path: &str) -> (String, String) {
    let mut browser = sidecar.connect().await;
    browser.send(format!("{method} {path} HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n")).await;
    let head = browser.head().await;
    (head, String::from_utf8(browser.rest().await.unwrap()).unwrap())
}

/// The sidecar's answer about the session with [`TOKEN`]: status and word.
async fn alive(sidecar: &Sidecar, wait: &str) -> (String, String) {
    let (head, body) = ask(sidecar, "GET", &format!("/base/_heartbeat/alive?socket={TOKEN}&wait={wait}")).await;
    assert!(head.contains("\r\ncache-control: no-store\r\n"), "{head}");
    (head["HTTP/1.1 ".len()..][..3].to_owned(), body.trim().to_owned())
}

/// A session opened by a page with the script, and the head that the app received.
async fn tagged(app: &App, sidecar: &Sidecar, suffix: &str, lines: &str) -> (String, Session) {
    let mut browser = sidecar.connect().await;
    browser.send(handshake(&format!("/_stcore/stream?a=1&_heartbeat={TOKEN}{suffix}"), lines)).await;
    let (head, upstream) = app.shake_hands("").await;
    assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
    (head, Session { browser, app: upstream })
}

#[tokio::test]
async fn the_app_does_not_see_the_watchdogs_token() {
    let (app, sidecar) = watching().await;
    let (head, _session) = tagged(&app, &sidecar, "", "").await;
    assert!(head.starts_with("GET /_stcore/stream?a=1 HTTP/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn a_page_that_received_everything_is_answered_idle() {
    let (app, sidecar) = watching().await;
    let (_head, mut session) = tagged(&app, &sidecar, "", "").await;
    session.app.send(plain(BINARY, "hello")).await;
    session.browser.expect(plain(BINARY, "hello")).await;
    assert_eq!(alive(&sidecar, "0").await, ("200".to_owned(), "idle".to_owned()));
    assert_eq!(alive(&sidecar, "0").await.0, "429", "asked again too soon");
}

/// Such as a proxy that no longer reaches the browser.
#[tokio::test]
async fn a_peer_that_takes_every_small_message_at_once_is_answered_idle() {
    let (app, sidecar) = watching().await;
    let (_head, mut session) = tagged(&app, &sidecar, "", "").await;
    let chatter = tokio::spawn(async move {
        let mut moments = tokio::time::interval(Duration::from_millis(10));
        loop {
            moments.tick().await;
            session.app.send(plain(BINARY, "beat")).await;
        }
    });
    session.browser.expect(plain(BINARY, "beat")).await;
    assert_eq!(alive(&sidecar, "2000").await, ("200".to_owned(), "idle".to_owned()));
    chatter.abort();
}

/// The page cannot see that it arrives.
#[tokio::test]
async fn a_page_that_receives_a_message_slowly_from_the_app_is_answered_progress() {
    let (app, sidecar) = watching().await;
    let (_head, mut session) = tagged(&app, &sidecar, "", "").await;
    let message = plain(BINARY, vec![b'x'; 4096]);
    let start = message.len() - 1000;
    session.app.send(&message[..start]).await;
    session.browser.expect(&message[..start]).await;
    let slowly = async {
        let mut moments = tokio::time::interval(Duration::from_millis(10));
        for byte in &message[start..] {
            moments.tick().await;
            session.app.send([*byte]).await;
            session.browser.expect([*byte]).await;
        }
    };
    let word = tokio::select! {
        (_status, word) = alive(&sidecar, "2000") => word,
        () = slowly => unreachable!("the message takes 10 s"),
    };
    assert_eq!(word, "progress");
}

#[tokio::test]
async fn a_browser_that_reads_is_answered_progress_and_one_that_does_not_stalled() {
    let (app, sidecar) = watching().await;
    let (_head, session) = tagged(&app, &sidecar, "", "").await;
    SockRef::from(&session.browser.stream).set_recv_buffer_size(16 * 1024).unwrap();
    let message = plain(BINARY, vec![b'x'; 32 << 20]);
    let mut upstream = session.app;
    let sending = tokio::spawn(async move {
        upstream.send(message).await;
        upstream
    });
    sidecar.until("write_stalls_total", &[("direction", "upstream_to_browser")], 1.0).await;
    let stalled = soon(async {
        // The last accepted bytes may still be in transit.
        loop {
            let (status, word) = alive(&sidecar, "1000").await;
            if status == "200" && word != "progress" {
                return word;
            }
        }
    });
    assert_eq!(stalled.await, "stalled");
    let mut browser = session.browser;
    let slowly = async {
        let mut moments = tokio::time::interval(Duration::from_millis(1));
        loop {
            moments.tick().await;
            browser.exactly(16 * 1024).await;
        }
    };
    let word = async {
        loop {
            let (status, word) = alive(&sidecar, "5000").await;
            if status == "200" {
                return word;
            }
        }
    };
    let word = tokio::select! {
        word = soon(word) => word,
        () = slowly => unreachable!("it never ends"),
    };
    assert_eq!(word, "progress");
    sending.abort();
}

#[tokio::test]
async fn an_unknown_or_closed_socket_is_a_404() {
    let (app, sidecar) = watching().await;
    assert_eq!(alive(&sidecar, "0").await.0, "404");
    let (_head, session) = tagged(&app, &sidecar, "", "").await;
    drop(session);
    sidecar.until("sessions", &[], 0.0).await;
    assert_eq!(alive(&sidecar, "0").await.0, "404");
}

#[tokio::test]
async fn watchdog_reconnects_are_counted_separately() {
    let (app, sidecar) = watching().await;
    let resume = format!("Sec-WebSocket-Protocol: streamlit, xsrf, {SESSION_ID}\r\n");
    let first: Wire = {
        let (_head, mut session) = tagged(&app, &sidecar, ".watchdog", &resume).await;
        session.app.send(new_session("1.53.1")).await;
        session.browser.expect(new_session("1.53.1")).await;
        session.app
    };
    drop(first);
    sidecar.until("sessions", &[], 0.0).await;
    let _second = tagged(&app, &sidecar, "", &resume).await;
    assert_eq!(sidecar.metric("reconnects_total", &[("cause", "watchdog")]).await, 1.0);
    assert_eq!(sidecar.metric("reconnects_total", &[("cause", "other")]).await, 1.0);
}
