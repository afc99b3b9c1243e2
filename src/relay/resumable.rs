//! What a resumable session has beside its endpoints: the messages that its page may miss, and its place in the
//! registry.

use std::time::Duration;
use std::time::Instant;

use super::legs::LegHandle;
use crate::resume::Outbox;
use crate::resume::control;

/// How long sessions may be parked, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkingOptions {
    /// Bytes that each end keeps for the other; 0 if no other leg may continue the session. It is parked all the same, so
    /// that the app runs on until the page has opened another session.
    pub buffer_bytes: usize,
    /// Time that a session stays parked.
    pub window: Duration,
    /// Parked sessions of an app.
    pub parked: usize,
    /// Bytes that the app may send to a parked session.
    pub parked_bytes: u64,
    /// The session's handshake has closed an older connection of it, which had passed this many data messages of the page
    /// to the app.
    pub taken: Option<u64>,
}

/// What makes a session resumable.
pub(super) struct Resumable {
    pub(super) outbox: Outbox,
    pub(super) handle: LegHandle,
    pub(super) limits: ParkingOptions,
    pub(super) parked: Option<Parked>,
}

/// A session without a leg.
#[derive(Clone, Copy)]
pub(super) struct Parked {
    pub(super) since: Instant,
    /// Bytes that the app has sent since then.
    pub(super) bytes: u64,
}

impl Resumable {
    pub(super) fn new(handle: LegHandle, limits: ParkingOptions) -> Self {
        Self { outbox: Outbox::new(limits.buffer_bytes), handle, limits, parked: None }
    }

    /// The first message to the page.
    pub(super) fn greeting(&self) -> Vec<u8> {
        let ParkingOptions { buffer_bytes, window, taken, .. } = self.limits;
        if buffer_bytes == 0 {
            return control::plain_greeting(taken);
        }
        control::greeting(self.handle.secret(), buffer_bytes, window.as_millis(), taken)
    }

    pub(super) fn is_parked(&self) -> bool {
        self.parked.is_some()
    }

    /// When it stops being parked.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.parked.map(|parked| parked.since + self.limits.window)
    }

    /// These bytes go to the page. Returns how many kept ones were dropped.
    pub(super) fn on_output(&mut self, bytes: &[u8]) -> usize {
        if let Some(parked) = &mut self.parked {
            parked.bytes += bytes.len() as u64;
        }
        self.outbox.on_bytes(bytes)
    }

    /// The leg is lost.
    pub(super) fn park(&mut self) {
        self.parked = Some(Parked { since: Instant::now(), bytes: 0 });
        self.handle.park(self.limits.parked);
    }

    /// It has a leg again, or ends. Returns since when it was parked, if it was.
    pub(super) fn unpark(&mut self) -> Option<Parked> {
        self.handle.unpark();
        self.parked.take()
    }
}
