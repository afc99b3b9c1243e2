//! The tag in a websocket's query, and the script: its tests run in a JavaScript engine without a browser.

use rquickjs::{CatchResultExt, Context, Runtime};

use super::*;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A browser without a network, and what the tests of the script share.
const BROWSER: &str = include_str!("tests/browser.js");

fn taken(target: &str) -> (String, Option<(bool, Reconnect, bool)>) {
    let mut uri = target.parse().expect("a target");
    let tag = take_tag(&mut uri);
    (uri.to_string(), tag.map(|tag| (tag.token.is_some(), tag.cause, tag.resumes)))
}

#[test]
fn only_the_tag_is_removed_from_the_query() {
    let own = Some((true, Reconnect::Other, false));
    assert_eq!(taken(&format!("/b/_stcore/stream?_heartbeat={TOKEN}")), ("/b/_stcore/stream".to_owned(), own));
    assert_eq!(taken(&format!("/s?a=%20&_heartbeat={TOKEN}&b&c=")), ("/s?a=%20&b&c=".to_owned(), own));
    for (suffix, cause, resumes) in [
        (".watchdog", Reconnect::Watchdog, false),
        (".resume", Reconnect::Other, true),
        (".watchdog.resume", Reconnect::Watchdog, true),
    ] {
        let tag = Some((true, cause, resumes));
        assert_eq!(taken(&format!("/s?_heartbeat={TOKEN}{suffix}")), ("/s".to_owned(), tag));
    }
    for other in ["/s", "/s?", "/s?x_heartbeat=1", "/s?a=_heartbeat=1&_heartbeats=2"] {
        assert_eq!(taken(other), (other.to_owned(), None));
    }
}

#[test]
fn an_invalid_tag_is_removed_too() {
    assert_eq!(taken("/s?_heartbeat=1&_heartbeat="), ("/s".to_owned(), Some((false, Reconnect::Other, false))));
}

/// Runs each test of the last source in an engine of its own, behind the other sources.
fn assert_all_pass(sources: &[&str]) {
    let names = evaluate(sources, "", "[...tests.keys()].join('\\n')");
    assert!(!names.is_empty());
    let outcomes = names.lines().map(|name| (name, evaluate(sources, &format!("start({name:?})"), "outcome")));
    let failures: Vec<_> = outcomes.filter(|(_, outcome)| outcome != "passed").collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

/// The value of `expression` after `statement`, and all promises that it fulfilled.
fn evaluate(sources: &[&str], statement: &str, expression: &str) -> String {
    let runtime = Runtime::new().expect("an engine");
    let context = Context::full(&runtime).expect("a context");
    context.with(|ctx| {
        ctx.globals().set("SCRIPT", SCRIPT).expect("a global");
        let source = format!("{}\n{statement}", sources.concat());
        ctx.eval::<(), _>(source).catch(&ctx).unwrap_or_else(|error| panic!("{error}"));
    });
    while runtime.execute_pending_job().is_ok_and(|more| more) {}
    context.with(|ctx| ctx.eval(expression).expect("a string"))
}

#[test]
fn the_scripts_end_of_a_connection_counts_keeps_and_resumes() {
    assert_all_pass(&[BROWSER, include_str!("rerun.js"), include_str!("end.js"), include_str!("tests/end.js")]);
}

#[test]
fn the_script_shows_the_frontend_a_websocket_and_watches_a_plain_one() {
    assert_all_pass(&[BROWSER, include_str!("tests/page.js"), include_str!("tests/socket.js")]);
}

#[test]
fn the_script_resumes_a_connection_over_other_legs() {
    assert_all_pass(&[BROWSER, include_str!("tests/page.js"), include_str!("tests/legs.js")]);
}

#[test]
fn the_script_repeats_what_a_dead_connection_lost_once_and_nothing_else() {
    assert_all_pass(&[BROWSER, include_str!("rerun.js"), include_str!("tests/rerun.js")]);
}
