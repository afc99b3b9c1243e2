//! What is known about an upstream, and shown in its gauge.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::monitor::Timeouts;
use crate::heartbeat::Capability;
use crate::heartbeat::learning::Learning;
use crate::metrics::UpstreamMetrics;

/// State of an upstream, shared by its sessions. The gauge follows it while `shown` is set.
pub struct UpstreamState {
    learning: Mutex<Learning>,
    /// Read and written under the lock of `learning`.
    shown: AtomicBool,
    pub(super) metrics: Arc<UpstreamMetrics>,
    pub(super) timeouts: Timeouts,
}

impl UpstreamState {
    /// Nothing is learned yet. `timeouts` are those of its sessions' peers.
    pub fn new(metrics: Arc<UpstreamMetrics>, timeouts: Timeouts) -> Self {
        let learning = Learning::default();
        metrics.acks_natively(learning.capability());
        Self { learning: Mutex::new(learning), shown: true.into(), metrics, timeouts }
    }

    /// Whether the app acks heartbeats, as far as learned.
    pub fn capability(&self) -> Capability {
        self.lock().capability()
    }

    /// Applies an observation, and updates the gauge.
    pub fn learn(&self, observe: impl FnOnce(&mut Learning)) {
        let mut learning = self.lock();
        observe(&mut learning);
        self.publish(&learning);
    }

    /// Sets whether the gauge shows this. An app that moved has two addresses while old sessions live, but one gauge.
    pub fn show(&self, shown: bool) {
        let learning = self.lock();
        self.shown.store(shown, Relaxed);
        self.publish(&learning);
    }

    fn publish(&self, learning: &Learning) {
        if self.shown.load(Relaxed) {
            self.metrics.acks_natively(learning.capability());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Learning> {
        // No panic can leave it half changed.
        self.learning.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
