//! Identifies the type of a BackMsg or ForwardMsg from a bounded prefix of its bytes.
//!
//! Invariant: nothing is allocated from a declared length. A message that cannot be parsed is `Unknown`, never an
//! error: the endpoints validate it.

use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};

use super::handshake::SessionId;
use super::proto::Initialize;

/// Longest BackMsg that can count as a heartbeat, in bytes.
pub const MAX_HEARTBEAT: usize = 64;

/// The heartbeat as frontends encode it; equivalent encodings count too.
const HEARTBEAT: [u8; 3] = [0x88, 0x01, 0x01];

/// Length in bytes of the prefix that identifies a ForwardMsg. In a `new_session` it holds version and session id
/// (seen: 214 to 262 bytes in Streamlit 1.17 to 1.67).
pub const FORWARD_PREFIX: usize = 1024;

/// Length in bytes of the prefix that identifies a BackMsg.
pub const BACK_PREFIX: usize = MAX_HEARTBEAT;

/// Most fields that are parsed to find a member: as many as fit into the longest heartbeat, so that no invalid message
/// costs more.
const MAX_FIELDS: usize = MAX_HEARTBEAT / 2;

/// Most fields that [`glance`] reads: Streamlit sends a hash and the metadata before a member.
const GLANCE_FIELDS: usize = 3;

/// `NewSession.initialize`.
const INITIALIZE: u32 = 1;

/// Declares the closed set of a oneof's members: variant, field number, wire type, name in the schema.
macro_rules! oneof_members {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $tag:literal $wire:ident $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        pub enum $name { $($variant,)* Unknown }

        impl $name {
            /// Every member, `Unknown` last; the position of a member is its discriminant.
            pub const ALL: &[Self] = &[$(Self::$variant,)* Self::Unknown];

            /// The member's name in Streamlit's schema, or `unknown`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* Self::Unknown => "unknown" }
            }

            fn member(tag: u32, wire: WireType) -> Option<Self> {
                match (tag, wire) {
                    $(($tag, WireType::$wire) => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

oneof_members! {
    /// The members of `BackMsg.type` in Streamlit 1.12 to 1.67.
    BackType {
        ClearCache = 5 Varint "clear_cache",
        SetRunOnSave = 6 Varint "set_run_on_save",
        StopScript = 7 Varint "stop_script",
        RerunScript = 11 LengthDelimited "rerun_script",
        LoadGitInfo = 12 Varint "load_git_info",
        DebugDisconnectWebsocket = 14 Varint "debug_disconnect_websocket",
        DebugShutdownRuntime = 15 Varint "debug_shutdown_runtime",
        FileUrlsRequest = 16 LengthDelimited "file_urls_request",
        AppHeartbeat = 17 Varint "app_heartbeat",
        DeferredFileRequest = 18 LengthDelimited "deferred_file_request",
        BackendOperationRequest = 19 LengthDelimited "backend_operation_request",
    }
}

oneof_members! {
    /// The members of `ForwardMsg.type` in Streamlit 1.12 to 1.67.
    ForwardType {
        NewSession = 4 LengthDelimited "new_session",
        Delta = 5 LengthDelimited "delta",
        ScriptFinished = 6 Varint "script_finished",
        SessionStatusChanged = 9 LengthDelimited "session_status_changed",
        SessionEvent = 10 LengthDelimited "session_event",
        RefHash = 11 LengthDelimited "ref_hash",
        PageInfoChanged = 12 LengthDelimited "page_info_changed",
        PageConfigChanged = 13 LengthDelimited "page_config_changed",
        GitInfoChanged = 14 LengthDelimited "git_info_changed",
        PageNotFound = 15 LengthDelimited "page_not_found",
        PagesChanged = 16 LengthDelimited "pages_changed",
        PageProfile = 18 LengthDelimited "page_profile",
        FileUrlsResponse = 19 LengthDelimited "file_urls_response",
        ParentMessage = 20 LengthDelimited "parent_message",
        AutoRerun = 21 LengthDelimited "auto_rerun",
        Logo = 22 LengthDelimited "logo",
        Navigation = 23 LengthDelimited "navigation",
        AuthRedirect = 24 LengthDelimited "auth_redirect",
        DeferredFileResponse = 25 LengthDelimited "deferred_file_response",
        HeartbeatAck = 26 Varint "heartbeat_ack",
        BackendOperationResponse = 27 LengthDelimited "backend_operation_response",
        StopAutoRerun = 28 LengthDelimited "stop_auto_rerun",
    }
}

/// How a script run ended (`ForwardMsg.script_finished`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScriptResult {
    /// The whole script, or a fragment of it, ran to its end.
    Success,
    /// The script could not be compiled.
    CompileError,
    /// The run was stopped early because the user requested the next one.
    EarlyForRerun,
    /// A status that Streamlit 1.67 does not have.
    Other,
}

impl ScriptResult {
    /// Every result; the position of a result is its discriminant.
    pub const ALL: &[Self] = &[Self::Success, Self::CompileError, Self::EarlyForRerun, Self::Other];

    /// The value of the label `result`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::CompileError => "compile_error",
            Self::EarlyForRerun => "early_for_rerun",
            Self::Other => "other",
        }
    }

    fn from_wire(status: u64) -> Self {
        match status {
            0 | 3 => Self::Success,
            1 => Self::CompileError,
            2 => Self::EarlyForRerun,
            _ => Self::Other,
        }
    }
}

/// The part of a ForwardMsg that matters to the sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forward {
    /// A script run starts; the announcement, if the prefix held it. Boxed, since all other messages are small and far
    /// more frequent.
    NewSession(Option<Box<Announcement>>),
    /// A script run has ended.
    ScriptFinished(ScriptResult),
    /// Any other member, by its type.
    Other(ForwardType),
}

impl Forward {
    /// The oneof member that the message carries.
    pub fn kind(&self) -> ForwardType {
        match self {
            Self::NewSession(_) => ForwardType::NewSession,
            Self::ScriptFinished(_) => ForwardType::ScriptFinished,
            Self::Other(kind) => *kind,
        }
    }
}

/// The server and session that a `new_session` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The server's version as it reports it, such as `1.53.1`.
    pub version: String,
    /// The session's id, if it is valid.
    pub session_id: Option<SessionId>,
}

/// Identifies the type of a browser's message; `whole`: `prefix` is all of it.
///
/// Returns `AppHeartbeat` only for a whole message of at most [`MAX_HEARTBEAT`] bytes that parses to its end.
/// Its last oneof member must be field 17 as a varint.
pub fn back(prefix: &[u8], whole: bool) -> BackType {
    if whole && prefix == HEARTBEAT {
        return BackType::AppHeartbeat;
    }
    let (last, clean) = last_member(prefix, BackType::member);
    let kind = last.map_or(BackType::Unknown, |found| found.member);
    let readable = whole && clean && prefix.len() <= MAX_HEARTBEAT;
    if kind == BackType::AppHeartbeat && !readable { BackType::Unknown } else { kind }
}

/// Identifies the type of a server's message and reads what matters of it; `whole`: `prefix` is all of it.
///
/// Returns `HeartbeatAck` only for a whole message that parses to its end.
pub fn forward(prefix: &[u8], whole: bool) -> Forward {
    let (last, clean) = last_member(prefix, ForwardType::member);
    let Some(found) = last else {
        return Forward::Other(ForwardType::Unknown);
    };
    match found.member {
        ForwardType::NewSession => Forward::NewSession(announcement(found.value).map(Box::new)),
        ForwardType::ScriptFinished => {
            let mut value = found.value;
            let status = prost::encoding::decode_varint(&mut value).unwrap_or(u64::MAX);
            Forward::ScriptFinished(ScriptResult::from_wire(status))
        }
        ForwardType::HeartbeatAck if !(whole && clean) => Forward::Other(ForwardType::Unknown),
        kind => Forward::Other(kind),
    }
}

/// Fast path for [`Forward::Other`]: the message is longer than a heartbeat and has its member after a few short
/// fields, as nearly all of Streamlit's do. `None`: use [`forward`].
#[inline]
pub fn glance(mut message: &[u8]) -> Option<ForwardType> {
    if message.len() <= MAX_HEARTBEAT {
        return None;
    }
    for _field in 0..GLANCE_FIELDS {
        let [key @ 0x08..0x80, length, rest @ ..] = message else { return None };
        if key & 0x7 != WireType::LengthDelimited as u8 {
            return None;
        }
        match ForwardType::member(u32::from(key >> 3), WireType::LengthDelimited) {
            Some(ForwardType::NewSession) => return None,
            None if *length < 0x80 => message = rest.get(usize::from(*length)..)?,
            member => return member,
        }
    }
    None
}

/// A member of the oneof and the bytes after its key.
struct Found<'a, M> {
    member: M,
    value: &'a [u8],
}

/// Parses the top-level fields. The last oneof member wins, as in every protobuf parser. A message longer than a
/// heartbeat is identified by its first one, which saves parsing the rest. The flag: the bytes parsed to their end.
fn last_member<M>(bytes: &[u8], member: impl Fn(u32, WireType) -> Option<M>) -> (Option<Found<'_, M>>, bool) {
    let mut rest = bytes;
    let mut last = None;
    for _field in 0..MAX_FIELDS {
        if rest.is_empty() {
            return (last, true);
        }
        let Ok((tag, wire)) = decode_key(&mut rest) else {
            return (last, false);
        };
        if let Some(member) = member(tag, wire) {
            last = Some(Found { member, value: rest });
            if bytes.len() > MAX_HEARTBEAT {
                return (last, false);
            }
        }
        if skip_field(wire, tag, &mut rest, DecodeContext::default()).is_err() {
            return (last, false);
        }
    }
    (last, rest.is_empty())
}

/// Reads `NewSession.initialize` from the bytes after the key of `new_session`.
fn announcement(value: &[u8]) -> Option<Announcement> {
    let initialize = first_field(delimited(value)?, INITIALIZE)?;
    let initialize = Initialize::decode(initialize).ok()?;
    Some(Announcement {
        version: initialize.environment_info?.streamlit_version,
        session_id: SessionId::parse(&initialize.session_id),
    })
}

/// The content of the first field `wanted`, if it is complete.
fn first_field(mut message: &[u8], wanted: u32) -> Option<&[u8]> {
    while !message.is_empty() {
        let (tag, wire) = decode_key(&mut message).ok()?;
        if tag == wanted && wire == WireType::LengthDelimited {
            let mut value = message;
            let length = usize::try_from(prost::encoding::decode_varint(&mut value).ok()?).ok()?;
            return value.get(..length);
        }
        skip_field(wire, tag, &mut message, DecodeContext::default()).ok()?;
    }
    None
}

/// The available part of a length-delimited value: a prefix may end inside it.
fn delimited(mut value: &[u8]) -> Option<&[u8]> {
    let length = usize::try_from(prost::encoding::decode_varint(&mut value).ok()?).ok()?;
    Some(&value[..length.min(value.len())])
}

#[cfg(test)]
mod tests {
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
            assert_eq!(back(spelling, true), BackType::AppHeartbeat, "{spelling:02x?}");
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
            assert_ne!(back(other, true), BackType::AppHeartbeat, "{other:02x?}");
        }
        assert_ne!(back(&[0x88, 0x01, 0x01], false), BackType::AppHeartbeat, "a prefix only");
    }

    #[test]
    fn long_delta_is_identified_by_its_prefix() {
        let mut message = vec![0x0a, 32];
        message.extend([b'h'; 32]);
        message.extend([0x12, 0x02, 0x20, 0x00, 0x2a, 0x80, 0x80, 0x40]);
        assert_eq!(forward(&message, false), Forward::Other(ForwardType::Delta));
    }

    #[test]
    fn parsing_stops_after_the_maximum_number_of_fields() {
        for field in [[0x78, 0x01], [0x0a, 0x00]] {
            let fields = field.repeat(MAX_FIELDS);
            let named = [&fields, &[0x52, 0x00][..]].concat();
            assert_eq!(forward(&named, true).kind(), ForwardType::Unknown);
            assert_eq!(forward(&named[2..], true).kind(), ForwardType::SessionEvent);
        }
    }

    #[test]
    fn an_ack_counts_only_as_a_whole_message() {
        assert_eq!(forward(&[0xd0, 0x01, 0x01], true).kind(), ForwardType::HeartbeatAck);
        assert_eq!(forward(&[0x52, 0x00, 0xd0, 0x01, 0x01], true).kind(), ForwardType::HeartbeatAck);
        assert_eq!(forward(&[0xd0, 0x01, 0x01], false).kind(), ForwardType::Unknown);
        assert_eq!(forward(&[0xd0, 0x01, 0x01, 0x52, 0x00], true).kind(), ForwardType::SessionEvent);
    }

    #[test]
    fn script_finished_carries_the_result_of_the_run() {
        let ends = [(0, ScriptResult::Success), (1, ScriptResult::CompileError), (2, ScriptResult::EarlyForRerun)];
        for (status, result) in ends {
            assert_eq!(forward(&[0x30, status], true), Forward::ScriptFinished(result));
        }
        assert_eq!(forward(&[0x30, 3], true), Forward::ScriptFinished(ScriptResult::Success));
        assert_eq!(forward(&[0x30, 9], true), Forward::ScriptFinished(ScriptResult::Other));
    }

    #[test]
    fn glance_identifies_a_delta_but_not_a_new_session() {
        let message =
            |key: u8| [&[0x0a, 32][..], &[b'h'; 32], &[0x12, 0x02, 0x20, 0x00, key, 0x80, 0x01], &[0; 128]].concat();
        assert_eq!(glance(&message(0x2a)), Some(ForwardType::Delta));
        assert_eq!(glance(&message(0x22)), None, "new_session");
        assert_eq!(glance(&message(0x2a)[..MAX_HEARTBEAT]), None, "another member might follow");
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
        fn glance_agrees_with_forward(message in fields(), whole: bool) {
            if let Some(kind) = glance(&message) {
                proptest::prop_assert_eq!(forward(&message, whole), Forward::Other(kind));
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>, whole: bool) {
            let _named = (back(&bytes, whole), forward(&bytes, whole), glance(&bytes));
        }
    }
}
