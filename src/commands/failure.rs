//! How a command says that it failed, and with which code it exits.

use std::process::ExitCode;

use super::probe::target::TargetError;
use crate::config::Problems;
use crate::telemetry;

/// For arguments and configurations that make no sense: to try again without a change is of no use. It is clap's code too.
pub(super) const MISUSE: u8 = 2;

/// Says on stderr why a command failed, one line for each reason. JSON lines are those of a log in JSON.
pub(super) fn failed(error: &anyhow::Error, json: bool) -> ExitCode {
    let problems = error.downcast_ref::<Problems>();
    let reasons = match problems {
        Some(Problems(problems)) => problems.iter().map(ToString::to_string).collect(),
        None => vec![format!("{error:#}")],
    };
    for reason in reasons {
        telemetry::last_words(json, &reason);
    }
    if problems.is_some() || error.is::<TargetError>() { ExitCode::from(MISUSE) } else { ExitCode::FAILURE }
}
