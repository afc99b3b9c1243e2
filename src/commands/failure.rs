//! Reports a failed command on stderr and chooses its exit code.

use std::process::ExitCode;

use super::probe::target::TargetError;
use crate::config::Problems;
use crate::telemetry;

/// Exit code for invalid arguments and configurations, where a retry without a change is useless. It is clap's code
/// too.
pub(super) const MISUSE: u8 = 2;

/// Writes to stderr why a command failed, one line per reason. JSON lines have the form of the log's.
pub(super) fn failed(error: &anyhow::Error, json: bool) -> ExitCode {
    let problems = error.downcast_ref::<Problems>();
    let reasons = match problems {
        Some(Problems(problems)) => problems.iter().map(ToString::to_string).collect(),
        None => vec![format!("{error:#}")],
    };
    for reason in reasons {
        telemetry::print_error(json, &reason);
    }
    if problems.is_some() || error.is::<TargetError>() { ExitCode::from(MISUSE) } else { ExitCode::FAILURE }
}
