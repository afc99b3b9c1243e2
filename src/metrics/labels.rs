//! The label values of sessions, rejections and reloads. Their comments are the meanings in `docs/metrics.md`.

use super::per_label::labels;
use crate::websocket::scanner::ProtocolError;

labels! {
    /// How a websocket handshake ended.
    pub enum Handshake {
        /// Both sides agreed; a session started.
        Accepted = "accepted",
        /// The app answered with anything but 101.
        Refused = "refused",
        /// No connection to the app could be made.
        Unreachable = "unreachable",
        /// The app did not answer in time.
        Timeout = "timeout",
        /// One side's handshake violates RFC 6455 §4.
        Invalid = "invalid",
        /// The browser reset its connection before the app had answered; one that it closes counts as `timeout`.
        Abandoned = "abandoned",
        /// A newer handshake of the same session replaced it; this one gets a 409.
        Superseded = "superseded",
    }

    /// The side that ended a websocket connection: its close frame, FIN or RST came first.
    pub enum Initiator {
        /// The browser, or a proxy before the sidecar.
        Browser = "browser",
        /// The app.
        Upstream = "upstream",
        /// The sidecar: a drain, a takeover, or a peer that was given up.
        Sidecar = "sidecar",
    }

    /// The direction of bytes and messages.
    pub enum DirectionLabel {
        /// From the browser to the app.
        BrowserToUpstream = "browser_to_upstream",
        /// From the app to the browser.
        UpstreamToBrowser = "upstream_to_browser",
    }

    /// How the older connection or handshake of a reconnect's session ended.
    pub enum Takeover {
        /// The upstream closed it.
        Closed = "closed",
        /// The upstream did not close it in time; the sidecar aborted it.
        Timeout = "timeout",
        /// It stayed open: the reconnect is another user's, and the app decides about it.
        OtherUser = "other_user",
    }

    /// Why the sidecar gave up a websocket peer that had not closed the connection.
    pub enum Loss {
        /// The browser's kernel no longer acknowledges data.
        BrowserDead = "browser_dead",
        /// The browser's kernel responds but accepts no data.
        BrowserStalled = "browser_stalled",
        /// The browser has sent neither a pong nor anything else.
        BrowserPongMissed = "browser_pong_missed",
        /// The app's kernel no longer acknowledges data.
        UpstreamDead = "upstream_dead",
        /// The browser has left, and the app neither reads nor sends.
        UpstreamStalled = "upstream_stalled",
    }

    /// Why a request or connection was rejected.
    pub enum Rejected {
        /// It is not valid HTTP/1.0, HTTP/1.1 or HTTP/2.
        Malformed = "malformed",
        /// The length of its body is ambiguous, or the body is incomplete.
        Framing = "framing",
        /// It has no host, several, or an invalid one.
        Host = "host",
        /// `CONNECT` or `TRACE`.
        Method = "method",
        /// Its `Expect` is unknown.
        Expectation = "expectation",
        /// No route matches.
        Route = "route",
        /// Its websocket handshake violates RFC 6455 §4.1.
        Handshake = "handshake",
        /// Its websocket handshake has an origin that is not allowed.
        Origin = "origin",
        /// Its connection does not start with a PROXY protocol header of a trusted proxy.
        ProxyProtocol = "proxy_protocol",
        /// The TLS handshake failed.
        Tls = "tls",
        /// Its header or its target is too large.
        Size = "size",
        /// Its body paused for too long.
        Timeout = "timeout",
        /// Its client received nothing of the response for too long.
        Stalled = "stalled",
        /// `limits.connections` is reached.
        Connections = "connections",
        /// Its client has reached `limits.connections_per_address`.
        ConnectionsPerAddress = "connections_per_address",
        /// Its client exceeds `limits.handshakes_per_second`.
        HandshakesPerSecond = "handshakes_per_second",
        /// `limits.sessions` of the app is reached.
        Sessions = "sessions",
    }

    /// Result of a reload.
    pub enum Reload {
        /// The new content is active.
        Accepted = "accepted",
        /// The new content is invalid; the old content stays active.
        Refused = "refused",
    }

    /// Why a browser reconnected to a session.
    pub enum Reconnect {
        /// The page's watchdog closed the connection before.
        Watchdog = "watchdog",
        /// Anything else.
        Other = "other",
    }

    /// Whether a page got the watchdog's script.
    pub enum WatchdogPage {
        /// The watchdog's script was added.
        Added = "added",
        /// Another sidecar had already added it.
        Present = "present",
        /// It is not a Streamlit page.
        NotStreamlit = "not_streamlit",
        /// Its Content-Security-Policy allows no script of its own origin.
        Forbidden = "forbidden",
        /// It was compressed, although that was not requested.
        Encoded = "encoded",
    }

    /// Why the heartbeats of a session are not answered: its bytes cannot be parsed.
    pub enum Unparsable {
        /// The two sides negotiated an extension other than permessage-deflate.
        Extension = "extension",
        /// A compressed message is invalid, or inflates to too many bytes.
        Compression = "compression",
        /// A frame has a reserved bit set (RFC 6455 §5.2).
        ReservedBits = "reserved_bits",
        /// A browser's frame is not masked, or an app's frame is (RFC 6455 §5.1).
        Masking = "masking",
        /// The length of a frame has its top bit set (RFC 6455 §5.2).
        Length = "length",
        /// The frames of a message are out of order (RFC 6455 §5.4).
        Fragmentation = "fragmentation",
    }

    /// How a session stopped being parked: resumed, or closed.
    pub enum ParkedEnd {
        /// Its page came back.
        Resumed = "resumed",
        /// Its page opened a new connection to the app instead.
        TakenOver = "taken_over",
        /// Its page did not come back within `resume.window`.
        Expired = "expired",
        /// The app had more than `resume.parked`, and this one was parked longest.
        Evicted = "evicted",
        /// The app sent more than `resume.parked_bytes`.
        Flooded = "flooded",
        /// The app ended it.
        App = "app",
        /// The sidecar drains.
        Drained = "drained",
    }

    /// What a page keeps after it has lost its connection.
    pub enum Level {
        /// Its session: app and page notice nothing.
        One = "one",
        /// A new connection to the app takes the session over, and no input is lost.
        Two = "two",
    }

    /// Why a page could not resume its session.
    pub enum ResumptionRefused {
        /// No session has its secret: it ended, or the sidecar was restarted.
        Unknown = "unknown",
        /// Its user, origin or route differs from that of the session.
        Identity = "identity",
        /// A newer connection of the page serves the session.
        Stale = "stale",
        /// Messages are missing: more than `resume.buffer` was not confirmed.
        Overflow = "overflow",
        /// Its request is malformed, or its count of messages is impossible.
        Invalid = "invalid",
    }

    /// Why input that a page sent while its connection was lost was not sent to the app.
    pub enum NotSent {
        /// It is older than `resume.max_age`.
        Age = "age",
        /// It was made on another page or in another fragment.
        Changed = "changed",
        /// It must not be repeated, such as a stop of the script.
        Kind = "kind",
        /// A later input of the same widget replaces it.
        Replaced = "replaced",
        /// It is not known whether it reached the app.
        Unknown = "unknown",
    }
}

impl From<ProtocolError> for Unparsable {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::ReservedBits => Self::ReservedBits,
            ProtocolError::Masking => Self::Masking,
            ProtocolError::Length => Self::Length,
            ProtocolError::Fragmentation => Self::Fragmentation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::per_label::assert_consistent;
    use super::*;

    #[test]
    fn every_value_has_a_unique_name_and_index() {
        assert_consistent::<Handshake>();
        assert_consistent::<Initiator>();
        assert_consistent::<DirectionLabel>();
        assert_consistent::<Takeover>();
        assert_consistent::<Loss>();
        assert_consistent::<Rejected>();
        assert_consistent::<Reload>();
        assert_consistent::<Reconnect>();
        assert_consistent::<WatchdogPage>();
        assert_consistent::<Unparsable>();
        assert_consistent::<ParkedEnd>();
        assert_consistent::<Level>();
        assert_consistent::<ResumptionRefused>();
        assert_consistent::<NotSent>();
    }
}
