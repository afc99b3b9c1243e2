//! Tests of the file: every mistake is reported with line and key.

use super::*;

#[test]
fn a_file_may_have_dotted_keys_a_byte_order_mark_and_any_line_endings() {
    let file = "\u{feff}listen = \"[::1]:1\"\r\nheartbeat.mode = 'answer'\r\nheartbeat.stall_after = \"1m 30s\"\r\n";
    let loaded = load_file(file.as_bytes(), Sources::default()).expect("valid");
    assert_eq!(loaded.config.heartbeat.mode, Mode::Answer);
    assert_eq!(loaded.config.heartbeat.stall_after, Duration::from_secs(90));
    assert!(matches!(source(&loaded, "heartbeat.stall_after"), Source::File { line: 3, .. }));
}

#[test]
fn invalid_values_in_a_file_are_reported_with_line_and_key() {
    assert_eq!(
        file_problems("\n[heartbeat]\nmode = \"atuo\"\nstall_after = '2h'\nack = ''\n"),
        [
            r#"sidecar.toml:3: heartbeat.mode: "atuo" is not one of auto, answer, forward"#,
            r#"sidecar.toml:4: heartbeat.stall_after: "2h" is out of range: write more than 0s and at most 1h"#,
            r#"sidecar.toml:5: heartbeat.ack: "" is not one of compatible, plain"#,
        ]
    );
}

#[test]
fn values_of_a_wrong_type_are_rejected_with_an_example() {
    assert_eq!(
        file_problems(
            "listen = 8500\nadmin = ['a']\nlog_level = true\nconnect_timeout = 1.5\nupstream.x = 1\n\
             handshake_timeout = 10:00:00\n[heartbeat]\nnative_deadline = 2\n"
        ),
        [
            r#"sidecar.toml:1: listen: expected a string such as "0.0.0.0:8500", found an integer"#,
            r#"sidecar.toml:2: admin: expected a string such as "127.0.0.1:9600", found an array"#,
            r#"sidecar.toml:3: log_level: expected a string such as "info", found a boolean"#,
            r#"sidecar.toml:4: connect_timeout: expected a string such as "5s", found a float"#,
            r#"sidecar.toml:5: upstream: expected a string such as "http://127.0.0.1:8501", found a table"#,
            r#"sidecar.toml:6: handshake_timeout: expected a string such as "30s", found a date or time"#,
            r#"sidecar.toml:8: heartbeat.native_deadline: expected a string such as "2s", found an integer"#,
        ]
    );
    assert_eq!(
        file_problems("heartbeat = 'auto'"),
        ["sidecar.toml:1: heartbeat: expected a table, [heartbeat], found a string"]
    );
    assert_eq!(
        file_problems("[[heartbeat]]"),
        ["sidecar.toml:1: heartbeat: expected a table, [heartbeat], found an array"]
    );
}

#[test]
fn unknown_keys_suggest_the_nearest_known_one() {
    assert_eq!(
        file_problems(
            "lsiten = 1\nlog-level = 1\nheartbeatMode = 1\nmode = 1\n\
             [heartbeat]\nprof = 1\nadmin = 1\n[herbeat]\nmode = 1\n"
        ),
        [
            "sidecar.toml:1: lsiten: unknown key; did you mean listen?",
            "sidecar.toml:2: log-level: unknown key; did you mean log_level?",
            "sidecar.toml:3: heartbeatMode: unknown key; did you mean heartbeat.mode?",
            "sidecar.toml:4: mode: unknown key; did you mean heartbeat.mode?",
            "sidecar.toml:6: heartbeat.prof: unknown key; did you mean heartbeat.proof?",
            "sidecar.toml:7: heartbeat.admin: unknown key; did you mean admin, above [heartbeat]?",
            "sidecar.toml:8: herbeat: unknown table; did you mean [heartbeat]?",
        ]
    );
}

#[test]
fn unknown_keys_without_a_near_one_list_the_known_ones() {
    assert_eq!(
        file_problems("colour = 1\n\"a\\nb\" = 1\n[heartbeat]\nxyz = 1\n[fish]\n"),
        [
            "sidecar.toml:1: colour: unknown key; valid keys: listen, upstream, admin, log_format, log_level, \
             connect_timeout, handshake_timeout, trusted_proxies, proxy_protocol, allowed_origins, \
             [tls], [upstream_tls], [heartbeat], [session], [drain], [watchdog], [resume], [limits], [metrics], [[route]]",
            "sidecar.toml:2: \"a\\nb\": unknown key; valid keys: listen, upstream, admin, log_format, log_level, \
             connect_timeout, handshake_timeout, trusted_proxies, proxy_protocol, allowed_origins, \
             [tls], [upstream_tls], [heartbeat], [session], [drain], [watchdog], [resume], [limits], [metrics], [[route]]",
            "sidecar.toml:4: heartbeat.xyz: unknown key; valid keys: heartbeat.mode, heartbeat.proof, heartbeat.ack, \
             heartbeat.native_deadline, heartbeat.stall_after",
            "sidecar.toml:5: fish: unknown table; valid tables: tls, upstream_tls, heartbeat, session, drain, watchdog, resume, limits, metrics, route",
        ]
    );
}

#[test]
fn a_number_is_unquoted_and_within_bounds() {
    let loaded = load_file(b"[limits]\nheader_bytes = 8_192\nuri_bytes = 0x1000\n", Sources::default());
    let limits = loaded.expect("valid").config.limits;
    assert_eq!((limits.header_bytes, limits.uri_bytes), (8192, 4096));
    assert_eq!(
        file_problems("[limits]\nheader_bytes = '8192'\nuri_bytes = -1\n"),
        [
            "sidecar.toml:2: limits.header_bytes: expected a number such as 65536, found a string",
            "sidecar.toml:3: limits.uri_bytes: \"-1\" is not a number from 256 to 65534",
        ]
    );
    assert_eq!(
        problems(&[("limits-sessions", "1000001")], &[]),
        "--limits-sessions: 1000001 is out of range: write a number from 0 to 1000000"
    );
    let limits =
        load(&sources(&[("limits-sessions", "7"), ("limits-connections", "0")], &[])).expect("valid").config.limits;
    assert_eq!((limits.sessions.map(|most| most.get()), limits.connections), (Some(7), None), "0 is no limit");
    assert_eq!(
        problems(&[("limits-header-bytes", "9999999")], &[]),
        "--limits-header-bytes: 9999999 is out of range: write a number from 1024 to 1048576"
    );
}

#[test]
fn resume_settings_are_within_bounds() {
    let least = b"[resume]\nwindow = '1s'\nbuffer = 65536\nparked = 1\nparked_bytes = 1048576\nmax_age = '1h'\n";
    let resume = load_file(least, Sources::default()).expect("valid").config.resume;
    let (window, max_age) = (Duration::from_secs(1), Duration::from_secs(3600));
    let expected =
        ResumeSettings { window, buffer_bytes: 65_536, parked: 1, parked_bytes: 1 << 20, max_age, enabled: true };
    assert_eq!(resume, expected);
    assert_eq!(
        file_problems(
            "[resume]\nwindow = '0s'\nbuffer = 65535\nparked = 0\nparked_bytes = 17179869185\nmax_age = '2h'\n"
        ),
        [
            "sidecar.toml:2: resume.window: \"0s\" is out of range: write more than 0s and at most 1day",
            "sidecar.toml:3: resume.buffer: 65535 is out of range: write a number from 65536 to 67108864",
            "sidecar.toml:4: resume.parked: 0 is out of range: write a number from 1 to 1000000",
            "sidecar.toml:5: resume.parked_bytes: 17179869185 is out of range: write a number from 1048576 to 17179869184",
            "sidecar.toml:6: resume.max_age: \"2h\" is out of range: write more than 0s and at most 1h",
        ]
    );
}

#[test]
fn a_switch_is_true_or_false_without_quotes() {
    let loaded = load_file(b"[session]\ntakeover = false\n", Sources::default()).expect("valid");
    assert!(!loaded.config.session.takeover);
    assert_eq!(
        file_problems("[session]\ntakeover = 'false'\ntakeover_timeout = false\n"),
        [
            "sidecar.toml:2: session.takeover: expected true or false, found a string",
            "sidecar.toml:3: session.takeover_timeout: expected a string such as \"500ms\", found a boolean",
        ]
    );
    let problems = problems(&[("session-takeover", "yes")], &[]);
    assert_eq!(problems, "--session-takeover: \"yes\" is not one of true, false");
}

#[test]
fn a_quoted_key_with_a_dot_is_not_a_key_in_a_table() {
    let problems = file_problems("\"heartbeat.mode\" = \"answer\"");
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("sidecar.toml:1: \"heartbeat.mode\": unknown key"), "{problems:?}");
}

#[test]
fn every_syntax_error_is_reported_with_its_line() {
    assert_eq!(
        file_problems("listen = 'a'\nlisten = 'b'\n[heartbeat]\nmode = 'auto'\nmode = 'auto'\nack = plain\nproof\n"),
        [
            "sidecar.toml:2: listen: duplicate key",
            "sidecar.toml:5: mode: duplicate key",
            "sidecar.toml:6: TOML syntax: string values must be quoted, expected literal string (column 7)",
            "sidecar.toml:7: TOML syntax: key with no value, expected `=` (column 6)",
        ]
    );
}

#[test]
fn a_mistake_is_one_line_whatever_the_file_holds() {
    let problems = file_problems("\"a\u{0}b\" = 'c'\n\"a\u{0}b\" = 'c'\n\"a\u{1b}[2J\" = 'c'\n");
    assert!(problems.iter().any(|problem| problem == r#"sidecar.toml:2: "a\u{0}b": duplicate key"#), "{problems:?}");
    assert!(!problems.iter().any(|problem| problem.contains(char::is_control)), "{problems:?}");
}

#[test]
fn an_unreadable_file_is_named_with_the_reason() {
    let text = |bytes: &[u8]| load_file(bytes, Sources::default()).expect_err("a refusal");
    assert_eq!(text(b"# a\n# b\xff\n"), ["sidecar.toml:2: not valid UTF-8"]);
    let comment = vec![b'#'; 1024 * 1024 + 1];
    assert_eq!(text(&comment), ["sidecar.toml: cannot be read: larger than 1 MiB"]);
    assert!(load_file(&comment[1..], Sources::default()).is_ok());

    let folder = tempfile::tempdir().expect("a folder");
    for (path, reason) in [
        (folder.path().to_owned(), "Is a directory (os error 21)"),
        (folder.path().join("none"), "No such file or directory (os error 2)"),
    ] {
        let shown = format!("{}: cannot be read: {reason}", path.display());
        assert_eq!(load(&Sources { config: Some(path), ..Sources::default() }).expect_err("").to_string(), shown);
    }
}

#[test]
fn the_config_flag_overrides_its_variable() {
    let mut sources = sources(&[], &[("HEARTBEAT_SIDECAR_CONFIG", "environment.toml")]);
    assert_eq!(sources.file(), Some(Path::new("environment.toml")));
    sources.config = Some("flag.toml".into());
    assert_eq!(sources.file(), Some(Path::new("flag.toml")));
    assert_eq!(Sources::default().file(), None);
}

/// Two apps, and a top-level value for both.
const ROUTES: &str = r#"
[heartbeat]
stall_after = "7s"

[[route]]
name = "blue"
host = "blue.example"
upstream = "http://127.0.0.1:8601"

[[route]]
name = "green"
path = "/green/"
upstream = "unix:/run/green.sock"

[route.heartbeat]
mode = "answer"
"#;

#[test]
fn routes_inherit_the_top_level_values_that_they_do_not_set() {
    let loaded = load_file(ROUTES.as_bytes(), sources(&[("heartbeat-proof", "connection")], &[])).expect("valid");
    let [blue, green] = &loaded.config.apps()[..] else { panic!("two apps") };
    assert_eq!((blue.name.as_str(), blue.path.to_string().as_str()), ("blue", "/"));
    assert_eq!(blue.host.as_ref().map(HostPattern::to_string).as_deref(), Some("blue.example"));
    assert_eq!(
        (green.path.to_string(), green.upstream.to_string()),
        ("/green".to_owned(), "unix:/run/green.sock".to_owned())
    );
    assert_eq!((blue.heartbeat.mode, green.heartbeat.mode), (Mode::Auto, Mode::Answer));
    for app in [blue, green] {
        assert_eq!((app.heartbeat.stall_after, app.heartbeat.proof), (Duration::from_secs(7), Proof::Connection));
    }
    let origins = |key: &str| {
        let of = |route: &Vec<Effective>| route.iter().find(|it| it.key == key).map(|it| it.source.to_string());
        loaded
            .routes
            .iter()
            .map(|route| of(route).map(|origin| origin.rsplit('/').next().unwrap_or_default().to_owned()))
            .collect::<Vec<_>>()
    };
    let lines = |one: &str, other: &str| vec![Some(one.to_owned()), Some(other.to_owned())];
    assert_eq!(origins("name"), lines("sidecar.toml:6", "sidecar.toml:11"));
    assert_eq!(origins("host"), [Some("sidecar.toml:7".to_owned()), None]);
    assert_eq!(origins("path"), lines("default", "sidecar.toml:12"));
    assert_eq!(origins("heartbeat.mode"), lines("default", "sidecar.toml:16"));
    assert_eq!(origins("heartbeat.stall_after"), lines("sidecar.toml:3", "sidecar.toml:3"));
    assert_eq!(origins("heartbeat.proof"), lines("--heartbeat-proof", "--heartbeat-proof"));
    assert_eq!(loaded.warnings.len(), 1, "one warning for both routes: {:?}", loaded.warnings);
}

#[test]
fn without_routes_one_app_gets_every_request() {
    let [app] = &Config::default().apps()[..] else { panic!("one app") };
    assert_eq!(app.name, Config::ONLY_APP);
    assert!(app.matches("any.example", "*") && app.matches("", "/_stcore/stream"));
}

#[test]
fn mistakes_in_a_route_are_reported_with_their_line() {
    assert_eq!(
        file_problems(
            "[[route]]\nname = 'a b'\nhost = 'a:80'\npath = 'a'\nupstream = 'x'\nheartbeat.mode = 'on'\n\
             [[route]]\nhosts = 'a'\nname = 1\n[route.heartbeat]\nmod = 'auto'\n"
        ),
        [
            r#"sidecar.toml:2: route.name: "a b" is not a route name: write at most 63 letters, digits, dashes, dots and underscores"#,
            r#"sidecar.toml:3: route.host: "a:80": write a host name without scheme, port or path: app.example or *.apps.example"#,
            r#"sidecar.toml:4: route.path: "a" must start with "/", such as "/forecast""#,
            r#"sidecar.toml:5: route.upstream: "x" has no scheme: write "http://x""#,
            r#"sidecar.toml:6: route.heartbeat.mode: "on" is not one of auto, answer, forward"#,
            "sidecar.toml:7: route: needs name",
            "sidecar.toml:7: route: needs upstream",
            "sidecar.toml:8: route.hosts: unknown key; did you mean route.host?",
            "sidecar.toml:9: route.name: expected a string, found an integer",
            "sidecar.toml:11: route.heartbeat.mod: unknown key; did you mean route.heartbeat.mode?",
        ]
    );
    for (text, problem) in [
        ("[route]\nname = 'a'\n", "sidecar.toml:1: route: expected an array of tables, [[route]], found a table"),
        ("route = ['a']\n", "sidecar.toml:1: route: expected an array of tables, [[route]], found a string"),
        ("[[rout]]\n", "sidecar.toml:1: rout: unknown table; did you mean [[route]]?"),
        ("[rout]\n", "sidecar.toml:1: rout: unknown table; did you mean [[route]]?"),
    ] {
        assert_eq!(file_problems(text), [problem], "{text}");
    }
}

#[test]
fn routes_with_equal_names_or_equal_matches_are_rejected() {
    let two = |first: &str, second: &str| {
        file_problems(&format!(
            "[[route]]\n{first}\nupstream = 'http://a'\n[[route]]\n{second}\nupstream = 'http://b'\n"
        ))
    };
    assert_eq!(
        two("name = 'a'\npath = '/x'", "name = 'a'"),
        [r#"sidecar.toml:5: duplicate route name "a" (first at sidecar.toml:1)"#]
    );
    assert_eq!(
        two("name = 'a'\nhost = 'A.b'\npath='/x/'", "name = 'b'\nhost = 'a.B'\npath='/x'"),
        [r#"sidecar.toml:6: route "b": same host and path as route "a" (at sidecar.toml:1)"#]
    );
}

#[test]
fn routes_and_a_top_level_upstream_exclude_each_other() {
    let file = b"[[route]]\nname = 'a'\nupstream = 'http://127.0.0.1:8500'\n";
    assert_eq!(
        load_file(file, sources(&[("upstream", "http://b")], &[])).expect_err("both"),
        [
            r#"upstream = "http://b:80" (--upstream) and [[route]] exclude each other: each route has its own upstream"#,
            r#"upstream = "http://127.0.0.1:8500" (sidecar.toml:3) leads back to listen = "0.0.0.0:8500" (default): the sidecar would proxy itself"#,
        ]
    );
    let forwards =
        b"[watchdog]\nmode = 'self'\n[[route]]\nname = 'a'\nupstream = 'http://a'\nheartbeat.mode = 'forward'\n";
    assert_eq!(
        load_file(forwards, Sources::default()).expect_err("no acks"),
        [
            r#"watchdog.mode = "self" (sidecar.toml:2) needs acks, which heartbeat.mode = "forward" (sidecar.toml:6) leaves to the app: its pages would reconnect for ever"#
        ]
    );
}

#[test]
fn a_further_certificate_needs_both_files_and_the_first_pair() {
    assert_eq!(
        file_problems(
            "[[tls.certificates]]\ncertificate = 'a.crt'\n[[tls.certificates]]\nkey = 'b/'\n[[tls.certificates]]\n\
             certificate = 1\nkeys = 'c'\n"
        ),
        [
            "sidecar.toml:1: tls.certificates: needs key",
            "sidecar.toml:3: tls.certificates: needs certificate",
            r#"sidecar.toml:4: tls.certificates.key: "b/" is a folder: write the path of a file, or nothing"#,
            "sidecar.toml:5: tls.certificates: needs certificate",
            "sidecar.toml:5: tls.certificates: needs key",
            "sidecar.toml:6: tls.certificates.certificate: expected a string, found an integer",
            "sidecar.toml:7: tls.certificates.keys: unknown key; did you mean tls.certificates.key?",
        ]
    );
    assert_eq!(
        file_problems("[tls.certificates]\nkey = 'a'\n"),
        ["sidecar.toml:1: tls.certificates: expected an array of tables, [[tls.certificates]], found a table"]
    );
    let alone = b"[[tls.certificates]]\ncertificate = 'a.crt'\nkey = 'a.key'\n";
    assert_eq!(
        load_file(alone, Sources::default()).expect_err("no first one"),
        ["[[tls.certificates]] also needs tls.certificate and tls.key, the pair for all other names"]
    );
}
