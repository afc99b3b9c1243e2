//! Checks valid values against each other: conflicts, and warnings about risky settings.

use std::time::Duration;

use super::loaded::{Loaded, Source};
use super::{Config, ResumeSettings, WatchdogMode, tls, upstream};
use crate::heartbeat::{Mode, Proof};
use crate::streamlit::ack::AckForm;

/// The shortest ack timeout without a warning: some round trips of a slow mobile link.
const MIN_ACK_TIMEOUT: Duration = Duration::from_secs(2);

/// Conflicts, one line each.
pub(super) fn conflicts(loaded: &Loaded) -> Vec<String> {
    let (Config { listen, admin, watchdog, .. }, apps) = (&loaded.config, loaded.config.apps());
    let setting = |key| loaded.setting(key);
    let mut found = Vec::new();
    for (at, app) in apps.iter().enumerate() {
        if watchdog.mode != WatchdogMode::Off && app.heartbeat.mode == Mode::Forward {
            let (watchdog, mode) = (setting("watchdog.mode"), loaded.setting_of(at, "heartbeat.mode"));
            found.push(format!(
                "{watchdog} needs acks, which {mode} leaves to the app: its pages would reconnect for ever"
            ));
        }
    }
    if !loaded.config.routes.is_empty() && setting("upstream").source != Source::Default {
        let upstream = setting("upstream");
        found.push(format!("{upstream} and [[route]] exclude each other: each route has its own upstream"));
    }
    if loaded.config.proxy_protocol && loaded.config.trusted_proxies.is_empty() {
        let (protocol, proxies) = (setting("proxy_protocol"), setting("trusted_proxies"));
        found.push(format!("{protocol} needs at least one trusted proxy, but {proxies}"));
    }
    let (public, private) = (listen.ip().to_canonical(), admin.ip().to_canonical());
    if listen.port() != 0 && listen.port() == admin.port() && upstream::overlap(public, private) {
        let (listen, admin) = (setting("listen"), setting("admin"));
        found.push(format!("{listen} and {admin} are one address: each needs its own"));
    }
    for (key, bound) in [("listen", listen), ("admin", admin)] {
        for (at, app) in apps.iter().enumerate() {
            if app.upstream.leads_to(*bound) {
                let (upstream, bound) = (loaded.setting_of(at, "upstream"), setting(key));
                found.push(format!("{upstream} leads back to {bound}: the sidecar would proxy itself"));
            }
        }
    }
    found.extend(tls::conflicts(loaded));
    found
}

/// Warnings, one line each.
pub(super) fn warnings(loaded: &Loaded) -> Vec<String> {
    let Config { trusted_proxies, drain, watchdog, upstream_tls, .. } = &loaded.config;
    let (setting, apps) = (|key| loaded.setting(key), loaded.config.apps());
    let mut found = Vec::new();
    for (at, app) in apps.iter().enumerate() {
        let setting = |key| loaded.setting_of(at, key);
        if app.heartbeat.ack == AckForm::Plain {
            let ack = setting("heartbeat.ack");
            found.push(format!("{ack}: each ack opens an error dialog in pages of Streamlit before 1.55"));
        }
        if app.heartbeat.proof == Proof::Connection {
            found.push(format!("{}: acks are also sent while the app is frozen", setting("heartbeat.proof")));
        }
        if app.heartbeat.native_deadline >= app.heartbeat.stall_after {
            let (deadline, stall) = (setting("heartbeat.native_deadline"), setting("heartbeat.stall_after"));
            found.push(format!("{deadline} is not below {stall}: a lost native ack counts as a stalled upstream"));
        }
    }
    // Routes that inherit a value repeat its warning.
    found.dedup();
    if trusted_proxies.is_everyone() {
        let proxies = setting("trusted_proxies");
        found.push(format!("{proxies}: any client can forge its address, so limits per client have no effect"));
    }
    if drain.delay + drain.window >= drain.timeout {
        let [delay, window, timeout] = ["drain.delay", "drain.window", "drain.timeout"].map(setting);
        found.push(format!("{delay} and {window} leave nothing of {timeout}: some websockets are cut, not closed"));
    }
    if upstream_tls.is_set() && !apps.iter().any(|app| app.upstream.is_encrypted()) {
        let upstream = loaded.setting_of(0, "upstream");
        found.push(format!("{upstream}: not an https:// address, so [upstream_tls] has no effect"));
    }
    if watchdog.mode == WatchdogMode::Page && watchdog.ack_timeout < MIN_ACK_TIMEOUT {
        let timeout = setting("watchdog.ack_timeout");
        found.push(format!("{timeout}: below {MIN_ACK_TIMEOUT:?}, pages on slow links reconnect needlessly"));
    }
    found.extend(resume_warnings(loaded));
    found
}

/// Warnings about `[resume]`, which needs the watchdog and takeovers.
fn resume_warnings(loaded: &Loaded) -> Vec<String> {
    let Config { watchdog, resume, session, .. } = &loaded.config;
    let setting = |key| loaded.setting(key);
    let mut found = Vec::new();
    if watchdog.mode == WatchdogMode::Off && *resume != ResumeSettings::default() {
        found.push(format!("{}: pages get no script, so [resume] has no effect", setting("watchdog.mode")));
    }
    if watchdog.mode == WatchdogMode::Off || !resume.enabled {
        return found;
    }
    if !session.takeover {
        let (enabled, takeover) = (setting("resume.enabled"), setting("session.takeover"));
        found.push(format!("{enabled} has no effect: it needs session.takeover, but {takeover}"));
    }
    if resume.window <= watchdog.interval + watchdog.ack_timeout {
        let [window, interval, timeout] = ["resume.window", "watchdog.interval", "watchdog.ack_timeout"].map(setting);
        found.push(format!("{window} is not above {interval} and {timeout}: sessions end before pages detect a loss"));
    }
    if resume.parked_bytes < resume.buffer_bytes as u64 {
        let (parked, buffer) = (setting("resume.parked_bytes"), setting("resume.buffer"));
        found.push(format!("{parked} is below {buffer}: parked sessions end before their buffer is full"));
    }
    found
}
