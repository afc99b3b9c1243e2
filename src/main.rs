//! Arguments in, exit code out.

use std::process::ExitCode;

use heartbeat_sidecar::cli::{self, Command};
use heartbeat_sidecar::commands;

fn main() -> ExitCode {
    match cli::parse() {
        Command::Check(sources) => commands::check::check(&sources),
        Command::Run(sources) => commands::run::run(&sources),
        Command::Probe(args) => commands::probe::probe(&args),
        Command::Demo(args) => commands::demo::demo(&args),
    }
}
