//! The admin port as its clients see it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::server::status::ConfigSummary;
use crate::session::stop::Stop;
use crate::session::{SessionInfo, Sessions};

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
        config: Arc::new(ConfigSummary::default),
        relay: Handle::current(),
    }
}

async fn admin() -> Admin {
    serving(state()).await
}

async fn serving(state: AdminState) -> Admin {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(serve(listener, state.clone(), std::future::pending()));
    Admin { address, state, _task: AbortOnDropHandle::new(task) }
}

impl Admin {
    /// Head and body of the response; returns when the server closes.
    async fn request(&self, method: &str, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    fn open_session(&self) -> crate::session::Session {
        self.state.sessions.open(SessionInfo { upstream: "app".into(), tapped: true, stop: Stop::default() })
    }
}

#[tokio::test]
async fn a_running_sidecar_is_live_and_ready() {
    let admin = admin().await;
    for (path, expected) in [("/livez", "ok\n"), ("/readyz", "ready\n")] {
        let (head, body) = admin.request("GET", path).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(body, expected);
    }
}

#[tokio::test]
async fn a_draining_sidecar_is_live_but_not_ready() {
    let admin = admin().await;
    admin.state.drain.start();
    let (head, body) = admin.request("GET", "/readyz").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(body, "draining\n");
    assert!(admin.request("GET", "/livez").await.0.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn only_a_post_from_a_non_browser_starts_a_drain() {
    let admin = admin().await;
    assert!(admin.request("GET", "/drain").await.0.starts_with("HTTP/1.1 405 "));
    // Appended header lines, as only browsers send them.
    for field in ["origin: http://127.0.0.1:9600", "Origin: null", "sec-fetch-site: same-origin"] {
        let (head, _) = admin.request("POST", &format!("/drain HTTP/1.1\r\n{field}\r\nx: ")).await;
        assert!(head.starts_with("HTTP/1.1 403 "), "{field}: {head}");
    }
    assert!(!admin.state.drain.is_draining());
    for _again in 0..2 {
        let (head, body) = admin.request("POST", "/drain").await;
        assert!(head.starts_with("HTTP/1.1 202 "), "{head}");
        assert_eq!(body, "draining\n");
        tokio::time::timeout(Duration::from_secs(30), admin.state.drain.draining()).await.unwrap();
    }
}

#[test]
fn another_machine_cannot_start_a_drain() {
    let request = Request::post("/drain").body(()).unwrap();
    assert_eq!(pages::drain(&request, false).status(), StatusCode::FORBIDDEN);
    assert_eq!(pages::drain(&request, true).status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn open_admin_connections_do_not_delay_the_drain() {
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
    let (head, body) = admin.request("GET", "/metrics").await;
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert!(body.contains("\nheartbeat_sidecar_native_acks_missed_total{upstream=\"app\"} 1\n"), "{body}");
}

#[tokio::test]
async fn sessions_are_a_json_array() {
    let admin = admin().await;
    assert_eq!(admin.request("GET", "/sessions").await.1, "[]");
    let _session = admin.open_session();
    let (head, body) = admin.request("GET", "/sessions?pretty").await;
    assert!(head.contains("content-type: application/json"), "{head}");
    let sessions: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(sessions[0]["upstream"], "app");
}

#[tokio::test]
async fn the_index_page_forbids_framing_and_foreign_content() {
    let admin = admin().await;
    let (head, body) = admin.request("GET", "/").await;
    assert!(head.contains("content-type: text/html; charset=utf-8"), "{head}");
    for line in
        ["content-security-policy: default-src 'none'; ", "x-content-type-options: nosniff", "x-frame-options: DENY"]
    {
        assert!(head.contains(line), "{line}: {head}");
    }
    let nonce = head.split_once("script-src 'nonce-").and_then(|(_, rest)| rest.split_once('\'')).unwrap().0;
    assert!(body.contains(&format!("<script nonce=\"{nonce}\">")), "{nonce}");
    let (head, nothing) = admin.request("HEAD", "/").await;
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    assert_eq!(nothing, "");
}

#[tokio::test]
async fn the_status_numbers_are_json() {
    let admin = admin().await;
    let _session = admin.open_session();
    let (head, body) = admin.request("GET", "/status.json?sort=id&order=desc").await;
    assert!(head.contains("content-type: application/json") && head.contains("cache-control: no-store"), "{head}");
    let status: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&status["state"], &status["sessions"][0]["id"]), (&"ready".into(), &1.into()));
    let (head, body) = admin.request("GET", "/status.json?limit=all").await;
    assert!(head.starts_with("HTTP/1.1 400 ") && body == "limit must be a whole number\n", "{head} {body}");
}

#[tokio::test]
async fn head_gives_the_length_without_the_body() {
    let (head, body) = admin().await.request("HEAD", "/livez").await;
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("content-length: 3"), "{head}");
    assert_eq!(body, "");
}

#[tokio::test]
async fn other_methods_are_rejected() {
    for method in ["POST", "DELETE", "OPTIONS", "BREW"] {
        let (head, _) = admin().await.request(method, "/metrics").await;
        assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("allow: GET, HEAD"), "{head}");
    }
}

#[tokio::test]
async fn unknown_paths_are_not_found() {
    for path in ["/livez/", "/metric", "//", "/_stcore/health"] {
        let (head, _) = admin().await.request("GET", path).await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{path}: {head}");
    }
}

#[tokio::test(start_paused = true)]
async fn idle_clients_are_disconnected_after_the_header_timeout() {
    let admin = admin().await;
    for first in ["", "GET /livez HTTP/1.1\r\n", "GET /livez HTTP/1.1\r\nhost: admin\r\n\r\n"] {
        let mut client = TcpStream::connect(admin.address).await.unwrap();
        client.write_all(first.as_bytes()).await.unwrap();
        let started = tokio::time::Instant::now();
        let _ = client.read_to_end(&mut Vec::new()).await;
        assert!(started.elapsed() >= HEADER_TIMEOUT && started.elapsed() < MAX_LIFETIME, "{:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_response_is_disconnected() {
    let admin = admin().await;
    let _sessions: Vec<_> = (0..5000).map(|_session| admin.open_session()).collect();
    let mut client = TcpStream::connect(admin.address).await.unwrap();
    client.write_all(b"GET /sessions HTTP/1.1\r\nhost: admin\r\n\r\n").await.unwrap();
    tokio::time::sleep(MAX_LIFETIME + Duration::from_secs(1)).await;
    let mut response = Vec::new();
    let _ = client.read_to_end(&mut response).await;
    let whole = serde_json::to_vec(&admin.state.sessions.snapshot()).unwrap().len();
    assert!(response.len() < whole, "{} of {whole} bytes", response.len());
}

#[test]
fn only_probes_need_the_relays_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (relay, stopped) = (runtime(), tokio_util::sync::CancellationToken::new());
    let handle = relay.handle().clone();
    runtime().block_on(async {
        let admin = serving(AdminState { relay: handle, ..state() }).await;
        let mut probes = pin!(async { tokio::join!(admin.request("GET", "/livez"), admin.request("GET", "/readyz")) });
        for page in ["/metrics", "/sessions", "/status.json", "/"] {
            tokio::select! {
                biased;
                _ = &mut probes => panic!("the relay's runtime does not run"),
                (head, _body) = admin.request("GET", page) => assert!(head.starts_with("HTTP/1.1 200 "), "{head}"),
            }
        }
        let stop = stopped.clone();
        let thread = std::thread::spawn(move || relay.block_on(stop.cancelled()));
        let (live, ready) = probes.await;
        assert_eq!((live.1, ready.1), ("ok\n".to_owned(), "ready\n".to_owned()));
        stopped.cancel();
        thread.join().unwrap();
        assert!(admin.request("GET", "/livez").await.0.starts_with("HTTP/1.1 503 "));
    });
}

#[tokio::test]
async fn stop_aborts_open_connections() {
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
