// Fetches the numbers every two seconds while the page is visible, and shows them.

/** Milliseconds from a response to the next request. */
const POLL_MS = 2000;
/** Milliseconds without a response after which the page is marked as outdated; also the timeout of a request. */
const TIMEOUT_MS = 7000;
/** Sessions in the table. The server sorts and truncates, so thousands of sessions cost no more. */
const ROWS = 100;
/** Milliseconds over which rates are computed: heartbeats are often ten seconds apart. */
const RATE_SPAN_MS = 30_000;

const chart = new Chart();

// --- The view: kept in the URL, so that it can be shared

const columns = [...document.querySelectorAll("#columns button")];
const params = new URLSearchParams(location.hash.slice(1));
const view = {
  sort: columns.find(({ value }) => value === params.get("sort"))?.value ?? "last_ack_latency_seconds",
  order: params.get("order") === "asc" ? "asc" : "desc",
  filter: params.get("filter") ?? "",
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
  poll();
};

// --- Polling

/** Milliseconds since the sidecar started, and its start as an epoch. */
let now = 0;
let startedAt = 0;
/** Time of the last response, by the page's own clock. */
let respondedAt;
let paused = false;
let timer;
let request = new AbortController();

const poll = async () => {
  clearTimeout(timer);
  request.abort();
  if (document.hidden) return;
  const own = (request = new AbortController());
  const timeout = setTimeout(() => own.abort(), TIMEOUT_MS);
  try {
    const query = new URLSearchParams({ ...view, limit: ROWS, since: now });
    const response = await fetch(`status.json?${query}`, { cache: "no-store", signal: own.signal });
    if (!response.ok) throw new Error(`status ${response.status}`);
    const status = await response.json();
    if (request === own) show(status);
  } catch {
    if (request === own) miss();
  } finally {
    clearTimeout(timeout);
    if (request === own && !paused) timer = setTimeout(poll, POLL_MS);
  }
};

/** Handles a missing response. A single one may be due to a connection whose lifetime ended. */
const miss = () => {
  const silent = performance.now() - (respondedAt ?? -Infinity);
  if (silent < TIMEOUT_MS) return;
  document.body.classList.add("lost");
  $("state").className = "lost";
  set($("state"), respondedAt === undefined ? "no response" : `no response since ${clock(Date.now() - silent)}`);
  document.title = "no response – heartbeat-sidecar";
};

const show = (status) => {
  if (status.now < now) {
    // The sidecar was restarted.
    chart.clear();
    samples.length = 0;
    startedAt = 0;
  }
  respondedAt = performance.now();
  now = status.now;
  // Set once, so that the times of ends do not change from one response to the next.
  startedAt ||= Date.now() - now;
  showState(status);
  showSums(status);
  chart.add(status, startedAt);
  chart.draw();
  showUpstreams(status);
  showSessions(status);
  showEnded(status);
  document.body.classList.remove("lost");
  document.body.dataset.answers = Number(document.body.dataset.answers ?? 0) + 1;
};

// --- State and sums

const showState = ({ state, reload, version, live }) => {
  const draining = state === "draining";
  $("state").className = state;
  set($("state"), draining ? `draining: ${plural(live, "session")} left` : state);
  set($("version"), version);
  $("reload").className = reload && !reload.accepted ? "bad" : "quiet";
  const result = reload?.accepted ? "reloaded" : "rejected";
  set($("reload"), reload ? `configuration ${result} ${duration(reload.seconds_ago)} ago${reload.accepted ? "" : ": see the log"}` : "");
  set($("uptime"), `up ${duration(now / 1000)}`);
  document.title = `${draining ? "draining, " : ""}${plural(live, "session")} – heartbeat-sidecar`;
};

/** Sums and their times in the last RATE_SPAN_MS: rates are their differences. */
const samples = [];

const perSecond = (key) => {
  const [first, last] = [samples[0], samples.at(-1)];
  return last.at > first.at ? rate(((last[key] - first[key]) * 1000) / (last.at - first.at)) : "–";
};

const showSums = ({ live, parked_now, withheld_now, totals: { opened, heartbeats, acks, withheld } }) => {
  samples.push({ at: now, heartbeats, acks: acks.sidecar + acks.upstream });
  while (samples[0].at < now - RATE_SPAN_MS) samples.shift();
  set($("live"), count(live));
  const parked = parked_now ? `, ${count(parked_now)} parked now` : "";
  set($("opened"), `${count(opened)} opened since the start${parked}`);
  set($("heartbeats"), perSecond("heartbeats"));
  set($("heartbeats-sum"), `${count(heartbeats)} since the start`);
  set($("acks"), perSecond("acks"));
  set($("acks-sum"), `${count(acks.sidecar)} by the sidecar, ${count(acks.upstream)} by upstreams`);
  set($("withheld-now"), count(withheld_now));
  $("withheld-now").className = withheld_now ? "bad" : "";
  const { upstream_stalled: stalled, upstream_closed: closed, policy } = withheld;
  const reasons = Object.entries({ stalled, closed, "by policy": policy }).filter(([, number]) => number);
  const reasonsText = reasons.map(([reason, number]) => `${count(number)} ${reason}`).join(", ");
  set($("withheld-sum"), `${reasonsText || "none"} since the start`);
};

// --- Tables

/** Shows these items as the rows of a table's body. Unchanged cells are not touched: they can be selected and read. */
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
    session.parked ? ["parked", "warn"] : [count(session.resumed)],
    [bytes(session.bytes_to_browser)],
    [bytes(session.bytes_to_upstream)],
    [count(session.messages_to_browser)],
    [count(session.messages_to_upstream)],
  ]);
  $("rows-none").hidden = sessions.length > 0;
  set($("rows-none").querySelector("td"), live ? "No session matches the filter." : "No sessions.");
  const matches = view.filter ? `${count(matching)} of ${count(live)} match` : "";
  const cut = sessions.length < matching ? `first ${count(sessions.length)} of ${count(matching)}` : "";
  set($("shown"), [matches, cut].filter(Boolean).join(", "));
};

const showEnded = ({ ended }) => {
  fill($("ended"), ended, (end) => [
    [String(end.id)],
    [`${clock(startedAt + end.at_seconds * 1000)} (${ago(now / 1000 - end.at_seconds)})`, "text"],
    [end.upstream, "text"],
    textOr(end.version, "not seen"),
    [duration(end.age_seconds)],
    [end.initiator, "text"],
    [`${end.code} ${CODES[end.code] ?? ""}`.trim(), QUIET_CODES.includes(end.code) ? "text" : "text warn"],
    end.gave_up === null ? ["", "text"] : [GAVE_UP[end.gave_up] ?? end.gave_up, "text bad"],
  ]);
  $("ended-none").hidden = ended.length > 0;
};

// --- Input

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
  set(target, paused ? "Resume" : "Pause");
  if (paused) clearTimeout(timer);
  else poll();
});
document.addEventListener("visibilitychange", () => {
  if (!paused) poll();
});
showColumns();
poll();
