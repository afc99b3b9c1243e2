//! Sessions with heartbeats: an app of a known version that the test drives ping by ping.

use std::time::Duration;

use heartbeat_sidecar::config::Config;

use super::frame::{Frame, PING, PONG, TEXT, new_session, plain};
use super::{App, Session, Sidecar, Wire};

/// A version that does not ack.
pub(crate) const SILENT: &str = "1.53.1";
/// A version that acks.
pub(crate) const NATIVE: &str = "1.67.0";
pub(crate) const SOON: Duration = Duration::from_millis(50);
/// Longer than a test.
const NEVER: Duration = Duration::from_secs(600);

/// An app, and a sidecar whose heartbeat timeouts never expire unless `settings` changes them.
pub(crate) async fn start(settings: impl FnOnce(&mut Config)) -> (App, Sidecar) {
    let app = App::bind().await;
    let mut config = app.config();
    config.heartbeat.native_deadline = NEVER;
    config.heartbeat.stall_after = NEVER;
    settings(&mut config);
    let sidecar = Sidecar::start(config).await;
    (app, sidecar)
}

/// A session whose upstream has sent its version.
pub(crate) async fn session(sidecar: &Sidecar, app: &App, version: &str) -> Session {
    let mut session = sidecar.stream(app).await;
    session.app.send(new_session(version)).await;
    session.browser.expect(new_session(version)).await;
    session
}

impl Wire {
    /// Expects a ping from the sidecar; returns its payload.
    pub(crate) async fn ping(&mut self) -> Vec<u8> {
        let Frame { first, masked, payload } = self.frame().await;
        assert_eq!((first, masked, payload.len()), (PING, true, 16), "{payload:02x?}");
        payload
    }

    pub(crate) async fn pong(&mut self, payload: &[u8]) {
        self.send(plain(PONG, payload)).await;
    }

    /// Sends a marker to the browser, for [`Self::expect_mark`].
    pub(crate) async fn mark(&mut self) {
        self.send(plain(TEXT, "mark")).await;
    }

    /// Expects the marker, and nothing before it.
    pub(crate) async fn expect_mark(&mut self) {
        self.expect(plain(TEXT, "mark")).await;
    }
}

impl Sidecar {
    pub(crate) async fn acks(&self, origin: &str) -> f64 {
        self.metric("acks_total", &[("origin", origin)]).await
    }
}
