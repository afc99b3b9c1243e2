//! Tracks the bytes of one call to the tap: which are processed, and which are passed on.

use super::output::TapOutput;
use crate::websocket::scanner::Sender;

/// The bytes of one call; `passed..at` are processed but not passed on yet.
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

    pub(super) fn flush(&mut self, is_close_sent: bool, output: &mut impl TapOutput) {
        if self.passed < self.at && !is_close_sent {
            output.pass(self.from, &self.bytes[self.passed..self.at]);
        }
        self.passed = self.at;
    }

    /// Removes the last `frame` bytes.
    pub(super) fn cut(&mut self, frame: usize, is_close_sent: bool, output: &mut impl TapOutput) {
        self.at -= frame;
        self.flush(is_close_sent, output);
        self.at += frame;
        self.passed = self.at;
    }
}
