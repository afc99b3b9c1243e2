//! Proof that a peer is alive: one tagged ping at a time, answered only by its own pong.

use std::time::{Duration, Instant};

/// The payload of the sidecar's pings: a number that no peer can guess, then a count.
pub type PingTag = [u8; 16];

/// What a pong proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pong {
    /// It answers another sender's ping, or none: it passes.
    Foreign,
    /// It carries our nonce but answers no outstanding ping: it is removed and proves nothing.
    Stale,
    /// It answers the outstanding ping; the round-trip time.
    Proof(Duration),
}

/// The pings to one peer. At most one is outstanding, since a pong proves nothing about the time after its ping.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    nonce: u64,
    count: u64,
    outstanding: Option<Instant>,
}

impl Liveness {
    /// `nonce` must be random: it marks the pongs to our pings.
    pub fn new(nonce: u64) -> Self {
        Self { nonce, count: 0, outstanding: None }
    }

    /// The same, without the outstanding ping: its pong can no longer come.
    #[must_use]
    pub fn next(self) -> Self {
        Self { outstanding: None, ..self }
    }

    /// A ping awaits its pong.
    pub fn is_outstanding(&self) -> bool {
        self.outstanding.is_some()
    }

    /// When the ping that awaits its pong was sent.
    pub fn outstanding_since(&self) -> Option<Instant> {
        self.outstanding
    }

    /// Records a ping sent `now` and returns its tag.
    pub fn on_ping(&mut self, now: Instant) -> PingTag {
        self.count += 1;
        self.outstanding = Some(now);
        self.tag()
    }

    /// The peer sent a pong.
    pub fn on_pong(&mut self, payload: &[u8], now: Instant) -> Pong {
        if payload == self.tag()
            && let Some(sent) = self.outstanding.take()
        {
            return Pong::Proof(now.saturating_duration_since(sent));
        }
        let ours = payload.len() == size_of::<PingTag>() && payload.starts_with(&self.nonce.to_be_bytes());
        if ours { Pong::Stale } else { Pong::Foreign }
    }

    fn tag(&self) -> PingTag {
        let mut tag = [0; 16];
        tag[..8].copy_from_slice(&self.nonce.to_be_bytes());
        tag[8..].copy_from_slice(&self.count.to_be_bytes());
        tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pong_of_the_outstanding_ping_is_a_proof() {
        let start = Instant::now();
        let mut liveness = Liveness::new(7);
        let first = liveness.on_ping(start);
        assert_eq!(liveness.on_pong(b"", start), Pong::Foreign);
        assert_eq!(liveness.on_pong(b"0123456789abcdef", start), Pong::Foreign);
        assert_eq!(liveness.on_pong(&first, start + Duration::from_millis(3)), Pong::Proof(Duration::from_millis(3)));
        assert_eq!(liveness.on_pong(&first, start), Pong::Stale);
        let second = liveness.on_ping(start);
        assert_ne!(first, second);
        assert_eq!(liveness.on_pong(&first, start), Pong::Stale);
        assert!(liveness.is_outstanding());
    }
}
