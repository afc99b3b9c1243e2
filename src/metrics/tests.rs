//! Every series: initially zero, with help, and counted by one function each.

use std::time::Duration;

use http::{Method, StatusCode};

use super::*;
use crate::heartbeat::{AckOrigin, Capability, Withheld};
use crate::streamlit::messages::{BackType, ForwardType, ScriptResult};
use crate::websocket::scanner::ProtocolError;

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
    names.push("tls_certificate_not_after_timestamp_seconds".to_owned());
    for name in ["tls_reloads_total", "config_reloads_total"] {
        names.extend(["accepted", "refused"].map(|result| format!("{name}{{result=\"{result}\"}}")));
    }
    names.extend(["heartbeats_total", "native_acks_missed_total", "resume_dropped_bytes_total"].map(of_app));
    names.extend(["sessions", "parked_sessions", "upstream_acks_natively"].map(of_app));
    for (name, label, values) in LABELLED {
        assert!(!values.is_empty());
        names.extend(values.iter().map(|value| format!("{name}{{upstream=\"app\",{label}=\"{value}\"}}")));
    }
    names.extend(Rejected::ALL.iter().map(|it| format!("rejections_total{{reason=\"{}\"}}", it.name())));
    for initiator in ["browser", "upstream", "sidecar"] {
        names.extend(CODES.map(|code| {
            format!("sessions_closed_total{{upstream=\"app\",initiator=\"{initiator}\",code=\"{code}\"}}")
        }));
    }
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"] {
        names.extend(
            ["2xx", "3xx", "4xx", "5xx"]
                .map(|code| format!("http_requests_total{{upstream=\"app\",method=\"{method}\",code=\"{code}\"}}")),
        );
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
    assert!(value(&text, "config_last_reload_successful") == 1.0, "the initial configuration is active");
    assert!(value(&text, concat!("build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}")) == 1.0);
    assert!(text.lines().any(|line| line.starts_with("process_resident_memory_bytes ")));
}

fn of_app(name: &str) -> String {
    format!("{name}{{upstream=\"app\"}}")
}

const LABELLED: [(&str, &str, &[&str]); 17] = [
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
        "sessions_unparsable_total",
        "reason",
        &["extension", "compression", "reserved_bits", "masking", "length", "fragmentation"],
    ),
    ("write_stalls_total", "direction", &["browser_to_upstream", "upstream_to_browser"]),
    ("session_duration_seconds_bucket", "le", &["1", "30", "60", "240", "3600", "86400", "+Inf"]),
    (
        "parked_sessions_ended_total",
        "result",
        &["resumed", "taken_over", "expired", "evicted", "flooded", "app", "drained"],
    ),
    ("resumptions_total", "level", &["one", "two"]),
    ("resumptions_refused_total", "reason", &["unknown", "identity", "stale", "overflow", "invalid"]),
    ("resent_messages_total", "direction", &["browser_to_upstream", "upstream_to_browser"]),
    ("inputs_not_sent_total", "reason", &["age", "changed", "kind"]),
    ("parked_duration_seconds_bucket", "le", &["1", "60", "300", "+Inf"]),
    ("proof_rtt_seconds_bucket", "le", &["0.0001", "60", "+Inf"]),
];

const CODES: [&str; 15] = [
    "1000", "1001", "1002", "1003", "1005", "1006", "1007", "1008", "1009", "1010", "1011", "1012", "1013", "1014",
    "other",
];

const HISTOGRAMS: [&str; 8] = [
    "proof_rtt_seconds",
    "browser_rtt_seconds",
    "heartbeat_interval_seconds",
    "session_duration_seconds",
    "parked_duration_seconds",
    "handshake_duration_seconds",
    "script_run_duration_seconds",
    "http_request_duration_seconds",
];

#[test]
fn every_family_has_a_help_text_and_no_histogram_is_a_summary() {
    let metrics = Metrics::new();
    let _upstream = metrics.upstream("app");
    let text = metrics.render();
    let families: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert!(families.len() > 25);
    for family in families {
        let (name, kind) = family.split_once(' ').unwrap();
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        let moment = name == "heartbeat_sidecar_tls_certificate_not_after_timestamp_seconds";
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
    app.session_opened();
    app.session_opened();
    app.session_closed(Initiator::Sidecar, CloseCode::GoingAway, second);
    app.parked();
    app.parked();
    app.unparked(ParkedEnd::Flooded, second);
    app.resumption(Level::Two);
    app.resumption_refused(ResumptionRefused::Stale);
    app.resent(DirectionLabel::BrowserToUpstream, 3);
    app.resume_overflow(1 << 20);
    app.inputs_not_sent(NotSent::Age, 2);
    app.back_messages(BackType::RerunScript, 1, 7);
    app.forward_messages(ForwardType::Unknown, 1, 200_000_000);
    app.script_run(ScriptResult::EarlyForRerun, None);
    app.script_run(ScriptResult::Success, Some(second));
    app.session_unparsable(ProtocolError::Masking.into());
    app.write_stall(DirectionLabel::UpstreamToBrowser);
    app.http_request(&Method::DELETE, StatusCode::NOT_FOUND, second);
    metrics.draining(true);
    metrics.rejected(Rejected::Host);
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
    assert_eq!(moved, listed, "other series changed too:\n{text}");
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
    ("handshake_duration_seconds_bucket{upstream=\"app\",le=\"0.5\"}", 0.0),
    ("handshake_duration_seconds_bucket{upstream=\"app\",le=\"1\"}", 1.0),
    ("reconnects_total{upstream=\"app\",cause=\"watchdog\"}", 1.0),
    ("watchdog_pages_total{upstream=\"app\",result=\"forbidden\"}", 1.0),
    ("sessions{upstream=\"app\"}", 1.0),
    ("sessions_closed_total{upstream=\"app\",initiator=\"sidecar\",code=\"1001\"}", 1.0),
    ("session_duration_seconds_count{upstream=\"app\"}", 1.0),
    ("parked_sessions{upstream=\"app\"}", 1.0),
    ("parked_sessions_ended_total{upstream=\"app\",result=\"flooded\"}", 1.0),
    ("parked_duration_seconds_bucket{upstream=\"app\",le=\"1\"}", 1.0),
    ("resumptions_total{upstream=\"app\",level=\"two\"}", 1.0),
    ("resumptions_refused_total{upstream=\"app\",reason=\"stale\"}", 1.0),
    ("resent_messages_total{upstream=\"app\",direction=\"browser_to_upstream\"}", 3.0),
    ("resume_dropped_bytes_total{upstream=\"app\"}", 1_048_576.0),
    ("inputs_not_sent_total{upstream=\"app\",reason=\"age\"}", 2.0),
    ("messages_total{upstream=\"app\",direction=\"browser_to_upstream\",type=\"rerun_script\"}", 1.0),
    ("message_bytes_total{upstream=\"app\",direction=\"browser_to_upstream\",type=\"rerun_script\"}", 7.0),
    ("messages_total{upstream=\"app\",direction=\"upstream_to_browser\",type=\"unknown\"}", 1.0),
    ("message_bytes_total{upstream=\"app\",direction=\"upstream_to_browser\",type=\"unknown\"}", 200_000_000.0),
    ("script_runs_total{upstream=\"app\",result=\"early_for_rerun\"}", 1.0),
    ("script_runs_total{upstream=\"app\",result=\"success\"}", 1.0),
    ("script_run_duration_seconds_count{upstream=\"app\"}", 1.0),
    ("sessions_unparsable_total{upstream=\"app\",reason=\"masking\"}", 1.0),
    ("write_stalls_total{upstream=\"app\",direction=\"upstream_to_browser\"}", 1.0),
    ("http_requests_total{upstream=\"app\",method=\"DELETE\",code=\"4xx\"}", 1.0),
    ("http_request_duration_seconds_count{upstream=\"app\"}", 1.0),
    ("draining", 1.0),
    ("client_connections", 1.0),
    ("client_connections_limit", 7.0),
    ("tls_reloads_total{result=\"refused\"}", 1.0),
    ("config_reloads_total{result=\"accepted\"}", 1.0),
    ("config_reloads_total{result=\"refused\"}", 1.0),
    ("config_last_reload_successful", 0.0),
    ("tls_reloads_total{result=\"accepted\"}", 0.0),
    ("tls_certificate_not_after_timestamp_seconds", 2_000_000_000.0),
    ("rejections_total{reason=\"host\"}", 1.0),
    ("rejections_total{reason=\"size\"}", 0.0),
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
fn two_sidecars_in_one_process_count_separately() {
    let (first, second) = (Metrics::new(), Metrics::new());
    let (app, _other) = (first.upstream("app"), second.upstream("app"));
    app.native_ack_missed();
    assert!(value(&first.render(), "native_acks_missed_total{upstream=\"app\"}") == 1.0);
    assert!(value(&second.render(), "native_acks_missed_total{upstream=\"app\"}") == 0.0);
}

#[test]
fn the_series_of_an_upstream_are_removed_with_their_last_handle() {
    let metrics = Metrics::new();
    let (first, second) = (metrics.upstream("app"), metrics.upstream("app"));
    let _other = metrics.upstream("other");
    first.native_ack_missed();
    second.native_ack_missed();
    drop(first);
    let of = |name: &str| metrics.render().matches(&format!("upstream=\"{name}\"")).count();
    assert!(value(&metrics.render(), "native_acks_missed_total{upstream=\"app\"}") == 2.0);
    assert_eq!(of("app"), of("other"));
    drop(second);
    assert!(of("app") == 0 && of("other") > 0);
    let _back = metrics.upstream("app");
    assert!(value(&metrics.render(), "native_acks_missed_total{upstream=\"app\"}") == 0.0);
}
