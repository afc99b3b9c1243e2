//! The page's end of a resumable session: its counts, and copies of what the sidecar has not confirmed. Written without
//! the sidecar's own code, so that the one checks the other.
//!
//! Invariant: `copies` are the last messages sent, in order; those before them are confirmed.

use std::collections::VecDeque;

/// The start of every control message.
const PREFIX: &str = "_heartbeat ";

/// Received bytes after which a page confirms unasked.
const CONFIRM_AFTER_BYTES: usize = 32 << 10;

/// A page's end of one session. It has no secret before the greeting.
#[derive(Default)]
pub(super) struct Resumption {
    secret: Option<String>,
    /// The number of the current or last leg.
    leg: u32,
    sent: u64,
    received: u64,
    /// Bytes received since the last confirmation.
    unconfirmed_bytes: usize,
    /// The sidecar has not answered the last confirmation.
    awaits_answer: bool,
    copies: VecDeque<Vec<u8>>,
}

/// What a server that resumes sessions does not do. Never shows a message: a greeting has the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error(
        "the server does not resume sessions: that needs a heartbeat-sidecar of this version or later, with \
         `watchdog.mode` \"self\" or \"host\", and `resume.enabled = true`"
    )]
    NotOffered,
    #[error("the sidecar does not resume sessions: set `resume.enabled = true`")]
    Disabled,
    #[error("the sidecar's greeting is invalid")]
    Greeting,
    #[error("the sidecar's first message on the new connection is not its count")]
    NotResumed,
    #[error("the sidecar's count of messages is impossible: {count}, after {confirmed} confirmed and {sent} sent")]
    Count { count: u64, confirmed: u64, sent: u64 },
}

impl Resumption {
    /// The query parameter of a leg that offers resumption.
    pub(super) fn tag() -> String {
        format!("_heartbeat={:032x}.resume", rand::random::<u128>())
    }

    /// Whether the sidecar has sent its greeting.
    pub(super) fn is_greeted(&self) -> bool {
        self.secret.is_some()
    }

    /// Whether the sidecar has answered the last confirmation, and has every message.
    pub(super) fn is_settled(&self) -> bool {
        !self.awaits_answer && self.copies.is_empty()
    }

    /// Whether much was received since the last confirmation.
    pub(super) fn owes_confirmation(&self) -> bool {
        self.is_greeted() && self.unconfirmed_bytes >= CONFIRM_AFTER_BYTES
    }

    /// Confirms what was received.
    pub(super) fn confirmation(&self) -> String {
        format!("{PREFIX}received {}", self.received)
    }

    pub(super) fn on_confirmation_sent(&mut self) {
        (self.unconfirmed_bytes, self.awaits_answer) = (0, true);
    }

    /// A data message goes to the sidecar, or is lost on its way.
    pub(super) fn on_sent(&mut self, message: &[u8]) {
        self.sent += 1;
        self.copies.push_back(message.to_vec());
    }

    /// A message came, with this text if it is one.
    ///
    /// # Errors
    /// The sidecar does not resume the session, or it violates the protocol.
    pub(super) fn on_message(&mut self, text: Option<&str>, length: usize) -> Result<(), ProtocolError> {
        match (text.and_then(|text| text.strip_prefix(PREFIX)), &self.secret) {
            (Some(control), None) => self.on_greeting(control),
            (Some(control), Some(_)) => number(control, "received ").map_or(Ok(()), |count| self.on_confirmed(count)),
            (None, None) => Err(ProtocolError::NotOffered),
            (None, Some(_)) => {
                self.received += 1;
                self.unconfirmed_bytes += length;
                Ok(())
            }
        }
    }

    /// `resumable <secret> <buffer> <window>`, perhaps with further words.
    fn on_greeting(&mut self, greeting: &str) -> Result<(), ProtocolError> {
        let mut words = greeting.split(' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("plain"), ..) => Err(ProtocolError::Disabled),
            (Some("resumable"), Some(secret), Some(_buffer), Some(_window)) if !secret.is_empty() => {
                self.secret = Some(secret.to_owned());
                Ok(())
            }
            _ => Err(ProtocolError::Greeting),
        }
    }

    /// The sidecar has this many messages.
    fn on_confirmed(&mut self, count: u64) -> Result<(), ProtocolError> {
        let (sent, confirmed) = (self.sent, self.sent - self.copies.len() as u64);
        if !(confirmed..=sent).contains(&count) {
            return Err(ProtocolError::Count { count, confirmed, sent });
        }
        self.copies.drain(..(count - confirmed) as usize);
        self.awaits_answer = false;
        Ok(())
    }

    /// The subprotocol entry of the next leg.
    ///
    /// # Errors
    /// There was no greeting.
    pub(super) fn next_leg(&mut self) -> Result<String, ProtocolError> {
        let secret = self.secret.as_ref().ok_or(ProtocolError::NotOffered)?;
        self.leg += 1;
        Ok(format!("resume.{secret}.{}.{}", self.leg, self.received))
    }

    /// The first message of the next leg came; returns what to send again.
    ///
    /// # Errors
    /// It is not the sidecar's count, or the count is impossible.
    pub(super) fn on_resumed(&mut self, first: &str) -> Result<impl Iterator<Item = &Vec<u8>>, ProtocolError> {
        let count = first.strip_prefix(PREFIX).and_then(|control| number(control, "resumed "));
        self.on_confirmed(count.ok_or(ProtocolError::NotResumed)?)?;
        // The next leg has told the sidecar what was received.
        self.unconfirmed_bytes = 0;
        Ok(self.copies.iter())
    }
}

fn number(control: &str, word: &str) -> Option<u64> {
    control.strip_prefix(word)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = "_heartbeat resumable 5ec2e7 1048576 300000";

    fn greeted() -> Resumption {
        let mut page = Resumption::default();
        page.on_message(Some(GREETING), GREETING.len()).expect("a greeting");
        page
    }

    #[test]
    fn only_what_the_sidecar_has_not_received_is_sent_again() {
        let mut page = greeted();
        for message in [b"a", b"b", b"c", b"d"] {
            page.on_sent(message);
        }
        page.on_message(None, 10).expect("data");
        page.on_message(Some("_heartbeat received 1"), 0).expect("a confirmation");
        assert_eq!(page.confirmation(), "_heartbeat received 1");
        assert_eq!(page.next_leg().as_deref(), Ok("resume.5ec2e7.1.1"));
        let again: Vec<_> = page.on_resumed("_heartbeat resumed 2").expect("a count").cloned().collect();
        assert_eq!(again, [b"c", b"d"]);
        assert_eq!(page.next_leg().as_deref(), Ok("resume.5ec2e7.2.1"));
        assert_eq!(page.on_resumed("_heartbeat resumed 4").map(Iterator::count), Ok(0));
    }

    #[test]
    fn a_page_is_settled_when_its_last_confirmation_is_answered_with_all_messages() {
        let mut page = greeted();
        page.on_sent(b"a");
        page.on_confirmation_sent();
        for (count, settled) in [(0, false), (1, true)] {
            page.on_message(Some(&format!("_heartbeat received {count}")), 0).expect("a confirmation");
            assert_eq!(page.is_settled(), settled);
        }
        page.on_confirmation_sent();
        assert!(!page.is_settled());
    }

    #[test]
    fn a_count_that_is_not_possible_is_an_error() {
        let mut page = greeted();
        page.on_sent(b"a");
        page.on_sent(b"b");
        page.on_message(Some("_heartbeat received 1"), 0).expect("a confirmation");
        let error = |count| Some(ProtocolError::Count { count, confirmed: 1, sent: 2 });
        for count in [0, 3] {
            assert_eq!(page.on_message(Some(&format!("_heartbeat received {count}")), 0).err(), error(count));
            assert_eq!(
                page.on_resumed(&format!("_heartbeat resumed {count}")).map(Iterator::count).err(),
                error(count)
            );
        }
        for first in ["", "_heartbeat received 1", "_heartbeat resumed", GREETING] {
            assert_eq!(page.on_resumed(first).map(Iterator::count), Err(ProtocolError::NotResumed), "{first}");
        }
    }

    #[test]
    fn the_first_message_shows_whether_the_server_resumes_sessions() {
        let first = |text| Resumption::default().on_message(text, 5);
        assert_eq!(first(Some(GREETING)), Ok(()));
        assert_eq!(first(Some("_heartbeat resumable 5ec2e7 1048576 300000 taken")), Ok(()));
        assert_eq!(first(Some("_heartbeat plain")), Err(ProtocolError::Disabled));
        assert_eq!(first(Some("_heartbeat plain taken")), Err(ProtocolError::Disabled));
        assert_eq!(first(Some("_heartbeat resumable 5ec2e7")), Err(ProtocolError::Greeting));
        assert_eq!(first(None), Err(ProtocolError::NotOffered));
        assert_eq!(first(Some("a text of the app")), Err(ProtocolError::NotOffered));
        assert_eq!(Resumption::default().next_leg(), Err(ProtocolError::NotOffered));
    }

    #[test]
    fn control_messages_are_not_counted_and_much_data_is_confirmed_unasked() {
        let mut page = greeted();
        page.on_message(Some("_heartbeat received 0"), 40_000).expect("a confirmation");
        page.on_message(Some("_heartbeat something new"), 40_000).expect("a control message");
        page.on_message(Some("a text of the app"), CONFIRM_AFTER_BYTES - 1).expect("data");
        assert!(!page.owes_confirmation());
        page.on_message(None, 1).expect("data");
        assert!(page.owes_confirmation());
        assert_eq!(page.confirmation(), "_heartbeat received 2");
        page.on_confirmation_sent();
        assert!(!page.owes_confirmation());
    }
}
