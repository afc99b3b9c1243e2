//! The admin port's response to each request.

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, ORIGIN};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use super::response::response;
use crate::server::status::{self, AdminState};

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// The admin port's pages.
pub(super) struct Pages {
    pub(super) state: AdminState,
    /// One scrape is rendered at a time, since each takes memory.
    scraping: Mutex<()>,
}

/// Handles `POST /drain`. Accepts local non-browser clients only. Browsers always send Origin or Sec-Fetch-Site on POST
/// (Fetch Standard §3.2), and no page can prevent that, whatever host name it uses for this port.
pub(super) fn drain<B>(request: &Request<B>, is_local: bool) -> Response<Bytes> {
    if request.method() != Method::POST {
        return not_allowed("POST", "use POST\n");
    }
    let headers = request.headers();
    if !is_local || headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site") {
        return response(
            StatusCode::FORBIDDEN,
            TEXT,
            "only a client on this machine that is not a browser may start a drain\n",
        );
    }
    let mut accepted = response(StatusCode::ACCEPTED, TEXT, "draining\n");
    accepted.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    accepted
}

impl Pages {
    pub(super) fn new(state: AdminState) -> Self {
        Self { state, scraping: Mutex::default() }
    }

    /// Every other response.
    pub(super) async fn respond<B>(&self, request: &Request<B>) -> Response<Bytes> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return not_allowed("GET, HEAD", "use GET or HEAD\n");
        }
        let state = &self.state;
        match request.uri().path() {
            "/" => status::page(),
            "/status.json" => match status::numbers(state, request.uri().query().unwrap_or_default()) {
                Ok(numbers) => response(StatusCode::OK, JSON, numbers),
                Err(reason) => response(StatusCode::BAD_REQUEST, TEXT, format!("{reason}\n")),
            },
            "/livez" => probe(&state.relay, Ok("ok\n")).await,
            "/readyz" => match state.drain.is_draining() {
                false => probe(&state.relay, Ok("ready\n")).await,
                true => probe(&state.relay, Err("draining\n")).await,
            },
            "/metrics" => response(StatusCode::OK, PROMETHEUS, self.metrics().await),
            "/sessions" => {
                let sessions = serde_json::to_vec(&state.sessions.snapshot()).expect("numbers and strings only");
                response(StatusCode::OK, JSON, sessions)
            }
            _ => response(StatusCode::NOT_FOUND, TEXT, "not found\n"),
        }
    }

    /// A scrape, which yields to other connections after each app.
    async fn metrics(&self) -> String {
        let _one_at_a_time = self.scraping.lock().await;
        let mut scrape = self.state.metrics.scrape();
        while scrape.step() {
            tokio::task::yield_now().await;
        }
        scrape.text()
    }
}

/// The response to a probe, once the relay's runtime has run a task: this thread would respond even if no session were
/// served. If the relay hangs there is no response, which the probe's own timeout detects.
async fn probe(relay: &Handle, state: Result<&'static str, &'static str>) -> Response<Bytes> {
    match relay.spawn(async {}).await.map_or(Err("the proxy has stopped\n"), |()| state) {
        Ok(text) => response(StatusCode::OK, TEXT, text),
        Err(text) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text),
    }
}

fn not_allowed(allowed: &'static str, text: &'static str) -> Response<Bytes> {
    let mut rejection = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
    rejection.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    rejection
}
