//! Tests of single owners, then of a model: many clients claim, name, close and leave in any order.

use std::cell::RefCell;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use http::HeaderMap;
use proptest::prelude::*;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::*;

/// After which the app's connection is aborted.
const TIMEOUT: Duration = Duration::from_millis(20);

fn ended(result: Takeover) -> Ended {
    Ended { result, received: None }
}

fn id(number: u8) -> SessionId {
    SessionId::parse(&format!("7a4fd3b1-25b0-4f38-9d05-0a55b18df5{number:02x}")).expect("a UUID")
}

fn owner(owners: &Owners) -> Owner {
    owner_of(0, owners)
}

fn owner_of(user: u8, owners: &Owners) -> Owner {
    Owner::new(Some((owners.clone(), Identity::of(&user.to_string(), &HeaderMap::new()))))
}

/// The owner of session 0.
fn established(owners: &Owners) -> Owner {
    let mut owner = owner(owners);
    assert_eq!(owner.claim(id(0)).now_or_never(), Some(Ok(None)), "nothing to wait for");
    owner
}

fn is_empty(owners: &Owners) -> bool {
    owners.lock().is_empty()
}

#[tokio::test(start_paused = true)]
async fn a_claim_waits_until_the_older_connection_is_over() {
    let owners = Owners::default();
    let (older, mut newer) = (established(&owners), owner(&owners));
    {
        let mut claim = pin!(newer.claim(id(0)));
        assert!(claim.as_mut().now_or_never().is_none());
        assert!(older.stop().is_requested());
        older.on_closing(7);
        drop(older);
        assert_eq!(claim.await, Ok(Some(Ended { received: Some(7), ..ended(Takeover::Closed) })));
    }
    assert!(!newer.stop().is_requested());
    drop(newer);
    assert!(is_empty(&owners), "an id is kept no longer than its owner");
}

#[tokio::test(start_paused = true)]
async fn an_older_connection_that_is_aborted_is_counted_as_a_timeout() {
    let owners = Owners::default();
    let (older, mut newer) = (established(&owners), owner(&owners));
    let abort = async {
        older.superseded().await;
        older.on_timeout();
        drop(older);
    };
    assert_eq!(tokio::join!(newer.claim(id(0)), abort).0, Ok(Some(ended(Takeover::Timeout))));
}

#[tokio::test]
async fn only_the_newest_waiting_claim_proceeds() {
    let owners = Owners::default();
    let (older, mut one, mut two) = (established(&owners), owner(&owners), owner(&owners));
    let mut first = Box::pin(one.claim(id(0)));
    assert!(first.as_mut().now_or_never().is_none());
    let mut second = pin!(two.claim(id(0)));
    assert!(second.as_mut().now_or_never().is_none());
    assert_eq!(first.await, Err(Superseded));
    drop(one);
    assert!(second.as_mut().now_or_never().is_none(), "the oldest is not over");
    drop(older);
    assert_eq!(second.now_or_never(), Some(Ok(Some(ended(Takeover::Closed)))));
}

#[tokio::test]
async fn a_claim_dropped_while_it_waits_leaves_no_entry() {
    let owners = Owners::default();
    let (older, mut one, mut two) = (established(&owners), owner(&owners), owner(&owners));
    assert!(one.claim(id(0)).now_or_never().is_none());
    assert!(two.claim(id(0)).now_or_never().is_none());
    drop((one, two));
    assert!(!is_empty(&owners), "the oldest is not over");
    drop(older);
    assert!(is_empty(&owners));
}

#[tokio::test]
async fn without_takeover_no_session_is_owned() {
    let mut off = Owner::new(None);
    assert_eq!(off.claim(id(0)).await, Ok(None));
    off.name(id(0));
    assert!(off.superseded().now_or_never().is_none());
}

#[tokio::test]
async fn the_session_named_by_the_app_replaces_the_requested_one() {
    let owners = Owners::default();
    let mut older = established(&owners);
    older.name(id(1));
    let (_zero, mut one) = (established(&owners), owner(&owners));
    assert!(!older.stop().is_requested());
    assert!(one.claim(id(1)).now_or_never().is_none());
    assert!(older.stop().is_requested());
}

#[tokio::test]
async fn naming_a_session_twice_ends_its_older_connection() {
    let owners = Owners::default();
    let (older, mut newer, mut newest) = (established(&owners), owner(&owners), owner(&owners));
    newer.name(id(0));
    assert!(older.stop().is_requested() && !newer.stop().is_requested());
    let mut claim = pin!(newest.claim(id(0)));
    assert!(claim.as_mut().now_or_never().is_none());
    drop(newer);
    assert!(claim.as_mut().now_or_never().is_none(), "the claim waits for both");
    drop(older);
    assert_eq!(claim.now_or_never(), Some(Ok(Some(ended(Takeover::Closed)))));
}

#[tokio::test]
async fn another_user_neither_ends_an_owner_nor_owns_the_session() {
    let owners = Owners::default();
    let (older, mut other, mut named) = (established(&owners), owner_of(1, &owners), owner_of(1, &owners));
    assert_eq!(other.claim(id(0)).now_or_never(), Some(Ok(Some(ended(Takeover::OtherUser)))));
    named.name(id(1));
    named.name(id(0));
    assert!(!older.stop().is_requested() && other.session.is_none() && named.session.is_none());
    let mut newer = owner(&owners);
    {
        let mut claim = pin!(newer.claim(id(0)));
        assert!(claim.as_mut().now_or_never().is_none());
        drop(older);
        assert_eq!(claim.now_or_never(), Some(Ok(Some(ended(Takeover::Closed)))), "others are not waited for");
    }
    assert!(!other.stop().is_requested() && !named.stop().is_requested());
    drop(newer);
    assert!(is_empty(&owners));
}

#[tokio::test]
async fn a_session_without_an_owner_is_any_users() {
    let owners = Owners::default();
    drop(established(&owners));
    let mut other = owner_of(1, &owners);
    assert_eq!(other.claim(id(0)).now_or_never(), Some(Ok(None)));
}

/// What one browser and the app do. Times are in milliseconds.
#[derive(Clone, Debug)]
struct Scenario {
    user: u8,
    arrives: u64,
    /// The session that the handshake names.
    requests: Option<u8>,
    /// How long the app takes to answer the handshake, and whether with a 101.
    handshake: u64,
    accepted: bool,
    /// The session that the app names, and the delay after its 101.
    named: Option<(u64, u8)>,
    lasts: u64,
    /// How long the app takes to close it on request.
    closing: u64,
    /// When the browser leaves, in any phase.
    leaves: Option<u64>,
}

/// What the app sees.
#[derive(Default)]
struct App {
    open: Vec<Open>,
    /// The newest owner of each session, by the scenario's number.
    newest: HashMap<u8, usize>,
    /// The user of the last owner of each session.
    users: HashMap<u8, u8>,
    /// When the last connection of each session was over.
    over: HashMap<u8, Instant>,
}

/// A handshake or a connection towards the app.
struct Open {
    number: usize,
    session: Option<u8>,
    stop: Stop,
}

/// Closes it when dropped.
struct Connection<'a>(&'a RefCell<App>, usize);

impl App {
    fn open(&mut self, number: usize, session: Option<u8>, stop: Stop) {
        if let Some(session) = session {
            let others = self.open.iter().filter(|other| other.session == Some(session)).count();
            assert_eq!(others, 0, "a handshake starts while another connection of its session is open");
            assert_eq!(self.newest[&session], number, "only the newest proceeds");
        }
        self.open.push(Open { number, session, stop });
    }

    /// `session` is what it owns now.
    fn name(&mut self, number: usize, user: u8, session: Option<u8>) {
        let open = self.open.iter_mut().find(|open| open.number == number).expect("it is open");
        if let Some(before) = std::mem::replace(&mut open.session, session) {
            self.over.insert(before, Instant::now());
        }
        let is_stopped = open.stop.is_requested();
        match session {
            Some(session) if is_stopped => _ = self.users.insert(session, user),
            Some(session) => self.own(number, user, session),
            None => {}
        }
    }

    fn own(&mut self, number: usize, user: u8, session: u8) {
        self.newest.insert(session, number);
        self.users.insert(session, user);
    }

    fn on_superseded(&mut self, number: usize, session: Option<u8>) {
        let session = session.expect("only one that owns a session");
        assert_ne!(self.newest[&session], number, "the newest is not stopped");
    }

    fn close(&mut self, number: usize) {
        let at = self.open.iter().position(|open| open.number == number).expect("it is open");
        if let Some(session) = self.open.remove(at).session {
            self.over.insert(session, Instant::now());
        }
    }

    fn check(&self) {
        for session in self.newest.keys() {
            let living = self.open.iter().filter(|open| open.session == Some(*session) && !open.stop.is_requested());
            assert!(living.count() <= 1, "two connections of one session live");
        }
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().close(self.1);
    }
}

impl Scenario {
    async fn run(&self, number: usize, owners: &Owners, app: &RefCell<App>) {
        sleep(Duration::from_millis(self.arrives)).await;
        let connection = self.connect(number, owners, app);
        match self.leaves {
            Some(after) => _ = timeout(Duration::from_millis(after), connection).await,
            None => connection.await,
        }
    }

    async fn connect(&self, number: usize, owners: &Owners, app: &RefCell<App>) {
        let (mut owner, mut session) = (owner_of(self.user, owners), self.requests);
        if let Some(requested) = self.requests {
            let start = Instant::now();
            let mut claim = Box::pin(owner.claim(id(requested)));
            let first = claim.as_mut().now_or_never();
            if first == Some(Ok(Some(ended(Takeover::OtherUser)))) {
                assert_ne!(app.borrow().users[&requested], self.user);
                session = None;
            } else {
                app.borrow_mut().own(number, self.user, requested);
            }
            let claimed = match first {
                Some(claimed) => claimed,
                None => claim.await,
            };
            match claimed {
                Err(Superseded) => return app.borrow_mut().on_superseded(number, session),
                Ok(None | Some(Ended { result: Takeover::OtherUser, .. })) => {
                    assert_eq!(start.elapsed(), Duration::ZERO)
                }
                Ok(Some(_)) => {
                    assert_eq!(app.borrow().over[&requested], Instant::now(), "it waits no longer than it must")
                }
            }
        }
        app.borrow_mut().open(number, session, owner.stop());
        let _connection = Connection(app, number);
        app.borrow().check();
        tokio::select! {
            biased;
            () = owner.superseded() => return app.borrow_mut().on_superseded(number, session),
            () = sleep(Duration::from_millis(self.handshake)) => {}
        }
        if self.accepted {
            self.live(number, session, &mut owner, app).await;
        }
    }

    async fn live(&self, number: usize, mut session: Option<u8>, owner: &mut Owner, app: &RefCell<App>) {
        let start = Instant::now();
        let (mut named, mut superseded) = (self.named, false);
        let mut end = start + Duration::from_millis(self.lasts);
        loop {
            let naming = named.map_or(end, |(after, _session)| start + Duration::from_millis(after));
            tokio::select! {
                biased;
                () = owner.superseded(), if !superseded => {
                    superseded = true;
                    app.borrow_mut().on_superseded(number, session);
                    end = end.min(Instant::now() + TIMEOUT.min(Duration::from_millis(self.closing)));
                }
                () = sleep_until(end) => return,
                () = sleep_until(naming), if named.is_some() => {
                    let (_after, given) = named.take().expect("checked");
                    owner.name(id(given));
                    session = owner.session.map(|_owned| given);
                    assert!(session.is_some() || app.borrow().users[&given] != self.user);
                    app.borrow_mut().name(number, self.user, session);
                }
            }
            app.borrow().check();
        }
    }
}

fn scenarios() -> impl Strategy<Value = Vec<Scenario>> {
    let session = 0..3_u8;
    let requests = proptest::option::weighted(0.8, session.clone());
    let named = proptest::option::of((0..40_u64, session));
    let (closing, leaves) = (0..40_u64, proptest::option::weighted(0.3, 0..80_u64));
    let who = (proptest::bool::weighted(0.3).prop_map(u8::from), 0..60_u64, requests);
    let scenario = (who, 0..30_u64, proptest::bool::weighted(0.9), named, 0..80_u64, closing, leaves);
    let scenario =
        scenario.prop_map(|((user, arrives, requests), handshake, accepted, named, lasts, closing, leaves)| Scenario {
            user,
            arrives,
            requests,
            handshake,
            accepted,
            named,
            lasts,
            closing,
            leaves,
        });
    proptest::collection::vec(scenario, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn in_any_order_the_app_has_at_most_one_live_connection_of_a_session(scenarios in scenarios()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
        let (owners, app) = (Owners::default(), RefCell::new(App::default()));
        runtime.block_on(async {
            // Unlike `join_all` it polls only woken futures.
            let all: FuturesUnordered<_> =
                scenarios.iter().enumerate().map(|(number, scenario)| scenario.run(number, &owners, &app)).collect();
            // The longest scenario takes less than a quarter of this.
            timeout(Duration::from_secs(1), all.collect::<()>()).await.expect("every scenario ends");
        });
        prop_assert!(app.borrow().open.is_empty() && is_empty(&owners));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn across_threads_the_app_has_one_connection_of_a_session_and_every_claim_ends() {
    const CLAIMS: usize = 2000;
    let (owners, open, lived) = (Owners::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let claims = (0..CLAIMS).map(|number| {
        let (mut owner, open, lived) = (owner(&owners), open.clone(), lived.clone());
        tokio::spawn(async move {
            if owner.claim(id(0)).await.is_err() {
                return;
            }
            assert_eq!(open.fetch_add(1, SeqCst), 0, "two are open");
            for _turn in 0..number % 7 {
                if owner.superseded().now_or_never().is_some() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            lived.fetch_add(1, SeqCst);
            open.fetch_sub(1, SeqCst);
        })
    });
    let ended = timeout(Duration::from_secs(60), join_all(claims.collect::<Vec<_>>())).await.expect("every claim ends");
    assert!(ended.into_iter().all(|ended| ended.is_ok()));
    assert!(lived.load(SeqCst) > 0 && is_empty(&owners));
}
