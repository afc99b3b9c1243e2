//! The stream between hyper's HTTP/1 and a client, which observes what hyper does not report.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::disconnect::DisconnectDetector;
use super::heads::HeadScanner;
use super::stall::TimeoutStream;
use crate::transport::Upgraded;

/// The head scanner of a connection, shared by its reader and its service.
#[derive(Default)]
pub(super) struct SharedHeadScanner(Mutex<HeadScanner>);

/// The connection.
pub(super) struct RequestStream<'a> {
    client: TimeoutStream,
    /// Read, but not passed to hyper yet.
    early: Bytes,
    heads: &'a SharedHeadScanner,
    disconnect: DisconnectDetector,
}

impl SharedHeadScanner {
    /// See [`HeadScanner::on_request`].
    pub(super) fn on_request(&self, body: Option<u64>) -> bool {
        self.lock().on_request(body)
    }

    fn lock(&self) -> MutexGuard<'_, HeadScanner> {
        // No panic can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> RequestStream<'a> {
    /// `early` holds the bytes read from the client so far.
    pub(super) fn new(
        client: TimeoutStream,
        early: Bytes,
        heads: &'a SharedHeadScanner,
        disconnect: DisconnectDetector,
    ) -> Self {
        Self { client, early, heads, disconnect }
    }

    /// The connection itself.
    pub(super) fn into_client(self) -> TimeoutStream {
        self.client
    }

    /// The connection after its last request; hyper has read `read` beyond that.
    pub(super) fn into_upgraded(self, read: &[u8]) -> Upgraded {
        Upgraded { stream: self.client.into_stream(), early: [read, &self.early].concat() }
    }

    /// hyper has written bytes.
    fn on_written(&mut self, result: &Poll<io::Result<usize>>) {
        if matches!(result, Poll::Ready(Ok(1..))) {
            self.disconnect.on_written();
        }
    }
}

impl AsyncRead for RequestStream<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.early.is_empty() {
            let front = &this.early[..this.early.len().min(buffer.remaining())];
            let taken = this.heads.lock().on_bytes(front);
            buffer.put_slice(&front[..taken]);
            this.early.advance(taken);
            if this.early.is_empty() {
                // Releases its memory before the connection ends.
                this.early = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.client).poll_read(cx, buffer))?;
        this.disconnect.on_read();
        let fresh = &buffer.filled()[before..];
        let taken = this.heads.lock().on_bytes(fresh);
        if taken < fresh.len() {
            this.early = Bytes::copy_from_slice(&fresh[taken..]);
            buffer.set_filled(before + taken);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RequestStream<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.client).poll_write(cx, bytes);
        this.on_written(&result);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.client).poll_write_vectored(cx, slices);
        this.on_written(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.client.is_write_vectored()
    }

    /// hyper does not read while a response is pending, so a client may half-close meanwhile. It flushes at every poll:
    /// here it gets an error if the client is gone.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.client).poll_flush(cx))?;
        match this.disconnect.poll(this.client.stream(), cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().client).poll_shutdown(cx)
    }
}
