//! The ack's bytes as old and new frontends read them, and recorded sessions as the tap reads them.

use std::path::PathBuf;

use heartbeat_sidecar::streamlit::ack::{AckForm, COMPATIBLE, PLAIN};
use heartbeat_sidecar::streamlit::handshake::SessionId;
use heartbeat_sidecar::streamlit::messages::{self, BackType, ForwardContent, ForwardType};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use protox::Compiler;
use protox::file::{File, FileResolver};

use crate::support::frame::Frame;

/// ForwardMsg before 1.55.0: no field 26.
const OLD: &str = r#"
    syntax = "proto3";
    message ForwardMsg {
      string hash = 1;
      oneof type { bytes new_session = 4; bytes delta = 5; SessionEvent session_event = 10; }
    }
    message SessionEvent {
      oneof type { bool script_changed_on_disk = 1; bool script_was_manually_stopped = 2; string script_error = 3; }
    }
"#;

/// ForwardMsg from 1.55.0 on.
const NEW: &str = r#"
    syntax = "proto3";
    message ForwardMsg {
      string hash = 1;
      oneof type { bytes new_session = 4; bytes delta = 5; SessionEvent session_event = 10; bool heartbeat_ack = 26; }
    }
    message SessionEvent {
      oneof type { bool script_changed_on_disk = 1; bool script_was_manually_stopped = 2; string script_error = 3; }
    }
"#;

/// Serves one text for every file name.
struct Text(&'static str);

impl FileResolver for Text {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        File::from_source(name, self.0)
    }
}

fn forward_msg(schema: &'static str) -> MessageDescriptor {
    let mut compiler = Compiler::with_file_resolver(Text(schema));
    let files = compiler.open_file("forward.proto").unwrap().file_descriptor_set();
    let pool = DescriptorPool::from_file_descriptor_set(files).unwrap();
    pool.get_message_by_name("ForwardMsg").unwrap()
}

/// The member of the oneof that a frontend of this schema sees, and the decoded message.
fn read(schema: &'static str, bytes: &[u8]) -> (Option<String>, DynamicMessage) {
    let descriptor = forward_msg(schema);
    let message = DynamicMessage::decode(descriptor.clone(), bytes).unwrap();
    let kind = descriptor.oneofs().find(|oneof| oneof.name() == "type").unwrap();
    let member = kind.fields().find(|field| message.has_field(field)).map(|field| field.name().to_owned());
    (member, message)
}

#[test]
fn the_compatible_ack_is_an_ack_to_new_frontends_and_an_empty_event_to_old_ones() {
    assert_eq!(COMPATIBLE, [0x52, 0x00, 0xd0, 0x01, 0x01]);
    let (member, message) = read(NEW, &COMPATIBLE);
    assert_eq!(member.as_deref(), Some("heartbeat_ack"));
    assert_eq!(message.get_field_by_name("heartbeat_ack").unwrap().as_bool(), Some(true));
    let (member, message) = read(OLD, &COMPATIBLE);
    assert_eq!(member.as_deref(), Some("session_event"));
    let event = message.get_field_by_name("session_event").unwrap();
    let event = event.as_message().unwrap();
    assert_eq!(event.fields().count(), 0, "the event is empty");
}

#[test]
fn the_ack_must_be_the_last_member_on_the_wire() {
    let (member, _message) = read(NEW, &[0xd0, 0x01, 0x01, 0x52, 0x00]);
    assert_eq!(member.as_deref(), Some("session_event"), "the last one on the wire wins");
}

#[test]
fn a_plain_ack_has_no_known_type_for_old_frontends() {
    assert_eq!(PLAIN, [0xd0, 0x01, 0x01]);
    assert_eq!(read(NEW, &PLAIN).0.as_deref(), Some("heartbeat_ack"));
    assert_eq!(read(OLD, &PLAIN).0, None);
}

#[test]
fn an_ack_is_one_unmasked_binary_frame() {
    for (form, message) in [(AckForm::Compatible, &COMPATIBLE[..]), (AckForm::Plain, &PLAIN)] {
        let (frame, length) = Frame::parse(form.frame()).unwrap();
        assert_eq!(length, form.frame().len());
        assert!(frame.is(0x82, message) && !frame.masked);
    }
}

/// A recorded message: `C` from the client or `S` from the server, and its payload.
struct Record {
    from: u8,
    payload: Vec<u8>,
}

/// What the tap reads in a recorded session.
#[derive(Debug, Default)]
struct Seen {
    messages: usize,
    heartbeats: usize,
    acks: usize,
    unknown: usize,
    versions: Vec<String>,
    session_ids: Vec<SessionId>,
    script_runs: (usize, usize),
    deltas: usize,
    reruns: usize,
}

impl Seen {
    fn back(&mut self, payload: &[u8]) {
        self.messages += 1;
        match messages::parse_back(payload, true) {
            BackType::AppHeartbeat => self.heartbeats += 1,
            BackType::RerunScript => self.reruns += 1,
            BackType::Unknown => self.unknown += 1,
            _ => {}
        }
    }

    fn forward(&mut self, payload: &[u8]) {
        self.messages += 1;
        let front = &payload[..payload.len().min(messages::FORWARD_PREFIX_BYTES)];
        let read = messages::parse_forward(front, front.len() == payload.len());
        // The whole message is classified like its prefix.
        assert_eq!(read.kind(), messages::parse_forward(payload, true).kind());
        match read {
            ForwardContent::NewSession(announcement) => {
                let announcement = announcement.expect("the front holds it");
                self.versions.push(announcement.version);
                self.session_ids.push(announcement.session_id.expect("a UUID"));
                self.script_runs.0 += 1;
            }
            ForwardContent::ScriptFinished(_) => self.script_runs.1 += 1,
            ForwardContent::Other(ForwardType::HeartbeatAck) => self.acks += 1,
            ForwardContent::Other(ForwardType::Delta) => self.deltas += 1,
            ForwardContent::Other(ForwardType::Unknown) => panic!("no name for {payload:02x?}"),
            ForwardContent::Other(_) => {}
        }
    }
}

fn records(mut bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let [from, rest @ ..] = bytes {
        let (_seconds, rest) = rest.split_at(8);
        let (length, rest) = rest.split_first_chunk().unwrap();
        let (payload, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        records.push(Record { from: *from, payload: payload.to_vec() });
        bytes = rest;
    }
    records
}

/// Every recorded session with the version in its name.
fn captures() -> Vec<(String, Vec<Record>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.to_owned();
            let version = name.strip_prefix("session-")?.strip_suffix(".bin")?.to_owned();
            Some((version, records(&std::fs::read(&path).unwrap())))
        })
        .collect()
}

#[test]
fn recorded_sessions_are_classified_correctly() {
    let captures = captures();
    assert!(captures.len() >= 8, "only {} recordings", captures.len());
    for (version, records) in captures {
        let mut seen = Seen::default();
        for Record { from, payload } in &records {
            match from {
                b'C' => seen.back(payload),
                b'S' => seen.forward(payload),
                other => panic!("{version}: a message from {other}"),
            }
        }
        println!("{version}: {seen:?}");
        let native = answers_natively(&version);
        assert_eq!(seen.messages, records.len());
        assert_eq!(seen.heartbeats, 4, "{version}");
        assert_eq!(seen.acks, if native { 4 } else { 0 }, "{version}");
        assert_eq!(seen.unknown, 2, "{version}: the unknown field and the empty message");
        assert!(seen.reruns >= 2, "{version}");
        assert!(!seen.versions.is_empty() && seen.versions.iter().all(|told| *told == version), "{version}: {seen:?}");
        assert!(seen.session_ids.iter().all(|id| *id == seen.session_ids[0]), "{version}");
        assert!(seen.script_runs.0 >= 2 && seen.script_runs.1 >= 2, "{version}");
        assert!(seen.deltas >= 2, "{version}");
    }
}

fn answers_natively(version: &str) -> bool {
    let minor: u32 = version.split('.').nth(1).unwrap().parse().unwrap();
    minor >= 55
}
