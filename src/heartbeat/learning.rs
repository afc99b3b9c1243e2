//! Learns whether one upstream acks heartbeats itself, and forgets it when that may have changed.

use super::Capability;
use crate::streamlit::version;

/// Misses in a row that reset `Native` to `Unknown`, each by an upstream that was proved alive.
const MISSES_TO_DOUBT: u8 = 3;

/// The knowledge about one upstream, shared by its sessions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Learning {
    capability: Capability,
    misses: u8,
}

impl Learning {
    /// What is known now.
    pub fn capability(&self) -> Capability {
        self.capability
    }

    /// A `new_session` named the server's version. Text that is not a version is ignored.
    pub fn on_version(&mut self, text: &str) {
        match version::answers_heartbeats(text) {
            Some(true) => self.learn(Capability::Native),
            Some(false) => self.learn(Capability::Silent),
            None => {}
        }
    }

    /// The upstream sent its own ack.
    pub fn on_native_ack(&mut self) {
        self.learn(Capability::Native);
    }

    /// A forwarded heartbeat got no native ack although the upstream was proved alive.
    ///
    /// One miss makes an unknown upstream silent. A native server loses an ack only when a script run starts
    /// (Streamlit 1.55 to 1.67), and then its `new_session` names the version.
    pub fn on_native_miss(&mut self) {
        match self.capability {
            Capability::Unknown => self.learn(Capability::Silent),
            Capability::Silent => {}
            Capability::Native => {
                self.misses += 1;
                if self.misses >= MISSES_TO_DOUBT {
                    self.learn(Capability::Unknown);
                }
            }
        }
    }

    /// The upstream refused a connection, vanished or goes away: it may return as another version.
    pub fn on_gone(&mut self) {
        self.learn(Capability::Unknown);
    }

    fn learn(&mut self, capability: Capability) {
        *self = Self { capability, misses: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_native_acks_set_the_capability() {
        let mut learning = Learning::default();
        learning.on_version("1.53.1");
        assert_eq!(learning.capability(), Capability::Silent);
        learning.on_version("not a version");
        assert_eq!(learning.capability(), Capability::Silent);
        learning.on_native_ack();
        assert_eq!(learning.capability(), Capability::Native);
        learning.on_version("1.54.0");
        assert_eq!(learning.capability(), Capability::Silent, "an app was redeployed behind the same address");
    }

    #[test]
    fn one_miss_makes_an_unknown_upstream_silent_and_three_in_a_row_make_a_native_one_unknown() {
        let mut learning = Learning::default();
        learning.on_native_miss();
        assert_eq!(learning.capability(), Capability::Silent);
        learning.on_version("1.55.0");
        learning.on_native_miss();
        learning.on_native_miss();
        learning.on_native_ack();
        learning.on_native_miss();
        learning.on_native_miss();
        assert_eq!(learning.capability(), Capability::Native, "an ack in between resets the count");
        learning.on_native_miss();
        assert_eq!(learning.capability(), Capability::Unknown);
    }

    #[test]
    fn capability_is_unknown_after_the_upstream_went_away() {
        let mut learning = Learning::default();
        learning.on_version("1.67.0");
        learning.on_gone();
        assert_eq!(learning.capability(), Capability::Unknown);
    }
}
