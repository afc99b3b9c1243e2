//! Accepts connections of browsers and serves HTTP on each until the drain.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hyper::server::conn::http1::Builder;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};

use super::http1;
use super::http2::{self, Http2};
use super::overload::{Overload, Rejector};
use super::proxy_protocol::{self, ProxyProtocolError};
use super::stall::Stall;
use super::tls::TlsAcceptor;
use crate::config::{Config, TrustedProxies};
use crate::drain::{Drain, Guard};
use crate::limits::{Capacity, Client, Permit, Quota, RateLimitedWarning};
use crate::metrics::{Metrics, Rejected};
use crate::proxy::Proxy;
use crate::transport::Stream;

/// Pause before the next accept when the system has no file descriptor left (`accept(2)`: EMFILE, ENFILE, ENOBUFS,
/// ENOMEM).
const EXHAUSTED_REST: Duration = Duration::from_millis(100);

/// Everything needed to serve a connection.
#[derive(Clone)]
pub struct ListenerContext {
    pub(super) http1: Builder,
    pub(super) http2: Http2,
    /// Connections start with a PROXY protocol header, and come from a trusted proxy.
    proxy_protocol: bool,
    trusted_proxies: TrustedProxies,
    /// Timeout for that header, for the TLS handshake, and for the first bytes after them.
    pub(super) patience: Duration,
    /// How long a client may read nothing of pending data.
    pub(super) write_stall: Duration,
    /// The configured connection limit, and its slots.
    connections: Option<NonZeroUsize>,
    places: Quota,
    /// Limit for each client, except trusted proxies.
    places_per_address: Option<NonZeroUsize>,
    rejector: Arc<Rejector>,
    /// `None` serves plain HTTP.
    acceptor: Option<Arc<TlsAcceptor>>,
    pub(super) proxy: Proxy,
    pub(super) metrics: Arc<Metrics>,
}

impl ListenerContext {
    /// The context for `proxy`, as configured; with TLS if `tls` is given.
    pub fn new(config: &Config, tls: Option<Arc<ArcSwap<ServerConfig>>>, proxy: Proxy, metrics: Arc<Metrics>) -> Self {
        let capacity = Capacity::of_process();
        // Under TLS a rejection would need a handshake first, so the connection is closed.
        let answers = if tls.is_some() { 0 } else { capacity.answers };
        Self {
            http1: http1::builder(&config.limits),
            http2: Http2::new(&config.limits),
            proxy_protocol: config.proxy_protocol,
            trusted_proxies: config.trusted_proxies.clone(),
            patience: config.limits.idle_timeout,
            write_stall: config.session.timeouts.write_stall,
            connections: config.limits.connections,
            places: Quota::of_connections(most_connections(config.limits.connections, capacity), metrics.clone()),
            places_per_address: config.limits.connections_per_address,
            rejector: Arc::new(Rejector::new(answers, metrics.clone())),
            acceptor: tls.map(|tls| Arc::new(TlsAcceptor::new(tls, metrics.clone()))),
            proxy,
            metrics,
        }
    }

    /// The context for later connections; those that are open keep their slots.
    #[must_use]
    pub fn renewed(&self, config: &Config) -> Self {
        let connections = config.limits.connections;
        if connections != self.connections {
            self.places.resize(most_connections(connections, Capacity::of_process()));
        }
        Self {
            http1: http1::builder(&config.limits),
            http2: Http2::new(&config.limits),
            trusted_proxies: config.trusted_proxies.clone(),
            patience: config.limits.idle_timeout,
            connections,
            places_per_address: config.limits.connections_per_address,
            ..self.clone()
        }
    }

    /// The address of a connection's client.
    async fn client(&self, stream: &mut TcpStream, peer: SocketAddr) -> Result<IpAddr, ProxyProtocolError> {
        if !self.proxy_protocol {
            return Ok(peer.ip());
        }
        if !self.trusted_proxies.contains(peer.ip()) {
            return Err(ProxyProtocolError::Untrusted);
        }
        let client = proxy_protocol::client(stream, peer.ip());
        tokio::time::timeout(self.patience, client).await.map_err(|_elapsed| ProxyProtocolError::TimedOut)?
    }

    /// The stream for HTTP; `None` if the TLS handshake failed.
    async fn open(&self, stream: TcpStream, permit: Permit, client: IpAddr) -> Option<Stream> {
        match &self.acceptor {
            // Boxed, as everything is that few connections need: otherwise all would be larger.
            Some(acceptor) => Box::pin(acceptor.open(stream, permit, client, self.patience)).await,
            None => Some(Stream::Tcp(stream, Some(permit))),
        }
    }

    /// The stall limit of a connection.
    pub(super) fn stall(&self, guard: &Guard) -> Arc<Stall> {
        Stall::new(self.write_stall, guard.closing_token(), self.metrics.clone())
    }

    /// A slot for a client's request beyond the one that its connection's slot covers.
    pub(super) fn further_place(&self, client: IpAddr) -> Option<Permit> {
        let mut permit = self.places.take()?;
        self.has_place_for(client, &mut permit).then_some(permit)
    }

    /// Whether a client may have one more connection. A trusted proxy always may: it stands for many clients.
    fn has_place_for(&self, client: IpAddr, permit: &mut Permit) -> bool {
        match self.places_per_address {
            Some(most) if !self.trusted_proxies.contains(client) => permit.count_for(Client::from(client), most),
            Some(_) | None => true,
        }
    }
}

/// The configured limit, capped by the file-descriptor limit.
fn most_connections(configured: Option<NonZeroUsize>, capacity: Capacity) -> usize {
    let carried = capacity.connections;
    let most = configured.map_or(carried, |most| most.get().min(carried));
    if configured.is_some_and(|configured| configured.get() > carried) {
        tracing::warn!(carried, "limits.connections is more than the limit of file handles carries");
    }
    tracing::info!(connections = most, "at most so many connections of clients at a time");
    most
}

/// Serves until the drain closes; open connections then finish their requests. Each connection uses the context that is
/// current when it is accepted.
pub async fn serve(listener: TcpListener, context: Arc<ArcSwap<ListenerContext>>, drain: Drain) {
    let exhausted = RateLimitedWarning::default();
    loop {
        let (stream, peer) = tokio::select! {
            () = drain.closing() => break,
            accepted = accept(&listener, &exhausted) => accepted,
        };
        let_in(context.load_full(), stream, peer, &drain);
    }
    for (stream, peer) in waiting(listener) {
        let_in(context.load_full(), stream, peer, &drain);
    }
}

/// Serves a connection, or rejects it if no slot is free.
fn let_in(context: Arc<ListenerContext>, stream: TcpStream, peer: SocketAddr, drain: &Drain) {
    match context.places.take() {
        Some(permit) => _ = tokio::spawn(connection(context, stream, permit, peer, drain.guard())),
        None => context.rejector.reject(stream, peer.ip(), Overload::Connections, drain.guard()),
    }
}

/// Connections that the kernel has accepted already: closing the socket would reset them.
fn waiting(listener: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    let listener = listener.into_std().ok();
    std::iter::from_fn(move || {
        let (stream, peer) = listener.as_ref()?.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer))
    })
}

/// The next connection. Errors of one connection are ignored. When file descriptors run out, accepting pauses, and
/// `exhausted` limits the log lines.
pub(super) async fn accept(listener: &TcpListener, exhausted: &RateLimitedWarning) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if let Some(times) = exhausted.happened(Instant::now()) {
                    tracing::error!(%error, times, "cannot accept connections");
                }
                tokio::time::sleep(EXHAUSTED_REST).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn connection(
    context: Arc<ListenerContext>,
    mut stream: TcpStream,
    mut permit: Permit,
    peer: SocketAddr,
    guard: Guard,
) {
    let client = tokio::select! {
        biased;
        client = context.client(&mut stream, peer) => client,
        () = closing(&guard) => return,
    };
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            context.metrics.http_rejected(Rejected::ProxyProtocol);
            tracing::debug!(%peer, %error, "connection refused");
            return;
        }
    };
    if !context.has_place_for(client, &mut permit) {
        drop(permit);
        return context.rejector.reject(stream, client, Overload::ConnectionsPerAddress, guard);
    }
    let stream = tokio::select! {
        biased;
        stream = context.open(stream, permit, client) => stream,
        () = closing(&guard) => None,
    };
    let Some(stream) = stream else { return };
    if stream.speaks_http2() {
        return Box::pin(http2::serve(context, stream, client, &guard)).await;
    }
    http1::serve(context, stream, client, guard).await;
}

/// Resolves when connections without a request are to be closed. It yields once, since the runtime polls a new socket
/// only then: its request would be missed.
pub(super) async fn closing(guard: &Guard) {
    guard.closing().await;
    tokio::task::yield_now().await;
}
