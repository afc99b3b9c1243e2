//! `probe` as a child process, against an app server driven by the test.

use serde_json::Value;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::support::frame::{BINARY, CLOSE, COMPATIBLE_ACK, HEARTBEAT, new_session, plain};
use crate::support::process::printed;
use crate::support::{App, Wire};

/// A message stream with a probe, whose session has started.
async fn stream(app: &App) -> Wire {
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
    let _rerun = probe.frame().await;
    probe.send(new_session("1.53.1")).await;
    probe
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
