//! What a websocket handshake with a Streamlit server says: its path, and the session that it resumes.

/// Whether a request path leads to an app's message stream, under any base path (1.17: `/stream`).
pub fn is_stream(path: &str) -> bool {
    path.ends_with("/_stcore/stream") || path.ends_with("/stream")
}

/// The id of the session that a handshake wants to resume: the subprotocol that is a UUID.
///
/// The entry is the third from Streamlit 1.29 on and the second in 1.18 to 1.28. It is a secret.
pub fn resumed_session<'a>(protocols: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    protocols.into_iter().flat_map(|line| line.split(',')).map(str::trim).find(|entry| is_uuid(entry))
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
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
    fn the_session_is_the_entry_that_is_a_uuid_wherever_it_stands() {
        assert_eq!(resumed_session([format!("streamlit, 2|ab|cd|17, {ID}").as_str()]), Some(ID));
        assert_eq!(resumed_session([format!("streamlit,{ID}").as_str()]), Some(ID));
        assert_eq!(resumed_session(["streamlit", "PLACEHOLDER_AUTH_TOKEN", ID]), Some(ID));
        assert_eq!(resumed_session(["streamlit, 2|ab|cd|17"]), None);
        assert_eq!(resumed_session([&ID[1..]]), None);
        assert_eq!(resumed_session([ID.replace('-', "_").as_str()]), None);
        assert_eq!(resumed_session([]), None);
    }
}
