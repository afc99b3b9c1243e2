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
pub struct Quota(Arc<Holder>);

/// One slot, taken until dropped. One pointer: an idle session has two.
pub struct Permit(Arc<Holder>);

/// The holder of a slot; all slots not counted for a client share one.
struct Holder {
    places: Arc<Places>,
    client: Option<Client>,
}

struct Places {
    most: AtomicUsize,
    taken: AtomicUsize,
    /// Clients with at least one slot.
    of_clients: Mutex<HashMap<Client, usize>>,
    /// Counts taken slots; only for clients' connections.
    gauge: Option<Arc<Metrics>>,
}

impl Quota {
    /// A quota of `most` slots.
    pub fn new(most: usize) -> Self {
        Self::with_gauge(most, None)
    }

    /// A quota of `most` client connections, which the metrics count.
    pub fn of_connections(most: usize, metrics: Arc<Metrics>) -> Self {
        metrics.client_connections_limit(most);
        Self::with_gauge(most, Some(metrics))
    }

    /// Changes the number of slots; taken ones stay taken.
    pub fn resize(&self, most: usize) {
        self.0.places.most.store(most, Relaxed);
        if let Some(metrics) = &self.0.places.gauge {
            metrics.client_connections_limit(most);
        }
    }

    fn with_gauge(most: usize, gauge: Option<Arc<Metrics>>) -> Self {
        let places = Places { most: most.into(), taken: AtomicUsize::new(0), of_clients: Mutex::default(), gauge };
        Self(Arc::new(Holder { places: Arc::new(places), client: None }))
    }

    /// Takes a slot, if one is free.
    pub fn take(&self) -> Option<Permit> {
        let places = &self.0.places;
        let more = |taken: usize| (taken < places.most.load(Relaxed)).then_some(taken + 1);
        places.taken.fetch_update(Relaxed, Relaxed, more).ok()?;
        if let Some(metrics) = &places.gauge {
            metrics.client_connection_opened();
        }
        Some(Permit(self.0.clone()))
    }
}

impl Permit {
    /// Counts the slot also for this client, which may have at most `most`. Returns whether it may have this one.
    /// Must be called at most once.
    #[must_use]
    pub fn count_for(&mut self, client: Client, most: NonZeroUsize) -> bool {
        debug_assert!(self.0.client.is_none(), "it counts for one client already");
        let places = self.0.places.clone();
        {
            let mut of_clients = places.of_clients();
            let taken = of_clients.get(&client).copied().unwrap_or_default();
            if taken >= most.get() {
                return false;
            }
            of_clients.insert(client, taken + 1);
        }
        self.0 = Arc::new(Holder { places, client: Some(client) });
        true
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Holder { places, client } = &*self.0;
        if let Some(client) = client {
            places.leave(client);
        }
        places.taken.fetch_sub(1, Relaxed);
        if let Some(metrics) = &places.gauge {
            metrics.client_connection_closed();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Permit")
    }
}

impl Places {
    fn of_clients(&self) -> MutexGuard<'_, HashMap<Client, usize>> {
        // No panic can leave it half changed.
        self.of_clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, client: &Client) {
        let mut of_clients = self.of_clients();
        if let Some(taken) = of_clients.get_mut(client) {
            *taken -= 1;
            if *taken == 0 {
                of_clients.remove(client);
                // Otherwise a table enlarged by a flood stays large.
                let (length, capacity) = (of_clients.len(), of_clients.capacity());
                if length < capacity / 8 {
                    of_clients.shrink_to(length * 2);
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
        assert_eq!(quota.0.places.taken.load(Relaxed), 0);
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
        assert!(second.count_for(client(2), one), "a slot refused to one client can count for another");
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
                assert_eq!(quota.0.places.of_clients().len(), 1000);
                held.clear();
            }
        }
        let of_clients = quota.0.places.of_clients();
        assert!(of_clients.is_empty() && of_clients.capacity() < 100, "{}", of_clients.capacity());
    }

    #[test]
    fn a_permit_is_one_pointer() {
        assert_eq!(size_of::<Option<Permit>>(), size_of::<usize>());
    }
}
