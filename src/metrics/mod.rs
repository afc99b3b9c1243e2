//! The Prometheus metrics: one recorder per sidecar and per upstream, with every series at zero from the start.
//!
//! Invariant: no global recorder, so that one process can run several sidecars; call sites hold no strings.

#[cfg(test)]
mod budget;
mod close_code;
mod http_labels;
mod labels;
mod per_label;
mod registrar;
mod scrape;
mod series;
#[cfg(test)]
mod tests;
mod upstream;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use metrics::{Counter, Gauge};
use metrics_exporter_prometheus::{PrometheusHandle, PrometheusRecorder};
use metrics_process::Collector;

pub use close_code::CloseCode;
pub use labels::{
    DirectionLabel, Handshake, Initiator, Level, Loss, NotSent, ParkedEnd, Reconnect, Rejected, Reload,
    ResumptionRefused, Takeover, Unparsable, WatchdogPage,
};
pub use per_label::LabelValue;
pub use scrape::Scrape;
pub use series::Detail;
pub use upstream::UpstreamMetrics;

use per_label::PerLabel;
use registrar::Registrar;

/// Every series of one sidecar.
pub struct Metrics {
    detail: Detail,
    recorder: PrometheusRecorder,
    process: Collector,
    /// Upstreams whose series are in use, by name.
    upstreams: Mutex<BTreeMap<String, Weak<UpstreamMetrics>>>,
    draining: Gauge,
    rejections: PerLabel<Rejected, Counter>,
    client_connections: Gauge,
    client_connections_limit: Gauge,
    config_reloads: PerLabel<Reload, Counter>,
    config_reload_successful: Gauge,
    tls_reloads: PerLabel<Reload, Counter>,
    certificate_not_after: Gauge,
}

impl Metrics {
    /// As [`Self::with_detail`], with full detail.
    pub fn new() -> Arc<Self> {
        Self::with_detail(Detail::default())
    }

    /// Registers everything that is not an upstream's.
    pub fn with_detail(detail: Detail) -> Arc<Self> {
        let registrar = Registrar::new(detail, None);
        let process = Collector::default();
        metrics::with_local_recorder(&registrar.recorder, || process.describe());
        registrar.gauge(&series::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        let draining = registrar.gauge(&series::DRAINING, &[]);
        let rejections = PerLabel::new(|r: Rejected| registrar.counter(&series::REJECTIONS, &[("reason", r.name())]));
        let client_connections = registrar.gauge(&series::CLIENT_CONNECTIONS, &[]);
        let client_connections_limit = registrar.gauge(&series::CLIENT_CONNECTIONS_LIMIT, &[]);
        let config_reloads =
            PerLabel::new(|r: Reload| registrar.counter(&series::CONFIG_RELOADS, &[("result", r.name())]));
        let config_reload_successful = registrar.gauge(&series::CONFIG_LAST_RELOAD_SUCCESSFUL, &[]);
        config_reload_successful.set(1.0);
        let tls_reloads = PerLabel::new(|r: Reload| registrar.counter(&series::TLS_RELOADS, &[("result", r.name())]));
        let certificate_not_after = registrar.gauge(&series::TLS_CERTIFICATE_NOT_AFTER, &[]);
        Arc::new(Self {
            detail,
            recorder: registrar.recorder,
            process,
            upstreams: Mutex::default(),
            draining,
            rejections,
            client_connections,
            client_connections_limit,
            config_reloads,
            config_reload_successful,
            tls_reloads,
            certificate_not_after,
        })
    }

    /// The series of the upstream with this name; new ones start at zero. They are removed when the last handle is
    /// dropped.
    pub fn upstream(&self, name: &str) -> Arc<UpstreamMetrics> {
        let mut upstreams = self.upstreams();
        let known = upstreams.get(name).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let new = Arc::new(UpstreamMetrics::new(&Registrar::new(self.detail, Some(name))));
            upstreams.insert(name.to_owned(), Arc::downgrade(&new));
            new
        })
    }

    /// Sets whether the sidecar is draining.
    pub fn draining(&self, draining: bool) {
        self.draining.set(if draining { 1.0 } else { 0.0 });
    }

    /// A request or a connection was rejected.
    pub fn rejected(&self, reason: Rejected) {
        self.rejections.get(reason).increment(1);
    }

    /// A client's connection is open; each call needs one [`Self::client_connection_closed`].
    pub fn client_connection_opened(&self) {
        self.client_connections.increment(1.0);
    }

    /// A client's connection is closed.
    pub fn client_connection_closed(&self) {
        self.client_connections.decrement(1.0);
    }

    /// Sets the limit of concurrent client connections.
    pub fn client_connections_limit(&self, most: usize) {
        self.client_connections_limit.set(most as f64);
    }

    /// A configuration reload ended.
    pub fn config_reload(&self, result: Reload) {
        self.config_reloads.get(result).increment(1);
        self.config_reload_successful.set(match result {
            Reload::Accepted => 1.0,
            Reload::Refused => 0.0,
        });
    }

    /// A TLS reload ended.
    pub fn tls_reload(&self, result: Reload) {
        self.tls_reloads.get(result).increment(1);
    }

    /// Sets when the certificate for browsers expires, in seconds of Unix time.
    pub fn tls_not_after(&self, seconds: u64) {
        self.certificate_not_after.set(seconds as f64);
    }

    /// Everything in Prometheus' text format 0.0.4, with fresh `process_*` series. Includes [`Self::upkeep`].
    pub fn render(&self) -> String {
        let mut scrape = self.scrape();
        while scrape.step() {}
        scrape.text()
    }

    /// [`Self::render`] in steps.
    pub fn scrape(&self) -> Scrape {
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        Scrape::new(self.handles())
    }

    /// Sorts the samples of histograms into buckets. Samples use 8 bytes each until this or [`Self::render`] runs. Call
    /// it every few seconds: there may never be a scrape.
    pub fn upkeep(&self) {
        self.handles().iter().for_each(PrometheusHandle::run_upkeep);
    }

    fn handles(&self) -> Vec<PrometheusHandle> {
        let mut handles = vec![self.recorder.handle()];
        self.upstreams().retain(|_name, upstream| {
            let upstream = upstream.upgrade();
            handles.extend(upstream.as_ref().map(|upstream| upstream.rendered.clone()));
            upstream.is_some()
        });
        handles
    }

    fn upstreams(&self) -> MutexGuard<'_, BTreeMap<String, Weak<UpstreamMetrics>>> {
        // No panic can leave it inconsistent.
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
