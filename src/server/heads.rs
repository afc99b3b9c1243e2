//! Detects what hyper drops from a request's head: a Content-Length beside a Transfer-Encoding (RFC 9112 §6.1).
//!
//! Heads are scanned as they are read. hyper gets no byte after a head before it has parsed that head, so both agree on
//! where it ends. The body length that hyper reports gives the start of the next head.

use memchr::memchr_iter;

const LENGTH: &[u8] = b"content-length:";
const CODING: &[u8] = b"transfer-encoding:";
/// Start of the HTTP/2 preface (RFC 9113 §3.4). hyper rejects it, but reads all of it first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// What the next bytes belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// A head.
    Head,
    /// A body with this many bytes left.
    Body(u64),
    /// Not scanned: no further request follows.
    Unscanned,
}

/// The scanner of a connection's requests.
#[derive(Debug)]
pub(super) struct HeadScanner {
    position: Position,
    /// The start of the incomplete line, and that line's length so far.
    start: [u8; CODING.len()],
    length: usize,
    /// A non-empty line was read.
    started: bool,
    /// Fields seen since [`HeadScanner::on_request`].
    has_length: bool,
    has_coding: bool,
}

impl Default for HeadScanner {
    fn default() -> Self {
        let start = [0; CODING.len()];
        Self { position: Position::Head, start, length: 0, started: false, has_length: false, has_coding: false }
    }
}

impl HeadScanner {
    /// Scans received bytes. Returns how many of them hyper may read now; bytes after a head or a body wait for the
    /// next call.
    pub(super) fn on_bytes(&mut self, bytes: &[u8]) -> usize {
        match &mut self.position {
            Position::Head => self.scan(bytes),
            Position::Body(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                if *left == 0 {
                    self.position = Position::Head;
                }
                taken
            }
            Position::Unscanned => bytes.len(),
        }
    }

    /// hyper has parsed a head whose body has this length. `None` is a chunked body, after which no other request may
    /// be served. Returns whether the head had a Content-Length beside a Transfer-Encoding.
    pub(super) fn on_request(&mut self, body: Option<u64>) -> bool {
        let ambiguous = self.has_length && self.has_coding;
        let position = match body {
            Some(0) => Position::Head,
            Some(length) => Position::Body(length),
            None => Position::Unscanned,
        };
        *self = Self { position, ..Self::default() };
        ambiguous
    }

    /// Searches both fields, and the empty line that ends the head. Returns the number of bytes up to its end.
    fn scan(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        for end in memchr_iter(b'\n', bytes) {
            let ends = self.on_line(&bytes[at..end]);
            if self.position == Position::Unscanned {
                return bytes.len();
            }
            at = end + 1;
            if ends {
                return at;
            }
        }
        self.keep(&bytes[at..]);
        bytes.len()
    }

    /// Takes the rest of a line, without its LF. Returns whether it ends the head. Empty lines before a request do not
    /// count (RFC 9112 §2.2).
    fn on_line(&mut self, rest: &[u8]) -> bool {
        if self.length == 0 {
            return self.on_start(rest);
        }
        self.keep(rest);
        let (start, length) = (self.start, self.length.min(CODING.len()));
        self.length = 0;
        self.on_start(&start[..length])
    }

    /// As [`HeadScanner::on_line`], with the start of the whole line.
    fn on_start(&mut self, start: &[u8]) -> bool {
        match start {
            // A CR belongs to the line's end.
            [] | b"\r" => return std::mem::take(&mut self.started),
            [b'C' | b'c', ..] => self.has_length |= starts_with(start, LENGTH),
            [b'T' | b't', ..] => self.has_coding |= starts_with(start, CODING),
            [b'P', ..] if !self.started && start.starts_with(PREFACE) => self.position = Position::Unscanned,
            _ => {}
        }
        self.started = true;
        false
    }

    fn keep(&mut self, bytes: &[u8]) {
        if let Some(room) = self.start.get_mut(self.length..) {
            let kept = room.len().min(bytes.len());
            room[..kept].copy_from_slice(&bytes[..kept]);
        }
        self.length = self.length.saturating_add(bytes.len());
    }
}

fn starts_with(line: &[u8], name: &[u8]) -> bool {
    line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &str = "POST / HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: 5\r\nX: y\r\ntransfer-encoding: chunked\r\n\r\n";

    /// The results of [`HeadScanner::on_request`] if the bytes arrive in pieces of this size.
    fn results(bytes: &[u8], size: usize, bodies: &[Option<u64>]) -> Vec<bool> {
        let (mut heads, mut results, mut at) = (HeadScanner::default(), Vec::new(), 0);
        for body in bodies {
            let head = at;
            while !is_whole(&bytes[head..at]) {
                at += heads.on_bytes(&bytes[at..bytes.len().min(at + size)]);
            }
            assert!(!is_whole(&bytes[head..at - 1]), "no byte after the head is read with it");
            results.push(heads.on_request(*body));
            let end = at + body.unwrap_or(0) as usize;
            while at < end {
                at += heads.on_bytes(&bytes[at..bytes.len().min(at + size)]);
            }
            assert_eq!(at, end, "no byte after the body is read with it");
        }
        results
    }

    fn is_whole(head: &[u8]) -> bool {
        let head = head.trim_ascii_start();
        [&b"\r\n\r\n"[..], b"\n\n", b"\n\r\n"].iter().any(|end| head.ends_with(end))
    }

    #[test]
    fn a_length_beside_a_coding_is_detected_however_the_head_is_split() {
        for text in [
            BOTH.to_owned(),
            BOTH.replace('\r', ""),
            format!("\r\n\n\r\n{BOTH}"),
            BOTH.replace(
                "content-LENGTH: 5\r\nX: y\r\ntransfer-encoding: chunked",
                "Transfer-Encoding:\r\nContent-Length:",
            ),
            BOTH.replace("X: y", &format!("X: {}", "y".repeat(70_000))),
        ] {
            for size in (1..40).chain([1000, 100_000]) {
                assert_eq!(results(text.as_bytes(), size, &[Some(0)]), [true], "{size}: {text:.200}");
            }
        }
    }

    #[test]
    fn one_field_and_a_similar_one_are_not_reported() {
        for lines in [
            "Content-Length: 5",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nX-Content-Length: 5",
            "Transfer-Encoding: chunked\r\nContent-Length2: 5",
            "Transfer-Encoding: chunked\r\nX: Content-Length: 5",
            "Content-Length: 5\r\nTransfer-Encodin: chunked",
        ] {
            let text = format!("POST /\nHTTP/1.1\r\n{lines}\r\n\r\n");
            for size in 1..100 {
                assert_eq!(results(text.as_bytes(), size, &[Some(0)]), [false], "{size}: {text}");
            }
        }
    }

    #[test]
    fn bodies_are_not_scanned_and_later_heads_are() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let text = format!("{get}POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{BOTH}\r\n{get}{BOTH}", BOTH.len());
        let bodies = [Some(0), Some(BOTH.len() as u64), Some(0), None];
        for size in (1..300).chain([10_000]) {
            assert_eq!(results(text.as_bytes(), size, &bodies), [false, false, false, true], "{size}");
        }
        let mut heads = HeadScanner::default();
        heads.on_request(None);
        assert_eq!(heads.on_bytes(BOTH.as_bytes()), BOTH.len(), "nothing after a chunked body is held back");
    }
}
