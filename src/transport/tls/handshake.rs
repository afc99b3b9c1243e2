//! TLS handshakes over TCP, for both sides.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::engine::{ByteQueue, Connection};
use super::{MAX_PARTIAL_BYTES, Outbound, Tls};

/// First byte of every TLS connection: the type of a handshake record (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer closed before it sent a byte.
    #[error("closed before the TLS handshake")]
    Closed,
    /// The peer sends plain HTTP, by its first byte. The bytes read so far are dropped.
    #[error("plain HTTP instead of TLS")]
    PlainHttp(TcpStream),
    /// The connection broke or ended.
    #[error("the connection broke during the TLS handshake: {0}")]
    Io(io::Error),
    /// A side rejected the other's certificate, or they have no TLS version or suite in common.
    #[error("TLS handshake: {0}")]
    Tls(rustls::Error),
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustls::Error> for HandshakeError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

impl Tls {
    /// Performs the handshake with a client. Has no timeout.
    ///
    /// # Errors
    /// Any failure of the handshake; the client gets an alert if TLS defines one.
    pub async fn accept(mut socket: TcpStream, config: Arc<ServerConfig>) -> Result<Self, HandshakeError> {
        let mut received = Vec::new();
        match socket.read_buf(&mut received).await? {
            0 => return Err(HandshakeError::Closed),
            _ if received[0] != HANDSHAKE_RECORD && received[0].is_ascii_uppercase() => {
                return Err(HandshakeError::PlainHttp(socket));
            }
            _ => {}
        }
        let connection = Connection::Server(UnbufferedServerConnection::new(config)?);
        Self::new(socket, connection).handshake(received).await
    }

    /// Performs the handshake with a server that must prove that it is `name`. Has no timeout.
    ///
    /// # Errors
    /// Any failure of the handshake.
    pub async fn connect(
        socket: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, HandshakeError> {
        let connection = Connection::Client(UnbufferedClientConnection::new(config, name)?);
        Self::new(socket, connection).handshake(Vec::new()).await
    }

    fn new(socket: TcpStream, connection: Connection) -> Self {
        let (partial, plaintext, unsent) = (Vec::new(), ByteQueue::default(), ByteQueue::default());
        // No `close_notify` can be sent before the handshake is done.
        let outbound = Outbound::Broken;
        Self { socket, connection, partial, plaintext, unsent, outbound, ended: false, read_error: None }
    }

    async fn handshake(mut self, mut received: Vec<u8>) -> Result<Self, HandshakeError> {
        loop {
            let (used, result) = self.decrypt_records(&mut received, |_bytes| 0);
            received.drain(..used);
            // Also after a failure: the alert has the reason.
            poll_fn(|cx| self.poll_flush(cx)).await?;
            result?;
            if !self.connection.is_handshaking() {
                break;
            }
            if received.len() > MAX_PARTIAL_BYTES {
                return Err(rustls::Error::General("the handshake is too long".to_owned()).into());
            }
            if self.ended || self.socket.read_buf(&mut received).await? == 0 {
                return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
            }
        }
        received.shrink_to_fit();
        (self.partial, self.outbound) = (received, Outbound::Open);
        Ok(self)
    }
}
