//! Accepts connections of browsers and serves HTTP on each until the drain.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, TcpStream};

use super::context::{ListenerContext, closing};
use super::overload::Overload;
use super::{http1, http2};
use crate::drain::{Drain, Guard};
use crate::limits::{Permit, RateLimitedWarning};
use crate::metrics::Rejected;

/// Pause before the next accept when the system has no file descriptor left (`accept(2)`: EMFILE, ENFILE, ENOBUFS,
/// ENOMEM).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the drain closes; open connections then finish their requests. Each connection uses the context that is
/// current when it is accepted.
pub async fn serve(listener: TcpListener, context: Arc<ArcSwap<ListenerContext>>, drain: Drain) {
    let exhausted = RateLimitedWarning::default();
    loop {
        let (stream, peer) = tokio::select! {
            () = drain.closing() => break,
            accepted = accept(&listener, &exhausted) => accepted,
        };
        accept_or_reject(context.load_full(), stream, peer, &drain);
    }
    for (stream, peer) in backlog(listener) {
        accept_or_reject(context.load_full(), stream, peer, &drain);
    }
}

/// Serves a connection, or rejects it if no slot is free.
fn accept_or_reject(context: Arc<ListenerContext>, stream: TcpStream, peer: SocketAddr, drain: &Drain) {
    match context.slots.take() {
        Some(permit) => _ = tokio::spawn(serve_connection(context, stream, permit, peer, drain.guard())),
        None => context.rejector.reject(stream, peer.ip(), Overload::Connections, drain.guard()),
    }
}

/// Connections that the kernel has accepted already: closing the socket would reset them.
fn backlog(listener: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    let listener = listener.into_std().ok();
    std::iter::from_fn(move || {
        let (stream, peer) = listener.as_ref()?.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer))
    })
}

/// The next connection. Errors of one connection are ignored. When file descriptors run out, accepting pauses, and
/// `exhausted` limits the log lines.
pub(super) async fn accept(listener: &TcpListener, exhausted: &RateLimitedWarning) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if let Some(failures) = exhausted.on_event(Instant::now()) {
                    tracing::error!(%error, suppressed = failures - 1, "cannot accept connections");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn serve_connection(
    context: Arc<ListenerContext>,
    mut stream: TcpStream,
    mut permit: Permit,
    peer: SocketAddr,
    guard: Guard,
) {
    let client = tokio::select! {
        biased;
        client = context.client(&mut stream, peer) => client,
        () = closing(&guard) => return,
    };
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            context.metrics.rejected(Rejected::ProxyProtocol);
            tracing::debug!(%peer, %error, "connection rejected");
            return;
        }
    };
    if !context.has_slot_for(client, &mut permit) {
        drop(permit);
        return context.rejector.reject(stream, client, Overload::ConnectionsPerAddress, guard);
    }
    let stream = tokio::select! {
        biased;
        stream = context.open(stream, permit, client) => stream,
        () = closing(&guard) => None,
    };
    let Some(stream) = stream else { return };
    if stream.is_http2() {
        return Box::pin(http2::serve(context, stream, client, &guard)).await;
    }
    http1::serve(context, stream, client, guard).await;
}
