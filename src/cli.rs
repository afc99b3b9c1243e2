//! The commands and flags; `config` validates the values of settings, because it has their origins.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgMatches, Args, FromArgMatches, Parser, Subcommand, value_parser};

use http::uri::PathAndQuery;

use crate::config::{DAY, Invalid, PREFIX, SETTINGS, Setting, Sources, duration};

/// A command with its arguments.
pub enum Command {
    /// Proxy.
    Run(Sources),
    /// `run` with invalid arguments. The sources have what arguments and environment set for the log format.
    Misused(Sources, clap::Error),
    /// Validate and print the configuration.
    Check(Sources),
    /// Print the JSON Schema of the configuration file.
    Schema,
    /// Measure the acks of an app as a browser would.
    Probe(ProbeArgs),
    /// Demonstrate the sidecar on this machine.
    Demo(DemoArgs),
    /// Check that a running sidecar is alive.
    Healthcheck(Sources, HealthcheckArgs),
    /// Wait for the app.
    Wait(Sources, WaitArgs),
    /// Start the drain of a running sidecar.
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
    /// takes longer. A SIGTERM after that lets the drain go on as planned while the app is there; once the app is gone, it
    /// skips the rest of drain.delay. Where the app is not stopped first, SIGTERM alone does the same.
    Drain {
        /// Where to ask.
        #[command(flatten)]
        admin: AdminArgs,
        /// How long to wait.
        #[command(flatten)]
        args: DrainArgs,
    },
}

/// The flags of the table of settings, and `--config`.
struct SettingArgs {
    config: Option<PathBuf>,
    flags: Vec<(&'static Setting, String)>,
}

/// Parses the arguments and the environment of this process. Prints and exits for help, for the version, and for
/// invalid arguments of commands other than `run`.
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
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let verb = match Cli::try_parse_from(&args) {
        Ok(cli) => cli.verb,
        Err(error) => {
            let run = if error.use_stderr() { of_run(&args) } else { None };
            return match run {
                Some(run) => Ok(Command::Misused(sources(run), error)),
                None => Err(error),
            };
        }
    };
    Ok(match verb {
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

/// The file and log format that invalid arguments name; `None` for commands other than `run`.
fn of_run(args: &[OsString]) -> Option<SettingArgs> {
    let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    let value = |flag: &str| {
        args.iter().enumerate().find_map(|(at, arg)| match arg.strip_prefix(flag)? {
            "" => args.get(at + 1).map(|value| value.to_string()),
            rest => rest.strip_prefix('=').map(str::to_owned),
        })
    };
    let of_run = args.get(1).is_some_and(|verb| verb == "run");
    of_run.then(|| SettingArgs::of(value("--config").map(PathBuf::from), "log_format", value("--log-format")))
}

fn at_most_a_day(text: &str) -> Result<Duration, Invalid> {
    duration(text, DAY)
}

/// The path of a request.
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
                .allow_negative_numbers(true)
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
mod tests;
