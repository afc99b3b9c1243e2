//! The status page, and the numbers that it fetches every two seconds.
//!
//! Invariant: a response is bounded, however many sessions there are: the server sorts, filters and truncates. The page
//! contains no external address.

mod query;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY, X_FRAME_OPTIONS};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use tokio::runtime::Handle;

use self::query::Query;
use super::admin::response::response;
use crate::drain::Drain;
use crate::heartbeat::Capability;
use crate::metrics::Metrics;
use crate::session::ended::EndedView;
use crate::session::recent::RecentAnswer;
use crate::session::totals::Totals;
use crate::session::{SessionView, Sessions};

/// What the admin port reports.
#[derive(Clone)]
pub struct AdminState {
    /// Shown at `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Shown at `/sessions`.
    pub sessions: Sessions,
    /// Makes `/readyz` return 503.
    pub drain: Drain,
    /// Shown on the status page.
    pub config: ConfigSource,
    /// The relay's runtime, which runs a task for each probe.
    pub relay: Handle,
}

/// Returns the active configuration; called for every request.
pub type ConfigSource = Arc<dyn Fn() -> ConfigSummary + Send + Sync>;

/// The part of the active configuration that the page shows.
#[derive(Clone, Debug, Default)]
pub struct ConfigSummary {
    /// Each upstream's name, and what is known about its own acks.
    pub upstreams: Vec<(Arc<str>, Capability)>,
    /// Result of the last reload; `None` before the first.
    pub reload: Option<LastReload>,
}

/// A reload of the configuration.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LastReload {
    /// Whether it was applied; if not, the log has the reason.
    pub accepted: bool,
    /// How long ago it was.
    pub seconds_ago: f64,
}

const HTML: &str = "text/html; charset=utf-8";

/// The page in one piece. Each response replaces `NONCE` with a new value.
const PAGE: &str = concat!(
    "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>heartbeat-sidecar</title>\n\
     <style nonce=\"NONCE\">\n",
    include_str!("status/page.css"),
    "</style>\n",
    include_str!("status/page.html"),
    "<script nonce=\"NONCE\">\n",
    include_str!("status/words.js"),
    include_str!("status/chart.js"),
    include_str!("status/page.js"),
    "</script>\n</html>\n",
);

/// The current numbers.
#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    /// `ready` or `draining`.
    state: &'static str,
    reload: Option<LastReload>,
    /// Milliseconds since the sidecar started: the time base of `since`, answers and ends.
    now: u64,
    upstreams: Vec<UpstreamView>,
    totals: Totals,
    /// Live sessions.
    live: usize,
    /// Of these, how many have had no ack since one was withheld.
    withheld_now: usize,
    /// Of these, how many wait for their page to reconnect.
    parked_now: usize,
    /// Live sessions that match the filter.
    matching: usize,
    /// The first of these.
    sessions: Vec<&'a SessionView>,
    /// Answers to heartbeats since the requested time.
    answers: Vec<RecentAnswer>,
    /// There were more: the oldest are missing.
    answers_cut: bool,
    /// The last sessions that ended, latest first.
    ended: Vec<EndedView>,
}

#[derive(Serialize)]
struct UpstreamView {
    name: String,
    /// Whether it acks heartbeats itself; `None` until that is known.
    acks_natively: Option<bool>,
    /// Live sessions.
    sessions: usize,
}

/// The page, for a browser.
pub(super) fn page() -> Response<Bytes> {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut page = response(StatusCode::OK, HTML, PAGE.replace("NONCE", &nonce));
    let headers = page.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::try_from(policy).expect("it is visible ASCII"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));
    page
}

/// The numbers as JSON, for the page's script or other clients.
///
/// # Errors
/// The query is invalid: the reason.
pub(super) fn numbers(state: &AdminState, query: &str) -> Result<Vec<u8>, String> {
    let query = Query::parse(query)?;
    // Later answers belong to the next request.
    let now = state.sessions.uptime();
    let sessions = state.sessions.snapshot();
    Ok(serde_json::to_vec(&Status::new(state, &query, now, &sessions)).expect("numbers and strings only"))
}

impl<'a> Status<'a> {
    fn new(state: &AdminState, query: &Query, now: Duration, all: &'a [SessionView]) -> Self {
        let AdminState { sessions: registry, drain, config, .. } = state;
        let ConfigSummary { upstreams, reload } = config();
        let (sessions, matching) = query.first(all);
        let (answers, answers_cut) = registry.answers_between(query.since, now);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            state: if drain.is_draining() { "draining" } else { "ready" },
            now: now.as_millis() as u64,
            reload,
            upstreams: upstreams.into_iter().map(|upstream| UpstreamView::new(upstream, all)).collect(),
            totals: registry.totals(),
            live: all.len(),
            withheld_now: all.iter().filter(|session| session.withheld).count(),
            parked_now: all.iter().filter(|session| session.parked).count(),
            matching,
            sessions,
            answers,
            answers_cut,
            ended: registry.ended(),
        }
    }
}

impl UpstreamView {
    fn new((name, capability): (Arc<str>, Capability), sessions: &[SessionView]) -> Self {
        let acks_natively = match capability {
            Capability::Unknown => None,
            Capability::Silent => Some(false),
            Capability::Native => Some(true),
        };
        let sessions = sessions.iter().filter(|session| *session.upstream == *name).count();
        Self { name: name.to_string(), acks_natively, sessions }
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::query::{COLUMNS, MAX_ROWS};
    use super::*;
    use crate::heartbeat::{AckOrigin, Withheld};
    use crate::metrics::{CloseCode, DirectionLabel, Initiator};
    use crate::session::stop::Stop;
    use crate::session::{Session, SessionInfo, recent};

    fn state() -> AdminState {
        let upstreams = vec![("app".into(), Capability::Silent), ("other".into(), Capability::Unknown)];
        let summary = ConfigSummary { upstreams, reload: Some(LastReload { accepted: false, seconds_ago: 2.5 }) };
        AdminState {
            metrics: Metrics::new(),
            sessions: Sessions::new(),
            drain: Drain::new(),
            config: Arc::new(move || summary.clone()),
            relay: Handle::current(),
        }
    }

    fn open(state: &AdminState, upstream: &str) -> Session {
        state.sessions.open(SessionInfo { upstream: upstream.into(), tapped: true, stop: Stop::default() })
    }

    fn request(state: &AdminState, query: &str) -> Value {
        serde_json::from_slice(&numbers(state, query).unwrap()).unwrap()
    }

    fn ids(status: &Value) -> Vec<u64> {
        let sessions = status["sessions"].as_array().unwrap();
        sessions.iter().map(|session| session["id"].as_u64().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn one_response_contains_all_numbers() {
        let state = state();
        let (session, lost) = (open(&state, "app"), open(&state, "other"));
        tokio::time::advance(Duration::from_secs(3)).await;
        session.heartbeat();
        session.ack(AckOrigin::Sidecar, Some(Duration::from_micros(650)));
        lost.withheld(Withheld::UpstreamClosed);
        lost.ended(Initiator::Browser, CloseCode::GoingAway, None);
        drop(lost);
        assert_eq!(request(&state, "")["answers"], json!([]), "this millisecond is not over");
        tokio::time::advance(Duration::from_secs(1)).await;
        let mut status = request(&state, "");
        assert_eq!(status["sessions"].take(), serde_json::to_value(state.sessions.snapshot()).unwrap());
        assert_eq!(status["ended"].take(), serde_json::to_value(state.sessions.ended()).unwrap());
        let expected = json!({
            "version": env!("CARGO_PKG_VERSION"), "state": "ready", "now": 4000, "sessions": null, "ended": null,
            "reload": {"accepted": false, "seconds_ago": 2.5},
            "upstreams": [
                {"name": "app", "acks_natively": false, "sessions": 1},
                {"name": "other", "acks_natively": null, "sessions": 0},
            ],
            "totals": {
                "opened": 2, "heartbeats": 1, "acks": {"sidecar": 1, "upstream": 0},
                "withheld": {"upstream_stalled": 0, "upstream_closed": 1, "policy": 0},
            },
            "live": 1, "withheld_now": 0, "parked_now": 0, "matching": 1,
            "answers": [[3000, "sidecar", 650], [3000, "withheld", 0]], "answers_cut": false,
        });
        assert_eq!(status, expected);
        assert_eq!(request(&state, "since=4000")["answers"], json!([]));
        state.drain.start();
        assert_eq!(request(&state, "")["state"], "draining");
    }

    #[tokio::test(start_paused = true)]
    async fn the_server_sorts_filters_and_limits_the_rows() {
        let state = state();
        let sessions: Vec<_> = (0..10).map(|number| open(&state, if number < 5 { "app" } else { "other" })).collect();
        for (session, millis) in sessions[..4].iter().zip([20, 5, 30, 10]) {
            session.ack(AckOrigin::Sidecar, Some(Duration::from_millis(millis)));
        }
        sessions[9].withheld(Withheld::UpstreamStalled);
        sessions[8].version("1.67.0");
        sessions[6].set_parked(true);
        sessions[5].resumed();
        sessions[7].bytes(DirectionLabel::UpstreamToBrowser, 1);
        let top = |query: &str| ids(&request(&state, query));
        assert_eq!(top("limit=3"), [1, 2, 3]);
        assert_eq!(top("sort=last_ack_latency_seconds&order=desc&limit=5"), [10, 3, 1, 4, 2]);
        assert_eq!(
            top("sort=last_ack_latency_seconds&limit=6"),
            [2, 4, 1, 3, 10, 5],
            "sessions without a value come last in either order"
        );
        assert_eq!(top("sort=bytes_to_browser&order=desc&limit=1"), [8]);
        assert_eq!(top("sort=version&limit=1"), [9]);
        assert_eq!(top("sort=resumed&order=desc&limit=3"), [7, 6, 1], "parked ones come before resumed ones");
        assert_eq!(top("filter=+OTHER%20&sort=id&order=desc"), [10, 9, 8, 7, 6]);
        assert_eq!(top("filter=1.67"), [9]);
        assert_eq!(top("filter=10"), [10]);
        let status = request(&state, "filter=other&limit=2");
        assert_eq!(status["parked_now"], 1);
        assert_eq!((&status["live"], &status["matching"], &status["withheld_now"]), (&json!(10), &json!(5), &json!(1)));
    }

    #[tokio::test]
    async fn every_sort_column_is_a_field_of_a_session() {
        let (state, query) = (state(), Query::default());
        let session = open(&state, "app");
        let shown = serde_json::to_value(session.view()).unwrap();
        for (name, _column) in COLUMNS {
            assert!(shown.get(name).is_some(), "{name}");
            assert!(numbers(&state, &format!("sort={name}")).is_ok());
        }
        assert_eq!(query.compare(&session.view(), &session.view()), Ordering::Equal);
    }

    #[tokio::test]
    async fn an_invalid_query_gets_the_reason() {
        for (query, start) in [
            ("sort=cookie", "sort must be one of id, upstream, "),
            ("order=up", "order must be asc or desc"),
            ("limit=-1", "limit must be a whole number"),
            ("since=1.5", "since must be a whole number"),
            ("secret=1", "unknown parameter \"secret\": use sort, "),
        ] {
            let wrong = numbers(&state(), query).unwrap_err();
            assert!(wrong.starts_with(start), "{query}: {wrong}");
        }
    }

    #[tokio::test]
    async fn a_response_is_bounded_however_many_sessions_there_are() {
        let state = state();
        let sessions: Vec<_> = (0..5000).map(|_session| open(&state, "app")).collect();
        for session in &sessions {
            session.version("1.53.1");
            session.ack(AckOrigin::Sidecar, Some(Duration::from_micros(session.id() * 7919 % 5000)));
        }
        let started = Instant::now();
        let response = numbers(&state, "sort=last_ack_latency_seconds&order=desc&since=0").unwrap();
        println!("5000 sessions: {} bytes in {:?}", response.len(), started.elapsed());
        assert!(response.len() < 120_000, "{} bytes", response.len());
        let all = request(&state, "limit=18446744073709551615");
        assert_eq!((ids(&all).len(), &all["matching"]), (MAX_ROWS, &json!(5000)));
        assert!(all["answers"].as_array().unwrap().len() <= recent::KEPT);
    }

    #[test]
    fn the_page_has_no_external_address_and_runs_only_its_own_script() {
        let (one, other) = (page(), page());
        let policy = |page: &Response<_>| page.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
        assert_ne!(policy(&one), policy(&other), "a nonce is used once");
        for held in ["default-src 'none'", "script-src 'nonce-", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy(&one).contains(held), "{held}");
        }
        assert!(!policy(&one).contains("unsafe") && !policy(&one).contains('*'));
        for outside in ["http:", "https:", "src=", "@import", "url(", "//", "innerHTML", "eval("] {
            // A comment of CSS or JavaScript is not an address.
            let found = PAGE.lines().find(|line| !line.trim_start().starts_with("//") && line.contains(outside));
            assert_eq!(found, None, "{outside}");
        }
        assert_eq!(PAGE.matches("NONCE").count(), 2);
        assert_eq!(PAGE.matches("</script>").count(), 1);
        assert_eq!(PAGE.matches("</style>").count(), 1);
        for tag in ["<main", "<table", "<noscript", "<h1", "<h2"] {
            let closed = tag.replace('<', "</");
            let (opened, closed) = (PAGE.matches(tag).count(), PAGE.matches(&closed).count());
            assert!(opened == closed && opened > 0, "{tag}: {opened} opened, {closed} closed");
        }
    }
}
