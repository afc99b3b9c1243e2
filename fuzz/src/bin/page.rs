//! The place for a script in a page: what is said of a page's front holds for the whole page.
#![no_main]

use heartbeat_sidecar_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

#[path = "../../../src/proxy/page/markup.rs"]
mod markup;
use markup::{Place, place};

const SCRIPT: &str = "/_heartbeat/watchdog.js";

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let cut = usize::from(input.short());
    let page = input.rest();
    let (front, whole) = (place(&page[..cut.min(page.len())], SCRIPT), place(page, SCRIPT));
    assert!(front == Place::Unknown || front == whole, "{front:?}, then {whole:?}");
    if let Place::At(at) = whole {
        let (before, after) = page.split_at(at);
        let tag = before.windows(5).rposition(|five| five.eq_ignore_ascii_case(b"<head")).expect("a head begins");
        assert!(before.ends_with(b">") && !before[tag..at - 1].contains(&b'>'), "the place is right behind its tag");
        let taken = [before, SCRIPT.as_bytes(), after].concat();
        assert_eq!(place(&taken, SCRIPT), Place::Taken, "a second script would go in");
    }
});
