//! Both ends of a session against each other, over a network that cuts, delays and reorders: the law of resumption.
//!
//! The page's end is the script's own, in a JavaScript engine. Each world is drawn from a seed, which a failure names.
//! The law: what the frontend sent is what the app received, and the other way round, in the same order, each message
//! once; or the session has ended, and both were told.

mod network;
mod page;
mod session;

use std::collections::VecDeque;

use rquickjs::{Context, Runtime};

use self::network::{AppStream, Choices, Pipe, Reader};
use self::page::{Message, Page, Script};
use crate::resume::{Outbox, PageStream};
use crate::websocket::frame::ControlFrame;

const BUFFERS: [usize; 5] = [300, 5_000, 100_000, 1 << 20, UNLIMITED];
const UNLIMITED: usize = 1 << 30;
const SIZES: [usize; 8] = [0, 1, 9, 125, 126, 400, 65_535, 65_536];
const WINDOW_MS: u64 = 60_000;

/// One real websocket.
#[derive(Default)]
struct Leg {
    /// The handshake has not reached the sidecar; the last subprotocol.
    entry: Option<String>,
    is_open: bool,
    up: Pipe,
    down: Pipe,
    at_page: Reader,
}

/// The sidecar's end, and the app behind it.
struct Sidecar {
    stream: PageStream,
    outbox: Outbox,
    leg: Option<usize>,
    parked_at: u64,
    /// The app was told that the session has ended.
    is_over: bool,
    at_app: Reader,
    /// What the sidecar has not read.
    from_app: AppStream,
}

/// What may happen in a world beside losses.
#[derive(Clone, Copy, Debug)]
struct Nature {
    buffer: usize,
    /// Somebody ends the session, or it expires.
    ends: bool,
    largest: usize,
}

/// One session with all that surrounds it.
struct World<'js> {
    choices: Choices,
    nature: Nature,
    now: u64,
    page: Page<'js>,
    page_end: Option<u16>,
    /// The page's current leg, and whether it waits for another.
    leg: Option<usize>,
    awaits_leg: bool,
    legs: Vec<Leg>,
    sidecar: Sidecar,
    to_app: Direction,
    to_page: Direction,
    cuts: u64,
    resumed: u64,
}

/// Messages of one direction, in order.
#[derive(Default)]
struct Direction {
    sent: VecDeque<Message>,
    count: u64,
}

impl Direction {
    fn next(&mut self, choices: &mut Choices, largest: usize) -> Message {
        self.count += 1;
        // Large ones are rare, because copying them takes most of the time.
        let size = match choices.below(64) {
            0 => largest + choices.below(2),
            1 => choices.of(&SIZES).min(largest),
            _ => choices.of(&SIZES[..6]),
        };
        let mut content: Vec<u8> = self.count.to_le_bytes().iter().cycle().take(size).copied().collect();
        let message = if choices.one_in(8) {
            content.iter_mut().for_each(|byte| *byte = b'a' + *byte % 26);
            Message::Text(String::from_utf8(content).expect("letters"))
        } else {
            Message::Binary(content)
        };
        self.sent.push_back(message.clone());
        message
    }

    fn arrived(&mut self, message: &Message) {
        let expected = self.sent.pop_front();
        assert!(expected.as_ref() == Some(message), "number {} of {}", self.count - self.sent.len() as u64, self.count);
    }
}

/// What happens by chance.
impl World<'_> {
    fn step(&mut self) {
        self.now += self.choices.next() % 10;
        let leg = self.legs.len() - 1 - self.choices.below(self.legs.len().min(3));
        let most = self.choices.of(&[1, 2, 7, 100, 2_000, 1 << 20]);
        match self.choices.below(40) {
            0..8 => self.page_reads(leg, most),
            8..16 => self.sidecar_reads(leg, most),
            16..22 => self.app_bytes_pass(most),
            22..25 => self.frontend_sends(),
            25..28 => self.app_sends(),
            28..31 => self.shake_hands(leg),
            31 => self.cut(leg),
            32 => self.page_loses_leg(),
            33..35 => self.notice_ends(),
            35 => self.page_checks(),
            36..39 => self.attempt(),
            _ if self.nature.ends && self.choices.one_in(40) => self.somebody_ends(),
            _ => {}
        }
    }

    fn frontend_sends(&mut self) {
        if self.page_end.is_none() {
            let message = self.to_app.next(&mut self.choices, self.nature.largest);
            let actions = self.page.send(&message, self.now);
            self.perform(actions);
        }
    }

    fn app_sends(&mut self) {
        if !self.sidecar.is_over {
            let message = self.to_page.next(&mut self.choices, self.nature.largest);
            let frames = self.choices.frames(&message, true, false);
            self.sidecar.from_app.write(&frames);
        }
    }

    fn cut(&mut self, leg: usize) {
        let leg = &mut self.legs[leg];
        if leg.up.is_cut() {
            return;
        }
        self.cuts += 1;
        leg.up.cut(self.choices.below(leg.up.len() + 1));
        leg.down.cut(self.choices.below(leg.down.len() + 1));
        if self.choices.one_in(2) {
            leg.entry = None;
        }
    }

    /// The page gives its leg up, dead or not.
    fn page_loses_leg(&mut self) {
        let Some(leg) = self.leg else { return };
        let is_silent = self.nature.ends && self.page.state() == "lost" && self.legs[leg].is_open;
        let actions = if is_silent { self.page.on_silent(self.now) } else { self.page.on_lost(self.now) };
        self.perform(actions);
    }

    /// An end that waits for bytes of a cut leg notices that none come.
    fn notice_ends(&mut self) {
        if self.leg.is_some_and(|leg| self.legs[leg].down.has_ended()) {
            let actions = self.page.on_close(1006, self.now);
            self.perform(actions);
        }
        if self.sidecar.leg.is_some_and(|leg| self.legs[leg].up.has_ended()) {
            self.sidecar_loses_leg();
        }
        let is_parked = self.sidecar.leg.is_none();
        self.sidecar.is_over |= is_parked && self.now - self.sidecar.parked_at >= WINDOW_MS;
    }

    fn page_checks(&mut self) {
        if self.page.state() == "live" {
            let actions = self.page.check();
            self.perform(actions);
        }
    }

    fn attempt(&mut self) {
        if self.awaits_leg {
            let entry = self.page.attempt();
            self.open_leg(entry);
        }
    }

    fn somebody_ends(&mut self) {
        match self.choices.below(5) {
            0 => self.frontend_closes(),
            1 => self.sidecar.from_app.write(ControlFrame::close(1000, None).as_bytes()),
            2 if self.sidecar.outbox.between_messages() => {
                // A drain.
                self.sidecar.is_over = true;
                if let Some(leg) = self.sidecar.leg {
                    self.refuse(leg, 1001);
                }
            }
            _ => self.now += WINDOW_MS / 2,
        }
    }

    fn frontend_closes(&mut self) {
        if self.page_end.is_some() {
            return;
        }
        let is_lost = self.page.state() == "lost";
        let actions = self.page.on_frontend_close();
        match self.leg.filter(|_leg| !is_lost) {
            Some(leg) => {
                self.close_leg(leg, 1000);
                (self.leg, self.page_end) = (None, Some(1000));
            }
            None => self.perform(actions),
        }
    }

    /// The network works again: everything arrives, and everybody learns what happened.
    fn settle(&mut self) {
        for _round in 0..12 {
            self.now += 1;
            self.attempt();
            for leg in 0..self.legs.len() {
                self.shake_hands(leg);
                self.sidecar_reads(leg, usize::MAX);
                while !self.sidecar.is_over && self.sidecar.from_app.len() > 0 {
                    self.app_bytes_pass(usize::MAX);
                }
                self.page_reads(leg, usize::MAX);
            }
            self.notice_ends();
            self.page_checks();
            if self.page_end.is_some() {
                self.now += WINDOW_MS;
            } else if self.leg.is_some_and(|leg| self.legs[leg].up.is_cut()) {
                self.page_loses_leg();
            }
        }
    }

    fn assert_law(&self) {
        if self.page_end.is_some() || self.sidecar.is_over {
            assert!(self.page_end.is_some(), "the frontend was not told that the session has ended");
            assert!(self.sidecar.is_over, "the app was not told that the session has ended");
            assert!(self.nature.ends || self.nature.buffer < UNLIMITED, "the session ended without a reason");
        } else {
            assert_eq!(self.page.state(), "live");
            assert!(self.to_app.sent.is_empty(), "{} messages did not reach the app", self.to_app.sent.len());
            assert!(self.to_page.sent.is_empty(), "{} messages did not reach the frontend", self.to_page.sent.len());
            assert_eq!(self.page.kept_bytes(), 0, "the page keeps confirmed messages");
        }
    }
}

/// Sums over worlds.
#[derive(Debug, Default)]
struct Totals {
    worlds: u64,
    cuts: u64,
    resumed: u64,
    ended: u64,
    messages: u64,
}

fn simulate(seed: u64, cuts: u64) -> Totals {
    let runtime = Runtime::new().expect("an engine");
    let context = Context::full(&runtime).expect("a context");
    let mut totals = Totals::default();
    context.with(|ctx| {
        let script = Script::new(&ctx);
        while totals.cuts < cuts {
            let seed = seed + totals.worlds;
            let world = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let mut world = World::new(seed, &script);
                for _step in 0..4000 {
                    world.step();
                }
                world.settle();
                world.assert_law();
                world
            }));
            let world = world.unwrap_or_else(|_panic| panic!("the world of seed {seed} broke the law"));
            totals.worlds += 1;
            totals.cuts += world.cuts;
            totals.resumed += world.resumed;
            totals.ended += u64::from(world.page_end.is_some());
            totals.messages += world.to_app.count + world.to_page.count;
        }
    });
    totals
}

#[test]
fn each_message_arrives_once_and_in_order_over_any_number_of_legs_or_both_sides_learn_of_the_end() {
    let totals = simulate(1, 3_000);
    assert!(totals.ended > 0 && totals.ended < totals.worlds && totals.resumed > 500, "{totals:?}");
}

#[test]
#[ignore = "takes minutes; a release build is best"]
fn the_same_holds_over_a_million_cuts() {
    let totals = simulate(1 << 32, 1_000_000);
    println!("{totals:?}");
}
