//! TLS for browsers: the handshake, and the reload of changed files.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;

use crate::limits::Permit;
use crate::metrics::{Metrics, Rejected, Reload};
use crate::tls::{ListenerFiles, Live, TlsFiles, Watcher};
use crate::transport::Stream;
use crate::transport::tls::{HandshakeError, Tls};

/// Interval of file checks. Files are polled, not watched: a watch misses a replaced link on some file systems.
const LOOK: Duration = Duration::from_secs(1);
/// Timeout for sending [`PLAIN_HTTP`].
const PATIENCE: Duration = Duration::from_secs(2);

/// Response to plain HTTP on the TLS port.
const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
                            Content-Length: 49\r\nConnection: close\r\n\r\n\
                            400 Bad Request: this port speaks HTTPS, not HTTP";

/// Performs TLS handshakes with browsers.
pub(super) struct TlsAcceptor {
    live: Arc<Live<ListenerFiles>>,
    metrics: Arc<Metrics>,
}

impl TlsAcceptor {
    pub(super) fn new(live: Arc<Live<ListenerFiles>>, metrics: Arc<Metrics>) -> Self {
        Self { live, metrics }
    }

    /// The connection under TLS; `None` if the handshake fails or exceeds `patience`. Failures are counted, except a
    /// client that just closes.
    pub(super) async fn open(
        &self,
        socket: TcpStream,
        permit: Permit,
        client: IpAddr,
        patience: Duration,
    ) -> Option<Stream> {
        let config: Arc<ServerConfig> = self.live.current();
        let error = match tokio::time::timeout(patience, Tls::accept(socket, config)).await {
            Ok(Ok(tls)) => return Some(Stream::Tls(Box::new(tls), Some(permit))),
            Ok(Err(error)) => error,
            Err(_elapsed) => HandshakeError::Io(io::ErrorKind::TimedOut.into()),
        };
        tracing::debug!(%client, %error, "connection refused");
        match error {
            // Load balancers check like this whether a port is open.
            HandshakeError::Closed => return None,
            // A client that does not read it in time is disconnected.
            HandshakeError::PlainHttp(socket) => _ = tokio::time::timeout(PATIENCE, explain(socket)).await,
            HandshakeError::Io(_) | HandshakeError::Tls(_) => {}
        }
        self.metrics.http_rejected(Rejected::Tls);
        None
    }
}

async fn explain(mut socket: TcpStream) -> io::Result<()> {
    socket.write_all(PLAIN_HTTP).await?;
    socket.shutdown().await
}

/// Polls the files, and reloads them when they change. Broken files leave the last working configuration in place.
/// `expires` receives the expiry of a new certificate, in seconds of Unix time.
pub async fn watch<M>(mut watcher: Watcher<M>, metrics: Arc<Metrics>, expires: impl Fn(u64))
where
    M: TlsFiles + Send + Sync + 'static,
    M::Config: Send + Sync,
{
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A file system may hang.
        let looked = tokio::task::spawn_blocking(move || {
            let look = watcher.look();
            (watcher, look)
        });
        let Ok((back, look)) = looked.await else { return };
        watcher = back;
        match look {
            Some(Ok(not_after)) => {
                metrics.tls_reload(Reload::Accepted);
                expires(not_after);
                tracing::info!("TLS certificates read anew: new connections use them");
            }
            Some(Err(error)) => {
                metrics.tls_reload(Reload::Refused);
                tracing::error!(%error, "TLS certificates have changed and do not work: those of before stay");
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_length_of_the_plain_http_response_is_correct() {
        let answer = std::str::from_utf8(PLAIN_HTTP).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}: {}", body.len());
    }
}
