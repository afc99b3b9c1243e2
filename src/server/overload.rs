//! Turns clients away for whom there is no room: with an answer where that is cheap, else by closing.
//!
//! Law: nobody who is turned away holds anything for longer than a moment, whatever he does.

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

/// How long a client has to ask, to take its answer and to leave.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much of what a client sends is read only to be forgotten: a header, not a body.
const MOST_READ: usize = 64 * 1024;

/// No room for anyone: RFC 9110 §15.6.4.
const FULL: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n\
                    Content-Length: 45\r\nRetry-After: 5\r\nConnection: close\r\n\r\n\
                    503 Service Unavailable: too many connections";
/// No more room for this client: RFC 6585 §4.
const GREEDY: &str = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/plain; charset=utf-8\r\n\
                      Content-Length: 59\r\nRetry-After: 5\r\nConnection: close\r\n\r\n\
                      429 Too Many Requests: too many connections of your address";

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overload {
    /// `limits.connections` is reached.
    Connections,
    /// `limits.connections_per_address` is reached.
    ConnectionsPerAddress,
}

/// Where clients are turned away.
pub(super) struct Rejector {
    /// Clients that are answered at a time.
    answers: Arc<Semaphore>,
    connections: LimitWarning,
    connections_per_address: LimitWarning,
    metrics: Arc<Metrics>,
}

impl Rejector {
    /// Answers so many at a time; the others' connections are closed.
    pub(super) fn new(answers: usize, metrics: Arc<Metrics>) -> Self {
        let (connections, connections_per_address) =
            (LimitWarning::new("limits.connections"), LimitWarning::new("limits.connections_per_address"));
        Self { answers: Arc::new(Semaphore::new(answers)), connections, connections_per_address, metrics }
    }

    /// Counts a client and lets it go.
    pub(super) fn reject(&self, stream: TcpStream, client: IpAddr, overload: Overload, guard: Guard) {
        let (reason, alarm, answer) = match overload {
            Overload::Connections => (Rejected::Connections, &self.connections, FULL),
            Overload::ConnectionsPerAddress => (Rejected::ConnectionsPerAddress, &self.connections_per_address, GREEDY),
        };
        self.metrics.http_rejected(reason);
        alarm.warn();
        let slot = self.answers.clone().try_acquire_owned();
        tracing::debug!(%client, ?overload, answered = slot.is_ok(), "connection refused");
        let Ok(slot) = slot else { return };
        tokio::spawn(async move {
            // A client that breaks off has what it wants, and one that dawdles has had its time.
            let _result = tokio::time::timeout(PATIENCE, say(answer, stream)).await;
            drop((slot, guard));
        });
    }
}

/// Waits for a request, since browsers drop a connection that speaks first, answers, and reads on until the client
/// leaves: a connection that is closed with bytes unread is reset, and that may overtake the answer (RFC 9112 §9.6).
async fn say(answer: &str, mut stream: TcpStream) -> io::Result<()> {
    let mut scrap = [0; 2048];
    let mut read = stream.read(&mut scrap).await?;
    if read == 0 {
        return Ok(());
    }
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    while read < MOST_READ {
        match stream.read(&mut scrap).await? {
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
    fn the_answers_are_as_long_as_they_say() {
        for answer in [FULL, GREEDY] {
            let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}: {}", body.len());
        }
    }
}
