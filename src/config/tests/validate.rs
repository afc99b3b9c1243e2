//! Tests of conflicts and warnings, with exact messages.

use super::{load, problems, sources, warnings};

#[test]
fn a_watchdog_needs_acks() {
    assert_eq!(
        problems(&[("watchdog", "self"), ("heartbeat-mode", "forward")], &[]),
        r#"watchdog.mode = "self" (--watchdog) needs acks, which heartbeat.mode = "forward" (--heartbeat-mode) leaves to the app: its pages would reconnect for ever"#
    );
    assert_eq!(
        warnings(&[("watchdog", "self"), ("watchdog-ack-timeout", "1s")], &[]),
        [r#"watchdog.ack_timeout = "1s" (--watchdog-ack-timeout): below 2s, pages on slow links reconnect needlessly"#]
    );
    assert_eq!(warnings(&[("watchdog", "host")], &[("HEARTBEAT_SIDECAR_WATCHDOG_MODE", "self")]).len(), 1);
}

#[test]
fn listen_and_admin_need_different_addresses() {
    assert_eq!(
        problems(&[("admin", "127.0.0.1:8500")], &[]),
        r#"listen = "0.0.0.0:8500" (default) and admin = "127.0.0.1:8500" (--admin) are one address: each needs its own"#
    );
    for (listen, admin, apart) in [
        ("127.0.0.1:0", "127.0.0.1:0", true),
        ("127.0.0.1:1", "127.0.0.2:1", true),
        ("0.0.0.0:1", "[::1]:1", true),
        ("[::]:1", "127.0.0.1:1", false),
        ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", false),
    ] {
        assert_eq!(load(&sources(&[("listen", listen), ("admin", admin)], &[])).is_ok(), apart, "{listen} {admin}");
    }
}

#[test]
fn an_upstream_that_leads_back_to_the_sidecar_is_rejected() {
    assert_eq!(
        problems(&[], &[("HEARTBEAT_SIDECAR_UPSTREAM", "http://localhost:8500")]),
        r#"upstream = "http://localhost:8500" (HEARTBEAT_SIDECAR_UPSTREAM) leads back to listen = "0.0.0.0:8500" (default): the sidecar would proxy itself"#
    );
    assert_eq!(
        problems(&[("upstream", "http://127.0.0.1:9600")], &[]),
        r#"upstream = "http://127.0.0.1:9600" (--upstream) leads back to admin = "127.0.0.1:9600" (default): the sidecar would proxy itself"#
    );
}

#[test]
fn the_proxy_protocol_needs_trusted_proxies_and_trusting_everyone_warns() {
    assert_eq!(
        problems(&[("proxy-protocol", "true"), ("trusted-proxies", "none")], &[]),
        r#"proxy_protocol = "true" (--proxy-protocol) needs at least one trusted proxy, but trusted_proxies = "none" (--trusted-proxies)"#
    );
    assert_eq!(
        warnings(&[("trusted-proxies", "10.0.0.0/8, ::/0")], &[]),
        [
            r#"trusted_proxies = "10.0.0.0/8, ::/0" (--trusted-proxies): any client can forge its address, so limits per client have no effect"#
        ]
    );
    assert_eq!(warnings(&[("trusted-proxies", "none")], &[]), [""; 0]);
}

#[test]
fn risky_heartbeat_settings_cause_warnings() {
    assert_eq!(
        warnings(
            &[("heartbeat-ack", "plain"), ("heartbeat-proof", "connection"), ("heartbeat-stall-after", "2s")],
            &[]
        ),
        [
            r#"heartbeat.ack = "plain" (--heartbeat-ack): each ack opens an error dialog in pages of Streamlit before 1.55"#,
            r#"heartbeat.proof = "connection" (--heartbeat-proof): acks are also sent while the app is frozen"#,
            r#"heartbeat.native_deadline = "2s" (default) is not below heartbeat.stall_after = "2s" (--heartbeat-stall-after): a lost native ack counts as a stalled upstream"#,
        ]
    );
}

#[test]
fn resume_settings_without_effect_cause_warnings() {
    let warn = |flags: &[(&str, &str)]| warnings(flags, &[]);
    assert_eq!(
        warn(&[("resume-window", "10m")]),
        [r#"watchdog.mode = "off" (default): pages get no script, so [resume] has no effect"#]
    );
    assert_eq!(
        warn(&[("watchdog", "self"), ("resume-window", "15s")]),
        [
            r#"resume.window = "15s" (--resume-window) is not above watchdog.interval = "10s" (default) and watchdog.ack_timeout = "5s" (default): sessions end before pages detect a loss"#
        ]
    );
    assert_eq!(
        warn(&[("watchdog", "self"), ("session-takeover", "false")]),
        [
            r#"resume.enabled = "true" (default) has no effect: it needs session.takeover, but session.takeover = "false" (--session-takeover)"#
        ]
    );
    assert_eq!(
        warn(&[("watchdog", "self"), ("resume-parked-bytes", "1048576"), ("resume-buffer", "1048577")]),
        [
            r#"resume.parked_bytes = "1048576" (--resume-parked-bytes) is below resume.buffer = "1048577" (--resume-buffer): parked sessions end before their buffer is full"#
        ]
    );
    for valid in [
        &[("watchdog", "self"), ("resume-window", "16s")][..],
        &[("watchdog", "host"), ("resume-parked-bytes", "1048576")],
        &[("watchdog", "self"), ("resume-enabled", "false"), ("resume-window", "1s")],
    ] {
        assert_eq!(warn(valid), [""; 0], "{valid:?}");
    }
}
