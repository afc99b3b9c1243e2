//! How long each part of the demo takes.

use std::time::Duration;

use super::legacy::STEP_INTERVAL;
use crate::heartbeat::policy::MAX_PENDING;

/// Time between heartbeats; longer in a long frozen act.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);

/// The sidecar keeps what the page misses for a longer outage than this, whatever the length of the demo.
const MAX_OUTAGE: Duration = Duration::from_secs(3);

/// The length of each act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Schedule {
    pub(super) alive: Duration,
    pub(super) cut: Duration,
    pub(super) frozen: Duration,
    pub(super) thawed: Duration,
    /// How far into its act the network is cut, and for how long.
    pub(super) cut_after: Duration,
    pub(super) outage: Duration,
    /// Time between heartbeats of the frozen act.
    pub(super) frozen_interval: Duration,
}

impl Schedule {
    /// A quarter alive, a quarter cut, a third frozen, the rest thawed.
    pub(super) fn new(whole: Duration) -> Self {
        let (alive, cut, frozen) = (whole / 4, whole / 4, whole / 3);
        // The sidecar tracks `MAX_PENDING` heartbeats separately; one more would share an ack.
        let max = u32::try_from(MAX_PENDING).unwrap_or(u32::MAX);
        Self {
            alive,
            cut,
            frozen,
            thawed: whole - alive - cut - frozen,
            cut_after: cut / 3,
            outage: (cut / 3).min(MAX_OUTAGE),
            frozen_interval: HEARTBEAT_INTERVAL.max(frozen / max),
        }
    }

    /// How many steps the script writes: it ends shortly before the act in which the network is cut.
    pub(super) fn steps(&self) -> u32 {
        let steps = ((self.alive + self.cut) * 9 / 10).as_micros() / STEP_INTERVAL.as_micros();
        u32::try_from(steps).unwrap_or(u32::MAX)
    }
}

/// How many heartbeats fit into `length`; the first is sent at once.
pub(super) fn heartbeats_in(length: Duration, interval: Duration) -> u128 {
    (length.as_micros() / interval.as_micros()).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_acts_fill_the_time_and_each_has_a_heartbeat() {
        for seconds in [6, 8, 15, 60, 86_400] {
            let whole = Duration::from_secs(seconds);
            let schedule = Schedule::new(whole);
            assert_eq!(schedule.alive + schedule.cut + schedule.frozen + schedule.thawed, whole);
            assert!(
                schedule.alive >= 3 * HEARTBEAT_INTERVAL && schedule.thawed >= 2 * HEARTBEAT_INTERVAL,
                "{schedule:?}"
            );
            let frozen = heartbeats_in(schedule.frozen + schedule.frozen_interval / 2, schedule.frozen_interval);
            assert!((4..=MAX_PENDING as u128).contains(&frozen), "{seconds}: {frozen}");
            assert!(schedule.frozen_interval / 2 >= super::super::STALL_AFTER);
        }
    }

    #[test]
    fn the_script_writes_before_during_and_after_the_outage() {
        for seconds in [6, 8, 15, 60, 86_400] {
            let schedule = Schedule::new(Duration::from_secs(seconds));
            let (cut, end) = (schedule.alive + schedule.cut_after, STEP_INTERVAL * schedule.steps());
            assert!(cut > Duration::ZERO && schedule.outage >= 4 * STEP_INTERVAL, "{schedule:?}");
            assert!(
                cut + schedule.outage + STEP_INTERVAL <= end && end < schedule.alive + schedule.cut,
                "{schedule:?}"
            );
        }
    }
}
