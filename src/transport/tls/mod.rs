//! A TCP connection under TLS: plaintext on this side, TLS records on the wire.
//!
//! Records are written by hand, through rustls' unbuffered API. The reason is memory: without buffers, TLS adds 4 KB to
//! an idle websocket (docs/sizing.md).
//!
//! Invariant: an idle connection owns no buffer, and buffers are bounded by one read or one write.

mod engine;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ServerConfig};
use socket2::SockRef;
use tokio::io::{AsyncRead as _, AsyncReadExt as _, ReadBuf};
use tokio::net::TcpStream;

use self::engine::{Connection, Operation, Step, Unsent};

/// The most plaintext encrypted at once, in bytes: many records, sent in one system call.
const MOST_SEALED: usize = 256 * 1024;
/// Room for that as records: each takes at most 16 KiB and adds less than 64 bytes (RFC 8446 §5.2, RFC 5246 §6.2.3).
const SCRATCH: usize = MOST_SEALED + 32 * 1024;
/// Smallest size of a read, in bytes: about one record.
const LEAST_READ: usize = 17 * 1024;
/// The most bytes kept of a handshake or an incomplete record: rustls joins at most 64 KiB.
const MOST_JOINED: usize = 96 * 1024;
/// More than an encrypted `close_notify` takes.
const CLOSE_NOTIFY_BYTES: usize = 256;
/// First byte of every TLS connection: the type of a handshake record (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;

thread_local! {
    /// The worker's scratch: its connections read and encrypt records in it, in turn.
    static RECORDS: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer closed before it sent a byte.
    #[error("it was closed before the TLS handshake")]
    Closed,
    /// The peer speaks plain HTTP, judged by its first byte; bytes read so far are dropped.
    #[error("it speaks plain HTTP, not TLS")]
    PlainHttp(TcpStream),
    /// The connection broke or ended.
    #[error("the connection broke during the TLS handshake: {0}")]
    Io(io::Error),
    /// A side rejected the other's certificate, or the peer does not speak the same TLS.
    #[error("TLS handshake: {0}")]
    Tls(rustls::Error),
}

/// A TCP connection whose TLS handshake is done.
pub struct Tls {
    socket: TcpStream,
    pub(super) connection: Connection,
    /// An incomplete record.
    partial: Vec<u8>,
    /// Decrypted, but the reader had no room.
    opened: Unsent,
    /// Encrypted, but the kernel had no room.
    unsent: Unsent,
    outbound: Outbound,
    /// Nothing more is read: after `close_notify`, EOF or a TLS error.
    ended: bool,
    /// What broke the connection; returned after all earlier bytes are read.
    fault: Option<io::Error>,
}

/// State of the direction to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outbound {
    /// Bytes may be written; `Ending` or `Broken` may follow.
    Open,
    /// The `close_notify` is encrypted; once it is sent, the socket is shut down: `Ended`.
    Ending,
    Ended,
    /// A record was cut off or the connection will be reset; nothing follows.
    Broken,
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustls::Error> for HandshakeError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

impl Tls {
    /// Performs the handshake with a client. Has no timeout.
    ///
    /// # Errors
    /// Any failure of the handshake; the client gets an alert if TLS defines one.
    pub async fn accept(mut socket: TcpStream, config: Arc<ServerConfig>) -> Result<Self, HandshakeError> {
        let mut came = Vec::new();
        match socket.read_buf(&mut came).await? {
            0 => return Err(HandshakeError::Closed),
            _ if came[0] != HANDSHAKE_RECORD && came[0].is_ascii_uppercase() => {
                return Err(HandshakeError::PlainHttp(socket));
            }
            _ => {}
        }
        let connection = Connection::Server(UnbufferedServerConnection::new(config)?);
        Self::new(socket, connection).shake_hands(came).await
    }

    /// Performs the handshake with a server that must prove that it is `name`. Has no timeout.
    ///
    /// # Errors
    /// Any failure of the handshake.
    pub async fn connect(
        socket: TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, HandshakeError> {
        let connection = Connection::Client(UnbufferedClientConnection::new(config, name)?);
        Self::new(socket, connection).shake_hands(Vec::new()).await
    }

    fn new(socket: TcpStream, connection: Connection) -> Self {
        let (partial, opened, unsent) = (Vec::new(), Unsent::default(), Unsent::default());
        // No `close_notify` can be sent before the handshake is done.
        let outbound = Outbound::Broken;
        Self { socket, connection, partial, opened, unsent, outbound, ended: false, fault: None }
    }

    async fn shake_hands(mut self, mut came: Vec<u8>) -> Result<Self, HandshakeError> {
        loop {
            let (used, result) = self.take_records(&mut came, |_bytes| 0);
            came.drain(..used);
            // Also after a failure: the alert has the reason.
            poll_fn(|cx| self.poll_flush(cx)).await?;
            result?;
            if !self.connection.is_handshaking() {
                break;
            }
            if came.len() > MOST_JOINED {
                return Err(rustls::Error::General("the handshake is too long".to_owned()).into());
            }
            if self.ended || self.socket.read_buf(&mut came).await? == 0 {
                return Err(io::Error::from(ErrorKind::UnexpectedEof).into());
            }
        }
        came.shrink_to_fit();
        (self.partial, self.outbound) = (came, Outbound::Open);
        Ok(self)
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty() || self.outbound == Outbound::Ending
    }

    /// Encrypts and sends up to `MOST_SEALED` bytes; records that the kernel does not take are kept.
    ///
    /// # Errors
    /// `WouldBlock` if earlier records still wait, else an error of TLS or the socket.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.outbound != Outbound::Open {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.try_flush()?;
        let bytes = &bytes[..bytes.len().min(MOST_SEALED)];
        RECORDS.with_borrow_mut(|records| {
            let length = self.seal(&mut Operation::Seal(bytes, records))?;
            self.send(&records[..length])
        })?;
        Ok(bytes.len())
    }

    /// Sends waiting records; `WouldBlock` if some remain.
    pub(super) fn try_flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let sent = self.socket.try_write(self.unsent.bytes())?;
            self.unsent.take(sent);
        }
        if self.outbound == Outbound::Ending {
            self.outbound = Outbound::Ended;
            SockRef::from(&self.socket).shutdown(std::net::Shutdown::Write)?;
        }
        Ok(())
    }

    /// Drops waiting records; if there were any, nothing can follow.
    pub(super) fn drop_unsent(&mut self) {
        if self.has_unsent() {
            self.unsent = Unsent::default();
            self.outbound = Outbound::Broken;
        }
    }

    /// Sends `close_notify` and EOF, now or once the kernel has room.
    pub(super) fn shutdown_write(&mut self) -> io::Result<()> {
        if self.outbound == Outbound::Open {
            let mut close_notify = [0; CLOSE_NOTIFY_BYTES];
            let length = self.seal(&mut Operation::SealEnd(&mut close_notify)).unwrap_or(0);
            self.unsent.push(&close_notify[..length]);
            self.outbound = Outbound::Ending;
        }
        match self.try_flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    /// Makes the drop reset the connection, without a `close_notify`.
    pub(super) fn reset_on_drop(&mut self) {
        self.unsent = Unsent::default();
        self.outbound = Outbound::Broken;
        // Fails only on a closed socket, which needs no reset.
        let _closed_already = SockRef::from(&self.socket).set_linger(Some(std::time::Duration::ZERO));
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_write_ready(cx)
    }

    /// Ready once the socket may be readable; decrypted bytes do not count.
    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_read_ready(cx)
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        Poll::Ready(self.try_write(bytes))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.try_flush() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.socket.poll_write_ready(cx))?,
                result => return Poll::Ready(result),
            }
        }
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutdown_write()?;
        self.poll_flush(cx)
    }

    /// Reads until `buffer` is full or the socket would block.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        loop {
            let ready = self.opened.bytes().len().min(buffer.remaining());
            buffer.put_slice(&self.opened.bytes()[..ready]);
            self.opened.take(ready);
            let came = buffer.filled().len() > before;
            if buffer.remaining() == 0 || came && (self.ended || self.fault.is_some()) {
                return Poll::Ready(Ok(()));
            }
            if let Some(fault) = self.fault.take() {
                return Poll::Ready(Err(fault));
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            match self.poll_receive(cx, buffer) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => self.fault = Some(error),
                Poll::Pending if buffer.filled().len() > before => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Reads from the socket once and decrypts complete records; bytes beyond the buffer are kept.
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        RECORDS.with_borrow_mut(|records| {
            let kept = self.partial.len();
            if kept > MOST_JOINED {
                return Poll::Ready(Err(ErrorKind::InvalidData.into()));
            }
            // Records are longer than their plaintext: with the extra, a full read fills the buffer.
            let most = buffer.remaining() + buffer.remaining() / 64;
            let most = most.clamp(LEAST_READ, records.len() - kept);
            let mut fresh = ReadBuf::new(&mut records[kept..][..most]);
            ready!(std::pin::Pin::new(&mut self.socket).poll_read(cx, &mut fresh))?;
            let came = fresh.filled().len();
            if came == 0 {
                self.ended = true;
                // Without a close_notify, EOF is accepted only at the end of a record.
                let cut = !std::mem::take(&mut self.partial).is_empty();
                return Poll::Ready(if cut { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) });
            }
            records[..kept].copy_from_slice(&std::mem::take(&mut self.partial));
            let records = &mut records[..kept + came];
            let (used, result) = self.take_records(records, |bytes| {
                let room = bytes.len().min(buffer.remaining());
                buffer.put_slice(&bytes[..room]);
                room
            });
            self.partial = records[used..].to_vec();
            // An alert, or the answer to a key update; without room now, the next write sends it.
            let _room = self.try_flush();
            Poll::Ready(result.map_err(|error| io::Error::new(ErrorKind::InvalidData, error)))
        })
    }

    /// Processes complete records. `sink` returns how many bytes it took; the rest is kept. Returns the bytes used.
    fn take_records(
        &mut self,
        records: &mut [u8],
        mut sink: impl FnMut(&[u8]) -> usize,
    ) -> (usize, Result<(), rustls::Error>) {
        let mut used = 0;
        let opened = &mut self.opened;
        let mut sink = |bytes: &[u8]| {
            let taken = if opened.is_empty() { sink(bytes) } else { 0 };
            opened.push(&bytes[taken..]);
        };
        loop {
            let (done, step) =
                self.connection.turn(&mut records[used..], &mut Operation::Open, &mut sink, &mut self.unsent);
            used += done;
            match step {
                Ok(Step::Again) => {}
                Ok(Step::PeerEnded) => self.ended = true,
                Ok(Step::Dry | Step::Sealed(_)) => return (used, Ok(())),
                Err(error) => {
                    self.give_up();
                    return (used, Err(error));
                }
            }
        }
    }

    /// After an error, only fetches rustls' alert: it must not process the same record again.
    fn give_up(&mut self) {
        while self.connection.wants_write() {
            let _nothing_else = self.connection.turn(&mut [], &mut Operation::Open, &mut |_bytes| {}, &mut self.unsent);
        }
        (self.outbound, self.ended) = (Outbound::Broken, true);
    }

    /// Encrypts for an operation; returns the length in bytes.
    fn seal(&mut self, operation: &mut Operation<'_>) -> io::Result<usize> {
        let opened = &mut self.opened;
        loop {
            // `partial` holds no complete record.
            let (_none, step) =
                self.connection.turn(&mut self.partial, operation, &mut |bytes| opened.push(bytes), &mut self.unsent);
            match step {
                Ok(Step::Again) => {}
                Ok(Step::PeerEnded) => self.ended = true,
                Ok(Step::Dry) => return Err(ErrorKind::BrokenPipe.into()),
                Ok(Step::Sealed(length)) => return Ok(length),
                Err(error) => {
                    self.give_up();
                    return Err(io::Error::new(ErrorKind::InvalidData, error));
                }
            }
        }
    }

    /// Sends records after waiting ones; keeps what the kernel does not take.
    fn send(&mut self, mut records: &[u8]) -> io::Result<()> {
        while self.unsent.is_empty() && !records.is_empty() {
            match self.socket.try_write(records) {
                Ok(sent) => records = &records[sent..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.unsent.push(records);
        Ok(())
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        if self.outbound == Outbound::Open && self.unsent.is_empty() {
            // Shows the peer that nothing was cut off; an error means it is gone.
            let _result = self.shutdown_write();
        }
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("socket", &self.socket).finish_non_exhaustive()
    }
}
