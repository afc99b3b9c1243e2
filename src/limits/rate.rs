//! Rate limit per client: a token bucket each, stored as the time when it is full again.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Client;

/// Seconds' worth of tokens in a full bucket: what a page's resources, or a few users behind one address, need at once.
const BURST: u32 = 10;

/// Maximum number of buckets, about 4 MiB of them. Counting addresses does not stop a client that has more addresses
/// than that. Further addresses are not limited: they may be anyone's.
const MAX_CLIENTS: usize = 1 << 16;

/// How often full buckets are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A rate per second, with bursts of ten times as many.
#[derive(Debug)]
pub struct Rate {
    /// Time in which one token returns.
    interval: Duration,
    /// Time in which an empty bucket fills.
    full: Duration,
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    /// When each is full again; a full bucket equals none.
    full_at: HashMap<Client, Instant>,
    swept: Option<Instant>,
}

impl Rate {
    /// The rate of each client.
    pub fn new(per_second: NonZeroU32) -> Self {
        let interval = Duration::from_secs(1) / per_second.get();
        Self { interval, full: interval * (per_second.get() * BURST), buckets: Mutex::default() }
    }

    /// Takes one of the client's tokens.
    ///
    /// # Errors
    /// No token is left: the time until the next.
    pub fn take(&self, client: Client, now: Instant) -> Result<(), Duration> {
        // No panic can leave it half changed.
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.sweep(now);
        let known = buckets.full_at.get(&client).copied();
        if known.is_none() && buckets.full_at.len() >= MAX_CLIENTS {
            return Ok(());
        }
        let full_at = known.map_or(now, |at| at.max(now)) + self.interval;
        match (full_at - now).checked_sub(self.full) {
            None | Some(Duration::ZERO) => {
                buckets.full_at.insert(client, full_at);
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }
}

impl Buckets {
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_INTERVAL) {
            return;
        }
        self.swept = Some(now);
        self.full_at.retain(|_client, full_at| *full_at > now);
        if self.full_at.len() < self.full_at.capacity() / 8 {
            self.full_at.shrink_to(self.full_at.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn client(number: u32) -> Client {
        Client::V4(Ipv4Addr::from_bits(number))
    }

    fn rate(per_second: u32) -> Rate {
        Rate::new(NonZeroU32::new(per_second).expect("not zero"))
    }

    /// How many of many attempts at once succeed.
    fn successes(rate: &Rate, now: Instant) -> usize {
        (0..1000).filter(|_attempt| rate.take(client(1), now).is_ok()).count()
    }

    #[test]
    fn a_burst_passes_and_then_tokens_return_at_the_rate() {
        for per_second in [1, 3, 7, 50] {
            let (rate, start) = (rate(per_second), Instant::now());
            let per_second = per_second as usize;
            assert_eq!(successes(&rate, start), per_second * 10);
            assert_eq!(successes(&rate, start), 0);
            assert_eq!(successes(&rate, start + SECOND), per_second);
            assert_eq!(successes(&rate, start + SECOND * 5), per_second * 4);
            assert_eq!(successes(&rate, start + SECOND * 3600), per_second * 10, "a bucket holds no more than a burst");
        }
    }

    #[test]
    fn a_token_is_available_after_the_returned_time() {
        let (rate, start) = (rate(4), Instant::now());
        successes(&rate, start);
        let wait = rate.take(client(1), start).expect_err("the bucket is empty");
        assert_eq!(wait, SECOND / 4);
        assert!(rate.take(client(1), start + wait - Duration::from_nanos(1)).is_err());
        assert_eq!(rate.take(client(1), start + wait), Ok(()));
        assert_eq!(rate.take(client(2), start), Ok(()), "another client has a bucket of its own");
    }

    #[test]
    fn full_buckets_are_removed_and_their_number_is_bounded() {
        let (rate, start) = (rate(1), Instant::now());
        for number in 0..200_000 {
            assert_eq!(rate.take(client(number), start), Ok(()));
        }
        assert_eq!(rate.buckets.lock().unwrap().full_at.len(), MAX_CLIENTS);
        assert_eq!(rate.take(client(0), start + SECOND), Ok(()));
        let buckets = rate.buckets.lock().unwrap();
        assert!(buckets.full_at.len() == 1 && buckets.full_at.capacity() < 100, "{}", buckets.full_at.capacity());
    }
}
