//! The composition root: a configuration becomes bound sockets, then a running sidecar, then a drained one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{Config, DrainSettings};
use crate::drain::{self, Drain};
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::proxy::upstream::Upstream;
use crate::relay::stream::keepalive;
use crate::server::admin::{self, AdminState};
use crate::server::listener::{self, Entrance};
use crate::session::Sessions;
use crate::session::stop::Stop;

/// The name of the one upstream, in metrics and logs.
const UPSTREAM_NAME: &str = "default";

/// How often histograms are folded when nobody scrapes, so that their samples do not pile up.
const UPKEEP: Duration = Duration::from_secs(1);

/// A sidecar whose sockets are bound and that accepts nothing yet.
pub struct Sidecar {
    config: Config,
    public: TcpListener,
    admin: TcpListener,
    metrics: Arc<Metrics>,
    sessions: Sessions,
    drain: Drain,
}

/// A socket that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot listen on {address}")]
pub struct BindError {
    key: &'static str,
    address: SocketAddr,
    source: std::io::Error,
}

impl Sidecar {
    /// Binds both sockets.
    ///
    /// # Errors
    /// Names the address that is taken, not ours, or not allowed.
    pub async fn bind(config: Config) -> Result<Self, BindError> {
        let keepalive = keepalive(config.session.patience.dead_peer);
        let public = bind("listen", config.listen, &keepalive).await?;
        let admin = bind("admin", config.admin, &keepalive).await?;
        let (metrics, sessions) = (Metrics::new(), Sessions::new());
        let drain = Drain::with_close_code(config.drain.close_code.number());
        Ok(Self { config, public, admin, metrics, sessions, drain })
    }

    /// Where browsers are served; the real port if 0 was asked for.
    ///
    /// # Errors
    /// The socket's own.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.public.local_addr()
    }

    /// Where the admin pages are served.
    ///
    /// # Errors
    /// The socket's own.
    pub fn admin_address(&self) -> std::io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// The metrics of this sidecar.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// Serves until `stop` resolves or somebody starts the drain; then drains, as README.md says. What is left at its
    /// deadline is cut when the runtime goes.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { config, public, admin, metrics, sessions, drain } = self;
        let state = AdminState { metrics: metrics.clone(), sessions: sessions.clone(), drain: drain.clone() };
        let admin = tokio::spawn(admin::serve(admin, state, std::future::pending()));
        let upkeep = tokio::spawn(keep_up(metrics.clone()));
        let upstream = Arc::new(Upstream::new(&config, UPSTREAM_NAME, metrics.upstream(UPSTREAM_NAME)));
        let proxy = Proxy::new(&config, upstream, sessions.clone(), metrics.clone());
        let entrance = Entrance::new(&config, proxy, metrics.clone());
        let public = tokio::spawn(listener::serve(public, entrance, drain.clone()));

        tokio::select! {
            () = stop => drain.start(),
            () = drain.draining() => {}
        }
        metrics.draining(true);
        wind_down(&drain, &sessions, config.drain).await;
        for task in [public, admin, upkeep] {
            task.abort();
        }
    }
}

async fn bind(key: &'static str, address: SocketAddr, keepalive: &TcpKeepalive) -> Result<TcpListener, BindError> {
    let because = |source| BindError { key, address, source };
    let listener = TcpListener::bind(address).await.map_err(because)?;
    // Connections inherit both from the socket that they are accepted from.
    let socket = SockRef::from(&listener);
    socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(keepalive)).map_err(because)?;
    Ok(listener)
}

/// The phases of a drain, one log line each. HTTP and websockets go side by side: a download that takes long must not
/// take the websockets' time.
async fn wind_down(drain: &Drain, sessions: &Sessions, settings: DrainSettings) {
    let DrainSettings { delay, window, timeout, .. } = settings;
    let begun = Instant::now();
    tracing::info!(sessions = sessions.len(), ?delay, ?timeout, "draining: not ready any more");
    let phases = async {
        tokio::time::sleep(delay).await;
        drain.close();
        let (count, http_connections) = living(drain, sessions);
        tracing::info!(sessions = count, http_connections, ?window, "closing: nothing new is accepted");
        let _spread = AbortOnDropHandle::new(tokio::spawn(say_farewell(sessions.stops(), window)));
        drain.finished().await;
    };
    match tokio::time::timeout(timeout, phases).await {
        Ok(()) => tracing::info!(took = ?begun.elapsed(), "drained"),
        Err(_elapsed) => {
            let (sessions, http_connections) = living(drain, sessions);
            tracing::warn!(sessions, http_connections, "the drain ran out of time: what is left is cut");
        }
    }
}

/// Tells every session of before; those that begin later see for themselves that it is time.
async fn say_farewell(stops: Vec<Stop>, window: Duration) {
    drain::spread(stops, window, |stop| stop.turn()).await;
    tracing::info!("every websocket is told to close");
}

/// Sessions, and browsers' other connections.
fn living(drain: &Drain, sessions: &Sessions) -> (usize, usize) {
    let sessions = sessions.len();
    (sessions, drain.alive().saturating_sub(sessions))
}

async fn keep_up(metrics: Arc<Metrics>) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        metrics.upkeep();
    }
}
