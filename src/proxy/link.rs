//! A connection to the app that carries HTTP.
//!
//! It keeps a response readable after the app has stopped reading the request, and it records whether a request may be
//! sent again.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use hyper_util::client::legacy::Error as ClientError;
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection over which hyper sends requests.
///
/// An app may respond to an upload before it has read all of it, and close. A write then fails, and hyper would close
/// the connection although the response waits in the kernel's receive queue. So bytes that cannot be written any more
/// are discarded and reported as written. What is read ends the exchange: the response, EOF, or an error.
#[derive(Debug)]
pub struct Link<S> {
    stream: S,
    state: ExchangeState,
    /// A burst of writes has started and is not flushed yet.
    is_writing: bool,
    /// The app has stopped reading.
    peer_closed: bool,
}

/// State of the last exchange on a connection; clones share it. A request without a body is one burst of writes, after
/// which hyper flushes.
#[derive(Clone, Debug, Default)]
struct ExchangeState(Arc<AtomicU8>);

/// Nothing was written.
const UNUSED: u8 = 0;
/// Something was written, and nothing was ever read.
const FIRST_REQUEST: u8 = 1;
/// Something was read since the last burst started.
const RESPONSE: u8 = 2;
/// A further burst started, and nothing was read since.
const LATER_REQUEST: u8 = 3;

/// Whether a request failed on a connection that had served another one before, and no byte of a response was read. The
/// app has probably closed the connection before the request reached it (RFC 9112 §9.3.1).
pub(super) fn failed_on_reused_connection(error: &ClientError) -> bool {
    let mut extras = http::Extensions::new();
    if let Some(connected) = error.connect_info() {
        connected.get_extras(&mut extras);
    }
    extras.get().is_some_and(|ExchangeState(state)| state.load(Relaxed) == LATER_REQUEST)
}

impl<S> Link<S> {
    /// A connection over which nothing has been sent.
    pub(super) fn new(stream: S) -> Self {
        Self { stream, state: ExchangeState::default(), is_writing: false, peer_closed: false }
    }

    fn on_write(&mut self) {
        if !self.is_writing {
            self.is_writing = true;
            let state = match self.state.0.load(Relaxed) {
                UNUSED | FIRST_REQUEST => FIRST_REQUEST,
                _ => LATER_REQUEST,
            };
            self.state.0.store(state, Relaxed);
        }
    }

    /// The result of a write of `length` bytes.
    fn written(&mut self, result: io::Result<usize>, length: usize) -> io::Result<usize> {
        match result {
            Err(error) if is_peer_close(&error) => {
                self.peer_closed = true;
                Ok(length)
            }
            result => result,
        }
    }
}

/// Whether the peer has closed or reset the connection. Then reading ends too.
fn is_peer_close(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl<S: AsyncRead + Unpin> AsyncRead for Link<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            this.state.0.store(RESPONSE, Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Link<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.on_write();
        if this.peer_closed {
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = ready!(Pin::new(&mut this.stream).poll_write(cx, bytes));
        Poll::Ready(this.written(result, bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.on_write();
        let length = slices.iter().map(|slice| slice.len()).sum();
        if this.peer_closed {
            return Poll::Ready(Ok(length));
        }
        let result = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, slices));
        Poll::Ready(this.written(result, length))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.peer_closed {
            let result = ready!(Pin::new(&mut this.stream).poll_flush(cx));
            this.written(result.map(|()| 0), 0)?;
        }
        this.is_writing = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl<S> Connection for Link<S> {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.state.clone())
    }
}
