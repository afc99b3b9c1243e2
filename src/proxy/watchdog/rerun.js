// Decides what of a dead connection is sent over the next one, if the sidecar could not resume it.
//
// Streamlit's page sends all its widgets' values with each request for a rerun, but a trigger (a click, a chat text) only
// once. So the values of a lost request come with the next one, and its triggers are added to that one. If the page
// requests none by itself (Streamlit 1.37 and later), its last request is repeated. One message executes each trigger
// once: a second message behind it could stop the run that the first one started.
//
// Everything here is pure: no socket, timer or clock. No input makes it throw: what cannot be parsed is not repeated.

const VARINT = 0;
const FIXED64 = 1;
const LENGTH_DELIMITED = 2;
const FIXED32 = 5;

// Streamlit 1.21 to 1.67. BackMsg:
const RERUN_SCRIPT = 11;
const DEBUG_ID = 13; // the only field beside the oneof; no longer in 1.67
const NO_INPUTS = [12, 14, 15, 17]; // load_git_info, debug_disconnect_websocket, debug_shutdown_runtime, app_heartbeat
// ClientState:
const WIDGET_STATES = 2;
const PAGE_SCRIPT_HASH = 3;
const FRAGMENT_ID = 5;
const IS_AUTO_RERUN = 6;
// Of the part of the page that runs, and why. Over a new connection all of the page runs.
const EXTENT = [FRAGMENT_ID, IS_AUTO_RERUN];
// Never repeated: cached_message_hashes, since the page may have dropped messages from its cache; is_history_navigation,
// since that was reported before.
const NOT_REPEATED = [7, 9];
// WidgetStates and WidgetState:
const WIDGET = 1;
const WIDGET_ID = 1;
const TRIGGERS = [2, 14, 15, 16]; // trigger_value, string_trigger_value, chat_input_value, json_trigger_value
// ForwardMsg:
const NEW_SESSION = 4;
const DELTA = 5;
const SCRIPT_FINISHED = 6;

// Milliseconds. Pages before Streamlit 1.37 request a rerun within 20 ms of a new connection, later ones only if a run was
// under way. The disconnect has stopped that run, but only at its next Streamlit command: its messages may still come.
const OWN_RERUN_TIME = 250;
const STOP_TIME = 1000;

class Repeater {
  #maxAge;
  #last = null; // the newest rerun that the frontend requested
  #isRequested = false; // no run has started since
  #isRunning = false;
  // "settled": nothing is left of an earlier connection
  // "dead":    a connection is dead, and the next is not open
  // "open":    the next one is open, and its first message not there
  // "greeted": the app's old connection is closed, and the frontend has requested no rerun since
  #state = "settled";
  #left = [];
  #stops = false; // the run that the disconnect has stopped may not be over
  #held = null; // the frontend's rerun in the state "open", and while a run stops

  // `maxAge` in milliseconds: an older trigger is not sent.
  constructor(maxAge) {
    this.#maxAge = maxAge;
  }

  // Methods return actions: ["send", data], ["unsent", reason, count], or ["wait", time]: call `waited` after that time.

  // The connection is dead, and cannot be resumed. `copies` are its unconfirmed messages: { data, at, number }.
  died(copies, now) {
    const held = this.#held && { data: this.#held, at: now, number: Infinity };
    const unknown = unknownInputs(this.#left); // of the connection before it
    this.#left = held ? [...copies, held] : copies;
    this.#held = null;
    this.#state = "dead";
    return unknown;
  }

  opened() {
    if (this.#state === "dead") this.#state = "open";
    else this.#isRequested = this.#isRunning = false; // the app or the frontend has ended the connection before
  }

  // The first message of the next connection is there. `received` is the number of messages of the dead connection that
  // have reached the app, if the sidecar has closed that one; undefined if nothing is known of it.
  greeted(received, now) {
    if (this.#state !== "open") return [];
    const isKnown = received !== undefined;
    const unknown = isKnown ? [] : unknownInputs(this.#left);
    this.#left = isKnown ? this.#left.filter(({ data, number }) => number > received && isInput(data)) : [];
    this.#state = "greeted";
    this.#stops = isKnown && (this.#isRunning || (this.#isRequested && !this.#left.some(({ data }) => mayRepeat(data))));
    if (this.#stops) return [["wait", STOP_TIME]];
    if (this.#held) return [...this.#settle(this.#held, now), ...unknown];
    if (this.#left.length > 0) return [["wait", OWN_RERUN_TIME]];
    this.#state = "settled";
    return unknown;
  }

  // The frontend has not requested a rerun of its own, or the stopped run may still go on.
  waited(now) {
    if (this.#state !== "greeted") return [];
    return this.#settle(this.#held ?? (this.#last && withoutTriggers(this.#last)), now);
  }

  // The frontend sends a message.
  send(data, now) {
    if (!mayRepeat(data)) return [["send", data]];
    this.#last = data;
    if (this.#state === "open" || (this.#state === "greeted" && this.#stops)) {
      this.#held = this.#held ? merged([this.#held, data]) : data;
      return [];
    }
    return this.#state === "greeted" ? this.#settle(data, now) : this.#send(data);
  }

  // Whether a message of the app is left over from the run that the disconnect has stopped. The frontend would remove all
  // elements that this run did not send, or report a message out of place.
  isStale(data) {
    const ofRun = ({ number }) => [NEW_SESSION, DELTA, SCRIPT_FINISHED].includes(number);
    return this.#state === "greeted" && this.#stops && Boolean(fieldsOf(bytesOf(data))?.some(ofRun));
  }

  // A message of the app.
  received(data, now) {
    const fields = fieldsOf(bytesOf(data)) ?? [];
    if (fields.some(({ number }) => number === NEW_SESSION)) {
      this.#isRequested = false;
      this.#isRunning = true;
    } else if (fields.some(({ number }) => number === SCRIPT_FINISHED)) {
      this.#isRunning = false;
      if (this.#state === "greeted" && this.#stops) {
        this.#stops = false;
        return this.#held ? this.#settle(this.#held, now) : [["wait", OWN_RERUN_TIME]];
      }
    }
    return [];
  }

  #settle(rerun, now) {
    const { repeated, notSent } = sorted(this.#left, rerun, now - this.#maxAge);
    this.#state = "settled";
    this.#stops = false;
    this.#left = [];
    this.#held = null;
    const sends = rerun ? this.#send(repeated.length > 0 ? merged([...repeated, rerun]) : rerun) : [];
    return [...sends, ...notSent];
  }

  #send(data) {
    this.#isRequested = true;
    return [["send", data]];
  }
}

// The actions for messages that the sidecar resumes without, because they are too old: the values are sent, no trigger.
function expired(messages) {
  const reruns = messages.filter(mayRepeat).map((rerun) => withoutTriggers(rerun, rerunOf(rerun).extent));
  return [...coalesced(reruns).map((rerun) => ["send", rerun]), ...unsent("age", messages.filter(isAction).length)];
}

// Inputs of which it is not known whether they reached the app.
function unknownInputs(copies) {
  return unsent("unknown", copies.filter(({ data }) => isAction(data)).length);
}

function unsent(reason, count) {
  return count > 0 ? [["unsent", reason, count]] : [];
}

// Which of these messages are repeated with `rerun`, and how many inputs are not, by reason.
function sorted(copies, rerun, oldest) {
  const counts = { age: 0, changed: 0, kind: 0, replaced: 0 };
  const repeated = [];
  for (const { data, at } of copies) {
    if (!mayRepeat(data)) counts.kind += isInput(data) ? 1 : 0;
    else if (!samePage(data, rerun)) counts.changed += rerunOf(data).isAuto ? 0 : 1;
    else if (isAction(data) && at < oldest) counts.age += 1;
    else if (isAction(data)) repeated.push(data);
  }
  counts.replaced = repeated.filter((data, at) => isReplacedBy(data, [...repeated.slice(at + 1), rerun])).length;
  return { repeated, notSent: Object.entries(counts).flatMap(([reason, count]) => unsent(reason, count)) };
}

// The messages that are sent at once when a connection is resumed. Streamlit could stop the run that the first one starts
// for the second one, and lose its click, so one message has the triggers of both. A run of a fragment stops no other, and
// must not become one of the whole page, which stops the running script.
function coalesced(messages) {
  const result = [];
  for (const data of messages) {
    let whole = data;
    for (;;) {
      const at = result.findLastIndex(isInput);
      const extent = at >= 0 ? commonExtent(result[at], whole) : null;
      if (!extent || isReplacedBy(result[at], [whole])) break;
      whole = merged([...result.splice(at, 1), whole], extent);
    }
    result.push(whole);
  }
  return result;
}

// What runs if one message requests both reruns; null if it cannot.
function commonExtent(first, second) {
  const [one, two] = [rerunOf(first), rerunOf(second)];
  if (!one || !two || one.page !== two.page) return null;
  if (two.fragment === "") return [];
  if (one.fragment !== two.fragment) return null;
  return one.isAuto ? two.extent : one.extent;
}

// A chat text behind another one in the same message replaces it. The same click twice is one click.
function isReplacedBy(rerun, laterOnes) {
  const later = laterOnes.flatMap(triggersOf);
  const isReplaced = ({ id, bytes }) => later.some((other) => other.id === id && !sameBytes(other.bytes, bytes));
  return triggersOf(rerun).some(isReplaced);
}

// Whether it requests a rerun. All others act on the app as it was, such as stop_script or file_urls_request.
function mayRepeat(message) {
  return rerunOf(message) !== null;
}

// The first request of a page names no script.
function samePage(message, other) {
  const [page, otherPage] = [message, other].map((each) => rerunOf(each)?.page ?? "");
  return page === otherPage || page === "" || otherPage === "";
}

// The last one, with the triggers of all. It requests a run of the whole page unless `extent` says otherwise.
function merged(reruns, extent = []) {
  const last = rerunOf(reruns[reruns.length - 1]);
  const earlier = reruns.slice(0, -1).flatMap(triggersOf);
  return newRerun([...last.others, ...extent], [...earlier, ...last.widgets]);
}

// It requests a run of the whole page unless `extent` says otherwise.
function withoutTriggers(rerun, extent = []) {
  const { others, widgets } = rerunOf(rerun);
  return newRerun([...others, ...extent], widgets.filter(({ isTrigger }) => !isTrigger));
}

function triggersOf(message) {
  return rerunOf(message)?.widgets.filter(({ isTrigger }) => isTrigger) ?? [];
}

// Whether only this message carries what the user did: not a value, which each later request has too.
function isAction(message) {
  return mayRepeat(message) ? triggersOf(message).length > 0 : isInput(message);
}

function isInput(message) {
  const fields = fieldsOf(bytesOf(message)) ?? [];
  return fields.some(({ number }) => number !== DEBUG_ID && !NO_INPUTS.includes(number));
}

// The parts of a request for a rerun; null for every other message.
function rerunOf(message) {
  const fields = fieldsOf(bytesOf(message));
  const isRerun = ({ number, wire }) => number === RERUN_SCRIPT && wire === LENGTH_DELIMITED;
  if (!fields?.some(isRerun) || !fields.every((field) => isRerun(field) || field.number === DEBUG_ID)) return null;
  // A message whose field occurs twice has the fields of both.
  const state = fieldsOf(joined(fields.filter(isRerun).map(({ value }) => value)));
  const lists = state?.filter(({ number }) => number === WIDGET_STATES) ?? [];
  const widgets = fieldsOf(joined(lists.map(({ value }) => value)))?.map(widgetOf);
  if (!state || !widgets || widgets.includes(null)) return null;
  const last = (wanted) => state.filter(({ number }) => number === wanted).pop()?.value ?? [];
  return {
    page: last(PAGE_SCRIPT_HASH).join(),
    fragment: last(FRAGMENT_ID).join(),
    isAuto: last(IS_AUTO_RERUN)[0] === 1,
    extent: state.filter(({ number }) => EXTENT.includes(number)),
    widgets,
    others: state.filter(({ number }) => ![WIDGET_STATES, ...EXTENT, ...NOT_REPEATED].includes(number)),
  };
}

function widgetOf({ number, wire, bytes, value }) {
  const fields = number === WIDGET && wire === LENGTH_DELIMITED ? fieldsOf(value) : null;
  if (!fields) return null;
  const id = fields.filter(({ number }) => number === WIDGET_ID).pop()?.value ?? [];
  const content = fields.filter(({ number }) => number !== WIDGET_ID).pop(); // of a oneof, the last one counts
  return { id: id.join(), bytes, isTrigger: TRIGGERS.includes(content?.number) };
}

function newRerun(others, widgets) {
  const states = lengthDelimited(WIDGET_STATES, widgets.map(({ bytes }) => bytes));
  return lengthDelimited(RERUN_SCRIPT, [...others.map(({ bytes }) => bytes), states]);
}

// The fields of a message, in order; null if it cannot be parsed. `bytes` is the whole field, `value` without its key,
// and without the length if it has one.
function fieldsOf(message) {
  const fields = [];
  for (let start = 0; start < message.length; ) {
    const key = varintAt(message, start);
    if (!key) return null;
    const wire = key.value % 8;
    const length = { [VARINT]: varintAt(message, key.end), [LENGTH_DELIMITED]: varintAt(message, key.end) }[wire];
    const sizes = { [FIXED64]: 8, [FIXED32]: 4, [VARINT]: length?.size, [LENGTH_DELIMITED]: length?.value };
    const from = wire === LENGTH_DELIMITED ? length?.end : key.end;
    const end = from + sizes[wire];
    if (!(end <= message.length)) return null; // also if one of them is undefined
    const number = (key.value - wire) / 8;
    fields.push({ number, wire, bytes: message.subarray(start, end), value: message.subarray(from, end) });
    start = end;
  }
  return fields;
}

// Values above 2^53 are inexact: too large for a key or a length, and not needed of others.
function varintAt(bytes, start) {
  let value = 0;
  for (let size = 1; size <= 10 && start + size <= bytes.length; size++) {
    const byte = bytes[start + size - 1];
    value += (byte % 128) * 2 ** (7 * (size - 1));
    if (byte < 128) return { value, size, end: start + size };
  }
  return null;
}

// Only for field numbers up to 15.
function lengthDelimited(number, parts) {
  const content = joined(parts);
  const length = [];
  let rest = content.length;
  for (; rest >= 128; rest = Math.floor(rest / 128)) length.push((rest % 128) + 128);
  length.push(rest);
  return joined([[number * 8 + LENGTH_DELIMITED], length, content]);
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function sameBytes(first, second) {
  return first.length === second.length && first.every((byte, at) => byte === second[at]);
}

function bytesOf(data) {
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return data instanceof ArrayBuffer ? new Uint8Array(data) : new Uint8Array();
}
