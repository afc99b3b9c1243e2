//! Connections as the kernel carries them: plain TCP, Unix domain sockets, and TLS over TCP.

pub mod replay;
mod stream;
mod tcp_info;
pub mod tls;

pub use self::stream::{Delivery, PeerState, Stream, keepalive};

/// A connection after its handshake, and the bytes read beyond it.
#[derive(Debug)]
pub struct Upgraded {
    /// The socket.
    pub stream: Stream,
    /// Bytes read after the handshake's last byte.
    pub early: Vec<u8>,
}
