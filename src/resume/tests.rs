//! Properties of both halves: any cut, and any chunking, gives each message once.

mod simulation;

use proptest::collection::vec;
use proptest::prelude::*;

use super::control::{self, ResumeRequest, Secret, close_code};
use super::{LegRefusal, Outbox, PageInput, PageStream};
use crate::websocket::frame::{ControlFrame, mask};

const LIMIT: usize = 4096;
const KEY: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

/// A frame; masked if it comes from a page.
fn frame(first: u8, payload: &[u8], key: Option<[u8; 4]>) -> Vec<u8> {
    let masked = if key.is_some() { 0x80 } else { 0 };
    let mut bytes = match payload.len() {
        length @ 0..126 => vec![first, masked | length as u8],
        length => [&[first, masked | 126][..], &(length as u16).to_be_bytes()].concat(),
    };
    let mut payload = payload.to_vec();
    if let Some(key) = key {
        bytes.extend(key);
        mask(&mut payload, key, 0);
    }
    [bytes, payload].concat()
}

fn page_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    frame(first, payload, Some(KEY))
}

/// What a page's stream gives for reads of these sizes.
#[derive(Debug, Default, PartialEq)]
struct Given {
    passed: Vec<u8>,
    confirmed: Vec<u64>,
    unsent: Vec<(String, u64)>,
    given_up: bool,
}

fn feed(stream: &mut PageStream, bytes: &[u8], size: usize) -> Given {
    let mut given = Given::default();
    for part in bytes.chunks(size) {
        stream.on_bytes(part, |input| match input {
            PageInput::Pass(bytes) => given.passed.extend_from_slice(bytes),
            PageInput::Confirmed(received) => given.confirmed.push(received),
            PageInput::Unsent(reason, inputs) => given.unsent.push((reason.to_owned(), inputs)),
            PageInput::GivenUp => given.given_up = true,
        });
    }
    given
}

fn request(leg: u32, received: u64) -> ResumeRequest {
    ResumeRequest { secret: Secret::new(1, [2; 16]), leg, received }
}

#[test]
fn control_messages_do_not_reach_the_app_and_are_not_counted() {
    let wire = [
        page_frame(0x82, b"one"),
        page_frame(0x81, b"_heartbeat received 5"),
        page_frame(0x81, b"a text of the page"),
        page_frame(0x81, b"_heartbeat unsent age 2"),
        page_frame(0x81, b"_heartbeat something new"),
        page_frame(0x8a, b"pong"),
        page_frame(0x82, &[]),
    ];
    let passed = [0, 2, 5, 6].map(|at: usize| &wire[at][..]).concat();
    for size in 1..80 {
        let mut stream = PageStream::new(LIMIT);
        let given = feed(&mut stream, &wire.concat(), size);
        let unsent = vec![("age".to_owned(), 2)];
        let expected = Given { passed: passed.clone(), confirmed: vec![5], unsent, given_up: false };
        assert_eq!(given, expected, "reads of {size}");
        assert_eq!(stream.received(), 3);
        assert_eq!(stream.next_confirmation(), Some(control::received(3)));
        assert_eq!(stream.next_confirmation(), None);
    }
}

#[test]
fn nothing_of_a_leg_passes_after_the_page_gave_it_up() {
    let close = |code: u16| page_frame(0x88, &code.to_be_bytes());
    let message = page_frame(0x82, b"one");
    let wire = [&message[..], &close(close_code::GIVEN_UP), &message].concat();
    let given = feed(&mut PageStream::new(LIMIT), &wire, wire.len());
    assert_eq!(given, Given { passed: message.clone(), given_up: true, ..Given::default() });
    let ends = [close(1001), page_frame(0x88, &[])].concat();
    assert_eq!(feed(&mut PageStream::new(LIMIT), &ends, 3).passed, ends, "the page's own end");
}

#[test]
fn a_message_above_the_limit_passes_in_parts_and_ties_the_session_to_its_leg() {
    let large = page_frame(0x82, &[7; 3 * LIMIT]);
    let mut stream = PageStream::new(LIMIT);
    let first = feed(&mut stream, &large[..2 * LIMIT], 100);
    assert!(first.passed.len() > LIMIT && !stream.may_change_leg());
    let rest = feed(&mut stream, &large[2 * LIMIT..], 100);
    assert_eq!([first.passed, rest.passed].concat(), large);
    assert!(stream.may_change_leg() && stream.owes_confirmation() == (large.len() > 32 << 10));
    assert_eq!(stream.received(), 1);
}

#[test]
fn a_close_frame_inside_a_message_reaches_the_app_behind_it() {
    let wire = [page_frame(0x02, b"first part"), page_frame(0x88, &1001_u16.to_be_bytes())].concat();
    assert_eq!(feed(&mut PageStream::new(LIMIT), &wire, 1).passed, wire);
}

#[test]
fn a_stream_that_cannot_be_parsed_passes_and_cannot_change_its_leg() {
    let wire = [page_frame(0x82, b"one"), vec![0xf2, 0x80], vec![9; 50]].concat();
    for size in [1, 7, 100] {
        let mut stream = PageStream::new(LIMIT);
        assert_eq!(feed(&mut stream, &wire, size).passed, wire);
        assert!(!stream.may_change_leg());
    }
}

#[test]
fn a_leg_is_refused_if_a_newer_one_came_or_its_count_is_not_possible() {
    let mut outbox = Outbox::new(LIMIT);
    for _message in 0..3 {
        assert_eq!(outbox.on_bytes(&frame(0x82, b"message", None)), 0);
    }
    assert_eq!(outbox.on_leg(&request(0, 0)), Err(LegRefusal::Stale), "the first leg has number 0");
    assert_eq!(outbox.on_leg(&request(5, 4)), Err(LegRefusal::Count), "more than was sent");
    assert_eq!(outbox.on_leg(&request(5, 2)).map(|resent| resent.messages), Ok(1));
    assert_eq!(outbox.on_leg(&request(5, 2)), Err(LegRefusal::Stale));
    assert_eq!(outbox.on_leg(&request(6, 1)), Err(LegRefusal::Count), "the page has confirmed two");
    assert_eq!(outbox.on_leg(&request(7, 3)).map(|resent| resent.messages), Ok(0));
}

#[test]
fn an_overflow_ends_when_everything_is_confirmed() {
    let (mut outbox, message) = (Outbox::new(LIMIT), frame(0x82, &[1; 1000], None));
    let dropped: Vec<_> = (0..6).map(|_message| outbox.on_bytes(&message)).collect();
    assert_eq!(dropped, [0, 0, 0, 0, 5 * message.len(), 0]);
    outbox.on_confirmed(5);
    assert_eq!(outbox.on_leg(&request(1, 5)), Err(LegRefusal::Overflow), "the sixth was not kept");
    outbox.on_bytes(&message[..10]);
    outbox.on_confirmed(6);
    assert_eq!(outbox.on_leg(&request(1, 6)), Err(LegRefusal::Overflow), "the start of the seventh was not kept");
    outbox.on_bytes(&message[10..]);
    outbox.on_confirmed(7);
    outbox.on_bytes(&message);
    assert_eq!(outbox.on_leg(&request(1, 7)).map(|resent| resent.bytes.concat()), Ok(message));
}

#[test]
fn no_stream_of_small_messages_keeps_more_than_the_limit() {
    let (mut outbox, message) = (Outbox::new(LIMIT), frame(0x82, &[], None));
    let kept = (1..).find(|_count| outbox.on_bytes(&message) > 0).expect("an overflow");
    assert!(kept <= LIMIT / (message.len() + size_of::<u32>()) + 1, "{kept} messages");
}

#[test]
fn an_app_frame_that_cannot_be_parsed_ends_resumption_for_good() {
    let mut outbox = Outbox::new(LIMIT);
    outbox.on_bytes(&[frame(0x82, b"one", None), vec![0xc2, 0x00]].concat());
    assert_eq!(outbox.on_leg(&request(1, 0)), Err(LegRefusal::Overflow));
    assert!(!outbox.between_messages());
}

/// A message as some frames, with a control frame behind some of them.
fn message(parts: &[(Vec<u8>, bool)], key: Option<[u8; 4]>) -> (Vec<u8>, Vec<u8>) {
    let (mut wire, mut data) = (Vec::new(), Vec::new());
    for (at, (part, with_ping)) in parts.iter().enumerate() {
        let opcode = if at == 0 { 0x02 } else { 0x00 };
        let fin = if at + 1 == parts.len() { 0x80 } else { 0x00 };
        let bytes = frame(fin | opcode, part, key);
        data.extend_from_slice(&bytes);
        wire.extend(bytes);
        if *with_ping && key.is_none() {
            wire.extend_from_slice(ControlFrame::ping([9; 16], None).as_bytes());
        }
    }
    (wire, data)
}

fn messages() -> impl Strategy<Value = Vec<Vec<(Vec<u8>, bool)>>> {
    vec(vec((vec(any::<u8>(), 0..200), any::<bool>()), 1..4), 1..12)
}

proptest! {
    #[test]
    fn after_any_cut_the_page_gets_the_rest_of_the_stream(parts in messages(), cut in any::<prop::sample::Index>(), size in 1_usize..300) {
        let made: Vec<_> = parts.iter().map(|parts| message(parts, None)).collect();
        let wire: Vec<u8> = made.iter().flat_map(|(wire, _data)| wire.clone()).collect();
        // The page gets the first `received` messages, and then its leg is lost.
        let received = cut.index(made.len() + 1);
        let start: usize = made[..received].iter().map(|(wire, _data)| wire.len()).sum();
        // Control frames pass whole, as the tap gives them.
        let mut outbox = Outbox::new(usize::MAX);
        let boundaries = boundaries(&wire, size);
        for part in boundaries.windows(2) {
            outbox.on_bytes(&wire[part[0]..part[1]]);
        }
        let rest: Vec<u8> = made[received..].iter().flat_map(|(_wire, data)| data.clone()).collect();
        let resent = outbox.on_leg(&request(1, received as u64)).expect("all are kept");
        prop_assert_eq!(resent.bytes.concat(), rest);
        prop_assert_eq!(resent.messages, made.len() - received);
        prop_assert!(start <= wire.len());
    }

    #[test]
    fn after_any_cut_the_app_gets_each_message_once(parts in messages(), cuts in vec(any::<prop::sample::Index>(), 0..5), size in 1_usize..300) {
        let made: Vec<_> = parts.iter().map(|parts| message(parts, Some(KEY)).1).collect();
        let mut stream = PageStream::new(usize::MAX);
        let mut passed = Vec::new();
        for cut in cuts {
            let wire = made[stream.received() as usize..].concat();
            passed.extend(feed(&mut stream, &wire[..cut.index(wire.len() + 1)], size).passed);
            prop_assert!(stream.may_change_leg());
            stream.on_new_leg();
        }
        let wire = made[stream.received() as usize..].concat();
        passed.extend(feed(&mut stream, &wire, size).passed);
        prop_assert_eq!(passed, made.concat());
        prop_assert_eq!(stream.received(), made.len() as u64);
    }
}

/// Where reads of `size` bytes end, moved out of control frames.
fn boundaries(wire: &[u8], size: usize) -> Vec<usize> {
    let (mut inside, mut at) = (Vec::new(), 0);
    while at < wire.len() {
        let header = crate::websocket::frame::Header::parse(&wire[at..]).expect("whole frames");
        let end = at + header.length + header.payload_length as usize;
        let whole = if header.opcode.is_control() { end } else { at + header.length };
        inside.push(at + 1..whole);
        at = end;
    }
    let is_inside = |at: &usize| inside.iter().any(|range| range.contains(at));
    let ends = (0..wire.len()).step_by(size).filter(|at| !is_inside(at));
    ends.chain([wire.len()]).collect()
}
