//! What happens to a heartbeat, decided by pure code: events and `now` in, actions out.

mod direction;
mod inspection;
pub mod learning;
pub mod liveness;
pub mod output;
pub mod pings;
pub mod policy;
mod run;
pub mod tap;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::streamlit::ack::AckForm;

/// Who is to answer heartbeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The upstream where it can, the sidecar otherwise.
    #[default]
    Auto,
    /// Always the sidecar.
    Answer,
    /// Never the sidecar.
    Forward,
}

/// What makes an upstream count as alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// The pong to a ping that was sent after the heartbeat came.
    #[default]
    Pong,
    /// An open connection.
    Connection,
}

/// The heartbeat settings of one upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Who answers.
    pub mode: Mode,
    /// What must be seen before the sidecar answers.
    pub proof: Proof,
    /// The bytes of a sidecar-made ack.
    pub ack: AckForm,
    /// How long a forwarded heartbeat waits for the upstream's own ack.
    pub native_deadline: Duration,
    /// How long a heartbeat may stay unproved before it counts as withheld.
    pub stall_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            proof: Proof::default(),
            ack: AckForm::default(),
            native_deadline: Duration::from_secs(2),
            stall_after: Duration::from_secs(5),
        }
    }
}

/// What is known of an upstream's own acks. Kept per upstream: after a quick reconnect (Streamlit 1.39+) no
/// `new_session` comes on the new socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Capability {
    /// Nothing yet: forward and wait; what happens teaches.
    #[default]
    Unknown,
    /// It does not answer heartbeats (Streamlit before 1.55.0).
    Silent,
    /// It answers heartbeats itself (Streamlit 1.55.0 and later).
    Native,
}

/// Who made an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckOrigin {
    /// The sidecar.
    Sidecar,
    /// The app server.
    Upstream,
}

/// Why a heartbeat got no ack, or got it late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// The upstream did not prove itself alive within `stall_after`.
    UpstreamStalled,
    /// The session ended before the upstream had proved itself alive.
    UpstreamClosed,
    /// The sidecar may not answer here: `mode = "forward"`, or a stream that the tap cannot follow.
    Policy,
}
