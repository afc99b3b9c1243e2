// A browser without a network: events, timers with a clock that tests move, websockets that tests open and close.

class Event {
  constructor(type, init = {}) {
    Object.assign(this, init, { type });
  }
}
class MessageEvent extends Event {}
class CloseEvent extends Event {}

class EventTarget {
  #listeners = [];

  addEventListener(type, listener, options = {}) {
    if (this.#listeners.some((other) => other.type === type && other.listener === listener)) return;
    this.#listeners.push({ type, listener });
    options.signal?.onAbort(() => this.removeEventListener(type, listener));
  }

  removeEventListener(type, listener) {
    this.#listeners = this.#listeners.filter((other) => other.type !== type || other.listener !== listener);
  }

  dispatchEvent(event) {
    for (const { type, listener } of [...this.#listeners]) if (type === event.type) listener.call(this, event);
    return true;
  }

  listenerCount() {
    return this.#listeners.length;
  }
}

class AbortController {
  #actions = [];
  signal = { aborted: false, onAbort: (action) => this.#actions.push(action) };

  abort() {
    this.signal.aborted = true;
    for (const action of this.#actions.splice(0)) action();
  }
}

class Blob {
  constructor(parts) {
    this.parts = parts;
    this.size = parts.reduce((sum, part) => sum + (part.byteLength ?? part.length), 0);
  }
}

class URL {
  constructor(url, base = "") {
    const [, origin, pathname] = /^(\w+:\/\/[^/]+)([^?]*)/.exec(/^\w+:/.test(url) ? url : base + url);
    Object.assign(this, { origin, pathname });
  }
}

const clock = { now: 1_000_000, timers: [], nextId: 1 };
Date.now = () => clock.now;

function setTimeout(action, delay = 0, every) {
  clock.timers.push({ id: clock.nextId, at: clock.now + delay, action, every });
  return clock.nextId++;
}

function setInterval(action, every) {
  return setTimeout(action, every, every);
}

function clearTimeout(id) {
  clock.timers = clock.timers.filter((timer) => timer.id !== id);
}

const clearInterval = clearTimeout;

// Lets `milliseconds` pass: each due timer fires at its time, then the promises that it fulfilled.
async function advance(milliseconds) {
  const end = clock.now + milliseconds;
  await settle();
  for (;;) {
    const due = clock.timers.filter(({ at }) => at <= end).sort((a, b) => a.at - b.at || a.id - b.id)[0];
    if (!due) break;
    clock.now = Math.max(clock.now, due.at);
    if (due.every === undefined) clearTimeout(due.id);
    else due.at = clock.now + due.every;
    due.action();
    await settle();
  }
  clock.now = end;
}

async function settle() {
  for (let turn = 0; turn < 20; turn++) await undefined;
}

// The tab is frozen or the computer sleeps: time passes, and no timer fires.
function sleep(milliseconds) {
  clock.now += milliseconds;
}

const sockets = [];

class WebSocket extends EventTarget {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSING = 2;
  static CLOSED = 3;
  static { Object.assign(this.prototype, { CONNECTING: 0, OPEN: 1, CLOSING: 2, CLOSED: 3 }); }

  #state = 0;
  sent = [];
  closed; // the arguments of `close`

  constructor(url, protocols) {
    super();
    Object.defineProperty(this, "given", { value: { url, protocols } });
    sockets.push(this);
  }

  get url() { return this.given.url; }
  get readyState() { return this.#state; }
  get protocol() { return this.#state === 0 ? "" : this.given.protocols[0]; }
  get extensions() { return ""; }
  get bufferedAmount() { return 0; }
  get binaryType() { return this.type ?? "blob"; }
  set binaryType(type) { this.type = type; }

  send(data) {
    if (this.#state === 0) throw new Error("InvalidStateError");
    if (this.#state === 1) this.sent.push(data);
  }

  close(...reason) {
    if (this.#state < 2) {
      this.closed = reason;
      this.#state = 2;
    }
  }

  // What the network does.
  open() {
    this.#state = 1;
    this.dispatchEvent(new Event("open"));
  }

  receive(data) {
    if (this.#state === 1) this.dispatchEvent(new MessageEvent("message", { data }));
  }

  end(code = 1006, reason = "", wasClean = code !== 1006) {
    this.#state = 3;
    if (!wasClean) this.dispatchEvent(new Event("error"));
    this.dispatchEvent(new CloseEvent("close", { code, reason, wasClean }));
  }
}

const requests = [];
let answerRequest = () => Promise.reject(new Error("the network is dead"));

function fetch(url, { method = "GET", signal }) {
  requests.push({ url, method, signal });
  return answerRequest(url, signal);
}

const crypto = { getRandomValues: (bytes) => bytes.map(() => Math.floor(256 * Math.random())) };
const navigator = { userAgent: "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/156.0.0.0 Safari/537.36" };
const document = new EventTarget();
Object.assign(document, { hidden: false, baseURI: "http://app.test", currentScript: { src: "/watchdog.js", dataset: {} } });
// Whatever the script shows exists, and has no effect.
const anything = new Proxy(function () {}, {
  get: (_, name) => (name === Symbol.toPrimitive ? () => 0 : name === "parentElement" ? null : anything),
  set: () => true,
  apply: () => anything,
  construct: () => anything,
});
Object.assign(document, { createElement: anything, querySelector: anything, querySelectorAll: anything });
Object.assign(document, { documentElement: anything, activeElement: anything, body: anything, hasFocus: anything });
const [getComputedStyle, CSSStyleSheet] = [anything, anything];
const window = new EventTarget();
Object.assign(window, { WebSocket, fetch });

// Runs the script in the page, as served. Intervals of 10 s and timeouts of 5 s, as by default.
function install(dataset) {
  document.currentScript.dataset = { mode: "self", interval: "10000", ackTimeout: "5000", ...dataset };
  Math.random = () => 0.5; // waits do not vary
  (0, eval)(SCRIPT);
}

// The tests of a file, by their names, which are facts.
const tests = new Map();
function test(name, body) {
  tests.set(name, body);
}

// Runs one of them.
let outcome = "did not finish";
async function start(name) {
  try {
    await tests.get(name)();
    outcome = "passed";
  } catch (error) {
    outcome = `${error.message}\n${error.stack}`;
  }
}

function show(value) {
  return JSON.stringify(value, (_key, part) => {
    if (part instanceof ArrayBuffer) return { bytes: [...new Uint8Array(part)] };
    return ArrayBuffer.isView(part) ? { bytes: [...part] } : part;
  });
}

function equal(got, expected, about = "") {
  if (show(got) !== show(expected)) throw new Error(`${about} got ${show(got)}, expected ${show(expected)}`);
}
