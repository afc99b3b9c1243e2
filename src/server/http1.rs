//! Serves HTTP/1.1 (RFC 9112) until the connection ends or becomes a websocket.
//!
//! Invariant: hyper serves every request that `proxy::wire` does not read, from its first byte.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, Parts};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::context::{ListenerContext, closing};
use super::disconnect::DisconnectDetector;
use super::requests::{RequestStream, SharedHeadScanner};
use super::stall::TimeoutStream;
use crate::config::Limits;
use crate::drain::Guard;
use crate::metrics::Rejected;
use crate::proxy::{DroppedLength, PendingSession, Reply, RequestBody, wire};
use crate::transport::{Stream, Upgraded};

/// The smallest read buffer that hyper accepts; it panics on a smaller one.
const MIN_BUFFER_BYTES: usize = 8192;
/// Bytes of a head that `limits` do not count: method, version, spaces and empty line.
const UNCOUNTED_HEAD_BYTES: usize = 1024;

/// hyper's HTTP/1 settings.
fn builder(limits: &Limits) -> Builder {
    let mut http = Builder::new();
    // hyper has one timeout for an idle connection and a slow header. Its buffer holds a whole head, or part of a body.
    // It must be larger than what `proxy` accepts, which checks the limits themselves.
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.idle_timeout)
        .max_buf_size((limits.header_bytes + limits.uri_bytes + UNCOUNTED_HEAD_BYTES).max(MIN_BUFFER_BYTES))
        .preserve_header_case(true);
    // A half-closed client still gets its response; `RequestStream` detects one that is gone.
    http.half_close(true);
    http
}

/// Serves a connection until the client closes it, it is idle for too long, or the drain closes. A connection that
/// becomes a websocket continues as a session.
pub(super) async fn serve(context: Arc<ListenerContext>, mut stream: Stream, client: IpAddr, guard: Guard) {
    let Some(early) = first_bytes(&mut stream, context.limits.idle_timeout, &guard).await else {
        return TimeoutStream::new(stream, context.stall(&guard)).close().await;
    };
    let mut disconnect = DisconnectDetector::new(context.limits.idle_timeout);
    let mut first = None;
    if let Some((request, length)) = wire::read_handshake(&early) {
        // Boxed, so that connections without a handshake stay small.
        let mut reply = tokio::select! {
            biased;
            reply = Box::pin(context.proxy.handle(request, client)) => reply,
            () = poll_fn(|cx| disconnect.poll(&stream, cx)) => return,
        };
        if let Some(head) = wire::write_switch(&reply.response)
            && let Some(session) = reply.session.take()
        {
            return match tokio::time::timeout(context.write_stall, stream.send(&head)).await {
                Ok(Ok(())) => session.start(Upgraded { stream, early: early[length..].to_vec() }, guard),
                failed => tracing::debug!(?failed, "a connection ended early"),
            };
        }
        first = Some(reply);
    }
    let (stall, heads) = (context.stall(&guard), SharedHeadScanner::default());
    let stream = RequestStream::new(TimeoutStream::new(stream, stall), early, &heads, disconnect);
    let (served, end) = serve_with_hyper(&context, stream, &heads, first, client, &guard).await;
    match end {
        Ok((session, browser)) => session.start(browser, guard),
        Err(stream) => stream.close().await,
    }
    if let Err(error) = served {
        if let Some(reason) = rejected(&error) {
            context.metrics.rejected(reason);
        }
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Serves all requests of a connection; the first may have its reply already. Also returns the connection: with its
/// session if it has become a websocket.
async fn serve_with_hyper(
    context: &ListenerContext,
    stream: RequestStream<'_>,
    heads: &SharedHeadScanner,
    first: Option<Reply>,
    client: IpAddr,
    guard: &Guard,
) -> (hyper::Result<()>, Result<(PendingSession, Upgraded), TimeoutStream>) {
    let (first, pending) = (Mutex::new(first), OnceLock::new());
    let service = service_fn(|request: Request<Incoming>| {
        let request = mark_dropped_length(request, heads);
        Box::pin(async {
            let is_chunked = request.body().size_hint().exact().is_none();
            let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let Reply { mut response, session } = match first {
                Some(reply) => reply,
                None => context.proxy.handle(request.map(RequestBody::from), client).await,
            };
            if let Some(session) = session {
                // hyper reads no request after a 101, so there is one session at most.
                _ = pending.set(session);
            }
            // During a drain, an active client moves elsewhere without losing a request (RFC 9112 §9.6). The end of a
            // chunked body is not tracked, so nor is the start of the next request.
            if (is_chunked || guard.is_draining()) && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        })
    });
    let mut connection = builder(&context.limits).serve_connection(TokioIo::new(stream), service);
    let served = tokio::select! {
        // A received request is read before connections without one are closed.
        biased;
        served = &mut connection => served,
        () = closing(guard) => {
            Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    let Parts { io, read_buf, .. } = connection.into_parts();
    let stream = io.into_inner();
    let end = match pending.into_inner() {
        Some(session) if served.is_ok() => Ok((session, stream.into_upgraded(&read_buf))),
        Some(_) | None => Err(stream.into_client()),
    };
    (served, end)
}

/// Marks a request whose Content-Length hyper has dropped.
fn mark_dropped_length(mut request: Request<Incoming>, heads: &SharedHeadScanner) -> Request<Incoming> {
    if heads.on_request(request.body().size_hint().exact()) {
        request.extensions_mut().insert(DroppedLength);
    }
    request
}

/// The client's first bytes; `None` on a timeout, an error, EOF, or when the drain closes.
async fn first_bytes(stream: &mut Stream, timeout: Duration, guard: &Guard) -> Option<Bytes> {
    let first = tokio::time::timeout(timeout, poll_fn(|cx| stream.poll_read_some(cx)));
    let bytes = tokio::select! {
        biased;
        read = first => read.ok()?.ok()?,
        () = closing(guard) => return None,
    };
    (!bytes.is_empty()).then(|| bytes.into())
}

/// Why hyper itself rejected a request; it has sent a response where possible.
fn rejected(error: &hyper::Error) -> Option<Rejected> {
    if error.is_parse_too_large() {
        Some(Rejected::Size)
    } else if error.is_parse() {
        Some(Rejected::Malformed)
    } else {
        // Slow headers are not counted: hyper does not distinguish them from an idle keep-alive connection.
        None
    }
}
