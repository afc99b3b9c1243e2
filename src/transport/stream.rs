//! A connected stream socket of any kind: TCP, Unix or TLS.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::tcp_info::tcp_info;
use super::tls::Tls;
use crate::limits::Permit;

/// A stream socket, and the permit that it holds while it is open, if it is counted.
#[derive(Debug)]
pub enum Stream {
    /// TCP, with `TCP_NODELAY` set.
    Tcp(TcpStream, Option<Permit>),
    /// A Unix domain socket.
    Unix(UnixStream, Option<Permit>),
    /// TLS over TCP; boxed, because each idle session pays for every byte of a stream.
    Tls(Box<Tls>, Option<Permit>),
}

/// State of a peer as the kernel reports it, without a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// It may still send.
    Open,
    /// It sent EOF. A peer that closed the connection looks the same until something is sent to it.
    Ended,
    /// The connection is broken: reset by the peer, or given up by the kernel.
    Gone,
}

/// The kernel's state of bytes sent to a peer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delivery {
    /// Bytes that the peer's kernel has acknowledged since the connection started.
    pub acknowledged: u64,
    /// Some sent bytes are not acknowledged. Probes of a closed window do not count.
    pub in_flight: bool,
    /// Some bytes are in flight, or not sent yet.
    pub pending: bool,
    /// Time since it last acknowledged anything, duplicates included.
    pub quiet: Duration,
    /// The smoothed round-trip time, once there is one.
    pub round_trip: Option<Duration>,
}

/// The `TCP_INFO` state of a broken connection (Linux, `net/tcp_states.h`).
const TCP_CLOSE: u8 = 7;
/// The states after the peer's EOF: TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING.
const ENDED_STATES: [u8; 4] = [6, 8, 9, 11];

/// Calls the same method on any kind of socket.
macro_rules! each {
    ($self:expr, $socket:ident => $call:expr) => {
        match $self {
            Self::Tcp($socket, _) => $call,
            Self::Unix($socket, _) => $call,
            Self::Tls($socket, _) => $call,
        }
    };
}

impl Stream {
    /// Holds the permit until the socket is closed.
    pub fn hold(&mut self, taken: Permit) {
        let (Self::Tcp(_, permit) | Self::Unix(_, permit) | Self::Tls(_, permit)) = self;
        *permit = Some(taken);
    }

    /// Whether the TLS handshake has chosen HTTP/2.
    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Tls(tls, _) if tls.connection.protocol() == Some(b"h2"))
    }

    /// Reads available bytes, at most 8 KiB; none at EOF.
    ///
    /// # Errors
    /// The socket's error.
    pub fn poll_read_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        let mut room = [const { MaybeUninit::uninit() }; 8 << 10];
        let mut buffer = ReadBuf::uninit(&mut room);
        ready!(Pin::new(self).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().to_vec()))
    }

    /// Sends all bytes.
    ///
    /// # Errors
    /// The socket's error.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes).await?;
        self.flush().await
    }

    /// Writes what the kernel accepts now.
    ///
    /// # Errors
    /// `WouldBlock` if it accepts nothing, else the socket's own error.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        each!(self, socket => socket.try_write(bytes))
    }

    /// Whether TLS records that [`Stream::try_write`] accepted still wait for the kernel.
    pub fn has_unsent(&self) -> bool {
        matches!(self, Self::Tls(tls, _) if tls.has_unsent())
    }

    /// Sends what [`Stream::has_unsent`] reports.
    ///
    /// # Errors
    /// `WouldBlock` if some of it still waits, else the socket's own error.
    pub fn try_flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tls(tls, _) => tls.try_flush(),
            Self::Tcp(..) | Self::Unix(..) => Ok(()),
        }
    }

    /// Drops what [`Stream::has_unsent`] reports; if there was any, nothing can be written afterwards.
    pub fn drop_unsent(&mut self) {
        if let Self::Tls(tls, _) = self {
            tls.drop_unsent();
        }
    }

    /// Ready once [`Stream::try_write`] may succeed.
    ///
    /// # Errors
    /// The socket's own error.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, socket => socket.poll_write_ready(cx))
    }

    /// Half-closes: sends EOF; the other direction stays open. Over TLS, EOF follows the encrypted records.
    ///
    /// # Errors
    /// `NotConnected` if the peer is gone already.
    pub fn shutdown_write(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(socket, _) => SockRef::from(&*socket).shutdown(std::net::Shutdown::Write),
            Self::Unix(socket, _) => SockRef::from(&*socket).shutdown(std::net::Shutdown::Write),
            Self::Tls(tls, _) => tls.shutdown_write(),
        }
    }

    /// Makes the drop send a reset (RFC 9293 §3.10.5) instead of EOF.
    pub fn reset_on_drop(&mut self) {
        match self {
            // Fails only on a closed socket, which needs no reset.
            Self::Tcp(socket, _) => _ = SockRef::from(&*socket).set_linger(Some(Duration::ZERO)),
            Self::Tls(tls, _) => tls.reset_on_drop(),
            Self::Unix(..) => {}
        }
    }

    /// Ready once the socket has something to read: bytes, EOF or an error.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        each!(self, socket => socket.poll_read_ready(cx)).map(|_result| ())
    }

    /// The peer's state; always `Open` for a Unix domain socket.
    pub fn peer_state(&self) -> PeerState {
        match self.tcp_info().map(|info| info.tcpi_state) {
            Some(TCP_CLOSE) => PeerState::Gone,
            Some(state) if ENDED_STATES.contains(&state) => PeerState::Ended,
            Some(_) | None => PeerState::Open,
        }
    }

    /// How many bytes the peer's kernel has acknowledged; `None` for a Unix domain socket.
    pub fn acknowledged(&self) -> Option<u64> {
        Some(self.tcp_info()?.tcpi_bytes_acked)
    }

    /// Delivery of written bytes; `None` for a Unix domain socket.
    pub fn delivery(&self) -> Option<Delivery> {
        let info = self.tcp_info()?;
        let in_flight = info.tcpi_unacked > 0;
        Some(Delivery {
            acknowledged: info.tcpi_bytes_acked,
            in_flight,
            pending: in_flight || info.tcpi_notsent_bytes > 0,
            quiet: Duration::from_millis(info.tcpi_last_ack_recv.into()),
            round_trip: (info.tcpi_rtt > 0).then(|| Duration::from_micros(info.tcpi_rtt.into())),
        })
    }

    fn tcp_info(&self) -> Option<libc::tcp_info> {
        match self {
            Self::Tcp(socket, _) => tcp_info(socket),
            Self::Tls(tls, _) => tcp_info(tls.socket()),
            Self::Unix(..) => None,
        }
    }
}

/// TCP keepalive settings. The kernel gives an idle connection up `timeout` after the peer's last packet: half of it
/// passes idle, then three probes follow. Each part is whole seconds, at least one (`tcp(7)`).
pub fn keepalive(timeout: Duration) -> TcpKeepalive {
    const PROBES: u32 = 3;
    let second = Duration::from_secs(1);
    let (idle, interval) = ((timeout / 2).max(second), (timeout / 2 / PROBES).max(second));
    TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(PROBES)
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), socket => Pin::new(socket).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), socket => Pin::new(socket).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket, _) => Pin::new(socket).poll_write_vectored(cx, slices),
            Self::Unix(socket, _) => Pin::new(socket).poll_write_vectored(cx, slices),
            Self::Tls(tls, _) => {
                let first = slices.iter().find(|slice| !slice.is_empty());
                tls.poll_write(cx, first.map_or(&[], |slice| slice))
            }
        }
    }

    /// Over TLS each slice would become separate records.
    fn is_write_vectored(&self) -> bool {
        !matches!(self, Self::Tls(..))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), socket => Pin::new(socket).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), socket => Pin::new(socket).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_does_not_enlarge_other_streams() {
        #[allow(dead_code)]
        enum Plain {
            Tcp(TcpStream, Option<Permit>),
            Unix(UnixStream, Option<Permit>),
        }
        assert_eq!(size_of::<Stream>(), size_of::<Plain>());
    }
}
