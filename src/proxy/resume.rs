//! Answers the handshakes of legs: connections over which a page continues its session. The app gets none of them.

use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::watchdog::Tag;
use super::{RequestBody, RequestContext, ResponseBody, headers};
use crate::metrics::ResumptionRefused;
use crate::relay::delivery_probe::ProbeHandle;
use crate::relay::legs::{self, Leg, LegTarget};
use crate::resume::control::{ResumeRequest, close_code};
use crate::session::identity::Identity;
use crate::streamlit::handshake;
use crate::transport::Upgraded;

/// A leg whose 101 is being sent to the browser: the way to its session, and what it asks for; `None` if it cannot
/// continue one.
pub struct PendingLeg(Option<(LegTarget, ResumeRequest, Option<ProbeHandle>)>);

impl RequestContext<'_> {
    /// The reply to the handshake of a leg; `None` if it is for a new connection to the app. The page learns the result
    /// from the first frame: browsers hide the status of a failed handshake.
    pub(super) fn answer_leg(
        &self,
        request: &Request<RequestBody>,
        tag: Tag,
        identity: Identity,
    ) -> Option<(Response<ResponseBody>, PendingLeg)> {
        let mut entries = handshake::subprotocols(headers::subprotocols(request.headers()));
        let entry = entries.find(|entry| ResumeRequest::is_entry(entry))?;
        let upstream = self.upstream;
        let found = ResumeRequest::parse(entry).ok_or(ResumptionRefused::Unknown).and_then(|request| {
            let target = upstream.resumable.find(&request.secret, identity)?;
            let watchdog = upstream.watchdog.as_ref().zip(tag.token);
            let probe = watchdog.and_then(|(watchdog, token)| watchdog.probes.register(token));
            Ok((target, request, probe))
        });
        if let Err(reason) = &found {
            upstream.metrics.resumption_refused(*reason);
        }
        Some((switching_protocols(request), PendingLeg(found.ok())))
    }
}

impl PendingLeg {
    /// Hands the leg to its session, or closes it.
    pub(super) fn start(self, connection: Upgraded) {
        match self.0 {
            Some((target, request, probe)) => target.send(Leg { connection, request, probe }),
            None => legs::refuse(connection, close_code::UNKNOWN),
        }
    }
}

/// A 101 of the sidecar's own (RFC 6455 §4.2.2).
fn switching_protocols(request: &Request<RequestBody>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.version_mut() = Version::HTTP_11;
    let fields = response.headers_mut();
    headers::keep_upgrade(fields);
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map_or(&[][..], HeaderValue::as_bytes);
    let accept = HeaderValue::try_from(derive_accept_key(key)).expect("Base64 is ASCII");
    fields.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    fields.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(handshake::SUBPROTOCOL));
    response
}
