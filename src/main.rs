//! Arguments in, exit code out.

#[cfg(feature = "jemalloc")]
mod allocator;

use std::process::ExitCode;

use heartbeat_sidecar::cli::{self, Command};
use heartbeat_sidecar::commands::{self, container};

fn main() -> ExitCode {
    match cli::parse() {
        Command::Check(sources) => commands::check::check(&sources),
        Command::Schema => commands::check::schema(),
        Command::Run(sources) => commands::run::run(&sources),
        Command::Probe(args) => commands::probe::probe(&args),
        Command::Demo(args) => commands::demo::demo(&args),
        Command::Healthcheck(sources, args) => container::healthcheck(&sources, &args),
        Command::Wait(sources, args) => container::wait(&sources, &args),
        Command::Drain(sources, args) => container::drain(&sources, &args),
    }
}
