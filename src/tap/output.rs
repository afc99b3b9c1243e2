//! The tap's output: its events, and the interface that receives them.

use std::time::Duration;

use crate::heartbeat::{Capability, Withheld};
use crate::streamlit::messages::{BackType, ForwardContent};
use crate::websocket::scanner::{ProtocolError, Side};

/// Why the tap can no longer read a session's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TapError {
    /// The stream cannot be parsed.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// Compressed messages cannot be inflated, or exceed the allowance. Frames can still be parsed.
    #[error("compressed messages cannot be inflated")]
    Compression,
}

/// An event that the tap reports.
#[derive(Debug, PartialEq, Eq)]
pub enum TapEvent {
    /// The browser sent a heartbeat.
    Heartbeat,
    /// A complete browser message passed or was removed; its payload length in bytes.
    BrowserMessage(BackType, u64),
    /// A complete upstream message passed; its payload length in bytes.
    UpstreamMessage(ForwardContent, u64),
    /// An ack was sent; the time since its heartbeat.
    Ack(Duration),
    /// The upstream's own ack passed; the time since its heartbeat, if known.
    NativeAck(Option<Duration>),
    /// No native ack came within `native_deadline`.
    NativeAckOverdue,
    /// The upstream was proved alive and has not acked a forwarded heartbeat.
    NativeAckMissed,
    /// The upstream answered a ping; the round-trip time.
    Proof(Duration),
    /// A heartbeat counts as withheld.
    Withheld(Withheld),
    /// A close frame was received; its sender and its code, if any.
    CloseReceived(Side, Option<u16>),
    /// Messages can no longer be read; inspection is off, or frames only.
    Unparsable(TapError),
}

/// Receives the tap's output. `from` is the sender of the direction.
pub trait TapOutput {
    /// Passes bytes of the stream unchanged.
    fn pass(&mut self, from: Side, bytes: &[u8]);
    /// Inserts bytes of the sidecar's own.
    fn insert(&mut self, from: Side, bytes: &[u8]);
    /// Whether nothing waits for the receiver of this direction.
    fn is_clear(&self, from: Side) -> bool;
    /// Whether the upstream acks heartbeats.
    fn capability(&self) -> Capability;
    /// Receives an event.
    fn on_event(&mut self, event: TapEvent);
}
