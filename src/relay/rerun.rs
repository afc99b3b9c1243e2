//! Tracks whether a script run that the browser has just requested is over, so that a takeover does not stop it.
//!
//! Every disconnect stops the app's run at once. A click may arrive right before the takeover's close: a lost connection
//! delivers late what was sent into it.

use std::time::{Duration, Instant};

use crate::streamlit::messages::ScriptResult;

/// How long ago the browser may have requested the run: a longer one is not likely to end within [`TAKEOVER_GRACE`].
const RECENT: Duration = Duration::from_secs(5);

/// How long a takeover waits for the end of such a run. The page that reconnects waits too.
pub const TAKEOVER_GRACE: Duration = Duration::from_secs(2);

/// The last run that the browser has requested, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Rerun {
    /// There is none, or it is over.
    #[default]
    Over,
    /// `new_session` follows; the end of a run before it may come first.
    Requested(Instant),
    /// `script_finished` follows.
    Running(Instant),
}

impl Rerun {
    /// The browser has requested a run.
    pub(super) fn on_requested(&mut self, now: Instant) {
        *self = Self::Requested(now);
    }

    /// A run has started.
    pub(super) fn on_started(&mut self) {
        if let Self::Requested(at) = *self {
            *self = Self::Running(at);
        }
    }

    /// A run has ended.
    pub(super) fn on_finished(&mut self, result: ScriptResult) {
        *self = match *self {
            // It was an earlier one, which was stopped for the requested one.
            Self::Running(at) if result == ScriptResult::EarlyForRerun => Self::Requested(at),
            Self::Running(_) => Self::Over,
            before @ (Self::Requested(_) | Self::Over) => before,
        };
    }

    /// Whether it was requested lately, and is not over.
    pub(super) fn is_recent(self, now: Instant) -> bool {
        match self {
            Self::Over => false,
            Self::Requested(at) | Self::Running(at) => now.saturating_duration_since(at) <= RECENT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is seen of a session's runs.
    #[derive(Clone, Copy)]
    enum Seen {
        Requested,
        Started,
        Finished(ScriptResult),
    }
    use ScriptResult::{EarlyForRerun, Success};
    use Seen::{Finished, Requested, Started};

    fn is_pending_after(seen: &[Seen], later: Duration) -> bool {
        let (mut rerun, now) = (Rerun::default(), Instant::now());
        for event in seen {
            match *event {
                Requested => rerun.on_requested(now),
                Started => rerun.on_started(),
                Finished(result) => rerun.on_finished(result),
            }
        }
        rerun.is_recent(now + later)
    }

    #[test]
    fn a_run_is_pending_from_its_request_to_its_end() {
        for (seen, expected) in [
            (&[][..], false),
            (&[Requested], true),
            (&[Requested, Started], true),
            (&[Requested, Started, Finished(Success)], false),
            (&[Requested, Started, Finished(ScriptResult::CompileError)], false),
            (&[Started], false),
            (&[Started, Finished(Success)], false),
        ] {
            assert_eq!(is_pending_after(seen, Duration::ZERO), expected);
        }
    }

    #[test]
    fn the_end_of_an_earlier_run_is_not_the_end_of_the_requested_one() {
        let first = [Requested, Started, Requested];
        for (then, expected) in [
            (&[Finished(Success)][..], true),
            (&[Finished(EarlyForRerun)], true),
            (&[Finished(EarlyForRerun), Started], true),
            (&[Finished(EarlyForRerun), Started, Finished(Success)], false),
            (&[Finished(Success), Started, Finished(Success)], false),
            // The start of the earlier one came after the request.
            (&[Started, Finished(EarlyForRerun)], true),
            (&[Started, Finished(EarlyForRerun), Started, Finished(Success)], false),
        ] {
            assert_eq!(is_pending_after(&[&first, then].concat(), Duration::ZERO), expected);
        }
    }

    #[test]
    fn a_long_run_is_not_waited_for() {
        assert!(is_pending_after(&[Requested, Started], RECENT));
        assert!(!is_pending_after(&[Requested, Started], RECENT + Duration::from_millis(1)));
    }
}
