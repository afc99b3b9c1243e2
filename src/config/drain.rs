//! How a drain goes, as configured.

use std::time::Duration;

/// How the end goes, from the moment when a stop is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainSettings {
    /// How long everything is still served, so that load balancers notice that the sidecar is not ready.
    pub delay: Duration,
    /// Behind the delay: each websocket is closed at a random moment within so long.
    pub window: Duration,
    /// Of all of it, the delay included; what is left then is cut.
    pub timeout: Duration,
    /// What websockets are closed with.
    pub close_code: DrainCode,
}

/// What a drain closes websockets with (RFC 6455 §7.4.1, and IANA's registry for 1012).
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
        // No delay: it helps only behind a load balancer, and everybody else would wait for it.
        let (window, timeout) = (Duration::from_secs(2), Duration::from_secs(10));
        Self { delay: Duration::ZERO, window, timeout, close_code: DrainCode::default() }
    }
}

impl DrainCode {
    /// As the wire has it.
    pub fn number(self) -> u16 {
        match self {
            Self::GoingAway => 1001,
            Self::ServiceRestart => 1012,
        }
    }
}
