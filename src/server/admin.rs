//! The admin port: probes, metrics, live sessions, the status page, and the begin of a drain.
//!
//! Law: what it says of the sidecar never depends on the app, and it goes on saying it while the sidecar drains.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tracing::debug;

use super::status::Configured;
use super::{listener, status};
use crate::drain::Drain;
use crate::limits::Seldom;
use crate::metrics::Metrics;
use crate::session::Sessions;

/// Connections served at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request's head, idle time before it included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may live: clients that do not read their answers must not starve the probes for ever.
const MAX_LIFETIME: Duration = Duration::from_secs(300);

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// What the admin port tells about.
#[derive(Clone)]
pub struct AdminState {
    /// Shown at `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Shown at `/sessions`.
    pub sessions: Sessions,
    /// Makes `/readyz` say 503.
    pub drain: Drain,
    /// Shown on the status page.
    pub configured: Configured,
}

/// Serves until `stop` resolves, then cuts what is open. `stop` is the end of the process, not the begin of its
/// drain: `/readyz` must be there to say that the sidecar drains.
pub async fn serve(listener: TcpListener, state: AdminState, stop: impl Future<Output = ()>) {
    let mut stop = pin!(stop);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (mut connections, exhausted) = (JoinSet::new(), Seldom::default());
    loop {
        let (stream, slot) = tokio::select! {
            () = &mut stop => return,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &slots, &exhausted) => accepted,
        };
        let state = state.clone();
        connections.spawn(async move {
            serve_connection(stream, state).await;
            drop(slot);
        });
    }
}

/// The next connection and its slot; may take its time.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    exhausted: &Seldom,
) -> (TcpStream, OwnedSemaphorePermit) {
    let slot = Arc::clone(slots).acquire_owned().await.expect("nobody closes the semaphore");
    (listener::accept(listener, exhausted).await.0, slot)
}

async fn serve_connection(stream: TcpStream, state: AdminState) {
    let here = is_of_this_machine(&stream);
    let asked_to_drain = AtomicBool::new(false);
    let service = service_fn(|request| {
        let response = match request.uri().path() {
            "/drain" => drain(&request, here),
            _ => respond(&request, &state),
        };
        asked_to_drain.fetch_or(response.status() == StatusCode::ACCEPTED, Relaxed);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(MAX_LIFETIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "admin connection ended"),
        Err(_) => debug!("admin connection outlived its time"),
    }
    if asked_to_drain.load(Relaxed) {
        // Only now: a sidecar that does nothing is gone before its answer is written.
        tracing::info!("asked to drain");
        state.drain.start();
    }
}

/// Whether a client on this machine asks: `heartbeat-sidecar drain` does.
fn is_of_this_machine(stream: &TcpStream) -> bool {
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return false };
    let peer = peer.ip().to_canonical();
    peer.is_loopback() || peer == local.ip().to_canonical()
}

/// The answer to who wants the drain to begin: for clients on this machine that are no browsers: a browser says with every POST from where it
/// comes (Fetch Standard §3.2), and no page can keep it from that, whatever name it has for this port.
fn drain<B>(request: &Request<B>, here: bool) -> Response<Full<Bytes>> {
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

fn respond<B>(request: &Request<B>, state: &AdminState) -> Response<Full<Bytes>> {
    let page: fn(&AdminState, &str) -> Response<Full<Bytes>> = match request.uri().path() {
        "/" => |_, _| status::page(),
        "/status.json" => |state, query| match status::numbers(state, query) {
            Ok(numbers) => answer(StatusCode::OK, JSON, numbers),
            Err(wrong) => answer(StatusCode::BAD_REQUEST, TEXT, format!("{wrong}\n")),
        },
        "/livez" => |_, _| answer(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => |state, _| match state.drain.is_draining() {
            false => answer(StatusCode::OK, TEXT, "ready\n"),
            true => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n"),
        },
        "/metrics" => |state, _| answer(StatusCode::OK, PROMETHEUS, state.metrics.render()),
        "/sessions" => |state, _| {
            let sessions = serde_json::to_vec(&state.sessions.snapshot()).expect("numbers and strings only");
            answer(StatusCode::OK, JSON, sessions)
        },
        _ => |_, _| answer(StatusCode::NOT_FOUND, TEXT, "not found\n"),
    };
    if request.method() == Method::GET || request.method() == Method::HEAD {
        return page(state, request.uri().query().unwrap_or_default());
    }
    not_allowed("GET, HEAD", "GET or HEAD only\n")
}

fn not_allowed(allowed: &'static str, text: &'static str) -> Response<Full<Bytes>> {
    let mut refusal = answer(StatusCode::METHOD_NOT_ALLOWED, TEXT, text);
    refusal.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    refusal
}

pub(super) fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::server::status::InForce;
    use crate::session::SessionInfo;
    use crate::session::stop::Stop;

    struct Admin {
        address: SocketAddr,
        state: AdminState,
        _task: AbortOnDropHandle<()>,
    }

    fn state() -> AdminState {
        AdminState {
            metrics: Metrics::new(),
            sessions: Sessions::new(),
            drain: Drain::new(),
            configured: Arc::new(InForce::default),
        }
    }

    async fn admin() -> Admin {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = state();
        let task = tokio::spawn(serve(listener, state.clone(), std::future::pending()));
        Admin { address, state, _task: AbortOnDropHandle::new(task) }
    }

    impl Admin {
        /// Head and body of the answer; ends when the server closes.
        async fn ask(&self, method: &str, path: &str) -> (String, String) {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            let request = format!("{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            (head.to_owned(), body.to_owned())
        }
    }

    #[tokio::test]
    async fn a_running_sidecar_is_live_and_ready() {
        let admin = admin().await;
        for (path, expected) in [("/livez", "ok\n"), ("/readyz", "ready\n")] {
            let (head, body) = admin.ask("GET", path).await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            assert_eq!(body, expected);
        }
    }

    #[tokio::test]
    async fn a_draining_sidecar_is_live_but_not_ready() {
        let admin = admin().await;
        admin.state.drain.start();
        let (head, body) = admin.ask("GET", "/readyz").await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert_eq!(body, "draining\n");
        assert!(admin.ask("GET", "/livez").await.0.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn a_drain_is_begun_by_a_post_and_by_nothing_else() {
        let admin = admin().await;
        assert!(admin.ask("GET", "/drain").await.0.starts_with("HTTP/1.1 405 "));
        // Lines smuggled in behind the path are a browser's.
        for field in ["origin: http://127.0.0.1:9600", "Origin: null", "sec-fetch-site: same-origin"] {
            let (head, _) = admin.ask("POST", &format!("/drain HTTP/1.1\r\n{field}\r\nx: ")).await;
            assert!(head.starts_with("HTTP/1.1 403 "), "{field}: {head}");
        }
        assert!(!admin.state.drain.is_draining());
        for _again in 0..2 {
            let (head, body) = admin.ask("POST", "/drain").await;
            assert!(head.starts_with("HTTP/1.1 202 "), "{head}");
            assert_eq!(body, "draining\n");
            tokio::time::timeout(Duration::from_secs(30), admin.state.drain.draining()).await.unwrap();
        }
    }

    #[test]
    fn a_drain_is_not_begun_from_another_machine() {
        let request = Request::post("/drain").body(()).unwrap();
        assert_eq!(drain(&request, false).status(), StatusCode::FORBIDDEN);
        assert_eq!(drain(&request, true).status(), StatusCode::ACCEPTED);
    }

    #[tokio::test]
    async fn the_admin_port_does_not_hold_up_the_drain() {
        let admin = admin().await;
        let mut idle = TcpStream::connect(admin.address).await.unwrap();
        idle.write_all(b"GET /livez HTTP/1.1\r\nhost: admin\r\n\r\n").await.unwrap();
        idle.read_u8().await.unwrap();
        admin.state.drain.close();
        let finished = tokio::time::timeout(Duration::from_secs(30), admin.state.drain.finished()).await;
        assert!(finished.is_ok());
    }

    #[tokio::test]
    async fn metrics_are_in_the_text_format() {
        let admin = admin().await;
        let app = admin.state.metrics.upstream("app");
        app.native_ack_missed();
        let (head, body) = admin.ask("GET", "/metrics").await;
        assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
        assert!(body.contains("\nheartbeat_sidecar_native_acks_missed_total{upstream=\"app\"} 1\n"), "{body}");
    }

    #[tokio::test]
    async fn sessions_are_a_json_array() {
        let admin = admin().await;
        assert_eq!(admin.ask("GET", "/sessions").await.1, "[]");
        let _session =
            admin.state.sessions.open(SessionInfo { upstream: "app".into(), tapped: true, stop: Stop::default() });
        let (head, body) = admin.ask("GET", "/sessions?pretty").await;
        assert!(head.contains("content-type: application/json"), "{head}");
        let sessions: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(sessions[0]["upstream"], "app");
    }

    #[tokio::test]
    async fn the_index_is_a_page_that_no_other_site_may_frame_or_feed() {
        let admin = admin().await;
        let (head, body) = admin.ask("GET", "/").await;
        assert!(head.contains("content-type: text/html; charset=utf-8"), "{head}");
        for line in [
            "content-security-policy: default-src 'none'; ",
            "x-content-type-options: nosniff",
            "x-frame-options: DENY",
        ] {
            assert!(head.contains(line), "{line}: {head}");
        }
        let nonce = head.split_once("script-src 'nonce-").and_then(|(_, rest)| rest.split_once('\'')).unwrap().0;
        assert!(body.contains(&format!("<script nonce=\"{nonce}\">")), "{nonce}");
        let (head, nothing) = admin.ask("HEAD", "/").await;
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert_eq!(nothing, "");
    }

    #[tokio::test]
    async fn the_numbers_of_the_page_are_json() {
        let admin = admin().await;
        let _session =
            admin.state.sessions.open(SessionInfo { upstream: "app".into(), tapped: true, stop: Stop::default() });
        let (head, body) = admin.ask("GET", "/status.json?sort=id&order=desc").await;
        assert!(head.contains("content-type: application/json") && head.contains("cache-control: no-store"), "{head}");
        let status: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&status["state"], &status["sessions"][0]["id"]), (&"ready".into(), &1.into()));
        let (head, body) = admin.ask("GET", "/status.json?limit=all").await;
        assert!(head.starts_with("HTTP/1.1 400 ") && body == "limit is a whole number\n", "{head} {body}");
    }

    #[tokio::test]
    async fn head_gives_the_length_without_the_body() {
        let (head, body) = admin().await.ask("HEAD", "/livez").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-length: 3"), "{head}");
        assert_eq!(body, "");
    }

    #[tokio::test]
    async fn other_methods_are_refused() {
        for method in ["POST", "DELETE", "OPTIONS", "BREW"] {
            let (head, _) = admin().await.ask(method, "/metrics").await;
            assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("allow: GET, HEAD"), "{head}");
        }
    }

    #[tokio::test]
    async fn unknown_paths_are_not_found() {
        for path in ["/livez/", "/metric", "//", "/_stcore/health"] {
            let (head, _) = admin().await.ask("GET", path).await;
            assert!(head.starts_with("HTTP/1.1 404 "), "{path}: {head}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_asks_nothing_more_is_hung_up_on() {
        let admin = admin().await;
        for first in ["", "GET /livez HTTP/1.1\r\n", "GET /livez HTTP/1.1\r\nhost: admin\r\n\r\n"] {
            let mut client = TcpStream::connect(admin.address).await.unwrap();
            client.write_all(first.as_bytes()).await.unwrap();
            let begun = tokio::time::Instant::now();
            let _ = client.read_to_end(&mut Vec::new()).await;
            assert!(begun.elapsed() >= HEADER_TIMEOUT && begun.elapsed() < MAX_LIFETIME, "{:?}", begun.elapsed());
        }
    }

    #[tokio::test]
    async fn more_clients_than_slots_are_served_in_turn() {
        let admin = admin().await;
        let mut held = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut client = TcpStream::connect(admin.address).await.unwrap();
            client.write_all(b"GET /livez HTTP/1.1\r\nhost: admin\r\n\r\n").await.unwrap();
            client.read_u8().await.unwrap();
            held.push(client);
        }
        let mut next = pin!(admin.ask("GET", "/livez"));
        // A round trip on a held connection: the server has had its turn, and the next client has none yet.
        let round_trip = async {
            held[0].write_all(b"GET /readyz HTTP/1.1\r\nhost: admin\r\n\r\n").await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"ready\n") {
                seen.push(held[0].read_u8().await.unwrap());
            }
        };
        tokio::select! {
            biased;
            _ = &mut next => panic!("served without a slot"),
            () = round_trip => {}
        }
        drop(held);
        assert!(next.await.0.starts_with("HTTP/1.1 200 "));
    }

    #[tokio::test]
    async fn stop_cuts_what_is_open() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = state();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stopped = async { drop(stopped.await) };
        let client = async {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET /livez HTTP/1.1\r\nhost: admin\r\n\r\n").await.unwrap();
            client.read_u8().await.unwrap();
            drop(stop);
            let mut rest = Vec::new();
            let _ = client.read_to_end(&mut rest).await;
        };
        tokio::join!(serve(listener, state, stopped), client);
        assert!(TcpStream::connect(address).await.is_err());
    }
}
