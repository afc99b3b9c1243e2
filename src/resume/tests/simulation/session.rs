//! What the ends of a simulated session do: the script's end of a page, the sidecar's end, and the app behind it.
//!
//! The page does what the script's socket does with the actions of its end. The sidecar does what the relay does.

use super::network::{AppStream, Choices, Read, Reader};
use super::page::{Action, Message, Script};
use super::*;
use crate::resume::control::{self, ResumeRequest, Secret, close_code};
use crate::resume::{LegRefusal, PageInput};

fn secret() -> Secret {
    Secret::new(0x17, [0xab; 16])
}

impl<'js> World<'js> {
    pub(super) fn new(seed: u64, script: &Script<'js>) -> Self {
        let mut choices = Choices::new(seed);
        let nature = Nature {
            buffer: choices.of(&BUFFERS),
            ends: choices.one_in(2),
            largest: choices.of(&[400, 65_536, 150_000]),
        };
        let sidecar = Sidecar {
            stream: PageStream::new(nature.buffer),
            outbox: Outbox::new(nature.buffer),
            leg: None,
            parked_at: 0,
            is_over: false,
            at_app: Reader::default(),
            from_app: AppStream::default(),
        };
        let mut world = Self {
            choices,
            nature,
            now: 0,
            page: script.open(),
            page_end: None,
            leg: None,
            awaits_leg: false,
            legs: Vec::new(),
            sidecar,
            to_app: Direction::default(),
            to_page: Direction::default(),
            cuts: 0,
            resumed: 0,
        };
        world.open_leg(String::new());
        world.shake_hands(0);
        for _early in 0..world.choices.below(3) {
            world.frontend_sends();
        }
        world.page_reads(0, usize::MAX);
        world
    }

    pub(super) fn open_leg(&mut self, entry: String) {
        self.leg = Some(self.legs.len());
        self.awaits_leg = false;
        self.legs.push(Leg { entry: Some(entry), ..Leg::default() });
    }

    /// The page carries out what its end asks for.
    pub(super) fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(message) => {
                    // Control messages are not fragmented.
                    let is_control = matches!(&message, Message::Text(text) if text.starts_with('_'));
                    let frames = self.choices.frames(&message, !is_control, true);
                    self.legs[self.leg.expect("a leg to send over")].up.write(&frames);
                }
                Action::Deliver(message) => self.to_page.arrived(&message),
                Action::Drop => {
                    if let Some(leg) = self.leg.take() {
                        self.close_leg(leg, close_code::GIVEN_UP);
                    }
                }
                Action::Retry => self.awaits_leg = true,
                Action::Resumed => self.resumed += 1,
                Action::End(code) => {
                    (self.page_end, self.leg, self.awaits_leg) = (Some(code), None, false);
                }
                Action::Answered | Action::Greeted | Action::Lost | Action::Died | Action::Ended => {}
            }
        }
        let kept = self.page.kept_bytes();
        assert!(kept <= self.nature.buffer.max(1 << 20), "the page keeps {kept} bytes");
    }

    /// The page closes its side of a leg. A handshake that is under way still reaches the sidecar.
    pub(super) fn close_leg(&mut self, leg: usize, code: u16) {
        let leg = &mut self.legs[leg];
        if !leg.is_open {
            leg.up.cut(0);
        }
        leg.up.write(ControlFrame::close(code, Some([1, 2, 3, 4])).as_bytes());
    }

    pub(super) fn page_reads(&mut self, leg: usize, most: usize) {
        let bytes = self.legs[leg].down.read(most);
        if self.leg != Some(leg) {
            return;
        }
        for read in self.legs[leg].at_page.on_bytes(&bytes) {
            if self.leg != Some(leg) {
                return;
            }
            let actions = match read {
                Read::Message(message) => self.page.on_message(&message, self.now),
                Read::Close(code) => self.page.on_close(code, self.now),
            };
            self.perform(actions);
        }
    }

    /// The handshake of a leg reaches the sidecar.
    pub(super) fn shake_hands(&mut self, leg: usize) {
        let Some(entry) = self.legs[leg].entry.take() else { return };
        self.legs[leg].is_open = true;
        if entry.is_empty() {
            self.sidecar.leg = Some(leg);
            let greeting = control::greeting(&secret(), self.nature.buffer, WINDOW_MS.into(), None);
            return self.legs[leg].down.write(&greeting);
        }
        let request = ResumeRequest::parse(&entry).expect("a request to resume");
        assert!(request.secret.matches(&secret()));
        let sidecar = &mut self.sidecar;
        if sidecar.is_over {
            return self.refuse(leg, close_code::UNKNOWN);
        }
        let received = sidecar.stream.received();
        let resent = match sidecar.outbox.on_leg(&request) {
            Ok(resent) if sidecar.stream.may_change_leg() => resent,
            Err(LegRefusal::Stale) => return self.refuse(leg, close_code::REPLACED),
            // The session stays parked for a takeover.
            Ok(_) | Err(LegRefusal::Overflow | LegRefusal::Count) => return self.refuse(leg, close_code::UNKNOWN),
        };
        let [front, back] = resent.bytes;
        for bytes in [&control::resumed(received)[..], front, back] {
            self.legs[leg].down.write(bytes);
        }
        sidecar.stream.on_new_leg();
        if let Some(old) = sidecar.leg.replace(leg) {
            self.refuse(old, close_code::REPLACED);
        }
    }

    pub(super) fn refuse(&mut self, leg: usize, code: u16) {
        self.legs[leg].down.write(ControlFrame::close(code, None).as_bytes());
    }

    /// The sidecar reads from a leg; the app reads at once what passes.
    pub(super) fn sidecar_reads(&mut self, leg: usize, most: usize) {
        let bytes = self.legs[leg].up.read(most);
        if self.sidecar.leg != Some(leg) || self.sidecar.is_over {
            return;
        }
        let Sidecar { stream, outbox, at_app, .. } = &mut self.sidecar;
        let (mut reads, mut is_given_up) = (Vec::new(), false);
        stream.on_bytes(&bytes, |input| match input {
            PageInput::Pass(bytes) => reads.extend(at_app.on_bytes(bytes)),
            PageInput::Confirmed(count) => outbox.on_confirmed(count),
            PageInput::Unsent(reason, inputs) => panic!("{inputs} inputs not sent: {reason}"),
            PageInput::GivenUp => is_given_up = true,
        });
        for read in reads {
            match read {
                Read::Message(message) => self.to_app.arrived(&message),
                Read::Close(_) => self.sidecar.is_over = true,
            }
        }
        if is_given_up {
            self.sidecar_loses_leg();
        }
        self.confirm();
    }

    pub(super) fn sidecar_loses_leg(&mut self) {
        (self.sidecar.leg, self.sidecar.parked_at) = (None, self.now);
        self.sidecar.is_over |= !self.sidecar.stream.may_change_leg();
    }

    fn confirm(&mut self) {
        if let (Some(leg), true) = (self.sidecar.leg, self.sidecar.outbox.between_messages()) {
            let confirmation = self.sidecar.stream.next_confirmation().unwrap_or_default();
            self.legs[leg].down.write(&confirmation);
        }
    }

    /// The sidecar reads from the app.
    pub(super) fn app_bytes_pass(&mut self, most: usize) {
        if self.sidecar.is_over {
            return;
        }
        let bytes = self.sidecar.from_app.read(most);
        self.sidecar.outbox.on_bytes(&bytes);
        if let Some(leg) = self.sidecar.leg {
            self.legs[leg].down.write(&bytes);
        }
        self.sidecar.is_over = self.sidecar.from_app.has_closed();
        self.confirm();
    }
}
