//! Totals of all sessions since the sidecar started, ended ones included.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use super::data::Acks;
use crate::heartbeat::{AckOrigin, Withheld};

/// The totals; they may be a few events apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Sessions that have started.
    pub opened: u64,
    /// Heartbeats read.
    pub heartbeats: u64,
    /// Acks written to browsers' sockets.
    pub acks: Acks,
    /// Heartbeats that got no ack, or got it late.
    pub withheld: WithheldCounts,
}

/// Heartbeats without an ack in time, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WithheldCounts {
    /// See [`Withheld::UpstreamStalled`].
    pub upstream_stalled: u64,
    /// See [`Withheld::UpstreamClosed`].
    pub upstream_closed: u64,
    /// See [`Withheld::Policy`].
    pub policy: u64,
}

/// The sums behind [`Totals`]: relaxed atomics, no lock.
#[derive(Debug, Default)]
pub(super) struct Sums {
    opened: AtomicU64,
    heartbeats: AtomicU64,
    acks_sidecar: AtomicU64,
    acks_upstream: AtomicU64,
    upstream_stalled: AtomicU64,
    upstream_closed: AtomicU64,
    policy: AtomicU64,
}

impl Sums {
    /// Counts a session; returns the new total.
    pub(super) fn open(&self) -> u64 {
        self.opened.fetch_add(1, Relaxed) + 1
    }

    pub(super) fn heartbeat(&self) {
        self.heartbeats.fetch_add(1, Relaxed);
    }

    pub(super) fn ack(&self, origin: AckOrigin) {
        let acks = match origin {
            AckOrigin::Sidecar => &self.acks_sidecar,
            AckOrigin::Upstream => &self.acks_upstream,
        };
        acks.fetch_add(1, Relaxed);
    }

    pub(super) fn withheld(&self, reason: Withheld) {
        let withheld = match reason {
            Withheld::UpstreamStalled => &self.upstream_stalled,
            Withheld::UpstreamClosed => &self.upstream_closed,
            Withheld::Policy => &self.policy,
        };
        withheld.fetch_add(1, Relaxed);
    }

    pub(super) fn totals(&self) -> Totals {
        Totals {
            opened: self.opened.load(Relaxed),
            heartbeats: self.heartbeats.load(Relaxed),
            acks: Acks { sidecar: self.acks_sidecar.load(Relaxed), upstream: self.acks_upstream.load(Relaxed) },
            withheld: WithheldCounts {
                upstream_stalled: self.upstream_stalled.load(Relaxed),
                upstream_closed: self.upstream_closed.load(Relaxed),
                policy: self.policy.load(Relaxed),
            },
        }
    }
}
