//! Limits the admin port's connections, and the bytes of its unread responses.
//!
//! Invariant: a new connection always gets a slot, and a response its memory. If a limit is reached, the connection
//! that has waited longest for its client is closed. So floods of idle, slow or silent clients do not block probes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// Concurrent connections. `limits::capacity` reserves 80 file descriptors: for these, for the next one (accepted
/// before the displaced one is closed), and for the process, which has 17 open when idle.
pub(super) const MAX_CONNECTIONS: usize = 60;

/// Limit of all responses' unread bytes; one response may be larger. Five scrapes of 100 routes.
pub(super) const MAX_UNREAD_BYTES: usize = 16 << 20;

/// The slots of all connections; clones share them.
#[derive(Clone, Default)]
pub(super) struct Slots(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    next: u64,
    connections: BTreeMap<u64, Connection>,
}

/// A connection with a slot.
struct Connection {
    /// When it was accepted, or a response was last started or fully read.
    since: Instant,
    /// Requests whose responses are unread.
    pending: usize,
    /// Bytes of these.
    unread: usize,
    closed: CancellationToken,
}

/// A connection's slot, until dropped.
pub(super) struct Slot {
    slots: Slots,
    id: u64,
    closed: CancellationToken,
}

/// A request whose response is in progress, until dropped.
pub(super) struct PendingResponse {
    slots: Slots,
    id: u64,
    bytes: usize,
}

/// A response's body, held by the connection until all of it is written to the socket.
struct CountedBody {
    bytes: Bytes,
    _response: PendingResponse,
}

impl Slots {
    /// A slot for a new connection.
    pub(super) fn take(&self) -> Slot {
        let mut state = self.lock();
        if state.connections.len() >= MAX_CONNECTIONS {
            state.close_one(|_id, _connection| true);
        }
        let (id, closed) = (state.next, CancellationToken::new());
        state.next += 1;
        let connection = Connection { since: Instant::now(), pending: 0, unread: 0, closed: closed.clone() };
        state.connections.insert(id, connection);
        Slot { slots: self.clone(), id, closed }
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Connection)) {
        // Closed connections are removed already.
        if let Some(connection) = self.lock().connections.get_mut(&id) {
            change(connection);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Closes one of the connections that `may_close` allows: the one that has waited longest for a complete head, else
    /// for its response to be read. Returns whether there was one.
    fn close_one(&mut self, may_close: impl Fn(u64, &Connection) -> bool) -> bool {
        let candidates = self.connections.iter().filter(|(id, connection)| may_close(**id, connection));
        let first = candidates.min_by_key(|(_id, connection)| (connection.pending > 0, connection.since));
        let closed = first.map(|(id, _connection)| *id).and_then(|id| self.connections.remove(&id));
        if let Some(connection) = &closed {
            connection.closed.cancel();
        }
        closed.is_some()
    }

    fn unread(&self) -> usize {
        self.connections.values().map(|connection| connection.unread).sum()
    }
}

impl Slot {
    /// A complete head was received.
    pub(super) fn start_response(&self) -> PendingResponse {
        self.slots.change(self.id, |connection| {
            connection.pending += 1;
            connection.since = Instant::now();
        });
        PendingResponse { slots: self.slots.clone(), id: self.id, bytes: 0 }
    }

    /// Resolves when this connection must make room for another.
    pub(super) fn closed(&self) -> WaitForCancellationFuture<'_> {
        self.closed.cancelled()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().connections.remove(&self.id);
    }
}

impl PendingResponse {
    /// The response's body, counted until it is written.
    pub(super) fn body(mut self, bytes: Bytes) -> Bytes {
        self.bytes = bytes.len();
        {
            let mut state = self.slots.lock();
            let holds_some = |id, connection: &Connection| id != self.id && connection.unread > 0;
            while state.unread() + self.bytes > MAX_UNREAD_BYTES && state.close_one(holds_some) {}
        }
        self.slots.change(self.id, |connection| connection.unread += self.bytes);
        Bytes::from_owner(CountedBody { bytes, _response: self })
    }
}

impl Drop for PendingResponse {
    fn drop(&mut self) {
        self.slots.change(self.id, |connection| {
            connection.pending -= 1;
            connection.unread -= self.bytes;
            connection.since = Instant::now();
        });
    }
}

impl AsRef<[u8]> for CountedBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// A client, as the server sees it.
    struct Client {
        slot: Slot,
        response: Option<Bytes>,
    }

    #[derive(Clone, Debug)]
    enum Event {
        Connects,
        /// Sends a request; its response has this many bytes and is unread.
        Requests(Index, usize),
        /// Reads its response to the end.
        Reads(Index),
        Disconnects(Index),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => Just(Event::Connects),
            6 => (any::<Index>(), 1..MAX_UNREAD_BYTES / 2).prop_map(|(client, bytes)| Event::Requests(client, bytes)),
            1 => (any::<Index>(), MAX_UNREAD_BYTES..2 * MAX_UNREAD_BYTES).prop_map(|(client, bytes)| Event::Requests(client, bytes)),
            2 => any::<Index>().prop_map(Event::Reads),
            1 => any::<Index>().prop_map(Event::Disconnects),
        ]
    }

    fn is_open(client: &Client) -> bool {
        !client.slot.closed.is_cancelled()
    }

    fn one<'c>(clients: &'c mut [Client], which: &Index) -> Option<&'c mut Client> {
        clients.get_mut(which.index(clients.len().max(1)))
    }

    proptest! {
        #[test]
        fn each_new_connection_and_response_gets_room_and_both_totals_stay_bounded(
            events in prop::collection::vec(event(), 1..400)
        ) {
            static ZEROS: [u8; 2 * MAX_UNREAD_BYTES] = [0; 2 * MAX_UNREAD_BYTES];
            let (slots, mut clients) = (Slots::default(), Vec::new());
            for event in events {
                match event {
                    Event::Connects => {
                        clients.push(Client { slot: slots.take(), response: None });
                        prop_assert!(clients.last().is_some_and(is_open));
                    }
                    Event::Requests(client, bytes) => {
                        if let Some(client) = one(&mut clients, &client).filter(|client| client.response.is_none()) {
                            client.response = Some(client.slot.start_response().body(Bytes::from_static(&ZEROS[..bytes])));
                            prop_assert!(is_open(client));
                        }
                    }
                    Event::Reads(client) => _ = one(&mut clients, &client).and_then(|client| client.response.take()),
                    Event::Disconnects(client) if !clients.is_empty() => _ = clients.swap_remove(client.index(clients.len())),
                    Event::Disconnects(_) => {}
                }
                // A closed client leaves, as its task ends.
                clients.retain(is_open);
                let unread: Vec<_> = clients.iter().filter_map(|client| client.response.as_ref().map(Bytes::len)).collect();
                prop_assert!(clients.len() <= MAX_CONNECTIONS);
                prop_assert!(unread.iter().sum::<usize>() <= MAX_UNREAD_BYTES || unread.len() == 1, "{unread:?}");
                prop_assert_eq!(slots.lock().unread(), unread.iter().sum::<usize>());
                prop_assert_eq!(slots.lock().connections.len(), clients.len());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_without_a_request_are_closed_before_those_with_an_unread_response() {
        let slots = Slots::default();
        let mut clients = Vec::new();
        for _client in 0..MAX_CONNECTIONS {
            clients.push(Client { slot: slots.take(), response: None });
            tokio::time::advance(std::time::Duration::from_millis(1)).await;
        }
        clients[0].response = Some(clients[0].slot.start_response().body(Bytes::from_static(b"long")));
        clients[1].response = Some(clients[1].slot.start_response().body(Bytes::from_static(b"short")));
        clients[1].response = None;
        let _newer: Vec<_> = (0..MAX_CONNECTIONS - 2).map(|_client| slots.take()).collect();
        let open: Vec<_> = clients.iter().map(is_open).collect();
        assert_eq!((open[0], open[1], open.iter().filter(|open| **open).count()), (true, true, 2));
        let _newest = slots.take();
        assert!(is_open(&clients[0]) && !is_open(&clients[1]), "one response is still unread, the other was read");
    }
}
