//! Parses Streamlit's version numbers.

/// The first version whose server acks heartbeats: major, minor.
const FIRST_NATIVE_VERSION: (u32, u32) = (1, 55);

/// Whether a server of this version answers heartbeats itself; `None` if it is not a version number.
///
/// Only major and minor count: a nightly such as `1.54.1.dev20260101` counts as the release it precedes.
pub fn answers_heartbeats(version: &str) -> Option<bool> {
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((major, minor) >= FIRST_NATIVE_VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_answer_from_1_55_on() {
        for version in ["0.89.0", "1.12.0", "1.54.0", "1.54.1.dev20260101", "1.9.0"] {
            assert_eq!(answers_heartbeats(version), Some(false), "{version}");
        }
        for version in ["1.55.0", "1.55.0rc1", "1.67.0", "1.100.0", "2.0.0", "1.55.dev1"] {
            assert_eq!(answers_heartbeats(version), Some(true), "{version}");
        }
        for text in ["", "1", "one.two", "1.x", "..", "1.99999999999"] {
            assert_eq!(answers_heartbeats(text), None, "{text:?}");
        }
    }
}
