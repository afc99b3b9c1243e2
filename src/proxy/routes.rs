//! Finds the app for a request.

use std::sync::Arc;

use http::Request;
use http::header::{self, HeaderMap, HeaderValue};

use super::upstream::Upstream;
use crate::config::Route;

/// Routes and their upstreams, most specific first.
pub struct Routes(Vec<(Route, Arc<Upstream>)>);

impl Routes {
    /// `routes` may be in any order.
    pub fn new(mut routes: Vec<(Route, Arc<Upstream>)>) -> Self {
        routes.sort_by_key(|(route, _upstream)| std::cmp::Reverse(route.rank()));
        Self(routes)
    }

    /// The app for a request, by its `Host` and its path; `None` if no route matches.
    pub(super) fn find<B>(&self, request: &Request<B>) -> Option<&Arc<Upstream>> {
        let (host, path) = (host(request.headers()), request.uri().path());
        self.0.iter().find(|(route, _upstream)| route.matches(host, path)).map(|(_route, upstream)| upstream)
    }
}

/// The host that a request names, without its port; empty if it names none.
fn host(headers: &HeaderMap) -> &str {
    let host = headers.get(header::HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    let host = std::str::from_utf8(host).unwrap_or_default();
    // A port is digits after the last colon. An address in brackets ends with a bracket.
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_removed_from_the_host() {
        for (value, expected) in
            [("a.b:80", "a.b"), ("a.b", "a.b"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a:", "a"), ("", "")]
        {
            let headers = [(header::HOST, HeaderValue::from_static(value))].into_iter().collect();
            assert_eq!(host(&headers), expected, "{value}");
        }
        assert_eq!(host(&HeaderMap::new()), "");
    }
}
