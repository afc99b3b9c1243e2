//! Checks valid values against each other: conflicts, and warnings about unwise settings.

use std::time::Duration;

use super::load::Loader;
use super::{Config, WatchdogMode, upstream};
use crate::heartbeat::{Mode, Proof};
use crate::streamlit::ack::AckForm;

/// The shortest ack timeout without a warning: some round trips of a slow mobile link.
const UNHURRIED: Duration = Duration::from_secs(2);

impl Loader {
    /// Conflicts, one line each.
    pub(super) fn conflicts(&self) -> Vec<String> {
        let (Config { listen, admin, watchdog, .. }, apps) = (&self.config, self.config.apps());
        let mut found = Vec::new();
        for (at, app) in apps.iter().enumerate() {
            if watchdog.mode != WatchdogMode::Off && app.heartbeat.mode == Mode::Forward {
                let (watchdog, mode) = (self.shown("watchdog.mode"), self.shown_of(at, "heartbeat.mode"));
                found.push(format!(
                    "{watchdog} needs acks, which {mode} leaves to the app: its pages would reconnect for ever"
                ));
            }
        }
        if !self.config.routes.is_empty() && self.origins.contains_key("upstream") {
            let upstream = self.shown("upstream");
            found.push(format!("{upstream} and [[route]] exclude each other: each route has its own upstream"));
        }
        if self.config.proxy_protocol && self.config.trusted_proxies.is_empty() {
            let (protocol, proxies) = (self.shown("proxy_protocol"), self.shown("trusted_proxies"));
            found.push(format!("{protocol} takes connections of trusted proxies only, and {proxies} leaves nobody"));
        }
        let (public, private) = (listen.ip().to_canonical(), admin.ip().to_canonical());
        if listen.port() != 0 && listen.port() == admin.port() && upstream::overlap(public, private) {
            let (listen, admin) = (self.shown("listen"), self.shown("admin"));
            found.push(format!("{listen} and {admin} are one address: each needs its own"));
        }
        for (key, bound) in [("listen", listen), ("admin", admin)] {
            for (at, app) in apps.iter().enumerate() {
                if app.upstream.leads_to(*bound) {
                    let (upstream, bound) = (self.shown_of(at, "upstream"), self.shown(key));
                    found.push(format!("{upstream} leads back to {bound}: the sidecar would proxy itself"));
                }
            }
        }
        found.extend(self.tls_conflicts());
        found
    }

    /// Warnings, one line each.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (at, app) in self.config.apps().iter().enumerate() {
            let shown = |key| self.shown_of(at, key);
            if app.heartbeat.ack == AckForm::Plain {
                let ack = shown("heartbeat.ack");
                found.push(format!("{ack}: opens an error dialog in pages of Streamlit before 1.55, at every ack"));
            }
            if app.heartbeat.proof == Proof::Connection {
                found.push(format!("{}: acks go out while a frozen server is up", shown("heartbeat.proof")));
            }
            if app.heartbeat.native_deadline >= app.heartbeat.stall_after {
                let (deadline, stall) = (shown("heartbeat.native_deadline"), shown("heartbeat.stall_after"));
                found.push(format!("{deadline} is not below {stall}: a lost native ack counts as a stalled upstream"));
            }
        }
        // Routes that inherit a value repeat its warning.
        found.dedup();
        if self.config.trusted_proxies.is_everyone() {
            let proxies = self.shown("trusted_proxies");
            found.push(format!("{proxies}: anyone may say who the client is, and no limit by address holds"));
        }
        let drain = &self.config.drain;
        if drain.delay + drain.window >= drain.timeout {
            let [delay, window, timeout] = ["drain.delay", "drain.window", "drain.timeout"].map(|key| self.shown(key));
            found.push(format!("{delay} and {window} leave nothing of {timeout}: some websockets are cut, not closed"));
        }
        let apps = self.config.apps();
        if self.config.upstream_tls.is_set() && !apps.iter().any(|app| app.upstream.is_encrypted()) {
            let upstream = self.shown_of(0, "upstream");
            found.push(format!("{upstream}: no https:// address, so [upstream_tls] does nothing"));
        }
        let watchdog = &self.config.watchdog;
        if watchdog.mode == WatchdogMode::Page && watchdog.ack_timeout < UNHURRIED {
            let timeout = self.shown("watchdog.ack_timeout");
            found.push(format!("{timeout}: below {UNHURRIED:?} slow links and busy servers count as dead"));
        }
        found
    }
}
