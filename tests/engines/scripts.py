"""What `measure_engines.py` runs in pages."""

OPEN = """(url, name) => {
  const socket = (window[name] = new WebSocket(url));
  const began = performance.now();
  socket.events = [];
  for (const type of ["open", "error", "close"])
    socket.addEventListener(type, ({ code, wasClean }) => {
      const at = `${Math.round(performance.now() - began)} ms`;
      socket.events.push(code === undefined ? [type, at] : [type, code, wasClean, at]);
    });
}"""
IS_OPEN = "(name) => window[name].readyState === WebSocket.OPEN"
HAS_CLOSED = "(name) => window[name].events.some(([type]) => type === 'close')"
EVENTS = "(name) => window[name].events"

COUNT_TICKS = """() => {
  window.ticks = { 250: [], 1000: [], 10000: [] };
  for (const every of Object.keys(ticks)) setInterval(() => ticks[every].push(performance.now()), Number(every));
  window.states = [document.visibilityState];
  document.addEventListener("visibilitychange", () => states.push(document.visibilityState));
}"""
TICKS = """() => {
  const now = performance.now();
  const gaps = (list, from, to) => {
    const inside = list.filter((at) => at >= from && at < to);
    return [inside.length, Math.round(Math.max(...inside.slice(1).map((at, n) => at - inside[n])))];
  };
  const windows = [[now - 380e3, now - 320e3], [now - 80e3, now - 5e3]];
  return [states, Object.entries(ticks).map(([every, list]) => [every, ...windows.map((it) => gaps(list, ...it))])];
}"""

FETCH_SIX = "(url) => Promise.all([...Array(6)].map((_, n) => fetch(`${url}?${n}`).then((it) => it.text())))"
# As the watchdog's script does before it reconnects.
ABORT_SIX = """async (url) => {
  const requests = new AbortController();
  const options = { method: "HEAD", cache: "no-store", signal: requests.signal };
  for (let n = 0; n < 6; n++) fetch(url, options).catch(() => {});
  await new Promise((resume) => setTimeout(resume, 200));
  requests.abort();
}"""
# With a timeout of 15 s for each request, as Streamlit's frontend has.
FETCH_UNTIL_ANSWERED = """(url) => {
  window.answered = null;
  const began = performance.now();
  (async () => {
    while (answered === null)
      await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(15000) }).then(
        () => { answered = (performance.now() - began) / 1000; },
        () => {},
      );
  })();
}"""

# An attempt is given up after 3 s. The waits between them grow to 10 s. With `page` a request must be answered first.
ATTEMPT_UNTIL_OPEN = """(url, page) => {
  const request = () => fetch(page, { method: "HEAD", cache: "no-store", signal: AbortSignal.timeout(3000) });
  window.attempts = [];
  window.opened = false;
  (async () => {
    for (let wait = 250; !opened; wait = Math.min(2 * wait, 10000)) {
      attempts.push(performance.now());
      if (page && !(await request().then(() => true, () => false))) {
        await new Promise((resume) => setTimeout(resume, wait));
        continue;
      }
      const socket = new WebSocket(url);
      await new Promise((resume) => {
        socket.onopen = () => resume((window.opened = true));
        setTimeout(resume, 3000);
      });
      if (opened) return;
      socket.close(4000);
      await new Promise((resume) => setTimeout(resume, wait));
    }
  })();
}"""
FAIL_EIGHT_TIMES = """async (url) => {
  const times = [];
  for (let n = 0; n < 8; n++) {
    const began = performance.now();
    await new Promise((resume) => { new WebSocket(url).onclose = resume; });
    times.push(Math.round(performance.now() - began));
  }
  return times;
}"""

HEAR_ONLINE = """() => {
  window.heard = [];
  for (const type of ["online", "offline"]) addEventListener(type, () => heard.push(type));
}"""

FEATURES = """() => {
  const root = document.body.appendChild(document.createElement("div")).attachShadow({ mode: "closed" });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync("p { color: rgb(1, 2, 3) }");
  root.adoptedStyleSheets = [sheet];
  const status = root.appendChild(document.createElement("p"));
  status.setAttribute("role", "status");
  return {
    adoptedStyleSheets: getComputedStyle(status).color === "rgb(1, 2, 3)",
    role: status.role ?? null,
    inert: "inert" in status,
    popover: "popover" in status,
    lightDark: CSS.supports("color", "light-dark(red, blue)"),
    abortTimeout: "timeout" in AbortSignal,
    freeze: "onfreeze" in document,
  };
}"""
ADD_CONTROLS = """() => {
  document.body.insertAdjacentHTML("beforeend", "<input><button>Go</button>");
  window.clicks = 0;
  document.querySelector("button").onclick = () => clicks++;
}"""
FOCUSED = "() => document.activeElement.tagName"
