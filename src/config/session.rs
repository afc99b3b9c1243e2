//! The settings of a session's two connections, except its heartbeats.

use std::time::Duration;

use crate::heartbeat::pings::PingSettings;
use crate::relay::Timeouts;

/// Default interval of pings to a browser that is shielded from the app's pings. Streamlit itself pings this often from
/// 1.47.0 on.
const SHIELDED_INTERVAL: Duration = Duration::from_secs(30);

/// The settings of `[session]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSettings {
    /// A reconnect first closes the session's open old connection, so that the app resumes the session.
    pub takeover: bool,
    /// Timeouts of the peers.
    pub timeouts: Timeouts,
    /// Interval of pings to the browser; `None` if not configured.
    pub browser_ping_interval: Option<Duration>,
    /// The sidecar answers the app's pings instead of the browser.
    pub shield_pings: bool,
}

impl Default for SessionSettings {
    fn default() -> Self {
        let timeouts = Timeouts {
            dead_peer: Duration::from_secs(30),
            write_stall: Duration::from_secs(120),
            takeover: Duration::from_millis(500),
        };
        Self { takeover: true, timeouts, browser_ping_interval: None, shield_pings: false }
    }
}

impl SessionSettings {
    /// The pings of a session; `None` if all of them pass through. A shielded browser gets the sidecar's pings, so that
    /// a dead one is detected.
    pub fn pings(&self) -> Option<PingSettings> {
        let shielded = self.shield_pings.then_some(SHIELDED_INTERVAL);
        let interval = self.browser_ping_interval.or(shielded)?;
        Some(PingSettings { interval, shield: self.shield_pings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shielded_browser_is_pinged_by_the_sidecar() {
        let default = SessionSettings::default();
        assert_eq!(default.pings(), None);
        let shield = SessionSettings { shield_pings: true, ..default };
        assert_eq!(shield.pings(), Some(PingSettings { interval: SHIELDED_INTERVAL, shield: true }));
        let interval = Duration::from_secs(10);
        let both = SessionSettings { browser_ping_interval: Some(interval), ..shield };
        assert_eq!(both.pings(), Some(PingSettings { interval, shield: true }));
    }
}
