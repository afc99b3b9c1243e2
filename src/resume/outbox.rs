//! What goes to a page: counts its messages, and keeps those that the page has not confirmed.
//!
//! Invariant: at most `limit` bytes are kept. What is kept is the end of the stream, from the start of a message on.

use std::collections::VecDeque;

use super::control::ResumeRequest;
use crate::websocket::scanner::{Mark, Scanner, Side};

/// What the length of one kept message costs.
const BYTES_PER_LENGTH: usize = size_of::<u32>();

/// The stream to the page. Control frames belong to one leg: they are not kept.
#[derive(Debug)]
pub struct Outbox {
    scanner: Scanner,
    /// Complete messages sent.
    sent: u64,
    /// `None` while nothing is kept: an idle session has no buffer.
    copies: Option<Box<Copies>>,
    copying: Copying,
    /// Bytes that are kept at most, with the lengths.
    limit: usize,
    /// The number of the current or last leg.
    leg: u32,
}

/// The messages that the page has not confirmed.
#[derive(Debug, Default)]
struct Copies {
    /// Their frames; the last message may be incomplete.
    bytes: VecDeque<u8>,
    /// Lengths of the complete ones.
    lengths: VecDeque<u32>,
    /// Length of the incomplete one.
    incomplete: usize,
}

/// Whether messages are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copying {
    /// All that the page has not confirmed are.
    On,
    /// The limit was reached: none is, until the page has confirmed everything.
    Overflowed,
    /// The stream cannot be parsed, or the limit is 0: none ever is.
    Broken,
}

/// What a new leg starts with.
#[derive(Debug, PartialEq, Eq)]
pub struct Resent<'a> {
    /// The unconfirmed messages, the last one perhaps incomplete.
    pub bytes: [&'a [u8]; 2],
    /// How many of them are complete.
    pub messages: usize,
}

/// Why a leg cannot continue a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegRefusal {
    /// A newer one has come already.
    Stale,
    /// The limit was reached, and the page has not confirmed everything.
    Overflow,
    /// The page claims a count that is not possible.
    Count,
}

impl Outbox {
    /// Nothing was sent yet, over leg number 0. At most `limit` bytes are kept.
    pub fn new(limit: usize) -> Self {
        Self {
            scanner: Scanner::new(Side::Upstream, false),
            sent: 0,
            copies: None,
            copying: if limit > 0 { Copying::On } else { Copying::Broken },
            limit,
            leg: 0,
        }
    }

    /// A message of the sidecar may be sent now.
    pub fn between_messages(&self) -> bool {
        self.copying != Copying::Broken && self.scanner.between_messages()
    }

    /// Records whole frames, or parts of data frames, that go to the page. Returns how many kept bytes were dropped
    /// because they exceed the limit: then no other leg can follow until the page has confirmed everything.
    pub fn on_bytes(&mut self, bytes: &[u8]) -> usize {
        // Bytes before `copied` are done, those from there to `at` are parsed.
        let (mut copied, mut at) = (0, 0);
        while at < bytes.len() && self.copying != Copying::Broken {
            let start = at;
            if let Some((_payload, rest)) = self.scanner.plain_message(&bytes[at..]) {
                at = bytes.len() - rest.len();
                self.advance(at - start);
                continue;
            }
            match self.scanner.next(&bytes[at..], |_header| false) {
                Mark::Whole(header) if header.opcode.is_control() => {
                    at += header.length + header.payload_length as usize;
                    self.copy(&bytes[copied..start]);
                    copied = at;
                    continue;
                }
                Mark::Whole(header) => at += header.length + header.payload_length as usize,
                Mark::Start(header) if !header.opcode.is_control() => at += header.length,
                Mark::Payload { length, .. } => at += length,
                // No app sends control frames in parts that the tap does not put together.
                Mark::Start(_) | Mark::Incomplete | Mark::Error(_) => return self.drop_copies(Copying::Broken),
            }
            self.advance(at - start);
        }
        self.copy(&bytes[copied..at]);
        let kept = self.copies.as_ref().map_or(0, |copies| copies.kept_bytes());
        if kept > self.limit { self.drop_copies(Copying::Overflowed) } else { 0 }
    }

    /// The page has confirmed this many messages. A count that is not possible changes nothing.
    pub fn on_confirmed(&mut self, received: u64) {
        if received > self.sent {
            return;
        }
        if self.copying == Copying::Overflowed && received == self.sent && self.scanner.between_messages() {
            self.copying = Copying::On;
        }
        let Some(copies) = &mut self.copies else { return };
        let first = self.sent - copies.lengths.len() as u64;
        let confirmed = received.saturating_sub(first) as usize;
        let length: usize = copies.lengths.drain(..confirmed).map(|length| length as usize).sum();
        copies.bytes.drain(..length);
        if copies.bytes.is_empty() {
            self.copies = None;
        }
    }

    /// Another leg continues the stream. Returns what to send over it first.
    ///
    /// # Errors
    /// It cannot; the current leg stays.
    pub fn on_leg(&mut self, ResumeRequest { leg, received, .. }: &ResumeRequest) -> Result<Resent<'_>, LegRefusal> {
        if *leg <= self.leg {
            return Err(LegRefusal::Stale);
        }
        if *received > self.sent {
            return Err(LegRefusal::Count);
        }
        self.on_confirmed(*received);
        if self.copying != Copying::On {
            return Err(LegRefusal::Overflow);
        }
        let messages = self.copies.as_ref().map_or(0, |copies| copies.lengths.len());
        if *received < self.sent - messages as u64 {
            return Err(LegRefusal::Count);
        }
        self.leg = *leg;
        let (front, back) = self.copies.as_ref().map(|copies| copies.bytes.as_slices()).unwrap_or_default();
        Ok(Resent { bytes: [front, back], messages })
    }

    /// Counts bytes of data frames, up to the end of a message or of what has come of it.
    fn advance(&mut self, length: usize) {
        let is_complete = self.scanner.between_messages();
        self.sent += u64::from(is_complete);
        if self.copying == Copying::On {
            let copies = self.copies.get_or_insert_default();
            copies.incomplete += length;
            if is_complete {
                // Longer ones exceed the limit.
                let length = u32::try_from(std::mem::take(&mut copies.incomplete)).unwrap_or(u32::MAX);
                copies.lengths.push_back(length);
            }
        }
    }

    fn copy(&mut self, bytes: &[u8]) {
        if self.copying == Copying::On && !bytes.is_empty() {
            self.copies.get_or_insert_default().bytes.extend(bytes);
        }
    }

    fn drop_copies(&mut self, next: Copying) -> usize {
        self.copying = next;
        self.copies.take().map_or(0, |copies| copies.bytes.len())
    }
}

impl Copies {
    fn kept_bytes(&self) -> usize {
        self.bytes.len() + self.lengths.len() * BYTES_PER_LENGTH
    }
}
