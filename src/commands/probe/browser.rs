//! A browser's side of the message stream, over tokio-tungstenite, and so independent of the relay's code.

use std::io;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, StatusCode, header};
use prost::Message as _;
use serde::Serialize;
use tokio::net::{TcpStream, lookup_host};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_tls_with_config};

use super::target::Target;
use crate::streamlit::ack;
use crate::streamlit::messages::{self, FORWARD_PREFIX_BYTES, ForwardContent, ForwardType};
use crate::streamlit::proto::{BackMsg, back_msg};

/// Above Streamlit's own default limit of 200 MB (`server.maxMessageSize`).
const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// An open message stream.
pub(crate) struct Browser {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// A message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A heartbeat was answered.
    Ack(AnsweredBy),
    /// A script run starts; the server's version, if it sends it.
    NewSession(Option<String>),
    /// Anything else.
    Other,
}

/// Which side made an ack, by its bytes: only the sidecar uses the compatible form. With `ack = "plain"`, sidecar and
/// app cannot be distinguished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AnsweredBy {
    Sidecar,
    Upstream,
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("cannot look up {host}")]
    Lookup { host: String, source: io::Error },
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("the server rejected the websocket handshake with status {0}")]
    Refused(StatusCode),
    #[error("the connection was lost during the handshake")]
    Broken(#[source] io::Error),
    // Tungstenite's errors include their sources.
    #[error("the websocket handshake failed: {0}")]
    Handshake(Box<tungstenite::Error>),
    #[error("no websocket connection within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
}

/// Why an open stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("closed by the server ({code}{})", quoted(.reason))]
    Closed { code: u16, reason: String },
    #[error("closed by the server without a code")]
    ClosedWithoutCode,
    #[error("the connection ended without a close frame")]
    Cut,
    #[error("the connection was lost")]
    Broken(#[source] io::Error),
    #[error("the server violated the websocket protocol: {0}")]
    Protocol(Box<tungstenite::Error>),
}

impl Browser {
    /// Connects and performs the handshake as a page would, without compression.
    ///
    /// # Errors
    /// No websocket was opened within `limit`.
    pub(crate) async fn open(target: &Target, limit: Duration) -> Result<Self, OpenError> {
        let opened = tokio::time::timeout(limit, Self::handshake(target)).await;
        opened.map_err(|_elapsed| OpenError::TimedOut(limit))?
    }

    async fn handshake(target: &Target) -> Result<Self, OpenError> {
        let lookup = |source| OpenError::Lookup { host: target.host.clone(), source };
        let addresses: Vec<_> = lookup_host((target.host.as_str(), target.port)).await.map_err(lookup)?.collect();
        let stream = TcpStream::connect(&addresses[..]).await.map_err(OpenError::Connect)?;
        stream.set_nodelay(true).map_err(OpenError::Connect)?;
        if target.tls {
            // Fails if the process already has a provider, which is fine.
            let _installed = rustls::crypto::ring::default_provider().install_default();
        }
        let mut request = target.request().into_client_request().map_err(handshake_error)?;
        let origin = HeaderValue::from_str(&target.origin()).map_err(|error| handshake_error(error.into()))?;
        request.headers_mut().insert(header::ORIGIN, origin);
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("streamlit"));
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let opened = client_async_tls_with_config(request, stream, Some(config), None).await;
        opened.map(|(socket, _response)| Self { socket }).map_err(handshake_error)
    }

    /// Requests a script run, as every page does once; the server answers with a `new_session`.
    ///
    /// # Errors
    /// The stream is lost.
    pub(crate) async fn rerun(&mut self) -> Result<(), StreamError> {
        self.send(back_msg::Type::RerunScript(Vec::new())).await
    }

    /// Sends a heartbeat.
    ///
    /// # Errors
    /// The stream is lost.
    pub(crate) async fn heartbeat(&mut self) -> Result<(), StreamError> {
        self.send(back_msg::Type::AppHeartbeat(true)).await
    }

    async fn send(&mut self, message: back_msg::Type) -> Result<(), StreamError> {
        let bytes = BackMsg { r#type: Some(message) }.encode_to_vec();
        self.socket.send(Message::binary(bytes)).await.map_err(StreamError::from)
    }

    /// The next message. It also answers pings, so await it whenever there is nothing else to do. Dropping it loses
    /// nothing.
    ///
    /// # Errors
    /// The stream is lost.
    pub(crate) async fn next(&mut self) -> Result<Received, StreamError> {
        match self.socket.next().await.ok_or(StreamError::Cut)?? {
            Message::Binary(bytes) => Ok(Received::of(&bytes)),
            Message::Close(Some(frame)) => {
                Err(StreamError::Closed { code: frame.code.into(), reason: frame.reason.as_str().to_owned() })
            }
            Message::Close(None) => Err(StreamError::ClosedWithoutCode),
            Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(Received::Other),
        }
    }

    /// The server's version in the next `new_session`; `None` if it has none.
    ///
    /// # Errors
    /// The stream is lost.
    pub(crate) async fn version(&mut self) -> Result<Option<String>, StreamError> {
        loop {
            if let Received::NewSession(version) = self.next().await? {
                return Ok(version);
            }
        }
    }

    /// Sends a Close frame without waiting for the reply: a frozen server sends none.
    pub(crate) async fn close(mut self) {
        let _already_closed = self.socket.close(None).await;
    }
}

impl Received {
    fn of(message: &[u8]) -> Self {
        let prefix = &message[..message.len().min(FORWARD_PREFIX_BYTES)];
        match messages::parse_forward(prefix, prefix.len() == message.len()) {
            ForwardContent::NewSession(announcement) => {
                Self::NewSession(announcement.map(|announcement| announcement.version))
            }
            ForwardContent::Other(ForwardType::HeartbeatAck) if message == ack::COMPATIBLE => {
                Self::Ack(AnsweredBy::Sidecar)
            }
            ForwardContent::Other(ForwardType::HeartbeatAck) => Self::Ack(AnsweredBy::Upstream),
            ForwardContent::Other(_) | ForwardContent::ScriptFinished(_) => Self::Other,
        }
    }
}

impl AnsweredBy {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Upstream => "upstream",
        }
    }
}

impl From<tungstenite::Error> for StreamError {
    fn from(error: tungstenite::Error) -> Self {
        use tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
        match error {
            tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => Self::Cut,
            tungstenite::Error::Protocol(ResetWithoutClosingHandshake) => Self::Cut,
            tungstenite::Error::Io(error) => Self::Broken(error),
            error => Self::Protocol(Box::new(error)),
        }
    }
}

/// The reason, escaped, since a server may send any text; empty for none.
fn quoted(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason:?}") }
}

/// rustls's errors come wrapped in socket errors.
fn handshake_error(error: tungstenite::Error) -> OpenError {
    match error {
        tungstenite::Error::Http(response) => OpenError::Refused(response.status()),
        tungstenite::Error::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
            OpenError::Tls(error)
        }
        tungstenite::Error::Io(error) => OpenError::Broken(error),
        error => OpenError::Handshake(Box::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_an_ack_identify_its_sender() {
        assert_eq!(Received::of(&[0x52, 0x00, 0xd0, 0x01, 0x01]), Received::Ack(AnsweredBy::Sidecar));
        assert_eq!(Received::of(&[0xd0, 0x01, 0x01]), Received::Ack(AnsweredBy::Upstream));
        assert_eq!(Received::of(&[0x52, 0x00]), Received::Other, "a session event");
    }

    #[test]
    fn a_close_is_shown_with_its_code_and_reason() {
        let closed = |reason: &str| StreamError::Closed { code: 1001, reason: reason.to_owned() }.to_string();
        assert_eq!(closed(""), "closed by the server (1001)");
        assert_eq!(closed("bye\n"), "closed by the server (1001: \"bye\\n\")");
    }

    #[test]
    fn the_first_message_of_a_run_contains_the_version() {
        use crate::streamlit::proto::{EnvironmentInfo, ForwardMsg, Initialize, NewSession, forward_msg};
        let environment_info = Some(EnvironmentInfo { streamlit_version: "1.53.1".to_owned() });
        let initialize = Some(Initialize { environment_info, session_id: String::new() });
        let new_session = forward_msg::Type::NewSession(NewSession { initialize });
        let message = ForwardMsg { hash: String::new(), r#type: Some(new_session) }.encode_to_vec();
        assert_eq!(Received::of(&message), Received::NewSession(Some("1.53.1".to_owned())));
    }
}
