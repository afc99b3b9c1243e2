//! Puts another configuration in force while the sidecar runs: its apps, its limits, whom it trusts.
//!
//! Law: at one moment, for what comes after it; live sessions go on as they began.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::metrics::{Metrics, Reload};
use crate::proxy::Proxy;
use crate::proxy::routes::Routes;
use crate::proxy::upstream::Upstream;
use crate::server::listener::Entrance;
use crate::server::status::{InForce, LastReload};
use crate::server::tls;
use crate::tls::{ClientFiles, Live, TlsError, Watcher};

/// What can be changed of a running sidecar; clones change the same one.
#[derive(Clone)]
pub struct Reloading {
    apps: Arc<Mutex<Apps>>,
    proxy: Proxy,
    entrance: Arc<ArcSwap<Entrance>>,
    metrics: Arc<Metrics>,
}

/// The app servers, what all of them are spoken to with over TLS, and when they were read anew.
pub(super) struct Apps {
    upstreams: Vec<Arc<Upstream>>,
    tls: Option<ClientTls>,
    reloaded: Option<(Instant, Reload)>,
    metrics: Arc<Metrics>,
}

/// Certificates and roots towards `https://` app servers, read anew as long as this lives.
struct ClientTls {
    live: Arc<Live<ClientFiles>>,
    _watch: AbortOnDropHandle<()>,
}

impl Reloading {
    pub(super) fn new(apps: Apps, proxy: Proxy, entrance: Arc<ArcSwap<Entrance>>, metrics: Arc<Metrics>) -> Self {
        Self { apps: Arc::new(Mutex::new(apps)), proxy, entrance, metrics }
    }

    /// Puts `config` in force, as far as [`Reloader`](crate::config::Reloader) lets it differ. May read files; call it within
    /// the runtime.
    ///
    /// # Errors
    /// The first `https://` app server needs certificates that do not work; everything stays as it was.
    pub fn apply(&self, config: &Config) -> Result<(), TlsError> {
        let mut apps = self.apps();
        self.proxy.renew(config, apps.routes(config)?);
        self.entrance.store(Arc::new(self.entrance.load().renewed(config)));
        Ok(())
    }

    /// Tells Prometheus and the status page what became of a configuration that was read anew.
    pub fn tell(&self, result: Reload) {
        self.metrics.config_reload(result);
        self.apps().reloaded = Some((Instant::now(), result));
    }

    /// What the status page shows of it.
    pub(super) fn in_force(&self) -> InForce {
        let apps = self.apps();
        let upstreams = apps.upstreams.iter().map(|upstream| (upstream.name(), upstream.capability())).collect();
        let reload = apps.reloaded.map(|(at, result)| LastReload {
            accepted: result == Reload::Accepted,
            seconds_ago: at.elapsed().as_secs_f64(),
        });
        InForce { upstreams, reload }
    }

    /// Whether connections to every app are refused now.
    pub(super) async fn every_app_refuses(&self) -> bool {
        let upstreams = self.apps().upstreams.clone();
        for upstream in upstreams {
            if !upstream.refuses().await {
                return false;
            }
        }
        true
    }

    fn apps(&self) -> MutexGuard<'_, Apps> {
        // A panic while it was held left the list of before.
        self.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Apps {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { upstreams: Vec::new(), tls: None, reloaded: None, metrics }
    }

    /// The apps of a configuration; those that are there already stay what they are.
    ///
    /// # Errors
    /// The certificates towards them do not work; nothing has changed then.
    pub(super) fn routes(&mut self, config: &Config) -> Result<Routes, TlsError> {
        let apps = config.apps();
        if let (None, Some(files)) = (&self.tls, config.upstream_tls.files(&apps)) {
            self.tls = Some(ClientTls::new(files, self.metrics.clone())?);
        }
        let upstream = |app| {
            let known = self.upstreams.iter().find_map(|upstream| upstream.renewed(config, app));
            let new = || {
                let tls = self.tls.as_ref().map(|tls| tls.live.clone());
                Upstream::new(config, app, tls, self.metrics.upstream(&app.name))
            };
            Arc::new(known.unwrap_or_else(new))
        };
        let upstreams: Vec<_> = apps.iter().map(upstream).collect();
        self.upstreams.clone_from(&upstreams);
        Ok(Routes::new(apps.into_iter().zip(upstreams).collect()))
    }
}

impl ClientTls {
    fn new(files: ClientFiles, metrics: Arc<Metrics>) -> Result<Self, TlsError> {
        let (watcher, _not_after): (Watcher<_>, _) = Live::load(files)?;
        let live = watcher.live();
        let watch = tokio::spawn(tls::watch(watcher, metrics, |_not_after| {}));
        Ok(Self { live, _watch: AbortOnDropHandle::new(watch) })
    }
}
