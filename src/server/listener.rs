//! Accepts browsers and serves HTTP/1.1 to each until the drain.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::drain::{Drain, Guard};
use crate::proxy::Proxy;
use crate::relay::stream::Stream;

/// How long the head of a request may take, and how long a kept connection may stay idle before it (hyper has one
/// clock for both). Longer than the 60 s after which common load balancers let go of an idle connection: if this side
/// were first, they would now and then send a request into a closing one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// How long accepting rests when the system has no file handle left (`accept(2)`: EMFILE, ENFILE, ENOBUFS, ENOMEM).
const EXHAUSTED_REST: Duration = Duration::from_millis(100);

/// Serves until the drain starts; connections that are open then finish what they do.
pub async fn serve(listener: TcpListener, proxy: Proxy, drain: Drain) {
    loop {
        let (stream, peer) = tokio::select! {
            () = drain.draining() => return,
            accepted = accept(&listener) => accepted,
        };
        tokio::spawn(connection(stream, peer, proxy.clone(), drain.guard()));
    }
}

/// The next connection. Errors of one connection are its own affair; a system that has run out of handles gets a rest.
pub(super) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                tokio::time::sleep(EXHAUSTED_REST).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn connection(stream: TcpStream, peer: SocketAddr, proxy: Proxy, guard: Guard) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a browser left before it was served");
        return;
    }
    let service = service_fn(|request| {
        let proxy = proxy.clone();
        async move { Ok::<_, std::convert::Infallible>(proxy.handle(request, peer.ip()).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(Stream::Tcp(stream)), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = guard.draining() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}
