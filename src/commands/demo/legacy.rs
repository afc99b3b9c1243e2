//! An app that treats heartbeats as Streamlit 1.53.1 does, and can be frozen and thawed.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::interval;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::commands::probe::browser::Received;
use crate::streamlit::handshake;
use crate::streamlit::messages::{self, BackType};
use crate::streamlit::proto::forward_msg::{ScriptFinishedStatus, Type};
use crate::streamlit::proto::{EnvironmentInfo, ForwardMsg, Initialize, NewSession};

/// A version that never acks a heartbeat (1.55.0 is the first that does).
pub(super) const VERSION: &str = "1.53.1";

/// Time between two steps of the script.
pub(super) const STEP_INTERVAL: Duration = Duration::from_millis(100);

/// The text of a step, without its number.
const STEP: &str = "step ";

/// A session's message stream.
type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A running app; stops when dropped.
pub(super) struct LegacyServer {
    address: SocketAddr,
    frozen: watch::Sender<bool>,
    app: Arc<App>,
}

/// What its sessions share.
struct App {
    /// How many steps a run of the script writes.
    steps: u32,
    /// How many message streams were opened.
    streams: AtomicU32,
}

/// The server's process, which runs all of its work. Clones share it.
#[derive(Clone)]
struct Process(watch::Receiver<bool>);

impl LegacyServer {
    /// Listens on a free loopback port. A run of the script writes this many steps.
    ///
    /// # Errors
    /// The socket's error.
    pub(super) async fn start(steps: u32) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (frozen, watched) = watch::channel(false);
        let process = Process(watched);
        let app = Arc::new(App { steps, streams: AtomicU32::new(0) });
        process.spawn(accept(listener, process.clone(), app.clone()));
        Ok(Self { address, frozen, app })
    }

    /// How many message streams were opened.
    pub(super) fn streams(&self) -> u32 {
        self.app.streams.load(Relaxed)
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops it, as SIGSTOP does: sockets stay open, nothing is read and nothing is written.
    pub(super) fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Resumes it where it stopped, as SIGCONT does.
    pub(super) fn thaw(&self) {
        self.frozen.send_replace(false);
    }
}

impl Process {
    /// Runs a part of the server.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.clone().run(work));
    }

    /// Polls `work` until it or the server ends, but never while the server is frozen. On a single-threaded runtime no
    /// part of it runs after [`LegacyServer::freeze`] returns.
    async fn run(mut self, work: impl Future<Output = ()>) {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                frozen = self.0.wait_for(|frozen| *frozen) => if frozen.is_err() { return },
                () = &mut work => return,
            }
            if self.0.wait_for(|frozen| !frozen).await.is_err() {
                return;
            }
        }
    }
}

async fn accept(listener: TcpListener, process: Process, app: Arc<App>) {
    while let Ok((stream, _peer)) = listener.accept().await {
        process.spawn(serve(stream, process.clone(), app.clone()));
    }
}

async fn serve(stream: TcpStream, process: Process, app: Arc<App>) {
    let service = service_fn(|request| {
        let response = respond(request, &process, &app);
        async { Ok::<_, Infallible>(response) }
    });
    // Clients may close early.
    let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

fn respond(mut request: Request<Incoming>, process: &Process, app: &App) -> Response<String> {
    let path = request.uri().path();
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    match (request.method(), key) {
        (&Method::GET, Some(accept)) if handshake::is_stream(path) => {
            app.streams.fetch_add(1, Relaxed);
            process.spawn(session(hyper::upgrade::on(&mut request), app.steps));
            switching_protocols(&accept)
        }
        (&Method::GET, None) if path == "/_stcore/health" => Response::new("ok".to_owned()),
        _ => with_status(StatusCode::NOT_FOUND),
    }
}

fn switching_protocols(accept: &str) -> Response<String> {
    let mut response = with_status(StatusCode::SWITCHING_PROTOCOLS);
    let accept = HeaderValue::from_str(accept).expect("base64 is visible ASCII");
    response.headers_mut().extend([
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_ACCEPT, accept),
        (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("streamlit")),
    ]);
    response
}

fn with_status(status: StatusCode) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = status;
    response
}

async fn session(upgrade: OnUpgrade, steps: u32) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    // No script runs yet.
    let (mut last, mut ticks) = (steps, interval(STEP_INTERVAL));
    loop {
        // The socket answers pings while it is read.
        let sent = tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) if messages::parse_back(&bytes, true) == BackType::RerunScript => {
                    (last, ticks) = (0, interval(STEP_INTERVAL));
                    send(&mut socket, new_session()).await
                }
                // A heartbeat is a no-op in this version; other messages are not implemented.
                Some(Ok(_)) => Ok(()),
                Some(Err(_)) | None => return,
            },
            _tick = ticks.tick(), if last < steps => {
                last += 1;
                write_step(&mut socket, last, last == steps).await
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

fn new_session() -> Type {
    let environment_info = Some(EnvironmentInfo { streamlit_version: VERSION.to_owned() });
    Type::NewSession(NewSession { initialize: Some(Initialize { environment_info, session_id: session_id() }) })
}

async fn write_step(socket: &mut Socket, number: u32, is_last: bool) -> Result<(), tungstenite::Error> {
    send(socket, Type::Delta(delta(number))).await?;
    if is_last {
        send(socket, Type::ScriptFinished(ScriptFinishedStatus::FinishedSuccessfully.into())).await?;
    }
    Ok(())
}

async fn send(socket: &mut Socket, message: Type) -> Result<(), tungstenite::Error> {
    let message = ForwardMsg { hash: String::new(), r#type: Some(message) };
    socket.send(Message::binary(message.encode_to_vec())).await
}

/// `Delta { new_element: { text: { body: "step N" } } }`.
fn delta(number: u32) -> Vec<u8> {
    let body = format!("{STEP}{number}");
    // At most 15 bytes: each length is one byte.
    let length = body.len() as u8;
    [&[0x1a, length + 4, 0x0a, length + 2, 0x0a, length], body.as_bytes()].concat()
}

/// The number of the step that a message of the script shows.
pub(super) fn step(received: &Received) -> Option<u32> {
    let Received::Delta(delta) = received else { return None };
    let body = std::str::from_utf8(delta.get(6..)?).ok()?;
    body.strip_prefix(STEP)?.parse().ok()
}

/// A UUID of version 4 (RFC 9562 §5.4).
fn session_id() -> String {
    let bits = rand::random::<u128>() & !(0xf000 << 64) & !(0b11 << 62) | 0x4000 << 64 | 0b10 << 62;
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::commands::probe::browser::Browser;
    use crate::commands::probe::target::Target;

    async fn page(server: &LegacyServer) -> Browser {
        let target = Target::parse(&format!("http://{}", server.address())).expect("a URL");
        Browser::open(&target, false, Duration::from_secs(10)).await.expect("a websocket")
    }

    #[tokio::test]
    async fn the_app_sends_its_version_and_acks_no_heartbeat() {
        let server = LegacyServer::start(3).await.expect("a server");
        let mut page = page(&server).await;
        page.heartbeat().await.expect("a heartbeat");
        page.rerun().await.expect("a rerun");
        // The first message answers the rerun, not the heartbeat before it.
        assert_eq!(page.next().await.expect("a message"), Received::NewSession(Some(VERSION.to_owned())));
    }

    #[tokio::test]
    async fn a_run_writes_its_steps_in_order() {
        let server = LegacyServer::start(3).await.expect("a server");
        let mut page = page(&server).await;
        page.rerun().await.expect("a rerun");
        page.version().await.expect("a run");
        for number in 1..=3 {
            assert_eq!(step(&page.next().await.expect("a message")), Some(number));
        }
        assert_eq!(page.next().await.expect("a message"), Received::Other, "the end of the run");
        assert_eq!(server.streams(), 1);
    }

    #[tokio::test]
    async fn a_thawed_app_resumes_where_it_stopped() {
        let server = LegacyServer::start(3).await.expect("a server");
        let mut page = page(&server).await;
        let mut health = TcpStream::connect(server.address()).await.expect("a connection");
        server.freeze();
        page.rerun().await.expect("a rerun");
        let request = b"GET /_stcore/health HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n";
        health.write_all(request).await.expect("a request");
        let mut response = String::new();
        // Real sockets: this time only limits how long a wrong response is waited for.
        let silence = Duration::from_millis(100);
        tokio::time::timeout(silence, page.version()).await.expect_err("a frozen app writes nothing");
        tokio::time::timeout(silence, health.read_u8()).await.expect_err("a frozen app sends nothing");
        server.thaw();
        assert_eq!(page.version().await.expect("a message"), Some(VERSION.to_owned()));
        health.read_to_string(&mut response).await.expect("a response");
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("\r\nok"), "{response}");
    }

    #[test]
    fn a_session_id_is_a_uuid() {
        let id = session_id();
        assert_eq!(handshake::resumed_session([id.as_str()]), handshake::SessionId::parse(&id));
        assert_eq!(&id[14..15], "4", "{id}");
        assert!("89ab".contains(&id[19..20]), "{id}");
    }
}
