//! Ends a session for good: the browser's connection at once, the app's after the script run that the browser has just
//! requested.
//!
//! Invariant: nothing passes in either direction meanwhile.

use std::task::Context;
use std::time::Instant;

use tokio::time::sleep;

use super::Relay;
use super::endpoint::Endpoint;
use super::rerun::{Rerun, TAKEOVER_GRACE};
use crate::websocket::scanner::Side;

/// The close code: the endpoint is going away (RFC 6455 §7.4.1).
const GOING_AWAY: u16 = 1001;

impl Relay {
    /// Abandons the browser's connection, and closes the app's unless a run is pending there: another connection owns the
    /// session now, or the page has not come back.
    pub(super) fn close_upstream(&mut self) {
        let is_open = !self.tap.has_closed(Side::Browser) && self.endpoints.upstream.is_writable();
        let is_recent = self.endpoints.report.rerun().is_recent(Instant::now());
        self.endpoints.report.stopped(GOING_AWAY);
        if let Some(page) = &self.page {
            self.endpoints.report.closing(page.received());
        }
        self.tap.leave_browser(GOING_AWAY, &mut self.endpoints);
        self.endpoints.browser = Endpoint::absent();
        if is_open && is_recent && self.is_run_pending() {
            self.grace = Some(Box::pin(sleep(TAKEOVER_GRACE)));
        } else {
            self.close_upstream_now();
        }
    }

    /// Closes the app's connection once the run is over, the app has closed, or the grace is.
    pub(super) fn poll_grace(&mut self, cx: &mut Context<'_>) {
        if let Some(grace) = &mut self.grace
            && (grace.as_mut().poll(cx).is_ready() || !self.is_run_pending())
        {
            self.grace = None;
            self.close_upstream_now();
        }
    }

    fn is_run_pending(&self) -> bool {
        let is_open = self.endpoints.upstream.is_readable() && !self.tap.has_closed(Side::Upstream);
        is_open && self.endpoints.report.rerun() != Rerun::Over
    }

    fn close_upstream_now(&mut self) {
        self.is_taken_over = true;
        self.timer = Some(Box::pin(sleep(self.endpoints.report.timeouts().takeover)));
        if !self.tap.close_for_takeover(GOING_AWAY, &mut self.endpoints) {
            self.endpoints.upstream.finish();
        }
    }
}
