//! One endpoint of a session: reads into a shared scratch, and keeps only what its peer did not take.
//!
//! Invariant: an endpoint with nothing in flight owns no buffer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead as _, ReadBuf};

use crate::tap::MAX_CARRY;
use crate::transport::{Delivery, Peer, Stream};

/// Size of a connection's first read in bytes, as a power of two.
const MIN_READ: u8 = 14;

/// Largest read, as a power of two, if much comes and all of it is taken. Measured: fewer and larger system calls gain
/// more than overflowing the second-level cache costs; twice the size gains nothing.
const MAX_READ: u8 = 20;

thread_local! {
    /// The read buffer of all sessions of a worker, so that an idle one needs none.
    /// Kept bytes stand before those read. The kernel allocates the pages when they are first written.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_CARRY + (1 << MAX_READ)].into_boxed_slice());
}

/// Lends the worker's scratch.
pub(super) fn with_scratch<R>(work: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| work(scratch))
}

/// Result of a read.
#[derive(Debug)]
pub(super) enum Inflow {
    /// Length of the bytes at the front of the scratch: kept ones, then new ones.
    Bytes(usize),
    /// EOF; the bytes are an incomplete frame.
    End(Box<[u8]>),
    /// The connection is broken.
    Broken,
}

/// State of one direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
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
    stream: Stream,
    inbound: Half,
    outbound: Half,
    /// The kernel gave the connection up because the peer was silent for too long.
    timed_out: bool,
    /// The peer is on this machine: it may be busy but not silent, because the kernel closes its connections.
    is_local: bool,
    /// In this order: bytes were written, taken by the kernel, read since the flag was last cleared.
    wrote: bool,
    took: bool,
    heard: bool,
    /// Size of the next read in bytes, as a power of two. It grows when reads come back full. It shrinks when the
    /// receiver falls behind, so that little is kept for a slow one.
    appetite: u8,
    /// Read, but too few bytes to judge.
    carry: Box<[u8]>,
    backlog: Option<Box<Backlog>>,
}

/// Written by us, not yet taken by the kernel, from `start` on.
#[derive(Debug)]
struct Backlog {
    bytes: Vec<u8>,
    start: usize,
}

impl Endpoint {
    /// `early` are the bytes read beyond the handshake.
    pub(super) fn new(stream: Stream, early: Vec<u8>, is_local: bool) -> Self {
        let carry = early.into_boxed_slice();
        Self {
            stream,
            inbound: Half::Open,
            outbound: Half::Open,
            timed_out: false,
            is_local,
            wrote: false,
            took: false,
            heard: false,
            appetite: MIN_READ,
            carry,
            backlog: None,
        }
    }

    /// Delivery of written bytes; `None` if the peer cannot fall silent, or the kernel has no state.
    pub(super) fn delivery(&self) -> Option<Delivery> {
        let mut delivery = self.stream.delivery().filter(|_known| !self.is_local)?;
        delivery.waits |= !self.is_clear();
        Some(delivery)
    }

    /// The peer may still send.
    pub(super) fn is_readable(&self) -> bool {
        self.inbound == Half::Open
    }

    /// Bytes may still be sent to the peer.
    pub(super) fn is_writable(&self) -> bool {
        self.outbound == Half::Open
    }

    /// Nothing waits for the peer.
    pub(super) fn is_clear(&self) -> bool {
        self.backlog.is_none() && !self.stream.has_unsent()
    }

    /// Nothing more can be sent to the peer: EOF was sent, or the connection is broken.
    pub(super) fn is_shut(&self) -> bool {
        match self.outbound {
            Half::Open => false,
            Half::Ended => !self.stream.has_unsent(),
            Half::Broken => true,
        }
    }

    /// The connection broke, and everything readable was read.
    pub(super) fn is_broken(&self) -> bool {
        self.outbound == Half::Broken && self.inbound != Half::Open
    }

    /// The peer has sent EOF or broken the connection, even if that was not read yet.
    pub(super) fn has_left(&self) -> bool {
        self.inbound != Half::Open || self.outbound == Half::Broken || self.stream.peer() != Peer::Open
    }

    /// The kernel, not the peer, gave the connection up.
    pub(super) fn has_timed_out(&self) -> bool {
        self.timed_out
    }

    /// Whether anything was written to a peer that may fall silent; clears the flag.
    pub(super) fn take_wrote(&mut self) -> bool {
        std::mem::take(&mut self.wrote) && !self.is_local
    }

    /// Whether the kernel took anything for the peer; clears the flag.
    pub(super) fn take_took(&mut self) -> bool {
        std::mem::take(&mut self.took)
    }

    /// Whether anything was read; clears the flag.
    pub(super) fn take_heard(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }

    /// Takes the kept bytes; for a new endpoint, those read beyond the handshake.
    pub(super) fn take_kept(&mut self) -> Box<[u8]> {
        std::mem::take(&mut self.carry)
    }

    /// Keeps bytes that could not be judged yet for the front of the next read.
    pub(super) fn keep(&mut self, rest: &[u8]) {
        self.carry = rest.into();
    }

    /// Reads less at a time: the receiver has fallen behind.
    pub(super) fn slow_down(&mut self) {
        self.appetite = (self.appetite - 1).max(MIN_READ);
    }

    /// Reads once, after the kept bytes.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Inflow> {
        let kept = self.carry.len();
        let limit = (1_usize << self.appetite).min(scratch.len() - kept);
        let mut buffer = ReadBuf::new(&mut scratch[kept..][..limit]);
        if let Err(error) = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
            // An error breaks both directions.
            self.inbound = Half::Broken;
            self.break_off(&error);
            return Poll::Ready(Inflow::Broken);
        }
        self.heard = true;
        let came = buffer.filled().len();
        let carry = self.take_kept();
        if came == 0 {
            self.inbound = Half::Ended;
            return Poll::Ready(Inflow::End(carry));
        }
        scratch[..kept].copy_from_slice(&carry);
        if came == limit {
            self.appetite = (self.appetite + 1).min(MAX_READ);
        }
        Poll::Ready(Inflow::Bytes(kept + came))
    }

    /// Writes after all earlier bytes. Returns whether this write made the peer fall behind.
    pub(super) fn write(&mut self, bytes: &[u8]) -> bool {
        if self.outbound != Half::Open {
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
            if let Err(error) = ready!(self.stream.poll_write_ready(cx)) {
                self.break_off(&error);
            }
            if let Err(error) = self.stream.try_flush()
                && error.kind() != io::ErrorKind::WouldBlock
            {
                self.break_off(&error);
            }
            let Some(mut backlog) = self.backlog.take() else { continue };
            backlog.start += self.try_write(&backlog.bytes[backlog.start..]);
            if backlog.start < backlog.bytes.len() && self.outbound == Half::Open {
                self.backlog = Some(backlog);
            }
        }
        Poll::Ready(())
    }

    /// Stops waiting for the peer's EOF.
    pub(super) fn stop_reading(&mut self) {
        self.inbound = Half::Ended;
    }

    /// Drops what the kernel has not taken.
    pub(super) fn forget_backlog(&mut self) {
        self.backlog = None;
        self.stream.forget_unsent();
    }

    /// Gives the peer up: nothing more is read or written, and the drop resets the connection.
    pub(super) fn give_up(&mut self) {
        (self.inbound, self.outbound) = (Half::Broken, Half::Broken);
        self.forget_backlog();
        self.stream.reset_on_drop();
    }

    /// Makes the drop reset the connection.
    pub(super) fn reset_on_drop(&mut self) {
        self.stream.reset_on_drop();
    }

    /// Sends EOF, after everything that the stream has taken.
    pub(super) fn finish(&mut self) {
        if self.outbound == Half::Open {
            self.wrote = true;
            self.outbound = if self.stream.shutdown_write().is_ok() { Half::Ended } else { Half::Broken };
        }
    }

    /// Writes what the kernel takes now, and returns its length; on a broken connection drops all of it.
    fn try_write(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.stream.try_write(&bytes[taken..]) {
                Ok(count) => {
                    taken += count;
                    self.took = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.break_off(&error);
                    return bytes.len();
                }
            }
        }
        taken
    }

    fn break_off(&mut self, error: &io::Error) {
        self.outbound = Half::Broken;
        self.timed_out |= is_silence(error);
        self.forget_backlog();
    }
}

/// Whether the kernel gave up a silent peer: it reports a timeout or the network's last error (Linux, `tcp_write_err`).
fn is_silence(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable)
}
