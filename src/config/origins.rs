//! Origins whose pages may open websockets.

use std::fmt;
use std::str::FromStr;

use super::values::InvalidValue;

/// The origins (RFC 6454 §6.2) that a websocket's `Origin` may name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedOrigins {
    /// In lower case; empty if all may, and the app decides.
    origins: Vec<String>,
}

impl AllowedOrigins {
    /// Whether a page of this origin may open a websocket. Without one, the client is not a browser (RFC 6455 §10.2)
    /// and cannot be stopped.
    pub fn allow(&self, origin: Option<&[u8]>) -> bool {
        let Some(origin) = origin else { return true };
        self.origins.is_empty() || self.origins.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin))
    }
}

impl FromStr for AllowedOrigins {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if text.trim() == "any" {
            return Ok(Self::default());
        }
        let origin = |word: &str| {
            let word = word.trim().to_ascii_lowercase();
            let host = word.strip_prefix("https://").or_else(|| word.strip_prefix("http://"))?;
            let valid = host.parse::<http::uri::Authority>().is_ok_and(|authority| authority.as_str() == host);
            (valid && !host.contains('@')).then_some(word)
        };
        let read = |word| {
            origin(word).ok_or_else(|| {
                InvalidValue(format!(
                    "{word:?} is not an origin: write https://HOST or https://HOST:PORT, with commas between, or any"
                ))
            })
        };
        Ok(Self { origins: text.split(',').map(read).collect::<Result<_, _>>()? })
    }
}

impl fmt::Display for AllowedOrigins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origins.is_empty() { f.write_str("any") } else { f.write_str(&self.origins.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_origins_and_clients_without_one_are_allowed() {
        let allowed: AllowedOrigins = "https://a.example, HTTP://b.example:8080".parse().expect("origins");
        assert_eq!(allowed.to_string(), "https://a.example, http://b.example:8080");
        for origin in [None, Some(&b"https://a.example"[..]), Some(b"http://B.example:8080")] {
            assert!(allowed.allow(origin));
        }
        for origin in ["http://a.example", "https://a.example:8443", "https://a.example.evil", "null", ""] {
            assert!(!allowed.allow(Some(origin.as_bytes())), "{origin}");
        }
        assert!(AllowedOrigins::default().allow(Some(b"null")));
    }

    #[test]
    fn invalid_origins_are_rejected() {
        for text in
            ["", "a.example", "https://", "https://a/b", "https://u@a", "https://a,,https://b", "any, https://a"]
        {
            assert!(text.parse::<AllowedOrigins>().is_err(), "{text}");
        }
    }
}
