//! Identifies the type of a BackMsg or ForwardMsg from a bounded prefix of its bytes.
//!
//! Invariant: nothing is allocated from a declared length. A message that cannot be parsed is `Unknown`, never an
//! error: the endpoints validate it.

use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};

use super::handshake::SessionId;
use super::proto::Initialize;

/// Longest BackMsg that can count as a heartbeat, in bytes.
pub const MAX_HEARTBEAT_BYTES: usize = 64;

/// The heartbeat as frontends encode it; equivalent encodings count too.
const HEARTBEAT: [u8; 3] = [0x88, 0x01, 0x01];

/// Length in bytes of the prefix that identifies a ForwardMsg. In a `new_session` it holds version and session id
/// (seen: 214 to 262 bytes in Streamlit 1.17 to 1.67).
pub const FORWARD_PREFIX_BYTES: usize = 1024;

/// Length in bytes of the prefix that identifies a BackMsg.
pub const BACK_PREFIX_BYTES: usize = MAX_HEARTBEAT_BYTES;

/// Most fields that are parsed to find a member: as many as fit into the longest heartbeat, so that no invalid message
/// costs more.
const MAX_FIELDS: usize = MAX_HEARTBEAT_BYTES / 2;

/// Most fields that [`peek_forward`] reads: Streamlit sends a hash and the metadata before a member.
const PEEK_FIELDS: usize = 3;

/// `NewSession.initialize`.
const INITIALIZE_FIELD: u32 = 1;

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
pub enum ForwardContent {
    /// A script run starts; the announcement, if the prefix held it. Boxed, since all other messages are small and far
    /// more frequent.
    NewSession(Option<Box<Announcement>>),
    /// A script run has ended.
    ScriptFinished(ScriptResult),
    /// Any other member, by its type.
    Other(ForwardType),
}

impl ForwardContent {
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
/// Returns `AppHeartbeat` only for a whole message of at most [`MAX_HEARTBEAT_BYTES`] bytes that parses to its end.
/// Its last oneof member must be field 17 as a varint.
pub fn parse_back(prefix: &[u8], whole: bool) -> BackType {
    if whole && prefix == HEARTBEAT {
        return BackType::AppHeartbeat;
    }
    let (last, is_complete) = last_member(prefix, BackType::member);
    let kind = last.map_or(BackType::Unknown, |found| found.member);
    let readable = whole && is_complete && prefix.len() <= MAX_HEARTBEAT_BYTES;
    if kind == BackType::AppHeartbeat && !readable { BackType::Unknown } else { kind }
}

/// Identifies the type of a server's message and reads what matters of it; `whole`: `prefix` is all of it.
///
/// Returns `HeartbeatAck` only for a whole message that parses to its end.
pub fn parse_forward(prefix: &[u8], whole: bool) -> ForwardContent {
    let (last, is_complete) = last_member(prefix, ForwardType::member);
    let Some(found) = last else {
        return ForwardContent::Other(ForwardType::Unknown);
    };
    match found.member {
        ForwardType::NewSession => ForwardContent::NewSession(announcement(found.value).map(Box::new)),
        ForwardType::ScriptFinished => {
            let mut value = found.value;
            let status = prost::encoding::decode_varint(&mut value).unwrap_or(u64::MAX);
            ForwardContent::ScriptFinished(ScriptResult::from_wire(status))
        }
        ForwardType::HeartbeatAck if !(whole && is_complete) => ForwardContent::Other(ForwardType::Unknown),
        kind => ForwardContent::Other(kind),
    }
}

/// Fast path for [`ForwardContent::Other`]: the message is longer than a heartbeat and has its member after a few short
/// fields, as nearly all of Streamlit's do. `None`: use [`parse_forward`].
#[inline]
pub fn peek_forward(mut message: &[u8]) -> Option<ForwardType> {
    if message.len() <= MAX_HEARTBEAT_BYTES {
        return None;
    }
    for _field in 0..PEEK_FIELDS {
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
struct Member<'a, M> {
    member: M,
    value: &'a [u8],
}

/// Parses the top-level fields. The last oneof member wins, as in every protobuf parser. A message longer than a
/// heartbeat is identified by its first one, which saves parsing the rest. The flag: the bytes parsed to their end.
fn last_member<M>(bytes: &[u8], member: impl Fn(u32, WireType) -> Option<M>) -> (Option<Member<'_, M>>, bool) {
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
            last = Some(Member { member, value: rest });
            if bytes.len() > MAX_HEARTBEAT_BYTES {
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
    let initialize = first_field(delimited(value)?, INITIALIZE_FIELD)?;
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
mod tests;
