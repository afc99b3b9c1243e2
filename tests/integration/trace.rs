//! Request and trace ids: passed on to the app, and logged with the session.

use serde_json::Value;

use crate::support::frame::{CLOSE, masked, plain};
use crate::support::process::Process;
use crate::support::{App, Session, Sidecar, handshake, switching};

const STREAM: &str = "/_stcore/stream";
const NORMAL: [u8; 2] = 1000u16.to_be_bytes();
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// The value of a field that occurs once.
fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let mut values = head.lines().filter_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then_some(value)
    });
    let value = values.next().unwrap_or_else(|| panic!("no {name} in {head}"));
    assert_eq!(values.next(), None, "{head}");
    value
}

/// Runs one session whose handshake has these header lines; returns the head that the app received, and the log line.
async fn session(app: &App, process: &mut Process, lines: &str) -> (String, Value) {
    let seen = Sidecar::elsewhere(process.address, process.admin);
    let mut browser = seen.connect().await;
    browser.send(handshake(STREAM, lines)).await;
    let mut upstream = app.accept().await;
    let head = upstream.head().await;
    upstream.send(switching("")).await;
    browser.head().await;
    let mut session = Session { browser, app: upstream };
    session.browser.send(masked(CLOSE, NORMAL)).await;
    session.app.expect(masked(CLOSE, NORMAL)).await;
    session.app.send(plain(CLOSE, NORMAL)).await;
    session.app.finish().await;
    drop(session);
    let line = process.line("session ended").await;
    (head, line)
}

#[tokio::test]
async fn ids_set_by_the_platform_reach_the_app_and_the_log() {
    let app = App::bind().await;
    let mut process = Process::start(&app, &[]).await;
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let lines = format!("Connection: X-Request-Id\r\nX-Request-ID: ingress/42\r\ntraceparent: {parent}\r\n");
    let (head, line) = session(&app, &mut process, &lines).await;
    assert_eq!((field(&head, "x-request-id"), field(&head, "traceparent")), ("ingress/42", parent.as_str()));
    assert_eq!((line["request_id"].as_str(), line["trace_id"].as_str()), (Some("ingress/42"), Some(TRACE)));
}

#[tokio::test]
async fn a_missing_or_malformed_request_id_is_replaced_by_a_new_one() {
    let app = App::bind().await;
    let mut process = Process::start(&app, &[]).await;
    let mut seen = std::collections::HashSet::new();
    for lines in ["", "X-Request-ID: two words\r\ntraceparent: 00-secret\r\n", "X-Request-ID: a\r\nX-Request-ID: b\r\n"]
    {
        let (head, line) = session(&app, &mut process, lines).await;
        let id = field(&head, "x-request-id").to_owned();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{head}");
        assert_eq!((line["request_id"].as_str(), line.get("trace_id")), (Some(id.as_str()), None));
        assert!(seen.insert(id));
    }
}

#[tokio::test]
async fn plain_http_requests_have_a_request_id_too() {
    let (app, sidecar) = Sidecar::with_app().await;
    for (lines, expected) in [("X-Request-Id: abc\r\n", Some("abc")), ("", None)] {
        let mut browser = sidecar.connect().await;
        browser.send(format!("GET / HTTP/1.1\r\nHost: app.test\r\n{lines}\r\n")).await;
        let mut upstream = app.accept().await;
        let head = upstream.head().await;
        // A plain close looks like a half-close: the request may be sent again.
        browser.reset();
        upstream.end().await;
        let id = field(&head, "x-request-id");
        assert!(expected.map_or(id.len() == 32, |expected| id == expected), "{head}");
    }
}
