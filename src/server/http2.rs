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
use super::stall::Patient;
use super::streams::{Streams, Turn};
use crate::config::Limits;
use crate::drain::Guard;
use crate::limits::Permit;
use crate::metrics::Rejected;
use crate::proxy::{HOP_BY_HOP, Reply, RequestBody, ResponseBody};
use crate::transport::Stream;

/// Concurrent requests of a connection: the minimum that RFC 9113 §6.5.2 recommends.
const MOST_STREAMS: u32 = 100;
/// Bytes that a client may send of one body, and of all, before the app has read any: they are buffered here.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// Bytes by which h2's count of a head exceeds that of `limits`, which `proxy` applies. It is 32 for each field (RFC
/// 9113 §6.5.2): the 100 fields that HTTP/1.1 accepts, and the four of the request line.
const LIST_OVERHEAD: usize = 32 * (100 + 4);
/// Bytes of a response that are buffered for each stream. A client makes progress when it takes this many: smaller
/// parts would cause more frames when its window is nearly full.
const MOST_UNSENT: usize = 64 * 1024;
/// Resets of unstarted requests, and protocol errors, after which the connection is closed (CVE-2023-44487,
/// CVE-2025-8671).
const MOST_TAKEN_BACK: usize = 20;
const MOST_BROKEN: usize = 256;

/// What the requests of a connection share.
struct Connection {
    context: Arc<ListenerContext>,
    client: IpAddr,
    /// The connection's own slot, for one request at a time.
    own: Arc<Semaphore>,
    /// Notified when a request has released its slot.
    freed: Notify,
    /// How many requests are open.
    open: watch::Sender<usize>,
}

/// A request until its response is sent or cancelled.
struct Open {
    connection: Arc<Connection>,
    place: Option<Place>,
}

/// Which slot pays for the request's upstream connection.
#[expect(dead_code, reason = "held, not read")]
enum Place {
    /// The connection's own.
    Own(OwnedSemaphorePermit),
    /// An additional one, as for a further connection.
    Further(Permit),
}

/// The body of a response; the request is open until it is sent.
struct Answer {
    body: ResponseBody,
    /// Received from the app, and not passed to hyper yet.
    rest: Bytes,
    turn: Arc<Turn>,
    _open: Open,
}

/// hyper's HTTP/2 settings.
fn builder(limits: &Limits, streams: Streams) -> Builder<Streams> {
    let header_list = u32::try_from(limits.header_bytes + limits.uri_bytes + LIST_OVERHEAD).unwrap_or(u32::MAX);
    let mut builder = Builder::new(streams);
    // No pings: the kernel probes silent peers, and over a slow link a pong comes only after all data sent before.
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(header_list)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MOST_UNSENT)
        .max_pending_accept_reset_streams(MOST_TAKEN_BACK)
        .max_local_error_reset_streams(MOST_BROKEN);
    builder
}

/// Serves a connection until the client closes it, it is idle for too long, or the drain closes.
pub(super) async fn serve(context: Arc<ListenerContext>, stream: Stream, client: IpAddr, guard: &Guard) {
    let (open, mut seen) = watch::channel(0);
    let (own, freed) = (Arc::new(Semaphore::new(1)), Notify::new());
    let shared = Arc::new(Connection { context: context.clone(), client, own, freed, open });
    let service = service_fn(move |request| answer(Open::new(shared.clone()), request));
    let (stall, idle_timeout) = (context.stall(guard), context.limits.idle_timeout);
    let builder = builder(&context.limits, Streams::new(stall.clone()));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(Patient::new(stream, stall)), service));
    let mut served = tokio::select! {
        biased;
        served = connection.as_mut() => Some(served),
        () = closing(guard) => None,
        () = idle(&mut seen, idle_timeout) => None,
    };
    if served.is_none() {
        // Sends GOAWAY; open requests are served (RFC 9113 §6.8). A client that ignores it, or does not read the last
        // bytes of a response, gets another idle timeout.
        connection.as_mut().graceful_shutdown();
        served = tokio::select! {
            biased;
            served = connection.as_mut() => Some(served),
            () = idle(&mut seen, idle_timeout) => None,
        };
    }
    if let Some(Err(error)) = served {
        if is_refused(&error) {
            context.metrics.http_rejected(Rejected::Malformed);
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
fn is_refused(error: &hyper::Error) -> bool {
    error.source().and_then(|cause| cause.downcast_ref()).is_some_and(|cause: &h2::Error| cause.is_library())
}

async fn answer(mut open: Open, mut request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    to_http1(&mut request);
    open.place = Some(open.connection.place().await);
    let Connection { context, client, .. } = &*open.connection;
    // Without the fields of an upgrade, no request becomes a session.
    let Reply { mut response, session: _ } = context.proxy.handle(request.map(RequestBody::from), *client).await;
    // HTTP/2 has frames instead of these fields (RFC 9113 §8.2.2).
    for name in HOP_BY_HOP {
        response.headers_mut().remove(name);
    }
    Ok(response.map(|body| Answer { body, rest: Bytes::new(), turn: Turn::current(), _open: open }))
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
    /// A request needs a connection to the app, and so a file descriptor. Without a further slot it waits for another
    /// request to end: while any waits, one holds the connection's own slot.
    async fn place(&self) -> Place {
        loop {
            let freed = self.freed.notified();
            if let Ok(own) = self.own.clone().try_acquire_owned() {
                return Place::Own(own);
            }
            if let Some(further) = self.context.further_slot(self.client) {
                return Place::Further(further);
            }
            freed.await;
        }
    }
}

impl Open {
    fn new(connection: Arc<Connection>) -> Self {
        connection.open.send_modify(|open| *open += 1);
        Self { connection, place: None }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.place.take().is_some() {
            self.connection.freed.notify_one();
        }
        self.connection.open.send_modify(|open| *open -= 1);
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Self { body, rest, turn, .. } = self.get_mut();
        if rest.is_empty() {
            let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else {
                turn.on_pause();
                return Poll::Pending;
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => *rest = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        turn.on_part();
        Poll::Ready(Some(Ok(Frame::data(rest.split_to(rest.len().min(MOST_UNSENT))))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    /// hyper calls this before it polls the first part.
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
