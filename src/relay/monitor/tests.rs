//! Observations of a peer at each check, and the result.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const TIMEOUTS: Timeouts =
    Timeouts { dead_peer: Duration::from_secs(30), write_stall: Duration::from_secs(120), takeover: SECOND };
const IDLE: Delivery =
    Delivery { acknowledged: 100, in_flight: false, pending: false, quiet: Duration::from_secs(99), round_trip: None };
const UNACKED: Delivery = Delivery { in_flight: true, pending: true, ..IDLE };
/// Its window is closed, and it answers some of the kernel's probes.
const SHUT: Delivery = Delivery { pending: true, ..IDLE };

fn seen(delivery: Delivery) -> Observation {
    Observation { delivery, received: false, unanswered: None }
}

/// A shared tick: checks after it are due after whole intervals.
fn aligned() -> Instant {
    last_tick(Instant::now() + 10 * SECOND, TIMEOUTS.dead_peer / CHECKS_PER_TIMEOUT)
}

/// Runs due checks; returns the seconds until a verdict other than to go on, and that verdict.
fn verdict(peer: Side, observation: impl Fn(Duration, Instant) -> Observation) -> (u64, Result<bool, Loss>) {
    let start = aligned();
    watch(PeerMonitor::new(start, &TIMEOUTS), peer, |after| observation(after, start))
}

fn watch(
    mut monitor: PeerMonitor,
    peer: Side,
    observation: impl Fn(Duration) -> Observation,
) -> (u64, Result<bool, Loss>) {
    let start = monitor.checked;
    loop {
        let now = monitor.due();
        let verdict = monitor.check(peer, observation(now - start), &TIMEOUTS, now);
        monitor.on_checked(now, &TIMEOUTS);
        let after = (now - start).as_secs();
        if verdict != Ok(true) || after > 1000 {
            return (after, verdict);
        }
    }
}

#[test]
fn sessions_started_apart_share_check_ticks_and_are_checked_in_time() {
    let start = Instant::now() + 2 * SECOND;
    let monitors = (0..500).map(|millis| PeerMonitor::new(start + Duration::from_millis(millis), &TIMEOUTS));
    let due: Vec<_> = monitors.map(|monitor| (monitor.checked, monitor.due())).collect();
    let moments: std::collections::HashSet<_> = due.iter().map(|(_looked, due)| *due).collect();
    assert!(moments.len() <= 2, "{}", moments.len());
    let sixth = TIMEOUTS.dead_peer / 6;
    assert!(due.iter().all(|(checked, due)| (sixth * 7 / 8..=sixth).contains(&due.duration_since(*checked))));
}

#[test]
fn a_peer_that_acknowledges_nothing_is_dead_after_its_timeout() {
    assert_eq!(verdict(Side::Browser, |_after, _start| seen(UNACKED)), (30, Err(Loss::BrowserDead)));
    assert_eq!(verdict(Side::Upstream, |_after, _start| seen(UNACKED)), (30, Err(Loss::UpstreamDead)));
}

#[test]
fn bytes_sent_late_get_their_whole_timeout() {
    let late = |after: Duration, _start| seen(if after.as_secs() < 50 { SHUT } else { UNACKED });
    assert_eq!(verdict(Side::Browser, late), (80, Err(Loss::BrowserDead)));
}

#[test]
fn any_acknowledgement_keeps_a_peer_alive() {
    let slow = |after: Duration, _start| seen(Delivery { acknowledged: after.as_secs() / 20, ..UNACKED });
    assert_eq!(verdict(Side::Browser, slow), (30, Err(Loss::BrowserDead)), "its last packet came 99 s ago");
    let slow = |after: Duration, _start| {
        let quiet = Duration::from_secs(after.as_secs() % 20);
        seen(Delivery { acknowledged: after.as_secs() / 20, quiet, ..UNACKED })
    };
    assert_eq!(verdict(Side::Browser, slow), (1005, Ok(true)));
}

#[test]
fn a_closed_window_means_a_stalled_browser_but_only_a_busy_upstream() {
    assert_eq!(verdict(Side::Browser, |_after, _start| seen(SHUT)), (125, Err(Loss::BrowserStalled)));
    assert_eq!(verdict(Side::Upstream, |_after, _start| seen(SHUT)), (1005, Ok(true)));
}

#[test]
fn a_slow_reader_is_not_stalled() {
    let slow = |after: Duration, _start| seen(Delivery { acknowledged: after.as_secs() / 100, ..SHUT });
    assert_eq!(verdict(Side::Browser, slow), (1005, Ok(true)));
}

#[test]
fn an_unanswered_ping_ends_the_session_after_the_timeout_unless_bytes_move() {
    let silent = |_after, start| Observation { unanswered: Some(start), ..seen(IDLE) };
    assert_eq!(
        verdict(Side::Browser, silent),
        (35, Err(Loss::BrowserPongMissed)),
        "its kernel acknowledged the ping first"
    );
    let talking = |_after, start| Observation { unanswered: Some(start), received: true, ..seen(IDLE) };
    assert_eq!(verdict(Side::Browser, talking), (1005, Ok(true)));
    let loaded = |after: Duration, start| {
        let moving = Delivery { acknowledged: after.as_secs(), quiet: Duration::ZERO, ..UNACKED };
        Observation { unanswered: Some(start), ..seen(moving) }
    };
    assert_eq!(verdict(Side::Browser, loaded), (1005, Ok(true)));
}

/// The verdict on a browser whose heartbeat started the monitor, with 100 bytes acknowledged.
fn behind_heartbeat(observation: impl Fn(Duration) -> Delivery) -> (u64, Result<bool, Loss>) {
    let monitor = PeerMonitor::after_heartbeat(aligned(), &TIMEOUTS, 100, 0);
    watch(monitor, Side::Browser, |after| seen(observation(after)))
}

#[test]
fn after_a_heartbeat_the_first_check_is_due_when_its_ack_is_late() {
    assert_eq!(behind_heartbeat(|_after| UNACKED), (35, Err(Loss::BrowserDead)));
    assert_eq!(behind_heartbeat(|_after| Delivery { acknowledged: 107, ..IDLE }), (35, Ok(false)));
    let shut = |_after| Delivery { quiet: SECOND, ..SHUT };
    assert_eq!(behind_heartbeat(shut), (120, Err(Loss::BrowserStalled)));
}

#[test]
fn an_acknowledgement_after_a_heartbeat_counts_from_its_arrival() {
    let answered_at =
        |moment: u32| move |after: Duration| Delivery { acknowledged: 107, quiet: after - moment * SECOND, ..UNACKED };
    assert_eq!(behind_heartbeat(answered_at(1)), (35, Err(Loss::BrowserDead)));
    assert_eq!(behind_heartbeat(answered_at(20)), (50, Err(Loss::BrowserDead)));
}

#[test]
fn bytes_sent_after_a_heartbeat_get_their_whole_timeout_and_no_more() {
    let start = aligned();
    let start_monitor = || PeerMonitor::after_heartbeat(start, &TIMEOUTS, 100, 0);
    let mut monitor = start_monitor();
    monitor.on_sent(start + 5 * SECOND, &TIMEOUTS);
    assert_eq!(monitor.due() - start, 35 * SECOND, "its timeout is expired by then");
    let mut monitor = start_monitor();
    monitor.on_sent(start + 10 * SECOND, &TIMEOUTS);
    assert_eq!(monitor.due() - start, 15 * SECOND);
    let dead = |after: Duration| seen(Delivery { acknowledged: 107, quiet: after.saturating_sub(SECOND), ..UNACKED });
    assert_eq!(watch(monitor, Side::Browser, dead), (45, Err(Loss::BrowserDead)));
    let mut monitor = start_monitor();
    monitor.on_sent(start + 34 * SECOND, &TIMEOUTS);
    assert_eq!(monitor.due() - start, 35 * SECOND, "no check is postponed");
}

#[test]
fn monitoring_ends_when_nothing_is_in_flight() {
    assert_eq!(verdict(Side::Browser, |_after, _start| seen(IDLE)), (5, Ok(false)));
}
