//! Which websockets are an app's stream: those at Streamlit's path that negotiate Streamlit's subprotocol.

use heartbeat_sidecar::config::{WatchdogMode, WatchdogSettings};

use crate::support::frame::{BINARY, TEXT, heartbeat, masked, new_session, plain};
use crate::support::{App, Session, Sidecar, handshake, switching};

const TAG: &str = "_heartbeat=0123456789abcdef0123456789abcdef";
const PATHS: [(&str, bool); 6] = [
    ("/_stcore/stream", true),
    ("/base/path/_stcore/stream", true),
    ("/stream", true),
    ("/_stcore/streams", false),
    ("/_stcore/stream/", false),
    ("/socket", false),
];
const OFFERS: [(&str, bool); 5] = [
    ("", false),
    ("Sec-WebSocket-Protocol: graphql-ws, streamlit2\r\n", false),
    ("Sec-WebSocket-Protocol: streamlit\r\n", true),
    ("Sec-WebSocket-Protocol: streamlit, 2|ab|cd|17\r\n", true),
    ("Sec-WebSocket-Protocol: graphql-ws\r\nSec-WebSocket-Protocol: streamlit\r\n", true),
];
const SELECTIONS: [(&str, bool); 3] =
    [("", false), ("Sec-WebSocket-Protocol: graphql-ws\r\n", false), ("Sec-WebSocket-Protocol: streamlit\r\n", true)];

/// Sends the three bytes of a heartbeat in Streamlit's protocol; returns whether they passed unanswered.
async fn passes_unanswered(mut session: Session) -> bool {
    session.app.send(new_session("1.53.1")).await;
    session.browser.expect(new_session("1.53.1")).await;
    session.browser.send([heartbeat(), masked(TEXT, "next")].concat()).await;
    let first = session.app.frame().await;
    if first.first != BINARY {
        // A ping came instead.
        return false;
    }
    session.app.expect(masked(TEXT, "next")).await;
    session.app.send(plain(TEXT, "end")).await;
    session.browser.expect(plain(TEXT, "end")).await;
    true
}

/// Opens a websocket; returns the target that the app received, too.
async fn open(app: &App, sidecar: &Sidecar, target: &str, offer: &str, selection: &str) -> (String, Session) {
    // `handshake` and `switching` add Streamlit's subprotocol by default.
    let without = |head: String| head.replacen("Sec-WebSocket-Protocol: streamlit\r\n", "", 1);
    let mut browser = sidecar.connect().await;
    browser.send(without(handshake(target, "")).replacen("\r\n\r\n", &format!("\r\n{offer}\r\n"), 1)).await;
    let mut upstream = app.accept().await;
    let head = upstream.head().await;
    upstream.send(without(switching("")).replacen("\r\n\r\n", &format!("\r\n{selection}\r\n"), 1)).await;
    assert!(browser.head().await.starts_with("HTTP/1.1 101 "));
    let read = head.split(' ').nth(1).expect("a target").to_owned();
    (read, Session { browser, app: upstream })
}

#[tokio::test]
async fn only_a_websocket_that_negotiates_streamlits_subprotocol_is_tapped() {
    let (app, sidecar) = Sidecar::with_app().await;
    for (path, is_stream) in PATHS {
        for (offer, offered) in OFFERS {
            for (selection, selected) in SELECTIONS {
                let (_target, session) = open(&app, &sidecar, path, offer, selection).await;
                let other = !(is_stream && offered && selected);
                assert_eq!(passes_unanswered(session).await, other, "{path} {offer:?} {selection:?}");
            }
        }
    }
}

#[tokio::test]
async fn without_a_watchdog_every_query_passes_unchanged() {
    let (app, sidecar) = Sidecar::with_app().await;
    for (path, _) in PATHS {
        for (offer, _) in OFFERS {
            for query in [TAG.to_owned(), format!("a=%20&{TAG}.watchdog&b"), "_heartbeat=".to_owned()] {
                let target = format!("{path}?{query}");
                assert_eq!(open(&app, &sidecar, &target, offer, "").await.0, target, "{offer:?}");
            }
        }
    }
}

#[tokio::test]
async fn the_watchdog_tag_is_removed_from_streamlit_streams_only() {
    let app = App::bind().await;
    let mut config = app.config();
    config.watchdog = WatchdogSettings { mode: WatchdogMode::Page, ..WatchdogSettings::default() };
    let sidecar = Sidecar::start(config).await;
    for (path, is_stream) in PATHS {
        for (offer, offered) in OFFERS {
            let target = format!("{path}?a=1&{TAG}");
            let expected = if is_stream && offered { format!("{path}?a=1") } else { target.clone() };
            assert_eq!(open(&app, &sidecar, &target, offer, "").await.0, expected, "{offer:?}");
        }
    }
}
