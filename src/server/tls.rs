//! Accepts TLS connections from browsers.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::limits::Permit;
use crate::metrics::{Metrics, Rejected};
use crate::transport::Stream;
use crate::transport::tls::{HandshakeError, Tls};

/// Timeout for sending [`PLAIN_HTTP`].
const PLAIN_HTTP_TIMEOUT: Duration = Duration::from_secs(2);

/// Response to plain HTTP on the TLS port.
const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
                            Content-Length: 49\r\nConnection: close\r\n\r\n\
                            400 Bad Request: this port speaks HTTPS, not HTTP";

/// Performs TLS handshakes with browsers.
pub(super) struct TlsAcceptor {
    config: Arc<ArcSwap<ServerConfig>>,
    metrics: Arc<Metrics>,
}

impl TlsAcceptor {
    pub(super) fn new(config: Arc<ArcSwap<ServerConfig>>, metrics: Arc<Metrics>) -> Self {
        Self { config, metrics }
    }

    /// Performs the handshake; `None` if it fails or exceeds `timeout`. Failures are counted, unless the client closes
    /// without a byte.
    pub(super) async fn accept(
        &self,
        socket: TcpStream,
        permit: Permit,
        client: IpAddr,
        timeout: Duration,
    ) -> Option<Stream> {
        let error = match tokio::time::timeout(timeout, Tls::accept(socket, self.config.load_full())).await {
            Ok(Ok(tls)) => return Some(Stream::Tls(Box::new(tls), Some(permit))),
            Ok(Err(error)) => error,
            Err(_elapsed) => HandshakeError::Io(io::ErrorKind::TimedOut.into()),
        };
        tracing::debug!(%client, %error, "TLS handshake failed");
        match error {
            // Load balancers check the port like this.
            HandshakeError::Closed => return None,
            HandshakeError::PlainHttp(socket) => {
                _ = tokio::time::timeout(PLAIN_HTTP_TIMEOUT, send_plain_http_response(socket)).await
            }
            HandshakeError::Io(_) | HandshakeError::Tls(_) => {}
        }
        self.metrics.rejected(Rejected::Tls);
        None
    }
}

async fn send_plain_http_response(mut socket: TcpStream) -> io::Result<()> {
    socket.write_all(PLAIN_HTTP).await?;
    socket.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_length_of_the_plain_http_response_is_correct() {
        let response = std::str::from_utf8(PLAIN_HTTP).expect("text");
        let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}: {}", body.len());
    }
}
