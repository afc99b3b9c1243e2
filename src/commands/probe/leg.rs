//! One websocket of a browser, over tokio-tungstenite, and so independent of the relay's code.

use std::io;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, StatusCode, header};
use socket2::SockRef;
use tokio::net::{TcpStream, lookup_host};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_tls_with_config};

use super::resumption::ProtocolError;
use super::target::Target;
use crate::streamlit::handshake::SUBPROTOCOL;

/// Above Streamlit's own default limit of 200 MB (`server.maxMessageSize`).
const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// An open websocket.
pub(crate) struct Leg {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
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
    #[error(transparent)]
    Resumption(#[from] ProtocolError),
}

impl Leg {
    /// Connects and performs the handshake as a page would, without compression. `parameter` joins the query, `entry`
    /// the subprotocols.
    ///
    /// # Errors
    /// No websocket was opened within `limit`.
    pub(super) async fn open(
        target: &Target,
        parameter: Option<&str>,
        entry: Option<&str>,
        limit: Duration,
    ) -> Result<Self, OpenError> {
        let opened = tokio::time::timeout(limit, Self::handshake(target, parameter, entry)).await;
        opened.map_err(|_elapsed| OpenError::TimedOut(limit))?
    }

    async fn handshake(target: &Target, parameter: Option<&str>, entry: Option<&str>) -> Result<Self, OpenError> {
        let lookup = |source| OpenError::Lookup { host: target.host.clone(), source };
        let addresses: Vec<_> = lookup_host((target.host.as_str(), target.port)).await.map_err(lookup)?.collect();
        let stream = TcpStream::connect(&addresses[..]).await.map_err(OpenError::Connect)?;
        stream.set_nodelay(true).map_err(OpenError::Connect)?;
        if target.tls {
            // Fails if the process already has a provider, which is fine.
            let _installed = rustls::crypto::ring::default_provider().install_default();
        }
        let mut request = target.request(parameter).into_client_request().map_err(handshake_error)?;
        let value = |text: &str| HeaderValue::from_str(text).map_err(|error| handshake_error(error.into()));
        let subprotocols = entry.map_or_else(|| SUBPROTOCOL.to_owned(), |entry| format!("{SUBPROTOCOL}, {entry}"));
        request.headers_mut().insert(header::ORIGIN, value(&target.origin())?);
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, value(&subprotocols)?);
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let opened = client_async_tls_with_config(request, stream, Some(config), None).await;
        opened.map(|(socket, _response)| Self { socket }).map_err(handshake_error)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The websocket is lost.
    pub(super) async fn send(&mut self, message: Message) -> Result<(), StreamError> {
        self.socket.send(message).await.map_err(StreamError::from)
    }

    /// The next message or control frame. Dropping it loses nothing.
    ///
    /// # Errors
    /// The websocket is closed or lost.
    pub(super) async fn next(&mut self) -> Result<Message, StreamError> {
        match self.socket.next().await.ok_or(StreamError::Cut)?? {
            Message::Close(Some(frame)) => {
                Err(StreamError::Closed { code: frame.code.into(), reason: frame.reason.as_str().to_owned() })
            }
            Message::Close(None) => Err(StreamError::ClosedWithoutCode),
            message => Ok(message),
        }
    }

    /// Sends a Close frame without waiting for the reply: a frozen server sends none.
    pub(super) async fn close(mut self) {
        let _already_closed = self.socket.close(None).await;
    }

    /// Ends it without a close frame: with a reset (RFC 9293 §3.10.5).
    pub(crate) fn reset(self) {
        let _closed_already = SockRef::from(self.socket.get_ref().get_ref()).set_linger(Some(Duration::ZERO));
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
    fn a_close_is_shown_with_its_code_and_reason() {
        let closed = |reason: &str| StreamError::Closed { code: 1001, reason: reason.to_owned() }.to_string();
        assert_eq!(closed(""), "closed by the server (1001)");
        assert_eq!(closed("bye\n"), "closed by the server (1001: \"bye\\n\")");
    }
}
