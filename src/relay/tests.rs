//! A session ends after any sequence of its peers' actions. Every short sequence and many random long ones run over real
//! sockets with small buffers.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::TcpStream;

use super::*;
use crate::drain::Drain;
use crate::metrics::Metrics;
use crate::session::takeover::Owner;
use crate::session::{SessionInfo, Sessions};
use crate::transport::Stream;

/// Far longer than any of these sessions may take on a busy machine.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Short, because half of the endings wait for it.
const WRITE_STALL: Duration = Duration::from_millis(60);
const TIMEOUTS: Timeouts =
    Timeouts { dead_peer: Duration::from_secs(60), write_stall: WRITE_STALL, takeover: Duration::from_secs(1) };

/// Small enough that a flood fills them at once. The kernel makes them a little larger.
const SOCKET_BUFFER_BYTES: usize = 4096;

/// Sessions that run at the same time.
const BATCH: usize = 256;

/// One action of a peer. After `Finish` it can only read, after `Reset` and `Leave` nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Message,
    /// The first bytes of a frame whose rest never comes.
    IncompleteFrame,
    CloseFrame,
    /// Writes as much as is taken; with steps, until the session takes no more.
    Flood,
    /// Reads all available bytes.
    Read,
    /// Half-closes; can still read.
    Finish,
    /// Closes its socket as the kernel does for a process that ends.
    Leave,
    Reset,
}

const ACTIONS: [Action; 8] = [
    Action::Message,
    Action::IncompleteFrame,
    Action::CloseFrame,
    Action::Flood,
    Action::Read,
    Action::Finish,
    Action::Leave,
    Action::Reset,
];

/// A peer's last action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Leave,
    Reset,
    /// Reads until EOF, then leaves.
    ReadOn,
    /// Keeps its socket open, reads nothing and sends nothing.
    Hang,
}

const ENDINGS: [Ending; 4] = [Ending::Leave, Ending::Reset, Ending::ReadOn, Ending::Hang];

/// The course of one session. It must end once one peer has gone.
#[derive(Clone, Debug)]
struct Script {
    actions: Vec<(Side, Action)>,
    /// The session is polled between two actions; otherwise it sees all of them at once.
    steps: bool,
    /// The browser's ending and the app's.
    endings: (Ending, Ending),
}

/// The peer's end of one of the session's connections.
struct Peer {
    socket: Option<TcpStream>,
    masked: bool,
}

impl Peer {
    fn run(&mut self, action: Action) {
        let Some(socket) = &self.socket else { return };
        let mask = if self.masked { 0x80 } else { 0 };
        let key: &[u8] = if self.masked { &[0; 4] } else { &[] };
        match action {
            Action::Message => _ = write(socket, &[&[0x82, mask | 5], key, b"hello"].concat()),
            Action::IncompleteFrame => _ = write(socket, &[&[0x82, mask | 100], key, b"part"].concat()),
            Action::CloseFrame => _ = write(socket, &[&[0x88, mask | 2], key, &1000_u16.to_be_bytes()].concat()),
            Action::Flood => {
                _ = write(socket, &[&[0x82, mask | 127, 0, 0, 0, 0, 0, 8, 0, 0], key, &[7; 1 << 19]].concat())
            }
            Action::Read => while socket.try_read(&mut [0; 1 << 16]).is_ok_and(|length| length > 0) {},
            Action::Finish => _ = SockRef::from(socket).shutdown(std::net::Shutdown::Write),
            Action::Leave => self.socket = None,
            Action::Reset => {
                SockRef::from(socket).set_linger(Some(Duration::ZERO)).expect("an open socket");
                self.socket = None;
            }
        }
    }

    /// Runs an action, and lets the session run; a flood continues while some of it is taken.
    async fn run_in_steps(&mut self, action: Action) {
        self.run(action);
        let mut still = 0;
        while still < 3 {
            // The runtime polls the sockets while a task yields.
            tokio::task::yield_now().await;
            let taken = self
                .socket
                .as_ref()
                .filter(|_socket| action == Action::Flood)
                .map_or(0, |socket| write(socket, &[7; 1 << 16]));
            still = if taken > 0 { 0 } else { still + 1 };
        }
    }

    async fn end(mut self, ending: Ending) -> Self {
        match ending {
            Ending::Leave => self.run(Action::Leave),
            Ending::Reset => self.run(Action::Reset),
            Ending::ReadOn => {
                if let Some(socket) = self.socket.take() {
                    while socket.readable().await.is_ok() {
                        match socket.try_read(&mut [0; 1 << 16]) {
                            Ok(0) => break,
                            Err(error) if error.kind() != ErrorKind::WouldBlock => break,
                            Ok(_) | Err(_) => {}
                        }
                    }
                }
            }
            Ending::Hang => {}
        }
        self
    }
}

/// Writes what the kernel takes now; returns the number of bytes.
fn write(socket: &TcpStream, bytes: &[u8]) -> usize {
    let mut taken = 0;
    while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
        let Ok(length) = socket.try_write(rest) else { break };
        taken += length;
    }
    taken
}

/// Both ends of a connection: the peer's and the session's. Nothing else connects meanwhile.
fn connection(listener: &Socket) -> (TcpStream, TcpStream) {
    let far = socket();
    far.connect(&listener.local_addr().expect("bound")).expect("connected");
    let (near, _peer) = listener.accept().expect("accepted");
    (asynchronous(far), asynchronous(near))
}

fn asynchronous(socket: Socket) -> TcpStream {
    socket.set_nonblocking(true).expect("a socket");
    TcpStream::from_std(socket.into()).expect("within a runtime")
}

fn socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES).expect("a size");
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES).expect("a size");
    socket
}

/// Accepted sockets inherit its buffers.
fn listener() -> Socket {
    let socket = socket();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    socket.listen(1).expect("a listener");
    socket
}

/// State shared by the sessions of one test.
struct Fixture {
    listener: Socket,
    state: std::sync::Arc<UpstreamState>,
    sessions: Sessions,
    drain: Drain,
}

impl Fixture {
    fn new() -> Self {
        let state = std::sync::Arc::new(UpstreamState::new(Metrics::new().upstream("app"), TIMEOUTS));
        Self { listener: listener(), state, sessions: Sessions::new(), drain: Drain::new() }
    }

    /// Runs a script; returns whether the session ended in time.
    async fn ends(&self, script: &Script) -> bool {
        let (browser, near_browser) = connection(&self.listener);
        let (app, near_app) = connection(&self.listener);
        let owner = Owner::new(None);
        let session = self.sessions.open(SessionInfo { upstream: "app".into(), tapped: true, stop: owner.stop() });
        let report = Report::new(self.state.clone(), session, owner, None);
        let heartbeat = HeartbeatSettings::default();
        let options = RelayOptions {
            inspection: Inspection::Messages,
            heartbeat,
            pings: None,
            upstream_is_local: true,
            probe: None,
            resumable: None,
        };
        let upgraded = |stream| Upgraded { stream: Stream::Tcp(stream, None), early: Vec::new() };
        let session = Relay::new(upgraded(near_browser), upgraded(near_app), options, report, self.drain.guard());
        let mut session = tokio::spawn(session);

        let mut browser = Peer { socket: Some(browser), masked: true };
        let mut app = Peer { socket: Some(app), masked: false };
        for (peer, action) in &script.actions {
            let peer = if *peer == Side::Browser { &mut browser } else { &mut app };
            match script.steps {
                true => peer.run_in_steps(*action).await,
                false => peer.run(*action),
            }
        }
        let ended = async {
            let peers = async { tokio::join!(browser.end(script.endings.0), app.end(script.endings.1)) };
            // A peer that hangs keeps its socket until the session has ended.
            let (_peers, ended) = tokio::join!(peers, &mut session);
            ended.expect("no panic");
        };
        let in_time = tokio::time::timeout(ENDS_WITHIN, ended).await.is_ok();
        session.abort();
        in_time
    }

    async fn all_end(&self, scripts: impl IntoIterator<Item = Script>) {
        let scripts: Vec<Script> = scripts.into_iter().collect();
        for batch in scripts.chunks(BATCH) {
            let ended = join_all(batch.iter().map(|script| self.ends(script))).await;
            let endless: Vec<_> = batch.iter().zip(ended).filter(|(_script, ended)| !ended).collect();
            assert!(endless.is_empty(), "{} of {} sessions did not end: {endless:?}", endless.len(), batch.len());
        }
        self.drain.close();
        assert_eq!(self.drain.alive(), 0, "an ended session releases its guard");
    }
}

/// Endings with a peer that leaves: while both stay, a session need not end.
fn endings() -> impl Iterator<Item = (Ending, Ending)> {
    let goes = |ending| matches!(ending, Ending::Leave | Ending::Reset);
    let pairs = ENDINGS.into_iter().flat_map(|browser| ENDINGS.map(|app| (browser, app)));
    pairs.filter(move |(browser, app)| goes(*browser) || goes(*app))
}

fn actions() -> impl Iterator<Item = (Side, Action)> + Clone {
    [Side::Browser, Side::Upstream].into_iter().flat_map(|peer| ACTIONS.map(|action| (peer, action)))
}

#[tokio::test]
async fn a_session_ends_after_every_short_sequence_of_actions() {
    let mut sequences: Vec<Vec<(Side, Action)>> = vec![Vec::new()];
    sequences.extend(actions().map(|action| vec![action]));
    sequences.extend(actions().flat_map(|first| actions().map(move |second| vec![first, second])));
    let scripts = sequences.into_iter().flat_map(|actions| {
        let variants = endings().flat_map(|endings| [(endings, true), (endings, false)]);
        variants.map(move |(endings, steps)| Script { actions: actions.clone(), steps, endings })
    });
    Fixture::new().all_end(scripts).await;
}

#[tokio::test]
async fn a_session_ends_after_long_random_sequences_of_actions() {
    let (actions, endings): (Vec<_>, Vec<_>) = (actions().collect(), endings().collect());
    let scripts = (0..3000).map(|seed| {
        let mut random = StdRng::seed_from_u64(seed);
        let length = random.random_range(3..=10);
        let actions = (0..length).map(|_| actions[random.random_range(0..actions.len())]).collect();
        let (steps, endings) = (random.random_bool(0.5), endings[random.random_range(0..endings.len())]);
        Script { actions, steps, endings }
    });
    Fixture::new().all_end(scripts).await;
}
