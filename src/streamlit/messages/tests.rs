//! Messages have the type that protobuf gives them; nothing else counts as a heartbeat or an ack.

use proptest::strategy::Strategy as _;

use super::*;

/// A heartbeat is everything that Python's protobuf parses as one.
#[test]
fn heartbeat_is_recognised_in_every_encoding_that_a_server_accepts() {
    let spellings: &[&[u8]] = &[
        &[0x88, 0x01, 0x01],
        &[0x88, 0x01, 0x00],
        &[0x88, 0x01, 0x81, 0x00],
        &[0x88, 0x01, 0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00],
        &[0x88, 0x01, 0x02],
        &[0x88, 0x81, 0x00, 0x01],
        &[0xa0, 0x06, 0x01, 0x88, 0x01, 0x01],
        &[0x88, 0x01, 0x01, 0xa0, 0x06, 0x01],
        &[0x6a, 0x01, b'x', 0x88, 0x01, 0x01],
        &[0x5a, 0x00, 0x88, 0x01, 0x01],
        &[0x88, 0x01, 0x01, 0x88, 0x01, 0x01],
    ];
    for spelling in spellings {
        assert_eq!(parse_back(spelling, true), BackType::AppHeartbeat, "{spelling:02x?}");
    }
}

#[test]
fn message_that_a_server_does_not_accept_as_a_heartbeat_is_not_one() {
    let groups = [vec![0x0b; 101], vec![0x0c; 101], vec![0x88, 0x01, 0x01]].concat();
    let long = [vec![0x88, 0x01, 0x01], vec![0x6a, 62], vec![b'x'; 62]].concat();
    let others: &[&[u8]] = &[
        &[],
        &[0x88, 0x01],
        &[0x88],
        &[0x8a, 0x01, 0x00],
        &[0x8d, 0x01, 0, 0, 0, 0],
        &[0x88, 0x01, 0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00],
        &[0x88, 0x01, 0x01, 0x5a, 0x00],
        &[0x88, 0x01, 0x01, 0x38],
        &groups,
        &long,
    ];
    for other in others {
        assert_ne!(parse_back(other, true), BackType::AppHeartbeat, "{other:02x?}");
    }
    assert_ne!(parse_back(&[0x88, 0x01, 0x01], false), BackType::AppHeartbeat, "a prefix only");
}

#[test]
fn long_delta_is_identified_by_its_prefix() {
    let mut message = vec![0x0a, 32];
    message.extend([b'h'; 32]);
    message.extend([0x12, 0x02, 0x20, 0x00, 0x2a, 0x80, 0x80, 0x40]);
    assert_eq!(parse_forward(&message, false), ForwardContent::Other(ForwardType::Delta));
}

#[test]
fn parsing_stops_after_the_maximum_number_of_fields() {
    for field in [[0x78, 0x01], [0x0a, 0x00]] {
        let fields = field.repeat(MAX_FIELDS);
        let named = [&fields, &[0x52, 0x00][..]].concat();
        assert_eq!(parse_forward(&named, true).kind(), ForwardType::Unknown);
        assert_eq!(parse_forward(&named[2..], true).kind(), ForwardType::SessionEvent);
    }
}

#[test]
fn an_ack_counts_only_as_a_whole_message() {
    assert_eq!(parse_forward(&[0xd0, 0x01, 0x01], true).kind(), ForwardType::HeartbeatAck);
    assert_eq!(parse_forward(&[0x52, 0x00, 0xd0, 0x01, 0x01], true).kind(), ForwardType::HeartbeatAck);
    assert_eq!(parse_forward(&[0xd0, 0x01, 0x01], false).kind(), ForwardType::Unknown);
    assert_eq!(parse_forward(&[0xd0, 0x01, 0x01, 0x52, 0x00], true).kind(), ForwardType::SessionEvent);
}

#[test]
fn script_finished_carries_the_result_of_the_run() {
    let ends = [(0, ScriptResult::Success), (1, ScriptResult::CompileError), (2, ScriptResult::EarlyForRerun)];
    for (status, result) in ends {
        assert_eq!(parse_forward(&[0x30, status], true), ForwardContent::ScriptFinished(result));
    }
    assert_eq!(parse_forward(&[0x30, 3], true), ForwardContent::ScriptFinished(ScriptResult::Success));
    assert_eq!(parse_forward(&[0x30, 9], true), ForwardContent::ScriptFinished(ScriptResult::Other));
}

#[test]
fn peek_forward_identifies_a_delta_but_not_a_new_session() {
    let message =
        |key: u8| [&[0x0a, 32][..], &[b'h'; 32], &[0x12, 0x02, 0x20, 0x00, key, 0x80, 0x01], &[0; 128]].concat();
    assert_eq!(peek_forward(&message(0x2a)), Some(ForwardType::Delta));
    assert_eq!(peek_forward(&message(0x22)), None, "new_session");
    assert_eq!(peek_forward(&message(0x2a)[..MAX_HEARTBEAT_BYTES]), None, "another member might follow");
}

/// Fields as they come before a member, then random bytes.
fn fields() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
    let field = (0x08_u8..0x80, proptest::collection::vec(0_u8.., 0..40))
        .prop_map(|(key, value)| [&[key & !0x7 | 2, value.len() as u8][..], &value].concat());
    let rest = proptest::collection::vec(0_u8.., 0..120);
    (proptest::collection::vec(field, 0..6), rest).prop_map(|(fields, rest)| [fields.concat(), rest].concat())
}

proptest::proptest! {
    #[test]
    fn peek_forward_agrees_with_parse_forward(message in fields(), whole: bool) {
        if let Some(kind) = peek_forward(&message) {
            proptest::prop_assert_eq!(parse_forward(&message, whole), ForwardContent::Other(kind));
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes: Vec<u8>, whole: bool) {
        let _named = (parse_back(&bytes, whole), parse_forward(&bytes, whole), peek_forward(&bytes));
    }
}
