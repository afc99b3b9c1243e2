//! The place for a script in a page: the result for the start of a page equals the result for the whole page.
#![no_main]

use heartbeat_sidecar_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

#[path = "../../../src/proxy/page/markup.rs"]
mod markup;
use markup::{Insertion, Search};

const SCRIPT: &str = "/_heartbeat/watchdog.js";

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let cut = usize::from(input.short());
    let page = input.rest();
    let mut search = Search::new(SCRIPT);
    let (front, whole) = (search.resume(&page[..cut.min(page.len())]), place(page));
    let in_pieces = if front == Insertion::Unknown { search.resume(page) } else { front };
    assert_eq!(in_pieces, whole);
    if let Insertion::At(at) = whole {
        let (before, after) = page.split_at(at);
        let tag = before.windows(5).rposition(|five| five.eq_ignore_ascii_case(b"<head")).expect("there is a head tag");
        assert!(before.ends_with(b">") && !before[tag..at - 1].contains(&b'>'), "the place is after the head tag");
        let taken = [before, SCRIPT.as_bytes(), after].concat();
        assert_eq!(place(&taken), Insertion::AlreadyPresent, "a second script would be added");
    }
});

fn place(page: &[u8]) -> Insertion {
    Search::new(SCRIPT).resume(page)
}
