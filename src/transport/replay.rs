//! A connection that replays the bytes already read from it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Stream, Upgraded};

/// A connection that is read again from its start.
#[derive(Debug)]
pub struct Replay {
    stream: Stream,
    early: Bytes,
    writes: Writes,
}

/// What happens to written bytes.
#[derive(Debug, PartialEq, Eq)]
enum Writes {
    /// They are sent.
    Sent,
    /// They are dropped: they were sent before. Reads wait for the first write, so that hyper reads no answer before
    /// its request.
    Awaited,
    /// They are dropped.
    Dropped,
}

impl Replay {
    /// `early` are the bytes read from `stream` so far.
    pub fn new(stream: Stream, early: Bytes) -> Self {
        Self { stream, early, writes: Writes::Sent }
    }

    /// A connection whose request was sent and whose answer starts with `early`. What the caller writes is dropped: it
    /// is the same request.
    pub fn answered(stream: Stream, early: Bytes) -> Self {
        Self { stream, early, writes: Writes::Awaited }
    }

    /// The connection after its last message; `read` are the bytes after it.
    pub fn into_upgraded(self, read: &[u8]) -> Upgraded {
        Upgraded { stream: self.stream, early: [read, &self.early].concat() }
    }
}

impl AsyncRead for Replay {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.writes == Writes::Awaited {
            return Poll::Pending;
        }
        if this.early.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        }
        let length = this.early.len().min(buffer.remaining());
        buffer.put_slice(&this.early[..length]);
        this.early.advance(length);
        if this.early.is_empty() {
            // Otherwise its memory would live as long as the connection.
            this.early = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl Replay {
    /// Whether written bytes are dropped. One task reads and writes, so the writer's waker resumes reads.
    fn drops_writes(&mut self, cx: &Context<'_>) -> bool {
        if self.writes == Writes::Awaited {
            self.writes = Writes::Dropped;
            cx.waker().wake_by_ref();
        }
        self.writes == Writes::Dropped
    }
}

impl AsyncWrite for Replay {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.drops_writes(cx) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.drops_writes(cx) {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        Pin::new(&mut this.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
