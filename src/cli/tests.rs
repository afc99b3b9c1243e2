//! Tests of the arguments and the help.

use super::*;

fn parsed(line: &str, environment: &[(&str, &str)]) -> Result<Command, clap::Error> {
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
    parse_from(["heartbeat-sidecar"].into_iter().chain(line.split_whitespace()), environment)
}

fn sources(line: &str, environment: &[(&str, &str)]) -> Sources {
    match parsed(line, environment) {
        Ok(Command::Run(sources) | Command::Check(sources)) => sources,
        Ok(Command::Healthcheck(sources, _) | Command::Wait(sources, _) | Command::Drain(sources, _)) => sources,
        Ok(Command::Probe(_) | Command::Demo(_) | Command::Schema) => panic!("{line}: not a command of settings"),
        Ok(Command::Misused(_, error)) | Err(error) => panic!("{error}"),
    }
}

/// The help, with one space between words.
fn help_of(command: &str) -> String {
    let refused = parsed(&format!("{command} --help"), &[]).err().expect("help is clap's error");
    assert_eq!(refused.kind(), clap::error::ErrorKind::DisplayHelp);
    let one_space = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    refused.to_string().lines().map(one_space).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_clap_definition_is_valid() {
    definition().debug_assert();
}

#[test]
fn every_setting_is_a_flag_of_run_and_check_in_one_line_with_its_default() {
    for command in ["run", "check"] {
        let help = help_of(command);
        for setting in SETTINGS {
            let (flag, name, default) = (setting.flag(), setting.value_name, setting.default_text());
            let default = if default.is_empty() { default } else { format!(" [default: {default}]") };
            let line = format!("--{flag} <{name}> {}{default}", setting.help);
            assert!(help.lines().any(|it| it == line), "{line}: {help}");
            assert!(!help.contains("[default: ]"), "{help}");
            let sources = sources(&format!("{command} --{flag} @"), &[]);
            let given: Vec<_> = sources.flags.iter().map(|(setting, value)| (setting.key, value.as_str())).collect();
            assert_eq!(given, [(setting.key, "@")], "the value is not validated here");
        }
    }
}

#[test]
fn only_variables_with_the_prefix_are_kept() {
    let environment = [("HEARTBEAT_SIDECAR_LISTEN", "x"), ("AWS_SECRET_ACCESS_KEY", "y"), ("HEARTBEAT", "z")];
    let kept = sources("run --config a.toml", &environment);
    assert_eq!(kept.environment, BTreeMap::from([("HEARTBEAT_SIDECAR_LISTEN".into(), "x".into())]));
    assert_eq!(kept.config, Some("a.toml".into()));
}

#[test]
fn a_negative_number_is_parsed_as_a_value() {
    for line in ["run --limits-connections -1", "check --limits-connections=-1"] {
        let given: Vec<_> = sources(line, &[]).flags.iter().map(|(it, value)| (it.key, value.clone())).collect();
        assert_eq!(given, [("limits.connections", "-1".to_owned())]);
    }
}

#[test]
fn invalid_arguments_of_run_keep_the_log_format() {
    for line in [
        "run --log-format json --nope --config a.toml",
        "run --nope --config=a.toml --log-format=json",
        "run --config a.toml --log-format=json --listen",
    ] {
        let Ok(Command::Misused(sources, error)) = parsed(line, &[]) else { panic!("{line}") };
        assert_eq!((error.exit_code(), sources.config), (2, Some("a.toml".into())), "{line}");
        let given: Vec<_> = sources.flags.iter().map(|(it, value)| (it.key, value.as_str())).collect();
        assert_eq!(given, [("log_format", "json")], "{line}");
    }
    for line in ["run --log-format", "run nope"] {
        assert!(matches!(parsed(line, &[]), Ok(Command::Misused(sources, _)) if sources.flags.is_empty()), "{line}");
    }
    assert!(parsed("run --help --nope", &[]).is_err_and(|error| error.exit_code() == 0));
    assert!(parsed("check --nope", &[]).is_err());
}

#[test]
fn probe_and_demo_have_defaults() {
    let Ok(Command::Probe(probe)) = parsed("probe http://app", &[]) else { panic!("not a probe") };
    let (interval, timeout) = (Duration::from_secs(1), Duration::from_secs(5));
    assert_eq!(probe, ProbeArgs { url: "http://app".to_owned(), count: 10, interval, timeout, cut: 0, json: false });
    let Ok(Command::Demo(demo)) = parsed("demo", &[]) else { panic!("not a demo") };
    assert_eq!(demo, DemoArgs { seconds: 15 });
}

#[test]
fn container_commands_accept_their_address_and_no_other_setting() {
    for (line, key) in
        [("healthcheck --admin @", "admin"), ("drain --admin @", "admin"), ("wait --upstream @", "upstream")]
    {
        let sources = sources(&format!("{line} --config a.toml"), &[("HEARTBEAT_SIDECAR_LISTEN", "x")]);
        let given: Vec<_> = sources.flags.iter().map(|(setting, value)| (setting.key, value.as_str())).collect();
        assert_eq!((given, sources.environment.len()), (vec![(key, "@")], 1));
        assert_eq!(sources.config, Some("a.toml".into()));
        let (command, _flags) = line.split_once(' ').expect("with a flag");
        assert!(parsed(&format!("{command} --listen @"), &[]).is_err());
        let help = help_of(command);
        let setting = SETTINGS.iter().find(|setting| setting.key == key).expect("a known key");
        let facts = format!("[default: {}] [env: {}]", setting.default_text(), setting.variable());
        assert!(help.contains(&facts), "{facts}: {help}");
    }
}

#[test]
fn invalid_arguments_of_other_commands_are_rejected() {
    for line in [
        "wait --path health",
        "wait --timeout 0s",
        "healthcheck --timeout 2",
        "demo --seconds 5",
        "probe x --count 0",
        "probe x --interval 0s",
        "probe x --timeout 5",
        "probe",
    ] {
        let error = parsed(line, &[]).err().expect(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}
