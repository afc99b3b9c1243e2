//! Finds the position for a script in a Streamlit page, and reads no more of the page than needed.

use memchr::memmem;

/// Marks of a Streamlit page: its title, or its script's flag for crawlers (from 1.12 on, both in the head).
/// Platforms change the one or the other.
const MARKS: [&[u8]; 2] = [b"<title>Streamlit</title>", b"window.prerenderReady"];

/// U+FEFF in UTF-8, which may precede everything else.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Result of searching the front of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Insertion {
    /// The script goes before this byte, first in the head.
    At(usize),
    /// There is one already, from another sidecar behind this one.
    AlreadyPresent,
    /// This is not a Streamlit page.
    NotStreamlit,
    /// More of the page is needed.
    Unknown,
}

/// A search for the position of a script whose address ends with `script`, in a page that arrives in pieces.
///
/// Skips only what may precede a head (WHATWG HTML §13.1: byte order mark, space, comments, doctype, `<html>`). What
/// follows must look like Streamlit's head up to its end. The search stops at the first byte that shows another page,
/// so that no streamed page waits for its end here.
///
/// Invariant: a byte is examined a bounded number of times, however the page is cut into pieces.
#[derive(Debug)]
pub(super) struct Search<'a> {
    script: &'a str,
    /// Bytes before it are examined.
    from: usize,
    expecting: Expecting,
}

/// What has to be found next.
#[derive(Clone, Copy, Debug)]
enum Expecting {
    /// An optional byte order mark.
    Start,
    /// What may precede the head, or its tag.
    Opening,
    EndOfComment,
    EndOfTag,
    /// The end of the head's tag, which starts here.
    EndOfHeadTag(usize),
    /// The end of the head, which starts here.
    EndOfHead(usize),
}

impl<'a> Search<'a> {
    pub(super) fn new(script: &'a str) -> Self {
        Self { script, from: 0, expecting: Expecting::Start }
    }

    /// Continues in a page's front, which is that of the last call with more of the page appended.
    pub(super) fn resume(&mut self, front: &[u8]) -> Insertion {
        loop {
            let fresh = &front[self.from..];
            match self.expecting {
                Expecting::Start if BYTE_ORDER_MARK.starts_with(fresh) => return Insertion::Unknown,
                Expecting::Start => {
                    self.from += if fresh.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
                    self.expecting = Expecting::Opening;
                }
                Expecting::Opening => {
                    self.from += fresh.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
                    match opening(&front[self.from..]) {
                        Opening::Comment => {
                            // `<!-->` is a whole comment.
                            self.from += 2;
                            self.expecting = Expecting::EndOfComment;
                        }
                        Opening::Doctype | Opening::Html => self.expecting = Expecting::EndOfTag,
                        Opening::Head => self.expecting = Expecting::EndOfHeadTag(self.from),
                        Opening::Partial => return Insertion::Unknown,
                        Opening::Other => return Insertion::NotStreamlit,
                    }
                }
                Expecting::EndOfComment => {
                    let Some(_end) = self.pass(front, memmem::find(fresh, b"-->"), 3) else {
                        return Insertion::Unknown;
                    };
                    self.expecting = Expecting::Opening;
                }
                Expecting::EndOfTag => {
                    let Some(_end) = self.pass(front, memchr::memchr(b'>', fresh), 1) else {
                        return Insertion::Unknown;
                    };
                    self.expecting = Expecting::Opening;
                }
                Expecting::EndOfHeadTag(start) => {
                    let Some(end) = self.pass(front, memchr::memchr(b'>', fresh), 1) else {
                        return Insertion::Unknown;
                    };
                    // A `>` within a quoted value is not the end of the tag.
                    let odd = |quote: u8| front[start..end].iter().filter(|byte| **byte == quote).count() % 2 == 1;
                    if odd(b'"') || odd(b'\'') {
                        return Insertion::NotStreamlit;
                    }
                    self.expecting = Expecting::EndOfHead(end);
                }
                Expecting::EndOfHead(start) => {
                    let Some(end) = self.pass(front, end_of_head(fresh), END_OF_HEAD) else {
                        return Insertion::Unknown;
                    };
                    return classify(&front[start..end - END_OF_HEAD], start, self.script);
                }
            }
        }
    }

    /// Skips a match of `length` bytes at `found` of the unexamined bytes; returns its end. If nothing was found, the
    /// last bytes may be the start of a match.
    fn pass(&mut self, front: &[u8], found: Option<usize>, length: usize) -> Option<usize> {
        self.from = match found {
            Some(at) => self.from + at + length,
            None => self.from.max((front.len() + 1).saturating_sub(length)),
        };
        found.map(|_at| self.from)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opening {
    Comment,
    Doctype,
    Html,
    Head,
    /// More bytes are needed.
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

/// Number of bytes that show the end of a head: `</head`, or `<body` and the byte after it.
const END_OF_HEAD: usize = b"</head".len();

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let is_end = |six: &[u8]| six.eq_ignore_ascii_case(b"</head") || six[..5].eq_ignore_ascii_case(b"<body");
    memchr::memchr_iter(b'<', bytes).find(|at| bytes.get(*at..at + END_OF_HEAD).is_some_and(is_end))
}

/// Classifies a complete head; a script would go to `at`.
fn classify(head: &[u8], at: usize, script: &str) -> Insertion {
    if memmem::find(head, script.as_bytes()).is_some() {
        Insertion::AlreadyPresent
    } else if MARKS.iter().any(|mark| memmem::find(head, mark).is_some()) {
        Insertion::At(at)
    } else {
        Insertion::NotStreamlit
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCRIPT: &str = "/_heartbeat/watchdog.js";

    fn found(page: &str) -> Insertion {
        position(page.as_bytes())
    }

    fn position(page: &[u8]) -> Insertion {
        Search::new(SCRIPT).resume(page)
    }

    /// The position in a page that arrives in pieces of these sizes, in turn, and the number of bytes examined.
    fn in_pieces(page: &[u8], sizes: &[usize]) -> (Insertion, usize) {
        let (mut search, mut length, mut examined) = (Search::new(SCRIPT), 0, 0);
        let mut sizes = sizes.iter().cycle();
        loop {
            examined += length - search.from;
            let position = search.resume(&page[..length]);
            if position != Insertion::Unknown || length == page.len() {
                return (position, examined);
            }
            length = (length + sizes.next().expect("a size")).min(page.len());
        }
    }

    /// The text before the position.
    fn before(page: &str) -> &str {
        match found(page) {
            Insertion::At(at) => &page[..at],
            other => panic!("{other:?}: {page}"),
        }
    }

    #[test]
    fn the_script_goes_right_after_the_opening_tag_of_the_head() {
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
    fn a_streamlit_page_with_another_title_is_recognized() {
        let front = "<html><head>";
        assert_eq!(
            before(&format!("{front}<title>Ours</title><script>window.prerenderReady=!1</script></head>")),
            front
        );
    }

    #[test]
    fn a_partial_page_is_never_classified_differently_from_the_whole() {
        let page = b"\xef\xbb\xbf<!-- a --><!doctype html>\n<html><head >\n<title>Streamlit</title></head><body>";
        let position_in_all = position(page);
        assert!(matches!(position_in_all, Insertion::At(_)));
        for length in 0..page.len() {
            let front = position(&page[..length]);
            assert!(front == Insertion::Unknown || front == position_in_all, "{front:?} at {length}");
        }
    }

    #[test]
    fn other_pages_are_recognized_without_waiting_for_more() {
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
            assert_eq!(found(page), Insertion::NotStreamlit, "{page}");
        }
    }

    #[test]
    fn a_page_that_has_the_script_gets_no_second_one() {
        let page = "<head><script src=\"./_heartbeat/watchdog.js\"></script><title>Streamlit</title></head>";
        assert_eq!(found(page), Insertion::AlreadyPresent);
    }
    /// Pages that make a search long, or repeat it.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        const STARTS: [&str; 5] = ["", "\u{feff}", "<!doctype html>", "<html><head>", "<head><title>Streamlit</title>"];
        const PARTS: [&str; 26] = [
            "<!--",
            "-->",
            "--",
            "->",
            "<!-->",
            "<!",
            "<",
            ">",
            "<!doctype ",
            "<html ",
            "<html>",
            "<head ",
            "<head>",
            "<head",
            "\"",
            "'",
            "</head",
            "</head>",
            "<body",
            "<script",
            " ",
            "\n",
            "\u{feff}",
            "<title>Streamlit</title>",
            "window.prerenderReady",
            SCRIPT,
        ];
        let one = (prop::sample::select(&PARTS[..]).prop_map(str::to_owned), 1..20usize);
        (prop::sample::select(&STARTS[..]), prop::collection::vec(one, 0..20)).prop_map(|(start, parts)| {
            let parts = parts.into_iter().map(|(part, times)| part.repeat(times));
            std::iter::once(start.to_owned()).chain(parts).collect::<String>().into_bytes()
        })
    }

    proptest! {
        #[test]
        fn splitting_a_page_does_not_change_the_position(
            page in hostile(),
            sizes in prop::collection::vec(1..30usize, 1..5),
        ) {
            let (position_in_pieces, _examined) = in_pieces(&page, &sizes);
            prop_assert_eq!(position_in_pieces, position(&page), "{}", page.escape_ascii());
        }
    }

    #[test]
    fn the_bytes_examined_are_bounded_however_the_page_is_split() {
        const LENGTH: usize = 64 * 1024;
        /// Maximum number of bytes examined again per piece: the longest text searched for.
        const MAX_REPEATED_BYTES: usize = "<!doctype".len();
        let head = "<html><head>";
        for (start, filler) in [
            ("<!--", " "),
            ("<!--", "<!--"),
            ("<!--", "-"),
            ("", " "),
            ("", "<!-- -->"),
            ("<html ", "<"),
            ("<head ", "\""),
            (head, "<"),
            (head, "</hea"),
            (head, "<script"),
            (head, "<title>Streamlit</title>"),
            (head, "x"),
        ] {
            let page = start.to_owned() + &filler.repeat(LENGTH / filler.len());
            for size in [1, 2, 7, 1460, LENGTH] {
                let (position, examined) = in_pieces(page.as_bytes(), &[size]);
                assert_eq!(position, Insertion::Unknown, "{start}{filler}");
                let pieces = page.len().div_ceil(size);
                assert!(
                    examined <= page.len() + pieces * MAX_REPEATED_BYTES,
                    "{start}{filler}, by {size}: {examined} examined"
                );
            }
        }
    }
}
