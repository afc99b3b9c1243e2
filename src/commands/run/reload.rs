//! A running sidecar's configuration: SIGHUP or a change of its file puts the new one in force, or leaves the old one.

use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::{MissedTickBehavior, interval};

use super::systemd;
use crate::app::Reloading;
use crate::config::{Effective, Loaded, Problems, Reloader};
use crate::metrics::Reload;
use crate::telemetry::Filter;

/// From one look at the file to the next. It is read, not watched: a watch misses the swap of a link on some file systems.
const LOOK: Duration = Duration::from_secs(1);

/// What is in force, and all that has to follow it.
pub(super) struct Keeper {
    pub(super) reloader: Reloader,
    pub(super) running: Loaded,
    pub(super) reloading: Reloading,
    pub(super) filter: Filter,
}

/// Looks at the file again and again, and at each SIGHUP; for ever.
pub(super) async fn keep_current(mut keeper: Keeper, mut hangups: Signal) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let asked = tokio::select! {
            _now = ticks.tick(), if keeper.reloader.has_file() => false,
            _signal = hangups.recv() => true,
        };
        // A file system may hang.
        let looked = tokio::task::spawn_blocking(move || {
            keeper.look(asked);
            keeper
        });
        let Ok(back) = looked.await else { return };
        keeper = back;
    }
}

impl Keeper {
    fn look(&mut self, asked: bool) {
        if asked {
            systemd::reloading();
        }
        let judged = if asked { Some(self.reloader.read(&self.running)) } else { self.reloader.look(&self.running) };
        let Some(judged) = judged else { return };
        let outcome = judged.map_err(told).and_then(|loaded| self.put_in_force(loaded));
        self.reloading.tell(if outcome.is_ok() { Reload::Accepted } else { Reload::Refused });
        // The log last: whoever reads of it there finds everything as it says.
        match outcome {
            Ok(changed) => tracing::info!("configuration reloaded: {changed}"),
            Err(problems) => {
                for problem in problems {
                    tracing::error!("configuration refused, the one of before stays: {problem}");
                }
            }
        }
        if asked {
            systemd::reloaded();
        }
    }

    /// Says what has changed.
    fn put_in_force(&mut self, loaded: Loaded) -> Result<String, Vec<String>> {
        self.reloading.apply(&loaded.config).map_err(|error| vec![format!("upstream_tls: {error}")])?;
        let level = &loaded.config.log.level;
        if *level != self.running.config.log.level {
            self.filter.set(level).map_err(|error| vec![error.to_string()])?;
        }
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let changed = changed(&self.running, &loaded);
        self.running = loaded;
        Ok(if changed.is_empty() { "no change".to_owned() } else { changed })
    }
}

fn told(problems: Problems) -> Vec<String> {
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
