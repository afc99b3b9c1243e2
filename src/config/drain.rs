//! The drain settings.

use std::time::Duration;

/// The phases of a drain, from the stop request on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainSettings {
    /// Time in which everything is still served, so that load balancers notice that the sidecar is not ready.
    pub delay: Duration,
    /// After the delay, each websocket is closed at a random moment within this time.
    pub window: Duration,
    /// Limit of the whole drain, including the delay; remaining connections are then aborted.
    pub timeout: Duration,
    /// Close code of the websockets.
    pub close_code: DrainCode,
}

/// Close code of a drain (RFC 6455 §7.4.1, and IANA's registry for 1012).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrainCode {
    /// 1001.
    #[default]
    GoingAway,
    /// 1012.
    ServiceRestart,
}

impl Default for DrainSettings {
    fn default() -> Self {
        // No delay: it helps only behind a load balancer, and slows every other stop.
        let (window, timeout) = (Duration::from_secs(2), Duration::from_secs(10));
        Self { delay: Duration::ZERO, window, timeout, close_code: DrainCode::default() }
    }
}

impl DrainCode {
    /// The code as sent.
    pub fn number(self) -> u16 {
        match self {
            Self::GoingAway => 1001,
            Self::ServiceRestart => 1012,
        }
    }
}
