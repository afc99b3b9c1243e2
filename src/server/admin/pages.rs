//! The admin port's response to each request.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::runtime::Handle;

use super::super::status;
use super::Shared;

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// Handles `POST /drain`. Accepts local non-browser clients only. Browsers always send Origin or Sec-Fetch-Site on POST
/// (Fetch Standard §3.2), and no page can prevent that, whatever host name it uses for this port.
pub(super) fn drain<B>(request: &Request<B>, here: bool) -> Response<Bytes> {
    if request.method() != Method::POST {
        return not_allowed("POST", "POST only\n");
    }
    let headers = request.headers();
    if !here || headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site") {
        return answer(StatusCode::FORBIDDEN, TEXT, "only from this machine, and from no browser\n");
    }
    let mut accepted = answer(StatusCode::ACCEPTED, TEXT, "draining\n");
    accepted.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    accepted
}

/// Every other response.
pub(super) async fn respond<B>(request: &Request<B>, shared: &Shared) -> Response<Bytes> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return not_allowed("GET, HEAD", "GET or HEAD only\n");
    }
    let state = &shared.state;
    match request.uri().path() {
        "/" => status::page(),
        "/status.json" => match status::numbers(state, request.uri().query().unwrap_or_default()) {
            Ok(numbers) => answer(StatusCode::OK, JSON, numbers),
            Err(wrong) => answer(StatusCode::BAD_REQUEST, TEXT, format!("{wrong}\n")),
        },
        "/livez" => probe(&state.relay, Ok("ok\n")).await,
        "/readyz" => match state.drain.is_draining() {
            false => probe(&state.relay, Ok("ready\n")).await,
            true => probe(&state.relay, Err("draining\n")).await,
        },
        "/metrics" => answer(StatusCode::OK, PROMETHEUS, metrics(shared).await),
        "/sessions" => {
            let sessions = serde_json::to_vec(&state.sessions.snapshot()).expect("numbers and strings only");
            answer(StatusCode::OK, JSON, sessions)
        }
        _ => answer(StatusCode::NOT_FOUND, TEXT, "not found\n"),
    }
}

/// The response to a probe, once the relay's runtime has run a task: this thread would respond even if no session were
/// served. If the relay hangs there is no response, which the probe's own timeout detects.
async fn probe(relay: &Handle, verdict: Result<&'static str, &'static str>) -> Response<Bytes> {
    match relay.spawn(async {}).await.map_or(Err("the relay has ended\n"), |()| verdict) {
        Ok(well) => answer(StatusCode::OK, TEXT, well),
        Err(unwell) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, unwell),
    }
}

/// A scrape, which yields to other connections after each app.
async fn metrics(shared: &Shared) -> String {
    let _turn = shared.scraping.lock().await;
    let mut scrape = shared.state.metrics.scrape();
    while scrape.step() {
        tokio::task::yield_now().await;
    }
    scrape.text()
}

fn not_allowed(allowed: &'static str, text: &'static str) -> Response<Bytes> {
    let mut refusal = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    refusal
}

pub(in crate::server) fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
