//! Request and trace ids, by which a session is found in the logs of every hop.
//!
//! Invariant: ids are opaque values of the platform, checked before they are logged; nothing else of a header is kept.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

/// The header of the request's id. It is not standardized, but every ingress supports it.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The longest request id that is kept. It is longer than what any ingress generates, and bounds a session's memory.
const MAX_ID_BYTES: usize = 128;

/// The id of a request and, after a space, that of its trace: one string, because every session keeps it.
#[derive(Debug, PartialEq, Eq)]
pub struct TraceIds(Box<str>);

/// Ensures that a request has one id that every hop can log. A valid id is kept: one word of visible ASCII of at most
/// `MAX_ID_BYTES`. Any other is replaced by 128 random bits.
pub fn identify(headers: &mut HeaderMap) {
    if request_id(headers).is_none() {
        let id = HeaderValue::try_from(format!("{:032x}", rand::random::<u128>()));
        headers.insert(REQUEST_ID, id.expect("hex digits are a valid value"));
    }
}

fn request_id(headers: &HeaderMap) -> Option<&str> {
    let id = only(headers, &REQUEST_ID)?;
    let valid = (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    valid.then_some(id)
}

/// The trace's id in a `traceparent` (W3C Trace Context §3.2): the second of its parts.
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let (version, rest) = only(headers, &TRACEPARENT)?.split_at_checked(2)?;
    let rest = rest.strip_prefix('-')?;
    let (trace, rest) = rest.split_at_checked(32)?;
    let (parent, rest) = rest.strip_prefix('-')?.split_at_checked(16)?;
    let (flags, rest) = rest.strip_prefix('-')?.split_at_checked(2)?;
    let hex = [version, trace, parent, flags].iter().all(|part| is_lower_hex(part));
    // Later versions may append parts (§3.2.4); version 00 must not.
    let known = rest.is_empty() || (version != "00" && rest.starts_with('-'));
    let valid = hex && known && version != "ff" && trace.bytes().any(|digit| digit != b'0');
    valid.then_some(trace)
}

fn is_lower_hex(text: &str) -> bool {
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
        Some(Self(match trace_id(headers) {
            None => id.into(),
            Some(trace) => format!("{id} {trace}").into(),
        }))
    }

    /// The request's id.
    pub fn request(&self) -> &str {
        self.0.split(' ').next().unwrap_or_default()
    }

    /// The trace's id, if the request belongs to one.
    pub fn trace(&self) -> Option<&str> {
        self.0.split(' ').nth(1)
    }
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

    fn ids(fields: &[(&'static str, &str)]) -> (String, Option<String>) {
        let ids = TraceIds::of(&headers(fields)).expect("a valid request id");
        (ids.request().to_owned(), ids.trace().map(str::to_owned))
    }

    #[test]
    fn a_valid_id_is_kept_and_any_other_is_replaced_by_random_hex() {
        let longest = "x".repeat(MAX_ID_BYTES);
        for id in
            ["1", "{a/b}\"=", &longest, TRACE, "00000000000000000000000000000000", "0AF7651916CD43DD8448EB211C80319C"]
        {
            let mut map = headers(&[("x-request-id", id)]);
            identify(&mut map);
            assert_eq!(map, headers(&[("x-request-id", id)]));
            assert_eq!(ids(&[("x-request-id", id)]), (id.to_owned(), None));
        }
        let long = format!("{longest}x");
        let mut generated = std::collections::HashSet::new();
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
            assert!(id.len() == 32 && is_lower_hex(&id), "{fields:?}: {id}");
            assert_eq!(ids(&[("x-request-id", &id)]), (id.clone(), None));
            assert!(generated.insert(id));
        }
    }

    #[test]
    fn the_trace_id_is_read_only_from_a_valid_traceparent() {
        let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
        let with = |parent: &str| ids(&[("x-request-id", "a"), ("traceparent", parent)]);
        assert_eq!(with(&parent), ("a".to_owned(), Some(TRACE.to_owned())));
        assert_eq!(ids(&[("x-request-id", TRACE), ("traceparent", &parent)]), (TRACE.into(), Some(TRACE.into())));
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
        assert_eq!(ids(&twice).1, None);
    }
}
