//! Handles one request: it is forwarded, becomes a websocket session, or gets an error response of our own.
//!
//! Invariant: bodies, status and end-to-end header fields pass unchanged, except where `headers`, `page` and `trace`
//! change them.

mod admission;
mod body;
mod headers;
mod link;
mod page;
mod response;
mod resume;
pub mod routes;
mod upgrade;
pub mod upstream;
mod watchdog;
pub mod wire;

use std::error::Error as _;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;

pub use self::admission::DroppedLength;
use self::admission::Rejection;
use self::body::RequestBodyError;
pub use self::body::{RequestBody, ResponseBody};
pub use self::headers::HOP_BY_HOP;
use self::page::Navigation;
use self::response::{Chain, UpstreamFailure, causes, plain_text};
use self::routes::Routes;
pub use self::upgrade::PendingSession;
use self::upstream::{ConnectError, Upstream};
use crate::config::{AllowedOrigins, Config, Limits, TrustedProxies};
use crate::heartbeat::learning::Learning;
use crate::limits::{Client, LimitWarning, Rate};
use crate::metrics::Metrics;
use crate::session::{Sessions, trace};

/// The proxy in front of the apps; clones share the active configuration.
#[derive(Clone)]
pub struct Proxy {
    active: Arc<ArcSwap<ActiveConfig>>,
    sessions: Sessions,
}

/// The active configuration. A request keeps the one that it started with.
struct ActiveConfig {
    routes: Routes,
    /// The URL scheme that browsers use.
    scheme: &'static str,
    limits: Limits,
    trusted_proxies: TrustedProxies,
    allowed_origins: AllowedOrigins,
    /// Per-client handshake rate limit; `None` disables it.
    handshakes: Option<Arc<Rate>>,
    rate_warning: Arc<LimitWarning>,
    metrics: Arc<Metrics>,
}

/// The configuration, app and sessions for one request.
#[derive(Clone, Copy)]
struct RequestContext<'a> {
    active: &'a ActiveConfig,
    upstream: &'a Arc<Upstream>,
    sessions: &'a Sessions,
}

/// The response to a request.
pub struct Reply {
    /// What to send to the client.
    pub response: Response<ResponseBody>,
    /// The session to start once the response, a 101, is sent.
    pub session: Option<PendingSession>,
}

impl Proxy {
    /// A proxy whose websocket sessions are registered in `sessions`.
    pub fn new(config: &Config, routes: Routes, sessions: Sessions, metrics: Arc<Metrics>) -> Self {
        let handshakes = config.limits.handshakes_per_second.map(Rate::new).map(Arc::new);
        let rate_warning = Arc::new(LimitWarning::new("limits.handshakes_per_second"));
        let active = ActiveConfig::new(config, routes, handshakes, rate_warning, metrics);
        Self { active: Arc::new(ArcSwap::from_pointee(active)), sessions }
    }

    /// Replaces the configuration atomically; requests that have started keep the old one.
    pub fn renew(&self, config: &Config, routes: Routes) {
        let before = self.active.load_full();
        let per_second = config.limits.handshakes_per_second;
        let handshakes = match &before.handshakes {
            Some(rate) if before.limits.handshakes_per_second == per_second => Some(rate.clone()),
            Some(_) | None => per_second.map(Rate::new).map(Arc::new),
        };
        let active = ActiveConfig::new(config, routes, handshakes, before.rate_warning.clone(), before.metrics.clone());
        self.active.store(Arc::new(active));
    }

    /// Responds to one request of a client.
    pub async fn handle(&self, mut request: Request<RequestBody>, client: IpAddr) -> Reply {
        let active = self.active.load_full();
        request.body_mut().pause_timeout = active.limits.body_timeout;
        request.body_mut().expects_continue = request.headers().contains_key(header::EXPECT);
        if let Err(rejection) = admission::check(&request, &active.limits, &active.allowed_origins) {
            return active.reject(rejection).into();
        }
        let peer = client.to_canonical();
        let websocket = headers::is_websocket_request(request.headers());
        if websocket && let Err(wait) = active.check_handshake_rate(request.headers(), peer) {
            active.rate_warning.warn();
            return active.reject(Rejection::of_rate(wait)).into();
        }
        let trusted = active.trusted_proxies.contains(peer);
        headers::add_forwarded(request.headers_mut(), peer, trusted, active.scheme);
        trace::identify(request.headers_mut());
        to_origin_form(&mut request);
        *request.version_mut() = Version::HTTP_11;
        let Some(upstream) = active.routes.find(&request) else {
            return active.reject(Rejection::of_route()).into();
        };
        let context = RequestContext { active: &active, upstream, sessions: &self.sessions };
        if websocket {
            return context.upgrade(request).await;
        }
        let (method, started) = (request.method().clone(), Instant::now());
        let own = match &upstream.watchdog {
            Some(watchdog) => watchdog.respond(&request).await,
            None => None,
        };
        let response = match own {
            Some(response) => response,
            None => context.forward(request).await,
        };
        upstream.metrics.http_request(&method, response.status(), started.elapsed());
        response.into()
    }
}

impl From<Response<ResponseBody>> for Reply {
    fn from(response: Response<ResponseBody>) -> Self {
        Self { response, session: None }
    }
}

impl RequestContext<'_> {
    async fn forward(&self, mut request: Request<RequestBody>) -> Response<ResponseBody> {
        let has_body = !request.body().is_end_stream();
        headers::remove_hop_by_hop(request.headers_mut(), has_body);
        let navigation = self.upstream.watchdog.as_ref().and_then(|_watchdog| Navigation::of(&request));
        let host = request.headers().get(header::HOST).filter(|_host| navigation.is_some()).cloned();
        if navigation.is_some() {
            Navigation::request_full_plain(request.headers_mut());
        }
        match self.upstream.request(request).await {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                self.fail_upstream(UpstreamFailure::InvalidResponse, &"unexpected 101 Switching Protocols")
            }
            Ok(mut response) => {
                if let Err(error) = headers::normalize_response(&mut response) {
                    return self.fail_upstream(UpstreamFailure::InvalidResponse, &error);
                }
                match navigation {
                    Some(navigation) => self.watch_page(navigation, host, response).await,
                    None => response.map(ResponseBody::from),
                }
            }
            Err(error) => {
                if let Some(broken) = causes(&error).find_map(|cause| cause.downcast_ref::<RequestBodyError>()) {
                    return self.active.reject(Rejection::of_body(broken));
                }
                let connect = error.source().and_then(|source| source.downcast_ref::<ConnectError>());
                if connect.is_some() {
                    self.upstream.state.learn(Learning::on_gone);
                }
                // The pool's own message has less detail than the cause.
                let cause = error.source().unwrap_or(&error);
                self.fail_upstream(
                    connect.map_or(UpstreamFailure::InvalidResponse, UpstreamFailure::from),
                    &Chain(cause),
                )
            }
        }
    }

    /// Adds the watchdog to a page.
    async fn watch_page(
        &self,
        navigation: Navigation,
        host: Option<HeaderValue>,
        response: Response<Incoming>,
    ) -> Response<ResponseBody> {
        let upstream = self.upstream;
        let Some(watchdog) = &upstream.watchdog else { return response.map(ResponseBody::from) };
        let host = host.as_ref().and_then(|host| host.to_str().ok());
        match page::add(&watchdog.script, navigation, host, response).await {
            Ok((response, result)) => {
                if let Some(result) = result {
                    upstream.metrics.watchdog_page(result);
                    watchdog.log(&upstream.name, result);
                }
                response
            }
            Err(error) => self.fail_upstream(UpstreamFailure::InvalidResponse, &Chain(&error)),
        }
    }

    fn fail_upstream(&self, failure: UpstreamFailure, error: &dyn fmt::Display) -> Response<ResponseBody> {
        let upstream = self.upstream;
        let (name, address) = (&upstream.name, &upstream.connector.address);
        let status = failure.status().as_u16();
        if let Some(failures) = upstream.failure_warning.on_event(Instant::now()) {
            let suppressed = failures - 1;
            tracing::warn!(upstream = %name, %address, status, suppressed, %error, "upstream failed");
        }
        failure.response()
    }
}

impl ActiveConfig {
    fn new(
        config: &Config,
        routes: Routes,
        handshakes: Option<Arc<Rate>>,
        rate_warning: Arc<LimitWarning>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (trusted_proxies, allowed_origins) = (config.trusted_proxies.clone(), config.allowed_origins.clone());
        let (scheme, limits) = (if config.tls.files().is_some() { "https" } else { "http" }, config.limits);
        Self { routes, scheme, limits, trusted_proxies, allowed_origins, handshakes, rate_warning, metrics }
    }

    /// Responds to a request that is not forwarded, or not completely; its connection is then closed.
    fn reject(&self, rejection: Rejection) -> Response<ResponseBody> {
        self.metrics.rejected(rejection.reason);
        tracing::debug!(status = rejection.status.as_u16(), reason = rejection.text.trim_end(), "request rejected");
        let mut response = plain_text(rejection.status, rejection.text);
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        if let Some(seconds) = rejection.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }

    /// Counts a handshake for its client. A trusted proxy is not a client; an unknown client is not limited.
    ///
    /// # Errors
    /// The client exceeds its rate; returns the time to wait.
    fn check_handshake_rate(&self, headers: &HeaderMap, peer: IpAddr) -> Result<(), Duration> {
        let Some(handshakes) = &self.handshakes else { return Ok(()) };
        let trusted = self.trusted_proxies.contains(peer);
        let client = if trusted { headers::client(headers, &self.trusted_proxies) } else { Some(peer) };
        client.map_or(Ok(()), |client| handshakes.take(Client::from(client), Instant::now()))
    }
}

/// Rewrites the target to origin form (RFC 9112 §3.2.1); the authority becomes `Host` if there is none.
fn to_origin_form(request: &mut Request<RequestBody>) {
    let target = std::mem::take(request.uri_mut()).into_parts();
    let authority = target.authority.map_or_else(|| "localhost".to_owned(), |authority| authority.to_string());
    if let Ok(host) = HeaderValue::try_from(authority) {
        request.headers_mut().entry(header::HOST).or_insert(host);
    }
    // A fragment right after the authority leaves an empty path, which would be sent as it is.
    let path = target.path_and_query.map(Uri::from).filter(|path| !path.path().is_empty());
    *request.uri_mut() = path.unwrap_or_default();
}
