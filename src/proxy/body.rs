//! The body of a response: bytes of our own, then what the upstream still sends.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// The body of a response to the browser.
#[derive(Debug, Default)]
pub struct ResponseBody {
    /// What goes first.
    front: Bytes,
    /// What follows; `None` if nothing does.
    rest: Option<Incoming>,
}

impl ResponseBody {
    /// `front`, then the rest of a body of the upstream.
    pub(super) fn fronted(front: Bytes, rest: Incoming) -> Self {
        Self { front, rest: Some(rest) }
    }
}

impl From<Incoming> for ResponseBody {
    fn from(body: Incoming) -> Self {
        Self::fronted(Bytes::new(), body)
    }
}

impl From<&'static str> for ResponseBody {
    fn from(text: &'static str) -> Self {
        Self { front: Bytes::from_static(text.as_bytes()), rest: None }
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
        match &mut this.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.front.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let front = self.front.len() as u64;
        let rest = self.rest.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        let mut sum = SizeHint::new();
        if let Some(upper) = rest.upper() {
            sum.set_upper(upper.saturating_add(front));
        }
        sum.set_lower(rest.lower().saturating_add(front));
        sum
    }
}
