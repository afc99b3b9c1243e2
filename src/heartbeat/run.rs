//! The bytes of one call to the tap: what of them is dealt with, and what has been passed on.

use super::carrier::TapOutput;
use crate::websocket::scanner::Sender;

/// The bytes of one call: `passed..at` is dealt with and still to be passed on.
pub(super) struct Run<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) from: Sender,
    passed: usize,
    pub(super) at: usize,
}

impl<'a> Run<'a> {
    pub(super) fn new(from: Sender, bytes: &'a [u8]) -> Self {
        Self { bytes, from, passed: 0, at: 0 }
    }

    pub(super) fn flush(&mut self, muted: bool, carrier: &mut impl TapOutput) {
        if self.passed < self.at && !muted {
            carrier.pass(self.from, &self.bytes[self.passed..self.at]);
        }
        self.passed = self.at;
    }

    /// Takes the last `frame` bytes out.
    pub(super) fn cut(&mut self, frame: usize, muted: bool, carrier: &mut impl TapOutput) {
        self.at -= frame;
        self.flush(muted, carrier);
        self.at += frame;
        self.passed = self.at;
    }
}
