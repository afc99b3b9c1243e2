//! Serves HTTP/1.1 (RFC 9112) until the connection ends or becomes a websocket.
//!
//! Invariant: a request that the handshake's fast path does not finish is served by hyper, from its first byte.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, Parts};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::context::{ListenerContext, closing};
use super::departure::Departure;
use super::requests::{RequestStream, Requests};
use super::stall::Patient;
use crate::config::Limits;
use crate::drain::Guard;
use crate::metrics::Rejected;
use crate::proxy::{ClientConnection, DroppedLength, RequestBody, ResponseBody, wire};
use crate::transport::{Side, Stream};

/// The smallest read buffer that hyper accepts; it panics on a smaller one.
const LEAST_BUFFER: usize = 8192;
/// Bytes of a head that `limits` do not count: method, version, spaces and empty line.
const REST_OF_HEAD: usize = 1024;

/// hyper's HTTP/1 settings.
fn builder(limits: &Limits) -> Builder {
    let mut http = Builder::new();
    // hyper has one timeout for an idle connection and a slow header. Its buffer holds a whole head, or part of a body.
    // It must be larger than what `proxy` accepts, which checks the limits themselves.
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.idle_timeout)
        .max_buf_size((limits.header_bytes + limits.uri_bytes + REST_OF_HEAD).max(LEAST_BUFFER))
        .preserve_header_case(true);
    // A half-closed client still gets its response; `RequestStream` detects one that is gone.
    http.half_close(true);
    http
}

/// Serves a connection until the client closes it, it is idle for too long, or the drain closes. A connection that
/// becomes a websocket continues as a session.
pub(super) async fn serve(context: Arc<ListenerContext>, mut stream: Stream, client: IpAddr, guard: Guard) {
    let visit = ClientConnection::new(client);
    let Some(early) = first_bytes(&mut stream, context.patience, &guard).await else {
        return Patient::new(stream, context.stall(&guard)).close().await;
    };
    let mut departure = Departure::new(context.patience);
    let mut answer = None;
    if let Some((request, length)) = wire::read_handshake(&early) {
        // Boxed, so that connections without a handshake stay small.
        let response = tokio::select! {
            biased;
            response = Box::pin(context.proxy.handle(request, &visit)) => response,
            () = poll_fn(|cx| departure.poll(&stream, cx)) => return,
        };
        if let Some(head) = wire::write_switch(&response) {
            return match tokio::time::timeout(context.write_stall, stream.send(&head)).await {
                Ok(Ok(())) => visit.join(Side { stream, early: early[length..].to_vec() }, guard),
                failed => tracing::debug!(?failed, "a connection ended early"),
            };
        }
        answer = Some(response);
    }
    let (stall, requests) = (context.stall(&guard), Requests::default());
    let client = RequestStream::new(Patient::new(stream, stall), early, &requests, departure);
    let (served, side) = serve_with_hyper(&context, client, &requests, answer, &visit, &guard).await;
    match side {
        Ok(side) => visit.join(side, guard),
        Err(client) => client.close().await,
    }
    if let Err(error) = served {
        if let Some(reason) = rejected(&error) {
            context.metrics.http_rejected(reason);
        }
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Serves all requests of a connection; the first may have a response already. Also returns the connection: as one side
/// of a session if it has become a websocket.
async fn serve_with_hyper(
    context: &ListenerContext,
    client: RequestStream<'_>,
    requests: &Requests,
    answer: Option<Response<ResponseBody>>,
    visit: &ClientConnection,
    guard: &Guard,
) -> (hyper::Result<()>, Result<Side, Patient>) {
    let answer = Mutex::new(answer);
    let service = service_fn(|request: Request<Incoming>| {
        let request = judged(request, requests);
        Box::pin(async {
            let is_chunked = request.body().size_hint().exact().is_none();
            let answer = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut response = match answer {
                Some(answer) => answer,
                None => context.proxy.handle(request.map(RequestBody::from), visit).await,
            };
            // During a drain, an active client moves elsewhere without losing a request (RFC 9112 §9.6). The end of a
            // chunked body is not tracked, so nor is the start of the next request.
            if (is_chunked || guard.is_draining()) && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        })
    });
    let mut connection = builder(&context.limits).serve_connection(TokioIo::new(client), service);
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
    let client = io.into_inner();
    let upgraded = served.is_ok() && visit.is_upgraded();
    (served, if upgraded { Ok(client.into_side(&read_buf)) } else { Err(client.into_client()) })
}

/// Marks a request whose Content-Length hyper has dropped.
fn judged(mut request: Request<Incoming>, requests: &Requests) -> Request<Incoming> {
    if requests.on_request(request.body().size_hint().exact()) {
        request.extensions_mut().insert(DroppedLength);
    }
    request
}

/// The client's first bytes; `None` on a timeout, an error, EOF, or when the drain closes.
async fn first_bytes(stream: &mut Stream, patience: Duration, guard: &Guard) -> Option<Bytes> {
    let first = tokio::time::timeout(patience, poll_fn(|cx| stream.poll_some(cx)));
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
