//! Reloads a running sidecar's configuration on SIGHUP or a change of its file; an invalid one changes nothing.

use tokio::signal::unix::Signal;

use super::systemd;
use crate::config::{Effective, Loaded, Problems, Reloader};
use crate::file_watch::poll_ticks;
use crate::metrics::Reload;
use crate::sidecar::Reloading;
use crate::telemetry::{self, Filter};

/// The active configuration and what a reload updates.
pub(super) struct ConfigReloader {
    pub(super) reloader: Reloader,
    pub(super) active: Loaded,
    pub(super) reloading: Reloading,
    pub(super) filter: Filter,
}

/// Polls the file and handles SIGHUP, for ever.
pub(super) async fn run(mut reloader: ConfigReloader, mut hangups: Signal) {
    let mut ticks = poll_ticks();
    loop {
        let on_sighup = tokio::select! {
            _now = ticks.tick(), if reloader.reloader.has_file() => false,
            _signal = hangups.recv() => true,
        };
        // A file system may hang.
        let checked = tokio::task::spawn_blocking(move || {
            reloader.check(on_sighup);
            reloader
        });
        let Ok(returned) = checked.await else { return };
        reloader = returned;
    }
}

impl ConfigReloader {
    fn check(&mut self, on_sighup: bool) {
        if on_sighup {
            systemd::reloading();
        }
        let result = if on_sighup { Some(self.reloader.read(&self.active)) } else { self.reloader.look(&self.active) };
        let Some(result) = result else { return };
        let result = result.map_err(messages).and_then(|loaded| self.apply(loaded));
        self.reloading.record(if result.is_ok() { Reload::Accepted } else { Reload::Refused });
        // Logs last, so that the line is true when it is read.
        match result {
            Ok(changed) => tracing::info!("configuration reloaded: {changed}"),
            Err(problems) => {
                for problem in problems {
                    tracing::error!("configuration refused, the running one stays active: {problem}");
                }
            }
        }
        if on_sighup {
            systemd::reloaded();
        }
    }

    /// Applies everything or nothing; returns the changes or the errors.
    fn apply(&mut self, loaded: Loaded) -> Result<String, Vec<String>> {
        let level = &loaded.config.log.level;
        let filter = (*level != self.active.config.log.level).then(|| telemetry::parse_filter(level));
        let filter = filter.transpose().map_err(|error| vec![error.to_string()])?;
        // The last step that can fail; it then changes nothing.
        self.reloading.apply(&loaded.config).map_err(|error| vec![error.to_string()])?;
        if let Some(filter) = filter {
            self.filter.set(filter);
        }
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let changed = changed(&self.active, &loaded);
        self.active = loaded;
        Ok(if changed.is_empty() { "no change".to_owned() } else { changed })
    }
}

fn messages(problems: Problems) -> Vec<String> {
    problems.0.iter().map(ToString::to_string).collect()
}

/// The keys whose values differ, as one line.
fn changed(before: &Loaded, after: &Loaded) -> String {
    let pairs = before.settings.iter().zip(&after.settings);
    let keys = pairs.filter(|(old, new)| old.value != new.value).map(|(_old, new)| new);
    let mut named: Vec<_> = keys.map(|Effective { key, value, .. }| format!("{key} = {value:?}")).collect();
    if before.config.routes != after.config.routes {
        let names: Vec<_> = after.config.apps().into_iter().map(|app| app.name).collect();
        named.push(format!("apps: {}", names.join(", ")));
    }
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;
    use crate::config::{SETTINGS, Sources, load};
    use crate::sidecar::Sidecar;

    /// The response to a request with a target of 300 bytes.
    async fn request(sidecar: SocketAddr) -> String {
        let mut client = TcpStream::connect(sidecar).await.expect("it listens");
        let head = format!("GET /{} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "a".repeat(299));
        client.write_all(head.as_bytes()).await.expect("a connection");
        let mut response = String::new();
        client.read_to_string(&mut response).await.expect("a response");
        response
    }

    #[tokio::test]
    async fn a_reload_with_a_bad_log_filter_changes_nothing() {
        let setting = |key: &str| SETTINGS.iter().find(|setting| setting.key == key).expect("a known key");
        let flags = [("listen", "127.0.0.1:0"), ("admin", "127.0.0.1:0"), ("upstream", "http://127.0.0.1:1")];
        let flags = flags.map(|(key, value)| (setting(key), value.to_owned())).into();
        let sources = Sources { flags, ..Sources::default() };
        let active = load(&sources).expect("valid");
        let sidecar = Sidecar::bind(active.config.clone()).await.expect("bound");
        let (address, reloading) = (sidecar.address().expect("bound"), sidecar.reloading());
        let _run = AbortOnDropHandle::new(tokio::spawn(sidecar.run(std::future::pending())));
        let sets = Arc::new(AtomicUsize::new(0));
        let counted = sets.clone();
        let filter = Filter::new(move |_filter| _ = counted.fetch_add(1, Relaxed));
        let mut reloader =
            ConfigReloader { reloader: Reloader::new(sources), active: active.clone(), reloading, filter };

        // No file can contain such a filter; another source might later.
        let mut bad = active;
        bad.config.limits.uri_bytes = 256;
        bad.config.log.level = "info,relay=loud".to_owned();
        let mut good = bad.clone();
        let messages = reloader.apply(bad).expect_err("no filter");
        assert!(messages[0].contains("info,relay=loud"), "{messages:?}");
        let response = request(address).await;
        assert!(response.starts_with("HTTP/1.1 502 "), "the rejected limits apply: {response}");
        assert_eq!((sets.load(Relaxed), reloader.active.config.log.level.as_str()), (0, "info"));

        good.config.log.level = "debug".to_owned();
        reloader.apply(good).expect("valid");
        let response = request(address).await;
        assert!(response.starts_with("HTTP/1.1 414 "), "{response}");
        assert_eq!((sets.load(Relaxed), reloader.active.config.log.level.as_str()), (1, "debug"));
    }
}
