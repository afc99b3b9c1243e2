// Shows on the page that its connection is lost, pauses input during a long loss, and names inputs that were not sent.
//
// Invariant: no text says that an input arrived. Nothing is added inside the elements of the app. The connection goes on
// if the browser cannot show a notice: only timers create one.

// All times in milliseconds.
const SHOW_AFTER = 2000; // most losses are over by then, and a short notice would only disturb
const PAUSE_AFTER = 5000; // since the notice is shown: time to read it, and to finish a word
const READ_TIME = 20000; // for two short sentences, also with a screen reader
const ANNOUNCE_TIME = 3000; // a screen reader has taken the text by then

// In CSS pixels.
const EDGE = 8; // distance from the window's edges, and between the places that are tried
const GAP = 4; // distance from controls

const CONTROLS = `a, button, input, select, textarea, iframe, canvas, video, audio, label, summary, [contenteditable],
  [role=button], [role=slider], [data-testid=stChatInput], [data-testid=stStatusWidget]`;

// Streamlit's widgets commit a value when they lose focus, so they must not see that focus is taken from them.
const FOCUS_EVENTS = ["focus", "focusin", "blur", "focusout", "change"];

const STYLE = `
  :host { all: initial !important; position: fixed !important; inset: 0 !important; z-index: 2147483647 !important;
    pointer-events: none !important; }
  .card { position: absolute; box-sizing: border-box; width: fit-content; margin: 0 auto;
    max-width: min(34rem, 100vw - ${2 * EDGE}px); padding: 6px 14px; display: flex; align-items: center; gap: 10px;
    font: 14px/20px var(--font), sans-serif; color: var(--text); background: var(--background);
    border: 1px solid rgb(128 128 128 / 0.35); border-radius: 8px; box-shadow: 0 2px 10px rgb(0 0 0 / 0.18); }
  .quiet { width: 1px; height: 1px; padding: 0; border: 0; overflow: hidden; clip-path: inset(50%); }
  .quiet > :not(p), [hidden] { display: none; }
  p { margin: 0; }
  b { font-weight: 600; }
  i { flex: none; box-sizing: border-box; width: 14px; height: 14px; border-radius: 50%;
    border: 2px solid rgb(128 128 128 / 0.35); border-top-color: currentColor; animation: turn 1s linear infinite; }
  @keyframes turn { to { transform: rotate(360deg); } }
  @media (prefers-reduced-motion: reduce) { i { animation: none; } }
  button { all: unset; flex: none; pointer-events: auto; cursor: pointer; padding: 2px 8px; border-radius: 6px;
    font-weight: 600; border: 1px solid rgb(128 128 128 / 0.35); }
  button:hover { background: rgb(128 128 128 / 0.15); }
  button:focus-visible { outline: 2px solid currentColor; outline-offset: 1px; }
`;

class Notice {
  #timer; // of the loss; undefined while connected
  #pause; // what to undo when input is no longer paused
  #loss = null; // the text about the loss, if it is shown
  #unsent = 0;
  #isUnknown = false; // of some of them it is not known
  #reading;
  #parts;

  // A leg was given up. Further calls during the same loss have no effect.
  lost() {
    if (this.#timer !== undefined) return;
    setTimeout(() => (this.#parts ??= this.#newParts())); // before its text: screen readers announce only changes
    this.#timer = setTimeout(() => {
      this.#show("Reconnecting…", "What you entered is kept.");
      this.#timer = setTimeout(() => {
        this.#pause = pauseInput(this.#parts.host);
        this.#show("Reconnecting…", "Input is paused. What you entered is kept.");
      }, PAUSE_AFTER);
    }, SHOW_AFTER);
  }

  resumed() {
    const wasShown = this.#loss !== null;
    this.ended();
    if (!wasShown || !this.#parts || this.#unsent > 0) return;
    this.#parts.text.textContent = "Connected again."; // only for screen readers
    setTimeout(() => this.#render(), ANNOUNCE_TIME);
  }

  // The page itself shows from now on whether it is connected.
  ended() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#loss = null;
    this.#pause?.();
    this.#pause = undefined;
    this.#render();
  }

  // `count` inputs were not sent, and will not be.
  unsent(count = 1) {
    this.#unsent += count;
    setTimeout(() => this.#render());
  }

  // `count` inputs were sent, but perhaps not received.
  unknown(count = 1) {
    this.#isUnknown = true;
    this.unsent(count);
  }

  #show(...text) {
    this.#loss = text;
    this.#render();
  }

  #render() {
    const text = this.#loss ?? unsentText(this.#unsent, this.#isUnknown);
    if (!text && !this.#parts) return;
    this.#parts ??= this.#newParts();
    const { host, card, spinner, text: status, dismiss } = this.#parts;
    card.classList.toggle("quiet", !text);
    spinner.hidden = !this.#loss;
    dismiss.hidden = Boolean(this.#loss);
    status.replaceChildren();
    if (text) status.append(newElement("b", { textContent: text[0] }), ` ${text[1]}`);
    if (text) {
      takeTheme(host);
      place(card);
    }
    this.#awaitReader();
  }

  // A notice about inputs stays until its reader had time for it. In a hidden tab nobody reads.
  #awaitReader() {
    clearTimeout(this.#reading);
    if (this.#unsent > 0 && !this.#loss && !document.hidden) this.#reading = setTimeout(() => this.#dismiss(), READ_TIME);
  }

  #dismiss() {
    this.#unsent = 0;
    this.#isUnknown = false;
    this.#render();
  }

  #newParts() {
    const host = newElement("heartbeat-notice", { lang: "en" });
    const card = newElement("div", { className: "card quiet" });
    const spinner = newElement("i");
    const text = newElement("p");
    text.setAttribute("role", "status");
    const dismiss = newElement("button", { type: "button", textContent: "Dismiss", onclick: () => this.#dismiss() });
    const style = new CSSStyleSheet(); // Content-Security-Policy may forbid <style>, but not this
    style.replaceSync(STYLE);
    const root = host.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [style];
    card.append(spinner, text, dismiss);
    root.append(card);
    document.documentElement.append(host);
    window.addEventListener("resize", () => place(card));
    document.addEventListener("visibilitychange", () => this.#awaitReader());
    return { host, card, spinner, text, dismiss };
  }
}

function newElement(name, properties) {
  return Object.assign(document.createElement(name), properties);
}

function unsentText(count, isUnknown) {
  if (count === 0) return null;
  const inputs = count === 1 ? "Your last input was" : `Your last ${count} inputs were`;
  return [`${inputs} ${isUnknown ? "perhaps " : ""}not sent.`, "Check the page, then enter it again if needed."];
}

// The app's theme may differ from the system's.
function takeTheme(host) {
  const app = document.querySelector(".stApp") ?? document.body;
  const { color, fontFamily } = getComputedStyle(app);
  const filled = [app, document.body].find((element) => !isTransparent(element));
  host.style.setProperty("--background", filled ? getComputedStyle(filled).backgroundColor : "Canvas");
  host.style.setProperty("--text", filled ? color : "CanvasText");
  host.style.setProperty("--font", fontFamily);
}

// In the header if there is one, at the bottom, at the top, or as low as possible: the first place that covers no control,
// else the one that covers least.
function place(card) {
  const page = scrollArea();
  const pageBox = page.getBoundingClientRect();
  card.style.left = `${Math.max(pageBox.left, EDGE)}px`;
  card.style.right = `${Math.max(window.innerWidth - pageBox.right, EDGE)}px`;
  const { width, left, height } = card.getBoundingClientRect();
  const controls = Array.from(document.querySelectorAll(CONTROLS), (control) => ({
    isInPage: page.contains(control),
    box: control.getBoundingClientRect(),
  }));
  const covered = (top, isInHeader = false) =>
    controls.reduce((sum, { isInPage, box }) => {
      if (isInHeader && isInPage) return sum; // the page scrolls behind the header
      const wide = Math.min(left + width, box.right) - Math.max(left, box.left);
      const high = Math.min(top + height + GAP, box.bottom) - Math.max(top - GAP, box.top);
      return sum + Math.max(wide, 0) * Math.max(high, 0);
    }, 0);
  const bottom = window.innerHeight - height - EDGE;
  const tops = [bottom, EDGE];
  for (let top = bottom - EDGE; top > EDGE; top -= EDGE) tops.push(top);
  const places = tops.map((top) => ({ top, area: covered(top) }));
  const header = document.querySelector("header");
  const top = ((header?.getBoundingClientRect().height ?? 0) - height) / 2;
  if (top >= 0 && !isTransparent(header)) places.unshift({ top, area: covered(top, true) });
  card.style.top = `${places.reduce((best, other) => (other.area < best.area ? other : best)).top}px`;
}

function scrollArea() {
  const scrolls = (area) => /auto|scroll/.test(getComputedStyle(area).overflowY);
  return Array.from(document.querySelectorAll("main, section")).find(scrolls) ?? document.documentElement;
}

function isTransparent(element) {
  return /^transparent$|, 0\)$/.test(getComputedStyle(element).backgroundColor);
}

// Makes everything inert except the area in which the page scrolls, so that it can still be read. Returns how to undo it.
function pauseInput(host) {
  const focused = document.activeElement;
  const scrolling = scrollArea();
  const paused = Array.from(scrolling.children);
  for (let kept = scrolling; kept.parentElement; kept = kept.parentElement) {
    paused.push(...Array.from(kept.parentElement.children).filter((sibling) => sibling !== kept));
  }
  const changed = paused.filter((element) => !element.inert && element !== host);
  const stopKey = (event) => event.target !== host && event.stopImmediatePropagation(); // shortcuts of the app
  window.addEventListener("keydown", stopKey, true);
  withoutFocusEvents(() => {
    focused?.blur();
    for (const element of changed) element.inert = true;
  });
  return () => {
    window.removeEventListener("keydown", stopKey, true);
    for (const element of changed) element.inert = false;
    const giveBack = () => {
      if (![document.body, scrolling].includes(document.activeElement)) return; // the user has moved on
      withoutFocusEvents(() => focused?.focus({ preventScroll: true }));
    };
    // Embedded in another page, the app must not take focus from that page.
    if (document.hasFocus()) giveBack();
    else window.addEventListener("focus", giveBack, { once: true });
  };
}

function withoutFocusEvents(action) {
  const stop = (event) => event.stopImmediatePropagation();
  for (const type of FOCUS_EVENTS) window.addEventListener(type, stop, true);
  action();
  for (const type of FOCUS_EVENTS) window.removeEventListener(type, stop, true);
}

const notice = new Notice();
