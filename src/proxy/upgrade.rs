//! Does the websocket handshake on both sides and joins the two streams.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::admission::Rejection;
use super::headers::subprotocols;
use super::resume::PendingLeg;
use super::upstream::{ConnectError, Upstream};
use super::watchdog::Tag;
use super::{
    Chain, Reply, RequestBody, RequestContext, ResponseBody, UpstreamFailure, headers, plain_text, watchdog, wire,
};
use crate::drain::Guard;
use crate::heartbeat::learning::Learning;
use crate::limits::Permit;
use crate::metrics::{Handshake, Reconnect, Takeover, Unparsable};
use crate::relay::{Relay, RelayOptions, Report, ResumableOptions, TAKEOVER_GRACE};
use crate::resume::control::Secret;
use crate::session::identity::Identity;
use crate::session::takeover::{Ended, Owner, Superseded};
use crate::session::trace::TraceIds;
use crate::session::{SessionInfo, Sessions};
use crate::streamlit::handshake::{self, SessionId};
use crate::tap::Inspection;
use crate::transport::replay::Replay;
use crate::transport::{Stream, Upgraded};
use crate::websocket::inflate::Deflate;

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the websocket handshake failed")]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Coding(#[from] headers::UnknownCoding),
    #[error("the connection broke during the websocket handshake")]
    Broken(#[from] std::io::Error),
    #[error("no answer to the websocket handshake within {0:?}")]
    TimedOut(std::time::Duration),
    #[error("its Sec-WebSocket-Accept does not match the key")]
    WrongAccept,
    #[error("the older connection of its session was not closed within {0:?}")]
    ClaimTimedOut(std::time::Duration),
    #[error("a newer handshake has claimed its session")]
    Superseded,
}

/// A handshake, counted when it is dropped. Without a result, its browser has aborted it.
struct Attempt<'a> {
    upstream: &'a Upstream,
    started: Instant,
    /// `None` if it is counted as a rejection.
    result: Option<Handshake>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(result) = self.result {
            self.upstream.metrics.handshake(result, self.started.elapsed());
        }
    }
}

impl RequestContext<'_> {
    /// Answers a websocket request: with the upstream's 101 and a session, the upstream's own refusal, or an error.
    pub(super) async fn upgrade(self, mut request: Request<RequestBody>) -> Reply {
        let upstream = self.upstream;
        let mut attempt = Attempt { upstream, started: Instant::now(), result: Some(Handshake::Abandoned) };
        let offered = handshake::offers_streamlit(subprotocols(request.headers()));
        let is_app_stream = offered && handshake::is_stream(request.uri().path());
        let resumed = handshake::resumed_session(subprotocols(request.headers())).filter(|_id| is_app_stream);
        let tagged = is_app_stream && upstream.watchdog.is_some();
        let tag = if tagged { watchdog::take_tag(request.uri_mut()) } else { None };
        let identity = Identity::of(&upstream.name, request.headers());
        if let Some((response, leg)) = tag.and_then(|tag| self.answer_leg(&request, tag, identity)) {
            attempt.result = Some(Handshake::Accepted);
            return Reply { response, session: Some(PendingSession::Leg(leg)) };
        }
        // Dropped after the handshake's connection.
        let mut owner = Owner::new(upstream.session.takeover.then(|| (upstream.owners.clone(), identity)));
        let taken = match self.claim(&mut owner, resumed).await {
            Ok(ended) => ended.filter(|ended| ended.result == Takeover::Closed).and_then(|ended| ended.received),
            Err(failure) => return self.fail(&mut attempt, &failure).into(),
        };
        // Only now: a takeover has just freed its slot.
        let Some(slot) = upstream.slots.take() else {
            attempt.result = None;
            upstream.session_warning.warn();
            return self.active.reject(Rejection::of_sessions()).into();
        };
        headers::keep_upgrade(request.headers_mut());
        let ids = TraceIds::of(request.headers());
        let answered = tokio::select! {
            biased;
            () = owner.superseded() => Err(Failure::Superseded),
            answered = handshake_with_upstream(upstream, request, slot) => answered,
        };
        match answered {
            Ok((mut response, Some(connection))) => {
                attempt.result = Some(Handshake::Accepted);
                if resumed.is_some() {
                    upstream.metrics.reconnect(tag.map_or(Reconnect::Other, |tag| tag.cause));
                }
                let inspection = self.inspection(is_app_stream, response.headers());
                let (upstream, sessions) = (upstream.clone(), self.sessions.clone());
                let session =
                    NewSession { connection, upstream, sessions, inspection, ids, tag, identity, taken, owner };
                headers::keep_upgrade(response.headers_mut());
                // RFC 9110 §6.6.1. hyper does the same for what it writes.
                response.headers_mut().entry(header::DATE).or_insert_with(http_date);
                // The version is that of the hop (RFC 9112 §2.3), not of the app's 101.
                *response.version_mut() = Version::HTTP_11;
                Reply { response, session: Some(PendingSession::New(Box::new(session))) }
            }
            Ok((response, None)) => {
                attempt.result = Some(Handshake::Refused);
                response.into()
            }
            Err(failure) => self.fail(&mut attempt, &failure).into(),
        }
    }

    /// Waits until the older connections and handshakes of the session are over. The app then resumes it. Before
    /// Streamlit 1.61 it would start an empty one while an older connection, dead or not, is open.
    async fn claim(&self, owner: &mut Owner, resumed: Option<SessionId>) -> Result<Option<Ended>, Failure> {
        let Some(id) = resumed else { return Ok(None) };
        // An older session is reset after the first two; a drain closes it in its own order. The rest is for a 101 that its
        // browser does not read.
        let timeout = TAKEOVER_GRACE + self.upstream.session.takeover_timeout + self.upstream.handshake_timeout;
        let claimed = tokio::time::timeout(timeout, owner.claim(id)).await;
        let claimed = claimed.map_err(|_elapsed| Failure::ClaimTimedOut(timeout))?;
        let ended = claimed.map_err(|Superseded| Failure::Superseded)?;
        if let Some(ended) = ended {
            self.upstream.metrics.takeover(ended.result);
        }
        Ok(ended)
    }

    /// Answers a failed handshake.
    fn fail(&self, attempt: &mut Attempt<'_>, failure: &Failure) -> Response<ResponseBody> {
        attempt.result = Some(failure.result());
        match failure {
            Failure::Superseded => superseded(),
            Failure::Connect(error) => {
                self.upstream.state.learn(Learning::on_gone);
                self.fail_upstream(UpstreamFailure::from(error), &Chain(failure))
            }
            Failure::TimedOut(_) | Failure::ClaimTimedOut(_) => {
                self.fail_upstream(UpstreamFailure::TimedOut, &Chain(failure))
            }
            Failure::Http(_) | Failure::Coding(_) | Failure::Broken(_) | Failure::WrongAccept => {
                self.fail_upstream(UpstreamFailure::InvalidResponse, &Chain(failure))
            }
        }
    }

    /// How much of the session the tap can inspect.
    fn inspection(&self, is_app_stream: bool, answer: &HeaderMap) -> Inspection {
        if !is_app_stream || !handshake::selects_streamlit(subprotocols(answer)) {
            return Inspection::Frames;
        }
        if !answer.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
            return Inspection::Messages;
        }
        let extensions = answer.get_all(header::SEC_WEBSOCKET_EXTENSIONS).iter();
        match Deflate::negotiated(extensions.map(|line| line.to_str().unwrap_or_default())) {
            Some(deflate) => Inspection::Compressed(deflate),
            None => {
                self.upstream.metrics.session_unparsable(Unparsable::Extension);
                Inspection::Frames
            }
        }
    }
}

impl Failure {
    fn result(&self) -> Handshake {
        match self {
            Self::Connect(ConnectError::Unreachable { .. }) => Handshake::Unreachable,
            Self::Connect(ConnectError::TimedOut { .. }) | Self::TimedOut(_) | Self::ClaimTimedOut(_) => {
                Handshake::Timeout
            }
            Self::Http(_) | Self::Coding(_) | Self::Broken(_) | Self::WrongAccept => Handshake::Invalid,
            Self::Superseded => Handshake::Superseded,
        }
    }
}

/// The answer to a handshake whose session a newer one has claimed. Not a 5xx, and not just a close: proxies would
/// retry the handshake, and it would claim the session from the newer one.
fn superseded() -> Response<ResponseBody> {
    let mut response = plain_text(StatusCode::CONFLICT, "409 Conflict: a newer connection has claimed the session\n");
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Performs the handshake with the upstream over a new connection, which is returned if the answer is a 101.
async fn handshake_with_upstream(
    upstream: &Upstream,
    request: Request<RequestBody>,
    slot: Permit,
) -> Result<(Response<ResponseBody>, Option<Upgraded>), Failure> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned();
    let mut stream = upstream.connector.connect().await?;
    stream.hold(slot);
    let timeout = upstream.handshake_timeout;
    let (response, connection) = tokio::time::timeout(timeout, send_handshake(stream, request))
        .await
        .map_err(|_elapsed| Failure::TimedOut(timeout))??;
    if connection.is_some() {
        let expected = key.map(|key| derive_accept_key(key.as_bytes()));
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if expected.is_none() || accept.map(|accept| accept.as_bytes()) != expected.as_ref().map(String::as_bytes) {
            return Err(Failure::WrongAccept);
        }
    }
    Ok((response, connection))
}

/// The upstream's answer, and its connection if the answer is a 101.
async fn send_handshake(
    mut stream: Stream,
    request: Request<RequestBody>,
) -> Result<(Response<ResponseBody>, Option<Upgraded>), Failure> {
    // hyper's futures are boxed, so that other handshakes stay small.
    let Some(head) = wire::write_handshake(&request) else {
        return Box::pin(send_with_hyper(Replay::new(stream, Bytes::new()), request)).await;
    };
    stream.send(&head).await?;
    let early = Bytes::from(poll_fn(|cx| stream.poll_read_some(cx)).await?);
    match wire::read_switch(&early) {
        Some((response, length)) => Ok((response, Some(Upgraded { stream, early: early[length..].to_vec() }))),
        None => Box::pin(send_with_hyper(Replay::answered(stream, early), request)).await,
    }
}

async fn send_with_hyper(
    io: Replay,
    request: Request<RequestBody>,
) -> Result<(Response<ResponseBody>, Option<Upgraded>), Failure> {
    let (mut sender, mut connection) =
        http1::Builder::new().preserve_header_case(true).handshake(TokioIo::new(io)).await?;
    let mut response = drive(&mut connection, sender.send_request(request)).await?.map(ResponseBody::from);
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        headers::normalize_response(&mut response)?;
        // Delivers the body.
        tokio::spawn(connection);
        return Ok((response, None));
    }
    poll_fn(|cx| connection.poll_without_shutdown(cx)).await?;
    let parts = connection.into_parts();
    Ok((response, Some(parts.io.into_inner().into_upgraded(&parts.read_buf))))
}

/// Polls a connection in this task, not in its own, until the answer is read.
async fn drive(
    connection: &mut http1::Connection<TokioIo<Replay>, RequestBody>,
    answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
) -> hyper::Result<Response<Incoming>> {
    let mut answer = pin!(answer);
    let mut open = true;
    poll_fn(|cx| {
        // The answer returns the connection's error too.
        open = open && connection.poll_without_shutdown(cx).is_pending();
        answer.as_mut().poll(cx)
    })
    .await
}

/// The time as a field's value.
fn http_date() -> HeaderValue {
    HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now())).expect("a date is ASCII")
}

/// What starts once a 101 is sent to the browser.
pub enum PendingSession {
    /// A session with a new connection to the app.
    New(Box<NewSession>),
    /// Another leg of a session.
    Leg(PendingLeg),
}

/// A session that has not started. Dropped, it closes the app's connection.
pub struct NewSession {
    /// The connection to the upstream.
    connection: Upgraded,
    upstream: Arc<Upstream>,
    sessions: Sessions,
    inspection: Inspection,
    ids: Option<TraceIds>,
    tag: Option<Tag>,
    identity: Identity,
    /// How many data messages the older connection had passed to the app, if the handshake has closed one.
    taken: Option<u64>,
    /// Dropped after `connection`.
    owner: Owner,
}

impl PendingSession {
    /// Starts it once the 101 is written. `browser` is the connection with the bytes read after the handshake.
    pub fn start(self, browser: Upgraded, guard: Guard) {
        match self {
            Self::New(session) => session.start(browser, guard),
            Self::Leg(leg) => leg.start(browser),
        }
    }
}

impl NewSession {
    /// Starts the session in its own task, which is small while idle.
    fn start(self, browser: Upgraded, guard: Guard) {
        let resumable = self.resumable();
        let Self { connection, upstream, sessions, inspection, ids, tag, owner, .. } = self;
        let (tapped, stop) = (inspection.sees_messages(), owner.stop());
        let session = sessions.open(SessionInfo { upstream: upstream.name.clone(), tapped, stop: stop.clone() });
        if guard.is_closing() {
            // The drain has already stopped the sessions that were open.
            stop.request();
        }
        let report = Report::new(upstream.state.clone(), session, owner, ids);
        // A parked session has no browser that could answer the app's pings.
        let pings = upstream.session.pings(resumable.is_some());
        let watchdog = upstream.watchdog.as_ref().zip(tag.and_then(|tag| tag.token));
        let probe = watchdog.and_then(|(watchdog, token)| watchdog.probes.register(token));
        let upstream_is_local = upstream.connector.address.is_local();
        let heartbeat = upstream.heartbeat;
        let options = RelayOptions { inspection, heartbeat, pings, upstream_is_local, probe, resumable };
        tokio::spawn(Relay::new(browser, connection, options, report, guard));
    }

    /// Lets the session be parked, and resumed if that is on: its page offers it, and its frames can be counted.
    fn resumable(&self) -> Option<ResumableOptions> {
        let Self { upstream, tag, inspection, identity, taken, .. } = self;
        let is_offered = *inspection == Inspection::Messages && tag.is_some_and(|tag| tag.resumes);
        // Without takeover a page that opens another connection would get an empty session beside the parked one.
        if !is_offered || !upstream.session.takeover {
            return None;
        }
        let secret = Secret::new(rand::random(), rand::random());
        let parking = upstream.parking.clone();
        let greeting = parking.greeting(&secret, *taken);
        Some(ResumableOptions { handle: upstream.resumable.register(secret, *identity), parking, greeting })
    }
}
