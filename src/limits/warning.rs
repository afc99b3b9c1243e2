//! Rate-limits log lines about repeated events.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Minimum time between two lines about the same event.
const INTERVAL: Duration = Duration::from_secs(10);

/// Decides when a line is due about an event that may happen thousands of times a second.
#[derive(Debug, Default)]
pub struct RateLimitedWarning {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_line: Option<Instant>,
    events: u64,
}

/// Warnings that one limit is reached.
#[derive(Debug)]
pub struct LimitWarning {
    setting: &'static str,
    limiter: RateLimitedWarning,
}

impl RateLimitedWarning {
    /// Counts an event. If a line is due, returns the events since the last line, this one included. The first is due.
    pub fn on_event(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.events += 1;
        if state.last_line.is_some_and(|last_line| now.saturating_duration_since(last_line) < INTERVAL) {
            return None;
        }
        state.last_line = Some(now);
        Some(std::mem::take(&mut state.events))
    }
}

impl LimitWarning {
    /// The warnings of the limit with this key.
    pub fn new(setting: &'static str) -> Self {
        Self { setting, limiter: RateLimitedWarning::default() }
    }

    /// Counts a rejection by the limit, and logs it if a line is due.
    pub fn warn(&self) {
        if let Some(rejected) = self.limiter.on_event(Instant::now()) {
            tracing::warn!(rejected, "{} reached", self.setting);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_logs_one_line_per_ten_seconds_with_the_count() {
        let (limiter, start) = (RateLimitedWarning::default(), Instant::now());
        let lines: Vec<_> = (0..30_000u32)
            .filter_map(|millis| {
                let at = Duration::from_millis(millis.into());
                limiter.on_event(start + at).map(|count| (at.as_secs(), count))
            })
            .collect();
        assert_eq!(lines, [(0, 1), (10, 10_000), (20, 10_000)]);
    }
}
