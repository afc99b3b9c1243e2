//! A TCP connection under TLS: bytes in the clear on this side, records of TLS on the wire.
//!
//! Law: a connection that has nothing under way owns no buffer, and what it owns is bounded by one read or one write.

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

/// Bytes in the clear that are sealed at once: many records, so that they leave in one system call.
const MOST_SEALED: usize = 256 * 1024;
/// Room for these bytes as records: each takes 16 KiB at most and adds less than 64 bytes (RFC 8446 §5.2, RFC 5246 §6.2.3).
const SCRATCH: usize = MOST_SEALED + 32 * 1024;
/// Less than this is not asked of the system at once: about one record.
const LEAST_READ: usize = 17 * 1024;
/// What a handshake, or anything that is not whole, may take: rustls joins at most 64 KiB.
const MOST_JOINED: usize = 96 * 1024;
/// A `close_notify` sealed, with room to spare.
const CLOSE_NOTIFY_BYTES: usize = 256;
/// What every TLS connection begins with: the type of a handshake record (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;

thread_local! {
    /// Where every connection of a worker reads records to, and seals its own, in turn.
    static RECORDS: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer left before it said anything.
    #[error("it was closed before the TLS handshake")]
    Closed,
    /// The peer speaks plain HTTP, as its first byte tells; what it said is read.
    #[error("it speaks plain HTTP, not TLS")]
    PlainHttp(TcpStream),
    /// The connection broke or ended.
    #[error("the connection broke during the TLS handshake: {0}")]
    Io(io::Error),
    /// The peer is not believed, or does not believe, or speaks something else.
    #[error("TLS handshake: {0}")]
    Tls(rustls::Error),
}

/// A TCP connection whose TLS handshake is done.
pub struct Tls {
    socket: TcpStream,
    pub(super) connection: Connection,
    /// The front of a record that is not whole yet.
    partial: Vec<u8>,
    /// Read and opened, but the reader had no room.
    opened: Unsent,
    /// Sealed, but the kernel had no room.
    unsent: Unsent,
    outbound: Outbound,
    /// Nothing more is read: the peer has ended its stream, in either way, or broken it.
    ended: bool,
    /// What broke the connection, to be told when all that came before is read.
    fault: Option<io::Error>,
}

/// How far the way to the peer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outbound {
    /// Bytes may be written; `Ending` or `Broken` may follow.
    Open,
    /// The `close_notify` is sealed; the socket's own end follows when that has left: `Ended`.
    Ending,
    /// Nothing follows.
    Ended,
    /// A record was cut or the connection is to be reset; nothing follows.
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
    /// Shakes hands with a client. May take its time.
    ///
    /// # Errors
    /// Whatever keeps the two from agreeing; the client is told, as far as TLS has words for it.
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

    /// Shakes hands with a server that has to prove that it is `name`. May take its time.
    ///
    /// # Errors
    /// Whatever keeps the two from agreeing.
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
        // Before the handshake is done no `close_notify` can be sent.
        let outbound = Outbound::Broken;
        Self { socket, connection, partial, opened, unsent, outbound, ended: false, fault: None }
    }

    async fn shake_hands(mut self, mut came: Vec<u8>) -> Result<Self, HandshakeError> {
        loop {
            let (used, result) = self.take_records(&mut came, |_bytes| 0);
            came.drain(..used);
            // Also when it has failed: the alert says why.
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

    /// Whether records wait for the kernel.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty() || self.outbound == Outbound::Ending
    }

    /// Seals and sends as many bytes as are taken now; what the kernel does not take of their records is kept.
    ///
    /// # Errors
    /// `WouldBlock` if records of before still wait, else the socket's own error.
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

    /// Sends records that wait; `WouldBlock` if some still do.
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

    /// Drops records that wait: nothing can follow them.
    pub(super) fn forget_unsent(&mut self) {
        if self.has_unsent() {
            self.unsent = Unsent::default();
            self.outbound = Outbound::Broken;
        }
    }

    /// Sends `close_notify` and the end of the stream, or as soon as the kernel has room.
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

    /// Makes the coming drop reset the connection: nothing is said before.
    pub(super) fn reset_on_drop(&mut self) {
        self.unsent = Unsent::default();
        self.outbound = Outbound::Broken;
        // Fails only on a socket that is closed already; then there is nobody to tell.
        let _closed_already = SockRef::from(&self.socket).set_linger(Some(std::time::Duration::ZERO));
    }

    /// Ready once [`Tls::try_write`] is worth a try.
    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_write_ready(cx)
    }

    /// Ready once [`Tls::poll_read`] is worth a try of the socket.
    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_read_ready(cx)
    }

    /// Writes bytes as soon as the records of before have left.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush(cx))?;
        Poll::Ready(self.try_write(bytes))
    }

    /// Ready once no record waits.
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

    /// Reads until `buffer` is full or nothing more has come.
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

    /// Reads from the socket once and opens what is whole; what the buffer has no room for is kept.
    fn poll_receive(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        RECORDS.with_borrow_mut(|records| {
            let kept = self.partial.len();
            if kept > MOST_JOINED {
                return Poll::Ready(Err(ErrorKind::InvalidData.into()));
            }
            // Records are longer than what is in them, so that a full read fills the buffer.
            let most = buffer.remaining() + buffer.remaining() / 64;
            let most = most.clamp(LEAST_READ, records.len() - kept);
            let mut fresh = ReadBuf::new(&mut records[kept..][..most]);
            ready!(std::pin::Pin::new(&mut self.socket).poll_read(cx, &mut fresh))?;
            let came = fresh.filled().len();
            if came == 0 {
                self.ended = true;
                // Whoever ends the stream without a close_notify has at least ended a record.
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
            // An alert, or an answer to new keys; if there is no room now, it leaves with the next write.
            let _room = self.try_flush();
            Poll::Ready(result.map_err(|error| io::Error::new(ErrorKind::InvalidData, error)))
        })
    }

    /// Deals with all records that are whole. `sink` takes bytes and says how many; the others are kept. Answers how many
    /// bytes of `records` are done with.
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

    /// After rustls has failed it may only be asked for its alert: it must not see the same record again.
    fn give_up(&mut self) {
        while self.connection.wants_write() {
            let _nothing_else = self.connection.turn(&mut [], &mut Operation::Open, &mut |_bytes| {}, &mut self.unsent);
        }
        (self.outbound, self.ended) = (Outbound::Broken, true);
    }

    /// Seals for an errand; answers how many bytes it took.
    fn seal(&mut self, errand: &mut Operation<'_>) -> io::Result<usize> {
        let opened = &mut self.opened;
        loop {
            // Nothing that is whole is left there.
            let (_none, step) =
                self.connection.turn(&mut self.partial, errand, &mut |bytes| opened.push(bytes), &mut self.unsent);
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

    /// Sends records behind those that wait; keeps what the kernel does not take.
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
            // Tells the peer that nothing was cut off; whoever is gone need not know.
            let _result = self.shutdown_write();
        }
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("socket", &self.socket).finish_non_exhaustive()
    }
}
