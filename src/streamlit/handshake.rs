//! Parses a websocket handshake with a Streamlit server: its path, its subprotocol, and the session that it resumes.

use std::fmt;

/// The subprotocol of Streamlit's messages. Frontends from 1.14 on offer it first, and the server selects it. Older
/// ones offer none, and send no heartbeats.
pub const SUBPROTOCOL: &str = "streamlit";

/// Whether a request path is an app's message stream under any base path: `/_stcore/stream`, or `/stream` in 1.17.
pub fn is_stream(path: &str) -> bool {
    path.ends_with("/stream")
}

/// A Streamlit session's id. A secret that is never shown: it is enough to resume the session.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(u128);

impl SessionId {
    /// Reads the 36 characters of a UUID (RFC 9562 §4); `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let dashes = text.bytes().enumerate().all(|(at, byte)| (byte == b'-') == matches!(at, 8 | 13 | 18 | 23));
        let digits = text.bytes().filter(u8::is_ascii_hexdigit).count();
        if text.len() != 36 || !dashes || digits != 32 {
            return None;
        }
        u128::from_str_radix(&text.replace('-', ""), 16).ok().map(Self)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SessionId(secret)")
    }
}

/// Whether a handshake offers Streamlit's subprotocol, given its `Sec-WebSocket-Protocol` lines.
pub fn offers_streamlit<'a>(lines: impl IntoIterator<Item = &'a str>) -> bool {
    subprotocols(lines).any(|entry| entry == SUBPROTOCOL)
}

/// Whether the response selects Streamlit's subprotocol and nothing else (RFC 6455 §4.2.2).
pub fn selects_streamlit<'a>(lines: impl IntoIterator<Item = &'a str>) -> bool {
    subprotocols(lines).eq([SUBPROTOCOL])
}

/// The subprotocols of a handshake or its response, given its `Sec-WebSocket-Protocol` lines.
pub fn subprotocols<'a>(lines: impl IntoIterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    lines.into_iter().flat_map(|line| line.split(',')).map(str::trim)
}

/// The id of the session that a handshake resumes: the subprotocol that is a UUID.
///
/// The entry is the third from Streamlit 1.29 on and the second in 1.18 to 1.28.
pub fn resumed_session<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<SessionId> {
    subprotocols(lines).find_map(SessionId::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "7a4fd3b1-25b0-4f38-9d05-0a55b18df5c2";

    #[test]
    fn the_stream_is_found_under_any_base_path() {
        for path in ["/_stcore/stream", "/stream", "/team/app/_stcore/stream"] {
            assert!(is_stream(path), "{path}");
        }
        for path in ["/", "/_stcore/health", "/_stcore/stream/", "/upstream", "/_stcore/streams"] {
            assert!(!is_stream(path), "{path}");
        }
    }

    #[test]
    fn subprotocol_must_be_offered_and_be_the_only_one_selected() {
        for lines in [&["streamlit"][..], &["streamlit, 2|ab|cd|17", ID], &["other", "xsrf , streamlit"]] {
            assert!(offers_streamlit(lines.iter().copied()), "{lines:?}");
        }
        for lines in [&[][..], &[""], &["Streamlit"], &["streamlit2, graphql-ws"], &[ID]] {
            assert!(!offers_streamlit(lines.iter().copied()), "{lines:?}");
        }
        assert!(selects_streamlit(["streamlit"]) && selects_streamlit([" streamlit "]));
        for lines in [&[][..], &[""], &["graphql-ws"], &["streamlit, xsrf"], &["streamlit", "streamlit"]] {
            assert!(!selects_streamlit(lines.iter().copied()), "{lines:?}");
        }
    }

    #[test]
    fn resumed_session_is_the_uuid_entry_at_any_position() {
        let id = SessionId::parse(ID);
        assert!(id.is_some());
        assert_eq!(resumed_session([format!("streamlit, 2|ab|cd|17, {ID}").as_str()]), id);
        assert_eq!(resumed_session([format!("streamlit,{ID}").as_str()]), id);
        assert_eq!(resumed_session(["streamlit", "PLACEHOLDER_AUTH_TOKEN", ID]), id);
        assert_eq!(SessionId::parse(&ID.to_uppercase()), id);
        assert_eq!(resumed_session(["streamlit, 2|ab|cd|17"]), None);
        assert_eq!(resumed_session([&ID[1..]]), None);
        assert_eq!(resumed_session([ID.replace('-', "_").as_str()]), None);
        assert_eq!(resumed_session([ID.replace('7', "+").as_str()]), None);
        assert_eq!(resumed_session([]), None);
    }

    #[test]
    fn session_id_is_hidden_in_debug_output() {
        let shown = format!("{:?}", SessionId::parse(ID));
        assert_eq!(shown, "Some(SessionId(secret))");
    }
}
