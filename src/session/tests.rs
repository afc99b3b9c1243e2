//! The registry of sessions and the numbers of one session.

use serde_json::json;

use super::data::{AtomicDuration, SessionData};
use super::totals::WithheldCounts;
use super::*;

fn info() -> SessionInfo {
    SessionInfo { upstream: "app".into(), tapped: true, stop: Stop::default() }
}

#[tokio::test(start_paused = true)]
async fn a_session_view_contains_its_numbers() {
    let sessions = Sessions::new();
    let session = sessions.open(info());
    tokio::time::advance(Duration::from_secs(10)).await;
    session.heartbeat();
    session.ack(AckOrigin::Sidecar, Some(Duration::from_millis(250)));
    session.ack(AckOrigin::Upstream, Some(Duration::from_micros(500)));
    session.ack(AckOrigin::Sidecar, Some(Duration::from_millis(125)));
    session.browser_rtt(Duration::from_millis(40));
    session.proof_rtt(Duration::from_millis(2));
    session.bytes(DirectionLabel::BrowserToUpstream, 9);
    session.bytes(DirectionLabel::UpstreamToBrowser, 4096);
    session.bytes(DirectionLabel::UpstreamToBrowser, 1);
    session.messages(DirectionLabel::UpstreamToBrowser, 1);
    session.version("1.39.0");
    session.version("1.55.0");
    tokio::time::advance(Duration::from_secs(5)).await;
    let expected = json!([{
        "id": session.id(), "upstream": "app", "age_seconds": 15.0, "tapped": true, "version": "1.39.0",
        "parked": false, "parked_seconds": 0.0, "resumed": 0,
        "bytes_to_browser": 4097, "bytes_to_upstream": 9, "messages_to_browser": 1, "messages_to_upstream": 0,
        "heartbeats": 1, "acks": {"sidecar": 2, "upstream": 1},
        "last_heartbeat_seconds_ago": 5.0, "last_ack_latency_seconds": 0.125, "withheld": false,
        "browser_rtt_seconds": 0.04, "proof_rtt_seconds": 0.002,
    }]);
    assert_eq!(serde_json::to_value(sessions.snapshot()).unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_new_session_has_zero_counts_and_no_times() {
    let sessions = Sessions::new();
    let _session = sessions.open(info());
    let [view] = &sessions.snapshot()[..] else { panic!("one session lives") };
    assert_eq!((view.heartbeats, view.acks), (0, Acks::default()));
    assert_eq!((view.last_heartbeat_seconds_ago, view.last_ack_latency_seconds), (None, None));
    assert_eq!(view.version, None);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_parked_again_adds_up_its_parked_time() {
    let sessions = Sessions::new();
    let session = sessions.open(info());
    let parked = || {
        let view = session.view();
        (view.parked, view.parked_seconds, view.resumed)
    };
    tokio::time::advance(Duration::from_secs(10)).await;
    session.set_parked(true);
    tokio::time::advance(Duration::from_secs(3)).await;
    assert_eq!(parked(), (true, 3.0, 0));
    session.set_parked(false);
    session.resumed();
    tokio::time::advance(Duration::from_secs(20)).await;
    assert_eq!(parked(), (false, 3.0, 1));
    session.set_parked(true);
    tokio::time::advance(Duration::from_secs(1)).await;
    session.set_parked(true);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(parked(), (true, 5.0, 1));
    session.set_parked(false);
    session.set_parked(false);
    assert_eq!(parked(), (false, 5.0, 1));
}

#[test]
fn a_dropped_session_leaves_the_registry_and_its_id_is_not_reused() {
    let sessions = Sessions::new();
    let (first, second) = (sessions.open(info()), sessions.clone().open(info()));
    assert_eq!(sessions.len(), 2);
    drop(first);
    let third = sessions.open(info());
    let ids: Vec<_> = sessions.snapshot().iter().map(|view| view.id).collect();
    assert_eq!(ids, [second.id(), third.id()]);
    drop((second, third));
    assert!(sessions.is_empty());
}

#[test]
fn withheld_is_true_until_the_next_ack() {
    let sessions = Sessions::new();
    let session = sessions.open(info());
    session.withheld(Withheld::Policy);
    assert!(!session.view().withheld, "a policy is not a sign of a stall");
    session.withheld(Withheld::UpstreamStalled);
    assert!(session.view().withheld);
    session.ack(AckOrigin::Sidecar, None);
    assert!(!session.view().withheld);
}

#[test]
fn totals_include_ended_sessions() {
    let sessions = Sessions::new();
    let session = sessions.open(info());
    session.heartbeat();
    session.ack(AckOrigin::Upstream, None);
    session.withheld(Withheld::UpstreamClosed);
    drop((session, sessions.open(info())));
    let withheld = WithheldCounts { upstream_closed: 1, ..WithheldCounts::default() };
    let expected = Totals { opened: 2, heartbeats: 1, acks: Acks { sidecar: 0, upstream: 1 }, withheld };
    assert_eq!(sessions.totals(), expected);
}

#[test]
fn a_zero_duration_is_not_none() {
    let duration = AtomicDuration::default();
    assert_eq!(duration.get(), None);
    duration.set(Duration::ZERO);
    assert_eq!(duration.get(), Some(Duration::ZERO));
}

#[test]
fn a_session_is_small() {
    let size = size_of::<SessionData>() + size_of::<Session>();
    assert!(size <= 200, "{size} bytes");
}
