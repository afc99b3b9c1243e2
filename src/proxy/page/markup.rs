//! Finds the place for a script in a page of Streamlit's, in as little of the page as says it.

use memchr::memmem;

/// What marks a page as Streamlit's: its title, or what its script says to crawlers (from 1.12 on, both in the head).
/// Platforms change the one or the other.
const MARKS: [&[u8]; 2] = [b"<title>Streamlit</title>", b"window.prerenderReady"];

/// U+FEFF in UTF-8, which may stand before everything else.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What is to be said of the front of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A script goes in before the byte here, which makes it the first thing in the head.
    At(usize),
    /// There is one already: another sidecar stands behind this one.
    Taken,
    /// This is no page of Streamlit's.
    Nowhere,
    /// More of the page must be seen.
    Unknown,
}

/// Looks for the place of a script whose address ends with `script`.
///
/// Only what may stand before a head is passed over (WHATWG HTML §13.1: byte order mark, space, comments, doctype,
/// `<html>`), and what follows must look like Streamlit's head up to its end. Anything else is left alone at the first
/// byte that shows it, so that no streamed page waits for its end here.
pub(super) fn place(page: &[u8], script: &str) -> Place {
    if BYTE_ORDER_MARK.starts_with(page) {
        return Place::Unknown;
    }
    let mut at = if page.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    loop {
        at += page[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let rest = &page[at..];
        let length = match opening(rest) {
            Opening::Comment => memmem::find(&rest[2..], b"-->").map(|end| 2 + end + 3),
            Opening::Doctype | Opening::Html | Opening::Head => memchr::memchr(b'>', rest).map(|end| end + 1),
            Opening::Partial => None,
            Opening::Other => return Place::Nowhere,
        };
        let Some(length) = length else { return Place::Unknown };
        at += length;
        if opening(rest) == Opening::Head {
            // A `>` within a quoted value is not the end of the tag.
            let odd = |quote: u8| rest[..length].iter().filter(|byte| **byte == quote).count() % 2 == 1;
            return if odd(b'"') || odd(b'\'') { Place::Nowhere } else { judge(&page[at..], at, script) };
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    Comment,
    Doctype,
    Html,
    Head,
    /// Too little is seen yet.
    Partial,
    Other,
}

fn opening(bytes: &[u8]) -> Opening {
    const OPENINGS: [(&[u8], Opening); 4] = [
        (b"<!--", Opening::Comment),
        (b"<!doctype", Opening::Doctype),
        (b"<html", Opening::Html),
        (b"<head", Opening::Head),
    ];
    for (text, opening) in OPENINGS {
        let seen = bytes.len().min(text.len());
        if !bytes[..seen].eq_ignore_ascii_case(&text[..seen]) {
            continue;
        }
        return match bytes.get(text.len()) {
            _ if opening == Opening::Comment && seen == text.len() => opening,
            None => Opening::Partial,
            Some(b'>') => opening,
            Some(byte) if byte.is_ascii_whitespace() => opening,
            Some(_) => Opening::Other,
        };
    }
    Opening::Other
}

/// Judges what follows `<head>`, which ends at `at`.
fn judge(head: &[u8], at: usize, script: &str) -> Place {
    let Some(end) =
        head.windows(6).position(|six| six.eq_ignore_ascii_case(b"</head") || six[..5].eq_ignore_ascii_case(b"<body"))
    else {
        return Place::Unknown;
    };
    let head = &head[..end];
    if memmem::find(head, script.as_bytes()).is_some() {
        Place::Taken
    } else if MARKS.iter().any(|mark| memmem::find(head, mark).is_some()) {
        Place::At(at)
    } else {
        Place::Nowhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "/_heartbeat/watchdog.js";

    fn found(page: &str) -> Place {
        place(page.as_bytes(), SCRIPT)
    }

    /// The text before the place.
    fn before(page: &str) -> &str {
        match found(page) {
            Place::At(at) => &page[..at],
            other => panic!("{other:?}: {page}"),
        }
    }

    #[test]
    fn the_place_is_right_behind_the_opening_of_the_head() {
        let tail = "<meta charset=utf-8><title>Streamlit</title></head><body></body></html>";
        for front in [
            "<!doctype html><html lang=\"en\"><head>",
            "\u{feff}<!--\n Copyright <head> -->\n\n<!DOCTYPE html>\n<HTML>\n  <HEAD class='a'>",
            "<!--><head>",
            "<head>",
        ] {
            assert_eq!(before(&format!("{front}{tail}")), front);
        }
    }

    #[test]
    fn a_page_with_another_title_is_still_streamlits() {
        let front = "<html><head>";
        assert_eq!(
            before(&format!("{front}<title>Ours</title><script>window.prerenderReady=!1</script></head>")),
            front
        );
    }

    #[test]
    fn every_front_of_a_page_is_judged_alike_or_not_yet() {
        let page = b"\xef\xbb\xbf<!-- a --><!doctype html>\n<html><head >\n<title>Streamlit</title></head><body>";
        let place_of_all = place(page, SCRIPT);
        assert!(matches!(place_of_all, Place::At(_)));
        for length in 0..page.len() {
            let front = place(&page[..length], SCRIPT);
            assert!(front == Place::Unknown || front == place_of_all, "{front:?} at {length}");
        }
    }

    #[test]
    fn other_pages_are_left_alone_at_once() {
        for page in [
            "hello",
            "<p>",
            "<html><body>",
            "<html><p>",
            "<header>",
            "<html><head><title>Streamlit Component</title></head>",
            "<html><head><body><title>Streamlit</title>",
            "<head data=\"a>b\"><title>Streamlit</title></head>",
            "{\"a\": 1}",
        ] {
            assert_eq!(found(page), Place::Nowhere, "{page}");
        }
    }

    #[test]
    fn a_page_that_has_the_script_gets_no_second_one() {
        let page = "<head><script src=\"./_heartbeat/watchdog.js\"></script><title>Streamlit</title></head>";
        assert_eq!(found(page), Place::Taken);
    }
}
