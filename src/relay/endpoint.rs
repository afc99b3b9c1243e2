//! One endpoint of a session: reads into a shared scratch, and keeps only what its peer did not accept.
//!
//! Invariant: an endpoint with nothing in flight owns no buffer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead as _, ReadBuf};

use crate::tap::MAX_INCOMPLETE_BYTES;
use crate::transport::{Delivery, PeerState, Stream};

/// Size of a connection's first read: the exponent of a power of two, in bytes.
const MIN_READ_SHIFT: u8 = 14;

/// Largest read, likewise, if much comes and all of it is taken. Measured: fewer and larger system calls gain
/// more than overflowing the second-level cache costs; twice the size gains nothing.
const MAX_READ_SHIFT: u8 = 20;

thread_local! {
    /// The read buffer of all sessions of a worker, so that an idle one needs none.
    /// Kept bytes stand before those read. The kernel allocates the pages when they are first written.
    static SCRATCH: RefCell<Box<[u8]>> =
        RefCell::new(vec![0; MAX_INCOMPLETE_BYTES + (1 << MAX_READ_SHIFT)].into_boxed_slice());
}

/// Lends the worker's scratch.
pub(super) fn with_scratch<R>(work: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| work(scratch))
}

/// Result of a read.
#[derive(Debug)]
pub(super) enum ReadResult {
    /// Length of the bytes at the front of the scratch: kept ones, then new ones.
    Bytes(usize),
    /// EOF; the bytes are an incomplete frame.
    End(Box<[u8]>),
    /// The connection is broken.
    Broken,
}

/// State of one direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HalfState {
    /// Bytes flow; `Ended` or `Broken` may follow.
    Open,
    /// Ended by EOF; nothing follows.
    Ended,
    /// Broken; nothing follows.
    Broken,
}

/// A socket and its buffers; each idle session pays for every byte of this struct.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// `None` for an absent peer, which sends nothing: what is written to it is dropped, and nothing waits for it.
    stream: Option<Stream>,
    inbound: HalfState,
    outbound: HalfState,
    /// The kernel gave the connection up because the peer was silent for too long.
    timed_out: bool,
    /// The peer is on this machine: it may be busy but not silent, because the kernel closes its connections.
    is_local: bool,
    /// In this order: bytes were written, accepted by the kernel, read since the flag was last cleared.
    wrote: bool,
    accepted: bool,
    received: bool,
    /// Size of the next read in bytes, as a power of two. It grows after full reads, and shrinks when the receiver falls
    /// behind, so that little is kept for a slow one.
    read_shift: u8,
    /// Read, but too few bytes to parse.
    kept: Box<[u8]>,
    backlog: Option<Box<Backlog>>,
}

/// Written by us, not yet accepted by the kernel, from `start` on.
#[derive(Debug)]
struct Backlog {
    bytes: Vec<u8>,
    start: usize,
}

impl Endpoint {
    /// `early` are the bytes read beyond the handshake.
    pub(super) fn new(stream: Stream, early: Vec<u8>, is_local: bool) -> Self {
        Self { stream: Some(stream), kept: early.into_boxed_slice(), is_local, ..Self::absent() }
    }

    /// The endpoint of a peer that is away, and may come back over another connection.
    pub(super) fn absent() -> Self {
        Self {
            stream: None,
            inbound: HalfState::Open,
            outbound: HalfState::Open,
            timed_out: false,
            is_local: false,
            wrote: false,
            accepted: false,
            received: false,
            read_shift: MIN_READ_SHIFT,
            kept: Box::default(),
            backlog: None,
        }
    }

    /// Delivery of written bytes; `None` if the peer cannot fall silent, or the kernel has no state.
    pub(super) fn delivery(&self) -> Option<Delivery> {
        let mut delivery = self.stream.as_ref()?.delivery().filter(|_known| !self.is_local)?;
        delivery.pending |= !self.is_clear();
        Some(delivery)
    }

    /// The peer may still send.
    pub(super) fn is_readable(&self) -> bool {
        self.inbound == HalfState::Open
    }

    /// Bytes may still be sent to the peer.
    pub(super) fn is_writable(&self) -> bool {
        self.outbound == HalfState::Open
    }

    /// Nothing waits for the peer.
    pub(super) fn is_clear(&self) -> bool {
        self.backlog.is_none() && !self.has_unsent()
    }

    /// Nothing more can be sent to the peer: EOF was sent, or the connection is broken.
    pub(super) fn is_shut(&self) -> bool {
        match self.outbound {
            HalfState::Open => false,
            HalfState::Ended => !self.has_unsent(),
            HalfState::Broken => true,
        }
    }

    /// The connection broke, and everything readable was read.
    pub(super) fn is_broken(&self) -> bool {
        self.outbound == HalfState::Broken && self.inbound != HalfState::Open
    }

    /// The peer has sent EOF or broken the connection, even if that was not read yet.
    pub(super) fn has_left(&self) -> bool {
        self.inbound != HalfState::Open
            || self.outbound == HalfState::Broken
            || self.stream.as_ref().is_some_and(|stream| stream.peer_state() != PeerState::Open)
    }

    /// The kernel, not the peer, gave the connection up.
    pub(super) fn has_timed_out(&self) -> bool {
        self.timed_out
    }

    /// Whether anything was written to a peer that may fall silent; clears the flag.
    pub(super) fn take_wrote(&mut self) -> bool {
        std::mem::take(&mut self.wrote) && !self.is_local
    }

    /// Whether the kernel accepted anything for the peer; clears the flag.
    pub(super) fn take_accepted(&mut self) -> bool {
        std::mem::take(&mut self.accepted)
    }

    /// Whether anything was read; clears the flag.
    pub(super) fn take_received(&mut self) -> bool {
        std::mem::take(&mut self.received)
    }

    /// Takes the kept bytes; for a new endpoint, those read beyond the handshake.
    pub(super) fn take_kept(&mut self) -> Box<[u8]> {
        std::mem::take(&mut self.kept)
    }

    /// Keeps bytes that could not be parsed yet for the front of the next read.
    pub(super) fn keep(&mut self, rest: &[u8]) {
        self.kept = rest.into();
    }

    /// Reads less at a time: the receiver has fallen behind.
    pub(super) fn slow_down(&mut self) {
        self.read_shift = (self.read_shift - 1).max(MIN_READ_SHIFT);
    }

    /// Reads once, after the kept bytes.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<ReadResult> {
        let Some(stream) = &mut self.stream else { return Poll::Pending };
        let start = self.kept.len();
        let limit = (1_usize << self.read_shift).min(scratch.len() - start);
        let mut buffer = ReadBuf::new(&mut scratch[start..][..limit]);
        if let Err(error) = ready!(Pin::new(stream).poll_read(cx, &mut buffer)) {
            // An error breaks both directions.
            self.inbound = HalfState::Broken;
            self.on_error(&error);
            return Poll::Ready(ReadResult::Broken);
        }
        self.received = true;
        let length = buffer.filled().len();
        let kept = self.take_kept();
        if length == 0 {
            self.inbound = HalfState::Ended;
            return Poll::Ready(ReadResult::End(kept));
        }
        scratch[..start].copy_from_slice(&kept);
        if length == limit {
            self.read_shift = (self.read_shift + 1).min(MAX_READ_SHIFT);
        }
        Poll::Ready(ReadResult::Bytes(start + length))
    }

    /// Writes after all earlier bytes. Returns whether this write made the peer fall behind.
    pub(super) fn write(&mut self, bytes: &[u8]) -> bool {
        if self.outbound != HalfState::Open || self.stream.is_none() {
            return false;
        }
        self.wrote = true;
        if let Some(backlog) = &mut self.backlog {
            backlog.bytes.extend_from_slice(bytes);
            return false;
        }
        let was_clear = self.is_clear();
        let taken = self.try_write(bytes);
        if taken < bytes.len() {
            self.backlog = Some(Box::new(Backlog { bytes: bytes[taken..].to_vec(), start: 0 }));
        }
        was_clear && !self.is_clear()
    }

    /// Writes the backlog; ready once it is empty.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.is_clear() {
            let Some(stream) = &mut self.stream else { return Poll::Ready(()) };
            let (ready, flushed) = (ready!(stream.poll_write_ready(cx)), stream.try_flush());
            if let Err(error) = ready {
                self.on_error(&error);
            }
            if let Err(error) = flushed
                && error.kind() != io::ErrorKind::WouldBlock
            {
                self.on_error(&error);
            }
            let Some(mut backlog) = self.backlog.take() else { continue };
            backlog.start += self.try_write(&backlog.bytes[backlog.start..]);
            if backlog.start < backlog.bytes.len() && self.outbound == HalfState::Open {
                self.backlog = Some(backlog);
            }
        }
        Poll::Ready(())
    }

    /// Stops waiting for the peer's EOF.
    pub(super) fn stop_reading(&mut self) {
        self.inbound = HalfState::Ended;
    }

    /// Drops what the kernel has not accepted.
    pub(super) fn drop_backlog(&mut self) {
        self.backlog = None;
        if let Some(stream) = &mut self.stream {
            stream.drop_unsent();
        }
    }

    /// Gives the peer up: nothing more is read or written, and the drop resets the connection.
    pub(super) fn give_up(&mut self) {
        (self.inbound, self.outbound) = (HalfState::Broken, HalfState::Broken);
        self.drop_backlog();
        self.reset_on_drop();
    }

    /// Makes the drop reset the connection.
    pub(super) fn reset_on_drop(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.reset_on_drop();
        }
    }

    /// Sends EOF, after everything that the stream has accepted.
    pub(super) fn finish(&mut self) {
        if self.outbound == HalfState::Open {
            self.wrote = true;
            let is_shut = self.stream.as_mut().is_none_or(|stream| stream.shutdown_write().is_ok());
            self.outbound = if is_shut { HalfState::Ended } else { HalfState::Broken };
        }
    }

    /// Writes what the kernel accepts now, and returns its length; on a broken connection drops all of it.
    fn try_write(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            let Some(stream) = &mut self.stream else { return bytes.len() };
            match stream.try_write(&bytes[taken..]) {
                Ok(count) => {
                    taken += count;
                    self.accepted = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.on_error(&error);
                    return bytes.len();
                }
            }
        }
        taken
    }

    fn has_unsent(&self) -> bool {
        self.stream.as_ref().is_some_and(Stream::has_unsent)
    }

    fn on_error(&mut self, error: &io::Error) {
        self.outbound = HalfState::Broken;
        self.timed_out |= is_timeout(error);
        self.drop_backlog();
    }
}

/// Whether the kernel gave up a silent peer: it reports a timeout or the network's last error (Linux, `tcp_write_err`).
fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable)
}
