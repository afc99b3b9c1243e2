// The watchdog: notices that the page has lost its connection to the app, and lets the page connect again.
//
// A network that dies in silence takes a browser minutes to notice. Streamlit's own remedy is a heartbeat that the server
// acks; its page sends one when the page that embeds it asks for that, and since 1.55 it reconnects when the ack stays
// out. This script does the latter for all versions, and in mode "self" also sends heartbeats of its own. It touches
// nothing but the websocket of Streamlit's messages, and changes none of these.
(() => {
  "use strict";

  const { src } = document.currentScript;
  const { mode, interval, ackTimeout } = document.currentScript.dataset; // the latter two in milliseconds
  const NativeWebSocket = window.WebSocket;
  const nativeFetch = window.fetch.bind(window);

  const STREAM = /(\/_stcore)?\/stream$/; // before Streamlit 1.14 without the first part
  const HEARTBEAT = [0x88, 0x01, 0x01]; // BackMsg { app_heartbeat: true }
  const ACK = [0xd0, 0x01, 0x01]; // ForwardMsg { heartbeat_ack: true }
  const LONGEST_ACK = 16; // an ack may carry a little more, and ends with the above

  // Of its timeout, when a heartbeat without an ack makes the script ask, and for how long the answer may be thought over.
  const ASK_AFTER = 0.6;
  const ASK_FOR = 0.25;

  // As many connections as browsers keep to one host, and how long a living one may take to answer, in milliseconds.
  const KEPT_CONNECTIONS = 6;
  const ANSWER_TIME = 200;

  // Whether acks have come over this connection or the one before. A page that never gets any, since its acks are not
  // answered on its way, must not reconnect for ever.
  let acksCome = false;
  let replacesDead = false;
  let hostTimeout; // what the host asked for in the message that the page reads now

  // The page judges whether it trusts its host: only when it then really sends a heartbeat is this of use.
  window.addEventListener("message", ({ data }) => {
    const isRequest = data?.stCommVersion === 1 && data.type === "SEND_APP_HEARTBEAT";
    hostTimeout = isRequest ? data.ackTimeoutMilliseconds : undefined;
  });

  class StreamSocket extends NativeWebSocket {
    #acked = false;
    #askUrl;
    #beats;
    #dead = false;
    #greeted = false;
    #question;
    #timer;

    constructor(url, protocols) {
      const token = newToken();
      super(tagged(url, token), protocols);
      this.#askUrl = `${String(url).replace(/^ws/i, "http").replace(/\?.*/, "").replace(STREAM, "/_heartbeat/alive")}?socket=${token}`;
      for (const type of ["open", "message", "error", "close"]) {
        // The first listeners of all: a connection that was given up says nothing more.
        this.addEventListener(type, (event) => (this.#dead ? event.stopImmediatePropagation() : this.#heed(event)));
      }
    }

    send(data) {
      super.send(data);
      if (isHeartbeat(data)) this.#expectAck(hostTimeout);
    }

    close(...reason) {
      this.#rest();
      super.close(...reason);
    }

    #heed(event) {
      if (event.type === "message") {
        if (isAck(event.data)) {
          this.#acked = acksCome = true;
          this.#stopTimer();
        }
        // The first one early, but behind the message that tells the sidecar which Streamlit this is.
        if (!this.#greeted) this.#beat();
        this.#greeted = true;
      } else if (event.type === "open") {
        replacesDead = false;
        this.#beats = setInterval(() => this.#beat(), Number(interval));
      } else if (event.type === "close") {
        this.#rest();
      }
    }

    #beat() {
      if (mode !== "self" || this.readyState !== NativeWebSocket.OPEN) return;
      super.send(new Uint8Array(HEARTBEAT));
      this.#expectAck(Number(ackTimeout));
    }

    // The timer runs from the first heartbeat that has no ack; later ones do not start it anew.
    #expectAck(timeout) {
      if (acksCome && this.#timer === undefined && Number.isFinite(timeout) && timeout > 0) this.#startTimer(timeout);
    }

    #startTimer(timeout) {
      this.#timer = setTimeout(async () => {
        this.#timer = setTimeout(() => this.#giveUp(), (1 - ASK_AFTER) * timeout);
        if (await this.#isProgressing(ASK_FOR * timeout)) {
          this.#stopTimer();
          this.#startTimer(timeout);
        }
      }, ASK_AFTER * timeout);
    }

    // An ack may wait behind a large message on a slow link: only the sidecar can see that bytes of that arrive.
    async #isProgressing(wait) {
      this.#question = new AbortController();
      const { signal } = this.#question;
      try {
        const answer = await nativeFetch(`${this.#askUrl}&wait=${Math.round(wait)}`, { cache: "no-store", signal });
        return answer.ok && (await answer.text()).trim() === "progress" && !signal.aborted;
      } catch {
        return false; // no answer says that there is none
      }
    }

    // On a dead network the browser would report the end of a closed connection a minute later.
    async #giveUp() {
      this.#rest();
      acksCome = this.#acked;
      replacesDead = true;
      await dropDeadConnections();
      if (this.readyState === NativeWebSocket.CLOSED) return;
      this.dispatchEvent(new CloseEvent("close", { code: 1006, wasClean: false }));
      this.#dead = true;
      super.close();
    }

    #stopTimer() {
      clearTimeout(this.#timer);
      this.#timer = undefined;
      this.#question?.abort();
    }

    #rest() {
      this.#stopTimer();
      clearInterval(this.#beats);
    }
  }

  // The browser keeps connections for later requests. If these died with this one, the page's next requests, by which it
  // looks for the server, would wait on them, 15 s for each two. A connection whose request is aborted is closed;
  // one that lives has answered by then, and is kept.
  async function dropDeadConnections() {
    const questions = new AbortController();
    const question = { method: "HEAD", cache: "no-store", signal: questions.signal };
    for (let kept = 0; kept < KEPT_CONNECTIONS; kept++) nativeFetch(src, question).catch(() => {});
    await new Promise((resume) => setTimeout(resume, ANSWER_TIME));
    questions.abort();
  }

  function isStream(url, protocols) {
    try {
      const { pathname } = new URL(url, document.baseURI);
      return STREAM.test(pathname) && Array.isArray(protocols) && protocols[0] === "streamlit";
    } catch {
      return false; // the browser's own constructor says what is wrong
    }
  }

  // The sidecar takes this out again; without a sidecar no version of Streamlit minds it.
  function tagged(url, token) {
    return `${url}${String(url).includes("?") ? "&" : "?"}_heartbeat=${token}${replacesDead ? ".watchdog" : ""}`;
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
    return bytes.length <= LONGEST_ACK && endsWith(bytes, ACK);
  }

  function bytesOf(data) {
    if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    return data instanceof ArrayBuffer ? new Uint8Array(data) : [];
  }

  function endsWith(bytes, end) {
    return bytes.length >= end.length && end.every((byte, at) => bytes[bytes.length - end.length + at] === byte);
  }

  window.WebSocket = new Proxy(NativeWebSocket, {
    construct: (target, args, newTarget) =>
      isStream(...args) ? new StreamSocket(...args) : Reflect.construct(target, args, newTarget),
  });
})();
