// The websocket that the frontend sees, and the legs behind it.
//
// Invariant: at most one leg is connecting. A browser opens no second websocket to a host before the first has opened.

const HEARTBEAT = [0x88, 0x01, 0x01]; // BackMsg { app_heartbeat: true }
const ACK = [0xd0, 0x01, 0x01]; // ForwardMsg { heartbeat_ack: true }
const MAX_ACK_BYTES = 16; // an ack may have more fields, and ends with the bytes above

// Milliseconds before each further leg, and how much they vary, so that pages do not come back all at once.
const WAITS = [0, 250, 500, 1000, 2000, 4000, 5000];
const JITTER = 0.2;
// A later leg may take this long to open and resume, or twice the wait before it. Slow networks need more than 3 s, and
// Chromium delays a page's websockets by up to 5 s after many failed ones.
const MIN_ATTEMPT_TIME = 3000;
// After failed websockets to a host, Firefox delays the next ones, longer after each: 28 s after an outage of 60 s. It does
// not delay requests. No feature tells, only the name.
const DELAYS_WEBSOCKETS = /\bFirefox\//.test(navigator.userAgent);
// The greeting of a new connection comes right behind its handshake, but the page may be busy.
const GREETING_TIME = 3000;

// Whether this connection or the previous one has received an ack. Without it a page must not reconnect: if its
// heartbeats are never acked, it would reconnect forever.
let receivesAcks = false;
let replacesDead = false;
const repeater = new Repeater(settings.maxAge); // of all connections of the page, one after the other

class StreamSocket extends WebSocketEvents {
  #end = new End(settings.maxAge);
  #readyState = NativeWebSocket.CONNECTING;
  #url;
  #origin;
  #protocols;
  #protocol = "";
  #leg;
  #answer; // the timer of the current leg
  #acked = false;
  #awaitsAck = false; // the frontend has sent a heartbeat
  #receivedFirst = false;
  #ticks;
  #failures = 0;
  #attemptTimer; // runs before a later leg, and until it has resumed
  #request; // runs before a later leg in some browsers
  #wakeUps = new AbortController();

  constructor(url, protocols) {
    super();
    this.#protocols = protocols;
    this.#url = String(url);
    this.#openLeg(protocols, replacesDead ? ".watchdog" : "");
    this.#url = this.#leg.url.replace(/[?&]_heartbeat=[^&]*$/, ""); // does not change with the page's address
    this.#origin = new URL(this.#url).origin;
    const options = { signal: this.#wakeUps.signal };
    for (const type of ["online", "pageshow"]) window.addEventListener(type, () => this.#onWakeUp(), options);
    document.addEventListener("visibilitychange", () => document.hidden || this.#onWakeUp(), options);
  }

  get url() {
    return this.#url;
  }

  get readyState() {
    return this.#readyState;
  }

  get protocol() {
    return this.#protocol;
  }

  get extensions() {
    return this.#leg?.extensions ?? "";
  }

  get bufferedAmount() {
    return this.#end.state === "lost" ? this.#end.keptBytes : (this.#leg?.bufferedAmount ?? 0);
  }

  send(data) {
    if (this.#readyState === NativeWebSocket.CONNECTING) this.#leg.send(data); // throws the error
    if (this.#readyState !== NativeWebSocket.OPEN) return;
    this.#repeat(repeater.send(typeof data === "object" ? data : String(data), Date.now()));
    if (isHeartbeat(data)) {
      this.#awaitsAck = true;
      this.#expectAck(hostTimeout);
      return;
    }
    // The user waits for an answer: a dead leg must not be noticed only at the next tick.
    if (this.#end.state === "live" && !this.#answer.isRunning) this.#carryOut(this.#end.check());
  }

  close(...reason) {
    if (this.#readyState >= NativeWebSocket.CLOSING) return;
    // Without an ack in time, Streamlit's page (1.55 and later) closes a connection in this way, and makes another.
    const isGivenUp = this.#end.state === "lost" || (this.#awaitsAck && reason.length === 0);
    if (isGivenUp) this.#dropLeg(GIVEN_UP);
    else this.#leg.close(...reason); // throws if the reason is invalid
    this.#readyState = NativeWebSocket.CLOSING;
    this.#stopTimers();
    const actions = this.#end.onFrontendClose();
    const end = actions.pop();
    // An open leg carries the close, and reports it.
    this.#carryOut(isGivenUp ? actions : actions.filter(([action]) => action === "died"));
    if (isGivenUp) setTimeout(() => this.#carryOut([end]));
  }

  #openLeg(protocols, cause = "") {
    const token = newToken();
    const tag = `${this.#url.includes("?") ? "&" : "?"}_heartbeat=${token}${cause}.resume`;
    const leg = new NativeWebSocket(this.#url + tag, protocols);
    leg.binaryType = "arraybuffer";
    for (const type of ["open", "message", "error", "close"]) {
      leg.addEventListener(type, (event) => leg === this.#leg && this.#onEvent(event));
    }
    this.#leg = leg;
    this.#answer = new AnswerTimer(aliveUrl(this.#url, token), () => this.#onDead());
  }

  #onEvent(event) {
    const now = Date.now();
    if (event.type === "message") {
      this.#carryOut(this.#end.onMessage(event.data, now));
    } else if (event.type === "close") {
      this.#carryOut(this.#end.onClose(event, now));
    } else if (this.#readyState === NativeWebSocket.CONNECTING && event.type === "open") {
      this.#onOpen();
    } else if (event.type === "error" && !this.#end.isResumable) {
      this.dispatchEvent(new Event("error"));
    }
  }

  #onOpen() {
    replacesDead = false;
    this.#readyState = NativeWebSocket.OPEN;
    this.#protocol = this.#leg.protocol;
    this.#ticks = setInterval(() => this.#onTick(), settings.interval);
    repeater.opened();
    // Without a sidecar that greets, the app may wait for the rerun that the repeater holds.
    setTimeout(() => this.#repeat(repeater.greeted(undefined, Date.now())), GREETING_TIME);
    this.dispatchEvent(new Event("open"));
  }

  #onTick() {
    if (this.#end.state === "live") this.#carryOut(this.#end.check());
    this.#sendHeartbeat();
  }

  // The network may have changed, or the computer may have slept: a lost connection gets a leg, a live one is checked.
  #onWakeUp() {
    if (this.#end.state === "live") this.#carryOut(this.#end.check());
    if (this.#end.state !== "lost") return;
    this.#failures = 0;
    if (this.#leg === undefined) this.#attempt(0);
  }

  #carryOut(actions) {
    for (const [action, value, count] of actions) this.#perform(action, value, count);
  }

  #perform(action, value, count) {
    switch (action) {
      case "send":
        return this.#leg.send(value);
      case "check":
        this.#leg.send(value);
        return this.#answer.start(settings.ackTimeout);
      case "answered":
        this.#failures = 0;
        return this.#answer.stop();
      case "deliver":
        return this.#onData(value);
      case "drop":
        return this.#dropLeg(GIVEN_UP);
      case "lost":
        return notice.lost();
      case "retry":
        return this.#retry();
      case "resumed":
        this.#stopAttempt();
        return notice.resumed();
      case "unsent":
        return this.#report(value, count);
      case "greeted":
        return this.#repeat(repeater.greeted(value, Date.now()));
      case "died":
        return this.#repeat(repeater.died(value, Date.now()));
      case "ended":
        this.#rememberLoss();
        return notice.ended();
      case "end":
        return this.#finish(value);
    }
  }

  // Carries out what the repeater decides: it may hold a message, or add what an earlier connection lost.
  #repeat(actions) {
    for (const [action, value, count] of actions) {
      if (action === "send") this.#carryOut(this.#end.send(value, Date.now()));
      else if (action === "wait") setTimeout(() => this.#repeat(repeater.waited(Date.now())), value);
      else this.#report(value, count);
    }
  }

  // Inputs that the app does not get, or perhaps not.
  #report(reason, count) {
    if (reason === "unknown") notice.unknown(count);
    else notice.unsent(count);
    if (this.#end.state === "live") this.#leg.send(`_heartbeat unsent ${reason} ${count}`);
  }

  #onData(data) {
    if (isAck(data)) {
      this.#acked = receivesAcks = true;
      this.#awaitsAck = false;
      if (!this.#end.isResumable) this.#answer.stop();
    }
    // The first heartbeat is sent early, but after the message from which the sidecar learns Streamlit's version.
    if (!this.#receivedFirst) this.#sendHeartbeat();
    this.#receivedFirst = true;
    const isBlob = data instanceof ArrayBuffer && this.binaryType === "blob";
    const init = { data: isBlob ? new Blob([data]) : data, origin: this.#origin };
    if (!repeater.isStale(data)) this.dispatchEvent(new MessageEvent("message", init));
    this.#repeat(repeater.received(data, Date.now()));
  }

  #sendHeartbeat() {
    if (settings.mode !== "self" || this.#readyState !== NativeWebSocket.OPEN || this.#end.state === "lost") return;
    this.#carryOut(this.#end.send(new Uint8Array(HEARTBEAT), Date.now()));
    this.#expectAck(settings.ackTimeout);
  }

  // On a resumable connection the sidecar's own answers decide.
  #expectAck(timeout) {
    const isLimited = Number.isFinite(timeout) && timeout > 0;
    if (isLimited && receivesAcks && !this.#end.isResumable) this.#answer.start(timeout);
  }

  async #onDead() {
    const leg = this.#leg;
    this.#answer.stop();
    const dropped = dropDeadConnections();
    if (!this.#end.isResumable) {
      this.#rememberLoss();
      await dropped; // before the frontend looks for the server
      if (leg !== this.#leg) return;
    }
    this.#carryOut(this.#end.onLost(Date.now()));
  }

  #retry() {
    const wait = WAITS[Math.min(this.#failures, WAITS.length - 1)] * (1 + JITTER * (2 * Math.random() - 1));
    this.#failures += 1;
    clearTimeout(this.#attemptTimer);
    if (wait === 0) this.#attempt(wait);
    else this.#attemptTimer = setTimeout(() => this.#attempt(wait), wait);
  }

  async #attempt(wait) {
    this.#stopAttempt();
    const limit = Math.max(MIN_ATTEMPT_TIME, 2 * wait);
    const request = (this.#request = new AbortController());
    const isReached = !DELAYS_WEBSOCKETS || wait === 0 || (await isReachable(request, limit));
    if (request !== this.#request) return; // another attempt has begun, or the connection has ended
    if (!isReached) return this.#carryOut(this.#end.onLost(Date.now()));
    this.#openLeg([...this.#protocols, this.#end.attempt()]);
    this.#attemptTimer = setTimeout(() => {
      const isSilent = this.#leg.readyState === NativeWebSocket.OPEN;
      this.#carryOut(isSilent ? this.#end.onSilent(Date.now()) : this.#end.onLost(Date.now()));
    }, limit);
  }

  #stopAttempt() {
    clearTimeout(this.#attemptTimer);
    this.#request?.abort();
    this.#request = undefined;
  }

  #rememberLoss() {
    receivesAcks = this.#acked;
    replacesDead = true;
  }

  // No event of it is handled from here on. A browser reports the close of a dead connection a minute late.
  #dropLeg(...reason) {
    const leg = this.#leg;
    this.#leg = undefined;
    this.#answer.stop();
    leg?.close(...reason);
  }

  #finish({ code, reason, wasClean }) {
    this.#readyState = NativeWebSocket.CLOSED;
    this.#stopTimers();
    this.#wakeUps.abort();
    const leg = this.#leg;
    this.#leg = undefined;
    this.dispatchEvent(new CloseEvent("close", { code, reason, wasClean }));
    leg?.close();
  }

  #stopTimers() {
    this.#answer.stop();
    clearInterval(this.#ticks);
    this.#stopAttempt();
  }
}

function aliveUrl(url, token) {
  const page = url.replace(/^ws/i, "http").replace(/\?.*/, "").replace(STREAM, "/_heartbeat/alive");
  return `${page}?socket=${token}`;
}

function newToken() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function isHeartbeat(data) {
  const bytes = bytesOf(data);
  return bytes.length === HEARTBEAT.length && endsWith(bytes, HEARTBEAT);
}

function isAck(data) {
  const bytes = bytesOf(data);
  return bytes.length <= MAX_ACK_BYTES && endsWith(bytes, ACK);
}

function endsWith(bytes, end) {
  return bytes.length >= end.length && end.every((byte, at) => bytes[bytes.length - end.length + at] === byte);
}
