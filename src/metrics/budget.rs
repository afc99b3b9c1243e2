//! Tests the limits of a scrape: series, bytes and time, in full and lean.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use super::{CloseCode, Detail, Handshake, Initiator, Metrics, Reconnect};
use crate::heartbeat::{AckOrigin, Withheld};
use crate::streamlit::messages::{ForwardType, ScriptResult};

/// A scrape of a sidecar with one upstream and values of many digits.
fn scrape(detail: Detail) -> String {
    let metrics = Metrics::with_detail(detail);
    let app = metrics.upstream("default");
    metrics.client_connections_limit(523_704);
    for &kind in ForwardType::ALL {
        app.forward_messages(kind, 1 << 40, 1 << 50);
    }
    for micros in 0..10_000 {
        let time = Duration::from_micros(micros * 997);
        app.heartbeat(Some(time));
        app.ack(AckOrigin::Sidecar, Some(time));
        app.ack(AckOrigin::Upstream, Some(time));
        app.proof_rtt(time);
        app.browser_rtt(time);
        app.session_opened();
        app.session_closed(Initiator::Browser, CloseCode::Abnormal, time);
        app.handshake(Handshake::Accepted, time);
        app.script_run(ScriptResult::Success, Some(time));
        app.http_request(&Method::GET, StatusCode::OK, time);
    }
    metrics.render()
}

/// The names of the samples, with their labels.
fn samples(text: &str) -> BTreeSet<&str> {
    let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').expect("a name and a value").0).collect()
}

#[test]
fn a_sidecar_with_one_upstream_has_at_most_430_series_and_160_if_lean() {
    let (full, lean) = (scrape(Detail::Full), scrape(Detail::Lean));
    let (full, lean) = (samples(&full), samples(&lean));
    assert!((300..=430).contains(&full.len()) && (100..=160).contains(&lean.len()), "{} {}", full.len(), lean.len());
    let only_lean: Vec<_> = lean.difference(&full).collect();
    assert!(only_lean.is_empty(), "only in the lean one: {only_lean:?}");
}

#[test]
fn a_scrape_has_at_most_80_kilobytes() {
    let (full, lean) = (scrape(Detail::Full).len(), scrape(Detail::Lean).len());
    assert!((10_000..=80_000).contains(&full) && (1000..=40_000).contains(&lean), "{full} {lean}");
}

#[test]
fn a_scrape_takes_less_than_5_ms() {
    // Without optimization everything takes about ten times as long.
    let bound = Duration::from_millis(if cfg!(debug_assertions) { 50 } else { 5 });
    let metrics = Metrics::new();
    let _app = metrics.upstream("default");
    let took = |_time| {
        let started = Instant::now();
        assert!(metrics.render().len() > 10_000);
        started.elapsed()
    };
    // The fastest run, since other load slows runs.
    let fastest = (0..20).map(took).min().expect("twenty runs");
    assert!(fastest < bound, "{fastest:?}");
}

#[test]
fn lean_keeps_the_series_of_alerts_and_folds_rare_close_codes() {
    let metrics = Metrics::with_detail(Detail::Lean);
    let app = metrics.upstream("app");
    for code in [Some(1000), Some(1002), Some(1013), Some(4000), None] {
        app.session_opened();
        app.session_closed(Initiator::Upstream, code.into(), Duration::from_secs(1));
    }
    app.session_opened();
    app.session_closed(Initiator::Browser, CloseCode::Abnormal, Duration::from_secs(1));
    app.ack_withheld(Withheld::UpstreamStalled);
    app.native_ack_missed();
    app.reconnect(Reconnect::Other);
    app.script_run(ScriptResult::Success, None);
    let text = metrics.render();
    for sample in [
        "heartbeat_sidecar_sessions_closed_total{upstream=\"app\",initiator=\"upstream\",code=\"1000\"} 1",
        "heartbeat_sidecar_sessions_closed_total{upstream=\"app\",initiator=\"upstream\",code=\"other\"} 3",
        "heartbeat_sidecar_sessions_closed_total{upstream=\"app\",initiator=\"upstream\",code=\"1005\"} 1",
        "heartbeat_sidecar_sessions_closed_total{upstream=\"app\",initiator=\"browser\",code=\"1006\"} 1",
        "heartbeat_sidecar_acks_withheld_total{upstream=\"app\",reason=\"upstream_stalled\"} 1",
        "heartbeat_sidecar_native_acks_missed_total{upstream=\"app\"} 1",
        "heartbeat_sidecar_reconnects_total{upstream=\"app\",cause=\"other\"} 1",
        "heartbeat_sidecar_ack_latency_seconds_count{upstream=\"app\",origin=\"sidecar\"} 0",
        "heartbeat_sidecar_rejections_total{reason=\"connections\"} 0",
        "heartbeat_sidecar_tls_reloads_total{result=\"refused\"} 0",
        "heartbeat_sidecar_tls_certificate_not_after_timestamp_seconds 0",
        "heartbeat_sidecar_sessions{upstream=\"app\"} 0",
        "heartbeat_sidecar_resumptions_total{upstream=\"app\",level=\"one\"} 0",
        "heartbeat_sidecar_resumptions_refused_total{upstream=\"app\",reason=\"overflow\"} 0",
    ] {
        assert!(text.lines().any(|line| line == sample), "no {sample} in:\n{text}");
    }
    let names = samples(&text);
    assert!(names.contains("process_open_fds") && names.contains("process_max_fds"));
    assert!(!text.contains("script_run") && !text.contains("messages_total"));
}
