//! `check`: prints the effective configuration as a file with the origin of each value, or the errors in it.

use std::io::{self, Write};
use std::process::ExitCode;

use super::run::worker_threads;
use crate::config::{self, Effective, Loaded, Problems, SETTINGS, Sources, TomlType, load};

/// Prints the effective configuration on stdout and warnings or errors on stderr. The exit code is 1 if there are
/// errors, which is the result of the command, or if the output cannot be written.
pub fn check(sources: &Sources) -> ExitCode {
    match report(sources, &mut io::stdout().lock(), &mut io::stderr().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

/// Prints the JSON Schema of the file on stdout; the exit code is 1 if it cannot be written.
pub fn schema() -> ExitCode {
    let schema = format!("{:#}\n", config::schema());
    let written = io::stdout().lock().write_all(schema.as_bytes());
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns whether the configuration is valid.
fn report(sources: &Sources, out: &mut impl Write, err: &mut impl Write) -> io::Result<bool> {
    let loaded = load(sources).and_then(|loaded| {
        // `run` also fails on this, beside the settings.
        worker_threads().map(|_number| loaded).map_err(|problem| Problems(vec![problem]))
    });
    match loaded {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                writeln!(err, "warning: {warning}")?;
            }
            out.write_all(file(&loaded).as_bytes())?;
            out.flush()?;
            Ok(true)
        }
        Err(problems) => {
            for problem in &problems.0 {
                writeln!(err, "error: {problem}")?;
            }
            Ok(false)
        }
    }
}

/// The configuration as a TOML file in aligned columns, with the origins as comments.
fn file(loaded: &Loaded) -> String {
    // With routes, each has its own.
    let holds = |setting: &&Effective| loaded.routes.is_empty() || setting.key != "upstream";
    let lines: Vec<_> = loaded.settings.iter().filter(holds).map(Line::new).collect();
    let of_tables = |header, tables: &[Vec<Effective>]| {
        let table = |table: &Vec<Effective>| (header, table.iter().map(Line::of_list).collect::<Vec<_>>());
        tables.iter().map(table).collect::<Vec<_>>()
    };
    let lists = [of_tables("tls.certificates", &loaded.certificates), of_tables("route", &loaded.routes)].concat();
    let all = || lines.iter().chain(lists.iter().flat_map(|(_header, table)| table));
    let width = |of: fn(&Line) -> &String| all().map(|line| of(line).chars().count()).max().unwrap_or(0);
    let (names, values) = (width(|line| &line.name), width(|line| &line.value));
    let written = |line: &Line| format!("{:names$} = {:values$}  # {}\n", line.name, line.value, line.comment);
    let (mut text, mut table) = (String::new(), "");
    for line in &lines {
        if line.table != table {
            table = line.table;
            text += &format!("\n[{table}]\n");
        }
        text += &written(line);
    }
    for (header, table) in &lists {
        text += &format!("\n[[{header}]]\n");
        text.extend(table.iter().map(written));
    }
    text
}

#[derive(Clone)]
struct Line {
    table: &'static str,
    name: String,
    value: String,
    comment: String,
}

impl Line {
    fn new(effective: &Effective) -> Self {
        let (table, name) = effective.key.split_once('.').unwrap_or(("", effective.key));
        let text = SETTINGS.iter().any(|setting| setting.key == effective.key && setting.toml == TomlType::String);
        Self { table, ..Self::named(name, text, effective) }
    }

    /// For a table of a list, where every value is text.
    fn of_list(effective: &Effective) -> Self {
        Self::named(effective.key, true, effective)
    }

    fn named(name: &str, text: bool, Effective { value, source, .. }: &Effective) -> Self {
        // A file's name may contain characters that a TOML comment must not.
        let comment = source.to_string().replace(char::is_control, "?");
        let value = if text { toml::Value::from(value.as_str()).to_string() } else { value.clone() };
        Self { table: "", name: name.to_owned(), value, comment }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{SETTINGS, Setting};

    fn reported(sources: &Sources) -> (bool, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let valid = report(sources, &mut out, &mut err).expect("memory takes all");
        (valid, String::from_utf8(out).expect("text"), String::from_utf8(err).expect("text"))
    }

    fn with_flags(flags: &[(&str, &str)]) -> Sources {
        let setting = |key: &str| SETTINGS.iter().find(|setting| setting.key == key).expect("a known key");
        let flags = flags.iter().map(|(key, value)| (setting(key), (*value).to_owned())).collect();
        Sources { flags, ..Sources::default() }
    }

    #[test]
    fn a_valid_configuration_is_printed_in_columns_with_origins() {
        let sources = with_flags(&[("upstream", "unix:/run/app.sock"), ("heartbeat.ack", "plain")]);
        let (valid, out, err) = reported(&sources);
        assert!(valid);
        let lines: Vec<_> = out.lines().collect();
        let words = |line: &&str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let words_of_lines: Vec<_> = lines.iter().map(words).collect();
        for line in [
            "upstream = \"unix:/run/app.sock\" # --upstream",
            "proxy_protocol = false # default",
            "ack = \"plain\" # --heartbeat-ack",
            "header_bytes = 65536 # default",
        ] {
            assert!(words_of_lines.contains(&line.to_owned()), "no {line} in\n{out}");
        }
        let columns = |mark| lines.iter().filter_map(move |line| line.find(mark)).collect::<HashSet<_>>();
        assert_eq!((columns(" = ").len(), columns("  # ").len()), (1, 1), "not in columns:\n{out}");
        assert_eq!(
            err,
            "warning: heartbeat.ack = \"plain\" (--heartbeat-ack): each ack opens an error dialog in pages of \
             Streamlit before 1.55\n"
        );
    }

    #[test]
    fn an_invalid_configuration_prints_its_problems_and_nothing_else() {
        let (valid, out, err) = reported(&with_flags(&[("listen", "x"), ("heartbeat.mode", "on")]));
        assert!(!valid);
        assert_eq!(out, "");
        assert_eq!(
            err,
            "error: --listen: \"x\" is not a socket address: write IP:PORT, such as 0.0.0.0:8500 or [::]:8500\n\
             error: --heartbeat-mode: \"on\" is not one of auto, answer, forward\n"
        );
    }

    #[test]
    fn a_file_name_cannot_break_out_of_its_comment() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a\nlisten = 1\n.toml");
        fs::write(&path, "listen = '127.0.0.1:1'").expect("a file");
        let (valid, out, _) = reported(&Sources { config: Some(path), ..Sources::default() });
        assert!(valid);
        assert_eq!(out.lines().count(), SETTINGS.len() + 18);
        assert!(out.contains("a?listen = 1?.toml:1\n"), "{out}");
    }

    #[test]
    fn printed_routes_load_as_the_same_configuration() {
        let folder = tempfile::tempdir().expect("a folder");
        let [path, again] = ["sidecar.toml", "again.toml"].map(|name| folder.path().join(name));
        let route = |name| format!("[[route]]\nname = '{name}'\npath = '/{name}'\nupstream = 'http://{name}'\n");
        fs::write(&path, format!("{}host = '*.b'\n[route.heartbeat]\nmode = 'answer'\n{}", route("a"), route("b")))
            .expect("a file");
        let sources = |path: &std::path::Path| Sources { config: Some(path.to_owned()), ..Sources::default() };
        let (valid, out, err) = reported(&sources(&path));
        assert_eq!((valid, err.as_str()), (true, ""));
        assert!(out.contains("\n[[route]]\nname ") && !out.contains("\nupstream                         "), "{out}");
        fs::write(&again, out).expect("a file");
        let (first, second) = (load(&sources(&path)).expect("valid"), load(&sources(&again)).expect("valid"));
        assert_eq!(first.config.routes.len(), 2);
        assert_eq!(first.config, second.config);
    }

    /// A value that the setting accepts.
    fn value(setting: &Setting) -> BoxedStrategy<String> {
        let select = |words: &[&'static str]| prop::sample::select(words.to_vec()).prop_map(str::to_owned).boxed();
        let duration = || (1..3_600_000_u64).prop_map(|millis| format!("{millis}ms"));
        match (setting.key, setting.value_name) {
            ("listen", _) => (1..8000_u16).prop_map(|port| format!("[::]:{port}")).boxed(),
            ("admin", _) => (8000..9999_u16).prop_map(|port| format!("127.0.0.1:{port}")).boxed(),
            ("upstream", _) => {
                prop_oneof!["http://[a-z]{1,9}:9[0-9]{3}", "http://\\[2001:db8::[1-9]\\]", "unix:/[a-z][ -~é]{0,20}"]
                    .boxed()
            }
            ("log_level", _) => select(&["debug", "info,heartbeat_sidecar=debug", "warn,a[b{c=\"d\"}]=trace"]),
            ("trusted_proxies", _) => select(&["none", "private", "10.0.0.0/8, 2001:db8::/32"]),
            ("allowed_origins", _) => select(&["any", "https://a.example, http://[::1]:8500"]),
            // Needs existing files: see `tests/integration/tls_certificates.rs`.
            (_, "FILE") => Just(String::new()).boxed(),
            (_, "NAME") => select(&["", "app.example", "2001:db8::1"]),
            (_, "DURATION") => duration().boxed(),
            (_, "DURATION|off") => prop_oneof![duration(), Just("off".to_owned())].boxed(),
            ("resume.buffer" | "resume.parked_bytes", _) => {
                (1_u32 << 20..1 << 24).prop_map(|bytes: u32| bytes.to_string()).boxed()
            }
            (_, "BYTES" | "NUMBER") => (1024..9999_u32).prop_map(|bytes| bytes.to_string()).boxed(),
            (_, words) => select(&words.split('|').collect::<Vec<_>>()),
        }
    }

    fn flags() -> impl Strategy<Value = Vec<(&'static str, String)>> {
        SETTINGS.iter().map(value).collect::<Vec<_>>().prop_map(|values| {
            let mut flags: Vec<_> = SETTINGS.iter().map(|setting| setting.key).zip(values).collect();
            // The watchdog needs acks.
            if flags.contains(&("heartbeat.mode", "forward".to_owned())) {
                flags.retain(|(key, _)| *key != "watchdog.mode");
                flags.push(("watchdog.mode", "off".to_owned()));
            }
            // The PROXY protocol needs a trusted proxy.
            if flags.contains(&("trusted_proxies", "none".to_owned())) {
                flags.retain(|(key, _)| *key != "proxy_protocol");
                flags.push(("proxy_protocol", "false".to_owned()));
            }
            flags
        })
    }

    proptest! {
        #[test]
        fn the_printed_file_loads_as_the_same_configuration(flags in flags()) {
            let flags: Vec<_> = flags.iter().map(|(key, value)| (*key, value.as_str())).collect();
            prop_assert_eq!(flags.len(), SETTINGS.len());
            let sources = with_flags(&flags);
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("sidecar.toml");
            fs::write(&path, reported(&sources).1).expect("a file");
            let again = load(&Sources { config: Some(path), ..Sources::default() }).expect("a valid file");
            prop_assert_eq!(again.config, load(&sources).expect("valid flags").config);
        }
    }
}
