//! One app server: how to reach it, and what is known of it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};

use super::body::RequestBody;
use super::watchdog::Watchdog;
use crate::config::{Config, SessionSettings, UpstreamAddress};
use crate::heartbeat::Settings;
use crate::limits::{Alarm, Capacity, Quota};
use crate::metrics::UpstreamMetrics;
use crate::relay::Knowledge;
use crate::relay::stream::{Stream, keepalive};
use crate::session::takeover::Holders;

/// How long an idle connection is kept for the next request: less than the 5 s after which uvicorn (Streamlit 1.57+)
/// closes it, so that a request seldom meets a connection that is about to close.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// An app server.
pub struct Upstream {
    pub(super) connector: Connector,
    pub(super) handshake_timeout: Duration,
    pub(super) heartbeat: Settings,
    pub(super) metrics: Arc<UpstreamMetrics>,
    pub(super) knowledge: Arc<Knowledge>,
    pub(super) name: Arc<str>,
    pub(super) session: SessionSettings,
    pub(super) holders: Holders,
    /// The places for its sessions; `None` if they are not counted.
    pub(super) places: Option<Quota>,
    pub(super) full: Alarm,
    /// `None` if pages get none.
    pub(super) watchdog: Option<Watchdog>,
    pool: Client<Connector, RequestBody>,
}

/// Why the upstream cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// It is not there.
    #[error("cannot connect to {address}")]
    Unreachable {
        /// Where it should be.
        address: Arc<UpstreamAddress>,
        /// What the system says.
        source: io::Error,
    },
    /// It does not take the connection.
    #[error("no connection to {address} within {after:?}")]
    TimedOut {
        /// Where it should be.
        address: Arc<UpstreamAddress>,
        /// `connect_timeout`.
        after: Duration,
    },
}

/// Opens connections to one address.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub(super) address: Arc<UpstreamAddress>,
    timeout: Duration,
    /// After which a silent peer is given up.
    dead_peer_timeout: Duration,
}

impl Upstream {
    /// The configured upstream; nothing is connected yet.
    pub fn new(config: &Config, name: &str, metrics: Arc<UpstreamMetrics>) -> Self {
        let connector = Connector {
            address: Arc::new(config.upstream.clone()),
            timeout: config.connect_timeout,
            dead_peer_timeout: config.session.patience.dead_peer,
        };
        let pool = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(Capacity::of_process().idle_upstream)
            .http1_preserve_header_case(true)
            .set_host(false)
            .build(connector.clone());
        Self {
            connector,
            handshake_timeout: config.handshake_timeout,
            heartbeat: config.heartbeat,
            knowledge: Arc::new(Knowledge::new(metrics.clone(), config.session.patience)),
            metrics,
            name: name.into(),
            session: config.session,
            holders: Holders::default(),
            places: config.limits.sessions.map(|most| Quota::new(most.get())),
            full: Alarm::new("limits.sessions"),
            watchdog: Watchdog::new(&config.watchdog),
            pool,
        }
    }

    /// Sends a request over a pooled connection. `request` has its target in origin form.
    ///
    /// # Errors
    /// Those of the connection, and an answer that is no HTTP.
    pub(super) async fn request(&self, mut request: Request<RequestBody>) -> Result<Response<Incoming>, ClientError> {
        let mut target = std::mem::take(request.uri_mut()).into_parts();
        // The pool's key, for one address; it is cut off again before the request is sent.
        target.scheme = Some(http::uri::Scheme::HTTP);
        target.authority = Some(http::uri::Authority::from_static("upstream"));
        *request.uri_mut() = Uri::from_parts(target).unwrap_or_default();
        self.pool.request(request).await
    }
}

impl Connector {
    pub(super) async fn connect(&self) -> Result<Stream, ConnectError> {
        let address = self.address.clone();
        match tokio::time::timeout(self.timeout, open(&address, self.dead_peer_timeout)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(ConnectError::Unreachable { address, source }),
            Err(_elapsed) => Err(ConnectError::TimedOut { address, after: self.timeout }),
        }
    }
}

async fn open(address: &UpstreamAddress, dead_peer_timeout: Duration) -> io::Result<Stream> {
    match address {
        UpstreamAddress::Http { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            // What leads to this machine ends when its process does.
            if !address.is_local() {
                SockRef::from(&stream).set_tcp_keepalive(&keepalive(dead_peer_timeout))?;
            }
            Ok(Stream::Tcp(stream, None))
        }
        UpstreamAddress::Unix(path) => {
            let stream = UnixStream::connect(path).await?;
            Ok(Stream::Unix(stream, None))
        }
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _target: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(TokioIo::new) })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
