//! Rejects connections over the limits: with 503/429 if cheap, else by closing them.
//!
//! Invariant: a rejected client holds no resource for longer than 2 s, whatever it does.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::drain::Guard;
use crate::limits::LimitWarning;
use crate::metrics::{Metrics, Rejected};

/// Timeout for a rejected client to send a request, read the response and close.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of a rejected client that are read and discarded: a header, not a body.
const MAX_READ_BYTES: usize = 64 * 1024;

/// Connection limit reached: RFC 9110 §15.6.4.
const TOO_MANY_CONNECTIONS: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
                    Content-Length: 45\r\nRetry-After: 5\r\nConnection: close\r\n\r\n\
                    503 Service Unavailable: too many connections";
/// Limit of this client reached: RFC 6585 §4.
const TOO_MANY_OF_CLIENT: &str = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain; charset=utf-8\r\n\
                      Content-Length: 61\r\nRetry-After: 5\r\nConnection: close\r\n\r\n\
                      429 Too Many Requests: too many connections from your address";

/// The limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overload {
    /// `limits.connections` is reached.
    Connections,
    /// `limits.connections_per_address` is reached.
    ConnectionsPerAddress,
}

/// Rejects clients.
pub(super) struct Rejector {
    /// Slots for concurrent responses.
    response_slots: Arc<Semaphore>,
    connections: LimitWarning,
    connections_per_address: LimitWarning,
    metrics: Arc<Metrics>,
}

impl Rejector {
    /// Sends at most `max_responses` responses at a time; other connections are closed at once.
    pub(super) fn new(max_responses: usize, metrics: Arc<Metrics>) -> Self {
        let (connections, connections_per_address) =
            (LimitWarning::new("limits.connections"), LimitWarning::new("limits.connections_per_address"));
        Self { response_slots: Arc::new(Semaphore::new(max_responses)), connections, connections_per_address, metrics }
    }

    /// Counts and rejects a client.
    pub(super) fn reject(&self, stream: TcpStream, client: IpAddr, overload: Overload, guard: Guard) {
        let (reason, warning, response) = match overload {
            Overload::Connections => (Rejected::Connections, &self.connections, TOO_MANY_CONNECTIONS),
            Overload::ConnectionsPerAddress => {
                (Rejected::ConnectionsPerAddress, &self.connections_per_address, TOO_MANY_OF_CLIENT)
            }
        };
        self.metrics.rejected(reason);
        warning.warn();
        let slot = self.response_slots.clone().try_acquire_owned();
        tracing::debug!(%client, ?overload, responded = slot.is_ok(), "connection rejected");
        let Ok(slot) = slot else { return };
        tokio::spawn(async move {
            // An error or a timeout needs no handling: the connection closes anyway.
            let _result = tokio::time::timeout(REJECTION_TIMEOUT, respond(response, stream)).await;
            drop((slot, guard));
        });
    }
}

/// Waits for a request, since browsers drop a connection on which the server sends first. Then responds, and reads
/// until the client closes: closing with unread bytes sends a reset, which may overtake the response (RFC 9112 §9.6).
async fn respond(response: &str, mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 2048];
    let mut read = stream.read(&mut buffer).await?;
    if read == 0 {
        return Ok(());
    }
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await?;
    while read < MAX_READ_BYTES {
        match stream.read(&mut buffer).await? {
            0 => break,
            more => read += more,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_length_of_each_rejection_is_correct() {
        for response in [TOO_MANY_CONNECTIONS, TOO_MANY_OF_CLIENT] {
            let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}: {}", body.len());
        }
    }
}
