//! Identifies the user of a websocket handshake by the headers that name one.
//!
//! Invariant: only a keyed hash is kept, and its key never leaves the process.

use std::fmt;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};
use std::sync::LazyLock;

use http::header::{self, HeaderMap, HeaderName};

/// What cookies of a Streamlit user start with: `st.login` (1.42) signs them, and splits large ones.
const USER_COOKIE: &[u8] = b"_streamlit_user";

/// Headers that name the user, or where the page comes from. They are equal in all handshakes of one page. A token that
/// an authenticating proxy renews differs, such as `X-Amzn-Oidc-Data` or `Cf-Access-Jwt-Assertion`.
static HEADERS: [HeaderName; 23] = [
    header::ORIGIN,
    // A browser repeats Basic credentials. A renewed bearer token makes another identity, which is the safe mistake.
    header::AUTHORIZATION,
    // The scheme that the browser uses.
    HeaderName::from_static("x-forwarded-proto"),
    // Streamlit's own platforms.
    HeaderName::from_static("x-streamlit-user"),
    // OAuth2 Proxy, and Databricks Apps.
    HeaderName::from_static("x-forwarded-user"),
    HeaderName::from_static("x-forwarded-email"),
    HeaderName::from_static("x-forwarded-preferred-username"),
    // OAuth2 Proxy behind nginx's `auth_request`, under its own names and those of its manual.
    HeaderName::from_static("x-auth-request-user"),
    HeaderName::from_static("x-auth-request-email"),
    HeaderName::from_static("x-user"),
    HeaderName::from_static("x-email"),
    // Authelia, Apache, Caddy.
    HeaderName::from_static("remote-user"),
    HeaderName::from_static("x-remote-user"),
    HeaderName::from_static("x-webauth-user"),
    HeaderName::from_static("x-authentik-username"),
    HeaderName::from_static("x-pomerium-claim-email"),
    // Google's Identity-Aware Proxy.
    HeaderName::from_static("x-goog-authenticated-user-id"),
    HeaderName::from_static("x-goog-authenticated-user-email"),
    // Azure App Service and Container Apps.
    HeaderName::from_static("x-ms-client-principal-id"),
    HeaderName::from_static("x-ms-client-principal-name"),
    // AWS Application Load Balancer.
    HeaderName::from_static("x-amzn-oidc-identity"),
    HeaderName::from_static("cf-access-authenticated-user-email"),
    HeaderName::from_static("tailscale-user-login"),
];

static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The user of a handshake. Equal for all handshakes of one page, whatever its address, port or connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity(u64);

impl Identity {
    /// Who sends a handshake to `app`; `headers` are those that the app receives.
    pub fn of(app: &str, headers: &HeaderMap) -> Self {
        let mut hasher = KEY.build_hasher();
        app.hash(&mut hasher);
        for name in &HEADERS {
            for value in headers.get_all(name) {
                // With its length, so that no two lists of values are hashed from the same bytes.
                value.as_bytes().hash(&mut hasher);
            }
            hasher.write_usize(usize::MAX);
        }
        let lines = headers.get_all(header::COOKIE).iter().map(|line| line.as_bytes());
        let cookies = lines.flat_map(|line| line.split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
        let mut cookies: Vec<&[u8]> = cookies.filter(|cookie| cookie.starts_with(USER_COOKIE)).collect();
        // Browsers send cookies of one path in the order of their creation (RFC 6265 §5.4), which a login changes.
        cookies.sort_unstable();
        cookies.hash(&mut hasher);
        Self(hasher.finish())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Identity(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(app: &str, lines: &[(&'static str, &'static str)]) -> Identity {
        let line = |&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        Identity::of(app, &lines.iter().map(line).collect())
    }

    const PAGE: [(&str, &str); 3] = [
        ("origin", "https://app.example"),
        ("authorization", "Basic dXNlcjpwYXNz"),
        ("cookie", "_streamlit_user=2|a; _streamlit_user_tokens=t; _streamlit_xsrf=1"),
    ];

    #[test]
    fn each_header_that_names_the_user_makes_another_identity() {
        let mut seen = vec![of("app", &[])];
        let mut differs = |identity| {
            assert!(!seen.contains(&identity));
            seen.push(identity);
        };
        for name in &HEADERS {
            let name: &'static str = name.as_str().to_owned().leak();
            differs(of("app", &[(name, "a")]));
            differs(of("app", &[(name, "b")]));
            differs(of("app", &[(name, "")]));
        }
        differs(of("app", &[("x-user", "a"), ("x-user", "b")]));
        differs(of("app", &[("x-user", "b"), ("x-user", "a")]));
        differs(of("app", &[("x-user", "a"), ("x-email", "b")]));
        differs(of("app", &[("cookie", "_streamlit_user=a")]));
        differs(of("app", &[("cookie", "_streamlit_user=b")]));
        differs(of("app", &[("cookie", "_streamlit_user=a; _streamlit_user__1=b")]));
        differs(of("other", &[]));
    }

    #[test]
    fn other_cookies_their_order_and_the_address_do_not_matter() {
        let page = of("app", &PAGE);
        let [origin, authorization, _cookie] = PAGE;
        for cookies in [
            &["_streamlit_user_tokens=t;_streamlit_user=2|a"][..],
            &["ajs_id=9; _streamlit_user=2|a; _streamlit_xsrf=2;  _streamlit_user_tokens=t "],
            &["_streamlit_user_tokens=t", "a=_streamlit_user=0", "_streamlit_user=2|a"],
        ] {
            let mut lines = vec![
                ("x-forwarded-for", "192.0.2.1"),
                ("user-agent", "other"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                authorization,
                ("x-amzn-oidc-data", "renewed"),
                ("cf-access-jwt-assertion", "renewed"),
                origin,
            ];
            lines.extend(cookies.iter().map(|line| ("cookie", *line)));
            assert_eq!(of("app", &lines), page, "{cookies:?}");
        }
    }

    #[test]
    fn an_identity_is_hidden_in_debug_output() {
        assert_eq!(format!("{:?}", of("app", &PAGE)), "Identity(hidden)");
    }
}
