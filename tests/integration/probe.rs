//! `probe` as a child process, against an app server driven by the test.

use heartbeat_sidecar::config::{Config, WatchdogMode};
use serde_json::Value;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::support::frame::{BINARY, CLOSE, COMPATIBLE_ACK, HEARTBEAT, PING, PONG, TEXT, new_session, plain};
use crate::support::process::{command, printed};
use crate::support::{App, Sidecar, Wire};

/// A message stream with a probe, whose session has started.
async fn stream(app: &App) -> Wire {
    let (_head, mut probe) = shake_hands(app).await;
    let _rerun = probe.frame().await;
    probe.send(new_session("1.53.1")).await;
    probe
}

/// A message stream after its handshake.
async fn shake_hands(app: &App) -> (String, Wire) {
    let mut probe = app.accept().await;
    let head = probe.head().await;
    let (_name, key) = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _value)| name.eq_ignore_ascii_case("sec-websocket-key"))
        .unwrap();
    let accept = derive_accept_key(key.as_bytes());
    probe
        .send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Protocol: streamlit\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        ))
        .await;
    (head, probe)
}

/// Receives this many heartbeats and acks each.
async fn answer(probe: &mut Wire, heartbeats: usize) {
    for _heartbeat in 0..heartbeats {
        assert!(probe.frame().await.is(BINARY, HEARTBEAT));
        probe.send(plain(BINARY, COMPATIBLE_ACK)).await;
    }
}

#[tokio::test]
async fn heartbeats_that_were_never_sent_do_not_count_as_missed() {
    // Heartbeats before the close, whether the last of them is acked, and the expected results.
    let ends = [
        (3, true, "3 sent, 3 acked, 0 missed, 37 not sent", [3, 3, 0, 37]),
        (3, false, "3 sent, 2 acked, 1 missed, 37 not sent", [3, 2, 1, 37]),
    ];
    for (heartbeats, answered, text, figures) in ends {
        for json in [false, true] {
            let app = App::bind().await;
            let url = format!("http://{}/", app.address());
            // Long enough that none is sent while the close is in transit.
            let mut arguments = vec!["probe", &url, "--count=40", "--interval=500ms"];
            arguments.extend(json.then_some("--json"));
            let served = async {
                let mut probe = stream(&app).await;
                answer(&mut probe, heartbeats - usize::from(!answered)).await;
                if !answered {
                    assert!(probe.frame().await.is(BINARY, HEARTBEAT));
                }
                probe.send(plain(CLOSE, 1001u16.to_be_bytes())).await;
                probe
            };
            let ((code, out), _probe) = tokio::join!(printed(&arguments), served);
            assert_eq!(code, Some(1), "not every heartbeat was acked: {out}");
            if json {
                let summary: Value = serde_json::from_str(&out).unwrap();
                let found = ["sent", "acked", "missed", "not_sent"].map(|key| summary[key].as_u64().unwrap());
                assert_eq!(found, figures, "{out}");
                assert_eq!(summary["error"], "closed by the server (1001)");
            } else {
                let expected = format!("heartbeats      {text}: closed by the server (1001)\n");
                assert!(out.contains(&expected), "{out}");
            }
        }
    }
}

#[tokio::test]
async fn probe_succeeds_if_every_heartbeat_is_acked() {
    let app = App::bind().await;
    let url = format!("http://{}/", app.address());
    let served = async {
        let mut probe = stream(&app).await;
        answer(&mut probe, 2).await;
        probe
    };
    let arguments = ["probe", &url, "--count=2", "--interval=10ms"];
    let ((code, out), _probe) = tokio::join!(printed(&arguments), served);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("heartbeats      2 sent, 2 acked, 0 missed\n"), "{out}");
}

/// An app, and a sidecar with the watchdog and these settings.
async fn resumable(change: impl FnOnce(&mut Config)) -> (App, Sidecar) {
    let app = App::bind().await;
    let mut config = app.config();
    config.watchdog.mode = WatchdogMode::Page;
    change(&mut config);
    let sidecar = Sidecar::start(config).await;
    (app, sidecar)
}

/// Serves the only session of an app that answers pings.
async fn served(app: &App) {
    let mut session = stream(app).await;
    loop {
        let frame = session.frame().await;
        match frame.first {
            PING => session.send(plain(PONG, &frame.payload)).await,
            CLOSE => return,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_probe_resumes_its_session_after_each_cut_and_the_app_notices_none() {
    // More cuts than heartbeats are several behind one.
    for (count, cut) in [(6, 3), (4, 4), (2, 5)] {
        let (app, sidecar) = resumable(|_config| {}).await;
        let url = format!("http://{}/", sidecar.address);
        let (flags, served) = ([format!("--count={count}"), format!("--cut={cut}")], served(&app));
        let arguments = ["probe", &url, "--interval=20ms", "--json", &flags[0], &flags[1]];
        let ((code, out), ()) = tokio::join!(printed(&arguments), served);
        assert_eq!(code, Some(0), "{out}");
        let summary: Value = serde_json::from_str(&out).unwrap();
        let figures = ["acked", "cuts", "resumed", "lost", "doubled"].map(|key| summary[key].as_u64().unwrap());
        assert_eq!(figures, [count, cut, cut, 0, 0], "{out}");
        assert!(app.is_untouched(), "the app sees one connection");
        assert_eq!(sidecar.metric("resumptions_total", &[("level", "one")]).await, cut as f64);
    }
}

#[tokio::test]
async fn a_probe_that_cuts_names_the_setting_without_which_sessions_are_not_resumed() {
    let off: fn(&mut Config) = |config| config.watchdog.mode = WatchdogMode::Off;
    let disabled: fn(&mut Config) = |config| config.resume.enabled = false;
    for (change, is_greeted, message) in
        [(off, false, "`watchdog.mode` \"self\" or \"host\""), (disabled, true, "set `resume.enabled = true`")]
    {
        let (app, sidecar) = resumable(change).await;
        let url = format!("http://{}/", sidecar.address);
        let arguments = ["probe", &url, "--count=2", "--interval=10ms", "--cut=1"];
        // The greeting ends the probe.
        let served = async { if is_greeted { shake_hands(&app).await.1 } else { stream(&app).await } };
        let ((code, error), _session) = tokio::join!(command(&arguments), served);
        assert_eq!(code, Some(1));
        assert!(error.starts_with("error: ws://") && error.contains(message), "{error}");
    }
}

/// A control message of a sidecar.
fn control(text: &str) -> Vec<u8> {
    plain(TEXT, format!("_heartbeat {text}"))
}

/// The first leg of a probe, from a faulty sidecar that offers to resume it: until the reset behind the first heartbeat.
async fn first_leg(app: &App) {
    let (head, mut leg) = shake_hands(app).await;
    assert!(head.lines().next().unwrap().contains(".resume HTTP/1.1"), "{head}");
    leg.send(control("resumable 5ec2e7 1048576 300000")).await;
    let _rerun = leg.frame().await;
    leg.send(new_session("1.53.1")).await;
    leg.rest().await.expect_err("the probe resets its connection");
}

/// The next leg, of which the sidecar claims to have these messages.
async fn next_leg(app: &App, received: u64) -> Wire {
    let (head, mut leg) = shake_hands(app).await;
    assert!(
        head.to_ascii_lowercase().contains("\r\nsec-websocket-protocol: streamlit, resume.5ec2e7.1.1\r\n"),
        "{head}"
    );
    leg.send(control(&format!("resumed {received}"))).await;
    leg
}

/// The summary of a probe with one heartbeat and one cut, which fails.
async fn failed(app: &App, sidecar: impl Future) -> Value {
    let url = format!("http://{}/", app.address());
    let arguments = ["probe", &url, "--count=1", "--cut=1", "--timeout=500ms", "--json"];
    let ((code, out), _sidecar) = tokio::join!(printed(&arguments), sidecar);
    assert_eq!(code, Some(1), "{out}");
    serde_json::from_str(&out).unwrap()
}

#[tokio::test]
async fn a_session_that_is_not_resumed_fails_the_probe() {
    let app = App::bind().await;
    let summary = failed(&app, async {
        first_leg(&app).await;
        let (_head, mut leg) = shake_hands(&app).await;
        leg.send(plain(CLOSE, 4004_u16.to_be_bytes())).await;
        leg
    })
    .await;
    assert_eq!(["cuts", "resumed", "lost"].map(|key| summary[key].as_u64().unwrap()), [1, 0, 1]);
    assert!(summary["error"].as_str().unwrap().contains("no such session"), "{summary}");
}

#[tokio::test]
async fn a_heartbeat_that_the_sidecar_loses_fails_the_probe() {
    let app = App::bind().await;
    let summary = failed(&app, async {
        first_leg(&app).await;
        let mut leg = next_leg(&app, 1).await;
        assert!(leg.frame().await.is(BINARY, HEARTBEAT), "it is sent again");
        leg
    })
    .await;
    assert_eq!(["cuts", "resumed", "lost"].map(|key| summary[key].as_u64().unwrap()), [1, 1, 1]);
}

#[tokio::test]
async fn an_ack_that_the_sidecar_doubles_fails_the_probe() {
    let app = App::bind().await;
    let summary = failed(&app, async {
        first_leg(&app).await;
        let mut leg = next_leg(&app, 2).await;
        leg.send([plain(BINARY, COMPATIBLE_ACK), plain(BINARY, COMPATIBLE_ACK)].concat()).await;
        let confirmation = leg.frame().await;
        assert!(confirmation.payload.starts_with(b"_heartbeat received "), "{confirmation:?}");
        leg.send(control("received 2")).await;
        leg
    })
    .await;
    assert_eq!(["resumed", "lost", "doubled"].map(|key| summary[key].as_u64().unwrap()), [1, 0, 1]);
}
