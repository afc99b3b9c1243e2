//! Has the upstream proved itself alive? One tagged ping at a time; only its pong says yes.

use std::time::{Duration, Instant};

/// The payload of a ping of ours: a number that no peer can guess, then a count.
pub type Tag = [u8; 16];

/// What a pong is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pong {
    /// It answers somebody else's ping, or none: it passes on.
    Foreign,
    /// It carries our tag but answers no ping that is outstanding: it is swallowed and proves nothing.
    Stale,
    /// It answers the outstanding ping, after so long.
    Proof(Duration),
}

/// The pings of one session. Awaits one pong at most, since a pong proves nothing about the time after its ping.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    nonce: u64,
    count: u64,
    outstanding: Option<Instant>,
}

impl Liveness {
    /// `nonce` must be random: it tells our pongs from the browser's own.
    pub fn new(nonce: u64) -> Self {
        Self { nonce, count: 0, outstanding: None }
    }

    /// A ping was sent whose pong has not come.
    pub fn is_outstanding(&self) -> bool {
        self.outstanding.is_some()
    }

    /// The tag of the ping that is sent `now`.
    pub fn on_ping(&mut self, now: Instant) -> Tag {
        self.count += 1;
        self.outstanding = Some(now);
        self.tag()
    }

    /// A pong came from the upstream.
    pub fn on_pong(&mut self, payload: &[u8], now: Instant) -> Pong {
        if payload == self.tag()
            && let Some(sent) = self.outstanding.take()
        {
            return Pong::Proof(now.saturating_duration_since(sent));
        }
        let ours = payload.len() == size_of::<Tag>() && payload.starts_with(&self.nonce.to_be_bytes());
        if ours { Pong::Stale } else { Pong::Foreign }
    }

    fn tag(&self) -> Tag {
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
