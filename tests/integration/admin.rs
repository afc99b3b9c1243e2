//! The admin port: it delays no session, and floods of its clients delay no probe.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use heartbeat_sidecar::config::{Config, Route};
use tokio::net::TcpSocket;

use crate::support::frame::{TEXT, masked, plain};
use crate::support::{App, Sidecar, Wire, ask_admin, soon};

/// Default timeout of a Kubernetes probe.
const PROBE: Duration = Duration::from_secs(1);

/// Sends a request with blocking I/O: nothing else runs on this thread.
fn ask_standing_still(admin: SocketAddr, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(admin).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The relay runs on the thread of the test.
#[tokio::test]
async fn admin_pages_are_served_while_the_relays_thread_is_blocked() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut session = sidecar.stream(&app).await;
    for (path, expected) in [
        ("/metrics", "\nheartbeat_sidecar_sessions{upstream=\"default\"} 1\n"),
        ("/sessions", "\"upstream\":\"default\""),
        ("/status.json", "\"live\":1"),
        ("/", "<title>heartbeat-sidecar</title>"),
    ] {
        let answer = ask_standing_still(sidecar.admin, path);
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(expected), "{path}: {answer}");
    }
    session.browser.send(masked(TEXT, "up")).await;
    session.app.expect(masked(TEXT, "up")).await;
}

async fn is_probed_in_time(admin: SocketAddr, what: &str) {
    for path in ["/livez", "/readyz"] {
        let started = Instant::now();
        let (head, _body) = ask_admin(admin, path).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{what}: {head}");
        assert!(started.elapsed() < PROBE, "{what}: {path} took {:?}", started.elapsed());
    }
}

/// A sidecar whose scrape is larger than what the kernel buffers for a client that does not read.
async fn with_large_scrape() -> Sidecar {
    let config = App::bind().await.config();
    let route = |number: usize| {
        let Config { upstream, heartbeat, .. } = config.clone();
        let path = format!("/{number}").parse().unwrap();
        Route { name: format!("app-{number}"), host: None, path, upstream, heartbeat }
    };
    Sidecar::start(Config { routes: (0..20).map(route).collect(), ..config.clone() }).await
}

/// A client with a small receive buffer.
async fn connect(admin: SocketAddr) -> Wire {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    Wire::new(soon(socket.connect(admin)).await.unwrap())
}

#[tokio::test]
async fn floods_of_idle_or_slow_clients_delay_no_probe() {
    let sidecar = with_large_scrape().await;
    let whole = "GET /livez HTTP/1.1\r\nhost: admin\r\n\r\n";
    for (what, request, clients) in [
        ("nothing", "", 500),
        ("half a head", "GET /livez HTTP/1.1\r\nhost: a", 500),
        ("a request, and no further one", whole, 500),
        ("a large answer that is not read", "GET /metrics HTTP/1.1\r\nhost: admin\r\n\r\n", 80),
    ] {
        let mut held = Vec::new();
        for client in 0..clients {
            let mut wire = connect(sidecar.admin).await;
            wire.send(request).await;
            held.push(wire);
            if client % 20 == 0 {
                is_probed_in_time(sidecar.admin, what).await;
            }
        }
        is_probed_in_time(sidecar.admin, what).await;
        let (head, body) = ask_admin(sidecar.admin, "/metrics").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && body.contains("upstream=\"app-19\""), "{what}: {head}");
    }
}

#[tokio::test]
async fn a_response_that_is_being_read_survives_a_flood() {
    let sidecar = with_large_scrape().await;
    let mut scrape = connect(sidecar.admin).await;
    scrape.send("GET /metrics HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await;
    let head = scrape.head().await;
    let mut flood = Vec::new();
    for _client in 0..200 {
        let mut wire = Wire::connect(sidecar.admin).await;
        wire.send("GET /livez HTTP/1.1\r\n").await;
        flood.push(wire);
    }
    // Closed to make room for later ones.
    soon(flood[0].rest()).await.ok();
    let length = head.to_ascii_lowercase().split("content-length: ").nth(1).unwrap().lines().next().unwrap().to_owned();
    assert_eq!(scrape.rest().await.unwrap().len(), length.parse::<usize>().unwrap());
}

#[tokio::test]
async fn sessions_continue_while_the_admin_port_is_flooded() {
    let (app, sidecar) = Sidecar::with_app().await;
    let mut session = sidecar.stream(&app).await;
    let mut flood = Vec::new();
    for _client in 0..300 {
        let mut wire = Wire::connect(sidecar.admin).await;
        wire.send("GET /metrics HTTP/1.1\r\nhost: admin\r\n\r\n").await;
        flood.push(wire);
        session.browser.send(masked(TEXT, "up")).await;
        session.app.expect(masked(TEXT, "up")).await;
        session.app.send(plain(TEXT, "down")).await;
        session.browser.expect(plain(TEXT, "down")).await;
    }
}
