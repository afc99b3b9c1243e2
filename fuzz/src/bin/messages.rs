//! The peek into messages: a heartbeat, an ack and a type are what protobuf says, and nothing is read twice as two things.
#![no_main]

use heartbeat_sidecar::streamlit::messages::{
    BackType, FORWARD_PREFIX, Forward, ForwardType, MAX_HEARTBEAT, back, forward,
};
use heartbeat_sidecar_fuzz::protobuf::{self, last_member};
use libfuzzer_sys::fuzz_target;

/// `BackMsg.app_heartbeat`.
const HEARTBEAT: u32 = 17;
/// `ForwardMsg.heartbeat_ack`.
const ACK: u32 = 26;

fuzz_target!(|bytes: &[u8]| {
    let short = bytes.len() <= MAX_HEARTBEAT;
    let (last, clean) = last_member(bytes, protobuf::BACK);
    let is_heartbeat = short && clean && last == Some(HEARTBEAT);
    assert_eq!(back(bytes, true) == BackType::AppHeartbeat, is_heartbeat, "{last:?}, clean: {clean}");
    assert_ne!(back(bytes, false), BackType::AppHeartbeat, "a part of a message is no heartbeat");
    let (last, clean) = last_member(bytes, protobuf::FORWARD);
    let is_ack = forward(bytes, true).kind() == ForwardType::HeartbeatAck;
    if short {
        assert_eq!(is_ack, clean && last == Some(ACK), "{last:?}, clean: {clean}");
        assert_eq!(
            forward(bytes, true).kind() == ForwardType::Unknown,
            last.is_none() || (last == Some(ACK) && !clean)
        );
    } else {
        assert!(!is_ack, "no ack is that long");
    }
    if let Forward::NewSession(Some(announcement)) = forward(bytes, true) {
        assert!(announcement.version.len() < bytes.len());
    }
    if bytes.len() > FORWARD_PREFIX {
        let (front, whole) = (forward(&bytes[..FORWARD_PREFIX], false).kind(), forward(bytes, true).kind());
        assert!(front == whole || front == ForwardType::Unknown, "{front:?} is not {whole:?}");
    }
});
