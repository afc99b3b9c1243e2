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
pub(super) const MOST: usize = 60;

/// Limit of all responses' unread bytes; one response may be larger. Five scrapes of 100 routes.
pub(super) const MOST_UNREAD: usize = 16 << 20;

/// The slots; clones share them.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    next: u64,
    connections: BTreeMap<u64, Connection>,
}

/// A connection with a slot.
struct Connection {
    /// When it was accepted, or a response was last started or fully read.
    since: Instant,
    /// Requests whose responses are unread.
    answers: usize,
    /// Bytes of these.
    unread: usize,
    closed: CancellationToken,
}

/// A connection's slot, until dropped.
pub(super) struct Place {
    places: Places,
    id: u64,
    closed: CancellationToken,
}

/// A request whose response is in progress, until dropped.
pub(super) struct Answer {
    places: Places,
    id: u64,
    bytes: usize,
}

/// A response's body, held by the connection until all of it is written to the socket.
struct Body {
    bytes: Bytes,
    _answer: Answer,
}

impl Places {
    /// A slot for a new connection.
    pub(super) fn enter(&self) -> Place {
        let mut taken = self.lock();
        if taken.connections.len() >= MOST {
            taken.close_one(|_id, _connection| true);
        }
        let (id, closed) = (taken.next, CancellationToken::new());
        taken.next += 1;
        let connection = Connection { since: Instant::now(), answers: 0, unread: 0, closed: closed.clone() };
        taken.connections.insert(id, connection);
        Place { places: self.clone(), id, closed }
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Connection)) {
        // Closed connections are removed already.
        if let Some(connection) = self.lock().connections.get_mut(&id) {
            change(connection);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // No panic can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Closes one of the connections that `may_close` allows: the one that has waited longest for a complete head, else
    /// for its response to be read. Returns whether there was one.
    fn close_one(&mut self, may_close: impl Fn(u64, &Connection) -> bool) -> bool {
        let candidates = self.connections.iter().filter(|(id, connection)| may_close(**id, connection));
        let first = candidates.min_by_key(|(_id, connection)| (connection.answers > 0, connection.since));
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

impl Place {
    /// A complete head was received.
    pub(super) fn answer(&self) -> Answer {
        self.places.change(self.id, |connection| {
            connection.answers += 1;
            connection.since = Instant::now();
        });
        Answer { places: self.places.clone(), id: self.id, bytes: 0 }
    }

    /// Resolves when this connection must make room for another.
    pub(super) fn closed(&self) -> WaitForCancellationFuture<'_> {
        self.closed.cancelled()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().connections.remove(&self.id);
    }
}

impl Answer {
    /// The response's body, counted until it is written.
    pub(super) fn with(mut self, bytes: Bytes) -> Bytes {
        self.bytes = bytes.len();
        {
            let mut taken = self.places.lock();
            let holds_some = |id, connection: &Connection| id != self.id && connection.unread > 0;
            while taken.unread() + self.bytes > MOST_UNREAD && taken.close_one(holds_some) {}
        }
        self.places.change(self.id, |connection| connection.unread += self.bytes);
        Bytes::from_owner(Body { bytes, _answer: self })
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.places.change(self.id, |connection| {
            connection.answers -= 1;
            connection.unread -= self.bytes;
            connection.since = Instant::now();
        });
    }
}

impl AsRef<[u8]> for Body {
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
        place: Place,
        answer: Option<Bytes>,
    }

    #[derive(Clone, Debug)]
    enum Event {
        Connects,
        /// Sends a request; its response has this many bytes and is unread.
        Asks(Index, usize),
        /// Reads its response to the end.
        Reads(Index),
        Leaves(Index),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => Just(Event::Connects),
            6 => (any::<Index>(), 1..MOST_UNREAD / 2).prop_map(|(client, bytes)| Event::Asks(client, bytes)),
            1 => (any::<Index>(), MOST_UNREAD..2 * MOST_UNREAD).prop_map(|(client, bytes)| Event::Asks(client, bytes)),
            2 => any::<Index>().prop_map(Event::Reads),
            1 => any::<Index>().prop_map(Event::Leaves),
        ]
    }

    fn is_open(client: &Client) -> bool {
        !client.place.closed.is_cancelled()
    }

    fn one<'c>(clients: &'c mut [Client], which: &Index) -> Option<&'c mut Client> {
        clients.get_mut(which.index(clients.len().max(1)))
    }

    proptest! {
        #[test]
        fn each_new_connection_and_response_gets_room_and_both_totals_stay_bounded(
            events in prop::collection::vec(event(), 1..400)
        ) {
            static ZEROS: [u8; 2 * MOST_UNREAD] = [0; 2 * MOST_UNREAD];
            let (places, mut clients) = (Places::default(), Vec::new());
            for event in events {
                match event {
                    Event::Connects => {
                        clients.push(Client { place: places.enter(), answer: None });
                        prop_assert!(clients.last().is_some_and(is_open));
                    }
                    Event::Asks(client, bytes) => {
                        if let Some(client) = one(&mut clients, &client).filter(|client| client.answer.is_none()) {
                            client.answer = Some(client.place.answer().with(Bytes::from_static(&ZEROS[..bytes])));
                            prop_assert!(is_open(client));
                        }
                    }
                    Event::Reads(client) => _ = one(&mut clients, &client).and_then(|client| client.answer.take()),
                    Event::Leaves(client) if !clients.is_empty() => _ = clients.swap_remove(client.index(clients.len())),
                    Event::Leaves(_) => {}
                }
                // A closed client leaves, as its task ends.
                clients.retain(is_open);
                let unread: Vec<_> = clients.iter().filter_map(|client| client.answer.as_ref().map(Bytes::len)).collect();
                prop_assert!(clients.len() <= MOST);
                prop_assert!(unread.iter().sum::<usize>() <= MOST_UNREAD || unread.len() == 1, "{unread:?}");
                prop_assert_eq!(places.lock().unread(), unread.iter().sum::<usize>());
                prop_assert_eq!(places.lock().connections.len(), clients.len());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connections_without_a_request_are_closed_before_those_with_an_unread_response() {
        let places = Places::default();
        let mut clients = Vec::new();
        for _client in 0..MOST {
            clients.push(Client { place: places.enter(), answer: None });
            tokio::time::advance(std::time::Duration::from_millis(1)).await;
        }
        clients[0].answer = Some(clients[0].place.answer().with(Bytes::from_static(b"long")));
        clients[1].answer = Some(clients[1].place.answer().with(Bytes::from_static(b"short")));
        clients[1].answer = None;
        let _newer: Vec<_> = (0..MOST - 2).map(|_client| places.enter()).collect();
        let open: Vec<_> = clients.iter().map(is_open).collect();
        assert_eq!((open[0], open[1], open.iter().filter(|open| **open).count()), (true, true, 2));
        let _newest = places.enter();
        assert!(is_open(&clients[0]) && !is_open(&clients[1]), "one response is still unread, the other was read");
    }
}
