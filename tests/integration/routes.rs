//! Several apps behind one sidecar: routing, and the state that each app has separately.

use heartbeat_sidecar::config::{Config, Route};
use heartbeat_sidecar::heartbeat::Mode;

use crate::support::frame::{BINARY, CLOSE, SESSION_ID, heartbeat, masked, new_session, plain};
use crate::support::{App, Session, Sidecar, handshake, soon};

/// The sidecar's ack, which every page accepts.
const ACK: [u8; 5] = [0x52, 0, 0xd0, 1, 1];

fn route(name: &str, host: Option<&str>, path: &str, app: &App) -> Route {
    let Config { upstream, heartbeat, .. } = app.config();
    let (host, path) = (host.map(|host| host.parse().unwrap()), path.parse().unwrap());
    Route { name: name.to_owned(), host, path, upstream, heartbeat }
}

async fn start(routes: Vec<Route>) -> Sidecar {
    let config = App::bind().await.config();
    Sidecar::start(Config { routes, ..config }).await
}

fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

/// The index of the app that receives a request, with target and `Host` unchanged.
async fn taken(sidecar: &Sidecar, apps: &[App], host: &str, path: &str) -> usize {
    let mut browser = sidecar.connect().await;
    browser.send(get(host, path)).await;
    let accepts = apps.iter().map(|app| Box::pin(app.accept()));
    let (mut app, taken, _others) = soon(futures_util::future::select_all(accepts)).await;
    let head = app.head().await;
    assert!(head.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{head}");
    assert!(head.to_ascii_lowercase().contains(&format!("\r\nhost: {}\r\n", host.to_ascii_lowercase())), "{head}");
    app.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
    assert!(browser.head().await.starts_with("HTTP/1.1 204 "));
    taken
}

#[tokio::test]
async fn the_most_specific_route_gets_the_request() {
    let apps = [App::bind().await, App::bind().await, App::bind().await, App::bind().await];
    let sidecar = start(vec![
        route("rest", None, "/", &apps[0]),
        route("path", None, "/b", &apps[1]),
        route("star", Some("*.example"), "/", &apps[2]),
        route("deep", Some("a.example"), "/b", &apps[3]),
    ])
    .await;
    for (host, path, expected) in [
        ("app.test", "/", 0),
        ("app.test:8500", "/bees?b=/b", 0),
        ("app.test", "/b", 1),
        ("127.0.0.1:1", "/b/_stcore/health", 1),
        ("x.example", "/b/c", 2),
        ("A.EXAMPLE:8500", "/b/", 3),
        ("a.example", "/a", 2),
        ("example", "/", 0),
    ] {
        assert_eq!(taken(&sidecar, &apps, host, path).await, expected, "{host}{path}");
    }
    for (name, count) in [("rest", 3.0), ("path", 2.0), ("star", 2.0), ("deep", 1.0)] {
        let labels = [("upstream", name), ("method", "GET"), ("code", "2xx")];
        assert_eq!(sidecar.metric("http_requests_total", &labels).await, count, "{name}");
    }
}

#[tokio::test]
async fn a_request_that_matches_no_route_is_a_404() {
    let app = App::bind().await;
    let sidecar = start(vec![route("only", Some("app.test"), "/a", &app)]).await;
    for (count, request) in
        [get("app.test", "/b"), get("b.test", "/a"), handshake("/b/_stcore/stream", "")].iter().enumerate()
    {
        let mut browser = sidecar.connect().await;
        browser.send(request).await;
        let answer = String::from_utf8(browser.rest().await.unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert!(answer.ends_with("404 Not Found: no route for this host and path\n"), "{answer}");
        let rejected = sidecar.metric("rejections_total", &[("reason", "route")]).await;
        assert_eq!(rejected, (count + 1) as f64);
    }
    assert!(app.is_untouched());
}

#[tokio::test]
async fn each_app_has_its_own_sessions_and_heartbeats() {
    let [quiet, native] = [App::bind().await, App::bind().await];
    let mut routes = vec![route("quiet", None, "/quiet", &quiet), route("native", None, "/native", &native)];
    (routes[0].heartbeat.mode, routes[1].heartbeat.mode) = (Mode::Answer, Mode::Forward);
    let sidecar = start(routes).await;
    let mut first = sidecar.open(&quiet, "/quiet/_stcore/stream").await;
    let mut second = sidecar.open(&native, "/native/_stcore/stream").await;
    // Both apps may use the same session id.
    for Session { browser, app } in [&mut first, &mut second] {
        app.send(new_session("1.53.1")).await;
        browser.expect(new_session("1.53.1")).await;
        browser.send(heartbeat()).await;
    }
    let ping = first.app.frame().await;
    first.app.send(plain(0x8a, &ping.payload)).await;
    first.browser.expect(plain(BINARY, ACK)).await;
    second.app.expect(heartbeat()).await;
    for (name, acks) in [("quiet", 1.0), ("native", 0.0)] {
        assert_eq!(sidecar.metric("heartbeats_total", &[("upstream", name)]).await, 1.0, "{name}");
        assert_eq!(sidecar.metric("acks_total", &[("upstream", name)]).await, acks, "{name}");
    }

    let mut browser = sidecar.connect().await;
    let resumes = format!("Sec-WebSocket-Protocol: streamlit, xsrf, {SESSION_ID}\r\n");
    browser.send(handshake("/native/_stcore/stream", &resumes)).await;
    let close = second.app.frame().await;
    assert!(close.is(CLOSE, 1001u16.to_be_bytes()), "{close:?}");
    first.browser.send(masked(BINARY, "still there")).await;
    first.app.expect(masked(BINARY, "still there")).await;
}
