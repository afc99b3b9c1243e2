//! One endpoint of a connection, byte by byte; every wait is bounded.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::frame::Frame;
use super::soon;

/// A stream and its read buffer.
pub(crate) struct Wire<S = TcpStream> {
    pub(crate) stream: S,
    ahead: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, ahead: Vec::new() }
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> impl Future<Output = ()> {
        soon(async move {
            self.stream.write_all(bytes.as_ref()).await.unwrap();
            // TLS libraries buffer some.
            self.stream.flush().await.unwrap();
        })
    }

    /// Sends EOF.
    pub(crate) async fn finish(&mut self) {
        soon(self.stream.shutdown()).await.unwrap();
    }

    /// The head of an HTTP message with its empty line; bytes above 127 become one character each.
    #[track_caller]
    pub(crate) fn head(&mut self) -> impl Future<Output = String> {
        soon(async move {
            loop {
                if let Some(at) = self.ahead.windows(4).position(|window| window == b"\r\n\r\n") {
                    return self.ahead.drain(..at + 4).map(char::from).collect();
                }
                assert!(self.more().await.unwrap() > 0, "ended within a head: {:?}", self.ahead.escape_ascii());
            }
        })
    }

    #[track_caller]
    pub(crate) fn exactly(&mut self, length: usize) -> impl Future<Output = Vec<u8>> {
        soon(async move {
            while self.ahead.len() < length {
                assert!(self.more().await.unwrap() > 0, "ended after {:?}", self.ahead.escape_ascii());
            }
            // Splitting off frees the memory that reading took: `tests/memory` measures idle endpoints.
            let rest = self.ahead.split_off(length);
            std::mem::replace(&mut self.ahead, rest)
        })
    }

    /// Expects these bytes next.
    #[track_caller]
    pub(crate) fn expect(&mut self, bytes: impl AsRef<[u8]>) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let bytes = bytes.as_ref();
            let came = self.exactly(bytes.len()).await;
            assert!(came == bytes, "{place}: {:?} is not {:?}", came.escape_ascii(), bytes.escape_ascii());
        }
    }

    /// The next websocket frame.
    #[track_caller]
    pub(crate) fn frame(&mut self) -> impl Future<Output = Frame> {
        let place = std::panic::Location::caller();
        soon(async move {
            loop {
                if let Some((frame, length)) = Frame::parse(&self.ahead) {
                    self.ahead.drain(..length);
                    return frame;
                }
                assert!(self.more().await.unwrap() > 0, "{place}: ended within a frame: {:02x?}", self.ahead);
            }
        })
    }

    /// Reads everything until EOF.
    ///
    /// # Errors
    /// The connection was reset.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> impl Future<Output = io::Result<Vec<u8>>> {
        soon(async move {
            while self.more().await? > 0 {}
            Ok(std::mem::take(&mut self.ahead))
        })
    }

    /// Expects EOF, and nothing before it.
    #[track_caller]
    pub(crate) fn end(&mut self) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let rest = self.rest().await.unwrap();
            assert!(rest.is_empty(), "{place}: {:?} before the end", rest.escape_ascii());
        }
    }

    /// Whether nothing arrives for `time`. Only for use where no later event shows it.
    pub(crate) async fn is_silent_for(&mut self, time: Duration) -> bool {
        self.ahead.is_empty() && tokio::time::timeout(time, self.more()).await.is_err()
    }

    async fn more(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.ahead).await
    }
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::new(soon(TcpStream::connect(address)).await.unwrap())
    }

    /// Closes with a reset (RFC 9293 §3.10.5).
    pub(crate) fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}
