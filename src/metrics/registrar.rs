//! Registers series: one recorder for the sidecar and one per upstream.

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};

use super::close_code::CloseCode;
use super::series::{Detail, HISTOGRAMS, MetricFamily};

/// Creates the handles. A recorder cannot remove a single series; it is dropped with all of them.
pub(super) struct Registrar {
    detail: Detail,
    pub(super) recorder: PrometheusRecorder,
}

impl Registrar {
    /// The exporter ignores it.
    const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

    /// For one upstream, whose series all get its label, or for the sidecar itself.
    pub(super) fn new(detail: Detail, upstream: Option<&str>) -> Self {
        let builder = HISTOGRAMS
            .iter()
            .try_fold(PrometheusBuilder::new(), |builder, histogram| {
                builder.set_buckets_for_metric(Matcher::Full(histogram.name.to_owned()), histogram.buckets)
            })
            .expect("no list of buckets is empty");
        let builder = upstream.into_iter().fold(builder, |builder, name| builder.add_global_label("upstream", name));
        Self { detail, recorder: builder.build_recorder() }
    }

    pub(super) fn counter(&self, family: &MetricFamily, labels: &[(&'static str, &'static str)]) -> Counter {
        if !self.includes(family) {
            return Counter::noop();
        }
        self.recorder.describe_counter(family.name.into(), None, family.help.into());
        self.recorder.register_counter(&key(family, labels), &Self::METADATA)
    }

    pub(super) fn gauge(&self, family: &MetricFamily, labels: &[(&'static str, &'static str)]) -> Gauge {
        if !self.includes(family) {
            return Gauge::noop();
        }
        self.recorder.describe_gauge(family.name.into(), None, family.help.into());
        self.recorder.register_gauge(&key(family, labels), &Self::METADATA)
    }

    pub(super) fn histogram(&self, family: &MetricFamily, labels: &[(&'static str, &'static str)]) -> Histogram {
        if !self.includes(family) {
            return Histogram::noop();
        }
        self.recorder.describe_histogram(family.name.into(), None, family.help.into());
        self.recorder.register_histogram(&key(family, labels), &Self::METADATA)
    }

    fn includes(&self, family: &MetricFamily) -> bool {
        self.detail == Detail::Full || family.lean
    }

    /// The label value that counts a close code: lean folds rare codes into `other`.
    pub(super) fn close_code(&self, code: CloseCode) -> CloseCode {
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
}

fn key(family: &MetricFamily, labels: &[(&'static str, &'static str)]) -> Key {
    let labels = labels.iter().map(|&(key, value)| Label::from_static_parts(key, value));
    Key::from_parts(family.name, labels.collect::<Vec<_>>())
}
