//! The closed sets of label values, and the arrays of handles that they index.

use std::marker::PhantomData;

use crate::heartbeat::{AckOrigin, Withheld};
use crate::streamlit::messages::{BackType, ForwardType, ScriptResult};
use crate::websocket::scanner::Lost;

/// How a websocket handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Both sides agreed; a session started.
    Accepted,
    /// The app server answered with anything but 101.
    Refused,
    /// No connection to the app server could be made.
    Unreachable,
    /// The app server did not answer in time.
    Timeout,
    /// One side's handshake violates RFC 6455 §4.
    Invalid,
    /// The browser reset its connection before the app server had answered.
    Abandoned,
    /// A newer handshake of the same session took its place.
    Superseded,
}

/// The side that ended a websocket connection: its Close frame, FIN or RST came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Initiator {
    Browser,
    Upstream,
    Sidecar,
}

/// The direction of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Direction {
    BrowserToUpstream,
    UpstreamToBrowser,
}

/// How the old connection or handshake of a taken-over session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// The upstream closed it.
    Closed,
    /// The upstream did not close it in time; the sidecar aborted it.
    Timeout,
}

/// Why the sidecar gave up a websocket peer that had not closed the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The browser's kernel no longer acknowledges data.
    BrowserDead,
    /// The browser's kernel responds but accepts no data.
    BrowserStalled,
    /// The browser has sent neither a pong nor anything else.
    BrowserPongMissed,
    /// The app server's kernel no longer acknowledges data.
    UpstreamDead,
    /// The browser has left, and the app server neither reads nor sends.
    UpstreamStalled,
}

/// Why a request or connection was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// It is not valid HTTP/1.0, HTTP/1.1 or HTTP/2.
    Malformed,
    /// The length of its body is ambiguous, or the body is incomplete.
    Framing,
    /// It has no host, several, or an invalid one.
    Host,
    /// `CONNECT` or `TRACE`.
    Method,
    /// Its `Expect` is unknown.
    Expectation,
    /// No route matches.
    Route,
    /// Its websocket handshake violates RFC 6455 §4.1.
    Handshake,
    /// Its websocket handshake has an origin that is not allowed.
    Origin,
    /// Its connection does not start with a PROXY protocol header of a trusted proxy.
    ProxyProtocol,
    /// The TLS handshake failed.
    Tls,
    /// Its header or its target is too large.
    Size,
    /// Its body paused for too long.
    Timeout,
    /// Its client received nothing of the response for too long.
    Stalled,
    /// There are too many connections.
    Connections,
    /// Its client has too many connections.
    ConnectionsPerAddress,
    /// Its client exceeds the handshake rate limit.
    HandshakesPerSecond,
    /// There are too many sessions.
    Sessions,
}

/// Result of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The new content is active.
    Accepted,
    /// The new content is invalid; the old content stays active.
    Refused,
}

/// Why a browser reconnected to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconnect {
    /// The page's watchdog had given up the connection before.
    Watchdog,
    /// Anything else.
    Other,
}

/// Whether a page got the watchdog's script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogPage {
    /// The watchdog's script was added.
    Added,
    /// Another sidecar had already added it.
    Present,
    /// It is not a Streamlit page.
    NotStreamlit,
    /// Its Content-Security-Policy allows no script of its own origin.
    Forbidden,
    /// It was compressed, although that was not requested.
    Encoded,
}

/// Why a session is relayed without the tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TapDisabled {
    /// The two sides negotiated an extension other than permessage-deflate.
    Extension,
    /// See [`Lost::Compression`].
    Compression,
    /// See [`Lost::ReservedBits`].
    ReservedBits,
    /// See [`Lost::Masking`].
    Masking,
    /// See [`Lost::Length`].
    Length,
    /// See [`Lost::Fragmentation`].
    Fragmentation,
}

/// The status code that a websocket connection ended with (RFC 6455 §7.4.1 and IANA's registry).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// 1000
    Normal,
    /// 1001
    GoingAway,
    /// 1002
    ProtocolError,
    /// 1003
    UnsupportedData,
    /// 1005: a Close frame without a code.
    NoStatus,
    /// 1006: no Close frame.
    Abnormal,
    /// 1007
    InvalidPayload,
    /// 1008
    PolicyViolation,
    /// 1009
    TooBig,
    /// 1010
    MandatoryExtension,
    /// 1011
    InternalError,
    /// 1012
    ServiceRestart,
    /// 1013
    TryAgainLater,
    /// 1014
    BadGateway,
    /// 1015: the TLS handshake failed.
    TlsHandshake,
    /// Any other code, including the private ones (3000 to 4999).
    Other,
}

/// A closed set of label values.
pub trait LabelValue: Copy + 'static {
    /// Every value, in the order of [`LabelValue::index`].
    const ALL: &'static [Self];

    /// The value's name in Prometheus.
    fn name(self) -> &'static str;

    /// The value's position in [`LabelValue::ALL`].
    fn index(self) -> usize;
}

/// One handle per label value; nested, one per pair of values. Reading it is one index operation.
pub(super) struct Family<L, H> {
    handles: Box<[H]>,
    label: PhantomData<L>,
}

impl From<Option<u16>> for CloseCode {
    /// The code in a Close frame, as [`crate::websocket::frame::close_code`] reads it.
    fn from(code: Option<u16>) -> Self {
        match code {
            Some(1000) => Self::Normal,
            Some(1001) => Self::GoingAway,
            Some(1002) => Self::ProtocolError,
            Some(1003) => Self::UnsupportedData,
            None => Self::NoStatus,
            Some(1007) => Self::InvalidPayload,
            Some(1008) => Self::PolicyViolation,
            Some(1009) => Self::TooBig,
            Some(1010) => Self::MandatoryExtension,
            Some(1011) => Self::InternalError,
            Some(1012) => Self::ServiceRestart,
            Some(1013) => Self::TryAgainLater,
            Some(1014) => Self::BadGateway,
            // RFC 6455 §7.4.1 forbids 1005, 1006 and 1015 in a frame: a peer that sends one means something else.
            Some(_) => Self::Other,
        }
    }
}

impl From<Lost> for TapDisabled {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Compression => Self::Compression,
            Lost::ReservedBits => Self::ReservedBits,
            Lost::Masking => Self::Masking,
            Lost::Length => Self::Length,
            Lost::Fragmentation => Self::Fragmentation,
        }
    }
}

/// Makes labels of enums, with a name per variant.
macro_rules! labels {
    ($($label:ty { $($variant:ident = $name:literal,)* })*) => {$(
        impl LabelValue for $label {
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )*};
}

/// Makes labels of enums that list and name their variants themselves.
macro_rules! listed_labels {
    ($($label:ty)*) => {$(
        impl LabelValue for $label {
            const ALL: &'static [Self] = <$label>::ALL;

            fn name(self) -> &'static str {
                <$label>::name(self)
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )*};
}

labels! {
    AckOrigin { Sidecar = "sidecar", Upstream = "upstream", }
    Withheld { UpstreamStalled = "upstream_stalled", UpstreamClosed = "upstream_closed", Policy = "policy", }
    Handshake {
        Accepted = "accepted",
        Refused = "refused",
        Unreachable = "unreachable",
        Timeout = "timeout",
        Invalid = "invalid",
        Abandoned = "abandoned",
        Superseded = "superseded",
    }
    Reload { Accepted = "accepted", Refused = "refused", }
    Takeover { Closed = "closed", Timeout = "timeout", }
    Loss {
        BrowserDead = "browser_dead",
        BrowserStalled = "browser_stalled",
        BrowserPongMissed = "browser_pong_missed",
        UpstreamDead = "upstream_dead",
        UpstreamStalled = "upstream_stalled",
    }
    Rejected {
        Malformed = "malformed",
        Framing = "framing",
        Host = "host",
        Method = "method",
        Expectation = "expectation",
        Route = "route",
        Handshake = "handshake",
        Origin = "origin",
        ProxyProtocol = "proxy_protocol",
        Tls = "tls",
        Size = "size",
        Timeout = "timeout",
        Stalled = "stalled",
        Connections = "connections",
        ConnectionsPerAddress = "connections_per_address",
        HandshakesPerSecond = "handshakes_per_second",
        Sessions = "sessions",
    }
    Reconnect { Watchdog = "watchdog", Other = "other", }
    WatchdogPage {
        Added = "added",
        Present = "present",
        NotStreamlit = "not_streamlit",
        Forbidden = "forbidden",
        Encoded = "encoded",
    }
    Initiator { Browser = "browser", Upstream = "upstream", Sidecar = "sidecar", }
    Direction { BrowserToUpstream = "browser_to_upstream", UpstreamToBrowser = "upstream_to_browser", }
    TapDisabled {
        Extension = "extension",
        Compression = "compression",
        ReservedBits = "reserved_bits",
        Masking = "masking",
        Length = "length",
        Fragmentation = "fragmentation",
    }
    CloseCode {
        Normal = "1000",
        GoingAway = "1001",
        ProtocolError = "1002",
        UnsupportedData = "1003",
        NoStatus = "1005",
        Abnormal = "1006",
        InvalidPayload = "1007",
        PolicyViolation = "1008",
        TooBig = "1009",
        MandatoryExtension = "1010",
        InternalError = "1011",
        ServiceRestart = "1012",
        TryAgainLater = "1013",
        BadGateway = "1014",
        TlsHandshake = "1015",
        Other = "other",
    }
}

// After the macros, which it uses.
mod http;

pub(super) use self::http::{Method, StatusClass};

listed_labels! { BackType ForwardType ScriptResult }

impl<L: LabelValue, H> Family<L, H> {
    /// Makes every handle up front.
    pub(super) fn new(handle: impl FnMut(L) -> H) -> Self {
        Self { handles: L::ALL.iter().copied().map(handle).collect(), label: PhantomData }
    }

    /// The handle of one value.
    pub(super) fn get(&self, label: L) -> &H {
        &self.handles[label.index()]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fmt::Debug;

    use super::*;

    pub(super) fn assert_sound<L: LabelValue + Debug>() {
        assert!(!L::ALL.is_empty());
        let names: HashSet<_> = L::ALL.iter().map(|label| label.name()).collect();
        assert_eq!(names.len(), L::ALL.len(), "{names:?}");
        for (position, label) in L::ALL.iter().enumerate() {
            assert_eq!(label.index(), position, "{label:?}");
        }
    }

    #[test]
    fn every_value_has_a_unique_name_and_index() {
        assert_sound::<AckOrigin>();
        assert_sound::<Withheld>();
        assert_sound::<Handshake>();
        assert_sound::<Takeover>();
        assert_sound::<Reload>();
        assert_sound::<Loss>();
        assert_sound::<Rejected>();
        assert_sound::<Reconnect>();
        assert_sound::<WatchdogPage>();
        assert_sound::<Initiator>();
        assert_sound::<Direction>();
        assert_sound::<TapDisabled>();
        assert_sound::<CloseCode>();
        assert_sound::<BackType>();
        assert_sound::<ForwardType>();
        assert_sound::<ScriptResult>();
    }

    #[test]
    fn a_close_code_is_labelled_with_its_number() {
        for code in (1000..=1014).filter(|code| ![1004, 1005, 1006].contains(code)) {
            assert_eq!(CloseCode::from(Some(code)).name(), code.to_string());
        }
        assert_eq!(CloseCode::from(None).name(), "1005");
        assert_eq!(CloseCode::Abnormal.name(), "1006");
    }

    #[test]
    fn forbidden_unassigned_and_private_close_codes_are_other() {
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 3000, 4999, u16::MAX] {
            assert_eq!(CloseCode::from(Some(code)), CloseCode::Other, "{code}");
        }
    }
}
