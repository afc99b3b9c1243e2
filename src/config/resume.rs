//! The settings of resumable sessions.

use std::time::Duration;

/// The settings of `[resume]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumeSettings {
    /// A page with the watchdog keeps its session when its connection is lost.
    pub enabled: bool,
    /// How long a session waits for its page.
    pub window: Duration,
    /// Bytes of unconfirmed messages that each end of a session keeps.
    pub buffer_bytes: usize,
    /// Sessions of an app that wait at the same time.
    pub parked: usize,
    /// Bytes that the app may send while its session waits.
    pub parked_bytes: u64,
    /// How old an input may be when it is sent again.
    pub max_age: Duration,
}

impl Default for ResumeSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            window: Duration::from_secs(300),
            buffer_bytes: 1024 * 1024,
            parked: 1000,
            parked_bytes: 16 * 1024 * 1024,
            max_age: Duration::from_secs(60),
        }
    }
}
