// Asks for the numbers every two seconds, while somebody looks, and shows them.

/** Milliseconds from an answer to the next question. */
const EVERY = 2000;
/** Milliseconds without an answer after which what is shown is called old. */
const PATIENCE = 7000;
/** Sessions in the table: the server sorts and cuts, so that thousands cost no more than these. */
const ROWS = 100;
/** Milliseconds that rates are taken over: heartbeats are often ten seconds apart. */
const RATE_SPAN = 30_000;

const chart = new Chart();

// --- What to show: kept in the address, so that it can be passed on

const columns = [...document.querySelectorAll("#columns button")];
const asked = new URLSearchParams(location.hash.slice(1));
const view = {
  sort: columns.find(({ value }) => value === asked.get("sort"))?.value ?? "last_ack_latency_seconds",
  order: asked.get("order") === "asc" ? "asc" : "desc",
  filter: asked.get("filter") ?? "",
};

const showColumns = () => {
  for (const button of columns) {
    const order = view.order === "asc" ? "ascending" : "descending";
    if (button.value === view.sort) button.parentElement.setAttribute("aria-sort", order);
    else button.parentElement.removeAttribute("aria-sort");
  }
};

const changeView = (change) => {
  Object.assign(view, change);
  history.replaceState(null, "", `#${new URLSearchParams(view)}`);
  showColumns();
  ask();
};

// --- Asking

/** Milliseconds since the sidecar began; and when it began, by the clock. */
let now = 0;
let begun = 0;
/** When the last answer came, in the page's own time. */
let heard;
let paused = false;
let timer;
let question = new AbortController();

const ask = async () => {
  clearTimeout(timer);
  question.abort();
  if (document.hidden) return;
  const mine = (question = new AbortController());
  const patience = setTimeout(() => mine.abort(), PATIENCE);
  try {
    const query = new URLSearchParams({ ...view, limit: ROWS, since: now });
    const answer = await fetch(`status.json?${query}`, { cache: "no-store", signal: mine.signal });
    if (!answer.ok) throw new Error(`the sidecar answered ${answer.status}`);
    const status = await answer.json();
    if (question === mine) show(status);
  } catch {
    if (question === mine) miss();
  } finally {
    clearTimeout(patience);
    if (question === mine && !paused) timer = setTimeout(ask, EVERY);
  }
};

/** No answer came: one alone may be a connection that had its time. */
const miss = () => {
  const silent = performance.now() - (heard ?? -Infinity);
  if (silent < PATIENCE) return;
  document.body.classList.add("lost");
  $("state").className = "lost";
  set($("state"), heard === undefined ? "no answer" : `no answer since ${clock(Date.now() - silent)}`);
  document.title = "no answer – heartbeat-sidecar";
};

const show = (status) => {
  if (status.now < now) {
    // The sidecar has begun anew.
    chart.forget();
    samples.length = 0;
    begun = 0;
  }
  heard = performance.now();
  now = status.now;
  // Once, so that the times of ends stay as they are from one answer to the next.
  begun ||= Date.now() - now;
  showState(status);
  showSums(status);
  chart.learn(status, begun);
  chart.draw();
  showUpstreams(status);
  showSessions(status);
  showEnded(status);
  document.body.classList.remove("lost");
  document.body.dataset.answers = Number(document.body.dataset.answers ?? 0) + 1;
};

// --- State and sums

const showState = ({ state, version, live }) => {
  const draining = state === "draining";
  $("state").className = state;
  set($("state"), draining ? `draining: ${plural(live, "session")} left` : state);
  set($("version"), version);
  set($("uptime"), `up ${duration(now / 1000)}`);
  document.title = `${draining ? "draining, " : ""}${plural(live, "session")} – heartbeat-sidecar`;
};

/** Sums with their times, of the last while: rates are their differences. */
const samples = [];

const perSecond = (key) => {
  const [first, last] = [samples[0], samples.at(-1)];
  return last.at > first.at ? rate(((last[key] - first[key]) * 1000) / (last.at - first.at)) : "–";
};

const showSums = ({ live, withheld_now, totals: { opened, heartbeats, acks, withheld } }) => {
  samples.push({ at: now, heartbeats, acks: acks.sidecar + acks.upstream });
  while (samples[0].at < now - RATE_SPAN) samples.shift();
  set($("live"), count(live));
  set($("opened"), `${count(opened)} opened since the start`);
  set($("heartbeats"), perSecond("heartbeats"));
  set($("heartbeats-sum"), `${count(heartbeats)} since the start`);
  set($("acks"), perSecond("acks"));
  set($("acks-sum"), `${count(acks.sidecar)} by the sidecar, ${count(acks.upstream)} by upstreams`);
  set($("withheld-now"), count(withheld_now));
  $("withheld-now").className = withheld_now ? "bad" : "";
  const { upstream_stalled: stalled, upstream_closed: closed, policy } = withheld;
  const reasons = Object.entries({ stalled, closed, "by policy": policy }).filter(([, number]) => number);
  const told = reasons.map(([reason, number]) => `${count(number)} ${reason}`).join(", ");
  set($("withheld-sum"), `${told || "none"} since the start`);
};

// --- Tables

/** Makes these the rows of a table's body; what has not changed is not touched, so that it can be selected and read. */
const fill = (body, items, cellsOf) => {
  while (body.rows.length > items.length) body.deleteRow(-1);
  items.forEach((item, index) => {
    const row = body.rows[index] ?? body.insertRow();
    cellsOf(item).forEach(([text, kind = ""], column) => {
      let cell = row.cells[column];
      if (!cell) {
        cell = row.appendChild(document.createElement(column ? "td" : "th"));
        if (!column) cell.scope = "row";
      }
      set(cell, text);
      if (cell.className !== kind) cell.className = kind;
      // It may be too long for its column.
      if (kind.startsWith("text") && cell.title !== text) cell.title = text;
    });
  });
};

/** A cell with a text that may not be there. */
const textOr = (text, otherwise) => (text === null ? [otherwise, "text quiet"] : [text, "text"]);

const showUpstreams = ({ upstreams }) =>
  fill($("upstreams"), upstreams, ({ name, acks_natively: natively, sessions }) => [
    [name, "text"],
    textOr(natively === null ? null : natively ? "yes" : "no", "not known yet"),
    [count(sessions)],
  ]);

const showSessions = ({ sessions, live, matching }) => {
  fill($("rows"), sessions, (session) => [
    [String(session.id)],
    [session.upstream, "text"],
    textOr(session.version, session.tapped ? "not seen yet" : "cannot be seen"),
    [duration(session.age_seconds)],
    [ago(session.last_heartbeat_seconds_ago)],
    session.withheld ? ["withheld", "bad"] : [latency(session.last_ack_latency_seconds)],
    [latency(session.browser_rtt_seconds)],
    [latency(session.proof_rtt_seconds)],
    [bytes(session.bytes_to_browser)],
    [bytes(session.bytes_to_upstream)],
    [count(session.messages_to_browser)],
    [count(session.messages_to_upstream)],
  ]);
  $("rows-none").hidden = sessions.length > 0;
  set($("rows-none").querySelector("td"), live ? "No session fits the filter." : "No session now.");
  const fitting = view.filter ? `${count(matching)} of ${count(live)} fit` : "";
  const cut = sessions.length < matching ? `the first ${count(sessions.length)} of ${count(matching)} in this order` : "";
  set($("shown"), [fitting, cut].filter(Boolean).join(", "));
};

const showEnded = ({ ended }) => {
  fill($("ended"), ended, (end) => [
    [String(end.id)],
    [`${clock(begun + end.at_seconds * 1000)} (${ago(now / 1000 - end.at_seconds)})`, "text"],
    [end.upstream, "text"],
    textOr(end.version, "not seen"),
    [duration(end.age_seconds)],
    [end.initiator, "text"],
    [`${end.code} ${CODES[end.code] ?? ""}`.trim(), QUIET_CODES.includes(end.code) ? "text" : "text warn"],
    end.gave_up === null ? ["", "text"] : [GAVE_UP[end.gave_up] ?? end.gave_up, "text bad"],
  ]);
  $("ended-none").hidden = ended.length > 0;
};

// --- Hands

$("columns").addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (!button) return;
  const first = ["upstream", "version"].includes(button.value) ? "asc" : "desc";
  const turned = view.order === "desc" ? "asc" : "desc";
  changeView({ sort: button.value, order: button.value === view.sort ? turned : first });
});
$("filter").value = view.filter;
$("filter").addEventListener("input", ({ target }) => changeView({ filter: target.value }));
$("pause").addEventListener("click", ({ target }) => {
  paused = !paused;
  set(target, paused ? "Go on" : "Pause");
  if (paused) clearTimeout(timer);
  else ask();
});
document.addEventListener("visibilitychange", () => {
  if (!paused) ask();
});
showColumns();
ask();
