//! A bounded number of slots for open sockets; dropping a permit frees its slot.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Client;
use crate::metrics::Metrics;

/// The slots; clones share them.
#[derive(Clone)]
pub struct Quota(Arc<Account>);

/// One slot, taken until dropped. One pointer: an idle session has two.
pub struct Permit(Arc<Account>);

/// What a permit counts for. All permits that count for no client share one.
struct Account {
    slots: Arc<Slots>,
    client: Option<Client>,
}

struct Slots {
    max: AtomicUsize,
    taken: AtomicUsize,
    /// Clients with at least one slot.
    by_client: Mutex<HashMap<Client, usize>>,
    /// Counts taken slots; only for clients' connections.
    gauge: Option<Arc<Metrics>>,
}

impl Quota {
    /// A quota of `max` slots.
    pub fn new(max: usize) -> Self {
        Self::with_gauge(max, None)
    }

    /// A quota of `max` client connections, which the metrics count.
    pub fn of_connections(max: usize, metrics: Arc<Metrics>) -> Self {
        metrics.client_connections_limit(max);
        Self::with_gauge(max, Some(metrics))
    }

    /// Changes the number of slots; taken ones stay taken.
    pub fn resize(&self, max: usize) {
        self.0.slots.max.store(max, Relaxed);
        if let Some(metrics) = &self.0.slots.gauge {
            metrics.client_connections_limit(max);
        }
    }

    fn with_gauge(max: usize, gauge: Option<Arc<Metrics>>) -> Self {
        let slots = Slots { max: max.into(), taken: AtomicUsize::new(0), by_client: Mutex::default(), gauge };
        Self(Arc::new(Account { slots: Arc::new(slots), client: None }))
    }

    /// Takes a slot, if one is free.
    pub fn take(&self) -> Option<Permit> {
        let slots = &self.0.slots;
        let more = |taken: usize| (taken < slots.max.load(Relaxed)).then_some(taken + 1);
        slots.taken.fetch_update(Relaxed, Relaxed, more).ok()?;
        if let Some(metrics) = &slots.gauge {
            metrics.client_connection_opened();
        }
        Some(Permit(self.0.clone()))
    }
}

impl Permit {
    /// Counts the slot also for this client, which may have at most `max`. Returns whether it may have this one.
    /// Must be called at most once.
    #[must_use]
    pub fn count_for(&mut self, client: Client, max: NonZeroUsize) -> bool {
        debug_assert!(self.0.client.is_none(), "it counts for one client already");
        let slots = self.0.slots.clone();
        {
            let mut by_client = slots.by_client();
            let taken = by_client.get(&client).copied().unwrap_or_default();
            if taken >= max.get() {
                return false;
            }
            by_client.insert(client, taken + 1);
        }
        self.0 = Arc::new(Account { slots, client: Some(client) });
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Account { slots, client } = &*self.0;
        if let Some(client) = client {
            slots.release(client);
        }
        slots.taken.fetch_sub(1, Relaxed);
        if let Some(metrics) = &slots.gauge {
            metrics.client_connection_closed();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Permit")
    }
}

impl Slots {
    fn by_client(&self) -> MutexGuard<'_, HashMap<Client, usize>> {
        // No panic can leave it half changed.
        self.by_client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, client: &Client) {
        let mut by_client = self.by_client();
        if let Some(taken) = by_client.get_mut(client) {
            *taken -= 1;
            if *taken == 0 {
                by_client.remove(client);
                // Otherwise a table enlarged by a flood stays large.
                let (length, capacity) = (by_client.len(), by_client.capacity());
                if length < capacity / 8 {
                    by_client.shrink_to(length * 2);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn client(number: u32) -> Client {
        Client::V4(Ipv4Addr::from_bits(number))
    }

    #[test]
    fn dropping_a_permit_frees_its_slot() {
        let quota = Quota::new(2);
        let (first, second) = (quota.take(), quota.clone().take());
        assert!(first.is_some() && second.is_some() && quota.take().is_none());
        drop(first);
        let third = quota.take();
        assert!(third.is_some() && quota.take().is_none());
        drop((second, third));
        assert_eq!(quota.0.slots.taken.load(Relaxed), 0);
    }

    #[test]
    fn taken_slots_stay_taken_when_the_quota_shrinks() {
        let quota = Quota::new(2);
        let held = (quota.take(), quota.take());
        quota.resize(1);
        assert!(quota.take().is_none());
        drop(held.0);
        assert!(quota.take().is_none(), "one is still taken");
        quota.resize(2);
        assert!(held.1.is_some() && quota.take().is_some());
    }

    #[test]
    fn a_client_at_its_limit_takes_no_slot_of_another_client() {
        let (quota, one) = (Quota::new(10), NonZeroUsize::MIN);
        let mut first = quota.take().expect("free");
        assert!(first.count_for(client(1), one));
        let mut second = quota.take().expect("free");
        assert!(!second.count_for(client(1), one));
        assert!(second.count_for(client(2), one), "a slot that one client may not have can count for another");
        drop(first);
        let mut third = quota.take().expect("free");
        assert!(third.count_for(client(1), one));
    }

    #[test]
    fn no_state_is_kept_of_clients_without_slots() {
        let quota = Quota::new(1000);
        let mut held = Vec::new();
        for number in 0..100_000 {
            let mut permit = quota.take().expect("free");
            assert!(permit.count_for(client(number), NonZeroUsize::MIN));
            held.push(permit);
            if held.len() == 1000 {
                assert_eq!(quota.0.slots.by_client().len(), 1000);
                held.clear();
            }
        }
        let by_client = quota.0.slots.by_client();
        assert!(by_client.is_empty() && by_client.capacity() < 100, "{}", by_client.capacity());
    }

    #[test]
    fn a_permit_is_one_pointer() {
        assert_eq!(size_of::<Option<Permit>>(), size_of::<usize>());
    }
}
