//! What Prometheus sees: one recorder for each sidecar, every series there at zero from the start.
//!
//! Law: no global recorder, so that several sidecars can live in one process; call sites hold no strings.

#[cfg(test)]
mod budget;
mod labels;
mod series;
mod upstream;

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_process::Collector;

pub use labels::{
    CloseCode, Direction, Handshake, Initiator, LabelValue, Loss, Reconnect, Rejected, Reload, Takeover, TapDisabled,
    WatchdogPage,
};
pub use upstream::UpstreamMetrics;

use labels::Family;
use series::Series;

/// How many series there are. Thousands of sidecars may be scraped by one Prometheus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// All: at most 400 with one upstream.
    #[default]
    Full,
    /// Those that alerts need: at most 150 with one upstream.
    Lean,
}

/// Every series of one sidecar.
pub struct Metrics {
    detail: Detail,
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: Collector,
    draining: Gauge,
    http_rejected: Family<Rejected, Counter>,
    client_connections: Gauge,
    client_connections_limit: Gauge,
    config_reloads: Family<Reload, Counter>,
    config_current: Gauge,
    tls_reloads: Family<Reload, Counter>,
    tls_not_after: Gauge,
}

/// Where handles come from; adds the upstream's label where there is one.
struct Registrar<'a> {
    detail: Detail,
    recorder: &'a PrometheusRecorder,
    upstream: Option<&'a str>,
}

impl Metrics {
    /// As [`Self::with_detail`], in full.
    pub fn new() -> Arc<Self> {
        Self::with_detail(Detail::default())
    }

    /// Registers everything that is not an upstream's.
    pub fn with_detail(detail: Detail) -> Arc<Self> {
        let recorder = series::HISTOGRAMS
            .iter()
            .try_fold(PrometheusBuilder::new(), |builder, histogram| {
                builder.set_buckets_for_metric(Matcher::Full(histogram.name.to_owned()), histogram.buckets)
            })
            .expect("only an empty list of buckets is refused, and none is empty")
            .build_recorder();
        let process = Collector::default();
        metrics::with_local_recorder(&recorder, || process.describe());
        let registrar = Registrar { detail, recorder: &recorder, upstream: None };
        registrar.gauge(&series::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        let draining = registrar.gauge(&series::DRAINING, &[]);
        let http_rejected =
            Family::new(|r: Rejected| registrar.counter(&series::HTTP_REJECTED, &[("reason", r.name())]));
        let client_connections = registrar.gauge(&series::CLIENT_CONNECTIONS, &[]);
        let client_connections_limit = registrar.gauge(&series::CLIENT_CONNECTIONS_LIMIT, &[]);
        let config_reloads =
            Family::new(|r: Reload| registrar.counter(&series::CONFIG_RELOADS, &[("result", r.name())]));
        let config_current = registrar.gauge(&series::CONFIG_CURRENT, &[]);
        config_current.set(1.0);
        let tls_reloads = Family::new(|r: Reload| registrar.counter(&series::TLS_RELOADS, &[("result", r.name())]));
        let tls_not_after = registrar.gauge(&series::TLS_NOT_AFTER, &[]);
        let handle = recorder.handle();
        Arc::new(Self {
            detail,
            recorder,
            handle,
            process,
            draining,
            http_rejected,
            client_connections,
            client_connections_limit,
            config_reloads,
            config_current,
            tls_reloads,
            tls_not_after,
        })
    }

    /// Registers the series of an upstream at zero. The same name twice gives handles to the same series.
    pub fn upstream(&self, name: &str) -> Arc<UpstreamMetrics> {
        let registrar = Registrar { detail: self.detail, recorder: &self.recorder, upstream: Some(name) };
        Arc::new(UpstreamMetrics::new(&registrar))
    }

    /// Whether the sidecar drains.
    pub fn draining(&self, draining: bool) {
        self.draining.set(if draining { 1.0 } else { 0.0 });
    }

    /// A request was refused.
    pub fn http_rejected(&self, reason: Rejected) {
        self.http_rejected.get(reason).increment(1);
    }

    /// A client's connection is open; each call asks for one [`Self::client_connection_closed`].
    pub fn client_connection_opened(&self) {
        self.client_connections.increment(1.0);
    }

    /// A client's connection is closed.
    pub fn client_connection_closed(&self) {
        self.client_connections.decrement(1.0);
    }

    /// So many connections of clients may be open at a time.
    pub fn client_connections_limit(&self, most: usize) {
        self.client_connections_limit.set(most as f64);
    }

    /// The configuration was read anew.
    pub fn config_reload(&self, result: Reload) {
        self.config_reloads.get(result).increment(1);
        self.config_current.set(match result {
            Reload::Accepted => 1.0,
            Reload::Refused => 0.0,
        });
    }

    /// TLS certificates have changed.
    pub fn tls_reload(&self, result: Reload) {
        self.tls_reloads.get(result).increment(1);
    }

    /// The certificate that browsers are shown expires then, in seconds of Unix time.
    pub fn tls_not_after(&self, seconds: u64) {
        self.tls_not_after.set(seconds as f64);
    }

    /// Everything in Prometheus' text format 0.0.4, the `process_*` series read anew. Does what [`Self::upkeep`] does.
    pub fn render(&self) -> String {
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        self.handle.render()
    }

    /// Sorts the samples of histograms into buckets. Samples pile up (8 bytes each) until this or [`Self::render`]
    /// is called: call it every few seconds, since nobody may ever scrape.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl Registrar<'_> {
    /// The exporter does not look at it.
    const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

    fn counter(&self, series: &Series, labels: &[(&'static str, &'static str)]) -> Counter {
        if !self.shows(series) {
            return Counter::noop();
        }
        self.recorder.describe_counter(series.name.into(), None, series.help.into());
        self.recorder.register_counter(&self.key(series, labels), &Self::METADATA)
    }

    fn gauge(&self, series: &Series, labels: &[(&'static str, &'static str)]) -> Gauge {
        if !self.shows(series) {
            return Gauge::noop();
        }
        self.recorder.describe_gauge(series.name.into(), None, series.help.into());
        self.recorder.register_gauge(&self.key(series, labels), &Self::METADATA)
    }

    fn histogram(&self, series: &Series, labels: &[(&'static str, &'static str)]) -> Histogram {
        if !self.shows(series) {
            return Histogram::noop();
        }
        self.recorder.describe_histogram(series.name.into(), None, series.help.into());
        self.recorder.register_histogram(&self.key(series, labels), &Self::METADATA)
    }

    fn shows(&self, series: &Series) -> bool {
        self.detail == Detail::Full || series.lean
    }

    /// The code that this one is counted with.
    fn code(&self, code: CloseCode) -> CloseCode {
        match (self.detail, code) {
            (Detail::Full, code) => code,
            (
                Detail::Lean,
                CloseCode::Normal
                | CloseCode::GoingAway
                | CloseCode::NoStatus
                | CloseCode::Abnormal
                | CloseCode::ServiceRestart,
            ) => code,
            (Detail::Lean, _) => CloseCode::Other,
        }
    }

    fn key(&self, series: &Series, labels: &[(&'static str, &'static str)]) -> Key {
        let upstream = self.upstream.map(|name| Label::new("upstream", name.to_owned()));
        let labels = labels.iter().map(|&(key, value)| Label::from_static_parts(key, value));
        Key::from_parts(series.name, upstream.into_iter().chain(labels).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{Method, StatusCode};

    use super::*;
    use crate::heartbeat::{AckOrigin, Capability, Withheld};
    use crate::streamlit::messages::{BackType, ForwardType, ScriptResult};
    use crate::websocket::scanner::Lost;

    /// The value of a series, named without prefix as in `acks_total{upstream="app",origin="sidecar"}`.
    #[track_caller]
    fn value(text: &str, series: &str) -> f64 {
        let line = format!("heartbeat_sidecar_{series} ");
        let mut found = text.lines().filter_map(|text| text.strip_prefix(&line));
        let value = found.next().unwrap_or_else(|| panic!("no {series} in:\n{text}"));
        assert_eq!(found.next(), None, "{series} is there twice");
        value.parse().unwrap()
    }

    #[test]
    fn every_series_exists_at_zero_from_the_start() {
        let metrics = Metrics::new();
        let _upstream = metrics.upstream("app");
        let text = metrics.render();
        let mut names = vec!["draining".to_owned()];
        names.extend(["client_connections", "client_connections_limit"].map(str::to_owned));
        names.push("tls_certificate_not_after_seconds".to_owned());
        for name in ["tls_reloads_total", "config_reloads_total"] {
            names.extend(["accepted", "refused"].map(|result| format!("{name}{{result=\"{result}\"}}")));
        }
        names.extend(["heartbeats_total", "native_acks_missed_total"].map(of_app));
        names.extend(["connections", "upstream_acks_natively"].map(of_app));
        for (name, label, values) in LABELLED {
            assert!(!values.is_empty());
            names.extend(values.iter().map(|value| format!("{name}{{upstream=\"app\",{label}=\"{value}\"}}")));
        }
        names.extend(Rejected::ALL.iter().map(|it| format!("http_rejected_total{{reason=\"{}\"}}", it.name())));
        for initiator in ["browser", "upstream", "sidecar"] {
            names.extend(CODES.map(|code| {
                format!("connections_closed_total{{upstream=\"app\",initiator=\"{initiator}\",code=\"{code}\"}}")
            }));
        }
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"] {
            names
                .extend(["2xx", "3xx", "4xx", "5xx"].map(|code| {
                    format!("http_requests_total{{upstream=\"app\",method=\"{method}\",code=\"{code}\"}}")
                }));
        }
        for (direction, types) in [
            ("browser_to_upstream", BackType::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>()),
            ("upstream_to_browser", ForwardType::ALL.iter().map(|kind| kind.name()).collect()),
        ] {
            for name in ["messages_total", "message_bytes_total"] {
                names.extend(
                    types
                        .iter()
                        .map(|kind| format!("{name}{{upstream=\"app\",direction=\"{direction}\",type=\"{kind}\"}}")),
                );
            }
        }
        for name in HISTOGRAMS {
            names.extend(["_count", "_sum"].map(|part| of_app(&format!("{name}{part}"))));
            names.push(format!("{name}_bucket{{upstream=\"app\",le=\"+Inf\"}}"));
        }
        for name in &names {
            assert!(value(&text, name) == 0.0, "{name} is not zero");
        }
        assert!(value(&text, "config_last_reload_successful") == 1.0, "what it was started with is in force");
        assert!(value(&text, concat!("build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}")) == 1.0);
        assert!(text.lines().any(|line| line.starts_with("process_resident_memory_bytes ")));
    }

    fn of_app(name: &str) -> String {
        format!("{name}{{upstream=\"app\"}}")
    }

    const LABELLED: [(&str, &str, &[&str]); 11] = [
        ("acks_total", "origin", &["sidecar", "upstream"]),
        ("ack_latency_seconds_count", "origin", &["sidecar", "upstream"]),
        ("acks_withheld_total", "reason", &["upstream_stalled", "upstream_closed", "policy"]),
        (
            "handshakes_total",
            "result",
            &["accepted", "refused", "unreachable", "timeout", "invalid", "abandoned", "superseded"],
        ),
        ("reconnects_total", "cause", &["watchdog", "other"]),
        ("watchdog_pages_total", "result", &["added", "present", "not_streamlit", "forbidden", "encoded"]),
        ("script_runs_total", "result", &["success", "compile_error", "early_for_rerun", "other"]),
        (
            "tap_disabled_total",
            "reason",
            &["extension", "compression", "reserved_bits", "masking", "length", "fragmentation"],
        ),
        ("write_stalls_total", "direction", &["browser_to_upstream", "upstream_to_browser"]),
        ("connection_duration_seconds_bucket", "le", &["1", "30", "60", "240", "3600", "86400", "+Inf"]),
        ("proof_rtt_seconds_bucket", "le", &["0.0001", "60", "+Inf"]),
    ];

    const CODES: [&str; 16] = [
        "1000", "1001", "1002", "1003", "1005", "1006", "1007", "1008", "1009", "1010", "1011", "1012", "1013", "1014",
        "1015", "other",
    ];

    const HISTOGRAMS: [&str; 7] = [
        "proof_rtt_seconds",
        "browser_rtt_seconds",
        "heartbeat_interval_seconds",
        "connection_duration_seconds",
        "handshake_seconds",
        "script_run_seconds",
        "http_request_seconds",
    ];

    #[test]
    fn every_family_is_explained_and_no_histogram_is_a_summary() {
        let metrics = Metrics::new();
        let _upstream = metrics.upstream("app");
        let text = metrics.render();
        let families: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert!(families.len() > 25);
        for family in families {
            let (name, kind) = family.split_once(' ').unwrap();
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            let moment = name == "heartbeat_sidecar_tls_certificate_not_after_seconds";
            let duration = name.starts_with("heartbeat_sidecar_") && name.ends_with("_seconds") && !moment;
            assert_eq!(kind == "histogram", duration);
        }
    }

    #[test]
    fn each_function_counts_in_its_own_series() {
        let metrics = Metrics::new();
        let app = metrics.upstream("app");
        let _other = metrics.upstream("other");
        let second = Duration::from_secs(1);
        app.heartbeat(None);
        app.heartbeat(Some(second));
        app.ack(AckOrigin::Upstream, Some(second));
        app.ack_withheld(Withheld::Policy);
        app.native_ack_missed();
        app.proof_rtt(second);
        app.browser_rtt(second);
        app.acks_natively(Capability::Native);
        app.handshake(Handshake::Timeout, second);
        app.reconnect(Reconnect::Watchdog);
        app.watchdog_page(WatchdogPage::Forbidden);
        app.connection_opened();
        app.connection_opened();
        app.connection_closed(Initiator::Sidecar, CloseCode::GoingAway, second);
        app.back_messages(BackType::RerunScript, 1, 7);
        app.forward_messages(ForwardType::Unknown, 1, 200_000_000);
        app.script_run(ScriptResult::EarlyForRerun, None);
        app.script_run(ScriptResult::Success, Some(second));
        app.tap_disabled(Lost::Masking.into());
        app.write_stall(Direction::UpstreamToBrowser);
        app.http_request(&Method::DELETE, StatusCode::NOT_FOUND, second);
        metrics.draining(true);
        metrics.http_rejected(Rejected::Host);
        metrics.client_connections_limit(7);
        metrics.tls_reload(Reload::Refused);
        metrics.config_reload(Reload::Accepted);
        metrics.config_reload(Reload::Refused);
        metrics.tls_not_after(2_000_000_000);
        metrics.client_connection_opened();
        metrics.client_connection_opened();
        metrics.client_connection_closed();
        let text = metrics.render();
        for (series, expected) in COUNTED {
            assert!(value(&text, series) == *expected, "{series} in:\n{text}");
        }
        let moved = text.lines().filter(|line| line.contains("upstream=\"app\"") && !line.contains("_seconds"));
        let moved = moved.filter(|line| !line.ends_with(" 0")).count();
        let listed = COUNTED.iter().filter(|(name, _)| name.contains("app") && !name.contains("_seconds")).count();
        assert_eq!(moved, listed, "something else moved too:\n{text}");
        assert!(text.lines().filter(|line| line.contains("upstream=\"other\"")).all(|line| line.ends_with(" 0")));
    }

    const COUNTED: &[(&str, f64)] = &[
        ("heartbeats_total{upstream=\"app\"}", 2.0),
        ("heartbeat_interval_seconds_count{upstream=\"app\"}", 1.0),
        ("acks_total{upstream=\"app\",origin=\"upstream\"}", 1.0),
        ("ack_latency_seconds_sum{upstream=\"app\",origin=\"upstream\"}", 1.0),
        ("ack_latency_seconds_count{upstream=\"app\",origin=\"sidecar\"}", 0.0),
        ("acks_withheld_total{upstream=\"app\",reason=\"policy\"}", 1.0),
        ("native_acks_missed_total{upstream=\"app\"}", 1.0),
        ("proof_rtt_seconds_count{upstream=\"app\"}", 1.0),
        ("browser_rtt_seconds_count{upstream=\"app\"}", 1.0),
        ("upstream_acks_natively{upstream=\"app\"}", 1.0),
        ("handshakes_total{upstream=\"app\",result=\"timeout\"}", 1.0),
        ("handshake_seconds_bucket{upstream=\"app\",le=\"0.5\"}", 0.0),
        ("handshake_seconds_bucket{upstream=\"app\",le=\"1\"}", 1.0),
        ("reconnects_total{upstream=\"app\",cause=\"watchdog\"}", 1.0),
        ("watchdog_pages_total{upstream=\"app\",result=\"forbidden\"}", 1.0),
        ("connections{upstream=\"app\"}", 1.0),
        ("connections_closed_total{upstream=\"app\",initiator=\"sidecar\",code=\"1001\"}", 1.0),
        ("connection_duration_seconds_count{upstream=\"app\"}", 1.0),
        ("messages_total{upstream=\"app\",direction=\"browser_to_upstream\",type=\"rerun_script\"}", 1.0),
        ("message_bytes_total{upstream=\"app\",direction=\"browser_to_upstream\",type=\"rerun_script\"}", 7.0),
        ("messages_total{upstream=\"app\",direction=\"upstream_to_browser\",type=\"unknown\"}", 1.0),
        ("message_bytes_total{upstream=\"app\",direction=\"upstream_to_browser\",type=\"unknown\"}", 200_000_000.0),
        ("script_runs_total{upstream=\"app\",result=\"early_for_rerun\"}", 1.0),
        ("script_runs_total{upstream=\"app\",result=\"success\"}", 1.0),
        ("script_run_seconds_count{upstream=\"app\"}", 1.0),
        ("tap_disabled_total{upstream=\"app\",reason=\"masking\"}", 1.0),
        ("write_stalls_total{upstream=\"app\",direction=\"upstream_to_browser\"}", 1.0),
        ("http_requests_total{upstream=\"app\",method=\"DELETE\",code=\"4xx\"}", 1.0),
        ("http_request_seconds_count{upstream=\"app\"}", 1.0),
        ("draining", 1.0),
        ("client_connections", 1.0),
        ("client_connections_limit", 7.0),
        ("tls_reloads_total{result=\"refused\"}", 1.0),
        ("config_reloads_total{result=\"accepted\"}", 1.0),
        ("config_reloads_total{result=\"refused\"}", 1.0),
        ("config_last_reload_successful", 0.0),
        ("tls_reloads_total{result=\"accepted\"}", 0.0),
        ("tls_certificate_not_after_seconds", 2_000_000_000.0),
        ("http_rejected_total{reason=\"host\"}", 1.0),
        ("http_rejected_total{reason=\"size\"}", 0.0),
    ];

    #[test]
    fn upkeep_loses_no_sample() {
        let metrics = Metrics::new();
        let app = metrics.upstream("app");
        for _ in 0..1000 {
            app.proof_rtt(Duration::from_millis(1));
            metrics.upkeep();
        }
        assert!(value(&metrics.render(), "proof_rtt_seconds_count{upstream=\"app\"}") == 1000.0);
    }

    #[test]
    fn two_sidecars_in_one_process_count_apart() {
        let (first, second) = (Metrics::new(), Metrics::new());
        first.upstream("app").native_ack_missed();
        let _app = second.upstream("app");
        assert!(value(&first.render(), "native_acks_missed_total{upstream=\"app\"}") == 1.0);
        assert!(value(&second.render(), "native_acks_missed_total{upstream=\"app\"}") == 0.0);
    }
}
