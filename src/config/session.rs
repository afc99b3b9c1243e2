//! The settings of a session's two connections, except its heartbeats.

use std::time::Duration;

use crate::heartbeat::pings::PingSettings;

/// Default interval of pings to a browser that is shielded from the app's pings. Streamlit itself pings this often from
/// 1.47.0 on.
const SHIELDED_INTERVAL: Duration = Duration::from_secs(30);

/// The settings of `[session]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSettings {
    /// A reconnect first closes the session's open old connection, so that the app resumes the session.
    pub takeover: bool,
    /// How long the app may take to close that old connection.
    pub takeover_timeout: Duration,
    /// How long a peer's kernel may acknowledge nothing of what was sent.
    pub dead_peer_timeout: Duration,
    /// How long a client may read nothing of what waits for it.
    pub write_stall_timeout: Duration,
    /// Interval of pings to the browser; `None` if not configured.
    pub browser_ping_interval: Option<Duration>,
    /// The sidecar answers the app's pings instead of the browser.
    pub shield_pings: bool,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self {
            takeover: true,
            takeover_timeout: Duration::from_millis(500),
            dead_peer_timeout: Duration::from_secs(30),
            write_stall_timeout: Duration::from_secs(120),
            browser_ping_interval: None,
            shield_pings: false,
        }
    }
}

impl SessionSettings {
    /// The pings of a session; `None` if all of them pass through. A shielded browser gets the sidecar's pings, so that
    /// a dead one is detected. The page of a `resumable` session is shielded too, and sends messages of its own.
    pub fn pings(&self, resumable: bool) -> Option<PingSettings> {
        let shielded = self.shield_pings.then_some(SHIELDED_INTERVAL);
        let interval = self.browser_ping_interval.or(shielded);
        let shield = self.shield_pings || resumable;
        (shield || interval.is_some()).then_some(PingSettings { interval, shield })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shielded_browser_is_pinged_by_the_sidecar() {
        let default = SessionSettings::default();
        assert_eq!(default.pings(false), None);
        assert_eq!(default.pings(true), Some(PingSettings { interval: None, shield: true }));
        let shield = SessionSettings { shield_pings: true, ..default };
        assert_eq!(shield.pings(false), Some(PingSettings { interval: Some(SHIELDED_INTERVAL), shield: true }));
        let interval = Duration::from_secs(10);
        let both = SessionSettings { browser_ping_interval: Some(interval), ..shield };
        assert_eq!(both.pings(false), Some(PingSettings { interval: Some(interval), shield: true }));
    }
}
