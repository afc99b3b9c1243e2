//! Every configuration that `check` accepts can be started and reloaded, and never ends the process.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Once};
use std::time::Duration;

use heartbeat_sidecar::config::{Config, Loaded, Problem, Problems, Reloader, SETTINGS, Sources, load};
use heartbeat_sidecar::sidecar;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::oneshot;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::task::AbortOnDropHandle;

use crate::support::draw::{Drawn, World};
use crate::support::http2::{self, END_HEADERS, END_STREAM, HEADERS, PREFACE, frame};
use crate::support::process::{Process, Signal, command};
use crate::support::tls::{Io, Pki};
use crate::support::{App, Wire, ask_admin, handshake, metric, soon, switching};

const GET: &str = "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// Panics outside the test code. A task's panic does not fail a test, but a release build aborts.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !panic.location().is_some_and(|place| place.file().starts_with("tests/")) {
                PANICS.fetch_add(1, Relaxed);
            }
            before(panic);
        }));
    });
}

/// App servers that answer every request: on plain TCP, under TLS and on a Unix socket.
struct Apps {
    pki: Pki,
    world: World,
    _serving: Vec<AbortOnDropHandle<()>>,
}

impl Apps {
    async fn start() -> Self {
        let pki = Pki::new();
        let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let encrypted = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let path = pki.path("app.sock");
        let unix = UnixListener::bind(&path).unwrap();
        let upstreams = vec![
            format!("http://{}", plain.local_addr().unwrap()),
            format!("https://{}", encrypted.local_addr().unwrap()),
            format!("unix:{}", path.display()),
        ];
        let acceptor = TlsAcceptor::from(Arc::new(pki.server(false)));
        let serving = vec![
            AbortOnDropHandle::new(tokio::spawn(async move {
                while let Ok((stream, _peer)) = plain.accept().await {
                    tokio::spawn(answer(stream));
                }
            })),
            AbortOnDropHandle::new(tokio::spawn(async move {
                while let Ok((stream, _peer)) = encrypted.accept().await {
                    let accepted = acceptor.accept(stream);
                    tokio::spawn(async { answer(accepted.await?).await });
                }
            })),
            AbortOnDropHandle::new(tokio::spawn(async move {
                while let Ok((stream, _peer)) = unix.accept().await {
                    tokio::spawn(answer(stream));
                }
            })),
        ];
        let world = World { upstreams, folder: pki.path("") };
        Self { pki, world, _serving: serving }
    }
}

/// Answers one request; after a handshake it echoes every byte.
async fn answer(mut stream: impl Io) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    if !head.to_ascii_lowercase().windows(9).any(|window| window == b"websocket") {
        stream.write_all(OK.as_bytes()).await?;
        return stream.shutdown().await;
    }
    stream.write_all(switching("").as_bytes()).await?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::io::copy(&mut reader, &mut writer).await.map(|_bytes| ())
}

/// The first bytes that a client receives, or none if its connection ends. Under TLS it offers this protocol.
async fn exchange(address: SocketAddr, tls: Option<(&Pki, &[u8])>, request: &[u8]) -> String {
    let attempt = async {
        let socket = TcpStream::connect(address).await?;
        let mut stream: Box<dyn Io> = match tls {
            None => Box::new(socket),
            Some((pki, protocol)) => {
                let mut config = pki.client(rustls::ALL_VERSIONS, true);
                config.alpn_protocols = vec![protocol.to_vec()];
                let connector = TlsConnector::from(Arc::new(config));
                Box::new(connector.connect(ServerName::try_from("app.test").unwrap(), socket).await?)
            }
        };
        stream.write_all(request).await?;
        stream.flush().await?;
        let mut first = Vec::new();
        while first.len() < 12 && stream.read_buf(&mut first).await? > 0 {}
        std::io::Result::Ok(first)
    };
    String::from_utf8_lossy(&soon(attempt).await.unwrap_or_default()).into_owned()
}

/// Whether a correct client must get an answer.
fn answers(config: &Config) -> bool {
    let limits = &config.limits;
    let unlimited = limits.connections.is_none() && limits.connections_per_address.is_none();
    limits.idle_timeout >= Duration::from_secs(1) && !config.proxy_protocol && unlimited
}

/// Checks that requests, handshakes and the admin port are answered. Returns how many reached an app.
async fn serves(apps: &Apps, config: &Config, address: SocketAddr, admin: SocketAddr) -> usize {
    let tls = config.tls.files().map(|_files| &apps.pki);
    let mut let_through = 0;
    for request in [GET.to_owned(), handshake("/_stcore/stream", "")] {
        let first = exchange(address, tls.map(|pki| (pki, &b"http/1.1"[..])), request.as_bytes()).await;
        let passed = first.starts_with("HTTP/1.1 101") || first.starts_with("HTTP/1.1 200");
        let refused = first.starts_with("HTTP/1.1 4") || first.starts_with("HTTP/1.1 5");
        assert!(passed || refused || first.is_empty() && !answers(config), "{first:?}: {config:?}");
        let_through += usize::from(passed);
    }
    if tls.is_some() && config.tls.http2 {
        let request = frame(HEADERS, END_STREAM | END_HEADERS, 1, http2::request(&[]));
        let request = [PREFACE, &frame(http2::SETTINGS, 0, 0, []), &request].concat();
        exchange(address, tls.map(|pki| (pki, &b"h2"[..])), &request).await;
    }
    let (head, _body) = ask_admin(admin, "/livez").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    metric(admin, "draining", &[]).await;
    assert_eq!(PANICS.load(Relaxed), 0, "{config:?}");
    let_through
}

/// The settings that a reload may change, found by changing each alone.
fn changeable(apps: &Apps, folder: &Path) -> Vec<&'static str> {
    let path = folder.join("one.toml");
    let [least, most] = apps.world.extremes();
    let base = least.clone().write(&path);
    let running = load(&sources(&path)).unwrap();
    let changes = |key: &&str| {
        let other = if base.get(key) == least.get(key) { &most } else { &least };
        base.clone().but(other, &[key]).write(&path);
        let value = |loaded: &Loaded| loaded.settings.iter().find(|it| it.key == *key).unwrap().value.clone();
        Reloader::new(sources(&path)).read(&running).is_ok_and(|loaded| value(&loaded) != value(&running))
    };
    SETTINGS.iter().map(|setting| setting.key).filter(changes).collect()
}

fn sources(path: &Path) -> Sources {
    Sources { config: Some(path.to_owned()), ..Sources::default() }
}

/// Starts with one configuration, reloads another, and drains. Returns how many requests reached an app before the
/// reload and after it.
async fn live_through(apps: &Apps, path: &Path, first: Drawn, second: &Drawn, keys: &[&str]) -> [usize; 2] {
    // Shown if the test fails.
    println!("from {first:?} to {second:?}");
    let first = first.write(path);
    let mut reloader = Reloader::new(sources(path));
    let running: Loaded = load(&sources(path)).expect("`write` has checked it");
    let sidecar = sidecar::Sidecar::bind(running.config.clone()).await.expect("what is accepted can be started with");
    let (address, admin, reloading) =
        (sidecar.address().unwrap(), sidecar.admin_address().unwrap(), sidecar.reloading());
    let (stop, stopped) = oneshot::channel::<()>();
    let run = AbortOnDropHandle::new(tokio::spawn(sidecar.run(async { _ = stopped.await })));
    let before = serves(apps, &running.config, address, admin).await;

    first.but(second, keys).write(path);
    let after = match reloader.read(&running) {
        Ok(loaded) => {
            reloading.apply(&loaded.config).expect("what is accepted can be put in force");
            serves(apps, &loaded.config, address, admin).await
        }
        // `write` may have set a default that only a restart can apply.
        Err(Problems(problems)) => {
            let fixed = |problem: &Problem| problem.to_string().contains("while the sidecar runs");
            assert!(problems.iter().all(fixed), "accepted by `check`, refused by a reload: {problems:?}");
            0
        }
    };
    stop.send(()).expect("it runs");
    // It may drain for a day; the start is enough.
    let mut run = run;
    let drain_started = async {
        loop {
            let asked = async { exchange(admin, None, b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").await };
            tokio::select! {
                biased;
                ended = &mut run => return ended.expect("no panic"),
                ready = asked => if !ready.starts_with("HTTP/1.1 200 ") { return },
            }
        }
    };
    soon(drain_started).await;
    assert_eq!(PANICS.load(Relaxed), 0);
    [before, after]
}

/// Start, request, handshake, reload and start of a drain, with configurations of every kind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_accepted_configuration_can_be_started_and_reloaded() {
    count_panics();
    let (apps, folder) = (Apps::start().await, tempfile::tempdir().unwrap());
    let path = folder.path().join("sidecar.toml");
    let keys = changeable(&apps, folder.path());
    assert!(keys.contains(&"limits.header_bytes") && !keys.contains(&"listen"), "{keys:?}");
    let [least, most] = apps.world.extremes();
    live_through(&apps, &path, least.clone(), &most, &keys).await;
    live_through(&apps, &path, most, &least, &keys).await;
    let (mut runner, drawn) = (TestRunner::default(), apps.world.configurations());
    let mut passed = [0, 0];
    for _case in 0..40 {
        let mut draw = || drawn.new_tree(&mut runner).unwrap().current();
        let (first, second) = (draw(), draw());
        let [before, after] = live_through(&apps, &path, first, &second, &keys).await;
        passed = [passed[0] + before, passed[1] + after];
    }
    assert!(passed[0] > 0 && passed[1] > 0, "no request ever reached an app: {passed:?}");
}

/// The process itself, with the minimum and the maximum of every setting.
#[tokio::test]
async fn the_process_survives_a_reload_from_one_extreme_to_the_other() {
    let (app, pki, folder) = (App::bind().await, Pki::new(), tempfile::tempdir().unwrap());
    let path = folder.path().join("sidecar.toml");
    let world = World { upstreams: vec![format!("http://{}", app.address())], folder: pki.path("") };
    let keys: Vec<_> = SETTINGS.iter().map(|it| it.key).filter(|key| key.starts_with("limits.")).collect();
    // Otherwise no client gets in, or the reload is not logged.
    let open = |drawn: Drawn| drawn.with("limits.idle_timeout", "75s").with("proxy_protocol", "false");
    let [least, most] = world.extremes().map(open).map(|it| it.with("log_level", "info").with("tls.certificate", ""));
    for (first, second) in [(least.clone(), most.clone()), (most, least)] {
        let first = first.with("tls.key", "").with("tls.client_ca", "").write(&path);
        let config = format!("--config={}", path.display());
        let (code, stderr) = command(&["check", &config]).await;
        assert_eq!(code, Some(0), "{stderr}");
        let mut process = Process::start_alone(&[&config]).await;
        first.but(&second, &keys).with("limits.idle_timeout", "75s").write(&path);
        process.signal(Signal::HUP);
        let message = process.line("configuration").await["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with("configuration reloaded"), "{message}");
        let mut browser = Wire::connect(process.address).await;
        browser.send("TRACE / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
        assert!(browser.head().await.starts_with("HTTP/1.1 405 "));
        process.signal(Signal::TERM);
        process.line("drain started").await;
        process.signal(Signal::TERM);
        let code = process.exit_code().await;
        assert!(code == Some(1) || code == Some(0), "{code:?}");
    }
    fs::remove_file(path).unwrap();
}
