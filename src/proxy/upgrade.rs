//! Shakes hands on both sides of a websocket and joins the two streams.

use std::sync::Arc;
use std::time::Instant;

use http::header::{self, HeaderMap};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::upstream::{ConnectError, Upstream};
use super::{Chain, Proxy, Refusal, ResponseBody, headers, watchdog};
use crate::drain::Guard;
use crate::heartbeat::learning::Learning;
use crate::heartbeat::tap::Depth;
use crate::metrics::{Handshake, Reconnect, TapDisabled};
use crate::relay::progress::Token;
use crate::relay::stream::Stream;
use crate::relay::{Report, Session, Side, Terms};
use crate::session::takeover::{Holding, Turn};
use crate::session::{SessionInfo, Sessions};
use crate::streamlit::handshake::{self, SessionId};
use crate::websocket::inflate::Deflate;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the websocket handshake failed")]
    Http(#[from] hyper::Error),
    #[error("no answer to the websocket handshake within {0:?}")]
    TimedOut(std::time::Duration),
    #[error("its Sec-WebSocket-Accept does not answer the key")]
    WrongAccept,
}

impl Proxy {
    /// Answers a request for a websocket: with the upstream's 101 and a session behind it, with the upstream's own
    /// refusal, or with a 5xx.
    pub(super) async fn upgrade(&self, mut request: Request<Incoming>) -> Response<ResponseBody> {
        let started = Instant::now();
        let upstream = &self.upstream;
        let browser = hyper::upgrade::on(&mut request);
        let stream_path = handshake::is_stream(request.uri().path());
        let resumed = resumed(request.headers()).filter(|_id| stream_path);
        let tag = if stream_path { watchdog::take_tag(request.uri_mut()) } else { None };
        let turn = self.take_over(resumed).await;
        headers::keep_upgrade(request.headers_mut());
        match shake_hands(upstream, request).await {
            Ok(mut response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                upstream.metrics.handshake(Handshake::Accepted, started.elapsed());
                if resumed.is_some() {
                    upstream.metrics.reconnect(tag.map_or(Reconnect::Other, |tag| tag.cause));
                }
                let depth = self.depth(stream_path, response.headers());
                let far = hyper::upgrade::on(&mut response);
                let (upstream, sessions) = (upstream.clone(), self.sessions.clone());
                let token = tag.and_then(|tag| tag.token);
                let joining = Joining { upstream, sessions, depth, resumed, token, turn };
                tokio::spawn(joining.join(browser, far, self.drain.guard()));
                headers::keep_upgrade(response.headers_mut());
                response.map(ResponseBody::from)
            }
            Ok(mut response) => {
                upstream.metrics.handshake(Handshake::Refused, started.elapsed());
                headers::remove_hop_by_hop(response.headers_mut(), true);
                response.map(ResponseBody::from)
            }
            Err(failure) => {
                upstream.metrics.handshake(failure.result(), started.elapsed());
                if let Failure::Connect(_) = failure {
                    upstream.knowledge.learn(Learning::on_gone);
                }
                self.refuse(failure.refusal(), &Chain(&failure))
            }
        }
    }

    /// Closes the connection that holds the session, if one does. The app then resumes it; before Streamlit 1.61 it
    /// would start an empty one instead while the old connection, dead or not, is open.
    async fn take_over(&self, resumed: Option<SessionId>) -> Option<Turn> {
        let settings = self.upstream.session;
        let id = resumed.filter(|_id| settings.takeover)?;
        let (turn, result) = self.upstream.holders.take_over(id, settings.takeover_timeout).await?;
        self.upstream.metrics.takeover(result);
        Some(turn)
    }

    /// How much of the session the tap can look at.
    fn depth(&self, stream_path: bool, answer: &HeaderMap) -> Depth {
        if !stream_path {
            return Depth::Frames;
        }
        if !answer.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
            return Depth::Messages;
        }
        let extensions = answer.get_all(header::SEC_WEBSOCKET_EXTENSIONS).iter();
        match Deflate::negotiated(extensions.map(|line| line.to_str().unwrap_or_default())) {
            Some(deflate) => Depth::Compressed(deflate),
            None => {
                self.upstream.metrics.tap_disabled(TapDisabled::Extension);
                Depth::Frames
            }
        }
    }
}

impl Failure {
    fn result(&self) -> Handshake {
        match self {
            Self::Connect(ConnectError::Unreachable { .. }) => Handshake::Unreachable,
            Self::Connect(ConnectError::TimedOut { .. }) | Self::TimedOut(_) => Handshake::Timeout,
            Self::Http(_) | Self::WrongAccept => Handshake::Invalid,
        }
    }

    fn refusal(&self) -> Refusal {
        match self {
            Self::Connect(error) => Refusal::of(Some(error)),
            Self::TimedOut(_) => Refusal::GatewayTimeout,
            Self::Http(_) | Self::WrongAccept => Refusal::BadGateway,
        }
    }
}

/// Asks the upstream for a websocket over a connection of its own.
async fn shake_hands(upstream: &Upstream, request: Request<Incoming>) -> Result<Response<Incoming>, Failure> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned();
    let stream = upstream.connector.connect().await?;
    let exchange = async {
        let (mut sender, connection) =
            http1::Builder::new().preserve_header_case(true).handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await
    };
    let timeout = upstream.handshake_timeout;
    let response = tokio::time::timeout(timeout, exchange).await.map_err(|_elapsed| Failure::TimedOut(timeout))??;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let expected = key.map(|key| derive_accept_key(key.as_bytes()));
        let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
        if expected.is_none() || accept.map(|accept| accept.as_bytes()) != expected.as_ref().map(String::as_bytes) {
            return Err(Failure::WrongAccept);
        }
    }
    Ok(response)
}

/// The session that the browser wants to resume.
fn resumed(headers: &HeaderMap) -> Option<SessionId> {
    let lines = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    handshake::resumed_session(lines.iter().filter_map(|line| line.to_str().ok()))
}

/// A session whose 101 is on its way to the browser.
struct Joining {
    upstream: Arc<Upstream>,
    sessions: Sessions,
    depth: Depth,
    resumed: Option<SessionId>,
    /// What the page will call the session when it asks whether bytes reach it.
    token: Option<Token>,
    /// The next takeover of the session waits until this one's connection holds it.
    turn: Option<Turn>,
}

impl Joining {
    /// Waits until the 101 is written, then runs the session as a task of its own, small while it is idle.
    async fn join(self, browser: OnUpgrade, far: OnUpgrade, guard: Guard) {
        let (browser, far) = match tokio::try_join!(browser, far) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(upstream = %self.upstream.name, %error, "the browser left during the handshake");
                return;
            }
        };
        let (Some(browser), Some(far)) = (Side::of(browser), Side::of(far)) else {
            tracing::error!(upstream = %self.upstream.name, "a websocket does not run over a socket of ours");
            return;
        };
        let Self { upstream, sessions, depth, resumed, token, turn } = self;
        let tapped = depth.sees_messages();
        let session = sessions.open(SessionInfo { upstream: upstream.name.clone(), tapped });
        let stop = session.stop();
        if guard.is_closing() {
            // The drain tells those that it found.
            stop.cancel();
        }
        let mut holding = Holding::new(upstream.session.takeover.then(|| upstream.holders.clone()), stop.clone());
        if let Some(id) = resumed {
            holding.hold(id);
        }
        let report = Report::new(upstream.metrics.clone(), upstream.knowledge.clone(), session, holding);
        let takeover_timeout = upstream.session.takeover_timeout;
        let watchdog = upstream.watchdog.as_ref().zip(token);
        let watched = watchdog.and_then(|(watchdog, token)| watchdog.watch.enter(token));
        let terms = Terms { depth, heartbeat: upstream.heartbeat, takeover_timeout, stop, watched };
        tokio::spawn(Session::new(browser, far, terms, report, guard));
        drop(turn);
    }
}

impl Side {
    /// The socket below an upgraded connection, with what was read beyond the handshake.
    fn of(upgraded: Upgraded) -> Option<Self> {
        let parts = upgraded.downcast::<TokioIo<Stream>>().ok()?;
        Some(Self { stream: parts.io.into_inner(), early: parts.read_buf.to_vec() })
    }
}
