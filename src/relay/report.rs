//! Reports a session: metrics while it is live, one log line when it ends.

use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use super::monitor::Timeouts;
use super::rerun::Rerun;
use super::upstream_state::UpstreamState;
use crate::heartbeat::learning::Learning;
use crate::heartbeat::{AckOrigin, Capability};
use crate::metrics::{
    CloseCode, DirectionLabel, Initiator, LabelValue as _, Level, Loss, NotSent, ParkedEnd, ResumptionRefused,
    Unparsable,
};
use crate::session::Session;
use crate::session::takeover::Owner;
use crate::session::trace::TraceIds;
use crate::streamlit::messages::{Announcement, BackType, ForwardContent, ForwardType, ScriptResult};
use crate::tap::output::{TapError, TapEvent};
use crate::websocket::scanner::Side;

/// Minimum interval between heartbeats that are not a flood. A flood's heartbeats add no samples to the histograms, where
/// they would accumulate until they are folded.
const MIN_HEARTBEAT_INTERVAL: Duration = Duration::from_millis(10);

/// Consecutive messages of one type. They are counted together because shared counters cost more than a small
/// message's bytes.
#[derive(Clone, Copy, Debug)]
struct MessageRun {
    kind: MessageKind,
    messages: u32,
    bytes: u64,
}

/// What is counted by direction and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MessageKind {
    Back(BackType),
    Forward(ForwardType),
}

/// The reporter of one session; its last report is sent when it is dropped.
pub struct Report {
    upstream: Arc<UpstreamState>,
    session: Session,
    owner: Owner,
    /// For the log line; `None` if none will be written.
    ids: Option<TraceIds>,
    script_started: Option<Instant>,
    rerun: Rerun,
    /// Not counted yet.
    run: Option<MessageRun>,
    /// Which side ended the session first, and how.
    closed: Option<(Initiator, CloseCode)>,
    /// The peer that was given up, and why.
    gave_up: Option<Loss>,
}

impl Report {
    /// The report of a session that starts now.
    pub fn new(upstream: Arc<UpstreamState>, session: Session, owner: Owner, ids: Option<TraceIds>) -> Self {
        upstream.metrics.session_opened();
        Self {
            upstream,
            session,
            owner,
            ids: ids.filter(|_ids| tracing::enabled!(tracing::Level::INFO)),
            script_started: None,
            rerun: Rerun::default(),
            run: None,
            closed: None,
            gave_up: None,
        }
    }

    /// Whether the session must end; the polling task is woken when that changes.
    pub(super) fn is_stopped(&self, cx: &Context<'_>) -> bool {
        self.session.poll_stop(cx)
    }

    pub(super) fn timeouts(&self) -> &Timeouts {
        &self.upstream.timeouts
    }

    /// The last run that the browser has requested.
    pub(super) fn rerun(&self) -> Rerun {
        self.rerun
    }

    /// The session is being closed, and has passed this many data messages of its page to the app.
    pub(super) fn closing(&self, received: u64) {
        self.owner.on_closing(received);
    }

    /// Inputs of the page did not reach the app; `reason` is the page's word.
    pub(super) fn inputs_not_sent(&self, reason: &str, inputs: u64) {
        if let Some(reason) = NotSent::ALL.iter().find(|known| known.name() == reason) {
            self.upstream.metrics.inputs_not_sent(*reason, inputs);
        }
    }

    /// The app did not close the taken-over session in time.
    pub(super) fn takeover_timed_out(&self) {
        self.owner.on_timeout();
    }

    pub(super) fn capability(&self) -> Capability {
        self.upstream.capability()
    }

    pub(super) fn wrote(&self, from: Side, bytes: usize) {
        self.session.bytes(direction(from), bytes as u64);
    }

    pub(super) fn stalled(&self, from: Side) {
        self.upstream.metrics.write_stall(direction(from));
    }

    pub(super) fn browser_round_trip(&self, round_trip: Option<Duration>) {
        if let Some(round_trip) = round_trip {
            self.upstream.metrics.browser_rtt(round_trip);
            self.session.browser_rtt(round_trip);
        }
    }

    /// EOF or a reset from `from`. Without an earlier close frame this is an abnormal closure (RFC 6455 §7.1.5).
    pub(super) fn ended(&mut self, from: Side) {
        if self.closed.is_none() && from == Side::Upstream {
            // Its process may be gone, and another version may come back.
            self.upstream.learn(Learning::on_gone);
        }
        self.closed.get_or_insert((initiator(from), CloseCode::Abnormal));
    }

    /// The sidecar gives a peer up, and aborts the session.
    pub(super) fn gave_up(&mut self, loss: Loss) {
        self.upstream.metrics.peer_lost(loss);
        self.gave_up = Some(loss);
        if loss == Loss::UpstreamDead {
            self.upstream.learn(Learning::on_gone);
        }
        self.closed.get_or_insert((Initiator::Sidecar, CloseCode::Abnormal));
    }

    /// The session waits for its page.
    pub(super) fn parked(&self) {
        self.upstream.metrics.parked();
        self.session.set_parked(true);
    }

    /// The session has waited for its page until now.
    pub(super) fn unparked(&self, end: ParkedEnd, waited: Duration) {
        self.upstream.metrics.unparked(end, waited);
        self.session.set_parked(false);
    }

    /// Its page continues the session; `messages` were sent again.
    pub(super) fn resumed(&self, messages: u64) {
        self.upstream.metrics.resumption(Level::One);
        self.upstream.metrics.resent(DirectionLabel::UpstreamToBrowser, messages);
        self.session.resumed();
    }

    pub(super) fn resumption_refused(&self, reason: ResumptionRefused) {
        self.upstream.metrics.resumption_refused(reason);
    }

    /// Bytes that were kept for the page were dropped.
    pub(super) fn resume_overflow(&self, bytes: usize) {
        self.upstream.metrics.resume_overflow(bytes as u64);
    }

    /// The sidecar ends the session.
    pub(super) fn stopped(&mut self, code: u16) {
        self.closed.get_or_insert((Initiator::Sidecar, CloseCode::from(Some(code))));
    }

    #[inline(always)]
    pub(super) fn note(&mut self, note: TapEvent) {
        match note {
            TapEvent::UpstreamMessage(ForwardContent::Other(kind), bytes) => {
                self.count(MessageKind::Forward(kind), bytes)
            }
            note => self.on_note(note),
        }
    }

    fn on_note(&mut self, note: TapEvent) {
        match note {
            TapEvent::Heartbeat => _ = self.heartbeat(),
            TapEvent::BrowserMessage(kind, bytes) => {
                if kind == BackType::RerunScript {
                    self.rerun.on_requested(Instant::now());
                }
                self.count(MessageKind::Back(kind), bytes);
            }
            TapEvent::UpstreamMessage(message, bytes) => self.forward(message, bytes),
            TapEvent::Ack(waited) => self.ack(AckOrigin::Sidecar, Some(waited)),
            TapEvent::NativeAck(waited) => {
                self.upstream.learn(Learning::on_native_ack);
                self.ack(AckOrigin::Upstream, waited);
            }
            TapEvent::NativeAckOverdue => {
                if self.capability() == Capability::Native {
                    self.upstream.metrics.native_ack_missed();
                }
            }
            TapEvent::NativeAckMissed => self.upstream.learn(Learning::on_native_miss),
            TapEvent::Proof(after) => {
                self.upstream.metrics.proof_rtt(after);
                self.session.proof_rtt(after);
            }
            TapEvent::Withheld(reason) => {
                self.upstream.metrics.ack_withheld(reason);
                self.session.withheld(reason);
            }
            TapEvent::CloseReceived(from, code) => {
                if from == Side::Upstream && matches!(code, Some(1001 | 1012)) {
                    // It goes away or restarts (RFC 6455 §7.4.1): another version may come back.
                    self.upstream.learn(Learning::on_gone);
                }
                self.closed.get_or_insert((initiator(from), CloseCode::from(code)));
            }
            TapEvent::Unparsable(error) => self.unparsable(error),
        }
    }

    /// Counts a message. Inlined into the tap, which knows `kind`: measured, a fifth of a small message's instructions.
    #[inline(always)]
    fn count(&mut self, kind: MessageKind, bytes: u64) {
        match &mut self.run {
            Some(run) if run.kind == kind => {
                run.messages += 1;
                run.bytes += bytes;
            }
            _ => self.start_run(MessageRun { kind, messages: 1, bytes }),
        }
    }

    fn start_run(&mut self, run: MessageRun) {
        let before = self.run.replace(run);
        self.count_run(before);
    }

    /// Reports what was counted since the last call.
    pub(super) fn flush_counts(&mut self) {
        let run = self.run.take();
        self.count_run(run);
    }

    fn count_run(&self, run: Option<MessageRun>) {
        let Some(MessageRun { kind, messages, bytes }) = run else { return };
        match kind {
            MessageKind::Back(kind) => {
                self.session.messages(DirectionLabel::BrowserToUpstream, messages.into());
                self.upstream.metrics.back_messages(kind, messages.into(), bytes);
            }
            MessageKind::Forward(kind) => {
                self.session.messages(DirectionLabel::UpstreamToBrowser, messages.into());
                self.upstream.metrics.forward_messages(kind, messages.into(), bytes);
            }
        }
    }

    /// Returns whether this heartbeat is part of a flood.
    pub(super) fn heartbeat(&self) -> bool {
        let interval = self.session.heartbeat();
        let regular = interval.filter(|interval| *interval >= MIN_HEARTBEAT_INTERVAL);
        self.upstream.metrics.heartbeat(regular);
        interval != regular
    }

    fn ack(&self, origin: AckOrigin, waited: Option<Duration>) {
        self.upstream.metrics.ack(origin, waited);
        self.session.ack(origin, waited);
    }

    fn forward(&mut self, message: ForwardContent, bytes: u64) {
        self.count(MessageKind::Forward(message.kind()), bytes);
        match message {
            ForwardContent::NewSession(announcement) => self.new_session(announcement),
            ForwardContent::ScriptFinished(result) => self.script_finished(result),
            ForwardContent::Other(_) => {}
        }
    }

    fn new_session(&mut self, announcement: Option<Box<Announcement>>) {
        self.script_started = Some(Instant::now());
        self.rerun.on_started();
        if let Some(announcement) = announcement {
            let Announcement { version, session_id } = *announcement;
            if let Some(id) = session_id {
                self.owner.name(id);
            }
            self.upstream.learn(|learning| learning.on_version(&version));
            self.session.version(&version);
        }
    }

    fn script_finished(&mut self, result: ScriptResult) {
        self.rerun.on_finished(result);
        let took = self.script_started.take().map(|started| started.elapsed());
        self.upstream.metrics.script_run(result, took);
    }

    fn unparsable(&self, error: TapError) {
        self.upstream.metrics.session_unparsable(match error {
            TapError::Protocol(error) => error.into(),
            TapError::Compression => Unparsable::Compression,
        });
        let upstream = self.session.upstream();
        tracing::warn!(upstream, reason = %error, "heartbeats of this session are no longer answered");
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // A session aborted at the deadline of a drain was ended by the sidecar without a close frame.
        let (initiator, code) = self.closed.unwrap_or((Initiator::Sidecar, CloseCode::Abnormal));
        let lasted = self.session.age();
        self.session.ended(initiator, code, self.gave_up);
        self.upstream.metrics.session_closed(initiator, code, lasted);
        let view = self.session.view();
        tracing::info!(
            upstream = self.session.upstream(),
            duration_seconds = lasted.as_secs_f64(),
            bytes_to_browser = view.bytes_to_browser,
            bytes_to_upstream = view.bytes_to_upstream,
            messages_to_browser = view.messages_to_browser,
            messages_to_upstream = view.messages_to_upstream,
            heartbeats = view.heartbeats,
            acks_sidecar = view.acks.sidecar,
            acks_upstream = view.acks.upstream,
            resumed = view.resumed,
            parked_seconds = view.parked_seconds,
            closed_by = initiator.name(),
            code = code.name(),
            gave_up = self.gave_up.map(Loss::name),
            request_id = self.ids.as_ref().map(TraceIds::request),
            trace_id = self.ids.as_ref().and_then(TraceIds::trace),
            "session ended"
        );
    }
}

fn direction(from: Side) -> DirectionLabel {
    match from {
        Side::Browser => DirectionLabel::BrowserToUpstream,
        Side::Upstream => DirectionLabel::UpstreamToBrowser,
    }
}

fn initiator(from: Side) -> Initiator {
    match from {
        Side::Browser => Initiator::Browser,
        Side::Upstream => Initiator::Upstream,
    }
}

#[cfg(test)]
mod tests;
