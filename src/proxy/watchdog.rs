//! Serves the watchdog's script and its probe, which reports whether bytes still reach a page.

mod script;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri};

use self::script::SCRIPT;
use super::body::ResponseBody;
use super::page::Script;
use super::response::plain_text;
use crate::config::{WatchdogMode, WatchdogSettings};
use crate::metrics::{Reconnect, WatchdogPage};
use crate::relay::delivery_probe::{DeliveryProbes, ProbeError, Progress, Token};

/// Its path, under the app's base path.
const SCRIPT_PATH: &str = "/_heartbeat/watchdog.js";
/// The path of its probe.
const ALIVE_PATH: &str = "/_heartbeat/alive";
/// The query parameter with a websocket's token, and why it was opened.
const TAG: &str = "_heartbeat=";
/// Follows the token of a websocket that was opened to replace a dead one.
const REPLACES: &str = ".watchdog";
/// Follows the token, or what follows that, of a websocket whose page can resume it.
const RESUMES: &str = ".resume";

/// The watchdog of one upstream's pages.
pub(super) struct Watchdog {
    pub(super) script: Script,
    pub(super) probes: DeliveryProbes,
    policy_warned: AtomicBool,
}

/// The tag that the script adds to a websocket's URL.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    /// Identifies the websocket in probes; `None` if invalid.
    pub(super) token: Option<Token>,
    /// Why it was opened.
    pub(super) cause: Reconnect,
    /// The page can resume it.
    pub(super) resumes: bool,
}

impl Watchdog {
    /// `None` if it is off. `probes` are those of the app's sessions.
    pub(super) fn new(settings: &WatchdogSettings, max_age: Duration, probes: DeliveryProbes) -> Option<Self> {
        let mode = match settings.mode {
            WatchdogMode::Off => return None,
            WatchdogMode::Host => "host",
            WatchdogMode::Page => "self",
        };
        let [interval, ack_timeout, max_age] =
            [settings.interval, settings.ack_timeout, max_age].map(|time| time.as_millis());
        // Relative, as the page's own scripts are.
        let element = format!(
            "<script src=\".{SCRIPT_PATH}\" data-mode=\"{mode}\" data-interval=\"{interval}\" \
             data-ack-timeout=\"{ack_timeout}\" data-max-age=\"{max_age}\"></script>"
        );
        let script = Script { element: element.into(), path: SCRIPT_PATH };
        Some(Self { script, probes, policy_warned: AtomicBool::new(false) })
    }

    /// The response to a request for one of the watchdog's own paths; `None` for all others.
    pub(super) async fn respond<B>(&self, request: &Request<B>) -> Option<Response<ResponseBody>> {
        let path = request.uri().path();
        let (script, alive) = (path.ends_with(SCRIPT_PATH), path.ends_with(ALIVE_PATH));
        if !script && !alive {
            return None;
        }
        let mut response = if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = plain_text(StatusCode::METHOD_NOT_ALLOWED, "405 Method Not Allowed\n");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        } else if script {
            let mut response = plain_text(StatusCode::OK, SCRIPT);
            let javascript = HeaderValue::from_static("text/javascript; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, javascript);
            response
        } else {
            self.alive(request.uri().query().unwrap_or_default()).await
        };
        // A page must not use an older sidecar's script, nor an older response, from its cache.
        let fresh = if script { "no-cache" } else { "no-store" };
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(fresh));
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        Some(response)
    }

    /// Whether bytes reach the page over the socket in the query, as one word.
    async fn alive(&self, query: &str) -> Response<ResponseBody> {
        let value = |name| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let Some(token) = value("socket").and_then(Token::parse) else {
            return plain_text(StatusCode::NOT_FOUND, "404 Not Found\n");
        };
        let wait = value("wait").and_then(|wait| wait.parse().ok()).map_or(Duration::ZERO, Duration::from_millis);
        match self.probes.probe(token, wait).await {
            Ok(Progress::Moving) => plain_text(StatusCode::OK, "progress\n"),
            Ok(Progress::Stalled) => plain_text(StatusCode::OK, "stalled\n"),
            Ok(Progress::Idle) => plain_text(StatusCode::OK, "idle\n"),
            Err(ProbeError::Unknown) => plain_text(StatusCode::NOT_FOUND, "404 Not Found\n"),
            Err(ProbeError::TooSoon) => {
                let mut response = plain_text(StatusCode::TOO_MANY_REQUESTS, "429 Too Many Requests\n");
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                response
            }
        }
    }

    /// Warns once that the app forbids the script.
    pub(super) fn log(&self, upstream: &str, result: WatchdogPage) {
        if result == WatchdogPage::Forbidden && !self.policy_warned.swap(true, Relaxed) {
            tracing::warn!(
                upstream,
                "pages get no watchdog: the app's Content-Security-Policy forbids scripts from its own origin"
            );
        }
    }
}

/// Removes the tag from a websocket's query, if there is one; the rest of the target is unchanged.
pub(super) fn take_tag(target: &mut Uri) -> Option<Tag> {
    let query = target.query()?;
    let (mut tag, mut rest) = (None, Vec::new());
    for pair in query.split('&') {
        match pair.strip_prefix(TAG) {
            Some(value) => tag = Some(Tag::parse(value)),
            None => rest.push(pair),
        }
    }
    let tag = tag?;
    let path = target.path();
    let without = if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) };
    // Still valid without the tag.
    *target = without.parse::<PathAndQuery>().map(Uri::from).unwrap_or_default();
    Some(tag)
}

impl Tag {
    fn parse(value: &str) -> Self {
        let (value, resumes) = value.strip_suffix(RESUMES).map_or((value, false), |value| (value, true));
        let (token, cause) = match value.strip_suffix(REPLACES) {
            Some(token) => (token, Reconnect::Watchdog),
            None => (value, Reconnect::Other),
        };
        Self { token: Token::parse(token), cause, resumes }
    }
}

#[cfg(test)]
mod tests;
