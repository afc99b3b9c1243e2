//! Says that something goes wrong again and again without filling the log with it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// From one line to the next about the same thing.
const PAUSE: Duration = Duration::from_secs(10);

/// Tells when a line is due about something that may happen thousands of times a second.
#[derive(Debug, Default)]
pub struct RateLimitedWarning {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    said: Option<Instant>,
    happened: u64,
}

/// The warnings that one limit is reached.
#[derive(Debug)]
pub struct LimitWarning {
    setting: &'static str,
    seldom: RateLimitedWarning,
}

impl RateLimitedWarning {
    /// It happened: how many times since the last line, this time included, if a line is due. The first one is.
    pub fn happened(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.happened += 1;
        if state.said.is_some_and(|said| now.saturating_duration_since(said) < PAUSE) {
            return None;
        }
        state.said = Some(now);
        Some(std::mem::take(&mut state.happened))
    }
}

impl LimitWarning {
    /// The alarm of the limit with this key.
    pub fn new(setting: &'static str) -> Self {
        Self { setting, seldom: RateLimitedWarning::default() }
    }

    /// Somebody was refused for the limit.
    pub fn warn(&self) {
        if let Some(refused) = self.seldom.happened(Instant::now()) {
            tracing::warn!(limit = self.setting, refused, "a limit is reached");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_makes_one_line_in_ten_seconds_which_counts_the_others() {
        let (seldom, begin) = (RateLimitedWarning::default(), Instant::now());
        let lines: Vec<_> = (0..30_000u32)
            .filter_map(|millis| {
                let at = Duration::from_millis(millis.into());
                seldom.happened(begin + at).map(|count| (at.as_secs(), count))
            })
            .collect();
        assert_eq!(lines, [(0, 1), (10, 10_000), (20, 10_000)]);
    }
}
