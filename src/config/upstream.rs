//! The app server's address: an HTTP or HTTPS origin, or a Unix socket.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use super::values::InvalidValue;

/// The longest path, in bytes, that fits a socket address with its terminating zero (unix(7), `sun_path`).
const MAX_SOCKET_PATH: usize = 107;

/// The address of an app server. `Display` gives a text that parses to the same address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamAddress {
    /// `http://host:port`.
    Http {
        /// A name or an IP address, without brackets for IPv6.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// `https://host:port`.
    Https {
        /// A name or an IP address, without brackets for IPv6.
        host: String,
        /// Never 0.
        port: u16,
    },
    /// `unix:/path`, always absolute.
    Unix(PathBuf),
}

impl UpstreamAddress {
    /// Whether the address itself shows that the server is on this machine.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Http { host, .. } | Self::Https { host, .. } => {
                let ip = host.parse::<IpAddr>();
                ip.map_or_else(|_name| host.eq_ignore_ascii_case("localhost"), |ip| connected(ip).is_loopback())
            }
            Self::Unix(_) => true,
        }
    }

    /// Whether it uses TLS.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Https { .. })
    }

    /// Whether a connection to this address would arrive at `bound`, a socket of this machine. Names other than
    /// `localhost` are not looked up.
    pub(super) fn leads_to(&self, bound: SocketAddr) -> bool {
        let (Self::Http { host, port } | Self::Https { host, port }) = self else { return false };
        if *port != bound.port() {
            return false;
        }
        let listener = bound.ip().to_canonical();
        match host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            Ok(ip) => {
                let target = connected(ip);
                target == listener || target.is_loopback() && overlap(listener, target)
            }
            Err(_) => host.eq_ignore_ascii_case("localhost") && (listener.is_loopback() || listener.is_unspecified()),
        }
    }
}

/// Where a connection to `ip` arrives: the unspecified address means this machine.
fn connected(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        specific => specific,
    }
}

/// Whether one connection could arrive at listeners on both addresses. `::` takes IPv4 connections as well (ipv6(7)).
pub(super) fn overlap(one: IpAddr, other: IpAddr) -> bool {
    let covers = |wide: IpAddr, ip: IpAddr| wide.is_unspecified() && (wide.is_ipv6() || ip.is_ipv4());
    one == other || covers(one, other) || covers(other, one)
}

impl FromStr for UpstreamAddress {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(text, path);
        }
        match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
                authority(text, rest, 80).map(|(host, port)| Self::Http { host, port })
            }
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => {
                authority(text, rest, 443).map(|(host, port)| Self::Https { host, port })
            }
            Some(_) => Err(InvalidValue(format!(
                "{text:?} has an unknown scheme: write http://HOST:PORT, https://HOST:PORT or unix:/PATH"
            ))),
            None if authority(text, text, 80).is_ok() => {
                Err(InvalidValue(format!("{text:?} has no scheme: write \"http://{text}\"")))
            }
            None => Err(InvalidValue(format!("{text:?} is not an upstream: write http://HOST:PORT or unix:/PATH"))),
        }
    }
}

/// The path of `unix:/path`; `unix:///path` is the same in the form of a URL.
fn unix(text: &str, path: &str) -> Result<UpstreamAddress, InvalidValue> {
    let path = path.strip_prefix("//").unwrap_or(path);
    let below = path.trim_start_matches('/');
    if !path.starts_with('/') || below.is_empty() {
        return Err(InvalidValue(format!("{text:?} has no absolute path: write unix:/PATH")));
    }
    if below.len() + 1 > MAX_SOCKET_PATH {
        return Err(InvalidValue(format!("{text:?}: the path of a socket has at most {MAX_SOCKET_PATH} bytes")));
    }
    Ok(UpstreamAddress::Unix(format!("/{below}").into()))
}

/// The authority of a URL (RFC 3986 §3.2), of which only host and port are allowed.
fn authority(text: &str, rest: &str, default_port: u16) -> Result<(String, u16), InvalidValue> {
    let refuse = |what: &str| Err(InvalidValue(format!("{text:?} {what}")));
    // A lone slash equals an empty path (RFC 3986 §6.2.3).
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains('#') {
        return refuse("has a fragment: write http://HOST:PORT");
    }
    if authority.contains('?') {
        return refuse("has a query: write http://HOST:PORT");
    }
    if authority.contains('/') {
        return refuse("has a path: write http://HOST:PORT; the paths of requests pass through untouched");
    }
    if authority.contains('@') {
        return refuse("has a user name: write http://HOST:PORT");
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => (host, port),
        Some(_) => return refuse("has an invalid IPv6 address in its brackets: write http://[::1]:PORT"),
        None if authority.parse::<Ipv6Addr>().is_ok() => {
            return refuse("has an IPv6 address without brackets: write http://[::1]:PORT");
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if host.is_empty() || !host.bytes().all(named) {
        return refuse("has no valid host: write http://HOST:PORT");
    }
    match port.strip_prefix(':').map(|port| (port.bytes().all(|byte| byte.is_ascii_digit()), port.parse())) {
        None if port.is_empty() => Ok((host.to_owned(), default_port)),
        Some((true, Ok(port))) if port > 0 => Ok((host.to_owned(), port)),
        _ => refuse("has no valid port: write 1 to 65535"),
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Http { host, port } => write!(f, "http://{host}:{port}"),
            Self::Https { host, port } if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Https { host, port } => write!(f, "https://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        text.parse::<UpstreamAddress>().expect_err(text).to_string()
    }

    #[test]
    fn an_address_is_shown_in_one_form() {
        for (written, shown) in [
            ("http://127.0.0.1:8501", "http://127.0.0.1:8501"),
            ("HTTP://app.default.svc/", "http://app.default.svc:80"),
            ("http://[::1]:8501", "http://[::1]:8501"),
            ("http://[::1]", "http://[::1]:80"),
            ("HTTPS://app.default.svc", "https://app.default.svc:443"),
            ("https://[::1]:8501/", "https://[::1]:8501"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
            ("unix:///run/app.sock", "unix:/run/app.sock"),
            ("unix://///run/app.sock", "unix:/run/app.sock"),
        ] {
            let address: UpstreamAddress = written.parse().expect(written);
            assert_eq!(address.to_string(), shown, "{written}");
            assert_eq!(shown.parse(), Ok(address), "{written}");
        }
    }

    #[test]
    fn an_invalid_address_is_rejected_with_its_specific_reason() {
        for (written, reason) in [
            ("127.0.0.1:8501", r#"has no scheme: write "http://127.0.0.1:8501""#),
            ("", "is not an upstream: write http://HOST:PORT or unix:/PATH"),
            ("a b", "is not an upstream: write http://HOST:PORT or unix:/PATH"),
            ("http://app/base", "has a path: write http://HOST:PORT; the paths of requests pass through untouched"),
            ("http://app:8501?x", "has a query: write http://HOST:PORT"),
            ("http://app:8501#x", "has a fragment: write http://HOST:PORT"),
            ("http://me:secret@app", "has a user name: write http://HOST:PORT"),
            ("http://", "has no valid host: write http://HOST:PORT"),
            ("http://:80", "has no valid host: write http://HOST:PORT"),
            ("http://a b", "has no valid host: write http://HOST:PORT"),
            ("http://app:", "has no valid port: write 1 to 65535"),
            ("http://app:0", "has no valid port: write 1 to 65535"),
            ("http://app:+80", "has no valid port: write 1 to 65535"),
            ("http://app:65536", "has no valid port: write 1 to 65535"),
            ("http://[::1]8501", "has no valid port: write 1 to 65535"),
            ("http://::1", "has an IPv6 address without brackets: write http://[::1]:PORT"),
            ("http://[app]:80", "has an invalid IPv6 address in its brackets: write http://[::1]:PORT"),
            ("unix:app.sock", "has no absolute path: write unix:/PATH"),
            ("unix:/", "has no absolute path: write unix:/PATH"),
        ] {
            assert_eq!(refusal(written), format!("{written:?} {reason}"));
        }
        assert_eq!(
            refusal("ws://app:8501"),
            r#""ws://app:8501" has an unknown scheme: write http://HOST:PORT, https://HOST:PORT or unix:/PATH"#
        );
        let long = format!("unix:/{}", "x".repeat(MAX_SOCKET_PATH));
        assert_eq!(refusal(&long), format!("{long:?}: the path of a socket has at most 107 bytes"));
    }

    #[test]
    fn an_upstream_that_leads_back_to_the_sidecar_is_detected() {
        for (upstream, bound, leads) in [
            ("http://127.0.0.1:8500", "127.0.0.1:8500", true),
            ("http://127.0.0.1:8500", "0.0.0.0:8500", true),
            ("http://127.0.0.1:8500", "[::]:8500", true),
            ("https://127.0.0.1:8500", "[::]:8500", true),
            ("http://localhost:8500", "0.0.0.0:8500", true),
            ("http://0.0.0.0:8500", "127.0.0.1:8500", true),
            ("http://10.0.0.5:8500", "10.0.0.5:8500", true),
            ("http://10.0.0.5:8500", "0.0.0.0:8500", false),
            ("http://127.0.0.1:8500", "127.0.0.2:8500", false),
            ("http://[::1]:8500", "0.0.0.0:8500", false),
            ("http://127.0.0.1:8501", "0.0.0.0:8500", false),
            ("http://app:8500", "0.0.0.0:8500", false),
            ("unix:/run/app.sock", "0.0.0.0:8500", false),
        ] {
            let address: UpstreamAddress = upstream.parse().expect(upstream);
            assert_eq!(address.leads_to(bound.parse().expect(bound)), leads, "{upstream} at {bound}");
        }
    }
}
