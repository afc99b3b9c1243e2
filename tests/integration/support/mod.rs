//! A sidecar in this process, an app server driven by the test, and a reader of metrics.
//!
//! Invariant: every wait is bounded, so a hang fails and names its place.

pub(crate) mod draw;
pub(crate) mod frame;
pub(crate) mod heartbeat;
pub(crate) mod http;
pub(crate) mod http2;
pub(crate) mod process;
pub(crate) mod tls;
pub(crate) mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt as _;
use heartbeat_sidecar::config::{Config, UpstreamAddress};
use heartbeat_sidecar::sidecar;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use self::frame::{CLOSE, masked, plain};
pub(crate) use self::wire::Wire;

/// Longer than any wait here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// The key of RFC 6455 §1.3; [`ACCEPT`] is its accept key.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// See [`KEY`].
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Waits for at most `PATIENCE`.
#[track_caller]
pub(crate) fn soon<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(value) => value,
            Err(_elapsed) => panic!("{place}: still waiting after {PATIENCE:?}"),
        }
    }
}

/// Bytes whose period is not a power of two, so that a misplaced piece shows.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// An app server whose bytes are all written by the test.
pub(crate) struct App {
    listener: TcpListener,
}

/// A running sidecar.
pub(crate) struct Sidecar {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    run: JoinHandle<()>,
}

/// Both ends of a websocket through the sidecar.
pub(crate) struct Session {
    pub(crate) browser: Wire,
    pub(crate) app: Wire,
}

impl App {
    pub(crate) async fn bind() -> Self {
        Self::bind_at(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    pub(crate) async fn bind_at(address: SocketAddr) -> Self {
        Self { listener: TcpListener::bind(address).await.unwrap() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// A configuration with this upstream.
    pub(crate) fn config(&self) -> Config {
        config(UpstreamAddress::Http { host: "127.0.0.1".to_owned(), port: self.address().port() })
    }

    /// The sidecar's next connection.
    #[track_caller]
    pub(crate) fn accept(&self) -> impl Future<Output = Wire> {
        let accepted = soon(self.listener.accept());
        async { Wire::new(accepted.await.unwrap().0) }
    }

    /// Whether no connection waits to be accepted.
    pub(crate) fn is_untouched(&self) -> bool {
        self.listener.accept().now_or_never().is_none()
    }

    /// Answers a handshake with a 101, with these additional header lines.
    pub(crate) async fn shake_hands(&self, lines: &str) -> (String, Wire) {
        let mut app = self.accept().await;
        let head = app.head().await;
        app.send(switching(lines)).await;
        (head, app)
    }
}

impl Session {
    /// Closes it normally, the browser first.
    pub(crate) async fn close(self) {
        let Self { mut browser, mut app } = self;
        browser.send(masked(CLOSE, 1000u16.to_be_bytes())).await;
        app.expect(masked(CLOSE, 1000u16.to_be_bytes())).await;
        app.send(plain(CLOSE, 1000u16.to_be_bytes())).await;
        app.finish().await;
        browser.expect(plain(CLOSE, 1000u16.to_be_bytes())).await;
        browser.end().await;
    }
}

/// A configuration for a test: free local ports, defaults for the rest.
pub(crate) fn config(upstream: UpstreamAddress) -> Config {
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    Config { listen: local, admin: local, upstream, ..Config::default() }
}

/// A 101 with these additional header lines; each ends with CR LF. Selects Streamlit's subprotocol if they select none.
pub(crate) fn switching(lines: &str) -> String {
    let subprotocol = subprotocol(lines);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n{subprotocol}{lines}\r\n"
    )
}

/// A browser's handshake with these additional header lines; each ends with CR LF. Offers Streamlit's subprotocol if
/// they offer none.
pub(crate) fn handshake(path: &str, lines: &str) -> String {
    let subprotocol = subprotocol(lines);
    format!(
        "GET {path} HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{subprotocol}{lines}\r\n"
    )
}

fn subprotocol(lines: &str) -> &'static str {
    if lines.contains("Sec-WebSocket-Protocol:") { "" } else { "Sec-WebSocket-Protocol: streamlit\r\n" }
}

impl Sidecar {
    pub(crate) async fn start(config: Config) -> Self {
        let sidecar = sidecar::Sidecar::bind(config).await.unwrap();
        let (address, admin) = (sidecar.address().unwrap(), sidecar.admin_address().unwrap());
        let (stop, stopped) = oneshot::channel();
        let run = tokio::spawn(sidecar.run(async {
            if stopped.await.is_err() {
                // The sender was dropped: the sidecar runs as long as the test's runtime.
                std::future::pending().await
            }
        }));
        Self { address, admin, stop: Some(stop), run }
    }

    /// A sidecar in another process.
    pub(crate) fn elsewhere(address: SocketAddr, admin: SocketAddr) -> Self {
        Self { address, admin, stop: None, run: tokio::spawn(async {}) }
    }

    /// An app, and a sidecar in front of it with default settings.
    pub(crate) async fn with_app() -> (App, Self) {
        let app = App::bind().await;
        let sidecar = Self::start(app.config()).await;
        (app, sidecar)
    }

    pub(crate) async fn connect(&self) -> Wire {
        Wire::connect(self.address).await
    }

    /// A connection after its first request: hyper reads all later ones.
    pub(crate) async fn connect_used(&self, app: &App) -> Wire {
        let mut browser = self.connect().await;
        browser.send("GET /first HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
        let mut app = app.accept().await;
        app.head().await;
        app.send("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
        assert!(browser.head().await.starts_with("HTTP/1.1 204 "));
        browser
    }

    /// A websocket whose handshake is done on both sides.
    pub(crate) async fn open(&self, app: &App, path: &str) -> Session {
        self.open_with(app, path, "").await
    }

    /// Like [`Self::open`], with these header lines in the app's 101.
    pub(crate) async fn open_with(&self, app: &App, path: &str, lines: &str) -> Session {
        let mut browser = self.connect().await;
        browser.send(handshake(path, "")).await;
        let (_head, app) = app.shake_hands(lines).await;
        assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
        Session { browser, app }
    }

    /// A Streamlit session.
    pub(crate) async fn stream(&self, app: &App) -> Session {
        self.open(app, "/_stcore/stream").await
    }

    /// Requests the drain.
    pub(crate) fn stop(&mut self) {
        self.stop.take().expect("stopped once").send(()).expect("it runs");
    }

    /// Waits until `run` has returned.
    pub(crate) async fn stopped(self) {
        soon(self.run).await.unwrap();
    }

    /// A response of the admin port: head and body.
    pub(crate) async fn admin(&self, path: &str) -> (String, String) {
        ask_admin(self.admin, path).await
    }

    /// The sum of a family's samples that have these labels.
    pub(crate) async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        metric(self.admin, name, labels).await
    }

    /// See [`until`].
    #[track_caller]
    pub(crate) fn until<'a>(
        &self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
        value: f64,
    ) -> impl Future<Output = ()> + use<'a> {
        until(self.admin, name, labels, value)
    }
}

/// A response of an admin port: head and body.
pub(crate) async fn ask_admin(admin: SocketAddr, path: &str) -> (String, String) {
    let mut wire = Wire::connect(admin).await;
    wire.send(format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")).await;
    let head = wire.head().await;
    (head, String::from_utf8(wire.rest().await.unwrap()).unwrap())
}

/// The sum of a family's samples that have these labels.
pub(crate) async fn metric(admin: SocketAddr, name: &str, labels: &[(&str, &str)]) -> f64 {
    let (_head, text) = ask_admin(admin, "/metrics").await;
    let name = format!("heartbeat_sidecar_{name}");
    let samples: Vec<f64> = text
        .lines()
        .filter(|line| line.strip_prefix(&name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\""))))
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(!samples.is_empty(), "no series {name} with {labels:?}");
    samples.iter().sum()
}

/// Waits until a metric has this value. There is no event for that, so it polls.
#[track_caller]
pub(crate) fn until<'a>(
    admin: SocketAddr,
    name: &'a str,
    labels: &'a [(&'a str, &'a str)],
    value: f64,
) -> impl Future<Output = ()> + use<'a> {
    let place = std::panic::Location::caller();
    async move {
        let mut seen = f64::NAN;
        let reached = async {
            while seen != value {
                seen = metric(admin, name, labels).await;
            }
        };
        if tokio::time::timeout(PATIENCE, reached).await.is_err() {
            panic!("{place}: {name}{labels:?} is {seen}, not {value}");
        }
    }
}
