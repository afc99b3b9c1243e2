// The page's end of a logical connection: counts data messages, keeps copies of those that the sidecar has not confirmed,
// and decides what each message and each end of a leg means.
//
// It has no socket, timer or clock. Callers pass events, with the time in milliseconds, and carry out the actions that
// are returned, in order:
//
//   ["send", data]     over the current leg
//   ["check", text]    the same; the sidecar answers it
//   ["answered"]       the sidecar has answered, so the leg lives
//   ["deliver", data]  to the frontend
//   ["drop"]           ignore all further events of the current leg, and close it with 4000
//   ["lost"]           the connection has no leg now
//   ["retry"]          make another leg, with the subprotocol that `attempt` returns
//   ["resumed"]        the current leg carries the connection again
//   ["unsent", reason, count]  so many inputs were not sent again
//   ["greeted", count] the first message of the connection has come; the number of messages of the page's last connection
//                      that have reached the app, if the sidecar has closed that one
//   ["died", copies]   what may not have reached the app: { data, at, number }
//   ["ended"]          the lost connection cannot be resumed
//   ["end", close]     the close event for the frontend
//
// Invariant: no message that the frontend sent goes over two legs, unless the sidecar has reported that it did not
// receive it over the first.

const GREETING = /^_heartbeat resumable ([0-9a-f]+) (\d{1,15}) (\d{1,15})(?: taken (\d{1,15}))?$/;
const NO_RESUMPTION = /^_heartbeat plain(?: taken (\d{1,15}))?$/;
const RESUMED = /^_heartbeat resumed (\d{1,15})$/;
const RECEIVED = /^_heartbeat received (\d{1,15})$/;
const CONTROL = "_heartbeat ";
const MAX_CONTROL_LENGTH = 125;

const CONFIRM_AFTER = 32 * 1024; // bytes
const BUFFER_BEFORE_GREETING = 1024 * 1024; // bytes; the greeting has the real one
const COPY_OVERHEAD = 8; // bytes of each copy, beside its payload
const MAX_SILENT_LEGS = 3; // in a row: these lead to a server that cannot resume

const NO_CLOSE_FRAME = 1006;
const GIVEN_UP = 4000; // sent: this leg is lost, the connection is not
const REPLACED = 4001;
const NOT_RESUMABLE = 4004;
const ABNORMAL = { code: NO_CLOSE_FRAME, reason: "", wasClean: false };

// Copies of the newest sent messages. All older ones are confirmed, or were dropped when the copies exceeded the limit.
class Outbox {
  limit = BUFFER_BEFORE_GREETING;
  bytes = 0;
  #base = 0; // number of the newest message without a copy
  #copies = [];

  get count() {
    return this.#base + this.#copies.length;
  }

  // Whether all copies are still there.
  push(data, at) {
    const copy = { data: copyOf(data), bytes: sizeOf(data) + COPY_OVERHEAD, at };
    this.#copies.push(copy);
    this.bytes += copy.bytes;
    if (this.bytes > this.limit) this.#drop(this.#copies.length);
    return this.#copies.length > 0;
  }

  confirm(count) {
    if (count > this.#base) this.#drop(count - this.#base);
  }

  // Whether the sidecar has all messages that have no copy, and none that was never sent.
  continuesAt(count) {
    return count >= this.#base && count <= this.count;
  }

  // The copies, with the numbers of their messages.
  get copies() {
    return this.#copies.map(({ data, at }, index) => ({ data, at, number: this.#base + 1 + index }));
  }

  // Replaces all copies: the sidecar has received none of their messages.
  replace(messages, at) {
    for (const { bytes } of this.#copies.splice(0)) this.bytes -= bytes;
    for (const data of messages) this.push(data, at);
  }

  forgetOlderThan(time) {
    const count = this.#copies.findIndex(({ at }) => at >= time);
    this.#drop(count < 0 ? this.#copies.length : count);
  }

  clear() {
    this.#drop(this.#copies.length);
  }

  #drop(count) {
    for (const { bytes } of this.#copies.splice(0, count)) this.bytes -= bytes;
    this.#base += count;
  }
}

class End {
  // "new":   the first leg, before its first message
  // "plain": the connection ends with its leg
  // "live":  resumable, and the current leg carries it
  // "lost":  resumable, and no leg carries it
  // "over"
  state = "new";
  #outbox = new Outbox();
  #maxAge;
  #keepsCopies = true;
  #secret;
  #window;
  #leg = 0;
  #silentLegs = 0;
  #lostAt;
  #received = 0;
  #unconfirmedBytes = 0;

  // `maxAge` in milliseconds: an older message is not sent again.
  constructor(maxAge = Infinity) {
    this.#maxAge = maxAge;
  }

  get isResumable() {
    return this.state === "live" || this.state === "lost";
  }

  get keptBytes() {
    return this.#outbox.bytes;
  }

  send(data, now) {
    if (this.state === "over") return [];
    if (this.state === "plain") {
      // Nothing confirms these. The sidecar reports their number when another connection takes this one over.
      if (this.#keepsCopies) this.#outbox.forgetOlderThan(now - this.#maxAge);
      if (this.#keepsCopies) this.#outbox.push(data, now);
      return [["send", data]];
    }
    const isKept = this.#outbox.push(data, now);
    if (this.state !== "lost") return [["send", data]];
    return isKept ? [] : this.#end(ABNORMAL);
  }

  // Confirms what was received, and asks for the same. The caller sends it at intervals, while the connection is live.
  check() {
    this.#unconfirmedBytes = 0;
    return [["check", `_heartbeat received ${this.#received}`]];
  }

  onMessage(data, now) {
    if (this.state === "new") return this.#onFirstMessage(data);
    if (this.state === "plain") return [["deliver", data]];
    if (this.state === "lost") return this.#onFirstOfLaterLeg(data, now);
    if (this.state === "over") return [];
    return isControl(data) ? this.#onControl(data) : this.#onData(data);
  }

  // The current leg is dead, or did not open in time.
  onLost(now) {
    if (this.state === "over") return [];
    if (!this.isResumable) return [["drop"], ...this.#end(ABNORMAL)];
    if (this.state === "live") {
      this.state = "lost";
      this.#lostAt = now;
      return [["drop"], ["lost"], ["retry"]];
    }
    this.#silentLegs = 0;
    return this.#retry(now);
  }

  // A later leg has opened, but its first message did not come in time.
  onSilent(now) {
    this.#silentLegs += 1;
    return this.#silentLegs < MAX_SILENT_LEGS ? this.#retry(now) : this.#end(ABNORMAL);
  }

  // The current leg was closed; `close` is its event.
  onClose(close, now) {
    if (this.isResumable && [NO_CLOSE_FRAME, REPLACED].includes(close.code)) return this.onLost(now);
    return this.#end(this.isResumable && close.code === NOT_RESUMABLE ? ABNORMAL : close);
  }

  // Starts another leg: returns the subprotocol that resumes the connection.
  attempt() {
    this.#leg += 1;
    this.#unconfirmedBytes = 0;
    return `resume.${this.#secret}.${this.#leg}.${this.#received}`;
  }

  // The frontend ends the connection. The current leg carries its close, if the connection is not lost.
  onFrontendClose() {
    return this.#end(ABNORMAL);
  }

  #onFirstMessage(data) {
    const greeting = isControl(data) && GREETING.exec(data);
    if (greeting) {
      this.state = "live";
      this.#secret = greeting[1];
      this.#outbox.limit = Number(greeting[2]);
      this.#window = Number(greeting[3]);
      return [["answered"], ["greeted", countOf(greeting[4])]];
    }
    this.state = "plain";
    const plain = isControl(data) && NO_RESUMPTION.exec(data);
    if (plain) return [["greeted", countOf(plain[1])]];
    this.#keepsCopies = false;
    this.#outbox.clear();
    return [["greeted", undefined], ["deliver", data]];
  }

  #onFirstOfLaterLeg(data, now) {
    const resumed = isControl(data) && RESUMED.exec(data);
    if (!resumed || !this.#outbox.continuesAt(Number(resumed[1]))) return this.#end(ABNORMAL);
    this.state = "live";
    this.#silentLegs = 0;
    this.#outbox.confirm(Number(resumed[1]));
    const isOld = ({ at }) => at < now - this.#maxAge;
    const dataOf = ({ data }) => data;
    const { copies } = this.#outbox;
    const instead = expired(copies.filter(isOld).map(dataOf));
    const values = instead.filter(([action]) => action === "send").map(([, data]) => data);
    const messages = coalesced([...values, ...copies.filter((copy) => !isOld(copy)).map(dataOf)]);
    this.#outbox.replace(messages, now);
    const sends = messages.map((data) => ["send", data]);
    return [["resumed"], ...sends, ...instead.filter(([action]) => action === "unsent")];
  }

  #onControl(text) {
    const received = RECEIVED.exec(text);
    if (!received) return []; // of a later version
    const count = Number(received[1]);
    if (count > this.#outbox.count) return this.#end(ABNORMAL);
    this.#outbox.confirm(count);
    return [["answered"]];
  }

  #onData(data) {
    this.#received += 1;
    this.#unconfirmedBytes += sizeOf(data);
    return [["deliver", data], ...(this.#unconfirmedBytes >= CONFIRM_AFTER ? this.#confirm() : [])];
  }

  // The sidecar needs no copies of these any more. It does not answer.
  #confirm() {
    this.#unconfirmedBytes = 0;
    return [["send", `_heartbeat confirm ${this.#received}`]];
  }

  #retry(now) {
    return now - this.#lostAt < this.#window ? [["drop"], ["retry"]] : this.#end(ABNORMAL);
  }

  #end(close) {
    const { isResumable, state } = this;
    const { copies } = this.#outbox;
    this.state = "over";
    this.#outbox.clear();
    return [
      ...(isResumable ? [["drop"]] : []),
      ...(state === "lost" ? [["ended"]] : []),
      ...(["new", "over"].includes(state) || !this.#keepsCopies ? [] : [["died", copies]]),
      ["end", close],
    ];
  }
}

function countOf(digits) {
  return digits === undefined ? undefined : Number(digits);
}

function isControl(data) {
  return typeof data === "string" && data.length <= MAX_CONTROL_LENGTH && data.startsWith(CONTROL);
}

function sizeOf(data) {
  if (typeof data === "string") return 3 * data.length; // at most, in UTF-8
  return data.byteLength ?? data.size;
}

// The frontend may change a buffer after it has sent it. A Blob never changes.
function copyOf(data) {
  if (ArrayBuffer.isView(data)) return data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength);
  return data instanceof ArrayBuffer ? data.slice(0) : data;
}
