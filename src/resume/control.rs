//! The control messages of a resumable session, and the secret that a page resumes it with.
//!
//! Invariant: a secret is never shown: not in a URL, a log, a metric or debug output.

use std::fmt;

use subtle::ConstantTimeEq as _;

/// The start of every control message.
const PREFIX: &str = "_heartbeat ";

/// The start of the subprotocol entry with which a page resumes a session.
const ENTRY: &str = "resume.";

/// Close codes between a page's script and the sidecar (RFC 6455 §7.4.2: 4000 to 4999 are private).
pub mod close_code {
    /// The page gives up a leg that it believes to be lost. The session goes on.
    pub const GIVEN_UP: u16 = 4000;
    /// A newer leg has replaced this one.
    pub const REPLACED: u16 = 4001;
    /// The session cannot be resumed.
    pub const UNKNOWN: u16 = 4004;
}

/// What proves that a page may resume a session: 192 random bits, of which 64 find the session and 128 prove it.
#[derive(Clone, Copy)]
pub struct Secret {
    id: u64,
    key: [u8; 16],
}

/// A page's request to continue a session over a new leg.
#[derive(Clone, Copy, Debug)]
pub struct ResumeRequest {
    /// Of the session.
    pub secret: Secret,
    /// The number of the leg; the page's newest has the highest.
    pub leg: u32,
    /// How many data messages the page has received.
    pub received: u64,
}

impl Secret {
    /// A secret of random bytes.
    pub fn new(id: u64, key: [u8; 16]) -> Self {
        Self { id, key }
    }

    /// Finds the session.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether `other` is the same, in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        self.id == other.id && self.key.ct_eq(&other.key).into()
    }

    fn parse(text: &str) -> Option<Self> {
        let (id, key) = text.split_at_checked(16).filter(|(_, key)| key.len() == 32)?;
        let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = u64::from_str_radix(id, 16).ok().filter(|_id| digits)?;
        Some(Self { id, key: u128::from_str_radix(key, 16).ok()?.to_be_bytes() })
    }

    fn text(&self) -> String {
        format!("{:016x}{:032x}", self.id, u128::from_be_bytes(self.key))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(hidden)")
    }
}

impl ResumeRequest {
    /// Whether a subprotocol of a handshake is a request of this kind, valid or not.
    pub fn is_entry(subprotocol: &str) -> bool {
        subprotocol.starts_with(ENTRY)
    }

    /// Parses the subprotocol `resume.<secret>.<leg>.<received>`; `None` for anything else.
    pub fn parse(subprotocol: &str) -> Option<Self> {
        let mut parts = subprotocol.strip_prefix(ENTRY)?.split('.');
        let request = Self {
            secret: Secret::parse(parts.next()?)?,
            leg: number(parts.next()?)?.try_into().ok()?,
            received: number(parts.next()?)?,
        };
        parts.next().is_none().then_some(request)
    }
}

/// The greeting of a new connection that can be resumed. `buffer_bytes` are those that either end keeps; `window_ms`
/// is how long the session stays parked. `taken`: the handshake has closed an older connection of its session, which had
/// passed this many data messages to the app.
pub fn greeting(secret: &Secret, buffer_bytes: usize, window_ms: u128, taken: Option<u64>) -> Vec<u8> {
    text_frame(&format!("{PREFIX}resumable {} {buffer_bytes} {window_ms}{}", secret.text(), taken_text(taken)))
}

/// The greeting of a new connection that cannot be resumed.
pub fn plain_greeting(taken: Option<u64>) -> Vec<u8> {
    text_frame(&format!("{PREFIX}plain{}", taken_text(taken)))
}

fn taken_text(taken: Option<u64>) -> String {
    taken.map(|received| format!(" taken {received}")).unwrap_or_default()
}

/// The first message of a leg that continues a session: how many data messages came from the page.
pub fn resumed(received: u64) -> Vec<u8> {
    text_frame(&format!("{PREFIX}resumed {received}"))
}

/// Confirms that so many data messages came from the page.
pub fn received(received: u64) -> Vec<u8> {
    text_frame(&format!("{PREFIX}received {received}"))
}

/// Whether the payload of a text message starts like a control message.
pub fn is_control(payload: &[u8]) -> bool {
    payload.starts_with(PREFIX.as_bytes())
}

/// How many messages a page's control message confirms, and whether the page awaits the same; `None` for any other
/// control message.
pub fn confirmed(payload: &[u8]) -> Option<(u64, bool)> {
    let text = std::str::from_utf8(payload).ok()?.strip_prefix(PREFIX)?;
    let (word, count) = text.split_once(' ')?;
    let awaits = word == "received";
    (awaits || word == "confirm").then(|| number(count)).flatten().map(|count| (count, awaits))
}

/// Which inputs a page's control message reports as not sent: its reason, and how many.
pub fn unsent(payload: &[u8]) -> Option<(&str, u64)> {
    let text = std::str::from_utf8(payload).ok()?.strip_prefix(PREFIX)?;
    let (reason, inputs) = text.strip_prefix("unsent ")?.split_once(' ')?;
    Some((reason, number(inputs)?))
}

fn number(text: &str) -> Option<u64> {
    // `parse` alone takes a sign.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// An unmasked text frame; the texts above are shorter than 126 bytes.
fn text_frame(text: &str) -> Vec<u8> {
    debug_assert!(text.len() <= crate::websocket::frame::MAX_CONTROL_BYTES);
    [&[0x81, text.len() as u8], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = Secret { id: 0x17, key: (0xab_u128 << 64).to_be_bytes() };

    #[test]
    fn a_request_has_the_secret_a_leg_and_a_count() {
        let entry = format!("resume.{}.3.70000000000", SECRET.text());
        let request = ResumeRequest::parse(&entry).expect("valid");
        assert!(request.secret.matches(&SECRET) && request.secret.id() == 0x17);
        assert_eq!((request.leg, request.received), (3, 70_000_000_000));
        let text = SECRET.text();
        for wrong in [
            String::new(),
            "resume.".to_owned(),
            format!("resume.{text}.1"),
            format!("resume.{text}.1.2.3"),
            format!("resume.{text}.-1.2"),
            format!("resume.{text}.+1.2"),
            format!("resume.{text}.4294967296.2"),
            format!("resume.{text}.1.99999999999999999999"),
            format!("resume.{}.1.2", &text[1..]),
            format!("resume.+{}.1.2", &text[1..]),
            format!("resume.{text}0.1.2"),
            format!("{text}.1.2"),
        ] {
            assert!(ResumeRequest::parse(&wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn secrets_match_only_if_every_bit_does_and_are_hidden() {
        for bit in 0..128 {
            let key = u128::from_be_bytes(SECRET.key) ^ (1 << bit);
            assert!(!SECRET.matches(&Secret { key: key.to_be_bytes(), ..SECRET }), "bit {bit}");
        }
        assert!(!SECRET.matches(&Secret { id: 0x18, ..SECRET }) && SECRET.matches(&SECRET));
        assert_eq!(format!("{SECRET:?}"), "Secret(hidden)");
    }

    #[test]
    fn control_messages_are_short_text_frames() {
        for taken in [None, Some(u64::from(u32::MAX))] {
            let longest = greeting(&SECRET, usize::MAX >> 1, u128::from(u32::MAX), taken);
            assert_eq!((longest[0], usize::from(longest[1])), (0x81, longest.len() - 2));
            assert!(longest.len() <= 2 + 125 && is_control(&longest[2..]));
        }
        assert_eq!(resumed(7), b"\x81\x14_heartbeat resumed 7"[..].to_vec());
        assert_eq!(confirmed(&received(9)[2..]), Some((9, true)));
        assert_eq!(confirmed(b"_heartbeat confirm 9"), Some((9, false)));
        assert_eq!(unsent(b"_heartbeat unsent age 2"), Some(("age", 2)));
        for other in ["_heartbeat unsent age", "_heartbeat unsent age x", "_heartbeat unsent 2", "unsent age 2"] {
            assert_eq!(unsent(other.as_bytes()), None, "{other}");
        }
        for other in ["_heartbeat received", "_heartbeat received x", "_heartbeat received 1 2", "received 1"] {
            assert_eq!(confirmed(other.as_bytes()), None, "{other}");
        }
    }
}
