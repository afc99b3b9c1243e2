//! Reads Streamlit's version numbers.

/// The first version whose server answers a heartbeat.
const FIRST_NATIVE: (u32, u32) = (1, 55);

/// Whether a server of this version answers heartbeats itself; `None` if it is no version number.
///
/// Only major and minor count: a nightly such as `1.54.1.dev20260101` is judged by the release it precedes.
pub fn answers_heartbeats(version: &str) -> Option<bool> {
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((major, minor) >= FIRST_NATIVE)
}
