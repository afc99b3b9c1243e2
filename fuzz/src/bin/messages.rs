//! Message types: heartbeats, acks and types are those of protobuf, and a prefix never gives another type.
#![no_main]

use heartbeat_sidecar::streamlit::messages::{
    BackType, FORWARD_PREFIX_BYTES, ForwardContent, ForwardType, MAX_HEARTBEAT_BYTES, parse_back, parse_forward,
};
use heartbeat_sidecar_fuzz::protobuf::{self, last_member};
use libfuzzer_sys::fuzz_target;

/// `BackMsg.app_heartbeat`.
const HEARTBEAT: u32 = 17;
/// `ForwardMsg.heartbeat_ack`.
const ACK: u32 = 26;

fuzz_target!(|bytes: &[u8]| {
    let short = bytes.len() <= MAX_HEARTBEAT_BYTES;
    let (last, clean) = last_member(bytes, protobuf::BACK);
    let is_heartbeat = short && clean && last == Some(HEARTBEAT);
    assert_eq!(parse_back(bytes, true) == BackType::AppHeartbeat, is_heartbeat, "{last:?}, clean: {clean}");
    assert_ne!(parse_back(bytes, false), BackType::AppHeartbeat, "a prefix is not a heartbeat");
    let (last, clean) = last_member(bytes, protobuf::FORWARD);
    let is_ack = parse_forward(bytes, true).kind() == ForwardType::HeartbeatAck;
    if short {
        assert_eq!(is_ack, clean && last == Some(ACK), "{last:?}, clean: {clean}");
        assert_eq!(
            parse_forward(bytes, true).kind() == ForwardType::Unknown,
            last.is_none() || (last == Some(ACK) && !clean)
        );
    } else {
        assert!(!is_ack, "an ack is not that long");
    }
    if let ForwardContent::NewSession(Some(announcement)) = parse_forward(bytes, true) {
        assert!(announcement.version.len() < bytes.len());
    }
    if bytes.len() > FORWARD_PREFIX_BYTES {
        let (front, whole) =
            (parse_forward(&bytes[..FORWARD_PREFIX_BYTES], false).kind(), parse_forward(bytes, true).kind());
        assert!(front == whole || front == ForwardType::Unknown, "{front:?} is not {whole:?}");
    }
});
