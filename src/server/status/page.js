// Asks for the numbers every two seconds, while somebody looks, and shows them. Text from outside is only ever set as text.
"use strict";
(() => {
  /** Milliseconds from an answer to the next question. */
  const EVERY = 2000;
  /** Milliseconds without an answer after which what is shown is called old. */
  const PATIENCE = 7000;
  /** Sessions in the table: the server sorts and cuts, so that thousands cost no more than these. */
  const ROWS = 100;
  /** Milliseconds that the chart spans, and that one mark of it stands for. */
  const SPAN = 300_000;
  const BIN = 2000;
  /** Milliseconds that rates are taken over: heartbeats are often ten seconds apart. */
  const RATE_SPAN = 30_000;

  const CODES = {
    1000: "normal", 1001: "going away", 1002: "protocol error", 1003: "unsupported data", 1005: "no code",
    1006: "no close frame", 1007: "invalid payload", 1008: "policy violation", 1009: "too big",
    1010: "extension missing", 1011: "internal error", 1012: "service restart", 1013: "try again later",
    1014: "bad gateway", 1015: "TLS handshake",
  };
  const QUIET_CODES = ["1000", "1001", "1005", "1012"];
  const GAVE_UP = {
    browser_dead: "browser: its network is gone", browser_stalled: "browser: takes nothing",
    browser_pong_missed: "browser: left a ping unanswered", upstream_dead: "upstream: its network is gone",
  };

  const $ = (id) => document.getElementById(id);
  const set = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };

  // --- Words for numbers

  const count = (number) => number.toLocaleString("en");
  const plural = (number, one) => `${count(number)} ${one}${number === 1 ? "" : "s"}`;
  const rate = (number) => (number < 9.95 ? number.toFixed(1) : count(Math.round(number)));
  const latency = (seconds) => {
    if (seconds === null || seconds === undefined) return "–";
    const millis = seconds * 1000;
    if (millis < 9.995) return `${millis.toFixed(2)} ms`;
    if (millis < 99.95) return `${millis.toFixed(1)} ms`;
    return millis < 999.5 ? `${millis.toFixed(0)} ms` : `${seconds.toFixed(2)} s`;
  };
  const duration = (seconds) => {
    if (seconds === null) return "–";
    const [days, hours, minutes] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
    if (days) return `${days} d ${hours % 24} h`;
    if (hours) return `${hours} h ${minutes % 60} min`;
    return minutes ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.floor(seconds)} s`;
  };
  const bytes = (number) => {
    const units = ["B", "kB", "MB", "GB", "TB"];
    let power = 0;
    while (number >= 999.5 && power < units.length - 1) [number, power] = [number / 1000, power + 1];
    return `${power && number < 99.95 ? number.toFixed(1) : number.toFixed(0)} ${units[power]}`;
  };
  const clock = (epoch) => new Date(epoch).toLocaleTimeString([], { hour12: false });

  // --- What to show: kept in the address, so that it can be passed on

  const asked = new URLSearchParams(location.hash.slice(1));
  const names = [...document.querySelectorAll("#columns button")].map((button) => button.value);
  const view = {
    sort: names.includes(asked.get("sort")) ? asked.get("sort") : "last_ack_latency_seconds",
    order: asked.get("order") === "asc" ? "asc" : "desc",
    filter: asked.get("filter") ?? "",
  };
  const showColumns = () => {
    for (const button of document.querySelectorAll("#columns button")) {
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

  let now = 0;
  let begun = 0;
  let heard = 0;
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
      const answer = await fetch(`status.json?${new URLSearchParams({ ...view, limit: ROWS, since: now })}`, {
        cache: "no-store",
        signal: mine.signal,
      });
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
    if (performance.now() - heard < PATIENCE) return;
    document.body.classList.add("lost");
    $("state").className = "lost";
    set($("state"), heard ? `no answer since ${clock(Date.now() - (performance.now() - heard))}` : "no answer");
    document.title = "no answer – heartbeat-sidecar";
  };

  const show = (status) => {
    if (status.now < now) forget();
    heard = performance.now();
    // Once, so that the times of ends stay as they are from one answer to the next.
    begun ||= Date.now() - status.now;
    now = status.now;
    showState(status);
    showNumbers(status);
    learn(status);
    draw();
    showRows(status);
    showEnded(status);
    document.body.classList.remove("lost");
    document.body.dataset.answers = Number(document.body.dataset.answers ?? 0) + 1;
  };

  /** The sidecar has begun anew. */
  const forget = () => {
    bins.clear();
    samples.length = 0;
    begun = cutAt = 0;
  };

  // --- State and sums

  /** Sums with their times, of the last while: rates are their differences. */
  const samples = [];

  const showState = ({ state, version, live }) => {
    const draining = state === "draining";
    $("state").className = state;
    set($("state"), draining ? `draining: ${plural(live, "session")} left` : state);
    set($("version"), version);
    set($("uptime"), `up ${duration(now / 1000)}`);
    document.title = `${draining ? "draining, " : ""}${plural(live, "session")} – heartbeat-sidecar`;
  };

  const showNumbers = ({ live, withheld_now, totals, upstreams }) => {
    const { opened, heartbeats, acks, withheld } = totals;
    samples.push({ at: now, heartbeats, acks: acks.sidecar + acks.upstream });
    while (samples.length > 1 && samples[0].at < now - RATE_SPAN) samples.shift();
    const [first, last] = [samples[0], samples.at(-1)];
    const perSecond = (key) =>
      last.at > first.at ? rate(((last[key] - first[key]) * 1000) / (last.at - first.at)) : "–";

    set($("live"), count(live));
    set($("opened"), `${count(opened)} opened since the start`);
    set($("heartbeats"), perSecond("heartbeats"));
    set($("heartbeats-sum"), `${count(heartbeats)} in all`);
    set($("acks"), perSecond("acks"));
    set($("acks-sum"), `${count(acks.sidecar)} by the sidecar, ${count(acks.upstream)} by upstreams`);
    set($("withheld-now"), count(withheld_now));
    $("withheld-now").className = withheld_now ? "bad" : "";
    const reasons = [["stalled", withheld.upstream_stalled], ["closed", withheld.upstream_closed], ["by policy", withheld.policy]];
    const told = reasons.filter(([, number]) => number).map(([name, number]) => `${count(number)} ${name}`);
    set($("withheld-sum"), told.length ? `withheld in all: ${told.join(", ")}` : "never withheld");

    fill($("upstreams"), upstreams, ({ name, acks_natively, sessions }) => [
      [name, "text"],
      [acks_natively === null ? "not known yet" : acks_natively ? "yes" : "no", acks_natively === null ? "text quiet" : "text"],
      [count(sessions)],
    ]);
  };

  // --- The chart

  /** By the number of the two seconds: what was answered in them. */
  const bins = new Map();
  /** When last there were more answers than came. */
  let cutAt = 0;

  const learn = ({ answers, answers_cut }) => {
    const changed = new Set();
    for (const [at, whose, micros] of answers) {
      if (at <= now - SPAN) continue;
      const key = Math.floor(at / BIN);
      if (!bins.has(key)) bins.set(key, { sidecar: [], upstream: [], withheld: 0 });
      const bin = bins.get(key);
      if (whose === "withheld") bin.withheld += 1;
      else bin[whose].push(micros / 1e6);
      changed.add(bin);
    }
    for (const bin of changed) {
      bin.sidecar.sort((one, other) => one - other);
      bin.upstream.sort((one, other) => one - other);
    }
    for (const key of bins.keys()) if (key < Math.floor((now - SPAN) / BIN)) bins.delete(key);
    if (answers_cut && answers[0][0] > now - SPAN) cutAt = now;
    $("cut").hidden = !cutAt || cutAt < now - SPAN;
  };

  const median = (sorted) => sorted[Math.floor(sorted.length / 2)];

  const TOP = 18;
  const BOTTOM = 20;
  const LEFT = 52;
  const FLOOR = 1e-4;
  const DECADES = ["0.1 ms", "1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"];

  const shape = () => {
    const { width, height } = $("chart").getBoundingClientRect();
    let slowest = 0;
    for (const { sidecar, upstream } of bins.values()) slowest = Math.max(slowest, sidecar.at(-1) ?? 0, upstream.at(-1) ?? 0);
    const decades = Math.max(4, Math.min(6, Math.ceil(Math.log10((slowest || FLOOR) / FLOOR) - 1e-9)));
    return {
      width,
      decades,
      bottom: height - BOTTOM,
      x: (at) => LEFT + (1 - (now - at) / SPAN) * (width - LEFT - 6),
      y: (seconds) => {
        const part = Math.log10(Math.max(seconds, FLOOR) / FLOOR) / decades;
        return height - BOTTOM - Math.min(part, 1) * (height - BOTTOM - TOP);
      },
    };
  };

  /** As many copies of the first child as are needed. */
  const children = (parent, number) => {
    while (parent.childElementCount > number) parent.lastElementChild.remove();
    while (parent.childElementCount < number) parent.append(parent.firstElementChild.cloneNode(true));
    return [...parent.children];
  };

  const drawAxes = ({ width, decades, bottom, x, y }) => {
    children($("decades"), decades + 1).forEach((line, power) => {
      const at = y(FLOOR * 10 ** power).toFixed(1);
      line.firstElementChild.setAttribute("d", `M${LEFT} ${at}H${width}`);
      line.lastElementChild.setAttribute("x", LEFT - 8);
      line.lastElementChild.setAttribute("y", at);
      set(line.lastElementChild, DECADES[power]);
    });
    children($("minutes"), 6).forEach((text, minutes) => {
      text.setAttribute("x", minutes ? x(now - minutes * 60_000) : width - 12);
      text.setAttribute("y", bottom + 15);
      set(text, minutes ? `−${minutes} min` : "now");
    });
  };

  const draw = () => {
    const { width, decades, bottom, x, y } = shape();
    if (!width) return;
    drawAxes({ width, decades, bottom, x, y });
    const sums = { sidecar: { acks: 0, slowest: 0 }, upstream: { acks: 0, slowest: 0 }, withheld: 0 };
    const paths = { sidecar: ["", ""], upstream: ["", ""] };
    let marks = "";
    const inOrder = [...bins].sort(([one], [other]) => one - other);
    for (const [key, bin] of inOrder) {
      const at = x((key + 0.5) * BIN);
      if (at < LEFT) continue;
      for (const whose of ["sidecar", "upstream"]) {
        const values = bin[whose];
        if (!values.length) continue;
        // Side by side where both have answered.
        const beside = (at + (bin.sidecar.length && bin.upstream.length ? (whose === "sidecar" ? -1.5 : 1.5) : 0)).toFixed(1);
        paths[whose][0] += `M${beside} ${y(values.at(-1)).toFixed(1)}V${y(values[0]).toFixed(1)}`;
        paths[whose][1] += `M${beside} ${y(median(values)).toFixed(1)}h0.01`;
        const sum = sums[whose];
        sum.acks += values.length;
        sum.slowest = Math.max(sum.slowest, values.at(-1));
        sum.latest = median(values);
      }
      sums.withheld += bin.withheld;
      if (bin.withheld) marks += `M${(at - 4).toFixed(1)} 3h8l-4 8z`;
    }
    for (const whose of ["sidecar", "upstream"]) {
      document.querySelector(`#chart .range.${whose}`).setAttribute("d", paths[whose][0]);
      document.querySelector(`#chart .median.${whose}`).setAttribute("d", paths[whose][1]);
    }
    $("withheld").setAttribute("d", marks);
    tell(sums);
  };

  /** The chart in words. */
  const tell = ({ sidecar, upstream, withheld }) => {
    const words = ({ acks, slowest, latest }) =>
      acks ? `${plural(acks, "ack")}, latest ${latency(latest)}, slowest ${latency(slowest)}` : "none";
    set($("of-sidecar"), words(sidecar));
    set($("of-upstream"), words(upstream));
    set($("of-withheld"), withheld ? count(withheld) : "none");
    const label = `Ack latency of the last five minutes. Sidecar: ${words(sidecar)}. Upstream: ${words(upstream)}. Withheld: ${withheld}.`;
    $("chart").setAttribute("aria-label", label);
  };

  const point = (event) => {
    const { width, bottom, x } = shape();
    const at = now - (1 - (event.offsetX - LEFT) / (width - LEFT - 6)) * SPAN;
    const key = [-1, 0, 1].map((side) => Math.floor(at / BIN) + side).find((key) => bins.has(key));
    if (key === undefined) return unpoint();
    const { sidecar, upstream, withheld } = bins.get(key);
    const said = [["sidecar", sidecar], ["upstream", upstream]]
      .filter(([, values]) => values.length)
      .map(([name, values]) => `${name} ${values.length} × ${latency(values[0])} – ${latency(median(values))} – ${latency(values.at(-1))}`);
    if (withheld) said.push(`withheld ${count(withheld)}`);
    set($("pointed"), `at ${clock(begun + key * BIN)}: ${said.join("; ")}`);
    $("pointer").setAttribute("d", `M${x((key + 0.5) * BIN).toFixed(1)} ${TOP - 6}V${bottom}`);
  };
  const unpoint = () => {
    set($("pointed"), "");
    $("pointer").setAttribute("d", "");
  };

  // --- Tables

  /** Makes the rows of a table body these; what has not changed is not touched, so that it can be selected and read. */
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
        if (kind.startsWith("text") && cell.title !== text) cell.title = text;
      });
    });
  };

  const showRows = ({ sessions, live, matching }) => {
    fill($("rows"), sessions, (session) => [
      [String(session.id)],
      [session.upstream, "text"],
      [session.version ?? (session.tapped ? "not seen yet" : "cannot be seen"), session.version ? "text" : "text quiet"],
      [duration(session.age_seconds)],
      [session.last_heartbeat_seconds_ago === null ? "–" : `${duration(session.last_heartbeat_seconds_ago)} ago`],
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
      [`${clock(begun + end.at_seconds * 1000)} (${duration(Math.max(0, now / 1000 - end.at_seconds))} ago)`],
      [end.upstream, "text"],
      [end.version ?? "not seen", end.version ? "text" : "text quiet"],
      [duration(end.age_seconds)],
      [end.initiator, "text"],
      [`${end.code} ${CODES[end.code] ?? ""}`.trim(), QUIET_CODES.includes(end.code) ? "text" : "text warn"],
      end.gave_up ? [GAVE_UP[end.gave_up] ?? end.gave_up, "text bad"] : ["", "text"],
    ]);
    $("ended-none").hidden = ended.length > 0;
  };

  // --- Hands

  $("columns").addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    const turned = view.order === "desc" ? "asc" : "desc";
    const first = ["upstream", "version"].includes(button.value) ? "asc" : "desc";
    changeView({ sort: button.value, order: button.value === view.sort ? turned : first });
  });
  $("filter").value = view.filter;
  $("filter").addEventListener("input", ({ target }) => changeView({ filter: target.value }));
  $("pause").addEventListener("click", ({ target }) => {
    paused = !paused;
    target.setAttribute("aria-pressed", String(paused));
    set(target, paused ? "Go on" : "Pause");
    if (paused) clearTimeout(timer);
    else ask();
  });
  $("chart").addEventListener("pointermove", point);
  $("chart").addEventListener("pointerleave", unpoint);
  document.addEventListener("visibilitychange", () => {
    if (!paused) ask();
  });
  new ResizeObserver(draw).observe($("chart"));
  showColumns();
  ask();
})();
