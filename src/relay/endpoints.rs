//! Both endpoints of a session: carries out the tap's decisions, and tracks what is in flight.
//!
//! Invariant: peers are monitored from the first byte sent to one until nothing is in flight, and while the session is
//! held up.

use std::time::Instant;

use super::endpoint::Endpoint;
use super::monitor::PeerMonitor;
use super::report::Report;
use super::resumable::Resumable;
use crate::heartbeat::Capability;
use crate::tap::output::{TapEvent, TapOutput};
use crate::websocket::scanner::Side;

/// Both sockets and the report, on which the tap's decisions are carried out.
pub(super) struct Endpoints {
    pub(super) browser: Endpoint,
    pub(super) upstream: Endpoint,
    /// Dropped after both sockets; this releases the session's owner.
    pub(super) report: Report,
    /// Set while the peers are monitored.
    pub(super) monitor: Option<Box<PeerMonitor>>,
    /// Set while the session can be resumed.
    pub(super) resumable: Option<Box<Resumable>>,
}

impl Endpoints {
    pub(super) fn endpoint(&mut self, peer: Side) -> &mut Endpoint {
        match peer {
            Side::Browser => &mut self.browser,
            Side::Upstream => &mut self.upstream,
        }
    }

    /// The endpoint that receives what `from` sends.
    pub(super) fn receiver(&mut self, from: Side) -> &mut Endpoint {
        match from {
            Side::Browser => &mut self.upstream,
            Side::Upstream => &mut self.browser,
        }
    }

    /// Nothing that `from` sends can still reach the other side, and none of it is in flight.
    pub(super) fn is_done(&self, from: Side) -> bool {
        let (source, receiver) = match from {
            Side::Browser => (&self.browser, &self.upstream),
            Side::Upstream => (&self.upstream, &self.browser),
        };
        receiver.is_shut() || (source.is_broken() && receiver.is_clear())
    }

    /// The session waits for one peer although the other may have left: one has sent EOF, or is not read because the
    /// app takes nothing.
    pub(super) fn is_held_up(&self) -> bool {
        !self.browser.is_readable() || !self.upstream.is_readable() || !self.upstream.is_clear()
    }

    /// The peer that has left a held-up session.
    pub(super) fn departed(&self) -> Option<Side> {
        if !self.is_held_up() {
            return None;
        }
        let browser = self.browser.has_left().then_some(Side::Browser);
        browser.or_else(|| self.upstream.has_left().then_some(Side::Upstream))
    }

    /// Monitors the peers once bytes are sent to one that may fall silent, or the session is held up.
    pub(super) fn start_monitor(&mut self) {
        if !(self.browser.take_wrote() | self.upstream.take_wrote()) && (self.monitor.is_some() || !self.is_held_up()) {
            return;
        }
        let timeouts = self.report.timeouts();
        match &mut self.monitor {
            Some(monitor) if monitor.expects_on_sent() => monitor.on_sent(Instant::now(), timeouts),
            Some(_) => {}
            none => {
                let _received_before = (self.browser.take_received(), self.upstream.take_received());
                *none = Some(Box::new(PeerMonitor::new(Instant::now(), timeouts)));
            }
        }
    }

    /// Sends the first message to the page of a resumable session.
    pub(super) fn greet(&mut self, greeting: &[u8]) {
        self.report.wrote(Side::Upstream, greeting.len());
        self.browser.write(greeting);
    }

    /// The page of a resumable session has this many messages.
    pub(super) fn on_confirmed(&mut self, received: u64) {
        if let Some(resumable) = &mut self.resumable {
            resumable.outbox.on_confirmed(received);
        }
    }

    /// Keeps what goes to the page of a resumable session. Returns whether that is all: there is no leg to send it over.
    fn keep_for_page(&mut self, bytes: &[u8]) -> bool {
        let Some(resumable) = &mut self.resumable else { return false };
        let dropped = resumable.on_output(bytes);
        if dropped > 0 {
            self.report.resume_overflow(dropped);
        }
        resumable.is_parked()
    }

    /// Observes the peers before anything is sent for a heartbeat.
    fn on_heartbeat(&mut self) {
        if self.report.heartbeat() {
            return;
        }
        let Some(browser) = self.browser.delivery() else { return };
        self.report.browser_round_trip(browser.round_trip);
        let upstream = self.upstream.delivery().unwrap_or_default();
        if !browser.pending && !upstream.pending {
            let _received_before = (self.browser.take_received(), self.upstream.take_received());
            let timeouts = self.report.timeouts();
            let monitor =
                PeerMonitor::after_heartbeat(Instant::now(), timeouts, browser.acknowledged, upstream.acknowledged);
            match &mut self.monitor {
                Some(old) => **old = monitor,
                none => *none = Some(Box::new(monitor)),
            }
        }
    }
}

impl TapOutput for Endpoints {
    fn pass(&mut self, from: Side, bytes: &[u8]) {
        self.insert(from, bytes);
    }

    fn insert(&mut self, from: Side, bytes: &[u8]) {
        if from == Side::Upstream && self.keep_for_page(bytes) {
            return;
        }
        self.report.wrote(from, bytes.len());
        if self.receiver(from).write(bytes) {
            self.report.stalled(from);
            self.endpoint(from).slow_down();
        }
    }

    fn is_clear(&self, from: Side) -> bool {
        match from {
            Side::Browser => self.upstream.is_clear(),
            Side::Upstream => self.browser.is_clear(),
        }
    }

    fn capability(&self) -> Capability {
        self.report.capability()
    }

    #[inline(always)]
    fn on_event(&mut self, event: TapEvent) {
        if let TapEvent::Heartbeat = event {
            return self.on_heartbeat();
        }
        self.report.note(event);
    }
}
