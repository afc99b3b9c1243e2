//! Bodies: a request's has a timeout for pauses; a response's is bytes of our own, then the rest of the upstream's.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::time::Sleep;

/// Limits for reading the rest of a body that is not needed.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_DISCARDED_BYTES: usize = 64 << 20;

/// The body of a request to the upstream.
#[derive(Debug, Default)]
pub struct RequestBody {
    /// `None` if it is empty or has ended.
    body: Option<Incoming>,
    /// Maximum pause before the next bytes.
    pub(super) pause_timeout: Duration,
    /// The client waits for a 100 (RFC 9110 §10.1.1). Reading the body would send it.
    pub(super) expects_continue: bool,
    /// Runs while the upstream waits for the next bytes.
    pause: Option<Pin<Box<Sleep>>>,
}

/// Why a request's body is incomplete.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    /// Its framing is invalid, or the client has left.
    #[error("incomplete request body")]
    Broken(#[source] hyper::Error),
    /// No bytes arrived within this time.
    #[error("no byte of the request body within limits.body_timeout, {0:?}")]
    Paused(Duration),
}

/// The body of a response to the browser.
#[derive(Debug, Default)]
pub struct ResponseBody {
    /// Sent first.
    front: Bytes,
    tail: Tail,
}

/// What follows the front of a response.
#[derive(Debug, Default)]
pub(super) enum Tail {
    /// Still to be received from the upstream.
    Body(Incoming),
    /// The trailers of a body that was read to its end.
    Trailers(Box<HeaderMap>),
    #[default]
    Nothing,
}

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        let mut this = Self::default();
        this.body = Some(body);
        this
    }
}

/// Some of the body may not be needed: the app has responded early, or not at all, or the request is rejected. If the
/// client's connection were closed with unread bytes, the reset could overtake the response (RFC 9112 §9.6). So these
/// are read and discarded, within bounds.
impl Drop for RequestBody {
    fn drop(&mut self) {
        let unread = self.body.take().filter(|body| !self.expects_continue && !body.is_end_stream());
        if let (Some(body), Ok(runtime)) = (unread, Handle::try_current()) {
            runtime.spawn(async { tokio::time::timeout(DISCARD_TIMEOUT, discard(body)).await });
        }
    }
}

async fn discard(mut body: Incoming) {
    let mut left = MAX_DISCARDED_BYTES;
    while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(length) else { return };
        left = rest;
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        this.expects_continue = false;
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            this.pause = None;
            if !matches!(frame, Some(Ok(_))) {
                this.body = None;
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(RequestBodyError::Broken)));
        }
        let pause_timeout = this.pause_timeout;
        let pause = this.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause_timeout)));
        ready!(pause.as_mut().poll(cx));
        this.body = None;
        Poll::Ready(Some(Err(RequestBodyError::Paused(pause_timeout))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl ResponseBody {
    /// `front`, then the rest of the upstream's body.
    pub(super) fn fronted(front: Bytes, tail: Tail) -> Self {
        Self { front, tail }
    }
}

impl From<Incoming> for ResponseBody {
    fn from(body: Incoming) -> Self {
        Self::fronted(Bytes::new(), Tail::Body(body))
    }
}

impl From<&'static str> for ResponseBody {
    fn from(text: &'static str) -> Self {
        Self { front: Bytes::from_static(text.as_bytes()), tail: Tail::Nothing }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        if !this.front.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.front)))));
        }
        if let Tail::Body(tail) = &mut this.tail {
            return Pin::new(tail).poll_frame(cx);
        }
        let Tail::Trailers(trailers) = std::mem::take(&mut this.tail) else { return Poll::Ready(None) };
        Poll::Ready(Some(Ok(Frame::trailers(*trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.front.is_empty()
            && match &self.tail {
                Tail::Body(tail) => tail.is_end_stream(),
                Tail::Trailers(_) => false,
                Tail::Nothing => true,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let front = self.front.len() as u64;
        let tail = match &self.tail {
            Tail::Body(tail) => tail.size_hint(),
            Tail::Trailers(_) | Tail::Nothing => SizeHint::with_exact(0),
        };
        let mut sum = SizeHint::new();
        if let Some(upper) = tail.upper() {
            sum.set_upper(upper.saturating_add(front));
        }
        sum.set_lower(tail.lower().saturating_add(front));
        sum
    }
}
