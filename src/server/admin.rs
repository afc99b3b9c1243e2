//! The admin port: probes, metrics, live sessions, the status page, and the start of a drain.
//!
//! Invariant: responses never depend on the app, and continue during a drain. Made for a thread of its own: nothing
//! here needs the relay's workers, except the probes, which check that these run.

mod pages;
pub(super) mod response;
mod slots;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::debug;

use self::pages::Pages;
use self::slots::{Slot, Slots};
use super::listener;
use super::status::AdminState;
use crate::limits::RateLimitedWarning;

/// Timeout for a request's head, including idle time before it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum lifetime of a connection, longer than any scrape takes: also the bound for a client that does not read.
const MAX_LIFETIME: Duration = Duration::from_secs(60);

/// The kernel's send buffer for a connection; by default it holds megabytes for a client that does not read.
const SEND_BUFFER: usize = 128 << 10;

/// What the connections share.
struct Shared {
    pages: Pages,
    slots: Slots,
}

/// Serves until `stop` resolves, then aborts open connections. `stop` is the end of the process, not the start of its
/// drain: `/readyz` must report the drain.
pub async fn serve(listener: TcpListener, state: AdminState, stop: impl Future<Output = ()>) {
    let mut stop = pin!(stop);
    let shared = Arc::new(Shared { pages: Pages::new(state), slots: Slots::default() });
    let (mut connections, exhausted) = (JoinSet::new(), RateLimitedWarning::default());
    loop {
        let (stream, _peer) = tokio::select! {
            () = &mut stop => return,
            Some(_) = connections.join_next() => continue,
            accepted = listener::accept(&listener, &exhausted) => accepted,
        };
        connections.spawn(serve_connection(stream, shared.clone(), shared.slots.take()));
        // A request that came with the connection is read before the next connection can close this one.
        tokio::task::yield_now().await;
    }
}

async fn serve_connection(stream: TcpStream, shared: Arc<Shared>, slot: Slot) {
    if let Err(error) = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER) {
        debug!(%error, "cannot set the send buffer of an admin connection");
    }
    let is_local = is_local(&stream);
    let drain_requested = AtomicBool::new(false);
    let service = service_fn(async |request: Request<_>| {
        let pending = slot.start_response();
        let response = match request.uri().path() {
            "/drain" => pages::drain(&request, is_local),
            _ => shared.pages.respond(&request).await,
        };
        drain_requested.fetch_or(response.status() == StatusCode::ACCEPTED, Relaxed);
        Ok::<_, Infallible>(response.map(|body| Full::new(pending.body(body))))
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let served = tokio::time::timeout(MAX_LIFETIME, connection);
    tokio::select! {
        ended = served => match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "admin connection ended early"),
            Err(_) => debug!("admin connection closed: lifetime over"),
        },
        () = slot.closed() => debug!("admin connection closed: slot needed by a newer one"),
    }
    if drain_requested.load(Relaxed) {
        // Only now: an idle sidecar exits before its response is written.
        tracing::info!("drain requested on the admin port");
        shared.pages.state.drain.start();
    }
}

/// Whether the client is on this machine, as `heartbeat-sidecar drain` is.
fn is_local(stream: &TcpStream) -> bool {
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return false };
    let peer = peer.ip().to_canonical();
    peer.is_loopback() || peer == local.ip().to_canonical()
}
