//! Applies a new configuration while the sidecar runs: its apps, limits and trusted proxies.
//!
//! Invariant: a reload takes effect at once, for everything that starts later; live sessions keep their settings. An
//! app is identified by its name: session slots and metric series belong to the name, at any address.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::ClientConfig;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{Config, Route};
use crate::metrics::{Metrics, Reload};
use crate::proxy::Proxy;
use crate::proxy::routes::Routes;
use crate::proxy::upstream::Upstream;
use crate::server::context::ListenerContext;
use crate::server::status::{ConfigSummary, LastReload};
use crate::tls::{CertificateReloader, ClientFiles, TlsError};

/// How long a removed app without sessions is remembered, and its series are exported. Scrapes are at most two minutes
/// apart if Prometheus shows no gaps, so the last counts are scraped even if one or two scrapes fail.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// At most this many unused apps are remembered, or as many as are active if that is more. So reloads with always new
/// names fill neither memory nor scrapes.
const MAX_REMEMBERED: usize = 10;

/// Reloads a running sidecar; clones share its state.
#[derive(Clone)]
pub struct Reloading {
    apps: Arc<Mutex<Apps>>,
    proxy: Proxy,
    context: Arc<ArcSwap<ListenerContext>>,
    metrics: Arc<Metrics>,
}

/// The app servers, their TLS client configuration, and the last reload.
pub(super) struct Apps {
    upstreams: Vec<Arc<Upstream>>,
    /// Apps that a reload removed. Invariant: an app with sessions is in one of the lists.
    removed: Vec<RemovedApp>,
    tls: Option<ClientTls>,
    reloaded: Option<(Instant, Reload)>,
    metrics: Arc<Metrics>,
}

/// An app at one address, removed by a reload.
struct RemovedApp {
    upstream: Arc<Upstream>,
    /// `None` before the first check, or if the last check found sessions.
    unused_since: Option<Instant>,
}

/// Certificates and roots for `https://` app servers, reloaded while this exists.
struct ClientTls {
    config: Arc<ArcSwap<ClientConfig>>,
    _reload: AbortOnDropHandle<()>,
}

impl Reloading {
    pub(super) fn new(apps: Apps, proxy: Proxy, context: Arc<ArcSwap<ListenerContext>>, metrics: Arc<Metrics>) -> Self {
        Self { apps: Arc::new(Mutex::new(apps)), proxy, context, metrics }
    }

    /// Applies the settings of `config` that may change, see [`Reloader`](crate::config::Reloader). May read files;
    /// call it within the runtime.
    ///
    /// # Errors
    /// The first `https://` app server needs certificates that cannot be used; nothing is changed then.
    pub fn apply(&self, config: &Config) -> Result<(), TlsError> {
        let mut apps = self.apps();
        self.proxy.renew(config, apps.routes(config)?);
        self.context.store(Arc::new(self.context.load().renewed(config)));
        Ok(())
    }

    /// Forgets removed apps that have been unused for ten minutes; call it every few seconds.
    pub fn forget_unused(&self, now: Instant) {
        self.apps().forget_unused(now);
    }

    /// Records the result of a reload for Prometheus and the status page.
    pub fn record(&self, result: Reload) {
        self.metrics.config_reload(result);
        self.apps().reloaded = Some((Instant::now(), result));
    }

    /// The active configuration as the status page shows it.
    pub(super) fn summary(&self) -> ConfigSummary {
        let apps = self.apps();
        let upstreams =
            apps.upstreams.iter().map(|upstream| (upstream.name(), upstream.state().capability())).collect();
        let reload = apps.reloaded.map(|(at, result)| LastReload {
            accepted: result == Reload::Accepted,
            seconds_ago: at.elapsed().as_secs_f64(),
        });
        ConfigSummary { upstreams, reload }
    }

    /// Whether every app refuses connections now.
    pub(super) async fn all_apps_refuse_connections(&self) -> bool {
        let upstreams = self.apps().upstreams.clone();
        for upstream in upstreams {
            if !upstream.is_connection_refused().await {
                return false;
            }
        }
        true
    }

    fn apps(&self) -> MutexGuard<'_, Apps> {
        // A panic under the lock leaves the previous list active.
        self.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Apps {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { upstreams: Vec::new(), removed: Vec::new(), tls: None, reloaded: None, metrics }
    }

    /// The routes of a configuration. Apps that are known already keep their state.
    ///
    /// # Errors
    /// The certificates for them cannot be used; nothing is changed then.
    pub(super) fn routes(&mut self, config: &Config) -> Result<Routes, TlsError> {
        let apps = config.apps();
        if let (None, Some(files)) = (&self.tls, config.upstream_tls.files(&apps)) {
            self.tls = Some(ClientTls::new(files, self.metrics.clone())?);
        }
        let upstreams: Vec<_> = apps.iter().map(|app| Arc::new(self.upstream(config, app))).collect();
        self.activate(upstreams.clone());
        Ok(Routes::new(apps.into_iter().zip(upstreams).collect()))
    }

    fn upstream(&self, config: &Config, app: &Route) -> Upstream {
        let known = || self.upstreams.iter().chain(self.removed.iter().map(|removed| &removed.upstream));
        if let Some(same) = known().find_map(|upstream| upstream.renewed(config, app)) {
            return same;
        }
        let tls = self.tls.as_ref().map(|tls| tls.config.clone());
        let new = Upstream::new(config, app, tls, self.metrics.upstream(&app.name));
        match known().find(|upstream| *upstream.name() == *app.name) {
            Some(moved) => new.sharing_slots(config, moved),
            None => new,
        }
    }

    fn activate(&mut self, upstreams: Vec<Arc<Upstream>>) {
        let before = std::mem::replace(&mut self.upstreams, upstreams);
        self.removed.extend(before.into_iter().map(|upstream| RemovedApp { upstream, unused_since: None }));
        self.removed.retain(|removed| !self.upstreams.iter().any(|upstream| removed.is(upstream)));
        for upstream in &self.upstreams {
            let moved = self.removed.iter().filter(|removed| removed.upstream.name() == upstream.name());
            moved.for_each(|removed| removed.upstream.state().show(false));
            upstream.state().show(true);
        }
    }

    fn forget_unused(&mut self, now: Instant) {
        for removed in &mut self.removed {
            removed.unused_since = (!removed.has_sessions()).then(|| removed.unused_since.unwrap_or(now));
        }
        // Used apps first, then the most recently used.
        self.removed.sort_by_key(|removed| removed.unused_since.map(Reverse));
        let used = self.removed.partition_point(|removed| removed.unused_since.is_none());
        self.removed.truncate(used + self.upstreams.len().max(MAX_REMEMBERED));
        self.removed.retain(|removed| {
            removed.unused_since.is_none_or(|since| now.saturating_duration_since(since) < REMEMBERED_FOR)
        });
    }
}

impl RemovedApp {
    fn is(&self, upstream: &Upstream) -> bool {
        Arc::ptr_eq(self.upstream.state(), upstream.state())
    }

    /// No route leads to it any more, so every other holder of its state is a session.
    fn has_sessions(&self) -> bool {
        Arc::strong_count(self.upstream.state()) > 1
    }
}

impl ClientTls {
    fn new(files: ClientFiles, metrics: Arc<Metrics>) -> Result<Self, TlsError> {
        let (reloader, _not_after) = CertificateReloader::load(files)?;
        let config = reloader.current();
        let reload = tokio::spawn(reloader.run(metrics, |_not_after| {}));
        Ok(Self { config, _reload: AbortOnDropHandle::new(reload) })
    }
}
