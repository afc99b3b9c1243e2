//! Everything that a browser's connection needs, and the slots that connections share.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::net::TcpStream;

use super::overload::Rejector;
use super::proxy_protocol::{self, ProxyProtocolError};
use super::stall::StallLimit;
use super::tls::TlsAcceptor;
use crate::config::{Config, Limits, TrustedProxies};
use crate::drain::Guard;
use crate::limits::{Capacity, Client, Permit, Quota};
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::transport::Stream;

/// Everything needed to serve a connection.
#[derive(Clone)]
pub struct ListenerContext {
    pub(super) limits: Limits,
    /// Connections start with a PROXY protocol header, and come from a trusted proxy.
    proxy_protocol: bool,
    trusted_proxies: TrustedProxies,
    /// How long a client may read nothing of pending data.
    pub(super) write_stall: Duration,
    pub(super) slots: Quota,
    pub(super) rejector: Arc<Rejector>,
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
        let responses = if tls.is_some() { 0 } else { capacity.responses };
        Self {
            limits: config.limits,
            proxy_protocol: config.proxy_protocol,
            trusted_proxies: config.trusted_proxies.clone(),
            write_stall: config.session.write_stall_timeout,
            slots: Quota::of_connections(max_connections(config.limits.connections, capacity), metrics.clone()),
            rejector: Arc::new(Rejector::new(responses, metrics.clone())),
            acceptor: tls.map(|tls| Arc::new(TlsAcceptor::new(tls, metrics.clone()))),
            proxy,
            metrics,
        }
    }

    /// The context for later connections; those that are open keep their slots.
    #[must_use]
    pub fn renewed(&self, config: &Config) -> Self {
        let connections = config.limits.connections;
        if connections != self.limits.connections {
            self.slots.resize(max_connections(connections, Capacity::of_process()));
        }
        Self { limits: config.limits, trusted_proxies: config.trusted_proxies.clone(), ..self.clone() }
    }

    /// The address of a connection's client.
    pub(super) async fn client(&self, stream: &mut TcpStream, peer: SocketAddr) -> Result<IpAddr, ProxyProtocolError> {
        if !self.proxy_protocol {
            return Ok(peer.ip());
        }
        if !self.trusted_proxies.contains(peer.ip()) {
            return Err(ProxyProtocolError::Untrusted);
        }
        let client = proxy_protocol::client(stream, peer.ip());
        tokio::time::timeout(self.limits.idle_timeout, client).await.map_err(|_elapsed| ProxyProtocolError::TimedOut)?
    }

    /// The stream for HTTP; `None` if the TLS handshake failed.
    pub(super) async fn open(&self, stream: TcpStream, permit: Permit, client: IpAddr) -> Option<Stream> {
        match &self.acceptor {
            // Boxed: most connections do not need it, and its size would count for all.
            Some(acceptor) => Box::pin(acceptor.accept(stream, permit, client, self.limits.idle_timeout)).await,
            None => Some(Stream::Tcp(stream, Some(permit))),
        }
    }

    /// The stall limit of a connection.
    pub(super) fn stall(&self, guard: &Guard) -> Arc<StallLimit> {
        StallLimit::new(self.write_stall, guard.closing_token(), self.metrics.clone())
    }

    /// A slot for a client's request beyond the one that its connection's slot covers.
    pub(super) fn additional_slot(&self, client: IpAddr) -> Option<Permit> {
        let mut permit = self.slots.take()?;
        self.has_slot_for(client, &mut permit).then_some(permit)
    }

    /// Whether a client may have one more connection. A trusted proxy always may: it stands for many clients.
    pub(super) fn has_slot_for(&self, client: IpAddr, permit: &mut Permit) -> bool {
        match self.limits.connections_per_address {
            Some(max) if !self.trusted_proxies.contains(client) => permit.count_for(Client::from(client), max),
            Some(_) | None => true,
        }
    }
}

/// The configured limit, capped by the file-descriptor limit.
fn max_connections(configured: Option<NonZeroUsize>, capacity: Capacity) -> usize {
    let possible = capacity.connections;
    let max_client_connections = configured.map_or(possible, |configured| configured.get().min(possible));
    if let Some(configured) = configured.filter(|configured| configured.get() > possible) {
        tracing::warn!(configured, "limits.connections is reduced to what the file descriptor limit allows");
    }
    tracing::info!(max_client_connections, "connection limit");
    max_client_connections
}

/// Resolves when connections without a request are to be closed. Yields once: tokio polls a new socket only then, and
/// its request must be seen first.
pub(super) async fn closing(guard: &Guard) {
    guard.closing().await;
    tokio::task::yield_now().await;
}
