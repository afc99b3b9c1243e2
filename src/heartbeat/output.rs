//! What the tap asks of whoever carries its decisions out, and what it tells.

use std::time::Duration;

use super::{Capability, Withheld};
use crate::streamlit::messages::{BackType, Forward};
use crate::websocket::scanner::{Lost, Sender};

/// An event that the tap reports.
#[derive(Debug, PartialEq, Eq)]
pub enum TapEvent {
    /// A heartbeat came from the browser.
    Heartbeat,
    /// A whole message of so many payload bytes passed from the browser, or was withheld.
    Back(BackType, u64),
    /// A whole message of so many payload bytes passed from the upstream.
    Forward(Forward, u64),
    /// An ack was sent after so long.
    Ack(Duration),
    /// The upstream's own ack passed; its heartbeat waited so long, if it is known.
    NativeAck(Option<Duration>),
    /// No native ack came within `native_deadline`.
    NativeAckOverdue,
    /// The upstream proved itself alive after a native ack was overdue: it does not answer.
    NativeAckMissed,
    /// The upstream answered a ping after so long.
    Proof(Duration),
    /// A heartbeat counts as withheld.
    Withheld(Withheld),
    /// A close frame passed; its sender and its code, if it has one.
    Close(Sender, Option<u16>),
    /// The stream cannot be followed any further; the tap is off.
    Lost(Lost),
}

/// Carries out what the tap decides. `from` names the direction by its sender.
pub trait TapOutput {
    /// These bytes of the stream go on as they are.
    fn pass(&mut self, from: Sender, bytes: &[u8]);
    /// These bytes of the sidecar's own go in here.
    fn insert(&mut self, from: Sender, bytes: &[u8]);
    /// Nothing in this direction waits for its receiver.
    fn is_clear(&self, from: Sender) -> bool;
    /// What is known of the upstream.
    fn capability(&self) -> Capability;
    /// Something happened that is worth a metric.
    fn note(&mut self, note: TapEvent);
}
