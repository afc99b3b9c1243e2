// Decides from missing answers that a leg is dead, and closes the browser's other dead connections.

// Shares of the timeout: when the script queries the sidecar, and how long the sidecar may delay its response.
const QUERY_AFTER = 0.6;
const QUERY_WAIT = 0.25;

// A timer that fires later than this was held up: the tab was frozen or throttled, or the computer slept. Answers that
// have arrived meanwhile may still be queued behind it.
const LATE = 1000;

// Browsers keep at most six connections to one host. A live one answers a HEAD request within 200 ms.
const KEPT_CONNECTIONS = 6;
const RESPONSE_TIME = 200;

// Reports one leg as dead if an answer stays out for a timeout, unless bytes still reach the page over that leg.
class AnswerTimer {
  #aliveUrl;
  #onDead;
  #timer;
  #wasLate;
  #query;

  constructor(aliveUrl, onDead) {
    this.#aliveUrl = aliveUrl;
    this.#onDead = onDead;
  }

  get isRunning() {
    return this.#timer !== undefined;
  }

  // The timer starts at the first question without an answer. Later questions do not restart it.
  start(timeout) {
    if (this.#timer !== undefined) return;
    this.#wasLate = false;
    this.#begin(timeout);
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#query?.abort();
  }

  #begin(timeout) {
    this.#after(QUERY_AFTER * timeout, timeout, async () => {
      this.#after((1 - QUERY_AFTER) * timeout, timeout, this.#onDead);
      if (await this.#isProgressing(QUERY_WAIT * timeout)) {
        this.stop();
        this.start(timeout);
      }
    });
  }

  // If the timer is late, the wait starts again, once: in a hidden tab all timers may be late.
  #after(delay, timeout, action) {
    const due = Date.now() + delay;
    this.#timer = setTimeout(() => {
      if (this.#wasLate || Date.now() - due <= LATE) return action();
      this.#wasLate = true;
      this.#query?.abort();
      this.#begin(timeout);
    }, delay);
  }

  // An answer may queue behind a large message on a slow link. Only the sidecar can see that its bytes arrive.
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
}

// The browser keeps connections for later requests. If they are dead too, the page's next requests to the server
// would wait on them, 15 s for each pair. The browser closes a connection when its request is aborted. A live one has
// answered by then, and is kept.
async function dropDeadConnections() {
  const requests = new AbortController();
  const options = { method: "HEAD", cache: "no-store", signal: requests.signal };
  for (let kept = 0; kept < KEPT_CONNECTIONS; kept++) nativeFetch(settings.src, options).catch(() => {});
  await new Promise((resume) => setTimeout(resume, RESPONSE_TIME));
  requests.abort();
}

// Whether the server responds in time, over a connection of its own: those of the page, which have credentials, may be
// dead.
async function isReachable(request, limit) {
  const timer = setTimeout(() => request.abort(), limit);
  const options = { method: "HEAD", cache: "no-store", credentials: "omit", signal: request.signal };
  return nativeFetch(settings.src, options).then(() => true, () => false).finally(() => clearTimeout(timer));
}
