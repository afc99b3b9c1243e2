//! Invalid arguments and configurations: the exit code, the reason, and the log format.

use std::fs;

use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::process::{command, command_with};

const LOCAL: [&str; 2] = ["--listen=127.0.0.1:0", "--admin=127.0.0.1:0"];

#[tokio::test]
async fn invalid_arguments_exit_with_2_and_check_exits_with_1_for_an_invalid_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sidecar.toml");
    fs::write(&file, "[drain]\ntimeout = 5\n").unwrap();
    let (bad, none) = (format!("--config={}", file.display()), "--config=/none/sidecar.toml");
    let variable = ("HEARTBEAT_SIDECAR_ADMIN", "localhost");
    let number = "-1\" is not a number from 0 to 1000000";
    for subcommand in ["run", "check"] {
        for (argument, variable, expected) in [
            ("--nope", None, "unexpected argument '--nope' found"),
            ("--listen=x", None, "--listen: \"x\" is not a socket address"),
            ("--limits-connections=-1", None, number),
            ("--tls-key=/none/a.key", None, "also needs tls.certificate"),
            ("--log-level=info", Some(variable), "HEARTBEAT_SIDECAR_ADMIN: \"localhost\" is not a socket address"),
            (
                "--log-level=info",
                Some(("TOKIO_WORKER_THREADS", "0")),
                "TOKIO_WORKER_THREADS: \"0\" is not a whole number",
            ),
            (&bad, None, "sidecar.toml:2: drain.timeout: expected a string such as"),
            (none, None, "/none/sidecar.toml: cannot be read"),
        ] {
            let (code, stderr) = command_with(&[subcommand, argument], |command| command.envs(variable)).await;
            let exit_code = if subcommand == "check" && argument != "--nope" { 1 } else { 2 };
            assert_eq!(code, Some(exit_code), "{subcommand} {argument} {variable:?}: {stderr}");
            assert!(stderr.contains(expected), "{subcommand} {argument} {variable:?}: {stderr}");
        }
        // With a space.
        let (code, stderr) = command(&[subcommand, "--limits-connections", "-1"]).await;
        assert!(code == Some(if subcommand == "check" { 1 } else { 2 }) && stderr.contains(number), "{stderr}");
    }
    for (line, expected) in [
        ("probe app", "no scheme"),
        ("demo --seconds 1", "1 is not in 6..=86400"),
        ("healthcheck --admin localhost", "--admin: \"localhost\" is not a socket address"),
        ("drain --admin 127.0.0.1:0", "write the port"),
        ("wait --upstream app", "--upstream: \"app\" has no scheme"),
    ] {
        let (code, stderr) = command(&line.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(code, Some(2), "{line}: {stderr}");
        assert!(stderr.contains(expected), "{line}: {stderr}");
    }
}

#[tokio::test]
async fn startup_errors_are_logged_in_the_configured_format() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = format!("--admin={}", taken.local_addr().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let [good, bad] = ["good.toml", "bad.toml"].map(|name| folder.path().join(name));
    fs::write(&good, "log_format = 'json'\n").unwrap();
    fs::write(&bad, "log_format = 'json'\nadmin = 'x'\n[drain]\nwindow = 1\n").unwrap();
    let config = |path: &std::path::Path| format!("--config={}", path.display());
    let (good, bad) = (config(&good), config(&bad));
    let json = "--log-format=json";
    let variable = ("HEARTBEAT_SIDECAR_LOG_FORMAT", "json");
    for (arguments, variable, code, reasons) in [
        (vec![json, "--upstream=x"], None, 2, vec!["--upstream: \"x\" has no scheme"]),
        (vec!["--nope", json], None, 2, vec!["unexpected argument '--nope' found"]),
        (vec!["--nope"], Some(variable), 2, vec!["unexpected argument '--nope' found"]),
        (vec![&good, "--nope"], None, 2, vec!["unexpected argument '--nope' found"]),
        (vec!["--log-format"], Some(variable), 2, vec!["a value is required for '--log-format <text|json>'"]),
        (vec!["--log-format=xml"], Some(variable), 2, vec!["--log-format: \"xml\" is not one of text, json"]),
        (vec![json], Some(("TOKIO_WORKER_THREADS", "many")), 2, vec!["TOKIO_WORKER_THREADS: \"many\" is not a whole"]),
        (
            vec![&bad],
            None,
            2,
            vec!["bad.toml:2: admin: \"x\" is not a socket", "bad.toml:4: drain.window: expected a string such as"],
        ),
        (vec![&good, &taken, "--log-level=off"], None, 1, vec!["admin: cannot listen on 127.0.0.1:"]),
    ] {
        let arguments = [&["run"], &LOCAL[..1], &arguments].concat();
        let (ended, stderr) = command_with(&arguments, |command| command.envs(variable)).await;
        assert_eq!(ended, Some(code), "{arguments:?}: {stderr}");
        let errors: Vec<Value> = stderr.lines().map(|line| serde_json::from_str(line).expect(&stderr)).collect();
        let errors: Vec<_> = errors.iter().filter(|line| line["level"] == "ERROR").collect();
        assert_eq!(errors.len(), reasons.len(), "{stderr}");
        for (error, reason) in errors.iter().zip(reasons) {
            assert!(error["message"].as_str().is_some_and(|message| message.contains(reason)), "{reason}: {error}");
            assert!(error["timestamp"].is_string() && error["target"].is_string(), "{error}");
        }
    }
    // The default is text.
    for (argument, expected) in
        [("--nope", "error: unexpected argument '--nope' found"), ("--admin=x", "error: --admin: ")]
    {
        let (code, stderr) = command(&["run", argument]).await;
        assert!(code == Some(2) && stderr.starts_with(expected), "{stderr}");
    }
    let (code, stderr) = command(&[&["run", taken.as_str(), "--log-level=off"], &LOCAL[..1]].concat()).await;
    assert!(code == Some(1) && stderr.starts_with("error: admin: cannot listen on "), "{stderr}");
}
