//! The sidecar's end of a resumable session: one logical connection to a page, carried by one leg after another.
//!
//! Invariant: between page and sidecar each data message arrives once and in order, over any number of legs, or the
//! session cannot be resumed.
//!
//! # Order of calls
//!
//! Neither half does I/O or reads a clock. `relay::Relay` owns both. [`PageStream::on_bytes`] takes what a leg brings and
//! gives what is for the app. [`Outbox::on_bytes`] takes all that goes to the page, and [`Outbox::on_confirmed`] drops
//! what the page has. When a leg is lost, [`PageStream::may_change_leg`] says whether another may follow;
//! [`Outbox::on_leg`] and [`PageStream::on_new_leg`] start it. [`PageStream::next_confirmation`] goes to the page
//! whenever [`Outbox::between_messages`] has room for it.

pub mod control;
mod outbox;
mod page_stream;
#[cfg(test)]
mod tests;

pub use self::outbox::{LegRefusal, Outbox, Resent};
pub use self::page_stream::{PageInput, PageStream};
