//! The commands and flags; `config` validates the values of settings, because it has their origins.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgMatches, Args, CommandFactory as _, FromArgMatches, Parser, Subcommand, value_parser};

use http::uri::PathAndQuery;

use crate::config::{DAY, HEADINGS, InvalidValue, PREFIX, SETTINGS, Setting, Sources, duration};

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
    /// Check /readyz (accepts new connections) instead of /livez (is alive)
    #[arg(long)]
    pub ready: bool,
    /// Timeout of the response
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = at_most_a_day)]
    pub timeout: Duration,
}

/// The arguments of `wait`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct WaitArgs {
    /// Health page of the app; without routes, write a base path first
    #[arg(long, value_name = "PATH", default_value = "/_stcore/health", value_parser = path)]
    pub path: PathAndQuery,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = at_most_a_day)]
    pub timeout: Duration,
}

/// The arguments of `drain`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct DrainArgs {
    /// Return when the sidecar has drained and exited
    #[arg(long)]
    pub wait: bool,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = at_most_a_day)]
    pub timeout: Duration,
}

/// The admin port of a running sidecar.
#[derive(Args)]
struct AdminArgs {
    /// TOML file of settings of the running sidecar [env: HEARTBEAT_SIDECAR_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The sidecar's admin port; 0.0.0.0 means this machine [default: 127.0.0.1:9600] [env: HEARTBEAT_SIDECAR_ADMIN]
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<String>,
}

/// The address of the app.
#[derive(Args)]
struct UpstreamArgs {
    /// TOML file of settings [env: HEARTBEAT_SIDECAR_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The app: http://HOST:PORT, https://HOST:PORT or unix:/PATH [default: http://127.0.0.1:8501] [env: HEARTBEAT_SIDECAR_UPSTREAM]
    #[arg(long, value_name = "ADDRESS")]
    upstream: Option<String>,
}

/// The arguments of `probe`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ProbeArgs {
    /// URL of the app's page, as in a browser: http://127.0.0.1:8500
    pub url: String,
    /// Number of heartbeats
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u32).range(1..))]
    pub count: u32,
    /// Interval of heartbeats
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = at_most_a_day)]
    pub interval: Duration,
    /// Timeout of each ack
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = at_most_a_day)]
    pub timeout: Duration,
    /// Cut the connection this often and resume the session; needs a sidecar with the watchdog
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub cut: u32,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `demo`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct DemoArgs {
    /// Duration in seconds, at least 6
    #[arg(long, default_value_t = 15, value_parser = value_parser!(u32).range(6..=86_400))]
    pub seconds: u32,
}

/// A transparent reverse proxy that gives every hosted Streamlit app a heartbeat.
#[derive(Parser)]
// Width 0: one line a flag, and no line is wrapped.
#[command(name = "heartbeat-sidecar", version, term_width = 0)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Proxy an app and answer its heartbeats
    #[command(after_help = about_settings("\
SIGTERM and SIGINT drain; a second one ends the process at once. SIGHUP reloads the file.
Exits 0 after a drain, 1 if it cannot start or is ended by a second signal, 2 if the configuration is invalid."))]
    Run(SettingArgs),
    /// Check a configuration and print the effective one
    #[command(after_help = about_settings("\
Prints each value with its source: flag, variable, line of the file, or default.
Exits 0 if the configuration is valid. Else prints every error and exits 1."))]
    Check {
        /// Print the JSON Schema of the configuration file instead
        #[arg(long)]
        schema: bool,
        /// The configuration.
        #[command(flatten)]
        settings: SettingArgs,
    },
    /// Connect as a browser, send heartbeats and print the latency of their acks
    #[command(after_help = "\
Exits 0 if every heartbeat was acked in time, else 1.
With --cut: exits 0 only if also every cut was resumed, and no message was lost or arrived twice.
The form of an ack shows who sent it. A sidecar with `heartbeat.ack = \"plain\"` looks like the app itself.
https:// URLs: trusts the system's CA certificates, or those in the file that SSL_CERT_FILE names.")]
    Probe(ProbeArgs),
    /// Demonstrate the sidecar on this machine
    #[command(after_help = "\
Runs an app that never answers heartbeats, the sidecar, and a page, all in one process.
The app works, then the network between page and sidecar fails, then the app is frozen, then it works again.
Exits 0 if every expected ack and all output of the app's script arrived, and no ack was sent while the app was frozen.
Else 1.")]
    Demo(DemoArgs),
    /// Check that a running sidecar is alive: a container's probe without a shell
    #[command(after_help = "\
Exits 0 if the admin port responds with 200, else 1.")]
    Healthcheck {
        /// The sidecar.
        #[command(flatten)]
        admin: AdminArgs,
        /// The check.
        #[command(flatten)]
        args: HealthcheckArgs,
    },
    /// Wait until every app is up, for programs that must start after it
    #[command(after_help = "\
Exits 0 when the health page of each app responds with 200, or 1 after the timeout.
The health page of a route's app is below the route's path.")]
    Wait {
        /// The app.
        #[command(flatten)]
        upstream: UpstreamArgs,
        /// The limits of the wait.
        #[command(flatten)]
        args: WaitArgs,
    },
    /// Drain a running sidecar on this machine: a container's preStop hook without a shell
    #[command(after_help = "\
Exits 0 when the drain has started, or with --wait when the sidecar has exited.
Exits 1 if the sidecar cannot be reached, or is not gone within the timeout.
SIGTERM alone also drains: use this command only if the app is stopped before the sidecar.
A SIGTERM during the drain ends drain.delay once no session is left and every app refuses connections.")]
    Drain {
        /// The sidecar.
        #[command(flatten)]
        admin: AdminArgs,
        /// The wait.
        #[command(flatten)]
        args: DrainArgs,
    },
}

/// The notes below the flags of settings, after those of the command itself.
fn about_settings(command: &str) -> String {
    format!(
        "{command}

DURATION is a number with a unit, or several: 500ms, 2s, 1m 30s.
Each flag has a variable: --drain-timeout is HEARTBEAT_SIDECAR_DRAIN_TIMEOUT, --config is HEARTBEAT_SIDECAR_CONFIG.
A flag overrides its variable, which overrides the file, which overrides the default."
    )
}

/// The flags of the table of settings, and `--config`.
struct SettingArgs {
    config: Option<PathBuf>,
    flags: Vec<(&'static Setting, String)>,
}

/// The definition of all commands, for the reference.
pub fn definition() -> clap::Command {
    Cli::command()
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
    let command = match Cli::try_parse_from(&args) {
        Ok(cli) => cli.command,
        Err(error) => {
            let run = if error.use_stderr() { of_run(&args) } else { None };
            return match run {
                Some(run) => Ok(Command::Misused(sources(run), error)),
                None => Err(error),
            };
        }
    };
    Ok(match command {
        Subcommands::Run(args) => Command::Run(sources(args)),
        Subcommands::Check { schema: true, .. } => Command::Schema,
        Subcommands::Check { schema: false, settings } => Command::Check(sources(settings)),
        Subcommands::Probe(args) => Command::Probe(args),
        Subcommands::Demo(args) => Command::Demo(args),
        Subcommands::Healthcheck { admin, args } => Command::Healthcheck(sources(admin.into()), args),
        Subcommands::Wait { upstream, args } => Command::Wait(sources(upstream.into()), args),
        Subcommands::Drain { admin, args } => Command::Drain(sources(admin.into()), args),
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

fn at_most_a_day(text: &str) -> Result<Duration, InvalidValue> {
    duration(text, DAY)
}

/// Parses the path of a request.
fn path(text: &str) -> Result<PathAndQuery, InvalidValue> {
    let path = text.parse().ok().filter(|_path| text.starts_with('/'));
    path.ok_or_else(|| InvalidValue::new(format!("{text:?} is not a path: write /_stcore/health")))
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
            .help("TOML file of settings");
        let flag = |setting: &Setting| {
            let default = setting.default_text();
            let default = if default.is_empty() { default } else { format!(" [default: {default}]") };
            Arg::new(setting.key)
                .long(setting.flag())
                .value_name(setting.value_name)
                .allow_negative_numbers(true)
                .help_heading(setting.heading())
                .help(format!("{}{default}", setting.help))
        };
        let of = |heading| SETTINGS.iter().filter(move |setting| setting.heading() == heading);
        command.arg(config).args(HEADINGS.into_iter().flat_map(of).map(flag))
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
