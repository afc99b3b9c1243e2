//! The commands and flags. Values of settings are only carried here: `config` judges them, knowing their origin.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgMatches, Args, FromArgMatches, Parser, Subcommand, value_parser};

use http::uri::PathAndQuery;

use crate::config::{DAY, Invalid, PREFIX, SETTINGS, Setting, Sources, duration};

/// What to do, with all that was said about it.
pub enum Command {
    /// Proxy.
    Run(Sources),
    /// Judge and print the configuration.
    Check(Sources),
    /// Print the JSON Schema of the configuration file.
    Schema,
    /// Measure the acks of an app as a browser would.
    Probe(ProbeArgs),
    /// Show the sidecar at work on this machine alone.
    Demo(DemoArgs),
    /// Ask a running sidecar whether it lives.
    Healthcheck(Sources, HealthcheckArgs),
    /// Wait for the app.
    Wait(Sources, WaitArgs),
    /// Tell a running sidecar to drain.
    Drain(Sources, DrainArgs),
}

/// The arguments of `healthcheck`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct HealthcheckArgs {
    /// Ask whether it takes new connections (/readyz), not whether it lives (/livez)
    #[arg(long)]
    pub ready: bool,
    /// How long the answer may take
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = at_most_a_day)]
    pub timeout: Duration,
}

/// The arguments of `wait`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct WaitArgs {
    /// What the app answers with 200 when it is up; below its base path, if it has one
    #[arg(long, value_name = "PATH", default_value = "/_stcore/health", value_parser = path)]
    pub path: PathAndQuery,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = at_most_a_day)]
    pub timeout: Duration,
}

/// The arguments of `drain`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct DrainArgs {
    /// Return only when the sidecar has drained and is gone
    #[arg(long)]
    pub wait: bool,
    /// How long that may take
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = at_most_a_day)]
    pub timeout: Duration,
}

/// Where the admin port of a running sidecar is.
#[derive(Args)]
struct AdminArgs {
    /// The TOML file of settings that the sidecar runs with [env: HEARTBEAT_SIDECAR_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The sidecar's admin port; 0.0.0.0 is this machine [default: 127.0.0.1:9600] [env: HEARTBEAT_SIDECAR_ADMIN]
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<String>,
}

/// Where the app is.
#[derive(Args)]
struct UpstreamArgs {
    /// The TOML file of settings [env: HEARTBEAT_SIDECAR_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The app server: http://HOST:PORT or unix:/PATH [default: http://127.0.0.1:8501] [env: HEARTBEAT_SIDECAR_UPSTREAM]
    #[arg(long, value_name = "ADDRESS")]
    upstream: Option<String>,
}

/// The arguments of `probe`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ProbeArgs {
    /// The app as a browser would be sent to it, such as http://127.0.0.1:8500
    pub url: String,
    /// How many heartbeats to send
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u32).range(1..))]
    pub count: u32,
    /// The time from one heartbeat to the next
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = at_most_a_day)]
    pub interval: Duration,
    /// How long to wait for an ack
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = at_most_a_day)]
    pub timeout: Duration,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `demo`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct DemoArgs {
    /// How many seconds to go on, at least 6
    #[arg(long, default_value_t = 15, value_parser = value_parser!(u32).range(6..=86_400))]
    pub seconds: u32,
}

/// A transparent reverse proxy that gives every hosted Streamlit app a heartbeat.
#[derive(Parser)]
#[command(name = "heartbeat-sidecar", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Proxy an app server and answer its heartbeats
    Run(SettingArgs),
    /// Check a configuration and print the effective one
    Check {
        /// Print the JSON Schema of the configuration file instead, for editors and pipelines
        #[arg(long)]
        schema: bool,
        /// What to check.
        #[command(flatten)]
        settings: SettingArgs,
    },
    /// Connect as a browser, send heartbeats and print how long the acks take
    ///
    /// Exits with 0 only if every heartbeat was acked in time. Who answered is read off the form of the ack: a sidecar
    /// that is set to plain acks cannot be told from an app server that answers by itself.
    Probe(ProbeArgs),
    /// Show everything at work, with nothing installed
    ///
    /// An app server that never answers a heartbeat, the sidecar before it and a page, all in this process: first the
    /// app server runs, then it hangs, then it runs again. Exits with 0 only if every ack came that was owed and none
    /// that would have been a lie.
    Demo(DemoArgs),
    /// Ask a running sidecar whether it lives, as a probe in a container without a shell
    ///
    /// Exits with 0 if the admin port answers 200, with 1 if it answers anything else or not in time.
    Healthcheck {
        /// Where to ask.
        #[command(flatten)]
        admin: AdminArgs,
        /// What to ask.
        #[command(flatten)]
        args: HealthcheckArgs,
    },
    /// Wait until the app answers, so that what needs it is started after it
    ///
    /// Exits with 0 once the app's health page answers 200, with 1 if it does not within the timeout.
    Wait {
        /// Whom to wait for.
        #[command(flatten)]
        upstream: UpstreamArgs,
        /// How long.
        #[command(flatten)]
        args: WaitArgs,
    },
    /// Begin the drain of a running sidecar on this machine, as a preStop hook in a container without a shell
    ///
    /// Exits with 0 once the drain has begun, or with --wait once the sidecar is gone; with 1 if it cannot be reached or
    /// takes longer. A SIGTERM after that means that the app is gone: the sidecar then ends within a second. Where the
    /// app is not stopped first, send only the SIGTERM, which drains too, or use --wait.
    Drain {
        /// Where to ask.
        #[command(flatten)]
        admin: AdminArgs,
        /// How long to wait.
        #[command(flatten)]
        args: DrainArgs,
    },
}

/// The flags that the table of settings gives, and `--config`.
struct SettingArgs {
    config: Option<PathBuf>,
    flags: Vec<(&'static Setting, String)>,
}

/// Reads the arguments and the environment of this process. Prints and exits where they ask for help or the version,
/// or name what does not exist.
pub fn parse() -> Command {
    parse_from(std::env::args_os(), std::env::vars_os()).unwrap_or_else(|error| error.exit())
}

fn parse_from(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Command, clap::Error> {
    let ours = |(name, _): &(OsString, OsString)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
    let environment: BTreeMap<_, _> = environment.into_iter().filter(ours).collect();
    let sources = |SettingArgs { config, flags }| Sources { config, environment, flags };
    Ok(match Cli::try_parse_from(args)?.verb {
        Verb::Run(args) => Command::Run(sources(args)),
        Verb::Check { schema: true, .. } => Command::Schema,
        Verb::Check { schema: false, settings } => Command::Check(sources(settings)),
        Verb::Probe(args) => Command::Probe(args),
        Verb::Demo(args) => Command::Demo(args),
        Verb::Healthcheck { admin, args } => Command::Healthcheck(sources(admin.into()), args),
        Verb::Wait { upstream, args } => Command::Wait(sources(upstream.into()), args),
        Verb::Drain { admin, args } => Command::Drain(sources(admin.into()), args),
    })
}

fn at_most_a_day(text: &str) -> Result<Duration, Invalid> {
    duration(text, DAY)
}

/// A path as a request has it.
fn path(text: &str) -> Result<PathAndQuery, Invalid> {
    let path = text.parse().ok().filter(|_path| text.starts_with('/'));
    path.ok_or_else(|| Invalid::new(format!("{text:?} is no path: write /_stcore/health")))
}

impl SettingArgs {
    /// The value of one setting's flag.
    fn of(config: Option<PathBuf>, key: &str, value: Option<String>) -> Self {
        let setting = SETTINGS.iter().find(|setting| setting.key == key).expect("callers name keys of the table");
        Self { config, flags: value.into_iter().map(|value| (setting, value)).collect() }
    }
}

impl From<AdminArgs> for SettingArgs {
    fn from(AdminArgs { config, admin }: AdminArgs) -> Self {
        Self::of(config, "admin", admin)
    }
}

impl From<UpstreamArgs> for SettingArgs {
    fn from(UpstreamArgs { config, upstream }: UpstreamArgs) -> Self {
        Self::of(config, "upstream", upstream)
    }
}

impl Args for SettingArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help(format!("The TOML file of settings [env: {PREFIX}CONFIG]"));
        let flags = SETTINGS.iter().map(|setting| {
            let (default, variable) = (setting.default_text(), setting.variable());
            Arg::new(setting.key)
                .long(setting.flag())
                .value_name(setting.value_name)
                .help(format!("{} [default: {default}] [env: {variable}]", setting.help))
        });
        command.arg(config).args(flags)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |setting: &'static Setting| Some((setting, matches.get_one::<String>(setting.key)?.clone()));
        Ok(Self { config: matches.get_one("config").cloned(), flags: SETTINGS.iter().filter_map(given).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
            Err(error) => panic!("{error}"),
        }
    }

    fn help_of(command: &str) -> String {
        let refused = parsed(&format!("{command} --help"), &[]).err().expect("help is clap's error");
        assert_eq!(refused.kind(), clap::error::ErrorKind::DisplayHelp);
        refused.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_definition_of_the_commands_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn every_setting_is_a_flag_of_run_and_check_that_shows_default_and_variable() {
        for command in ["run", "check"] {
            let help = help_of(command);
            for setting in SETTINGS {
                let (flag, name) = (setting.flag(), setting.value_name);
                assert!(help.contains(&format!("--{flag} <{name}> {}", setting.help)), "{flag}: {help}");
                let facts = format!("[default: {}] [env: {}]", setting.default_text(), setting.variable());
                assert!(help.contains(&facts), "{facts}: {help}");
                let sources = sources(&format!("{command} --{flag} @"), &[]);
                let given: Vec<_> =
                    sources.flags.iter().map(|(setting, value)| (setting.key, value.as_str())).collect();
                assert_eq!(given, [(setting.key, "@")], "the value is not judged here");
            }
        }
    }

    #[test]
    fn only_our_part_of_the_environment_is_kept() {
        let environment = [("HEARTBEAT_SIDECAR_LISTEN", "x"), ("AWS_SECRET_ACCESS_KEY", "y"), ("HEARTBEAT", "z")];
        let kept = sources("run --config a.toml", &environment);
        assert_eq!(kept.environment, BTreeMap::from([("HEARTBEAT_SIDECAR_LISTEN".into(), "x".into())]));
        assert_eq!(kept.config, Some("a.toml".into()));
    }

    #[test]
    fn probe_and_demo_have_defaults() {
        let Ok(Command::Probe(probe)) = parsed("probe http://app", &[]) else { panic!("not a probe") };
        let (interval, timeout) = (Duration::from_secs(1), Duration::from_secs(5));
        assert_eq!(probe, ProbeArgs { url: "http://app".to_owned(), count: 10, interval, timeout, json: false });
        let Ok(Command::Demo(demo)) = parsed("demo", &[]) else { panic!("not a demo") };
        assert_eq!(demo, DemoArgs { seconds: 15 });
    }

    #[test]
    fn commands_for_containers_take_the_address_that_they_need_and_no_other_setting() {
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
    fn numbers_that_make_no_sense_are_refused() {
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
}
