//! Relays one websocket session: bytes pass unchanged, and a tap inspects them.
//!
//! Invariant: bytes are never re-framed or stored; a slow reader stops the other side's reads.

pub mod delivery_probe;
mod endpoint;
mod endpoints;
pub mod legs;
mod mailbox;
mod monitor;
mod parking;
mod report;
mod rerun;
mod resumable;
mod takeover;
#[cfg(test)]
mod tests;
mod upstream_state;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use self::delivery_probe::ProbeHandle;
use self::endpoint::{Endpoint, ReadResult, with_scratch};
use self::endpoints::Endpoints;
use self::monitor::Observation;
pub use self::monitor::Timeouts;
pub use self::report::Report;
pub use self::rerun::TAKEOVER_GRACE;
use self::resumable::Resumable;
pub use self::resumable::{ParkingOptions, ResumableOptions};
pub use self::upstream_state::UpstreamState;
use crate::drain::Guard;
use crate::heartbeat::HeartbeatSettings;
use crate::heartbeat::pings::PingSettings;
use crate::metrics::{Loss, ParkedEnd};
use crate::resume::{PageInput, PageStream};
use crate::tap::{Inspection, Tap};
use crate::transport::Upgraded;
use crate::websocket::scanner::Side;

/// Bytes of one direction after which the task yields to other sessions.
const MAX_BYTES_PER_POLL: usize = 1 << 20;
/// Time after which it yields anyway: a flood of the smallest frames costs the tap more time per byte.
const MAX_TIME_PER_POLL: Duration = Duration::from_millis(4);
/// Reads up to this many bytes take too little time to check the clock.
const SMALL_READ_BYTES: usize = 4096;

/// How early a timer may fire without being reset.
const TIMER_SLACK: Duration = Duration::from_secs(1);

/// The relay of one session; a future that resolves when the session ends.
pub struct Relay {
    tap: Tap,
    endpoints: Endpoints,
    timer: Option<Pin<Box<Sleep>>>,
    started: bool,
    /// A stop was requested.
    stopped: bool,
    /// Another connection takes the session over; `timer` limits how long the upstream may take to close this one.
    is_taken_over: bool,
    /// The end of the time in which a takeover waits for a script run; the browser's endpoint is absent meanwhile.
    grace: Option<Pin<Box<Sleep>>>,
    /// Lets the page probe this socket.
    probe: Option<Box<ProbeHandle>>,
    /// What comes from the page of a resumable session.
    page: Option<Box<PageStream>>,
    /// Keeps the process running until the session ends.
    guard: Guard,
}

/// Options of one session.
pub struct RelayOptions {
    /// How much of it the tap inspects.
    pub inspection: Inspection,
    /// How heartbeats are handled.
    pub heartbeat: HeartbeatSettings,
    /// How the browser is pinged, if it is.
    pub pings: Option<PingSettings>,
    /// The upstream is on this machine: it may be busy but not silent, because the kernel closes its connections.
    pub upstream_is_local: bool,
    /// Lets the page probe the browser's socket.
    pub probe: Option<ProbeHandle>,
    /// Makes the session resumable. Its messages are inspected, and the app's pings are answered here.
    pub resumable: Option<ResumableOptions>,
}

impl Relay {
    /// Joins two connections after their handshakes. `guard` keeps the process running until the session ends.
    pub fn new(browser: Upgraded, upstream: Upgraded, options: RelayOptions, report: Report, guard: Guard) -> Self {
        let mut tap = Tap::new(options.inspection, options.heartbeat, rand::random());
        if let Some(pings) = options.pings {
            tap = tap.with_pings(pings, rand::random(), Instant::now());
        }
        let mut endpoints = Endpoints {
            browser: Endpoint::new(browser.stream, browser.early, false),
            upstream: Endpoint::new(upstream.stream, upstream.early, options.upstream_is_local),
            report,
            monitor: None,
            resumable: None,
        };
        let mut page = None;
        if let Some(ResumableOptions { handle, parking, greeting }) = options.resumable {
            endpoints.greet(&greeting);
            page = Some(Box::new(PageStream::new(parking.buffer_bytes)));
            endpoints.resumable = Some(Box::new(Resumable::new(handle, parking)));
        }
        Self {
            tap,
            endpoints,
            timer: None,
            started: false,
            stopped: false,
            is_taken_over: false,
            grace: None,
            probe: options.probe.map(Box::new),
            page,
            guard,
        }
    }

    /// Processes bytes that were read with the handshakes.
    fn start(&mut self) {
        self.started = true;
        let now = Instant::now();
        for from in [Side::Upstream, Side::Browser] {
            let early = self.endpoints.endpoint(from).take_kept();
            self.process(from, &early, now);
        }
    }

    fn process(&mut self, from: Side, bytes: &[u8], now: Instant) {
        match self.page.take_if(|_page| from == Side::Browser) {
            Some(page) => self.process_page(page, bytes, now),
            None => {
                let processed = self.tap.on_bytes(from, bytes, now, &mut self.endpoints);
                self.endpoints.endpoint(from).keep(&bytes[processed..]);
            }
        }
        self.endpoints.report.flush_counts();
    }

    /// Handles bytes of a resumable session's leg. The tap gets whole frames, so it leaves none incomplete.
    fn process_page(&mut self, mut page: Box<PageStream>, bytes: &[u8], now: Instant) {
        let (tap, endpoints) = (&mut self.tap, &mut self.endpoints);
        let mut is_given_up = false;
        page.on_bytes(bytes, |input| match input {
            PageInput::Pass(bytes) => _ = tap.on_bytes(Side::Browser, bytes, now, endpoints),
            PageInput::Confirmed(received) => endpoints.on_confirmed(received),
            PageInput::Unsent(reason, inputs) => endpoints.report.inputs_not_sent(reason, inputs),
            PageInput::GivenUp => is_given_up = true,
        });
        self.page = Some(page);
        if is_given_up {
            self.endpoints.browser.give_up();
            self.on_end(Side::Browser, &[]);
        }
    }

    /// Relays one direction until it would block. Returns whether it stopped only to yield to other sessions.
    fn poll_direction(&mut self, from: Side, cx: &mut Context<'_>) -> bool {
        let (mut passed, mut start) = (0, None);
        while passed < MAX_BYTES_PER_POLL {
            if self.endpoints.receiver(from).poll_flush(cx).is_pending() || !self.endpoints.receiver(from).is_writable()
            {
                return false;
            }
            if !self.endpoints.endpoint(from).is_readable() {
                // The kernel reports a reset once: after a write has failed with it, a read returns EOF.
                if !self.endpoints.endpoint(from).is_broken() {
                    self.endpoints.receiver(from).finish();
                }
                return false;
            }
            let read = with_scratch(|scratch| {
                let read = ready!(self.endpoints.endpoint(from).poll_read(cx, scratch));
                if let ReadResult::Bytes(length) = read {
                    let now = Instant::now();
                    start.get_or_insert(now);
                    self.process(from, &scratch[..length], now);
                }
                Poll::Ready(read)
            });
            match read {
                Poll::Pending => return false,
                Poll::Ready(ReadResult::Bytes(length)) => {
                    passed += length;
                    if length > SMALL_READ_BYTES && start.is_some_and(|start| start.elapsed() > MAX_TIME_PER_POLL) {
                        self.endpoints.endpoint(from).slow_down();
                        return true;
                    }
                }
                Poll::Ready(ReadResult::End(rest)) => self.on_end(from, &rest),
                Poll::Ready(ReadResult::Broken) => {
                    self.on_end(from, &[]);
                    return false;
                }
            }
        }
        true
    }

    fn on_end(&mut self, from: Side, rest: &[u8]) {
        if from == Side::Browser && self.park() {
            return;
        }
        self.tap.on_end(from, rest, &mut self.endpoints);
        if self.endpoints.endpoint(from).has_timed_out() {
            self.endpoints.report.gave_up(monitor::dead(from));
        } else {
            self.endpoints.report.ended(from);
        }
    }

    /// Handles due timers, and what a receiver had no room for before.
    fn poll_timer(&mut self, cx: &mut Context<'_>) {
        if self.is_taken_over {
            return;
        }
        self.endpoints.start_monitor();
        if !self.tap.is_idle() {
            self.tap.drive(Instant::now(), &mut self.endpoints);
        }
        while let Some(deadline) = self.deadline().map(tokio::time::Instant::from_std) {
            let timer = match &mut self.timer {
                Some(timer) => timer,
                none => none.insert(Box::pin(tokio::time::sleep_until(deadline))),
            };
            // A slightly early timer costs less than a reset at every heartbeat of a flood.
            if deadline < timer.deadline() || deadline > timer.deadline() + TIMER_SLACK || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            let now = Instant::now();
            self.tap.drive(now, &mut self.endpoints);
            self.observe_peers(now);
            self.check_parked(now);
            if self.is_taken_over {
                return;
            }
        }
        self.timer = None;
    }

    /// When [`Relay::poll_timer`] is due next.
    fn deadline(&self) -> Option<Instant> {
        let monitor = self.endpoints.monitor.as_ref().map(|monitor| monitor.due());
        let parked = self.endpoints.resumable.as_ref().and_then(|resumable| resumable.expires());
        [self.tap.deadline(), monitor, parked].into_iter().flatten().min()
    }

    /// Checks, if due, whether the peers are alive, and gives up those that are not.
    fn observe_peers(&mut self, now: Instant) {
        let timeouts = *self.endpoints.report.timeouts();
        let Some(mut monitor) = self.endpoints.monitor.take_if(|monitor| monitor.due() <= now) else { return };
        let (mut keep_monitoring, mut progressed) = (self.endpoints.is_held_up(), false);
        for peer in [Side::Browser, Side::Upstream] {
            let unanswered = self.tap.ping_unanswered_since().filter(|_since| peer == Side::Browser);
            let endpoint = self.endpoints.endpoint(peer);
            let received = endpoint.take_received();
            progressed |= received | endpoint.take_accepted();
            let Some(delivery) = endpoint.delivery() else { continue };
            match monitor.check(peer, Observation { delivery, received, unanswered }, &timeouts, now) {
                Ok(pending) => keep_monitoring |= pending,
                Err(loss) => self.give_up(peer, loss),
            }
        }
        let departed = if progressed { None } else { self.endpoints.departed() };
        match departed {
            Some(peer) if monitor.is_stalled(&timeouts, now) => self.abandon(peer),
            Some(_) => {}
            None => monitor.on_progress(now),
        }
        monitor.on_checked(now, &timeouts);
        self.endpoints.monitor = keep_monitoring.then_some(monitor);
    }

    /// Ends a stalled session that one peer has left: orderly if everything was sent, else with resets.
    fn abandon(&mut self, departed: Side) {
        let (remaining, loss) = match departed {
            Side::Browser => (Side::Upstream, Loss::UpstreamStalled),
            Side::Upstream => (Side::Browser, Loss::BrowserStalled),
        };
        if self.endpoints.endpoint(remaining).is_shut() && self.endpoints.endpoint(departed).is_clear() {
            self.endpoints.endpoint(remaining).stop_reading();
            self.endpoints.endpoint(departed).finish();
            self.on_end(remaining, &[]);
        } else {
            self.endpoints.endpoint(departed).give_up();
            self.give_up(remaining, loss);
        }
    }

    fn give_up(&mut self, peer: Side, loss: Loss) {
        if peer == Side::Browser && self.park() {
            return;
        }
        self.endpoints.endpoint(peer).give_up();
        self.tap.on_end(peer, &[], &mut self.endpoints);
        self.endpoints.report.gave_up(loss);
    }

    fn poll_stop(&mut self, cx: &mut Context<'_>) {
        if self.stopped || !self.endpoints.report.is_stopped(cx) {
            return;
        }
        self.stopped = true;
        if self.is_parked() {
            self.end_parked(if self.guard.is_closing() { ParkedEnd::Drained } else { ParkedEnd::TakenOver });
        } else if self.guard.is_closing() {
            let code = self.guard.close_code();
            self.endpoints.report.stopped(code);
            self.tap.close(code, Instant::now(), &mut self.endpoints);
        } else {
            self.close_upstream();
        }
    }

    /// Ends what can be ended; returns whether the session is over.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.is_taken_over {
            if self.tap.has_closed(Side::Upstream) || !self.endpoints.upstream.is_readable() {
                return true;
            }
            let timed_out = self.timer.as_mut().is_none_or(|timeout| timeout.as_mut().poll(cx).is_ready());
            if timed_out {
                // An EOF would wait behind bytes that the app has not read.
                self.endpoints.upstream.reset_on_drop();
                self.endpoints.report.takeover_timed_out();
            }
            return timed_out;
        }
        let closed = [Side::Browser, Side::Upstream].into_iter().all(|from| {
            let closed = self.tap.is_closed(from) || !self.endpoints.endpoint(from).is_readable();
            closed && self.endpoints.endpoint(from).is_clear()
        });
        if closed && self.stopped {
            return true;
        }
        if !self.endpoints.is_done(Side::Browser) || !self.endpoints.is_done(Side::Upstream) {
            return false;
        }
        for from in [Side::Browser, Side::Upstream] {
            // A reset is passed on as a reset, but must not overtake a close frame.
            if self.endpoints.endpoint(from).is_broken() && !self.tap.has_closed(from) {
                self.endpoints.receiver(from).reset_on_drop();
            }
        }
        true
    }
}

impl Future for Relay {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if !this.started {
            this.start();
        }
        this.poll_stop(cx);
        this.poll_leg(cx);
        let mut wake = this.poll_direction(Side::Upstream, cx);
        wake |= this.poll_direction(Side::Browser, cx);
        if this.page.is_some() {
            wake |= this.drive_leg();
        }
        this.poll_grace(cx);
        this.poll_timer(cx);
        if this.is_over(cx) {
            return Poll::Ready(());
        }
        // After a direction was polled, the tap may have written to a full socket that has no waker yet.
        for endpoint in [&mut this.endpoints.browser, &mut this.endpoints.upstream] {
            wake |= !endpoint.is_clear() && endpoint.poll_flush(cx).is_ready();
        }
        if wake {
            cx.waker().wake_by_ref();
        }
        if let Some(probe) = &this.probe {
            probe.poll_request(cx, || {
                let mut delivery = this.endpoints.browser.delivery().unwrap_or_default();
                // The rest of a message is under way too.
                delivery.pending |= this.tap.is_within_message();
                delivery
            });
        }
        Poll::Pending
    }
}
