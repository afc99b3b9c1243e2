// What of a dead connection is sent over the next one, in bytes of Streamlit's messages.

const CLICK = [0x10, 1]; // trigger_value: true
const HEARTBEAT_MESSAGE = new Uint8Array([0x88, 1, 1]);
const STOP_SCRIPT = new Uint8Array([0x38, 1]);
const CLEAR_CACHE = new Uint8Array([0x28, 1]);
const SET_RUN_ON_SAVE = new Uint8Array([0x30, 1]);
const FILE_URLS_REQUEST = new Uint8Array([0x82, 1, 0]);
const STARTED = new Uint8Array([0x22, 0]); // ForwardMsg
const FINISHED = new Uint8Array([0x30, 0]);
const MAX_AGE = 60_000;

function ascii(characters) {
  return Array.from(characters, (character) => character.charCodeAt(0));
}

// A length-delimited field of less than 128 bytes.
function field(number, content) {
  return [number * 8 + 2, content.length, ...content];
}

function widget(id, value) {
  return field(1, [...field(1, ascii(id)), ...value]);
}

function text(content) {
  return field(6, ascii(content));
}

function chat(content) {
  return [0x7a, content.length, ...ascii(content)];
}

function page(name) {
  return field(3, ascii(name));
}

function rerun(widgets, others = page("home")) {
  return new Uint8Array(field(11, [...others, ...field(2, widgets.flat())]));
}

// A repeater whose connection has died with these unconfirmed messages, and whose next one is open.
function reopened(...messages) {
  const repeater = new Repeater(MAX_AGE);
  for (const data of messages) repeater.send(data, 0);
  equal(repeater.died(messages.map((data, at) => ({ data, at: 0, number: at + 1 })), 0), []);
  repeater.opened();
  return repeater;
}

test("a click that did not arrive comes with the page's own rerun, in one message with the newest values", () => {
  const repeater = reopened(rerun([widget("t", text("old")), widget("a", CLICK)]), HEARTBEAT_MESSAGE);
  equal(repeater.send(rerun([widget("t", text("new"))]), 1), []);
  equal(repeater.greeted(0, 2), [["send", rerun([widget("a", CLICK), widget("t", text("new"))])]]);
  equal(repeater.send(rerun([]), 3), [["send", rerun([])]]);
  equal(repeater.waited(4), []);
});

test("if the page requests no rerun, its last one is sent with all clicks that did not arrive", () => {
  const first = rerun([widget("t", text("x")), widget("a", CLICK)]);
  const repeater = reopened(first, rerun([widget("t", text("y")), widget("b", CLICK)]));
  equal(repeater.greeted(0, 1), [["wait", OWN_RERUN_TIME]]);
  const clicks = [widget("a", CLICK), widget("b", CLICK)];
  equal(repeater.waited(2), [["send", rerun([...clicks, widget("t", text("y"))])]]);
});

test("a click that has reached the app is not sent again, but an unfinished run is requested again", () => {
  const clicked = rerun([widget("t", text("x")), widget("a", CLICK)]);
  for (const started of [false, true]) {
    const repeater = reopened(clicked);
    if (started) repeater.received(STARTED);
    equal(repeater.greeted(1, 1), [["wait", STOP_TIME]]);
    equal(repeater.waited(2), [["send", rerun([widget("t", text("x"))])]]);
  }
});

test("after a finished run nothing is sent", () => {
  const repeater = reopened(rerun([widget("a", CLICK)]), HEARTBEAT_MESSAGE);
  repeater.received(STARTED);
  repeater.received(FINISHED);
  equal(repeater.greeted(1, 1), []);
  equal(repeater.waited(2), []);
});

test("a rerun that was requested during a run is unfinished when that run ends", () => {
  const repeater = new Repeater(MAX_AGE);
  repeater.send(rerun([]), 0);
  repeater.received(STARTED);
  repeater.send(rerun([widget("t", text("x"))]), 0);
  repeater.received(FINISHED);
  repeater.died([], 0);
  repeater.opened();
  equal(repeater.greeted(2, 1), [["wait", STOP_TIME]]);
});

test("the page's own rerun waits until the run that the disconnect has stopped is over", () => {
  const own = rerun([widget("t", text("y"))]);
  for (const isEarly of [false, true]) {
    const repeater = reopened(rerun([widget("t", text("x")), widget("a", CLICK)]));
    repeater.received(STARTED, 0);
    if (isEarly) equal(repeater.send(own, 1), []);
    equal(repeater.greeted(1, 1), [["wait", STOP_TIME]]);
    if (!isEarly) equal(repeater.send(own, 2), []);
    equal(repeater.received(STARTED, 3), [], "the rest of that run");
    equal(repeater.received(FINISHED, 4), [["send", own]]);
    equal(repeater.waited(1001), []);
    equal(repeater.received(STARTED, 1002), []);
    equal(repeater.received(FINISHED, 1003), []);
  }
});

test("what is left over from a stopped run does not reach the frontend", () => {
  const repeater = reopened(rerun([widget("a", CLICK)]));
  equal(repeater.isStale(STARTED), false, "before the greeting");
  repeater.greeted(1, 1);
  const delta = new Uint8Array([0x2a, 0]);
  equal([STARTED, delta, FINISHED].map((data) => repeater.isStale(data)), [true, true, true]);
  equal([new Uint8Array([0xd0, 1, 1]), "text", new Uint8Array([0xff])].map((data) => repeater.isStale(data)), [false, false, false]);
  repeater.received(FINISHED, 2);
  equal([STARTED, delta, FINISHED].map((data) => repeater.isStale(data)), [false, false, false]);
});

test("a run that does not stop is not waited for", () => {
  const own = rerun([widget("t", text("y"))]);
  const repeater = reopened(rerun([widget("a", CLICK)]));
  repeater.greeted(1, 1);
  equal(repeater.send(own, 2), []);
  equal(repeater.waited(1001), [["send", own]]);
  equal(repeater.send(own, 1002), [["send", own]]);
});

test("after the end of a stopped run the page has time for its own rerun", () => {
  const repeater = reopened(rerun([widget("t", text("x")), widget("a", CLICK)]));
  repeater.greeted(1, 1);
  equal(repeater.received(FINISHED, 2), [["wait", OWN_RERUN_TIME]]);
  equal(repeater.waited(252), [["send", rerun([widget("t", text("x"))])]]);
});

test("a click is reported, not sent, if nothing is known of the old connection", () => {
  const repeater = reopened(rerun([widget("a", CLICK)]), rerun([widget("t", text("x"))]));
  repeater.send(rerun([]), 1);
  equal(repeater.greeted(undefined, 2), [["send", rerun([])], ["unsent", "unknown", 1]]);
  equal(reopened(rerun([widget("t", text("x"))])).greeted(undefined, 2), []);
});

test("an old click is reported, not sent; old values are sent", () => {
  const repeater = reopened(rerun([widget("t", text("x")), widget("a", CLICK)]));
  repeater.greeted(0, 1);
  equal(repeater.waited(MAX_AGE + 1), [["send", rerun([widget("t", text("x"))])], ["unsent", "age", 1]]);
});

test("a click and a change of the page are reported, not sent, if the page is another one", () => {
  const repeater = reopened(rerun([widget("a", CLICK)]), rerun([], page("other")), rerun([], [...page("other"), 0x30, 1]));
  const own = rerun([], page("third"));
  repeater.send(own, 1);
  equal(repeater.greeted(0, 2), [["send", own], ["unsent", "changed", 2]]);
});

test("other messages are never sent again, and reported if the user caused them", () => {
  const kinds = [STOP_SCRIPT, CLEAR_CACHE, SET_RUN_ON_SAVE, FILE_URLS_REQUEST];
  const repeater = reopened(...kinds, HEARTBEAT_MESSAGE, rerun([]));
  repeater.greeted(0, 1);
  equal(repeater.waited(2), [["send", rerun([])], ["unsent", "kind", 4]]);
});

test("of two chat texts of one widget the newer is sent and the other reported; two clicks of a button are one", () => {
  const repeater = reopened(rerun([widget("c", chat("one"))]), rerun([widget("c", chat("two"))]));
  repeater.greeted(0, 1);
  const both = rerun([widget("c", chat("one")), widget("c", chat("two"))]);
  equal(repeater.waited(2), [["send", both], ["unsent", "replaced", 1]]);
  const clicks = reopened(rerun([widget("a", CLICK)]), rerun([widget("a", CLICK)]));
  clicks.greeted(0, 1);
  equal(clicks.waited(2), [["send", rerun([widget("a", CLICK), widget("a", CLICK)])]]);
});

test("a rerun that is held until the greeting is not lost with its connection", () => {
  const repeater = reopened();
  const clicked = rerun([widget("a", CLICK)]);
  equal(repeater.send(clicked, 1), []);
  equal(repeater.died([], 1), []);
  repeater.opened();
  equal(repeater.greeted(9, 2), [["wait", OWN_RERUN_TIME]]);
  equal(repeater.waited(3), [["send", clicked]]);
});

test("a click from the connection before the last is reported, since nobody knows whether it arrived", () => {
  const repeater = reopened(rerun([widget("a", CLICK)]));
  equal(repeater.died([], 1), [["unsent", "unknown", 1]]);
});

test("a connection that the app or the page has ended leaves nothing", () => {
  const repeater = new Repeater(MAX_AGE);
  repeater.send(rerun([widget("a", CLICK)]), 0);
  repeater.opened();
  equal(repeater.greeted(0, 1), []);
  equal(repeater.send(rerun([]), 1), [["send", rerun([])]]);
});

test("of messages that are too old to be resumed the newest values are sent, and the clicks reported", () => {
  const old = [rerun([widget("a", CLICK)]), HEARTBEAT_MESSAGE, rerun([widget("t", text("x")), widget("b", CLICK)])];
  equal(expired(old), [["send", rerun([widget("t", text("x"))])], ["unsent", "age", 2]]);
  equal(expired([HEARTBEAT_MESSAGE]), []);
});

test("reruns that are sent at once are one message; others keep their place", () => {
  const [a, b] = ["a", "b"].map((id) => rerun([widget(id, CLICK)]));
  const both = rerun([widget("a", CLICK), widget("b", CLICK)]);
  equal(coalesced([a]), [a]);
  equal(coalesced([a, HEARTBEAT_MESSAGE, b]), [HEARTBEAT_MESSAGE, both]);
  equal(coalesced([a, STOP_SCRIPT, b, a]), [a, STOP_SCRIPT, rerun([widget("b", CLICK), widget("a", CLICK)])]);
  const other = rerun([], page("other"));
  equal(coalesced([a, other, b]), [a, other, b]);
  const [one, two] = ["one", "two"].map((line) => rerun([widget("c", chat(line))]));
  equal(coalesced([one, two]), [one, two]);
  equal(coalesced([]), []);
});

test("reruns of a fragment stay reruns of it, unless all of the page is to run after them", () => {
  const auto = [0x30, 1];
  const run = (widgets, id, ...more) => rerun(widgets, [...page("home"), ...field(5, ascii(id)), ...more.flat()]);
  const tick = run([widget("t", text("x"))], "one", auto);
  const [click, clickInOne] = [rerun([widget("a", CLICK)]), run([widget("b", CLICK)], "one")];
  equal(coalesced([tick, tick, tick]), [tick]);
  equal(coalesced([tick, clickInOne, tick]), [run([widget("b", CLICK), widget("t", text("x"))], "one")]);
  equal(coalesced([tick, run([], "two", auto), tick]), [tick, run([], "two", auto), tick]);
  equal(coalesced([click, tick]), [click, tick], "the fragment waits for the run of the page");
  equal(coalesced([click, tick, clickInOne, rerun([])]), [rerun([widget("a", CLICK), widget("b", CLICK)])]);
  equal(expired([tick, tick]), [["send", tick]]);
  equal(expired([click, tick]), [["send", rerun([])], ["send", tick], ["unsent", "age", 1]]);
});

test("a repeated rerun is of the whole page, and names no cached messages", () => {
  const others = [...page("home"), ...field(8, [1, 2])];
  const notRepeated = [...field(5, ascii("fragment")), 0x30, 1, ...field(7, ascii("hash")), 0x48, 1];
  equal(withoutTriggers(rerun([], [...others, ...notRepeated])), rerun([], others));
});

test("all kinds of triggers are removed, and nothing else", () => {
  const kept = [widget("t", text("x")), widget("b", [0x18, 1]), widget("j", field(10, ascii("{}")))];
  const triggers = [CLICK, field(14, []), chat("x"), [0x82, 1, 1, 0x7b]].map((value) => widget("trigger", value));
  equal(withoutTriggers(rerun([...triggers, ...kept])), rerun(kept));
});

test("lengths above 127 bytes are written as protobuf does", () => {
  const long = new Uint8Array(300).fill(0x78);
  const value = [0x32, 0xac, 0x02, ...long];
  const widgets = [0x0a, 0xb2, 0x02, 0x0a, 1, 0x74, ...value];
  const message = new Uint8Array([0x5a, 0xb8, 0x02, 0x12, 0xb5, 0x02, ...widgets]);
  equal(withoutTriggers(message), message);
});

test("the fields of a rerun that occurs twice in one message count together", () => {
  const twice = joined([rerun([widget("a", CLICK)]), rerun([widget("t", text("x"))], page("other"))]);
  equal(withoutTriggers(twice), rerun([widget("t", text("x"))], [...page("home"), ...page("other")]));
});

test("bytes that are no message are not repeated and throw nothing", () => {
  const message = rerun([widget("t", text("x")), widget("a", CLICK)]);
  let seed = 1;
  const random = () => (seed = (seed * 48271) % 2147483647);
  for (let round = 0; round < 20_000; round++) {
    const junk = message.slice(0, 1 + (random() % message.length));
    for (let flips = random() % 4; flips > 0; flips--) junk[random() % junk.length] = random() % 256;
    if (mayRepeat(junk)) mayRepeat(withoutTriggers(junk)) || equal("not a rerun", junk);
    const repeater = reopened(junk);
    repeater.received(junk);
    repeater.greeted(0, 1);
    repeater.waited(2);
  }
  for (const junk of ["text", undefined, new Uint8Array([0x5a, 0x80]), new Uint8Array(20).fill(0xff)]) {
    equal(mayRepeat(junk), false);
    equal(reopened(junk).greeted(0, 1).length < 2, true);
  }
});
