//! Decides what happens to a heartbeat, as pure code: events and `now` in, actions out.

pub mod learning;
pub mod liveness;
pub mod pings;
pub mod policy;

use std::time::Duration;

use crate::streamlit::ack::AckForm;

/// Which side answers heartbeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The upstream if it can, else the sidecar.
    #[default]
    Auto,
    /// Always the sidecar.
    Answer,
    /// Never the sidecar.
    Forward,
}

/// What proves an upstream alive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// The pong to a ping that was sent after the heartbeat arrived.
    #[default]
    Pong,
    /// An open connection.
    Connection,
}

/// The heartbeat settings of one upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatSettings {
    /// Which side answers.
    pub mode: Mode,
    /// The proof required before the sidecar answers.
    pub proof: Proof,
    /// The bytes of a sidecar-made ack.
    pub ack: AckForm,
    /// How long a forwarded heartbeat waits for the upstream's own ack.
    pub native_deadline: Duration,
    /// How long a heartbeat may stay unproved before it counts as withheld.
    pub stall_after: Duration,
}

impl Default for HeartbeatSettings {
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

/// Whether an upstream acks heartbeats itself. Kept per upstream: after a quick reconnect (Streamlit 1.39+) no
/// `new_session` comes on the new socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Capability {
    /// Not known yet: forward, and learn from the result.
    #[default]
    Unknown,
    /// It does not answer heartbeats (Streamlit before 1.55.0).
    Silent,
    /// It answers heartbeats itself (Streamlit 1.55.0 and later).
    Native,
}

/// Which side made an ack.
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
    /// The upstream was not proved alive within `stall_after`.
    UpstreamStalled,
    /// The upstream closed the session before it was proved alive.
    UpstreamClosed,
    /// The sidecar may not answer: `mode = "forward"`.
    Policy,
}
