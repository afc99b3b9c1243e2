//! Silent peers, and pings besides the heartbeats: which peers are disconnected, and what the other side sees.

use std::time::Duration;

use heartbeat_sidecar::config::SessionSettings;

use crate::support::frame::{BINARY, PING, PONG, header, masked, plain};
use crate::support::{App, Session, Sidecar};

/// Short to keep tests fast; nothing fails if it takes longer.
const SHORT: Duration = Duration::from_millis(300);
/// Never within a test.
const LONG: Duration = Duration::from_secs(3600);

async fn with(settings: impl FnOnce(&mut SessionSettings)) -> (Sidecar, Session) {
    let app = App::bind().await;
    let mut config = app.config();
    settings(&mut config.session);
    let sidecar = Sidecar::start(config).await;
    let session = sidecar.stream(&app).await;
    (sidecar, session)
}

/// Expects that the sidecar closed the session for this reason, and that nothing is left.
async fn is_cut(sidecar: &Sidecar, reason: &str) {
    sidecar.until("sessions", &[], 0.0).await;
    assert_eq!(sidecar.metric("peers_lost_total", &[("reason", reason)]).await, 1.0);
    assert_eq!(sidecar.metric("peers_lost_total", &[]).await, 1.0, "for no other reason");
    let closed = [("initiator", "sidecar"), ("code", "1006")];
    assert_eq!(sidecar.metric("sessions_closed_total", &closed).await, 1.0);
    assert_eq!(sidecar.metric("sessions_closed_total", &[]).await, 1.0);
}

#[tokio::test]
async fn with_shield_pings_the_sidecar_answers_the_upstreams_pings() {
    let (_sidecar, mut session) = with(|session| session.shield_pings = true).await;
    session.app.send(plain(PING, "1")).await;
    let pong = session.app.frame().await;
    assert!(pong.masked && pong.is(PONG, "1"), "{pong:?}");
    session.app.send([plain(PING, ""), plain(BINARY, "data"), plain(PING, "2")].concat()).await;
    session.browser.expect(plain(BINARY, "data")).await;
    for payload in ["", "2"] {
        let pong = session.app.frame().await;
        assert!(pong.is(PONG, payload), "{pong:?}");
    }
    session.browser.send(masked(PONG, "unasked")).await;
    assert!(session.app.frame().await.is(PONG, "unasked"));
}

#[tokio::test]
async fn a_browser_that_answers_pings_stays_and_the_upstream_sees_none_of_them() {
    let (sidecar, mut session) = with(|session| session.browser_ping_interval = Some(SHORT)).await;
    for _ping in 0..3 {
        let ping = session.browser.frame().await;
        assert!(!ping.masked && ping.first == PING && ping.payload.len() == 16, "{ping:?}");
        session.browser.send(masked(PONG, &ping.payload)).await;
    }
    session.app.send(plain(PING, "hers")).await;
    session.browser.expect(plain(PING, "hers")).await;
    session.browser.send([masked(PONG, "hers"), masked(BINARY, "data")].concat()).await;
    assert!(session.app.frame().await.is(PONG, "hers"));
    assert!(session.app.frame().await.is(BINARY, "data"));
    assert_eq!(sidecar.metric("peers_lost_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_connected_browser_that_answers_no_ping_is_disconnected() {
    let (sidecar, mut session) = with(|session| {
        (session.browser_ping_interval, session.dead_peer_timeout) = (Some(SHORT), SHORT);
    })
    .await;
    assert_eq!(session.browser.frame().await.first, PING);
    assert!(session.app.rest().await.is_err(), "the app's side is reset");
    assert!(session.browser.rest().await.is_err(), "so is the browser's");
    is_cut(&sidecar, "browser_pong_missed").await;
}

#[tokio::test]
async fn a_browser_that_reads_nothing_is_disconnected_and_the_apps_side_is_reset() {
    let (sidecar, mut session) = with(|session| session.write_stall_timeout = SHORT).await;
    let more_than_sockets_hold = vec![0; 32 << 20];
    session.app.send(header(BINARY, 1 << 40, false)).await;
    let refused = tokio::io::AsyncWriteExt::write_all(&mut session.app.stream, &more_than_sockets_hold).await;
    assert!(refused.is_err(), "the app's side is reset");
    is_cut(&sidecar, "browser_stalled").await;
}

#[tokio::test]
async fn a_session_ends_if_its_tab_closes_while_a_hung_app_does_not_read_an_upload() {
    let (sidecar, mut session) = with(|session| session.write_stall_timeout = SHORT).await;
    let more_than_sockets_hold = vec![0; 32 << 20];
    session.browser.send(header(BINARY, 1 << 40, true)).await;
    let upload = tokio::io::AsyncWriteExt::write_all(&mut session.browser.stream, &more_than_sockets_hold);
    tokio::select! {
        _ended = upload => panic!("the app takes nothing"),
        () = sidecar.until("write_stalls_total", &[("direction", "browser_to_upstream")], 1.0) => {}
    }
    session.browser.reset();
    is_cut(&sidecar, "upstream_stalled").await;
    assert!(session.app.rest().await.is_err(), "the app's side is reset");
}

#[tokio::test]
async fn a_half_closed_session_ends_if_the_app_stays_silent() {
    let (sidecar, mut session) = with(|session| session.write_stall_timeout = SHORT).await;
    session.browser.finish().await;
    session.browser.end().await;
    sidecar.until("sessions", &[], 0.0).await;
    session.app.end().await;
    assert_eq!(sidecar.metric("peers_lost_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_half_closed_session_continues_while_the_app_sends() {
    let (sidecar, mut session) = with(|session| session.write_stall_timeout = SHORT).await;
    session.browser.finish().await;
    session.app.end().await;
    let mut pauses = tokio::time::interval(SHORT / 3);
    for _message in 0..9 {
        pauses.tick().await;
        session.app.send(plain(BINARY, "late")).await;
        session.browser.expect(plain(BINARY, "late")).await;
    }
    session.app.finish().await;
    session.browser.end().await;
    assert_eq!(sidecar.metric("peers_lost_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_slow_browser_receives_everything_the_app_sent_before_closing() {
    let (sidecar, mut session) = with(|session| session.write_stall_timeout = SHORT).await;
    let message = plain(BINARY, vec![7; 4 << 20]);
    let (mut app, sent) = (session.app, message.clone());
    let left = tokio::spawn(async move {
        app.send(sent).await;
        app.finish().await;
        app
    });
    let mut pauses = tokio::time::interval(SHORT / 3);
    for part in message.chunks(message.len() / 12) {
        pauses.tick().await;
        session.browser.expect(part).await;
    }
    session.browser.end().await;
    assert_eq!(sidecar.metric("peers_lost_total", &[]).await, 0.0);
    drop(left.await.unwrap());
}

#[tokio::test]
async fn a_browser_that_reads_in_bursts_is_not_a_dead_peer() {
    let (sidecar, session) = with(|session| {
        (session.write_stall_timeout, session.dead_peer_timeout) = (LONG, SHORT);
    })
    .await;
    let message = [header(BINARY, 8 << 20, false), vec![7; 8 << 20]].concat();
    let (mut app, mut browser) = (session.app, session.browser);
    let sent = tokio::spawn(async move {
        app.send(message).await;
        app
    });
    // The reader pauses longer than the timeout of dead peers: it is not dead, its window is closed.
    let mut rests = tokio::time::interval(2 * SHORT);
    for _part in 0..8 {
        rests.tick().await;
        browser.exactly(1 << 20).await;
    }
    browser.exactly(10).await;
    let _app = sent.await.unwrap();
    assert_eq!(sidecar.metric("peers_lost_total", &[]).await, 0.0);
    assert_eq!(sidecar.metric("sessions", &[]).await, 1.0);
}

#[tokio::test]
async fn an_app_that_reads_nothing_for_a_while_stays_connected() {
    let (sidecar, mut session) = with(|session| {
        (session.write_stall_timeout, session.dead_peer_timeout) = (SHORT, LONG);
    })
    .await;
    let message = [header(BINARY, 8 << 20, true), vec![7; 8 << 20]].concat();
    let (mut app, mut browser) = (session.app, session.browser);
    let length = message.len();
    let sent = tokio::spawn(async move {
        browser.send(message).await;
        browser
    });
    let mut rests = tokio::time::interval(4 * SHORT);
    rests.tick().await;
    rests.tick().await;
    app.exactly(length).await;
    session.browser = sent.await.unwrap();
    assert_eq!(sidecar.metric("peers_lost_total", &[]).await, 0.0);
}
