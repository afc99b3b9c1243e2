//! Serves HTTP/2 (RFC 9113) to clients that chose it in the TLS handshake, never in clear text.
//!
//! Invariant: requests leave this file as HTTP/1.1, and a connection that is idle, stalled or abusive is closed.

use std::convert::Infallible;
use std::error::Error as _;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use super::context::{ListenerContext, closing};
use super::stall::TimeoutStream;
use super::streams::{StreamExecutor, StreamProgress};
use crate::config::Limits;
use crate::drain::Guard;
use crate::limits::Permit;
use crate::metrics::Rejected;
use crate::proxy::{HOP_BY_HOP, Reply, RequestBody, ResponseBody};
use crate::transport::Stream;

/// Concurrent requests of a connection: the minimum that RFC 9113 §6.5.2 recommends.
const MAX_STREAMS: u32 = 100;
/// Bytes that a client may send of one body, and of all, before the app has read any: they are buffered here.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 2 << 20;
/// Bytes by which h2's count of a head exceeds that of `limits`, which `proxy` applies. It is 32 for each field (RFC
/// 9113 §6.5.2): the 100 fields that HTTP/1.1 accepts, and the four of the request line.
const LIST_OVERHEAD_BYTES: usize = 32 * (100 + 4);
/// Bytes of a response that are buffered for each stream. A client makes progress when it takes this many: smaller
/// parts would cause more frames when its window is nearly full.
const MAX_UNSENT_BYTES: usize = 64 * 1024;
/// Resets of unstarted requests, and protocol errors, after which the connection is closed (CVE-2023-44487,
/// CVE-2025-8671).
const MAX_RESET_REQUESTS: usize = 20;
const MAX_PROTOCOL_ERRORS: usize = 256;

/// What the requests of a connection share.
struct Connection {
    context: Arc<ListenerContext>,
    client: IpAddr,
    /// The connection's own slot, for one request at a time.
    own: Arc<Semaphore>,
    /// Notified when a request has released its slot.
    slot_freed: Notify,
    /// How many requests are open.
    open: watch::Sender<usize>,
}

/// A request until its response is sent or cancelled.
struct OpenRequest {
    connection: Arc<Connection>,
    slot: Option<Slot>,
}

/// Which slot pays for the request's upstream connection.
#[expect(dead_code, reason = "held, not read")]
enum Slot {
    /// The connection's own.
    Own(OwnedSemaphorePermit),
    /// An additional one, as for a further connection.
    Additional(Permit),
}

/// The body of a response; the request is open until it is sent.
struct Http2Body {
    body: ResponseBody,
    /// Received from the app, and not passed to hyper yet.
    rest: Bytes,
    progress: Arc<StreamProgress>,
    _open: OpenRequest,
}

/// hyper's HTTP/2 settings.
fn builder(limits: &Limits, streams: StreamExecutor) -> Builder<StreamExecutor> {
    let header_list = u32::try_from(limits.header_bytes + limits.uri_bytes + LIST_OVERHEAD_BYTES).unwrap_or(u32::MAX);
    let mut builder = Builder::new(streams);
    // No pings: the kernel probes silent peers, and over a slow link a pong comes only after all data sent before.
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(header_list)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(MAX_UNSENT_BYTES)
        .max_pending_accept_reset_streams(MAX_RESET_REQUESTS)
        .max_local_error_reset_streams(MAX_PROTOCOL_ERRORS);
    builder
}

/// Serves a connection until the client closes it, it is idle for too long, or the drain closes.
pub(super) async fn serve(context: Arc<ListenerContext>, stream: Stream, client: IpAddr, guard: &Guard) {
    let (open, mut open_count) = watch::channel(0);
    let (own, slot_freed) = (Arc::new(Semaphore::new(1)), Notify::new());
    let shared = Arc::new(Connection { context: context.clone(), client, own, slot_freed, open });
    let service = service_fn(move |request| respond(OpenRequest::new(shared.clone()), request));
    let (stall, idle_timeout) = (context.stall(guard), context.limits.idle_timeout);
    let builder = builder(&context.limits, StreamExecutor::new(stall.clone()));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(TimeoutStream::new(stream, stall)), service));
    let mut served = tokio::select! {
        biased;
        served = connection.as_mut() => Some(served),
        () = closing(guard) => None,
        () = idle(&mut open_count, idle_timeout) => None,
    };
    if served.is_none() {
        // Sends GOAWAY; open requests are served (RFC 9113 §6.8). A client that ignores it, or does not read the last
        // bytes of a response, gets another idle timeout.
        connection.as_mut().graceful_shutdown();
        served = tokio::select! {
            biased;
            served = connection.as_mut() => Some(served),
            () = idle(&mut open_count, idle_timeout) => None,
        };
    }
    if let Some(Err(error)) = served {
        if is_protocol_error(&error) {
            context.metrics.rejected(Rejected::Malformed);
        }
        tracing::debug!(%client, %error, "connection ended early");
    }
}

/// Resolves when no request was open for `timeout`.
async fn idle(open: &mut watch::Receiver<usize>, timeout: Duration) {
    loop {
        let busy = *open.borrow_and_update() > 0;
        // A request that came and ended in between is a change too. The connection's service holds the sender.
        let changed = open.changed();
        if busy {
            let _sender_is_there = changed.await;
        } else if tokio::time::timeout(timeout, changed).await.is_err() {
            return;
        }
    }
}

/// Whether h2 closed the connection because the client broke the protocol or exceeded a limit.
fn is_protocol_error(error: &hyper::Error) -> bool {
    error.source().and_then(|cause| cause.downcast_ref()).is_some_and(|cause: &h2::Error| cause.is_library())
}

async fn respond(mut open: OpenRequest, mut request: Request<Incoming>) -> Result<Response<Http2Body>, Infallible> {
    to_http1(&mut request);
    open.slot = Some(open.connection.acquire_slot().await);
    let Connection { context, client, .. } = &*open.connection;
    // Without the fields of an upgrade, no request becomes a session.
    let Reply { mut response, session: _ } = context.proxy.handle(request.map(RequestBody::from), *client).await;
    // HTTP/2 has frames instead of these fields (RFC 9113 §8.2.2).
    for name in HOP_BY_HOP {
        response.headers_mut().remove(name);
    }
    Ok(response.map(|body| Http2Body { body, rest: Bytes::new(), progress: StreamProgress::current(), _open: open }))
}

/// Converts an HTTP/2 request to HTTP/1.1 (RFC 9113 §8.2.3, §8.3.1). A request that names its host twice keeps both,
/// for comparison.
fn to_http1<B: Body>(request: &mut Request<B>) {
    *request.version_mut() = Version::HTTP_11;
    let authority = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = authority
        && request.method() != Method::CONNECT
        && !request.headers().contains_key(header::HOST)
    {
        request.headers_mut().insert(header::HOST, host);
        *request.uri_mut() = request.uri().path_and_query().cloned().map(Uri::from).unwrap_or_default();
    }
    join_cookies(request.headers_mut());
    // Otherwise hyper would drop some methods' bodies.
    if !request.body().is_end_stream() && !request.headers().contains_key(header::CONTENT_LENGTH) {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Browsers split cookies for better compression; in HTTP/1.1 they are one line.
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

impl Connection {
    /// A request needs a connection to the app, and so a file descriptor. Without an additional slot it waits for
    /// another request to end: while any waits, one holds the connection's own slot.
    async fn acquire_slot(&self) -> Slot {
        loop {
            let slot_freed = self.slot_freed.notified();
            if let Ok(own) = self.own.clone().try_acquire_owned() {
                return Slot::Own(own);
            }
            if let Some(additional) = self.context.additional_slot(self.client) {
                return Slot::Additional(additional);
            }
            slot_freed.await;
        }
    }
}

impl OpenRequest {
    fn new(connection: Arc<Connection>) -> Self {
        connection.open.send_modify(|open| *open += 1);
        Self { connection, slot: None }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if self.slot.take().is_some() {
            self.connection.slot_freed.notify_one();
        }
        self.connection.open.send_modify(|open| *open -= 1);
    }
}

impl Body for Http2Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Self { body, rest, progress, .. } = self.get_mut();
        if rest.is_empty() {
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
                progress.on_pause();
                return Poll::Pending;
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => *rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        progress.on_part();
        Poll::Ready(Some(Ok(Frame::data(rest.split_to(rest.len().min(MAX_UNSENT_BYTES))))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    /// hyper calls this before it polls the first part.
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
