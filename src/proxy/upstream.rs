//! One app server: how to reach it, and what is known about it.

use std::io;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Request, Response, Uri};
use http_body::Body as _;
use humantime::format_duration;
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};

use super::body::RequestBody;
use super::link::{Link, failed_on_reused_connection};
use super::response::UpstreamFailure;
use super::watchdog::Watchdog;
use crate::config::{Config, ResumeSettings, Route, SessionSettings, UpstreamAddress};
use crate::heartbeat::HeartbeatSettings;
use crate::limits::{Capacity, LimitWarning, Quota, RateLimitedWarning};
use crate::metrics::UpstreamMetrics;
use crate::relay::delivery_probe::DeliveryProbes;
use crate::relay::legs::ResumableSessions;
use crate::relay::{ParkingOptions, Timeouts, UpstreamState};
use crate::session::takeover::Owners;
use crate::transport::tls::Tls;
use crate::transport::{Stream, keepalive};

/// Idle timeout of a pooled connection: less than the 5 s after which uvicorn (Streamlit 1.57+) closes it, so that a
/// request rarely meets a connection that is about to close.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// An app server.
#[derive(Clone)]
pub struct Upstream {
    pub(super) connector: Connector,
    pub(super) handshake_timeout: Duration,
    pub(super) heartbeat: HeartbeatSettings,
    pub(super) metrics: Arc<UpstreamMetrics>,
    pub(super) state: Arc<UpstreamState>,
    pub(super) name: Arc<str>,
    pub(super) session: SessionSettings,
    pub(super) parking: Arc<ParkingOptions>,
    pub(super) resumable: ResumableSessions,
    pub(super) owners: Owners,
    /// The slots for its sessions.
    pub(super) slots: Quota,
    pub(super) session_warning: Arc<LimitWarning>,
    /// Limits the rate of warnings about failed requests.
    pub(super) failure_warning: Arc<RateLimitedWarning>,
    /// `None` if it is off.
    pub(super) watchdog: Option<Arc<Watchdog>>,
    /// For requests that can be repeated.
    pool: Client<Connector, RequestBody>,
    /// Opens a new connection for each request.
    single: Client<Connector, RequestBody>,
}

/// Why connecting to the upstream failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The attempt failed.
    #[error("cannot connect to {address}")]
    Unreachable {
        /// The upstream's address.
        address: Arc<UpstreamAddress>,
        /// The cause.
        source: io::Error,
    },
    /// The attempt took too long.
    #[error("connecting to {address} took longer than connect_timeout ({})", format_duration(*after))]
    TimedOut {
        /// The upstream's address.
        address: Arc<UpstreamAddress>,
        /// `connect_timeout`.
        after: Duration,
    },
}

impl From<&ConnectError> for UpstreamFailure {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::TimedOut { .. } => Self::TimedOut,
            ConnectError::Unreachable { .. } => Self::Unreachable,
        }
    }
}

/// TLS settings of an upstream.
#[derive(Clone)]
struct Encryption {
    config: Arc<ArcSwap<ClientConfig>>,
    /// The name that its certificate must prove.
    name: ServerName<'static>,
}

/// Opens connections to one address.
#[derive(Clone)]
pub struct Connector {
    pub(super) address: Arc<UpstreamAddress>,
    timeout: Duration,
    /// Time after which a silent peer is given up.
    dead_peer_timeout: Duration,
    encryption: Option<Encryption>,
}

impl Upstream {
    /// The app server of `app`; nothing is connected yet. `tls` is for an `https://` one.
    pub fn new(
        config: &Config,
        app: &Route,
        tls: Option<Arc<ArcSwap<ClientConfig>>>,
        metrics: Arc<UpstreamMetrics>,
    ) -> Self {
        let server_name = config.upstream_tls.name(&app.upstream);
        let session = config.session;
        let timeouts = Timeouts {
            dead_peer: session.dead_peer_timeout,
            write_stall: session.write_stall_timeout,
            takeover: session.takeover_timeout,
        };
        let connector = Connector::new(app.upstream.clone(), config.connect_timeout, timeouts.dead_peer)
            .encrypted(tls, server_name);
        let client = |idle_connections| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(idle_connections)
                .http1_preserve_header_case(true)
                .set_host(false)
                .build(connector.clone())
        };
        let (pool, single) = (client(Capacity::of_process().idle_upstream), client(0));
        Self {
            connector,
            handshake_timeout: config.handshake_timeout,
            heartbeat: app.heartbeat,
            state: Arc::new(UpstreamState::new(metrics.clone(), timeouts)),
            metrics,
            name: app.name.as_str().into(),
            session,
            parking: parking(&config.resume),
            resumable: ResumableSessions::default(),
            owners: Owners::default(),
            slots: Quota::new(max_sessions(config)),
            session_warning: Arc::new(LimitWarning::new("limits.sessions")),
            failure_warning: Arc::default(),
            watchdog: Watchdog::new(&config.watchdog, config.resume.max_age, DeliveryProbes::default()).map(Arc::new),
            pool,
            single,
        }
    }

    /// This app server with a reloaded configuration; `None` if `app` is another one. It keeps its state and its live
    /// sessions. Settings that [`Reloader`](crate::config::Reloader) does not let change are ignored.
    pub fn renewed(&self, config: &Config, app: &Route) -> Option<Self> {
        let same = *self.name == *app.name && *self.connector.address == app.upstream;
        same.then(|| {
            self.slots.resize(max_sessions(config));
            let (handshake_timeout, parking) = (config.handshake_timeout, parking(&config.resume));
            // Pages that are loaded from now on get the new age.
            let renewed = |watchdog: &Arc<Watchdog>| {
                Watchdog::new(&config.watchdog, config.resume.max_age, watchdog.probes.clone()).map(Arc::new)
            };
            let watchdog = self.watchdog.as_ref().and_then(renewed);
            Self { handshake_timeout, heartbeat: app.heartbeat, parking, watchdog, ..self.clone() }
        })
    }

    /// Shares the session slots of `other`, the same app at another address: its sessions still count, and their pages may
    /// resume them.
    #[must_use]
    pub fn sharing_slots(self, config: &Config, other: &Self) -> Self {
        other.slots.resize(max_sessions(config));
        let (slots, resumable) = (other.slots.clone(), other.resumable.clone());
        Self { slots, resumable, session_warning: other.session_warning.clone(), ..self }
    }

    /// What is known about it; each of its sessions holds it too.
    pub fn state(&self) -> &Arc<UpstreamState> {
        &self.state
    }

    /// Its name.
    pub fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    /// Whether nothing listens at its address.
    pub async fn is_connection_refused(&self) -> bool {
        self.connector.is_connection_refused().await
    }

    /// Sends a request. `request` has its target in origin form.
    ///
    /// A kept connection may close just as a request is sent over it (RFC 9112 §9.3.1). So only a safe request without a
    /// body goes over a pooled connection, and it is then retried once, over a new one (RFC 9110 §9.2.2). hyper-util
    /// itself retries only what it has not started to write.
    ///
    /// # Errors
    /// Those of the connection, and a response that is not valid HTTP.
    pub(super) async fn request(&self, mut request: Request<RequestBody>) -> Result<Response<Incoming>, ClientError> {
        let mut target = std::mem::take(request.uri_mut()).into_parts();
        // The pool's key, for one address; it is removed before the request is sent.
        target.scheme = Some(http::uri::Scheme::HTTP);
        target.authority = Some(http::uri::Authority::from_static("upstream"));
        *request.uri_mut() = Uri::from_parts(target).unwrap_or_default();
        if !request.method().is_safe() || !request.body().is_end_stream() {
            return self.single.request(request).await;
        }
        let retry = without_body(&request);
        match self.pool.request(request).await {
            Err(error) if failed_on_reused_connection(&error) => self.single.request(retry).await,
            result => result,
        }
    }
}

fn without_body(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::default());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

fn parking(settings: &ResumeSettings) -> Arc<ParkingOptions> {
    let ResumeSettings { enabled, window, buffer_bytes, parked, parked_bytes, .. } = *settings;
    let buffer_bytes = if enabled { buffer_bytes } else { 0 };
    Arc::new(ParkingOptions { buffer_bytes, window, parked, parked_bytes })
}

fn max_sessions(config: &Config) -> usize {
    config.limits.sessions.map_or(usize::MAX, NonZeroUsize::get)
}

impl Connector {
    /// To this address, within `timeout`. A peer that is silent for `dead_peer_timeout` is given up.
    pub fn new(address: UpstreamAddress, timeout: Duration, dead_peer_timeout: Duration) -> Self {
        Self { address: Arc::new(address), timeout, dead_peer_timeout, encryption: None }
    }

    /// Uses TLS if both are given; the certificate must prove `name`.
    pub fn encrypted(mut self, tls: Option<Arc<ArcSwap<ClientConfig>>>, name: Option<ServerName<'static>>) -> Self {
        self.encryption = tls.zip(name).map(|(config, name)| Encryption { config, name });
        self
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// Connecting failed, or took too long.
    pub async fn connect(&self) -> Result<Stream, ConnectError> {
        let address = self.address.clone();
        match tokio::time::timeout(self.timeout, self.open()).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(ConnectError::Unreachable { address, source }),
            Err(_elapsed) => Err(ConnectError::TimedOut { address, after: self.timeout }),
        }
    }

    /// Whether nothing listens there. No other failure shows that: not a timeout, a full queue of a unix socket, a name
    /// that cannot be resolved, a failed TLS handshake, or the limit of file descriptors.
    pub async fn is_connection_refused(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        match self.connect().await {
            Err(ConnectError::Unreachable { source, .. }) => matches!(source.kind(), ConnectionRefused | NotFound),
            Ok(_) | Err(ConnectError::TimedOut { .. }) => false,
        }
    }

    async fn open(&self) -> io::Result<Stream> {
        let (host, port) = match &*self.address {
            UpstreamAddress::Http { host, port } | UpstreamAddress::Https { host, port } => (host.as_str(), *port),
            UpstreamAddress::Unix(path) => return Ok(Stream::Unix(UnixStream::connect(path).await?, None)),
        };
        let socket = TcpStream::connect((host, port)).await?;
        socket.set_nodelay(true)?;
        // A local connection ends when the app's process does.
        if !self.address.is_local() {
            SockRef::from(&socket).set_tcp_keepalive(&keepalive(self.dead_peer_timeout))?;
        }
        let Some(Encryption { config, name }) = &self.encryption else { return Ok(Stream::Tcp(socket, None)) };
        // Boxed, so that other handshakes stay small.
        let tls = Box::pin(Tls::connect(socket, config.load_full(), name.clone())).await.map_err(io::Error::other)?;
        Ok(Stream::Tls(Box::new(tls), None))
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Link<Stream>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _target: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(Link::new).map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use socket2::{Domain, SockAddr, Socket, Type};
    use tokio::net::{TcpListener, UnixListener};

    use super::*;

    async fn is_connection_refused(address: UpstreamAddress) -> bool {
        Connector::new(address, Duration::from_secs(5), Duration::from_secs(5)).is_connection_refused().await
    }

    #[tokio::test]
    async fn connections_are_refused_only_if_nothing_listens() {
        let http = |host: &str, port| UpstreamAddress::Http { host: host.to_owned(), port };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(!is_connection_refused(http("127.0.0.1", port)).await);
        drop(listener);
        assert!(is_connection_refused(http("127.0.0.1", port)).await);
        assert!(
            !is_connection_refused(http("no-such-name.invalid", 80)).await,
            "a name that cannot be resolved does not count as refused"
        );

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        assert!(is_connection_refused(UpstreamAddress::Unix(path.clone())).await, "no file");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(!is_connection_refused(UpstreamAddress::Unix(path.clone())).await);
        drop(listener);
        assert!(is_connection_refused(UpstreamAddress::Unix(path)).await, "a socket file without a listener");
    }

    #[tokio::test]
    async fn a_full_queue_is_not_a_refusal() {
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join("app.sock");
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = UnixStream::connect(&path).await {
            waiting.push(stream);
        }
        assert!(!waiting.is_empty() && !is_connection_refused(UpstreamAddress::Unix(path)).await);
    }
}
