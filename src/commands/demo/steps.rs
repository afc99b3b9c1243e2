//! Checks that a script's numbered steps arrive once, in order and without a gap, over one connection to the app.

use std::fmt;

/// The steps that arrived. The other fields are known at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Steps {
    last: u32,
    arrived: u32,
    missing: u32,
    doubled: u32,
    /// Message streams that the app saw.
    streams: u32,
}

impl Steps {
    /// A step arrived, numbered from 1.
    pub(super) fn on_step(&mut self, number: u32) {
        self.arrived += 1;
        if number > self.last {
            self.missing += number - self.last - 1;
            self.last = number;
        } else {
            self.doubled += 1;
        }
    }

    /// The script wrote `steps`, and the app saw so many message streams.
    pub(super) fn on_end(&mut self, steps: u32, streams: u32) {
        self.missing += steps.saturating_sub(self.last);
        self.streams = streams;
    }

    /// The highest step that arrived.
    pub(super) fn last(&self) -> u32 {
        self.last
    }

    /// Whether neither the page nor the app noticed the cut.
    pub(super) fn are_complete(&self) -> bool {
        (self.missing, self.doubled, self.streams) == (0, 0, 1)
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { arrived, missing, doubled, streams, .. } = self;
        let connections = if *streams == 1 { "connection" } else { "connections" };
        if *missing == 0 && *doubled == 0 {
            write!(f, "{arrived} steps received in order, none missing, none twice; ")?;
        } else {
            write!(f, "{arrived} steps received, {missing} missing, {doubled} twice or late; ")?;
        }
        write!(f, "the app saw {streams} {connections}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(numbers: &[u32], streams: u32) -> Steps {
        let mut steps = Steps::default();
        numbers.iter().for_each(|number| steps.on_step(*number));
        steps.on_end(4, streams);
        steps
    }

    #[test]
    fn every_step_once_in_order_over_one_connection_is_complete() {
        assert!(steps(&[1, 2, 3, 4], 1).are_complete());
        for (numbers, streams) in [
            (&[1, 2, 3, 4][..], 2),
            (&[1, 2, 3], 1),
            (&[1, 2, 4], 1),
            (&[1, 2, 2, 3, 4], 1),
            (&[1, 3, 2, 4], 1),
            (&[], 1),
        ] {
            assert!(!steps(numbers, streams).are_complete(), "{numbers:?} {streams}");
        }
    }

    #[test]
    fn the_text_counts_what_is_wrong() {
        assert_eq!(
            steps(&[1, 2, 3, 4], 1).to_string(),
            "4 steps received in order, none missing, none twice; the app saw 1 connection"
        );
        assert_eq!(
            steps(&[1, 3, 3], 2).to_string(),
            "3 steps received, 2 missing, 1 twice or late; the app saw 2 connections"
        );
    }
}
