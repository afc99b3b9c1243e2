//! HTTP/2 for whoever has chosen it in the TLS handshake (RFC 9113), never in the clear.
//!
//! Law: behind this file every request is one of HTTP/1.1, and nothing that a client does makes a connection endless.

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

use super::listener::{ListenerContext, closing};
use super::stall::Patient;
use super::streams::{Streams, Turn};
use crate::config::Limits;
use crate::drain::Guard;
use crate::limits::Permit;
use crate::metrics::Rejected;
use crate::proxy::{ClientConnection, HOP_BY_HOP, RequestBody, ResponseBody};
use crate::relay::stream::Stream;

/// Requests that a connection may have open: as many as RFC 9113 §6.5.2 asks for at least.
const MOST_STREAMS: u32 = 100;
/// What a client may send of one body, and of all, before the app has taken any: bytes that are kept here.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// By how much a head may be larger in h2's count than in that of `limits`, by which `proxy` judges it: 32 bytes for each
/// field (RFC 9113 §6.5.2), for as many fields as HTTP/1.1 accepts, and for the four of the request line.
const LIST_OVERHEAD: usize = 32 * (100 + 4);
/// What is taken of an answer before the client has: bytes a stream. A client makes progress when it takes so much: smaller
/// parts would make more frames where its window is nearly full.
const MOST_UNSENT: usize = 64 * 1024;
/// Requests that are taken back before they are begun with, and streams that break the protocol, until the connection
/// does not go on (CVE-2023-44487, CVE-2025-8671).
const MOST_TAKEN_BACK: usize = 20;
const MOST_BROKEN: usize = 256;

/// How HTTP/2 is spoken.
#[derive(Clone, Copy)]
pub(super) struct Http2 {
    header_list: u32,
    /// How long a connection is kept without a request.
    idle_timeout: Duration,
}

/// What the requests of a connection share.
struct Connection {
    context: Arc<ListenerContext>,
    visit: ClientConnection,
    client: IpAddr,
    /// The connection's own place, for one request at a time.
    own: Arc<Semaphore>,
    /// Told when a request has given back its place.
    freed: Notify,
    /// How many requests are open.
    open: watch::Sender<usize>,
}

/// A request until its answer is sent or taken back.
struct Open {
    connection: Arc<Connection>,
    place: Option<Place>,
}

/// Where a request has the file handle of its way to the app from.
#[expect(dead_code, reason = "held, not read")]
enum Place {
    /// The connection's own.
    Own(OwnedSemaphorePermit),
    /// One as a further connection would take it.
    Further(Permit),
}

/// The body of an answer, open until it is sent.
struct Answer {
    body: ResponseBody,
    /// What has come of it and was not handed on yet.
    rest: Bytes,
    turn: Arc<Turn>,
    _open: Open,
}

impl Http2 {
    pub(super) fn new(limits: &Limits) -> Self {
        let header_list = u32::try_from(limits.header_bytes + limits.uri_bytes + LIST_OVERHEAD).unwrap_or(u32::MAX);
        Self { header_list, idle_timeout: limits.idle_timeout }
    }

    fn builder(self, streams: Streams) -> Builder<Streams> {
        let mut builder = Builder::new(streams);
        // No pings: the kernel asks whether a silent peer is there, and to one behind a slow link an answer to a ping comes
        // no sooner than all that was sent before.
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MOST_STREAMS)
            .max_header_list_size(self.header_list)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(MOST_UNSENT)
            .max_pending_accept_reset_streams(MOST_TAKEN_BACK)
            .max_local_error_reset_streams(MOST_BROKEN);
        builder
    }
}

/// Serves a connection until the client leaves, it was idle for too long, or the drain closes.
pub(super) async fn serve(context: Arc<ListenerContext>, stream: Stream, client: IpAddr, guard: &Guard) {
    let (open, mut seen) = watch::channel(0);
    let (visit, own, freed) = (ClientConnection::new(client), Arc::new(Semaphore::new(1)), Notify::new());
    let shared = Arc::new(Connection { context: context.clone(), visit, client, own, freed, open });
    let service = service_fn(move |request| answer(Open::new(shared.clone()), request));
    let (stall, idle_timeout) = (context.stall(guard), context.http2.idle_timeout);
    let builder = context.http2.builder(Streams::new(stall.clone()));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(Patient::new(stream, stall)), service));
    let mut served = tokio::select! {
        biased;
        served = connection.as_mut() => Some(served),
        () = closing(guard) => None,
        () = idle(&mut seen, idle_timeout) => None,
    };
    if served.is_none() {
        // GOAWAY; what is on its way is served (RFC 9113 §6.8). A client that does not take note of it, or not of the last
        // bytes of an answer, has as much time again.
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
        tracing::debug!(%client, %error, "a connection ended early");
    }
}

/// Resolves when no request was open for so long.
async fn idle(open: &mut watch::Receiver<usize>, timeout: Duration) {
    loop {
        let busy = *open.borrow_and_update() > 0;
        // Also one that has come and gone in between changes it. Whoever serves the connection holds the sender.
        let changed = open.changed();
        if busy {
            let _sender_is_there = changed.await;
        } else if tokio::time::timeout(timeout, changed).await.is_err() {
            return;
        }
    }
}

/// Whether it was ended from here, since the client breaks the protocol or asks too much of it.
fn is_refused(error: &hyper::Error) -> bool {
    error.source().and_then(|cause| cause.downcast_ref()).is_some_and(|cause: &h2::Error| cause.is_library())
}

async fn answer(mut open: Open, mut request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    to_http1(&mut request);
    open.place = Some(open.connection.place().await);
    let Connection { context, visit, .. } = &*open.connection;
    let mut response = context.proxy.handle(request.map(RequestBody::from), visit).await;
    // HTTP/2 has frames for what these say (RFC 9113 §8.2.2).
    for name in HOP_BY_HOP {
        response.headers_mut().remove(name);
    }
    Ok(response.map(|body| Answer { body, rest: Bytes::new(), turn: Turn::current(), _open: open }))
}

/// Says in HTTP/1.1 what a request says in HTTP/2 (RFC 9113 §8.2.3, §8.3.1). A request that names its host twice keeps
/// both, to be compared.
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
    // Else hyper would take some methods' bodies for none.
    if !request.body().is_end_stream() && !request.headers().contains_key(header::CONTENT_LENGTH) {
        request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Browsers split them, so that they compress better; in HTTP/1.1 they are one line.
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

impl Connection {
    /// A request needs a connection to the app, and so a file handle. Where there is no further place it waits for another
    /// request to end: while any waits, one has the own place.
    async fn place(&self) -> Place {
        loop {
            let freed = self.freed.notified();
            if let Ok(own) = self.own.clone().try_acquire_owned() {
                return Place::Own(own);
            }
            if let Some(further) = self.context.further_place(self.client) {
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

    /// hyper asks before it takes the first part.
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
