//! What a resumable session has beside its endpoints: the messages that its page may miss, and its place in the
//! registry.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::legs::{LegHandle, ParkedPlace};
use crate::resume::Outbox;
use crate::resume::control::{self, Secret};

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
}

/// What makes a session resumable.
pub struct ResumableOptions {
    /// Its place in the registry.
    pub handle: LegHandle,
    /// Shared by the sessions of an app.
    pub parking: Arc<ParkingOptions>,
    /// The first message to the page.
    pub greeting: Vec<u8>,
}

/// A session that is parked when it loses its leg; an idle one pays for every byte.
pub(super) struct Resumable {
    pub(super) outbox: Outbox,
    pub(super) handle: LegHandle,
    pub(super) limits: Arc<ParkingOptions>,
    pub(super) parked: Option<Box<Parked>>,
}

/// A session without a leg.
pub(super) struct Parked {
    pub(super) since: Instant,
    /// Bytes that the app has sent since then.
    pub(super) bytes: u64,
    /// Counts it among the parked sessions.
    _place: ParkedPlace,
}

impl ParkingOptions {
    /// The first message to the page of a new session. `taken`: its handshake has closed an older connection of it,
    /// which had passed this many data messages of the page to the app.
    pub fn greeting(&self, secret: &Secret, taken: Option<u64>) -> Vec<u8> {
        if self.buffer_bytes == 0 {
            return control::plain_greeting(taken);
        }
        control::greeting(secret, self.buffer_bytes, self.window.as_millis(), taken)
    }
}

impl Resumable {
    pub(super) fn new(handle: LegHandle, limits: Arc<ParkingOptions>) -> Self {
        Self { outbox: Outbox::new(limits.buffer_bytes), handle, limits, parked: None }
    }

    pub(super) fn is_parked(&self) -> bool {
        self.parked.is_some()
    }

    /// When it stops being parked.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.parked.as_ref().map(|parked| parked.since + self.limits.window)
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
        let place = self.handle.park(self.limits.parked);
        self.parked = Some(Box::new(Parked { since: Instant::now(), bytes: 0, _place: place }));
    }

    /// It has a leg again, or ends. Returns how long it was parked, if it was.
    pub(super) fn unpark(&mut self) -> Option<Duration> {
        self.parked.take().map(|parked| parked.since.elapsed())
    }
}
