//! What holds for the two connections of a session, beside its heartbeats.

use std::time::Duration;

use crate::heartbeat::pings::PingSettings;
use crate::relay::Timeouts;

/// From one ping to the browser to the next where it is shielded from the app's, and no other time is asked for: as often
/// as Streamlit itself pings from 1.47.0 on.
const SHIELDED_INTERVAL: Duration = Duration::from_secs(30);

/// The settings of `[session]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSettings {
    /// When a browser reconnects while its old connection is open, that is closed first, so that the app resumes the
    /// session.
    pub takeover: bool,
    /// How long the peers are waited for.
    pub timeouts: Timeouts,
    /// From one ping to the browser to the next; `None` where nobody asks for them.
    pub browser_ping_interval: Option<Duration>,
    /// The app's pings are answered here rather than by the browser.
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
    /// The pings of a session; `None` where all of them pass. Whoever is shielded from the app's gets ours, so that a
    /// browser that is gone does not stay.
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
    fn a_shielded_browser_is_pinged_by_us() {
        let default = SessionSettings::default();
        assert_eq!(default.pings(), None);
        let shield = SessionSettings { shield_pings: true, ..default };
        assert_eq!(shield.pings(), Some(PingSettings { interval: SHIELDED_INTERVAL, shield: true }));
        let interval = Duration::from_secs(10);
        let both = SessionSettings { browser_ping_interval: Some(interval), ..shield };
        assert_eq!(both.pings(), Some(PingSettings { interval, shield: true }));
    }
}
