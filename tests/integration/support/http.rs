//! HTTP/1.1: fields of a head, and requests that the sidecar rejects.

use super::Sidecar;

/// The values of a header field; its name is case-sensitive here.
pub(crate) fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    head.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
}

/// The status with which the sidecar rejects a request. The connection must close, the app must get nothing, and
/// `reason` must be counted.
pub(crate) async fn refused(request: impl AsRef<[u8]>, reason: &str) -> String {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut browser = sidecar.connect().await;
    browser.send(request).await;
    let answer = browser.rest().await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(sidecar.metric("rejections_total", &[("reason", reason)]).await, 1.0, "{reason}: {answer}");
    assert_eq!(sidecar.metric("rejections_total", &[]).await, 1.0);
    assert!(app.is_untouched(), "the app got a connection");
    answer.split(' ').nth(1).unwrap_or("none").to_owned()
}

/// Sends a request and expects a rejection with this status, counted once for this reason.
pub(crate) async fn assert_rejected(sidecar: &Sidecar, request: &str, status: &str, reason: &str) {
    let before = sidecar.metric("rejections_total", &[("reason", reason)]).await;
    let mut client = sidecar.connect().await;
    client.send(request).await;
    let answer = String::from_utf8(client.rest().await.unwrap()).unwrap();
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(head.contains("\r\nconnection: close"), "{head}");
    let retry = head.split("\r\nretry-after: ").nth(1).and_then(|rest| rest.lines().next());
    assert!(retry.is_some_and(|seconds| (1..=5).contains(&seconds.parse::<u64>().unwrap())), "{head}");
    assert!(body.starts_with(status), "{body}");
    let after = sidecar.metric("rejections_total", &[("reason", reason)]).await;
    assert_eq!(after, before + 1.0, "{reason}");
}
