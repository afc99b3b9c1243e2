//! The target of a probe: turns a page's URL into that of its message stream.

use std::fmt;

use http::Uri;

use crate::streamlit::handshake;

/// The message stream of an app. `Display` shows it without its query, which may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// `wss` instead of `ws`.
    pub(crate) tls: bool,
    /// A name or an IP address, without brackets for IPv6.
    pub(crate) host: String,
    /// Never 0.
    pub(crate) port: u16,
    path: String,
    query: Option<String>,
}

/// Why a text is not the URL of an app. Never repeats the text: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("not a URL: write http://HOST:PORT/ as in the address bar of a browser")]
    Unreadable,
    #[error("the URL has no scheme: write http://HOST:PORT/ or https://HOST/")]
    NoScheme,
    #[error("the URL must start with http://, https://, ws:// or wss://")]
    Scheme,
    #[error("the URL has a user name: write it without credentials")]
    Credentials,
    #[error("the URL has no host")]
    NoHost,
    #[error("the URL has no valid port: write 1 to 65535")]
    Port,
}

impl Target {
    /// Parses the URL of a page or of its stream, as given to a browser.
    ///
    /// # Errors
    /// The text is not such a URL.
    pub(crate) fn parse(text: &str) -> Result<Self, TargetError> {
        let uri: Uri = text.parse().map_err(|_| TargetError::Unreadable)?;
        let scheme = uri.scheme().ok_or(TargetError::NoScheme)?;
        let tls = match scheme.as_str().to_ascii_lowercase().as_str() {
            "https" | "wss" => true,
            "http" | "ws" => false,
            _ => return Err(TargetError::Scheme),
        };
        let authority = uri.authority().ok_or(TargetError::NoHost)?;
        if authority.as_str().contains('@') {
            return Err(TargetError::Credentials);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if host.is_empty() {
            return Err(TargetError::NoHost);
        }
        let port = match authority.port_u16() {
            Some(0) => return Err(TargetError::Port),
            Some(port) => port,
            None if authority.as_str().len() == authority.host().len() => default_port(tls),
            None => return Err(TargetError::Port),
        };
        let query = uri.query().filter(|query| !query.is_empty()).map(str::to_owned);
        Ok(Self { tls, host, port, path: stream_path(uri.path()), query })
    }

    /// The URL for the handshake, with its query and perhaps one more parameter.
    pub(crate) fn request(&self, parameter: Option<&str>) -> String {
        match (&self.query, parameter) {
            (Some(query), Some(parameter)) => format!("{self}?{query}&{parameter}"),
            (Some(query), None) => format!("{self}?{query}"),
            (None, Some(parameter)) => format!("{self}?{parameter}"),
            (None, None) => self.to_string(),
        }
    }

    /// The origin of this app's pages; the server compares it with `Host`.
    pub(crate) fn origin(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }

    /// As browsers write it: without the scheme's default port (RFC 6454 §6.2).
    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == default_port(self.tls) { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "wss" } else { "ws" }, self.authority(), self.path)
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

/// The stream below a base path; the path of a stream is kept.
fn stream_path(path: &str) -> String {
    if handshake::is_stream(path) { path.to_owned() } else { format!("{}/_stcore/stream", path.trim_end_matches('/')) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_url_becomes_its_stream_url_under_any_base_path() {
        for (page, stream, origin) in [
            ("http://127.0.0.1:8501/", "ws://127.0.0.1:8501/_stcore/stream", "http://127.0.0.1:8501"),
            ("http://app", "ws://app/_stcore/stream", "http://app"),
            ("HTTP://App.Example:80/", "ws://app.example/_stcore/stream", "http://app.example"),
            ("https://app:443/team/app", "wss://app/team/app/_stcore/stream", "https://app"),
            ("https://app:80/team/app/", "wss://app:80/team/app/_stcore/stream", "https://app:80"),
            ("ws://app/x/_stcore/stream", "ws://app/x/_stcore/stream", "http://app"),
            ("wss://app/stream", "wss://app/stream", "https://app"),
            ("http://[::1]:8501", "ws://[::1]:8501/_stcore/stream", "http://[::1]:8501"),
        ] {
            let target = Target::parse(page).expect(page);
            assert_eq!((target.to_string().as_str(), target.origin().as_str()), (stream, origin), "{page}");
            assert_eq!(target.request(None), stream);
            assert_eq!(target.request(Some("a=1")), format!("{stream}?a=1"));
        }
    }

    #[test]
    fn an_ipv6_host_has_no_brackets_for_the_socket() {
        let target = Target::parse("http://[2001:db8::1]:8501").expect("a URL");
        assert_eq!((target.host.as_str(), target.port, target.tls), ("2001:db8::1", 8501, false));
    }

    #[test]
    fn a_query_is_sent_and_never_shown() {
        let target = Target::parse("https://app/?token=secret#part").expect("a URL");
        assert_eq!(target.request(None), "wss://app/_stcore/stream?token=secret");
        assert_eq!(target.request(Some("a=1")), "wss://app/_stcore/stream?token=secret&a=1");
        assert_eq!(target.to_string(), "wss://app/_stcore/stream");
    }

    #[test]
    fn an_invalid_url_is_rejected_with_its_specific_error() {
        for (text, error) in [
            ("", TargetError::Unreadable),
            ("http://a b/", TargetError::Unreadable),
            ("http://", TargetError::Unreadable),
            ("http:///path", TargetError::Unreadable),
            ("app", TargetError::NoScheme),
            ("127.0.0.1:8501", TargetError::NoScheme),
            ("/path", TargetError::NoScheme),
            ("ftp://app/", TargetError::Scheme),
            ("unix://run/app.sock", TargetError::Scheme),
            ("http://me:secret@app/", TargetError::Credentials),
            ("http://:8501/", TargetError::NoHost),
            ("http://app:0/", TargetError::Port),
            ("http://app:/", TargetError::Port),
            ("http://app:99999/", TargetError::Port),
        ] {
            assert_eq!(Target::parse(text), Err(error), "{text:?}");
        }
    }
}
