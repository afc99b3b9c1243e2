//! Parses the arguments and runs the command.

use std::process::ExitCode;

use heartbeat_sidecar::cli::{self, Command};
use heartbeat_sidecar::commands::{self, container};

/// Idle sessions need a fifth less memory than with the system's allocator; ended sessions return theirs
/// (docs/sizing.md).
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match cli::parse() {
        Command::Check(sources) => commands::check::check(&sources),
        Command::Schema => commands::check::schema(),
        Command::Run(sources) => commands::run::run(&sources),
        Command::Misused(sources, error) => commands::run::misused(&sources, &error),
        Command::Probe(args) => commands::probe::probe(&args),
        Command::Demo(args) => commands::demo::demo(&args),
        Command::Healthcheck(sources, args) => container::healthcheck(&sources, &args),
        Command::Wait(sources, args) => container::wait(&sources, &args),
        Command::Drain(sources, args) => container::drain(&sources, &args),
    }
}
