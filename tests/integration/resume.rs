//! A page that loses its connection continues its session over another one, and the app notices nothing.

use std::time::Duration;

use heartbeat_sidecar::config::{Config, WatchdogMode, WatchdogSettings};

use crate::support::frame::{BINARY, CLOSE, PING, PONG, SESSION_ID, TEXT, masked, new_session, plain};
use crate::support::{App, Sidecar, Wire, handshake};

const STREAM: &str = "/_stcore/stream";
const GIVEN_UP: [u8; 2] = 4000_u16.to_be_bytes();
const REPLACED: [u8; 2] = 4001_u16.to_be_bytes();
const UNKNOWN: [u8; 2] = 4004_u16.to_be_bytes();
const GOING_AWAY: [u8; 2] = 1001_u16.to_be_bytes();

/// A page that can resume: its current leg, the app's end, and the secret.
struct Page {
    leg: Wire,
    app: Wire,
    secret: String,
}

/// A handshake of a page that can resume, with these additional header lines.
fn offer(lines: &str) -> String {
    handshake(&format!("{STREAM}?_heartbeat={:032x}.resume", rand::random::<u128>()), lines)
}

/// The handshake of a leg.
fn resume(secret: &str, leg: u32, received: u64, lines: &str) -> String {
    offer(&format!("Sec-WebSocket-Protocol: streamlit, xsrf, resume.{secret}.{leg}.{received}\r\n{lines}"))
}

fn control(text: &str) -> Vec<u8> {
    plain(TEXT, format!("_heartbeat {text}"))
}

fn confirm(received: u64) -> Vec<u8> {
    masked(TEXT, format!("_heartbeat received {received}"))
}

/// An app, and a sidecar with the watchdog and these settings.
async fn start(change: impl FnOnce(&mut Config)) -> (App, Sidecar) {
    let app = App::bind().await;
    let mut config = app.config();
    config.watchdog = WatchdogSettings { mode: WatchdogMode::Page, ..WatchdogSettings::default() };
    change(&mut config);
    let sidecar = Sidecar::start(config).await;
    (app, sidecar)
}

/// A page that was greeted and has answered.
async fn open(app: &App, sidecar: &Sidecar, lines: &str) -> Page {
    let mut page = greeted(app, sidecar, lines).await;
    page.leg.send(confirm(0)).await;
    page.leg.expect(control("received 0")).await;
    page
}

/// A page that was greeted.
async fn greeted(app: &App, sidecar: &Sidecar, lines: &str) -> Page {
    let mut leg = sidecar.connect().await;
    leg.send(offer(lines)).await;
    let (head, app) = app.shake_hands("").await;
    assert!(head.starts_with(&format!("GET {STREAM} HTTP/1.1\r\n")), "{head}");
    assert!(leg.head().await.starts_with("HTTP/1.1 101 "));
    let greeting = String::from_utf8(leg.frame().await.payload).unwrap();
    let words: Vec<_> = greeting.split(' ').collect();
    let ["_heartbeat", "resumable", secret, buffer, window] = words[..] else { panic!("{greeting}") };
    assert!(secret.len() == 48 && buffer.parse::<usize>().is_ok() && window.parse::<u64>().is_ok());
    Page { leg, app, secret: secret.to_owned() }
}

/// A leg whose handshake was answered.
async fn leg(sidecar: &Sidecar, handshake: String) -> Wire {
    let mut leg = sidecar.connect().await;
    leg.send(handshake).await;
    let head = leg.head().await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("\r\nsec-websocket-protocol: streamlit\r\n"), "{head}");
    leg
}

async fn expect_refused(mut leg: Wire, code: [u8; 2]) {
    leg.expect(plain(CLOSE, code)).await;
    leg.end().await;
}

async fn refused(sidecar: &Sidecar, reason: &str) -> f64 {
    sidecar.metric("resumptions_refused_total", &[("reason", reason)]).await
}

async fn parked_ended(sidecar: &Sidecar, result: &str) -> f64 {
    sidecar.metric("parked_sessions_ended_total", &[("result", result)]).await
}

/// The app's connection is closed by the sidecar.
async fn expect_app_closed(mut app: Wire) {
    let frame = app.frame().await;
    assert!(frame.masked && frame.is(CLOSE, GOING_AWAY), "{frame:?}");
    app.send(plain(CLOSE, GOING_AWAY)).await;
    app.end().await;
}

#[tokio::test]
async fn after_a_reset_each_message_arrives_once_in_both_directions() {
    let (app, sidecar) = start(|_config| {}).await;
    let mut page = open(&app, &sidecar, "").await;
    page.leg.send(masked(BINARY, "click 1")).await;
    page.app.expect(masked(BINARY, "click 1")).await;
    page.app.send(plain(BINARY, "delta 1")).await;
    page.leg.expect(plain(BINARY, "delta 1")).await;
    page.leg.reset();
    sidecar.until("parked_sessions", &[], 1.0).await;
    page.app.send(plain(BINARY, "delta 2")).await;
    let mut next = leg(&sidecar, resume(&page.secret, 1, 1, "")).await;
    next.expect(control("resumed 1")).await;
    next.expect(plain(BINARY, "delta 2")).await;
    next.send(masked(BINARY, "click 2")).await;
    page.app.expect(masked(BINARY, "click 2")).await;
    page.app.send(plain(BINARY, "delta 3")).await;
    next.expect(plain(BINARY, "delta 3")).await;
    assert_eq!(sidecar.metric("parked_sessions", &[]).await, 0.0);
    assert_eq!(parked_ended(&sidecar, "resumed").await, 1.0);
    assert_eq!(sidecar.metric("resumptions_total", &[("level", "one")]).await, 1.0);
    assert_eq!(sidecar.metric("sessions", &[]).await, 1.0);
}

/// A page that is being left may open a connection that it never uses.
#[tokio::test]
async fn a_session_that_its_page_has_not_used_is_not_parked() {
    let (app, sidecar) = start(|_config| {}).await;
    let page = greeted(&app, &sidecar, "").await;
    page.leg.reset();
    sidecar.until("sessions", &[], 0.0).await;
}

#[tokio::test]
async fn a_leg_replaces_one_that_nobody_knows_to_be_dead() {
    let (app, sidecar) = start(|_config| {}).await;
    let mut page = open(&app, &sidecar, "").await;
    page.app.send(plain(BINARY, "delta 1")).await;
    let mut next = leg(&sidecar, resume(&page.secret, 1, 0, "")).await;
    next.expect(control("resumed 0")).await;
    next.expect(plain(BINARY, "delta 1")).await;
    page.leg.rest().await.expect_err("the old leg is reset");
    next.send(masked(BINARY, "click 1")).await;
    page.app.expect(masked(BINARY, "click 1")).await;
}

#[tokio::test]
async fn a_message_that_a_leg_did_not_complete_does_not_reach_the_app() {
    let (app, sidecar) = start(|_config| {}).await;
    let mut page = open(&app, &sidecar, "").await;
    let click = masked(BINARY, [7; 5000]);
    page.leg.send(&click[..4000]).await;
    page.leg.finish().await;
    sidecar.until("parked_sessions", &[], 1.0).await;
    let mut next = leg(&sidecar, resume(&page.secret, 1, 0, "")).await;
    next.expect(control("resumed 0")).await;
    next.send(&click).await;
    page.app.expect(&click).await;
}

#[tokio::test]
async fn a_message_of_the_app_that_a_leg_did_not_complete_starts_again() {
    let (app, sidecar) = start(|_config| {}).await;
    let mut page = open(&app, &sidecar, "").await;
    let delta = plain(BINARY, [7; 5000]);
    page.app.send(&delta[..4000]).await;
    page.leg.expect(&delta[..4000]).await;
    let mut next = leg(&sidecar, resume(&page.secret, 1, 0, "")).await;
    next.expect(control("resumed 0")).await;
    next.expect(&delta[..4000]).await;
    page.app.send(&delta[4000..]).await;
    next.expect(&delta[4000..]).await;
}

#[tokio::test]
async fn confirmations_are_answered_and_bring_what_follows_only() {
    let (app, sidecar) = start(|_config| {}).await;
    let mut page = open(&app, &sidecar, "").await;
    page.leg.send(masked(BINARY, "click 1")).await;
    for delta in ["delta 1", "delta 2"] {
        page.app.send(plain(BINARY, delta)).await;
        page.leg.expect(plain(BINARY, delta)).await;
    }
    page.leg.send(confirm(2)).await;
    page.leg.expect(control("received 1")).await;
    page.leg.send(masked(BINARY, [7; 40_000])).await;
    page.leg.expect(control("received 2")).await;
    page.app.send(plain(BINARY, "delta 3")).await;
    page.leg.expect(plain(BINARY, "delta 3")).await;
    page.leg.send(masked(TEXT, "_heartbeat confirm 3")).await;
    page.app.send(plain(BINARY, "delta 4")).await;
    page.leg.expect(plain(BINARY, "delta 4")).await;
    page.leg.send(confirm(3)).await;
    page.leg.expect(control("received 2")).await;
    // A confirmed message cannot be had again.
    expect_refused(leg(&sidecar, resume(&page.secret, 1, 2, "")).await, UNKNOWN).await;
    let mut next = leg(&sidecar, resume(&page.secret, 2, 3, "")).await;
    next.expect(control("resumed 2")).await;
    next.expect(plain(BINARY, "delta 4")).await;
}

#[tokio::test]
async fn the_apps_pings_are_answered_from_the_handshake_on() {
    let (app, sidecar) = start(|_config| {}).await;
    let mut page = open(&app, &sidecar, "").await;
    page.app.send(plain(PING, "live")).await;
    assert!(page.app.frame().await.is(PONG, "live"));
    page.leg.reset();
    sidecar.until("parked_sessions", &[], 1.0).await;
    page.app.send(plain(PING, "parked")).await;
    assert!(page.app.frame().await.is(PONG, "parked"));
}

#[tokio::test]
async fn only_a_given_up_leg_leaves_a_parked_session() {
    let (app, sidecar) = start(|_config| {}).await;
    let mut page = open(&app, &sidecar, "").await;
    page.leg.send(masked(CLOSE, GIVEN_UP)).await;
    sidecar.until("parked_sessions", &[], 1.0).await;
    assert!(page.app.is_silent_for(Duration::from_millis(100)).await);
    for code in [1000_u16, 1001, 4002] {
        let mut other = open(&app, &sidecar, "").await;
        other.leg.send(masked(CLOSE, code.to_be_bytes())).await;
        assert!(other.app.frame().await.is(CLOSE, code.to_be_bytes()));
    }
    let mut without_code = open(&app, &sidecar, "").await;
    without_code.leg.send(masked(CLOSE, [])).await;
    assert!(without_code.app.frame().await.is(CLOSE, []));
    assert_eq!(sidecar.metric("parked_sessions", &[]).await, 1.0);
}

#[tokio::test]
async fn a_leg_needs_the_secret_and_the_user_of_its_session() {
    let (app, sidecar) = start(|_config| {}).await;
    let user = "Cookie: a=1; _streamlit_user=alice\r\nOrigin: https://app.test\r\n";
    let mut page = open(&app, &sidecar, user).await;
    page.app.send(plain(BINARY, "delta 1")).await;
    let last = if page.secret.ends_with('0') { "1" } else { "0" };
    let wrong = format!("{}{last}", &page.secret[..47]);
    for secret in [&wrong, "", "x", &page.secret[1..]] {
        expect_refused(leg(&sidecar, resume(secret, 1, 0, user)).await, UNKNOWN).await;
    }
    assert_eq!(refused(&sidecar, "unknown").await, 4.0);
    for other in [
        "",
        "Cookie: _streamlit_user=bob\r\nOrigin: https://app.test\r\n",
        "Cookie: _streamlit_user=alice\r\nOrigin: https://evil.test\r\n",
        "Cookie: _streamlit_user=alice\r\nOrigin: https://app.test\r\nAuthorization: Basic eA==\r\n",
    ] {
        expect_refused(leg(&sidecar, resume(&page.secret, 1, 0, other)).await, UNKNOWN).await;
    }
    assert_eq!(refused(&sidecar, "identity").await, 4.0);
    let same = "Origin: https://app.test\r\nCookie: b=2; _streamlit_user=alice\r\n";
    let mut next = leg(&sidecar, resume(&page.secret, 1, 0, same)).await;
    next.expect(control("resumed 0")).await;
    next.expect(plain(BINARY, "delta 1")).await;
    assert!(app.is_untouched(), "no leg is a connection to the app");
}

#[tokio::test]
async fn an_older_leg_that_comes_late_does_not_replace_a_newer_one() {
    let (app, sidecar) = start(|_config| {}).await;
    let mut page = open(&app, &sidecar, "").await;
    let mut newer = leg(&sidecar, resume(&page.secret, 2, 0, "")).await;
    newer.expect(control("resumed 0")).await;
    for number in [0, 1, 2] {
        expect_refused(leg(&sidecar, resume(&page.secret, number, 0, "")).await, REPLACED).await;
    }
    assert_eq!(refused(&sidecar, "stale").await, 3.0);
    page.app.send(plain(BINARY, "delta 1")).await;
    newer.expect(plain(BINARY, "delta 1")).await;
}

#[tokio::test]
async fn a_session_cannot_be_resumed_with_more_unconfirmed_than_the_buffer() {
    let (app, sidecar) = start(|config| config.resume.buffer_bytes = 64 << 10).await;
    let mut page = open(&app, &sidecar, "").await;
    let delta = plain(BINARY, [7; 40 << 10]);
    for _delta in 0..2 {
        page.app.send(&delta).await;
        page.leg.expect(&delta).await;
    }
    expect_refused(leg(&sidecar, resume(&page.secret, 1, 1, "")).await, UNKNOWN).await;
    assert_eq!(refused(&sidecar, "overflow").await, 1.0);
    assert!(sidecar.metric("resume_dropped_bytes_total", &[]).await > f64::from(64 << 10));
    // The leg that works is still there. Once the page has everything, the session can be resumed again.
    page.leg.send(confirm(2)).await;
    page.leg.expect(control("received 0")).await;
    let mut next = leg(&sidecar, resume(&page.secret, 2, 2, "")).await;
    next.expect(control("resumed 0")).await;
}

#[tokio::test]
async fn a_parked_session_ends_after_its_window() {
    let (app, sidecar) = start(|config| config.resume.window = Duration::from_millis(50)).await;
    let page = open(&app, &sidecar, "").await;
    page.leg.reset();
    expect_app_closed(page.app).await;
    sidecar.until("sessions", &[], 0.0).await;
    assert_eq!(parked_ended(&sidecar, "expired").await, 1.0);
    expect_refused(leg(&sidecar, resume(&page.secret, 1, 0, "")).await, UNKNOWN).await;
}

#[tokio::test]
async fn the_session_parked_longest_makes_room() {
    let (app, sidecar) = start(|config| config.resume.parked = 2).await;
    let mut apps = Vec::new();
    for parked in 1..=2 {
        let page = open(&app, &sidecar, "").await;
        page.leg.reset();
        sidecar.until("parked_sessions", &[], f64::from(parked)).await;
        apps.push(page.app);
    }
    let page = open(&app, &sidecar, "").await;
    page.leg.reset();
    expect_app_closed(apps.remove(0)).await;
    sidecar.until("sessions", &[], 2.0).await;
    assert_eq!(parked_ended(&sidecar, "evicted").await, 1.0);
    let mut next = leg(&sidecar, resume(&page.secret, 1, 0, "")).await;
    next.expect(control("resumed 0")).await;
}

#[tokio::test]
async fn an_app_that_sends_without_end_to_a_parked_session_is_closed() {
    let (app, sidecar) = start(|config| config.resume.parked_bytes = 4 << 20).await;
    let mut page = open(&app, &sidecar, "").await;
    page.leg.reset();
    sidecar.until("parked_sessions", &[], 1.0).await;
    let delta = plain(BINARY, vec![7; 1 << 20]);
    for _delta in 0..5 {
        page.app.send(&delta).await;
    }
    expect_app_closed(page.app).await;
    sidecar.until("sessions", &[], 0.0).await;
    assert_eq!(parked_ended(&sidecar, "flooded").await, 1.0);
}

#[tokio::test]
async fn the_apps_end_ends_a_parked_session() {
    let (app, sidecar) = start(|_config| {}).await;
    let close = async |mut app: Wire| {
        app.send(plain(CLOSE, GOING_AWAY)).await;
        assert!(app.frame().await.is(CLOSE, GOING_AWAY));
    };
    let reset = async |app: Wire| app.reset();
    for closes in [true, false] {
        let page = open(&app, &sidecar, "").await;
        page.leg.reset();
        sidecar.until("parked_sessions", &[], 1.0).await;
        if closes {
            close(page.app).await
        } else {
            reset(page.app).await
        }
        sidecar.until("sessions", &[], 0.0).await;
    }
    assert_eq!(parked_ended(&sidecar, "app").await, 2.0);
}

#[tokio::test]
async fn a_drain_ends_parked_sessions_at_once() {
    let hour = Duration::from_secs(3600);
    let (app, mut sidecar) = start(|config| {
        (config.drain.delay, config.drain.window, config.drain.timeout) = (Duration::ZERO, hour, hour);
    })
    .await;
    let page = open(&app, &sidecar, "").await;
    let _live = open(&app, &sidecar, "").await;
    page.leg.reset();
    sidecar.until("parked_sessions", &[], 1.0).await;
    sidecar.stop();
    expect_app_closed(page.app).await;
    sidecar.until("parked_sessions_ended_total", &[("result", "drained")], 1.0).await;
    assert_eq!(sidecar.metric("sessions", &[]).await, 1.0, "the others are closed within drain.window");
}

#[tokio::test]
async fn without_takeover_no_session_is_parked() {
    let (app, sidecar) = start(|config| config.session.takeover = false).await;
    let mut page = sidecar.connect().await;
    page.send(offer("")).await;
    let (_head, mut upstream) = app.shake_hands("").await;
    assert!(page.head().await.starts_with("HTTP/1.1 101 "));
    upstream.send(plain(BINARY, "delta 1")).await;
    page.expect(plain(BINARY, "delta 1")).await;
    page.reset();
    upstream.rest().await.expect_err("the reset is passed on");
}

#[tokio::test]
async fn a_page_that_does_not_offer_it_gets_no_greeting() {
    let (app, sidecar) = start(|_config| {}).await;
    let mut plain_page = sidecar.open(&app, &format!("{STREAM}?_heartbeat={:032x}", 7)).await;
    plain_page.app.send(plain(BINARY, "delta 1")).await;
    plain_page.browser.expect(plain(BINARY, "delta 1")).await;
    plain_page.browser.reset();
    plain_page.app.rest().await.expect_err("the reset is passed on");
}

#[tokio::test]
async fn with_resumption_off_a_lost_session_runs_on_until_its_page_reconnects() {
    let (app, sidecar) = start(|config| config.resume.enabled = false).await;
    let mut old = sidecar.connect().await;
    old.send(offer("")).await;
    let (_head, mut upstream) = app.shake_hands("").await;
    assert!(old.head().await.starts_with("HTTP/1.1 101 "));
    old.expect(control("plain")).await;
    upstream.send(new_session("1.53.1")).await;
    old.expect(new_session("1.53.1")).await;
    old.send(masked(BINARY, "run")).await;
    upstream.expect(masked(BINARY, "run")).await;
    old.send(masked(CLOSE, GIVEN_UP)).await;
    sidecar.until("parked_sessions", &[], 1.0).await;
    assert!(upstream.is_silent_for(Duration::from_millis(100)).await, "the script goes on");
    let mut next = sidecar.connect().await;
    next.send(offer(&format!("Sec-WebSocket-Protocol: streamlit, xsrf, {SESSION_ID}\r\n"))).await;
    expect_app_closed(upstream).await;
    let (_head, _upstream) = app.shake_hands("").await;
    assert!(next.head().await.starts_with("HTTP/1.1 101 "));
    next.expect(control("plain taken 1")).await;
    assert_eq!(parked_ended(&sidecar, "taken_over").await, 1.0);
}

#[tokio::test]
async fn a_page_that_reconnects_by_itself_learns_that_its_session_was_taken_over() {
    let (app, sidecar) = start(|_config| {}).await;
    let mut page = open(&app, &sidecar, "").await;
    page.app.send(new_session("1.53.1")).await;
    page.leg.expect(new_session("1.53.1")).await;
    page.leg.reset();
    sidecar.until("parked_sessions", &[], 1.0).await;
    let mut next = sidecar.connect().await;
    next.send(offer(&format!("Sec-WebSocket-Protocol: streamlit, xsrf, {SESSION_ID}\r\n"))).await;
    expect_app_closed(page.app).await;
    let (_head, _upstream) = app.shake_hands("").await;
    assert!(next.head().await.starts_with("HTTP/1.1 101 "));
    let greeting = String::from_utf8(next.frame().await.payload).unwrap();
    assert!(greeting.starts_with("_heartbeat resumable ") && greeting.ends_with(" taken 0"), "{greeting}");
    expect_refused(leg(&sidecar, resume(&page.secret, 1, 1, "")).await, UNKNOWN).await;
}
