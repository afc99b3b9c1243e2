//! The series of one upstream, with one function each.
//!
//! Invariant: the functions index handles made at the start; no look-up, no lock, no string.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};
use metrics_exporter_prometheus::PrometheusHandle;

use super::close_code::CloseCode;
use super::http_labels::{Method, StatusClass};
use super::labels::{
    DirectionLabel, Handshake, Initiator, Level, Loss, NotSent, ParkedEnd, Reconnect, ResumptionRefused, Takeover,
    Unparsable, WatchdogPage,
};
use super::per_label::{LabelValue as _, PerLabel};
use super::registrar::Registrar;
use super::series;
use crate::heartbeat::{AckOrigin, Capability, Withheld};
use crate::streamlit::messages::{BackType, ForwardType, ScriptResult};

/// The series of one upstream, labelled with its configured name.
pub struct UpstreamMetrics {
    /// Renders them.
    pub(super) rendered: PrometheusHandle,
    heartbeats: Counter,
    heartbeat_interval: Histogram,
    acks: PerLabel<AckOrigin, Counter>,
    ack_latency: PerLabel<AckOrigin, Histogram>,
    acks_withheld: PerLabel<Withheld, Counter>,
    native_acks_missed: Counter,
    proof_rtt: Histogram,
    browser_rtt: Histogram,
    acks_natively: Gauge,
    handshakes: PerLabel<Handshake, Counter>,
    handshake_duration: Histogram,
    reconnects: PerLabel<Reconnect, Counter>,
    watchdog_pages: PerLabel<WatchdogPage, Counter>,
    takeovers: PerLabel<Takeover, Counter>,
    sessions: Gauge,
    sessions_closed: PerLabel<Initiator, PerLabel<CloseCode, Counter>>,
    session_duration: Histogram,
    parked_sessions: Gauge,
    parked_sessions_ended: PerLabel<ParkedEnd, Counter>,
    parked_duration: Histogram,
    resumptions: PerLabel<Level, Counter>,
    resumptions_refused: PerLabel<ResumptionRefused, Counter>,
    resent_messages: PerLabel<DirectionLabel, Counter>,
    resume_dropped_bytes: Counter,
    inputs_not_sent: PerLabel<NotSent, Counter>,
    peers_lost: PerLabel<Loss, Counter>,
    back_messages: PerLabel<BackType, MessageCounters>,
    forward_messages: PerLabel<ForwardType, MessageCounters>,
    script_runs: PerLabel<ScriptResult, Counter>,
    script_run_duration: Histogram,
    sessions_unparsable: PerLabel<Unparsable, Counter>,
    write_stalls: PerLabel<DirectionLabel, Counter>,
    http_requests: PerLabel<Method, PerLabel<StatusClass, Counter>>,
    http_request_duration: Histogram,
}

/// Messages of one type and their payload bytes.
struct MessageCounters {
    messages: Counter,
    bytes: Counter,
}

impl UpstreamMetrics {
    /// Registers every series at zero.
    pub(super) fn new(to: &Registrar) -> Self {
        Self {
            rendered: to.recorder.handle(),
            heartbeats: to.counter(&series::HEARTBEATS, &[]),
            heartbeat_interval: to.histogram(&series::HEARTBEAT_INTERVAL, &[]),
            acks: PerLabel::new(|o: AckOrigin| to.counter(&series::ACKS, &[("origin", o.name())])),
            ack_latency: PerLabel::new(|o: AckOrigin| to.histogram(&series::ACK_LATENCY, &[("origin", o.name())])),
            acks_withheld: PerLabel::new(|w: Withheld| to.counter(&series::ACKS_WITHHELD, &[("reason", w.name())])),
            native_acks_missed: to.counter(&series::NATIVE_ACKS_MISSED, &[]),
            proof_rtt: to.histogram(&series::PROOF_RTT, &[]),
            browser_rtt: to.histogram(&series::BROWSER_RTT, &[]),
            acks_natively: to.gauge(&series::UPSTREAM_ACKS_NATIVELY, &[]),
            handshakes: PerLabel::new(|h: Handshake| to.counter(&series::HANDSHAKES, &[("result", h.name())])),
            handshake_duration: to.histogram(&series::HANDSHAKE_DURATION, &[]),
            reconnects: PerLabel::new(|r: Reconnect| to.counter(&series::RECONNECTS, &[("cause", r.name())])),
            watchdog_pages: PerLabel::new(|p: WatchdogPage| {
                to.counter(&series::WATCHDOG_PAGES, &[("result", p.name())])
            }),
            takeovers: PerLabel::new(|t: Takeover| to.counter(&series::TAKEOVERS, &[("result", t.name())])),
            sessions: to.gauge(&series::SESSIONS, &[]),
            sessions_closed: PerLabel::new(|initiator: Initiator| {
                PerLabel::new(|code: CloseCode| {
                    let labels = [("initiator", initiator.name()), ("code", to.close_code(code).name())];
                    to.counter(&series::SESSIONS_CLOSED, &labels)
                })
            }),
            session_duration: to.histogram(&series::SESSION_DURATION, &[]),
            parked_sessions: to.gauge(&series::PARKED_SESSIONS, &[]),
            parked_sessions_ended: PerLabel::new(|e: ParkedEnd| {
                to.counter(&series::PARKED_SESSIONS_ENDED, &[("result", e.name())])
            }),
            parked_duration: to.histogram(&series::PARKED_DURATION, &[]),
            resumptions: PerLabel::new(|l: Level| to.counter(&series::RESUMPTIONS, &[("level", l.name())])),
            resumptions_refused: PerLabel::new(|r: ResumptionRefused| {
                to.counter(&series::RESUMPTIONS_REFUSED, &[("reason", r.name())])
            }),
            resent_messages: PerLabel::new(|d: DirectionLabel| {
                to.counter(&series::RESENT_MESSAGES, &[("direction", d.name())])
            }),
            resume_dropped_bytes: to.counter(&series::RESUME_DROPPED_BYTES, &[]),
            inputs_not_sent: PerLabel::new(|n: NotSent| to.counter(&series::INPUTS_NOT_SENT, &[("reason", n.name())])),
            peers_lost: PerLabel::new(|l: Loss| to.counter(&series::PEERS_LOST, &[("reason", l.name())])),
            back_messages: PerLabel::new(|t: BackType| {
                MessageCounters::new(to, DirectionLabel::BrowserToUpstream, t.name())
            }),
            forward_messages: PerLabel::new(|t: ForwardType| {
                MessageCounters::new(to, DirectionLabel::UpstreamToBrowser, t.name())
            }),
            script_runs: PerLabel::new(|r: ScriptResult| to.counter(&series::SCRIPT_RUNS, &[("result", r.name())])),
            script_run_duration: to.histogram(&series::SCRIPT_RUN_DURATION, &[]),
            sessions_unparsable: PerLabel::new(|t: Unparsable| {
                to.counter(&series::SESSIONS_UNPARSABLE, &[("reason", t.name())])
            }),
            write_stalls: PerLabel::new(|d: DirectionLabel| {
                to.counter(&series::WRITE_STALLS, &[("direction", d.name())])
            }),
            http_requests: PerLabel::new(|method: Method| {
                PerLabel::new(|class: StatusClass| {
                    to.counter(&series::HTTP_REQUESTS, &[("method", method.name()), ("code", class.name())])
                })
            }),
            http_request_duration: to.histogram(&series::HTTP_REQUEST_DURATION, &[]),
        }
    }

    /// A heartbeat was read, this long after the connection's previous one, if any.
    pub fn heartbeat(&self, since_last: Option<Duration>) {
        self.heartbeats.increment(1);
        if let Some(interval) = since_last {
            self.heartbeat_interval.record(interval);
        }
    }

    /// An ack was written to the browser's socket; `waited` counts from reading the heartbeat, if known.
    pub fn ack(&self, origin: AckOrigin, waited: Option<Duration>) {
        self.acks.get(origin).increment(1);
        if let Some(waited) = waited {
            self.ack_latency.get(origin).record(waited);
        }
    }

    /// The sidecar sent no ack for a heartbeat, or sends it late.
    pub fn ack_withheld(&self, reason: Withheld) {
        self.acks_withheld.get(reason).increment(1);
    }

    /// The app did not ack a forwarded heartbeat before `native_deadline`.
    pub fn native_ack_missed(&self) {
        self.native_acks_missed.increment(1);
    }

    /// The app's pong came; `rtt` counts from writing the ping to the socket.
    pub fn proof_rtt(&self, rtt: Duration) {
        self.proof_rtt.record(rtt);
    }

    /// The kernel's smoothed round-trip time to the browser (`tcpi_rtt` of `TCP_INFO`).
    pub fn browser_rtt(&self, rtt: Duration) {
        self.browser_rtt.record(rtt);
    }

    /// Sets whether the app acks heartbeats itself.
    pub fn acks_natively(&self, capability: Capability) {
        self.acks_natively.set(match capability {
            Capability::Native => 1.0,
            Capability::Unknown | Capability::Silent => 0.0,
        });
    }

    /// A websocket handshake ended; `took` counts from reading the browser's request.
    pub fn handshake(&self, result: Handshake, took: Duration) {
        self.handshakes.get(result).increment(1);
        self.handshake_duration.record(took);
    }

    /// An accepted handshake carried the id of an earlier session.
    pub fn reconnect(&self, cause: Reconnect) {
        self.reconnects.get(cause).increment(1);
    }

    /// A page was checked for the watchdog's script.
    pub fn watchdog_page(&self, result: WatchdogPage) {
        self.watchdog_pages.get(result).increment(1);
    }

    /// A reconnect took over a session from another connection.
    pub fn takeover(&self, result: Takeover) {
        self.takeovers.get(result).increment(1);
    }

    /// A session started; each call needs one [`Self::session_closed`].
    pub fn session_opened(&self) {
        self.sessions.increment(1.0);
    }

    /// A session ended; it lasted `lasted`.
    pub fn session_closed(&self, initiator: Initiator, code: CloseCode, lasted: Duration) {
        self.sessions.decrement(1.0);
        self.sessions_closed.get(initiator).get(code).increment(1);
        self.session_duration.record(lasted);
    }

    /// A session is parked; each call needs one [`Self::unparked`].
    pub fn parked(&self) {
        self.parked_sessions.increment(1.0);
    }

    /// A session is no longer parked; it was for `lasted`.
    pub fn unparked(&self, end: ParkedEnd, lasted: Duration) {
        self.parked_sessions.decrement(1.0);
        self.parked_sessions_ended.get(end).increment(1);
        self.parked_duration.record(lasted);
    }

    /// A page that lost its connection goes on without a loss.
    pub fn resumption(&self, level: Level) {
        self.resumptions.get(level).increment(1);
    }

    /// A page that lost its connection could not resume its session.
    pub fn resumption_refused(&self, reason: ResumptionRefused) {
        self.resumptions_refused.get(reason).increment(1);
    }

    /// Messages were sent again in this direction.
    pub fn resent(&self, direction: DirectionLabel, messages: u64) {
        self.resent_messages.get(direction).increment(messages);
    }

    /// Copies of unconfirmed messages were dropped: more than `resume.buffer`.
    pub fn resume_overflow(&self, bytes: u64) {
        self.resume_dropped_bytes.increment(bytes);
    }

    /// Inputs of a page did not reach the app.
    pub fn inputs_not_sent(&self, reason: NotSent, inputs: u64) {
        self.inputs_not_sent.get(reason).increment(inputs);
    }

    /// The sidecar gives up a peer, and with it the connection.
    pub fn peer_lost(&self, loss: Loss) {
        self.peers_lost.get(loss).increment(1);
    }

    /// BackMsgs were relayed; `bytes` counts their payload.
    pub fn back_messages(&self, kind: BackType, messages: u64, bytes: u64) {
        self.back_messages.get(kind).count(messages, bytes);
    }

    /// ForwardMsgs were relayed; `bytes` counts their payload.
    pub fn forward_messages(&self, kind: ForwardType, messages: u64, bytes: u64) {
        self.forward_messages.get(kind).count(messages, bytes);
    }

    /// A script run ended; how long it took, if its start was seen.
    pub fn script_run(&self, result: ScriptResult, took: Option<Duration>) {
        self.script_runs.get(result).increment(1);
        if let Some(took) = took {
            self.script_run_duration.record(took);
        }
    }

    /// The heartbeats of a session are no longer answered.
    pub fn session_unparsable(&self, reason: Unparsable) {
        self.sessions_unparsable.get(reason).increment(1);
    }

    /// The receiver in this direction accepted no more bytes.
    pub fn write_stall(&self, direction: DirectionLabel) {
        self.write_stalls.get(direction).increment(1);
    }

    /// A plain HTTP request was answered; `took` counts from reading its head.
    pub fn http_request(&self, method: &http::Method, code: http::StatusCode, took: Duration) {
        self.http_requests.get(method.into()).get(code.into()).increment(1);
        self.http_request_duration.record(took);
    }
}

impl MessageCounters {
    fn new(to: &Registrar, direction: DirectionLabel, kind: &'static str) -> Self {
        let labels = [("direction", direction.name()), ("type", kind)];
        Self { messages: to.counter(&series::MESSAGES, &labels), bytes: to.counter(&series::MESSAGE_BYTES, &labels) }
    }

    fn count(&self, messages: u64, bytes: u64) {
        self.messages.increment(messages);
        self.bytes.increment(bytes);
    }
}
