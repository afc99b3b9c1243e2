// The watchdog: detects that the page has lost its connection to the app, and makes the page reconnect.
//
// A browser needs minutes to detect a network that fails silently. Streamlit detects it by heartbeats that the server
// acks. Its page sends one when its host page requests it, and from 1.55 on it reconnects if the ack is missing. This
// script does the latter for all versions; in mode "self" it also sends its own heartbeats. It wraps only the websocket
// of Streamlit's messages, and changes no message.
(() => {
  "use strict";

  const { src } = document.currentScript;
  const { mode, interval, ackTimeout } = document.currentScript.dataset; // `interval` and `ackTimeout` in milliseconds
  const NativeWebSocket = window.WebSocket;
  const nativeFetch = window.fetch.bind(window);

  const STREAM = /(\/_stcore)?\/stream$/; // before Streamlit 1.14 without `/_stcore`
  const HEARTBEAT = [0x88, 0x01, 0x01]; // BackMsg { app_heartbeat: true }
  const ACK = [0xd0, 0x01, 0x01]; // ForwardMsg { heartbeat_ack: true }
  const MAX_ACK_BYTES = 16; // an ack may have more fields, and ends with the bytes above

  // Shares of the ack timeout: when the script queries the sidecar, and how long the sidecar may delay its response.
  const QUERY_AFTER = 0.6;
  const QUERY_WAIT = 0.25;

  // Browsers keep at most six connections to one host. A live one answers a HEAD request within 200 ms.
  const KEPT_CONNECTIONS = 6;
  const RESPONSE_TIME = 200;

  // Whether this connection or the previous one has received an ack. Without it a page must not reconnect: if its
  // heartbeats are never acked, it would reconnect forever.
  let receivesAcks = false;
  let replacesDead = false;
  let hostTimeout; // from the host's message that the page handles now

  // The page decides whether it trusts its host. The timeout is used only if the page then sends a heartbeat.
  window.addEventListener("message", ({ data }) => {
    const isRequest = data?.stCommVersion === 1 && data.type === "SEND_APP_HEARTBEAT";
    hostTimeout = isRequest ? data.ackTimeoutMilliseconds : undefined;
  });

  class StreamSocket extends NativeWebSocket {
    #acked = false;
    #aliveUrl;
    #heartbeatTimer;
    #dead = false;
    #receivedFirst = false;
    #query;
    #ackTimer;

    constructor(url, protocols) {
      const token = newToken();
      super(tagged(url, token), protocols);
      this.#aliveUrl = `${String(url).replace(/^ws/i, "http").replace(/\?.*/, "").replace(STREAM, "/_heartbeat/alive")}?socket=${token}`;
      for (const type of ["open", "message", "error", "close"]) {
        // These listeners come first, so a dead connection delivers no further events.
        this.addEventListener(type, (event) => (this.#dead ? event.stopImmediatePropagation() : this.#onEvent(event)));
      }
    }

    send(data) {
      super.send(data);
      if (isHeartbeat(data)) this.#expectAck(hostTimeout);
    }

    close(...reason) {
      this.#stopTimers();
      super.close(...reason);
    }

    #onEvent(event) {
      if (event.type === "message") {
        if (isAck(event.data)) {
          this.#acked = receivesAcks = true;
          this.#stopAckTimer();
        }
        // The first heartbeat is sent early, but after the message from which the sidecar learns Streamlit's version.
        if (!this.#receivedFirst) this.#sendHeartbeat();
        this.#receivedFirst = true;
      } else if (event.type === "open") {
        replacesDead = false;
        this.#heartbeatTimer = setInterval(() => this.#sendHeartbeat(), Number(interval));
      } else if (event.type === "close") {
        this.#stopTimers();
      }
    }

    #sendHeartbeat() {
      if (mode !== "self" || this.readyState !== NativeWebSocket.OPEN) return;
      super.send(new Uint8Array(HEARTBEAT));
      this.#expectAck(Number(ackTimeout));
    }

    // The timer starts at the first unacked heartbeat. Later heartbeats do not restart it.
    #expectAck(timeout) {
      const isLimited = Number.isFinite(timeout) && timeout > 0;
      if (isLimited && receivesAcks && this.#ackTimer === undefined) this.#startAckTimer(timeout);
    }

    #startAckTimer(timeout) {
      this.#ackTimer = setTimeout(async () => {
        this.#ackTimer = setTimeout(() => this.#giveUp(), (1 - QUERY_AFTER) * timeout);
        if (await this.#isProgressing(QUERY_WAIT * timeout)) {
          this.#stopAckTimer();
          this.#startAckTimer(timeout);
        }
      }, QUERY_AFTER * timeout);
    }

    // An ack may queue behind a large message on a slow link. Only the sidecar can see that its bytes arrive.
    async #isProgressing(wait) {
      this.#query = new AbortController();
      const { signal } = this.#query;
      try {
        const response = await nativeFetch(`${this.#aliveUrl}&wait=${Math.round(wait)}`, { cache: "no-store", signal });
        return response.ok && (await response.text()).trim() === "progress" && !signal.aborted;
      } catch {
        return false; // no response: no progress
      }
    }

    // On a dead network the browser reports the close of a connection a minute late, so the script reports it itself.
    async #giveUp() {
      this.#stopTimers();
      receivesAcks = this.#acked;
      replacesDead = true;
      await dropDeadConnections();
      if (this.readyState === NativeWebSocket.CLOSED) return;
      this.dispatchEvent(new CloseEvent("close", { code: 1006, wasClean: false }));
      this.#dead = true;
      super.close();
    }

    #stopAckTimer() {
      clearTimeout(this.#ackTimer);
      this.#ackTimer = undefined;
      this.#query?.abort();
    }

    #stopTimers() {
      this.#stopAckTimer();
      clearInterval(this.#heartbeatTimer);
    }
  }

  // The browser keeps connections for later requests. If they are dead too, the page's next requests to the server
  // would wait on them, 15 s for each pair. The browser closes a connection when its request is aborted. A live one has
  // answered by then, and is kept.
  async function dropDeadConnections() {
    const requests = new AbortController();
    const options = { method: "HEAD", cache: "no-store", signal: requests.signal };
    for (let kept = 0; kept < KEPT_CONNECTIONS; kept++) nativeFetch(src, options).catch(() => {});
    await new Promise((resume) => setTimeout(resume, RESPONSE_TIME));
    requests.abort();
  }

  function isStream(url, protocols) {
    try {
      const { pathname } = new URL(url, document.baseURI);
      return STREAM.test(pathname) && Array.isArray(protocols) && protocols[0] === "streamlit";
    } catch {
      return false; // the native constructor throws the error
    }
  }

  // The sidecar removes this parameter. Without a sidecar every version of Streamlit ignores it.
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
    return bytes.length <= MAX_ACK_BYTES && endsWith(bytes, ACK);
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
