//! Accepts browsers and serves HTTP/1.1 to each until the drain.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::proxy_protocol::{self, ProxyProtocolError};
use crate::config::{Config, TrustedProxies};
use crate::drain::{Drain, Guard};
use crate::metrics::{Metrics, Rejected};
use crate::proxy::Proxy;
use crate::relay::stream::Stream;

/// How long accepting rests when the system has no file handle left (`accept(2)`: EMFILE, ENFILE, ENOBUFS, ENOMEM).
const EXHAUSTED_REST: Duration = Duration::from_millis(100);

/// How browsers are let in.
pub struct Entrance {
    http: http1::Builder,
    /// `Some` where connections begin with a header of the PROXY protocol; from whom.
    proxy_protocol: Option<TrustedProxies>,
    /// How long that header may take.
    patience: Duration,
    proxy: Proxy,
    metrics: Arc<Metrics>,
}

impl Entrance {
    /// The entrance to `proxy`, as configured.
    pub fn new(config: &Config, proxy: Proxy, metrics: Arc<Metrics>) -> Self {
        let limits = &config.limits;
        let mut http = http1::Builder::new();
        // hyper has one clock for an idle connection and for a slow header. Its buffer holds a header and a target, or
        // some of a body.
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.idle_timeout)
            .max_buf_size(limits.header_bytes + limits.uri_bytes)
            .preserve_header_case(true);
        let proxy_protocol = config.proxy_protocol.then(|| config.trusted_proxies.clone());
        Self { http, proxy_protocol, patience: limits.idle_timeout, proxy, metrics }
    }

    /// For whom a connection is.
    async fn client(&self, stream: &mut TcpStream, peer: SocketAddr) -> Result<IpAddr, ProxyProtocolError> {
        let Some(trusted) = &self.proxy_protocol else { return Ok(peer.ip()) };
        if !trusted.contains(peer.ip()) {
            return Err(ProxyProtocolError::Untrusted);
        }
        let client = proxy_protocol::client(stream, peer.ip());
        tokio::time::timeout(self.patience, client).await.map_err(|_elapsed| ProxyProtocolError::TimedOut)?
    }
}

/// Serves until the drain closes; connections that are open then finish what they do.
pub async fn serve(listener: TcpListener, entrance: Entrance, drain: Drain) {
    let entrance = Arc::new(entrance);
    loop {
        let (stream, peer) = tokio::select! {
            () = drain.closing() => break,
            accepted = accept(&listener) => accepted,
        };
        tokio::spawn(connection(entrance.clone(), stream, peer, drain.guard()));
    }
    for (stream, peer) in waiting(listener) {
        tokio::spawn(connection(entrance.clone(), stream, peer, drain.guard()));
    }
}

/// Connections that the system has accepted already: closing the socket would reset them.
fn waiting(listener: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    let listener = listener.into_std().ok();
    std::iter::from_fn(move || {
        let (stream, peer) = listener.as_ref()?.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer))
    })
}

/// The next connection. Errors of one connection are its own affair; a system that has run out of handles gets a rest.
pub(super) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                tokio::time::sleep(EXHAUSTED_REST).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn connection(entrance: Arc<Entrance>, mut stream: TcpStream, peer: SocketAddr, guard: Guard) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a browser left before it was served");
        return;
    }
    let client = tokio::select! {
        biased;
        client = entrance.client(&mut stream, peer) => client,
        () = closing(&guard) => return,
    };
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            entrance.metrics.http_rejected(Rejected::ProxyProtocol);
            tracing::debug!(%peer, %error, "connection refused");
            return;
        }
    };
    let service = service_fn(|request| {
        let (proxy, guard) = (entrance.proxy.clone(), &guard);
        async move {
            let mut response = proxy.handle(request, client).await;
            // Who uses the connection goes elsewhere while that costs nobody a request (RFC 9112 §9.6).
            if guard.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = entrance.http.serve_connection(TokioIo::new(Stream::Tcp(stream)), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        // A request that has come is read before connections without one are closed.
        biased;
        served = connection.as_mut() => served,
        () = closing(&guard) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        if let Some(reason) = rejected(&error) {
            entrance.metrics.http_rejected(reason);
        }
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Resolves when connections that ask nothing are to be closed. A new socket is not read before the runtime has looked
/// at it once, which it does while a task yields.
async fn closing(guard: &Guard) {
    guard.closing().await;
    tokio::task::yield_now().await;
}

/// What hyper has refused by itself, with an answer where one makes sense.
fn rejected(error: &hyper::Error) -> Option<Rejected> {
    if error.is_parse_too_large() {
        Some(Rejected::Size)
    } else if error.is_parse() {
        Some(Rejected::Malformed)
    } else {
        // A slow header is none of them: hyper does not tell it from a kept connection that nobody used any more.
        None
    }
}
