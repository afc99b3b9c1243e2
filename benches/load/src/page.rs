//! A page that can resume its session: offers it, and confirms what it receives as the watchdog's script does.

use std::hash::{BuildHasher as _, RandomState};

use anyhow::ensure;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::wire;

/// In a path's query: the page can resume. Each connection puts a token of its own before the dot.
const OFFER: &str = "_heartbeat=.resume";
/// Payload bytes after which a page confirms.
const CONFIRM_AFTER: usize = 32 << 10;

/// What a page has received.
pub(crate) struct Page {
    /// The current frame's header, until it is complete.
    header: Vec<u8>,
    /// Bytes of its payload that are still to come.
    left: usize,
    /// Payload bytes of the current message; `None` for one of the sidecar.
    message: Option<usize>,
    /// Whole messages of the server.
    received: u64,
    /// Their payload bytes since the last confirmation.
    unconfirmed: usize,
}

/// Whether the pages of this path can resume.
pub(crate) fn offers(path: &str) -> bool {
    path.contains(OFFER)
}

/// The path of one connection.
pub(crate) fn offer(path: &str) -> String {
    let [high, low] = [0, 1].map(|half| RandomState::new().hash_one(half));
    path.replace(OFFER, &format!("_heartbeat={high:016x}{low:016x}.resume"))
}

/// Confirms so many messages, and asks for the same.
pub(crate) fn check(received: u64) -> Vec<u8> {
    wire::masked(0x81, format!("_heartbeat received {received}").as_bytes())
}

/// Confirms so many messages.
fn confirmation(received: u64) -> Vec<u8> {
    wire::masked(0x81, format!("_heartbeat confirm {received}").as_bytes())
}

impl Page {
    /// The page of a connection that [`wire::open`] has opened; `None` if it cannot resume.
    pub(crate) fn new(path: &str) -> Option<Self> {
        let received = u64::from(wire::query(path, "version").is_some());
        offers(path).then_some(Self { header: Vec::new(), left: 0, message: None, received, unconfirmed: 0 })
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Payload bytes of the current frame that are still to come.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Reads one more message, and sends the confirmations that are due.
    pub(crate) async fn receive(&mut self, stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<()> {
        let until = self.received + 1;
        while self.received < until {
            let count = stream.read(buffer).await?;
            ensure!(count > 0, "closed by the other side");
            let confirmations = self.on_bytes(&buffer[..count]);
            if !confirmations.is_empty() {
                stream.write_all(&confirmations).await?;
            }
        }
        Ok(())
    }

    /// Counts what came; returns the confirmations that are due.
    pub(crate) fn on_bytes(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut due = Vec::new();
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let length = self.left.min(bytes.len());
                bytes = &bytes[length..];
                due.extend(self.on_payload(length));
                continue;
            }
            bytes = rest;
            self.header.push(*first);
            if let Some(length) = wire::payload_length(&self.header) {
                self.message = (self.header[0] == 0x82).then_some(length);
                self.left = length;
                self.header.clear();
            }
        }
        due
    }

    /// Counts `length` bytes of the current payload; returns the confirmation, if one is due.
    pub(crate) fn on_payload(&mut self, length: usize) -> Vec<u8> {
        self.left -= length;
        let Some(message) = self.message.filter(|_length| self.left == 0) else { return Vec::new() };
        self.received += 1;
        self.unconfirmed += message;
        if self.unconfirmed < CONFIRM_AFTER {
            return Vec::new();
        }
        self.unconfirmed = 0;
        confirmation(self.received)
    }
}
