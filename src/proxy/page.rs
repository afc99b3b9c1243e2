//! Adds the watchdog's script to the app's page.
//!
//! Invariant: besides the script, only header fields on length and caching change. A body that does not look like a
//! Streamlit page passes unchanged.

mod markup;
mod policy;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming};

use self::markup::{Insertion, Search};
use super::body::{ResponseBody, Tail};
use crate::metrics::WatchdogPage;

/// Limit of what is buffered of a page until its head is complete.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Fields that make a response depend on the browser's cache: with them the upstream may leave out the page.
const CONDITIONAL_FIELDS: [HeaderName; 3] = [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_RANGE];

/// Fields that hold for the upstream's form of the page, not for the changed one.
const VALIDATORS: [HeaderName; 4] =
    [header::ETAG, header::LAST_MODIFIED, header::ACCEPT_RANGES, HeaderName::from_static("content-md5")];

/// A request that may be for the app's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Navigation {
    /// The page itself.
    Get,
    /// Only the page's header.
    Head,
}

impl Navigation {
    /// Recognizes a browser's request for a whole page.
    pub(super) fn of<B>(request: &Request<B>) -> Option<Self> {
        let headers = request.headers();
        let has = |name: HeaderName, wanted: fn(&str) -> bool| {
            headers.get(name).map(|value| value.to_str().is_ok_and(wanted))
        };
        let for_page = has(header::ACCEPT, |accept| accept.contains("text/html")) == Some(true);
        // Fetch Metadata §2.1; browsers send it over TLS and on localhost.
        let destination = HeaderName::from_static("sec-fetch-dest");
        let for_frame = has(destination, |to| matches!(to, "document" | "iframe" | "frame")) != Some(false);
        if !for_page || !for_frame || headers.contains_key(header::RANGE) {
            return None;
        }
        match *request.method() {
            Method::GET => Some(Self::Get),
            Method::HEAD => Some(Self::Head),
            _ => None,
        }
    }

    /// Requests the whole page, uncompressed: a page in the browser's cache may lack the script, and a
    /// compressed one cannot be searched.
    pub(super) fn request_full_plain(headers: &mut HeaderMap) {
        for name in CONDITIONAL_FIELDS {
            headers.remove(name);
        }
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
}

/// The script element, and the path that shows whether one is already there.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) element: Bytes,
    pub(super) path: &'static str,
}

/// Adds the script to a page. `host` is the page's own. The result is `None` if the response is not a page.
///
/// # Errors
/// The upstream's, if it fails before the page's head is complete.
pub(super) async fn add(
    script: &Script,
    navigation: Navigation,
    host: Option<&str>,
    response: Response<Incoming>,
) -> Result<(Response<ResponseBody>, Option<WatchdogPage>), hyper::Error> {
    if !is_page(&response) {
        return Ok((response.map(ResponseBody::from), None));
    }
    let (mut head, body) = response.into_parts();
    let not_added = if head.headers.contains_key(header::CONTENT_ENCODING) {
        Some(WatchdogPage::Encoded)
    } else if !policy::allows_own_script(&head.headers, host) {
        Some(WatchdogPage::Forbidden)
    } else {
        None
    };
    if navigation == Navigation::Head && not_added.is_none() {
        // Only the body shows whether the page would be changed (RFC 9110 §9.3.2).
        remove_validators(&mut head.headers);
        head.headers.remove(header::CONTENT_LENGTH);
    }
    if navigation == Navigation::Head || not_added.is_some() {
        return Ok((Response::from_parts(head, body.into()), not_added));
    }
    let (front, position, rest) = read_head(body, script.path).await?;
    let result = match position {
        Insertion::At(_) => WatchdogPage::Added,
        Insertion::AlreadyPresent => WatchdogPage::Present,
        Insertion::NotStreamlit | Insertion::Unknown => WatchdogPage::NotStreamlit,
    };
    let front = match position {
        Insertion::At(at) => {
            remove_validators(&mut head.headers);
            lengthen(&mut head.headers, script.element.len());
            [&front[..at], &script.element, &front[at..]].concat().into()
        }
        Insertion::AlreadyPresent | Insertion::NotStreamlit | Insertion::Unknown => front.freeze(),
    };
    Ok((Response::from_parts(head, ResponseBody::fronted(front, rest)), Some(result)))
}

fn is_page(response: &Response<Incoming>) -> bool {
    let media_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    response.status() == StatusCode::OK && essence.eq_ignore_ascii_case("text/html")
}

/// Reads until the position of the script is known, or more than [`MAX_HEAD_BYTES`] is read.
async fn read_head(mut body: Incoming, script: &str) -> Result<(BytesMut, Insertion, Tail), hyper::Error> {
    let (mut front, mut search) = (BytesMut::new(), Search::new(script));
    loop {
        let position = search.resume(&front);
        if position != Insertion::Unknown || front.len() > MAX_HEAD_BYTES {
            return Ok((front, position, Tail::Body(body)));
        }
        let Some(frame) = body.frame().await.transpose()? else { return Ok((front, position, Tail::Nothing)) };
        match frame.into_data().map_err(Frame::into_trailers) {
            Ok(data) => front.extend_from_slice(&data),
            Err(Ok(trailers)) => return Ok((front, position, Tail::Trailers(trailers.into()))),
            // Frames are data or trailers.
            Err(Err(_frame)) => {}
        }
    }
}

fn remove_validators(headers: &mut HeaderMap) {
    for name in VALIDATORS {
        headers.remove(name);
    }
}

fn lengthen(headers: &mut HeaderMap, by: usize) {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, (length + by as u64).into());
    }
}
