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
