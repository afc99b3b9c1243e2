//! Each heartbeat is acked only after a newer proof, in every mode.

use super::*;

const ROOM: Room = Room { browser: true, upstream: true };
const MS: Duration = Duration::from_millis(1);

fn policy(settings: HeartbeatSettings) -> Policy {
    Policy::new(settings, 7)
}

fn ping(policy: &mut Policy, now: Instant) -> PingTag {
    match policy.next(now, ROOM) {
        Some(Action::Ping(tag)) => tag,
        other => panic!("a ping was due, not {other:?}"),
    }
}

#[test]
fn a_silent_upstream_is_proved_alive_before_the_ack() {
    let (start, mut policy) = (Instant::now(), policy(HeartbeatSettings::default()));
    assert_eq!(policy.on_heartbeat(start, Capability::Silent), Disposition::Remove);
    let tag = ping(&mut policy, start);
    assert_eq!(policy.next(start + MS, ROOM), None);
    assert_eq!(policy.on_pong(&tag, start + 2 * MS), Pong::Proof(2 * MS));
    assert_eq!(policy.next(start + 2 * MS, ROOM), Some(Action::Ack(2 * MS)));
    assert_eq!(policy.next(start + 2 * MS, ROOM), None);
    assert!(policy.is_idle());
}

#[test]
fn heartbeat_during_an_outstanding_ping_waits_for_the_next_ping() {
    let (start, mut policy) = (Instant::now(), policy(HeartbeatSettings::default()));
    let _removed = policy.on_heartbeat(start, Capability::Silent);
    let first = ping(&mut policy, start);
    let _removed = policy.on_heartbeat(start + MS, Capability::Silent);
    assert_eq!(policy.next(start + MS, ROOM), None, "one ping at a time");
    let _proof = policy.on_pong(&first, start + 2 * MS);
    assert_eq!(policy.next(start + 2 * MS, ROOM), Some(Action::Ack(2 * MS)));
    let second = ping(&mut policy, start + 2 * MS);
    assert_eq!(policy.next(start + 3 * MS, ROOM), None, "the first pong proves nothing for the second heartbeat");
    let _proof = policy.on_pong(&second, start + 4 * MS);
    assert_eq!(policy.next(start + 4 * MS, ROOM), Some(Action::Ack(3 * MS)));
}

#[test]
fn stalled_upstream_is_counted_once_and_a_late_pong_still_acks() {
    let (start, mut policy) = (Instant::now(), policy(HeartbeatSettings::default()));
    let _removed = policy.on_heartbeat(start, Capability::Silent);
    let tag = ping(&mut policy, start);
    let stalled = start + HeartbeatSettings::default().stall_after;
    assert_eq!(policy.deadline(), Some(stalled));
    assert_eq!(policy.next(stalled - MS, ROOM), None);
    assert_eq!(policy.next(stalled, ROOM), Some(Action::Withheld(Withheld::UpstreamStalled)));
    assert_eq!((policy.next(stalled, ROOM), policy.deadline()), (None, None));
    let _proof = policy.on_pong(&tag, stalled + MS);
    assert_eq!(policy.next(stalled + MS, ROOM), Some(Action::Ack(HeartbeatSettings::default().stall_after + MS)));
}

#[test]
fn native_upstream_gets_no_sidecar_ack() {
    let (start, mut policy) = (Instant::now(), policy(HeartbeatSettings::default()));
    assert_eq!(policy.on_heartbeat(start, Capability::Native), Disposition::Forward);
    assert_eq!(policy.next(start, ROOM), None);
    assert_eq!(policy.on_native_ack(start + MS), Some(MS));
    assert_eq!((policy.next(start + Duration::from_secs(60), ROOM), policy.deadline()), (None, None));
    assert_eq!(policy.on_native_ack(start + MS), None, "no heartbeat waits for this ack");
}

#[test]
fn missing_native_ack_is_replaced_once_the_upstream_is_proved_alive() {
    let (start, mut policy) = (Instant::now(), policy(HeartbeatSettings::default()));
    let _forwarded = policy.on_heartbeat(start, Capability::Native);
    let late = start + HeartbeatSettings::default().native_deadline;
    assert_eq!(policy.next(late, ROOM), Some(Action::NativeAckOverdue));
    let tag = ping(&mut policy, late);
    let _proof = policy.on_pong(&tag, late + MS);
    assert_eq!(policy.next(late + MS, ROOM), Some(Action::NativeAckMissed));
    assert_eq!(policy.next(late + MS, ROOM), Some(Action::Ack(HeartbeatSettings::default().native_deadline + MS)));
}

#[test]
fn forwarded_heartbeats_stop_waiting_once_the_upstream_is_known_as_silent() {
    let (start, mut policy) = (Instant::now(), policy(HeartbeatSettings::default()));
    let _forwarded = policy.on_heartbeat(start, Capability::Unknown);
    assert_eq!(policy.next(start + MS, ROOM), None);
    policy.on_silent();
    let tag = ping(&mut policy, start + MS);
    let _proof = policy.on_pong(&tag, start + 2 * MS);
    let actions: Vec<_> = std::iter::from_fn(|| policy.next(start + 2 * MS, ROOM)).collect();
    assert_eq!(actions, [Action::NativeAckMissed, Action::Ack(2 * MS)]);
}

#[test]
fn lost_native_ack_affects_only_its_own_heartbeat() {
    let (start, mut policy) = (Instant::now(), policy(HeartbeatSettings::default()));
    let _lost = policy.on_heartbeat(start, Capability::Native);
    for beat in 1..=3 {
        let sent = start + beat * 600 * MS;
        let _forwarded = policy.on_heartbeat(sent, Capability::Native);
        assert_eq!(policy.on_native_ack(sent + MS), Some(MS));
    }
    let late = start + HeartbeatSettings::default().native_deadline;
    assert_eq!(policy.next(late, ROOM), Some(Action::NativeAckOverdue), "only the first heartbeat is left");
    let tag = ping(&mut policy, late);
    let _proof = policy.on_pong(&tag, late + MS);
    assert_eq!(policy.next(late + MS, ROOM), Some(Action::NativeAckMissed));
    assert_eq!(policy.next(late + MS, ROOM), Some(Action::Ack(HeartbeatSettings::default().native_deadline + MS)));
    assert_eq!(policy.next(late + MS, ROOM), None);
}

#[test]
fn heartbeats_faster_than_their_acks_are_answered_in_order() {
    let (start, mut policy) = (Instant::now(), policy(HeartbeatSettings::default()));
    let _forwarded = policy.on_heartbeat(start, Capability::Native);
    for beat in 1..=200 {
        let sent = start + beat * 25 * MS;
        let _forwarded = policy.on_heartbeat(sent, Capability::Native);
        assert_eq!(policy.on_native_ack(sent + MS), Some(26 * MS));
        assert_eq!(policy.next(sent + MS, ROOM), None);
    }
}

#[test]
fn native_ack_during_the_proof_cancels_the_sidecar_ack() {
    let (start, mut policy) = (Instant::now(), policy(HeartbeatSettings::default()));
    let _forwarded = policy.on_heartbeat(start, Capability::Unknown);
    let late = start + HeartbeatSettings::default().native_deadline;
    assert_eq!(policy.next(late, ROOM), Some(Action::NativeAckOverdue));
    let tag = ping(&mut policy, late);
    assert_eq!(policy.on_native_ack(late + MS), Some(HeartbeatSettings::default().native_deadline + MS));
    let _proof = policy.on_pong(&tag, late + 2 * MS);
    assert_eq!(policy.next(late + 2 * MS, ROOM), None);
}

#[test]
fn mode_forward_never_answers_and_counts_the_heartbeat_as_withheld() {
    let (start, mut policy) =
        (Instant::now(), policy(HeartbeatSettings { mode: Mode::Forward, ..HeartbeatSettings::default() }));
    assert_eq!(policy.on_heartbeat(start, Capability::Silent), Disposition::Forward);
    let late = start + HeartbeatSettings::default().native_deadline;
    assert_eq!(policy.next(late, ROOM), Some(Action::Withheld(Withheld::Policy)));
    assert_eq!(policy.next(late, ROOM), None);
}

#[test]
fn mode_answer_removes_heartbeats_to_a_native_upstream_too() {
    let (start, mut policy) =
        (Instant::now(), policy(HeartbeatSettings { mode: Mode::Answer, ..HeartbeatSettings::default() }));
    assert_eq!(policy.on_heartbeat(start, Capability::Native), Disposition::Remove);
}

#[test]
fn compressed_heartbeat_is_answered_after_a_proof_and_reports_no_missed_native_ack() {
    for mode in [Mode::Auto, Mode::Answer] {
        let (start, mut policy) = (Instant::now(), policy(HeartbeatSettings { mode, ..HeartbeatSettings::default() }));
        policy.on_compressed_heartbeat(start);
        let tag = ping(&mut policy, start);
        assert_eq!(policy.next(start + MS, ROOM), None);
        let _proof = policy.on_pong(&tag, start + 2 * MS);
        assert_eq!(policy.next(start + 2 * MS, ROOM), Some(Action::Ack(2 * MS)));
        assert_eq!(policy.next(start + Duration::from_secs(60), ROOM), None);
    }
    let (start, mut policy) =
        (Instant::now(), policy(HeartbeatSettings { mode: Mode::Forward, ..HeartbeatSettings::default() }));
    policy.on_compressed_heartbeat(start);
    assert!(policy.is_idle());
}

#[test]
fn proof_connection_acks_without_a_ping() {
    let settings = HeartbeatSettings { proof: Proof::Connection, ..HeartbeatSettings::default() };
    let (start, mut policy) = (Instant::now(), policy(settings));
    assert_eq!(policy.on_heartbeat(start, Capability::Silent), Disposition::Remove);
    assert_eq!(policy.next(start, ROOM), Some(Action::Ack(Duration::ZERO)));
}

#[test]
fn nothing_is_sent_without_room() {
    let none = Room { browser: false, upstream: false };
    let (start, mut policy) = (Instant::now(), policy(HeartbeatSettings::default()));
    let _removed = policy.on_heartbeat(start, Capability::Silent);
    assert_eq!(policy.next(start, none), None);
    let tag = ping(&mut policy, start + MS);
    let _proof = policy.on_pong(&tag, start + 2 * MS);
    assert_eq!(policy.next(start + 2 * MS, none), None);
    assert_eq!(policy.next(start + 3 * MS, ROOM), Some(Action::Ack(3 * MS)));
}

#[test]
fn nothing_is_sent_once_a_side_is_closing() {
    let (start, mut policy) = (Instant::now(), policy(HeartbeatSettings::default()));
    let _removed = policy.on_heartbeat(start, Capability::Silent);
    assert_eq!(policy.on_closing(true), 1, "the upstream closed before it was proved alive");
    assert_eq!((policy.next(start, ROOM), policy.deadline()), (None, None));
    assert_eq!(policy.on_closing(true), 0);
}

#[test]
fn flooded_heartbeats_share_the_newest_ack_in_bounded_memory() {
    let (start, mut policy) = (Instant::now(), policy(HeartbeatSettings::default()));
    let _removed = policy.on_heartbeat(start, Capability::Silent);
    let first = ping(&mut policy, start);
    for _heartbeat in 0..100_000 {
        let _removed = policy.on_heartbeat(start + MS, Capability::Silent);
    }
    assert_eq!(policy.pending.len(), MAX_PENDING);
    let _proof = policy.on_pong(&first, start + 2 * MS);
    assert_eq!(policy.next(start + 2 * MS, ROOM), Some(Action::Ack(2 * MS)));
    let second = ping(&mut policy, start + 2 * MS);
    let _proof = policy.on_pong(&second, start + 3 * MS);
    let acks = std::iter::from_fn(|| policy.next(start + 3 * MS, ROOM)).count();
    assert_eq!(acks, MAX_PENDING - 1);
}
