//! HTTP/1.1, until its connection ends or becomes a websocket (RFC 9112).
//!
//! Law: whatever the short way of a handshake does not finish, hyper serves from its first byte.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1::{Builder, Parts};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;

use super::listener::{Entrance, closing};
use crate::config::Limits;
use crate::drain::Guard;
use crate::metrics::Rejected;
use crate::proxy::{RequestBody, Visit, wire};
use crate::relay::Side;
use crate::relay::replay::Replay;
use crate::relay::stream::Stream;

/// The smallest read buffer that hyper accepts; it panics on a smaller one.
const LEAST_BUFFER: usize = 8192;
/// What a head has beside its target and its fields, as `limits` count them: method, version, spaces and empty line.
const REST_OF_HEAD: usize = 1024;

/// How hyper speaks it.
pub(super) fn builder(limits: &Limits) -> Builder {
    let mut http = Builder::new();
    // hyper has one clock for an idle connection and for a slow header. Its buffer holds a whole head, or some of a body:
    // it has to be larger than what `proxy` accepts, which judges by the limits themselves.
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.idle_timeout)
        .max_buf_size((limits.header_bytes + limits.uri_bytes + REST_OF_HEAD).max(LEAST_BUFFER))
        .preserve_header_case(true);
    http
}

/// Serves a connection until the client leaves, it was idle for too long, or the drain closes. One that becomes a websocket
/// goes on as a session.
pub(super) async fn serve(entrance: Arc<Entrance>, mut stream: Stream, client: IpAddr, guard: Guard) {
    let visit = Visit::new(client);
    let Some(mut early) = first_bytes(&mut stream, entrance.patience, &guard).await else {
        return close(stream).await;
    };
    let answer = Mutex::new(None);
    if let Some((request, length)) = wire::read_handshake(&early) {
        let mut behind = early[length..].to_vec();
        // Boxed, so that connections without a handshake are not larger for it.
        let response = tokio::select! {
            biased;
            response = Box::pin(entrance.proxy.handle(request, &visit)) => response,
            () = leaving(&mut stream, &mut behind) => return close(stream).await,
        };
        if let Some(head) = wire::write_switch(&response) {
            return match stream.send(&head).await {
                Ok(()) => visit.join(Side { stream, early: behind }, guard),
                Err(error) => tracing::debug!(%error, "a connection ended early"),
            };
        }
        early = [&early[..length], &behind].concat().into();
        *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(response);
    }
    let service = service_fn(|request| {
        Box::pin(async {
            let answer = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
            let mut response = match answer {
                Some(answer) => answer,
                None => entrance.proxy.handle(request.map(RequestBody::from), &visit).await,
            };
            // Who uses the connection goes elsewhere while that costs nobody a request (RFC 9112 §9.6).
            if guard.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        })
    });
    let mut connection = entrance.http1.serve_connection(TokioIo::new(Replay::new(stream, early)), service);
    let served = tokio::select! {
        // A request that has come is read before connections without one are closed.
        biased;
        served = poll_fn(|cx| connection.poll_without_shutdown(cx)) => served,
        () = closing(&guard) => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    let Parts { io, read_buf, .. } = connection.into_parts();
    let side = io.into_inner().into_side(&read_buf);
    if served.is_ok() && visit.is_upgraded() {
        return visit.join(side, guard);
    }
    close(side.stream).await;
    if let Err(error) = served {
        if let Some(reason) = rejected(&error) {
            entrance.metrics.http_rejected(reason);
        }
        tracing::debug!(%error, "a connection ended early");
    }
}

/// What the client says first; `None` if it says nothing for too long, or until it leaves or the drain closes.
async fn first_bytes(stream: &mut Stream, patience: Duration, guard: &Guard) -> Option<Bytes> {
    let first = tokio::time::timeout(patience, poll_fn(|cx| stream.poll_some(cx)));
    let bytes = tokio::select! {
        biased;
        read = first => read.ok()?.ok()?,
        () = closing(guard) => return None,
    };
    (!bytes.is_empty()).then(|| bytes.into())
}

/// Resolves when the client leaves. What it says while it waits for an answer comes to `behind`, one read of it; who says
/// something does not leave.
async fn leaving(stream: &mut Stream, behind: &mut Vec<u8>) {
    poll_fn(|cx| {
        if behind.is_empty() {
            *behind = ready!(stream.poll_some(cx)).unwrap_or_default();
        }
        if behind.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// An end of stream before the close: where bytes of the client's are unread, that sends a reset, which would overtake an
/// answer.
async fn close(mut stream: Stream) {
    let _gone_already = stream.shutdown().await;
}

/// What hyper has refused by itself, with an answer where one makes sense.
fn rejected(error: &hyper::Error) -> Option<Rejected> {
    if error.is_parse_too_large() {
        Some(Rejected::Size)
    } else if error.is_parse() {
        Some(Rejected::Malformed)
    } else {
        // A slow header is none of them: hyper does not tell it from a kept connection that nobody used any more.
        None
    }
}
