//! Reloads of a running sidecar: new sessions use the new configuration, live ones continue, invalid files are refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;

use crate::support::frame::{BINARY, CLOSE, SESSION_ID, TEXT, heartbeat, masked, new_session, plain};
use crate::support::process::{Process, Signal};
use crate::support::tls::Pki;
use crate::support::{App, Session, Sidecar, Wire, ask_admin, handshake, metric, soon, switching};

const STREAM: &str = "/_stcore/stream";

/// A running sidecar and its configuration file.
struct Running {
    _folder: tempfile::TempDir,
    file: PathBuf,
    process: Process,
    sidecar: Sidecar,
}

impl Running {
    async fn start(text: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sidecar.toml");
        fs::write(&file, text).unwrap();
        let process = Process::start_alone(&[&format!("--config={}", file.display())]).await;
        let sidecar = Sidecar::elsewhere(process.address, process.admin);
        Self { _folder: folder, file, process, sidecar }
    }

    /// Replaces the file and waits for the log line about it.
    async fn change(&mut self, text: String, word: &str) -> String {
        fs::write(&self.file, text).unwrap();
        self.told(word).await
    }

    async fn told(&mut self, word: &str) -> String {
        self.process.line(word).await["message"].as_str().unwrap().to_owned()
    }

    async fn reloads(&self, result: &str) -> f64 {
        metric(self.process.admin, "config_reloads_total", &[("result", result)]).await
    }

    /// Whether the status page shows the last reload as accepted.
    async fn shown_accepted(&self) -> bool {
        let (_head, body) = ask_admin(self.process.admin, "/status.json").await;
        let status: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert!(status["reload"]["seconds_ago"].as_f64().unwrap() < 60.0);
        status["reload"]["accepted"].as_bool().unwrap()
    }

    async fn is_current(&self) -> bool {
        metric(self.process.admin, "config_last_reload_successful", &[]).await == 1.0
    }
}

fn upstream(app: &App) -> String {
    format!("upstream = 'http://{}'\n", app.address())
}

fn route(name: &str, app: &App) -> String {
    format!("[[route]]\nname = '{name}'\npath = '/{name}'\nupstream = 'http://{}'\n", app.address())
}

/// Bytes pass in both directions.
async fn lives(session: &mut Session) {
    session.browser.send(masked(TEXT, "up")).await;
    session.app.expect(masked(TEXT, "up")).await;
    session.app.send(plain(TEXT, "down")).await;
    session.browser.expect(plain(TEXT, "down")).await;
}

#[tokio::test]
async fn after_a_reload_new_sessions_use_the_new_app_and_live_ones_stay() {
    let [old, new] = [App::bind().await, App::bind().await];
    let mut running = Running::start(upstream(&old)).await;
    let mut before = running.sidecar.stream(&old).await;
    let told = running.change(upstream(&new), "configuration reloaded").await;
    assert_eq!(told, format!("configuration reloaded: upstream = \"http://{}\"", new.address()));
    let mut after = running.sidecar.stream(&new).await;
    lives(&mut before).await;
    lives(&mut after).await;

    running.change(route("a", &old) + &route("b", &new), "configuration reloaded: upstream").await;
    let mut routed = running.sidecar.open(&old, "/a/_stcore/stream").await;
    for session in [&mut before, &mut after, &mut routed] {
        lives(session).await;
    }
    assert_eq!((running.reloads("accepted").await, running.reloads("refused").await), (2.0, 0.0));
    assert_eq!(running.sidecar.metric("sessions", &[("upstream", "default")]).await, 2.0);
    assert_eq!(running.sidecar.metric("sessions", &[("upstream", "a")]).await, 1.0);
}

#[tokio::test]
async fn an_invalid_file_is_rejected_with_its_line_and_the_old_configuration_stays() {
    let app = App::bind().await;
    let mut running = Running::start(upstream(&app)).await;
    for (text, problem) in [
        ("[heartbeat]\nmode = 'on'\n", "3: heartbeat.mode: \"on\" is not one of auto, answer, forward"),
        ("log_format = 'text'\n[heartbeat]\nmode = 'forward'\n[session]\ntakeover = false\n", "6: session.takeover: "),
        ("[heartbeat\n", "2: "),
    ] {
        let told = running.change(upstream(&app) + text, "configuration refused").await;
        let expected =
            format!("configuration refused, the running one stays active: {}:{problem}", running.file.display());
        assert!(told.starts_with(&expected), "{told}");
        assert!(!running.is_current().await);
        assert!(!running.shown_accepted().await);
    }
    lives(&mut running.sidecar.stream(&app).await).await;
    let good = upstream(&app) + "log_level = 'debug'\n";
    assert!(running.change(good, "configuration reloaded").await.ends_with(": log_level = \"debug\""));
    assert!(running.is_current().await);
    assert!(running.shown_accepted().await);
    assert_eq!((running.reloads("accepted").await, running.reloads("refused").await), (1.0, 3.0));
    let mut browser = running.sidecar.connect().await;
    browser.send("TRACE / HTTP/1.1\r\nHost: app.test\r\n\r\n").await;
    running.process.line("request rejected").await;
}

#[tokio::test]
async fn sighup_reloads_the_file_at_once() {
    let app = App::bind().await;
    let mut running = Running::start(upstream(&app)).await;
    running.process.signal(Signal::HUP);
    assert_eq!(running.told("configuration").await, "configuration reloaded: no change");
    fs::write(&running.file, "listen").unwrap();
    running.process.signal(Signal::HUP);
    assert!(running.told("configuration").await.starts_with("configuration refused"));
    lives(&mut running.sidecar.stream(&app).await).await;
}

/// As the kubelet does: the file is a link through a folder link, which is swapped.
#[tokio::test]
async fn a_mounted_configmap_is_reloaded_when_its_link_is_swapped() {
    let [old, new] = [App::bind().await, App::bind().await];
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let version = |name: &str, app: &App| {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("sidecar.toml"), upstream(app)).unwrap();
    };
    version("..1", &old);
    symlink("..1", at("..data")).unwrap();
    symlink(Path::new("..data").join("sidecar.toml"), at("sidecar.toml")).unwrap();
    let mut process = Process::start_alone(&[&format!("--config={}", at("sidecar.toml").display())]).await;
    version("..2", &new);
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    fs::remove_dir_all(at("..1")).unwrap();
    process.line("configuration reloaded").await;
    lives(&mut Sidecar::elsewhere(process.address, process.admin).stream(&new).await).await;
}

#[tokio::test]
async fn a_session_from_before_a_reload_can_be_taken_over_after_it() {
    let app = App::bind().await;
    let mut running = Running::start(upstream(&app)).await;
    let mut old = running.sidecar.stream(&app).await;
    old.app.send(new_session("1.53.1")).await;
    old.browser.expect(new_session("1.53.1")).await;
    running.change(upstream(&app) + "[heartbeat]\nmode = 'forward'\n", "configuration reloaded").await;
    let mut browser = running.sidecar.connect().await;
    browser.send(handshake(STREAM, &format!("Sec-WebSocket-Protocol: streamlit, xsrf, {SESSION_ID}\r\n"))).await;
    let close = old.app.frame().await;
    assert!(close.is(CLOSE, 1001u16.to_be_bytes()), "{close:?}");
}

#[tokio::test]
async fn a_reload_can_replace_a_plain_app_by_one_under_tls() {
    let ([old, new], pki) = ([App::bind().await, App::bind().await], Pki::new());
    let trust = format!("[upstream_tls]\nca = '{}'\n", pki.path("ca.crt").display());
    let mut running = Running::start(upstream(&old) + &trust).await;
    let mut before = running.sidecar.stream(&old).await;
    let encrypted = format!("upstream = 'https://{}'\n", new.address()) + &trust;
    running.change(encrypted, "configuration reloaded").await;
    let mut browser = running.sidecar.connect().await;
    browser.send(handshake(STREAM, "")).await;
    let acceptor = TlsAcceptor::from(Arc::new(pki.server(false)));
    let mut app = Wire::new(soon(acceptor.accept(new.accept().await.stream)).await.unwrap());
    app.head().await;
    app.send(switching("")).await;
    assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
    lives(&mut before).await;
}

#[tokio::test]
async fn new_sessions_use_the_reloaded_heartbeat_settings_and_limits() {
    let app = App::bind().await;
    let mut running = Running::start(upstream(&app) + "[heartbeat]\nmode = 'answer'\nproof = 'connection'\n").await;
    let mut first = running.sidecar.stream(&app).await;
    let forward = "[heartbeat]\nmode = 'forward'\n[limits]\nsessions = 2\n";
    running.change(upstream(&app) + forward, "configuration reloaded").await;
    first.browser.send(heartbeat()).await;
    first.browser.expect(plain(BINARY, [0x52, 0, 0xd0, 1, 1])).await;
    let mut second = running.sidecar.stream(&app).await;
    second.browser.send(heartbeat()).await;
    second.app.expect(heartbeat()).await;
    let mut third = running.sidecar.connect().await;
    third.send(handshake(STREAM, "")).await;
    assert!(third.head().await.starts_with("HTTP/1.1 503 "), "the first counts, though it started without a limit");
    drop(first);
    running.sidecar.until("sessions", &[], 1.0).await;
    lives(&mut running.sidecar.stream(&app).await).await;
}

#[tokio::test]
async fn an_app_with_a_new_address_keeps_one_session_quota_and_one_gauge() {
    let [old, new] = [App::bind().await, App::bind().await];
    let limits = "[limits]\nsessions = 1\n";
    let mut running = Running::start(upstream(&old) + limits).await;
    let mut before = running.sidecar.stream(&old).await;
    let says_its_version = async |session: &mut Session| {
        session.app.send(new_session("1.55.0")).await;
        session.browser.expect(new_session("1.55.0")).await;
    };
    says_its_version(&mut before).await;
    assert_eq!(running.sidecar.metric("upstream_acks_natively", &[]).await, 1.0);

    running.change(upstream(&new) + limits, "configuration reloaded").await;
    let mut refused = running.sidecar.connect().await;
    refused.send(handshake(STREAM, "")).await;
    assert!(refused.head().await.starts_with("HTTP/1.1 503 "), "the session at the old address counts");
    says_its_version(&mut before).await;
    assert_eq!(running.sidecar.metric("upstream_acks_natively", &[]).await, 0.0, "the new address is still unknown");

    drop(before);
    running.sidecar.until("sessions", &[], 0.0).await;
    let mut after = running.sidecar.stream(&new).await;
    says_its_version(&mut after).await;
    assert_eq!(running.sidecar.metric("upstream_acks_natively", &[]).await, 1.0);
}
