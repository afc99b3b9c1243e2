//! A resumable session: parks it when its leg is lost, and continues it over a new one.
//!
//! Invariants: a parked session has no leg, and the app's connection stays open. It ends by itself: at the end of
//! `window`, or when the app has sent `parked_bytes`.

use std::task::Context;
use std::time::Instant;

use super::Relay;
use super::endpoint::Endpoint;
use super::legs::{Leg, LegEvent};
use crate::metrics::{ParkedEnd, ResumptionRefused};
use crate::resume::LegRefusal;
use crate::resume::control;
use crate::websocket::scanner::Side;

impl Relay {
    pub(super) fn is_parked(&self) -> bool {
        self.endpoints.resumable.as_ref().is_some_and(|resumable| resumable.is_parked())
    }

    /// Whether the session can go on without its leg: both ends of it are open, no message is torn, and the page has used it.
    /// A page of Streamlit 1.29 that is left in Firefox opens another connection, which ends at once without a close frame.
    fn can_lose_leg(&self) -> bool {
        let is_open = !self.stopped && !self.tap.has_closed(Side::Browser) && !self.tap.has_closed(Side::Upstream);
        let upstream = &self.endpoints.upstream;
        is_open
            && upstream.is_readable()
            && upstream.is_writable()
            && self.page.as_ref().is_some_and(|page| page.is_used() && page.may_change_leg())
    }

    /// The leg is lost: parks the session. Returns whether that is possible.
    pub(super) fn park(&mut self) -> bool {
        if !self.can_lose_leg() {
            return false;
        }
        let Some(resumable) = &mut self.endpoints.resumable else { return false };
        resumable.park();
        self.endpoints.report.parked();
        self.replace_leg(Endpoint::absent());
        true
    }

    /// Ends the old leg, if there is one: nothing of it passes from now on.
    fn replace_leg(&mut self, leg: Endpoint) {
        std::mem::replace(&mut self.endpoints.browser, leg).reset_on_drop();
        if let Some(page) = &mut self.page {
            page.on_new_leg();
        }
        self.tap.on_new_leg();
        self.probe = None;
        self.endpoints.monitor = None;
    }

    /// Handles what comes from outside: a leg, or an eviction.
    pub(super) fn poll_leg(&mut self, cx: &Context<'_>) {
        let Some(resumable) = &self.endpoints.resumable else { return };
        match resumable.handle.poll_event(cx) {
            Some(LegEvent::Arrived(leg)) => self.on_leg(*leg),
            Some(LegEvent::Evicted) if self.is_parked() => self.end_parked(ParkedEnd::Evicted),
            Some(LegEvent::Evicted) | None => {}
        }
    }

    fn on_leg(&mut self, leg: Leg) {
        let can_resume = self.can_lose_leg();
        let (Some(resumable), Some(page)) = (&mut self.endpoints.resumable, &self.page) else { return };
        let resent = match resumable.outbox.on_leg(&leg.request) {
            Ok(resent) if can_resume => resent,
            refused => {
                let reason = refused.err().map_or(ResumptionRefused::Invalid, ResumptionRefused::from);
                self.endpoints.report.resumption_refused(reason);
                return leg.refuse(reason);
            }
        };
        let mut browser = Endpoint::new(leg.connection.stream, leg.connection.early, false);
        let answer = control::resumed(page.received());
        let bytes = [&answer, resent.bytes[0], resent.bytes[1]];
        for part in bytes {
            browser.write(part);
        }
        let (length, messages) = (bytes.iter().map(|part| part.len()).sum(), resent.messages);
        let parked = resumable.unpark();
        self.endpoints.report.wrote(Side::Upstream, length);
        if let Some(parked) = parked {
            self.endpoints.report.unparked(ParkedEnd::Resumed, parked);
        }
        self.endpoints.report.resumed(messages as u64);
        self.replace_leg(browser);
        self.probe = leg.probe.map(Box::new);
        let early = self.endpoints.browser.take_kept();
        self.process(Side::Browser, &early, Instant::now());
    }

    /// Ends a parked session if that is due.
    pub(super) fn check_parked(&mut self, now: Instant) {
        if self.is_taken_over {
            return;
        }
        let Some(resumable) = &self.endpoints.resumable else { return };
        let Some(parked) = &resumable.parked else { return };
        if self.tap.has_closed(Side::Upstream) || !self.endpoints.upstream.is_readable() {
            self.end_parked(ParkedEnd::App);
        } else if parked.bytes > resumable.limits.parked_bytes {
            self.end_parked(ParkedEnd::Flooded);
        } else if now >= parked.since + resumable.limits.window {
            self.end_parked(ParkedEnd::Expired);
        }
    }

    /// Ends a parked session: closes the app's connection.
    pub(super) fn end_parked(&mut self, end: ParkedEnd) {
        let parked = self.endpoints.resumable.as_mut().and_then(|resumable| resumable.unpark());
        if let Some(parked) = parked {
            self.endpoints.report.unparked(end, parked);
        }
        self.stopped = true;
        self.close_upstream();
    }

    /// Does what is due after the directions were polled. Returns whether they must be polled again.
    pub(super) fn drive_leg(&mut self) -> bool {
        if self.is_parked() {
            self.check_parked(Instant::now());
            return false;
        }
        self.send_confirmation();
        // A failed write breaks the leg; what it has sent before need not be read.
        !self.endpoints.browser.is_writable() && self.park()
    }

    /// Sends the confirmation that the page awaits, if there is room.
    fn send_confirmation(&mut self) {
        let (Some(page), Some(resumable)) = (&mut self.page, &self.endpoints.resumable) else { return };
        let may_send = !self.stopped && !self.tap.has_closed(Side::Upstream) && !resumable.is_parked();
        if may_send
            && resumable.outbox.between_messages()
            && self.endpoints.browser.is_clear()
            && let Some(confirmation) = page.next_confirmation()
        {
            self.endpoints.report.wrote(Side::Upstream, confirmation.len());
            self.endpoints.browser.write(&confirmation);
        }
    }
}

impl From<LegRefusal> for ResumptionRefused {
    fn from(refusal: LegRefusal) -> Self {
        match refusal {
            LegRefusal::Stale => Self::Stale,
            LegRefusal::Overflow => Self::Overflow,
            LegRefusal::Count => Self::Invalid,
        }
    }
}
