//! The places for connections to the admin port, and for the bytes of answers that wait to be read.
//!
//! Invariant: a new connection always gets a place, and an answer its memory; if there is no room, the connection that has waited
//! longest for its client is closed. So floods of idle, slow or silent clients keep no probe out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// Connections served at a time. `limits::capacity` keeps 80 file handles for these, for the next one (accepted before the one
/// that it displaces is gone) and for the process, which has 17 open when it serves nobody.
pub(super) const MOST: usize = 60;

/// Bytes of answers that wait for their clients at a time; one answer may be larger. Five scrapes of 100 routes.
pub(super) const MOST_UNREAD: usize = 16 << 20;

/// The places; clones share them.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    next: u64,
    connections: BTreeMap<u64, Connection>,
}

/// A connection that has a place.
struct Connection {
    /// When it was accepted, or an answer was last begun or read to its end.
    since: Instant,
    /// Requests whose answers are not read yet.
    answers: usize,
    /// Bytes of these.
    unread: usize,
    closed: CancellationToken,
}

/// A connection's place, until dropped.
pub(super) struct Place {
    places: Places,
    id: u64,
    closed: CancellationToken,
}

/// A request whose answer is under way, until dropped.
pub(super) struct Answer {
    places: Places,
    id: u64,
    bytes: usize,
}

/// An answer's body, held by the connection until all of it is written to the socket.
struct Body {
    bytes: Bytes,
    _answer: Answer,
}

impl Places {
    /// A place for a new connection.
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
        // Closed ones are gone already.
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
    /// Closes one of these connections: the one that has longest sent no whole head, else the one that has longest not read
    /// its answer. Returns whether there was one.
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
    /// A whole head has come.
    pub(super) fn answer(&self) -> Answer {
        self.places.change(self.id, |connection| {
            connection.answers += 1;
            connection.since = Instant::now();
        });
        Answer { places: self.places.clone(), id: self.id, bytes: 0 }
    }

    /// Resolves when the place was given to another connection.
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
    /// The answer's body, counted until it is written.
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
        /// Sends a request; its answer has this many bytes and is not read yet.
        Asks(Index, usize),
        /// Reads its answer to the end.
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
        fn whoever_comes_or_asks_has_room_and_all_of_it_stays_bounded(
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
                // Who is closed goes, as its task does.
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
    async fn who_waits_for_its_own_request_goes_before_who_waits_for_an_answer() {
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
        assert!(is_open(&clients[0]) && !is_open(&clients[1]), "one answer is under way still, the other was read");
    }
}
