//! A browser's side of the message stream. A page that can resume its session continues it over several websockets.

use std::future::pending;
use std::time::Duration;

use prost::Message as _;
use serde::Serialize;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use super::leg::{Leg, OpenError, StreamError};
use super::resumption::{ProtocolError, Resumption};
use super::target::Target;
use crate::streamlit::ack;
use crate::streamlit::messages::{self, FORWARD_PREFIX_BYTES, ForwardContent, ForwardType};
use crate::streamlit::proto::{BackMsg, ForwardMsg, back_msg, forward_msg};

/// An open message stream.
pub(crate) struct Browser {
    target: Target,
    /// Timeout of a handshake.
    limit: Duration,
    /// `None` while the connection is lost.
    leg: Option<Leg>,
    /// `None` if the page cannot resume its session.
    resumption: Option<Resumption>,
}

/// Why a session was not resumed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResumeError {
    #[error("not resumed")]
    Open(#[source] OpenError),
    #[error("not resumed")]
    Stream(#[source] StreamError),
    #[error("not resumed: no answer on the new connection within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    #[error(
        "not resumed: the sidecar has no such session (closed with 4004). It was restarted, another one answered, or \
         more than `resume.buffer` was unconfirmed; `resumptions_refused_total` counts by reason"
    )]
    Unknown,
}

/// A message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A heartbeat was answered.
    Ack(AnsweredBy),
    /// A script run starts; the server's version, if it sends it.
    NewSession(Option<String>),
    /// A script shows something; the bytes of Streamlit's `Delta`.
    Delta(Vec<u8>),
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

impl Browser {
    /// Connects and performs the handshake as a page would. A page that `can_resume` offers to resume its session.
    ///
    /// # Errors
    /// No websocket was opened within `limit`.
    pub(crate) async fn open(target: &Target, can_resume: bool, limit: Duration) -> Result<Self, OpenError> {
        let tag = can_resume.then(Resumption::tag);
        let leg = Leg::open(target, tag.as_deref(), None, limit).await?;
        let resumption = can_resume.then(Resumption::default);
        Ok(Self { target: target.clone(), limit, leg: Some(leg), resumption })
    }

    /// Requests a script run, as every page does once; the server answers with a `new_session`.
    ///
    /// # Errors
    /// The stream is lost.
    pub(crate) async fn rerun(&mut self) -> Result<(), StreamError> {
        self.send(back_msg::Type::RerunScript(Vec::new())).await
    }

    /// Sends a heartbeat, and confirms what was received.
    ///
    /// # Errors
    /// The stream is lost.
    pub(crate) async fn heartbeat(&mut self) -> Result<(), StreamError> {
        self.confirm().await?;
        self.send(back_msg::Type::AppHeartbeat(true)).await
    }

    /// Confirms what was received; the server answers with its own count.
    ///
    /// # Errors
    /// The stream is lost.
    pub(crate) async fn confirm(&mut self) -> Result<(), StreamError> {
        if let (Some(leg), Some(resumption)) = (&mut self.leg, &mut self.resumption) {
            leg.send(Message::text(resumption.confirmation())).await?;
            resumption.on_confirmation_sent();
        }
        Ok(())
    }

    async fn send(&mut self, message: back_msg::Type) -> Result<(), StreamError> {
        let bytes = BackMsg { r#type: Some(message) }.encode_to_vec();
        if let Some(resumption) = &mut self.resumption {
            resumption.on_sent(&bytes);
        }
        match &mut self.leg {
            Some(leg) => leg.send(Message::binary(bytes)).await,
            None => Ok(()),
        }
    }

    /// The next message; none comes while the connection is lost. It also answers pings, so await it whenever there is
    /// nothing else to do. Dropping it loses nothing.
    ///
    /// # Errors
    /// The stream is lost.
    pub(crate) async fn next(&mut self) -> Result<Received, StreamError> {
        if self.resumption.as_ref().is_some_and(Resumption::owes_confirmation) {
            self.confirm().await?;
        }
        let Some(leg) = &mut self.leg else { return pending().await };
        let message = leg.next().await?;
        if let (Some(resumption), Message::Binary(_) | Message::Text(_)) = (&mut self.resumption, &message) {
            let text = message.is_text().then(|| message.to_text().unwrap_or_default());
            resumption.on_message(text, message.len())?;
        }
        Ok(if let Message::Binary(bytes) = message { Received::of(&bytes) } else { Received::Other })
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

    /// Whether the server has offered to resume the session.
    pub(crate) fn is_greeted(&self) -> bool {
        self.resumption.as_ref().is_some_and(Resumption::is_greeted)
    }

    /// Whether the server has answered the last confirmation and has every message; so it is without resumption.
    pub(crate) fn is_settled(&self) -> bool {
        self.resumption.as_ref().is_none_or(Resumption::is_settled)
    }

    /// Loses the connection: messages are kept until [`Self::resume`]. The caller decides how the websocket ends.
    pub(crate) fn lose_leg(&mut self) -> Option<Leg> {
        self.leg.take()
    }

    /// Continues the session over a new connection; returns how many messages were sent again.
    ///
    /// # Errors
    /// The session cannot be resumed.
    pub(crate) async fn resume(&mut self) -> Result<usize, ResumeError> {
        let limit = self.limit;
        timeout(limit, self.open_next_leg()).await.map_err(|_elapsed| ResumeError::TimedOut(limit))?
    }

    async fn open_next_leg(&mut self) -> Result<usize, ResumeError> {
        let stream = |error| match error {
            StreamError::Closed { code: 4004, .. } => ResumeError::Unknown,
            error => ResumeError::Stream(error),
        };
        let resumption = self.resumption.as_mut().ok_or_else(|| stream(ProtocolError::NotOffered.into()))?;
        let entry = resumption.next_leg().map_err(|error| stream(error.into()))?;
        let tag = Resumption::tag();
        let opened = Leg::open(&self.target, Some(&tag), Some(&entry), self.limit).await;
        let mut leg = opened.map_err(ResumeError::Open)?;
        let first = loop {
            let message = leg.next().await.map_err(stream)?;
            if message.is_text() || message.is_binary() {
                break message;
            }
        };
        let first = first.to_text().unwrap_or_default();
        let missing: Vec<_> = resumption.on_resumed(first).map_err(|error| stream(error.into()))?.cloned().collect();
        for message in &missing {
            leg.send(Message::binary(message.clone())).await.map_err(stream)?;
        }
        self.leg = Some(leg);
        Ok(missing.len())
    }

    /// Sends a Close frame without waiting for the reply: a frozen server sends none.
    pub(crate) async fn close(self) {
        if let Some(leg) = self.leg {
            leg.close().await;
        }
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
            ForwardContent::Other(ForwardType::Delta) => Self::of_delta(message),
            ForwardContent::Other(_) | ForwardContent::ScriptFinished(_) => Self::Other,
        }
    }

    fn of_delta(message: &[u8]) -> Self {
        match ForwardMsg::decode(message) {
            Ok(ForwardMsg { r#type: Some(forward_msg::Type::Delta(delta)), .. }) => Self::Delta(delta),
            Ok(_) | Err(_) => Self::Other,
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
    fn the_first_message_of_a_run_contains_the_version() {
        use crate::streamlit::proto::{EnvironmentInfo, ForwardMsg, Initialize, NewSession, forward_msg};
        let environment_info = Some(EnvironmentInfo { streamlit_version: "1.53.1".to_owned() });
        let initialize = Some(Initialize { environment_info, session_id: String::new() });
        let new_session = forward_msg::Type::NewSession(NewSession { initialize });
        let message = ForwardMsg { hash: String::new(), r#type: Some(new_session) }.encode_to_vec();
        assert_eq!(Received::of(&message), Received::NewSession(Some("1.53.1".to_owned())));
    }
}
