//! The ids by which a session is found in the logs of every hop of its handshake.
//!
//! Invariant: ids are opaque values of the platform, checked before they are logged; nothing else of a header is kept.

use std::borrow::Cow;

use data_encoding::HEXLOWER;
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

/// The header of the request's id. It is not standardized, but every ingress supports it.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The longest id that is kept, in bytes.
const LONGEST: usize = 128;

/// The ids of a request and of its trace; small, because a session keeps them until it ends.
#[derive(Debug, PartialEq, Eq)]
pub struct TraceIds(Form);

#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// An id of 32 lower-case hex digits, as generated here, without a trace.
    Hex([u8; 16]),
    /// Any id; after a space, the trace's id.
    Text(Box<str>),
}

/// Ensures that a request has one id that every hop can log. Its own id is kept if it is one word of visible ASCII and
/// not too long; otherwise it is replaced by 128 random bits.
pub fn identify(headers: &mut HeaderMap) {
    if request_id(headers).is_none() {
        let made = HeaderValue::try_from(hex(rand::random()));
        headers.insert(REQUEST_ID, made.expect("hex digits are a valid value"));
    }
}

fn request_id(headers: &HeaderMap) -> Option<&str> {
    let id = only(headers, &REQUEST_ID)?;
    let sane = (1..=LONGEST).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    sane.then_some(id)
}

/// The trace's id in a `traceparent` (W3C Trace Context §3.2): the second of its parts.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let (version, rest) = only(headers, &TRACEPARENT)?.split_at_checked(2)?;
    let rest = rest.strip_prefix('-')?;
    let (trace, rest) = rest.split_at_checked(32)?;
    let (parent, rest) = rest.strip_prefix('-')?.split_at_checked(16)?;
    let (flags, rest) = rest.strip_prefix('-')?.split_at_checked(2)?;
    let hex = [version, trace, parent, flags].iter().all(|part| is_small_hex(part));
    // Later versions may append parts (§3.2.4); version 00 must not.
    let known = rest.is_empty() || (version != "00" && rest.starts_with('-'));
    let valid = hex && known && version != "ff" && trace.bytes().any(|digit| digit != b'0');
    valid.then_some(trace)
}

fn is_small_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The value of a header that occurs once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut lines = headers.get_all(name).iter();
    let value = lines.next()?.to_str().ok()?;
    lines.next().is_none().then_some(value)
}

impl TraceIds {
    /// The ids of a request that was [identified](identify).
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let id = request_id(headers)?;
        Some(Self(match (trace_id(headers), packed(id)) {
            (None, Some(hex)) => Form::Hex(hex),
            (None, None) => Form::Text(id.into()),
            (Some(trace), _) => Form::Text(format!("{id} {trace}").into()),
        }))
    }

    /// The request's id.
    pub fn request(&self) -> Cow<'_, str> {
        match &self.0 {
            Form::Hex(id) => hex(*id).into(),
            Form::Text(ids) => ids.split(' ').next().unwrap_or_default().into(),
        }
    }

    /// The trace's id, if the request belongs to one.
    pub fn trace(&self) -> Option<&str> {
        match &self.0 {
            Form::Hex(_) => None,
            Form::Text(ids) => ids.split(' ').nth(1),
        }
    }
}

fn hex(id: [u8; 16]) -> String {
    HEXLOWER.encode(&id)
}

fn packed(id: &str) -> Option<[u8; 16]> {
    let digits: &[u8; 32] = id.as_bytes().try_into().ok()?;
    let mut bytes = [0; 16];
    HEXLOWER.decode_mut(digits, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).expect("a value"))
        };
        fields.iter().map(field).collect()
    }

    fn told(fields: &[(&'static str, &str)]) -> (String, Option<String>) {
        let ids = TraceIds::of(&headers(fields)).expect("a sane id");
        (ids.request().to_string(), ids.trace().map(str::to_owned))
    }

    #[test]
    fn a_valid_id_is_kept_and_any_other_is_replaced_by_random_hex() {
        let longest = "x".repeat(LONGEST);
        for id in
            ["1", "{a/b}\"=", &longest, TRACE, "00000000000000000000000000000000", "0AF7651916CD43DD8448EB211C80319C"]
        {
            let mut map = headers(&[("x-request-id", id)]);
            identify(&mut map);
            assert_eq!(map, headers(&[("x-request-id", id)]));
            assert_eq!(told(&[("x-request-id", id)]), (id.to_owned(), None));
        }
        let long = format!("{longest}x");
        let mut made = std::collections::HashSet::new();
        for fields in [
            &[][..],
            &[("x-request-id", "")],
            &[("x-request-id", "a b")],
            &[("x-request-id", "a\tb")],
            &[("x-request-id", "ä")],
            &[("x-request-id", &long)],
            &[("x-request-id", "a"), ("x-request-id", "a")],
        ] {
            let mut map = headers(fields);
            identify(&mut map);
            let id = map["x-request-id"].to_str().expect("hex").to_owned();
            assert_eq!(map.get_all(REQUEST_ID).iter().count(), 1);
            assert!(id.len() == 32 && is_small_hex(&id), "{fields:?}: {id}");
            assert_eq!(told(&[("x-request-id", &id)]), (id.clone(), None));
            assert!(made.insert(id));
        }
    }

    #[test]
    fn the_trace_id_is_read_only_from_a_valid_traceparent() {
        let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
        let with = |parent: &str| told(&[("x-request-id", "a"), ("traceparent", parent)]);
        assert_eq!(with(&parent), ("a".to_owned(), Some(TRACE.to_owned())));
        assert_eq!(told(&[("x-request-id", TRACE), ("traceparent", &parent)]), (TRACE.into(), Some(TRACE.into())));
        assert_eq!(with(&parent.replacen("00", "cc", 1)).1, Some(TRACE.to_owned()));
        assert_eq!(with(&format!("cc{}-what-the-future-brings", &parent[2..])).1, Some(TRACE.to_owned()));
        for broken in [
            parent.to_uppercase(),
            parent.replacen("00", "ff", 1),
            parent.replace(TRACE, &"0".repeat(32)),
            format!("{parent}-more"),
            format!("cc{}more", &parent[2..]),
            parent[..54].to_owned(),
            parent.replace('-', "_"),
            String::new(),
        ] {
            assert_eq!(with(&broken), ("a".to_owned(), None), "{broken}");
        }
        let twice = [("x-request-id", "a"), ("traceparent", parent.as_str()), ("traceparent", parent.as_str())];
        assert_eq!(told(&twice).1, None);
    }

    #[test]
    fn hex_ids_need_no_allocation() {
        assert!(size_of::<Option<TraceIds>>() <= 24, "{}", size_of::<Option<TraceIds>>());
        let Some(TraceIds(form)) = TraceIds::of(&headers(&[("x-request-id", TRACE)])) else { panic!("a sane id") };
        assert!(matches!(form, Form::Hex(_)));
    }
}
