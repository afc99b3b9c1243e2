//! Tests of the configuration's inputs, with exact messages.

mod files;
mod pem;
mod validate;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::document::Document;
use super::*;
use crate::heartbeat::{Mode, Proof};

/// Flags and variables by name, and no file.
fn sources(flags: &[(&str, &str)], environment: &[(&str, &str)]) -> Sources {
    let setting = |flag: &str| SETTINGS.iter().find(|setting| setting.flag() == flag).expect("a known flag");
    Sources {
        config: None,
        environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        flags: flags.iter().map(|(flag, value)| (setting(flag), (*value).to_owned())).collect(),
    }
}

/// Loads a file `sidecar.toml` of these bytes; its folder is removed from messages.
fn load_file(bytes: &[u8], mut sources: Sources) -> Result<Loaded, Vec<String>> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sidecar.toml");
    fs::write(&path, bytes).expect("a file");
    sources.config = Some(path);
    load(&sources).map_err(|problems| {
        let folder = format!("{}/", folder.path().display());
        problems.0.iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
    })
}

fn file_problems(text: &str) -> Vec<String> {
    load_file(text.as_bytes(), Sources::default()).expect_err(text)
}

fn problems(flags: &[(&str, &str)], environment: &[(&str, &str)]) -> String {
    load(&sources(flags, environment)).expect_err("a refusal").to_string()
}

fn warnings(flags: &[(&str, &str)], environment: &[(&str, &str)]) -> Vec<String> {
    load(&sources(flags, environment)).expect("a valid configuration").warnings
}

fn source(loaded: &Loaded, key: &str) -> Source {
    loaded.settings.iter().find(|setting| setting.key == key).expect("a known key").source.clone()
}

#[test]
fn empty_sources_give_the_defaults_without_a_warning() {
    let loaded = load(&Sources::default()).expect("defaults");
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.warnings, [""; 0]);
    let shown: Vec<_> = loaded.settings.iter().map(|setting| (setting.key, setting.value.as_str())).collect();
    assert_eq!(
        shown,
        [
            ("listen", "0.0.0.0:8500"),
            ("upstream", "http://127.0.0.1:8501"),
            ("admin", "127.0.0.1:9600"),
            ("log_format", "text"),
            ("log_level", "info"),
            ("connect_timeout", "5s"),
            ("handshake_timeout", "30s"),
            ("trusted_proxies", "private"),
            ("proxy_protocol", "false"),
            ("allowed_origins", "any"),
            ("tls.certificate", ""),
            ("tls.key", ""),
            ("tls.client_ca", ""),
            ("tls.http2", "true"),
            ("upstream_tls.ca", ""),
            ("upstream_tls.certificate", ""),
            ("upstream_tls.key", ""),
            ("upstream_tls.server_name", ""),
            ("heartbeat.mode", "auto"),
            ("heartbeat.proof", "pong"),
            ("heartbeat.ack", "compatible"),
            ("heartbeat.native_deadline", "2s"),
            ("heartbeat.stall_after", "5s"),
            ("session.takeover", "true"),
            ("session.takeover_timeout", "500ms"),
            ("session.dead_peer_timeout", "30s"),
            ("session.write_stall_timeout", "2m"),
            ("session.browser_ping_interval", "off"),
            ("session.shield_pings", "false"),
            ("drain.delay", "0s"),
            ("drain.window", "2s"),
            ("drain.timeout", "10s"),
            ("drain.close_code", "1001"),
            ("watchdog.mode", "off"),
            ("watchdog.interval", "10s"),
            ("watchdog.ack_timeout", "5s"),
            ("resume.enabled", "true"),
            ("resume.window", "5m"),
            ("resume.buffer", "1048576"),
            ("resume.parked", "1000"),
            ("resume.parked_bytes", "16777216"),
            ("resume.max_age", "1m"),
            ("limits.header_bytes", "65536"),
            ("limits.uri_bytes", "16384"),
            ("limits.idle_timeout", "1m 15s"),
            ("limits.body_timeout", "1m"),
            ("limits.connections", "0"),
            ("limits.connections_per_address", "0"),
            ("limits.handshakes_per_second", "0"),
            ("limits.sessions", "0"),
            ("metrics.detail", "full"),
        ]
    );
    assert!(loaded.settings.iter().all(|setting| setting.source == Source::Default));
}

#[test]
fn flag_and_variable_are_derived_from_the_key() {
    let names: Vec<_> = SETTINGS.iter().map(|setting| (setting.flag(), setting.variable())).collect();
    assert!(
        names.contains(&("heartbeat-native-deadline".into(), "HEARTBEAT_SIDECAR_HEARTBEAT_NATIVE_DEADLINE".into()))
    );
    assert!(names.contains(&("log-format".into(), "HEARTBEAT_SIDECAR_LOG_FORMAT".into())));
    assert!(names.contains(&("watchdog".into(), "HEARTBEAT_SIDECAR_WATCHDOG".into())), "the flag sets the mode");
}

#[test]
fn the_keys_of_each_table_are_contiguous_after_the_top_level() {
    let mut tables: Vec<_> = SETTINGS.iter().map(Setting::table).collect();
    tables.dedup();
    assert_eq!(
        tables,
        ["", "tls", "upstream_tls", "heartbeat", "session", "drain", "watchdog", "resume", "limits", "metrics"]
    );
}

#[test]
fn every_setting_accepts_its_default_and_changes_no_other_field() {
    for setting in SETTINGS {
        let mut config = Config::default();
        assert_eq!((setting.set)(&mut config, &setting.default_text()), Ok(()), "{}", setting.key);
        assert_eq!(config, Config::default(), "{}", setting.key);
    }
}

#[test]
fn a_flag_overrides_the_environment_which_overrides_the_file() {
    let file = b"# first\nlisten = '127.0.0.1:1'\nadmin = '127.0.0.1:2'\nupstream = 'http://file'\n";
    let environment = [("HEARTBEAT_SIDECAR_LISTEN", "127.0.0.1:11"), ("HEARTBEAT_SIDECAR_ADMIN", "127.0.0.1:12")];
    let loaded = load_file(file, sources(&[("listen", "127.0.0.1:21")], &environment)).expect("valid");
    assert_eq!(loaded.config.listen.port(), 21);
    assert_eq!(loaded.config.admin.port(), 12);
    assert_eq!(loaded.config.upstream.to_string(), "http://file:80");
    assert_eq!(loaded.config.heartbeat.mode, Mode::Auto);
    assert_eq!(source(&loaded, "listen").to_string(), "--listen");
    assert_eq!(source(&loaded, "admin").to_string(), "HEARTBEAT_SIDECAR_ADMIN");
    assert!(matches!(source(&loaded, "upstream"), Source::File { line: 4, .. }));
    assert_eq!(source(&loaded, "heartbeat.mode").to_string(), "default");
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let environment = [("HEARTBEAT_SIDECAR_LISTEN", ""), ("HEARTBEAT_SIDECAR_CONFIG", ""), ("HEARTBEAT_SIDECAR_X", "")];
    let loaded = load(&sources(&[], &environment)).expect("valid");
    assert_eq!((loaded.config, loaded.warnings), (Config::default(), vec![]));
}

#[test]
fn a_drain_may_have_no_delay_but_needs_time_to_close() {
    let loaded = load_file(b"[drain]\ndelay = '5s'\nwindow = '0s'\nclose_code = 1012\n", Sources::default());
    let Loaded { config, warnings: none, .. } = loaded.expect("valid");
    assert_eq!((config.drain.delay, config.drain.window), (Duration::from_secs(5), Duration::ZERO));
    assert_eq!((config.drain.close_code.number(), none), (1012, vec![]));
    assert_eq!(
        file_problems("[drain]\ndelay = '25h'\ntimeout = '0s'\nclose_code = 1000\n"),
        [
            "sidecar.toml:2: drain.delay: \"25h\" is out of range: write at most 1day",
            "sidecar.toml:3: drain.timeout: \"0s\" is out of range: write more than 0s and at most 1day",
            "sidecar.toml:4: drain.close_code: \"1000\" is not one of 1001, 1012",
        ]
    );
    assert_eq!(
        warnings(&[("drain-delay", "5s"), ("drain-window", "5s")], &[]),
        [
            r#"drain.delay = "5s" (--drain-delay) and drain.window = "5s" (--drain-window) leave nothing of drain.timeout = "10s" (default): some websockets are cut, not closed"#
        ]
    );
    assert_eq!(warnings(&[("drain-delay", "5s"), ("drain-window", "4s")], &[]), [""; 0]);
}

#[test]
fn invalid_values_are_rejected_with_their_flag_or_variable() {
    let environment = [("HEARTBEAT_SIDECAR_LISTEN", "localhost:1"), ("HEARTBEAT_SIDECAR_DRAIN_TIMEOUT", "10")];
    let flags = [("log-format", "xml"), ("log-level", "inof"), ("handshake-timeout", "0s"), ("connect-timeout", "25h")];
    let messages = problems(&flags, &environment);
    assert_eq!(
        messages.lines().collect::<Vec<_>>(),
        [
            r#"HEARTBEAT_SIDECAR_LISTEN: "localhost:1" is not a socket address: write IP:PORT, such as 0.0.0.0:8500 or [::]:8500"#,
            r#"HEARTBEAT_SIDECAR_DRAIN_TIMEOUT: "10" is not a duration: write a number and a unit, such as 500ms, 2s or 1m 30s"#,
            r#"--log-format: "xml" is not one of text, json"#,
            r#"--log-level: "inof" is not a log level: write error, warn, info, debug or trace, or a filter such as info,heartbeat_sidecar=debug"#,
            r#"--handshake-timeout: "0s" is out of range: write more than 0s and at most 1day"#,
            r#"--connect-timeout: "25h" is out of range: write more than 0s and at most 1day"#,
        ]
    );
}

#[test]
fn an_overridden_value_must_be_valid_too() {
    let problems = load_file(b"listen = ''", sources(&[("listen", "127.0.0.1:0")], &[])).expect_err("a bad file");
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn control_characters_are_rejected_everywhere() {
    assert_eq!(
        problems(&[("upstream", "unix:/a\nb")], &[("HEARTBEAT_SIDECAR_HEARTBEAT_MODE", "auto\n")]),
        "HEARTBEAT_SIDECAR_HEARTBEAT_MODE: \"auto\\n\" contains a control character\n\
         --upstream: \"unix:/a\\nb\" contains a control character"
    );
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf8_is_rejected() {
    use std::os::unix::ffi::OsStringExt;
    let value = OsString::from_vec(vec![0xff]);
    let environment = BTreeMap::from([("HEARTBEAT_SIDECAR_LISTEN".into(), value)]);
    let problems = load(&Sources { environment, ..Sources::default() }).expect_err("a refusal");
    assert_eq!(problems.to_string(), "HEARTBEAT_SIDECAR_LISTEN: not valid UTF-8");
}

#[test]
fn log_filters_are_levels_and_directives() {
    for text in ["error", "warn", "info", "debug", "trace", "off", "info,heartbeat_sidecar=debug", "a::b=trace,warn"] {
        let loaded = load(&sources(&[("log-level", text)], &[])).expect(text);
        assert_eq!(loaded.config.log.level, text);
    }
    for text in ["", "info,", "info, warn", "verbose", "a=verbose", "heartbeat_sidecar", "a=[", "a=b=c"] {
        assert!(problems(&[("log-level", text)], &[]).contains("is not a log level"), "{text}");
    }
}

#[test]
fn unknown_variables_cause_warnings_except_those_of_kubernetes() {
    let environment = [
        ("HEARTBEAT_SIDECAR_CONFGI", ""),
        ("HEARTBEAT_SIDECAR_COLOUR", "red"),
        ("HEARTBEAT_SIDECAR_HEARTBEAT_MOD", "auto"),
        ("HEARTBEAT_SIDECAR_WATCHDOG_MODE", "self"),
        ("HEARTBEAT_SIDECAR_ADMIN_PORT", "9600"),
        ("HEARTBEAT_SIDECAR_PORT", "tcp://10.0.0.1:8500"),
        ("HEARTBEAT_SIDECAR_PORT_8500_TCP", "tcp://10.0.0.1:8500"),
        ("HEARTBEAT_SIDECAR_PORT_8500_TCP_ADDR", "10.0.0.1"),
        ("HEARTBEAT_SIDECAR_PORT_8500_TCP_PORT", "8500"),
        ("HEARTBEAT_SIDECAR_PORT_8500_TCP_PROTO", "tcp"),
        ("HEARTBEAT_SIDECAR_PORT_53_UDP_ADDR", "10.0.0.1"),
        ("HEARTBEAT_SIDECAR_METRICS_PORT_9600_TCP", "tcp://10.0.0.1:9600"),
        ("HEARTBEAT_SIDECAR_SERVICE_HOST", "10.0.0.1"),
        ("HEARTBEAT_SIDECAR_SERVICE_PORT", "8500"),
        ("HEARTBEAT_SIDECAR_SERVICE_PORT_HTTP", "8500"),
    ];
    assert_eq!(
        warnings(&[], &environment),
        [
            "HEARTBEAT_SIDECAR_ADMIN_PORT: unknown environment variable, ignored",
            "HEARTBEAT_SIDECAR_COLOUR: unknown environment variable, ignored",
            "HEARTBEAT_SIDECAR_HEARTBEAT_MOD: unknown environment variable, ignored; \
             did you mean HEARTBEAT_SIDECAR_HEARTBEAT_MODE?",
            "HEARTBEAT_SIDECAR_WATCHDOG_MODE: unknown environment variable, ignored; \
             did you mean HEARTBEAT_SIDECAR_WATCHDOG?",
        ]
    );
    assert_eq!(
        warnings(&[], &[("HEARTBEAT_SIDECAR_CONFIGG", "a.toml")]),
        ["HEARTBEAT_SIDECAR_CONFIGG: unknown environment variable, ignored; did you mean HEARTBEAT_SIDECAR_CONFIG?"]
    );
}

/// Texts close enough to TOML that the parser gets far.
fn fragments() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::sample::select(vec!["listen", "heartbeat", "mode", ".", "=", "[", "]", "[[", "]]", "'", "\"", "\"\"\""]),
        prop::sample::select(vec![
            "\n", "\r", "#", "{", "}", ",", " ", "1", "-", "auto", "\\u", "é", "\u{feff}", "true"
        ]),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat().into_bytes())
}

/// Texts, some of them valid for some setting.
fn texts() -> impl Strategy<Value = String> {
    let likely =
        "(http://|unix:/|info|[1-9]{1,3}(ns|ms|s|m |h )|127[.]0[.]0[.]1:|\\[::\\]:)[0-9a-z:./\\[\\]=, -]{0,12}";
    prop_oneof![any::<String>(), likely]
}

proptest! {
    #[test]
    fn parsing_a_file_never_panics(bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..200), fragments()]) {
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
        let document = Document::parse(&bytes, &load::ARRAYS);
        for line in document.errors.iter().map(|error| error.line) {
            prop_assert!((1..=lines).contains(&line));
        }
        for entry in document.entries {
            let flags = vec![(entry.setting, entry.text)];
            let problems = load(&Sources { flags, ..Sources::default() }).err().map(|Problems(problems)| problems);
            prop_assert!(problems.iter().flatten().all(|problem| !problem.to_string().contains('\n')));
        }
    }

    #[test]
    fn parsing_a_value_never_panics(text in texts(), at in 0..SETTINGS.len()) {
        let setting = &SETTINGS[at];
        let mut config = Config::default();
        match (setting.set)(&mut config, &text) {
            Ok(()) => {
                let shown = (setting.get)(&config);
                let mut again = Config::default();
                prop_assert_eq!((setting.set)(&mut again, &shown), Ok(()), "{}", shown);
                prop_assert_eq!(again, config);
            }
            Err(_) => prop_assert_eq!(config, Config::default(), "a refused value leaves no trace"),
        }
    }
}

#[test]
fn invalid_tls_settings_are_reported() {
    assert_eq!(
        warnings(&[("upstream-tls-server-name", "app.example")], &[]),
        ["upstream = \"http://127.0.0.1:8501\" (default): not an https:// address, so [upstream_tls] has no effect"]
    );
    for (flags, problem) in [
        (
            [("tls-client-ca", "/none/ca.crt"), ("log-level", "info")],
            "tls.client_ca = \"/none/ca.crt\" (--tls-client-ca) also needs tls.certificate and tls.key",
        ),
        (
            [("upstream-tls-key", "/none/tls.key"), ("log-level", "info")],
            "upstream_tls.key = \"/none/tls.key\" (--upstream-tls-key) also needs upstream_tls.certificate",
        ),
        (
            [("tls-certificate", "/none/tls.crt"), ("tls-key", "/none/tls.key")],
            "tls.certificate = \"/none/tls.crt\": cannot be read: No such file or directory (os error 2)",
        ),
        (
            [("tls-certificate", "/none/"), ("log-level", "info")],
            "--tls-certificate: \"/none/\" is a folder: write the path of a file, or nothing",
        ),
        (
            [("upstream-tls-server-name", "a b"), ("log-level", "info")],
            "--upstream-tls-server-name: \"a b\" is not a server name: write a host name or an IP address",
        ),
    ] {
        assert_eq!(problems(&flags, &[]), problem);
    }
}
