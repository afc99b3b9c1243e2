//! A low limit of file descriptors: it lowers the connection limit, and running out of descriptors is survived.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::frame::{CLOSE, plain};
use crate::support::http::assert_rejected;
use crate::support::{App, Sidecar, Wire, handshake, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n";
const STREAM: &str = "/_stcore/stream";

/// A sidecar process with a file descriptor limit.
struct Process {
    child: Child,
    sidecar: Sidecar,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    fn start(app: &App, handles: u32) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", &format!("ulimit -n {handles}; exec \"$0\" \"$@\"")])
            .args([env!("CARGO_BIN_EXE_heartbeat-sidecar"), "run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(["--upstream", &format!("http://{}", app.address())])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut bound = |what: &str| -> SocketAddr {
            let line = lines.find(|line| line.contains(what)).expect("no line with the address");
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        let (address, admin) = (bound("listening on "), bound("admin on "));
        let log = Arc::new(Mutex::new(Vec::new()));
        let kept = log.clone();
        std::thread::spawn(move || lines.for_each(|line| kept.lock().unwrap().push(line)));
        Self { child, sidecar: Sidecar::elsewhere(address, admin), log }
    }

    fn lines_with(&self, text: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    /// CPU ticks that it has used (proc(5): 100 a second).
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_low_descriptor_limit_lowers_the_connection_limit_and_leaves_a_reserve() {
    let app = App::bind().await;
    let process = Process::start(&app, 64);
    let sidecar = &process.sidecar;
    let mut sessions = vec![sidecar.stream(&app).await];
    let most = sidecar.metric("client_connections_limit", &[]).await;
    assert!((10.0..=24.0).contains(&most), "{most}");
    for _session in 1..most as usize {
        sessions.push(sidecar.stream(&app).await);
    }
    for _attempt in 0..100 {
        assert_rejected(sidecar, GET, "503", "connections").await;
    }
    let open = sidecar.metric("client_connections", &[]).await;
    assert_eq!(open, most);
    sessions.pop().unwrap().close().await;
    sidecar.until("client_connections", &[], most - 1.0).await;
    sessions.push(sidecar.stream(&app).await);
    assert_eq!(process.lines_with("cannot accept"), 0);
    let warnings = process.lines_with("limits.connections reached");
    assert!((1..=2).contains(&warnings), "{warnings} lines, 100 rejections: {:?}", process.log.lock().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_out_of_descriptors_neither_spins_nor_floods_the_log_and_recovers() {
    const REST: Duration = Duration::from_millis(1500);
    let app = App::bind().await;
    let process = Process::start(&app, 64);
    let sidecar = &process.sidecar;
    let mut sessions = vec![sidecar.stream(&app).await];
    let most = sidecar.metric("client_connections_limit", &[]).await as usize;
    for _session in 1..most - 2 {
        sessions.push(sidecar.stream(&app).await);
    }
    // Admin connections do not count as clients, and use the remaining descriptors.
    let mut hogs = Vec::new();
    for _hog in 0..64 {
        hogs.push(Wire::connect(sidecar.admin).await);
    }
    let exhausted = async {
        while process.lines_with("cannot accept") == 0 {
            tokio::task::yield_now().await
        }
    };
    soon(exhausted).await;
    let (mut waiting, before) = (sidecar.connect().await, process.ticks());
    waiting.send(handshake(STREAM, "")).await;
    // Nothing may happen meanwhile.
    assert!(waiting.is_silent_for(REST).await, "no descriptor is free");
    let used = process.ticks() - before;
    assert!(used <= 30, "{used} ticks in {REST:?}");
    let lines = process.lines_with("cannot accept");
    assert!((1..=4).contains(&lines), "{lines} lines");
    drop(hogs);
    let (_head, mut upstream) = app.shake_hands("").await;
    assert!(waiting.head().await.starts_with("HTTP/1.1 101 "));
    upstream.send(plain(CLOSE, [])).await;
    waiting.expect(plain(CLOSE, [])).await;
    assert!(sidecar.admin("/livez").await.0.starts_with("HTTP/1.1 200 "));
}
