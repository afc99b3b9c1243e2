//! One end of a session: reads into a shared scratch, and keeps only what its peer did not take.
//!
//! Law: an end that has nothing under way owns no buffer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead as _, ReadBuf};

use super::stream::Stream;

/// Bytes that one read may take, in front of which stands what the last one left over.
const READ_SIZE: usize = 64 * 1024;

thread_local! {
    /// Read into by every session of a worker in turn, so that an idle one needs none.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_SIZE].into_boxed_slice());
}

/// Lends the worker's scratch.
pub(super) fn with_scratch<R>(work: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| work(scratch))
}

/// What a read brought.
#[derive(Debug)]
pub(super) enum Inflow {
    /// So many bytes at the front of the scratch: what was kept, and what came.
    Bytes(usize),
    /// The peer's end of stream, after these bytes that belong to nothing whole.
    End(Vec<u8>),
    /// The connection is broken.
    Broken,
}

/// How far one half of a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    /// Bytes flow; `Ended` or `Broken` may follow.
    Open,
    /// Ended in order; nothing follows.
    Ended,
    /// Broken; nothing follows.
    Broken,
}

/// A socket and what is under way on it.
#[derive(Debug)]
pub(super) struct End {
    stream: Stream,
    inbound: Half,
    outbound: Half,
    /// Read, but too little to be judged.
    carry: Vec<u8>,
    /// Written by us, not yet taken by the kernel, from `backlog_start` on.
    backlog: Vec<u8>,
    backlog_start: usize,
}

impl End {
    /// `early` are bytes that came glued to the handshake.
    pub(super) fn new(stream: Stream, early: Vec<u8>) -> Self {
        Self { stream, inbound: Half::Open, outbound: Half::Open, carry: early, backlog: Vec::new(), backlog_start: 0 }
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The peer may still send.
    pub(super) fn is_readable(&self) -> bool {
        self.inbound == Half::Open
    }

    /// The peer may still be sent to.
    pub(super) fn is_writable(&self) -> bool {
        self.outbound == Half::Open
    }

    /// Nothing waits for the peer.
    pub(super) fn is_clear(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Both halves ended in order.
    pub(super) fn is_over(&self) -> bool {
        self.inbound == Half::Ended && self.outbound == Half::Ended
    }

    /// The connection broke, and all that it still had to give was read.
    pub(super) fn is_broken(&self) -> bool {
        self.inbound == Half::Broken || (self.inbound == Half::Ended && self.outbound == Half::Broken)
    }

    /// Bytes that are kept from before; with a new end, those that came glued to the handshake.
    pub(super) fn take_kept(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.carry)
    }

    /// Keeps bytes that could not be judged yet for the front of the next read.
    pub(super) fn keep(&mut self, rest: &[u8]) {
        self.carry = rest.to_vec();
    }

    /// Reads once, behind what is kept.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Inflow> {
        let kept = self.carry.len();
        let mut buffer = ReadBuf::new(&mut scratch[kept..]);
        if ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)).is_err() {
            self.inbound = Half::Broken;
            return Poll::Ready(Inflow::Broken);
        }
        let came = buffer.filled().len();
        let carry = self.take_kept();
        if came == 0 {
            self.inbound = Half::Ended;
            return Poll::Ready(Inflow::End(carry));
        }
        scratch[..kept].copy_from_slice(&carry);
        Poll::Ready(Inflow::Bytes(kept + came))
    }

    /// Writes behind all that was written before. Answers whether this is what made the peer fall behind.
    pub(super) fn write(&mut self, bytes: &[u8]) -> bool {
        if self.outbound != Half::Open {
            return false;
        }
        if !self.backlog.is_empty() {
            self.backlog.extend_from_slice(bytes);
            return false;
        }
        let taken = self.try_write(bytes);
        self.backlog.extend_from_slice(&bytes[taken..]);
        !self.backlog.is_empty()
    }

    /// Writes the backlog; ready once there is none.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.backlog.is_empty() {
            if ready!(self.stream.poll_write_ready(cx)).is_err() {
                self.break_off();
                break;
            }
            let backlog = std::mem::take(&mut self.backlog);
            self.backlog_start += self.try_write(&backlog[self.backlog_start..]);
            if self.backlog_start < backlog.len() && self.outbound == Half::Open {
                self.backlog = backlog;
            } else {
                self.backlog_start = 0;
            }
        }
        Poll::Ready(())
    }

    /// Drops what the peer has not taken.
    pub(super) fn forget_backlog(&mut self) {
        self.backlog = Vec::new();
        self.backlog_start = 0;
    }

    /// Sends the end of the stream, behind all that was written.
    pub(super) fn finish(&mut self) {
        if self.outbound == Half::Open {
            self.outbound = if self.stream.shutdown_write().is_ok() { Half::Ended } else { Half::Broken };
        }
    }

    /// How much the kernel takes now; all of it once the connection is broken, since nobody wants it any more.
    fn try_write(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.stream.try_write(&bytes[taken..]) {
                Ok(count) => taken += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.break_off();
                    return bytes.len();
                }
            }
        }
        taken
    }

    fn break_off(&mut self) {
        self.outbound = Half::Broken;
        self.forget_backlog();
    }
}
