//! The composition root: builds a sidecar from a configuration, runs it, and drains it.

mod admin_thread;
mod reload;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use humantime::format_duration;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use self::admin_thread::AdminThread;
use self::reload::Apps;
pub use self::reload::Reloading;
use crate::config::{Config, DrainSettings};
use crate::drain::{self, Drain};
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::server::context::ListenerContext;
use crate::server::status::AdminState;
use crate::server::{admin, listener};
use crate::session::Sessions;
use crate::session::stop::Stop;
use crate::tls::{CertificateReloader, ListenerFiles, TlsError};
use crate::transport::keepalive;

/// Interval of the checks whether the app is gone.
const APP_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// How often histograms are folded without a scrape, so that their samples do not accumulate.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A sidecar with bound sockets that does not accept connections yet.
pub struct Sidecar {
    drain_settings: DrainSettings,
    public: TcpListener,
    admin: TcpListener,
    admin_thread: AdminThread,
    metrics: Arc<Metrics>,
    sessions: Sessions,
    drain: Drain,
    /// TLS for browsers.
    tls: Option<CertificateReloader<ListenerFiles>>,
    context: Arc<ArcSwap<ListenerContext>>,
    reloading: Reloading,
}

/// Sockets that are bound already; `None` binds the configured address.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Where browsers connect.
    pub listen: Option<std::net::TcpListener>,
    /// Where probes and metrics are served.
    pub admin: Option<std::net::TcpListener>,
}

/// Why a sidecar cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A socket that could not be bound.
    #[error("{key}: cannot listen on {address}")]
    Socket {
        /// The setting.
        key: &'static str,
        /// Its address.
        address: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// The thread of the admin port could not be started.
    #[error("cannot start the thread of the admin port")]
    Thread(#[source] std::io::Error),
    /// A certificate or key that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Sidecar {
    /// Reads certificates and keys, and binds both sockets.
    ///
    /// # Errors
    /// An address is in use, not local or not permitted, or a certificate file is invalid.
    pub async fn bind(config: Config) -> Result<Self, BindError> {
        Self::bind_with(config, Sockets::default()).await
    }

    /// As [`Self::bind`], with sockets that may be bound already.
    ///
    /// # Errors
    /// Those of [`Self::bind`].
    pub async fn bind_with(config: Config, sockets: Sockets) -> Result<Self, BindError> {
        let keepalive = keepalive(config.session.dead_peer_timeout);
        let public = bind("listen", config.listen, sockets.listen, &keepalive).await?;
        let admin = bind("admin", config.admin, sockets.admin, &keepalive).await?;
        let admin_thread = AdminThread::start().map_err(BindError::Thread)?;
        let admin = admin_thread.adopt(admin).map_err(BindError::Thread)?;
        let (metrics, sessions) = (Metrics::with_detail(config.metrics_detail), Sessions::new());
        let drain = Drain::with_close_code(config.drain.close_code.number());
        let tls = config.tls.files().map(CertificateReloader::load).transpose()?;
        let tls = tls.map(|(reloader, not_after)| {
            metrics.tls_not_after(not_after);
            reloader
        });
        let mut apps = Apps::new(metrics.clone());
        let routes = apps.routes(&config)?;
        let proxy = Proxy::new(&config, routes, sessions.clone(), metrics.clone());
        let acceptor = tls.as_ref().map(CertificateReloader::current);
        let context = ListenerContext::new(&config, acceptor, proxy.clone(), metrics.clone());
        let context = Arc::new(ArcSwap::from_pointee(context));
        let reloading = Reloading::new(apps, proxy, context.clone(), metrics.clone());
        let drain_settings = config.drain;
        Ok(Self { drain_settings, public, admin, admin_thread, metrics, sessions, drain, tls, context, reloading })
    }

    /// The public address, with the real port if port 0 was configured.
    ///
    /// # Errors
    /// The socket's error.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.public.local_addr()
    }

    /// The admin port's address.
    ///
    /// # Errors
    /// The socket's error.
    pub fn admin_address(&self) -> std::io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// The metrics of this sidecar.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// Its live sessions.
    pub fn sessions(&self) -> Sessions {
        self.sessions.clone()
    }

    /// Its drain.
    pub fn drain(&self) -> Drain {
        self.drain.clone()
    }

    /// Reloads its configuration while it runs.
    pub fn reloading(&self) -> Reloading {
        self.reloading.clone()
    }

    /// Serves until `stop` resolves or the drain is started; then drains, as docs/drain.md describes. Connections that
    /// remain at its deadline are aborted when the runtime is dropped. If `stop` resolves during a drain that was
    /// started elsewhere, that drain continues, but its delay ends when the app is gone.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { drain_settings, public, admin, admin_thread, metrics, sessions, drain, tls, context, reloading } =
            self;
        let for_status = reloading.clone();
        let state = AdminState {
            metrics: metrics.clone(),
            sessions: sessions.clone(),
            drain: drain.clone(),
            // This also keeps the certificates towards app servers reloading.
            config: Arc::new(move || for_status.summary()),
            relay: Handle::current(),
        };
        let admin = admin_thread.spawn(admin::serve(admin, state, std::future::pending()));
        let upkeep = admin_thread.spawn(run_upkeep(metrics.clone(), reloading.clone()));
        let certificates = tokio::spawn(reload_certificates(tls, metrics.clone()));
        let public = tokio::spawn(listener::serve(public, context, drain.clone()));

        let mut stop = pin!(stop);
        let stopped = tokio::select! {
            () = &mut stop => true,
            () = drain.draining() => false,
        };
        drain.start();
        metrics.draining(true);
        let app_is_gone = async {
            if stopped {
                return std::future::pending().await;
            }
            stop.await;
            tracing::info!(sessions = sessions.len(), "stop signal received: the drain continues");
            app_gone(&sessions, &reloading).await;
        };
        run_drain(&drain, &sessions, drain_settings, app_is_gone).await;
        for task in [public, admin, upkeep, certificates] {
            task.abort();
        }
    }
}

async fn bind(
    key: &'static str,
    address: SocketAddr,
    bound: Option<std::net::TcpListener>,
    keepalive: &TcpKeepalive,
) -> Result<TcpListener, BindError> {
    let because = |source| BindError::Socket { key, address, source };
    let listener = match bound {
        Some(bound) => bound.set_nonblocking(true).and_then(|()| TcpListener::from_std(bound)),
        None => TcpListener::bind(address).await,
    };
    let listener = listener.map_err(because)?;
    // Accepted connections inherit both options from the listener.
    let socket = SockRef::from(&listener);
    socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(keepalive)).map_err(because)?;
    Ok(listener)
}

/// Runs the phases of a drain, with one log line each. HTTP and websockets drain in parallel: a long download must not
/// use up the websockets' time. The delay ends early when `app_is_gone` resolves.
async fn run_drain(drain: &Drain, sessions: &Sessions, settings: DrainSettings, app_is_gone: impl Future<Output = ()>) {
    let DrainSettings { delay, window, timeout, .. } = settings;
    let started = Instant::now();
    let (count, of) = (sessions.len(), format_duration);
    tracing::info!(sessions = count, delay = %of(delay), timeout = %of(timeout), "drain started: /readyz is 503");
    let phases = async {
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = app_is_gone => tracing::info!("the app is gone: drain.delay ends early"),
        }
        drain.close();
        let (count, http_connections) = remaining(drain, sessions);
        tracing::info!(sessions = count, http_connections, window = %of(window), "listener closed: sessions are being closed");
        sessions.stop_parked();
        let _spread = AbortOnDropHandle::new(tokio::spawn(stop_sessions(sessions.stops(), window)));
        drain.finished().await;
    };
    match tokio::time::timeout(timeout, phases).await {
        Ok(()) => tracing::info!(took = %of(whole_millis(started.elapsed())), "drain finished"),
        Err(_elapsed) => {
            let (sessions, http_connections) = remaining(drain, sessions);
            tracing::warn!(sessions, http_connections, "drain.timeout reached: the remaining connections are aborted");
        }
    }
}

/// Resolves when the app is gone: no session is left, and every app refuses connections. Both are needed: a terminating
/// app, and a Kubernetes Service without ready endpoints, refuse connections while sessions continue.
async fn app_gone(sessions: &Sessions, reloading: &Reloading) {
    while !(sessions.is_empty() && reloading.all_apps_refuse_connections().await) {
        tokio::time::sleep(APP_CHECK_INTERVAL).await;
    }
}

/// Stops these sessions, spread over `window`; later ones check for the drain themselves.
async fn stop_sessions(stops: Vec<Stop>, window: Duration) {
    drain::spread(stops, window, |stop| stop.request()).await;
    tracing::info!("drain.window over: every session is closing");
}

/// Without the digits that only make a log line longer.
fn whole_millis(time: Duration) -> Duration {
    Duration::from_millis(time.as_millis() as u64)
}

/// Number of sessions, and of browsers' other connections.
fn remaining(drain: &Drain, sessions: &Sessions) -> (usize, usize) {
    let sessions = sessions.len();
    (sessions, drain.alive().saturating_sub(sessions))
}

/// Reloads the listener's certificates and keys when they change, if TLS is on.
async fn reload_certificates(tls: Option<CertificateReloader<ListenerFiles>>, metrics: Arc<Metrics>) {
    if let Some(reloader) = tls {
        reloader.run(metrics.clone(), |not_after| metrics.tls_not_after(not_after)).await;
    }
}

async fn run_upkeep(metrics: Arc<Metrics>, reloading: Reloading) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        metrics.upkeep();
        reloading.forget_unused(Instant::now());
    }
}
