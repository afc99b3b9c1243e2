// The chart of ack latency over the last five minutes: every two seconds have a mark for each side that acked.

/** Milliseconds that the chart spans, and that one mark stands for. */
const SPAN_MS = 300_000;
const BIN_MS = 2000;
const SIDES = ["sidecar", "upstream"];

/** Margins of the chart in pixels. At the top are the marks of withheld acks, below the minutes, at the left latencies. */
const TOP = 18;
const BOTTOM = 20;
const LEFT = 52;
const RIGHT = 6;

/** Latency in seconds at the bottom; faster acks are drawn there too. Each line above is ten times as slow. */
const FLOOR_SECONDS = 1e-4;
const DECADES = ["0.1 ms", "1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"];

const median = (sorted) => sorted[Math.floor(sorted.length / 2)];

/** Adds copies of the first child, or removes children, until there are `number`. */
const children = (parent, number) => {
  while (parent.childElementCount > number) parent.lastElementChild.remove();
  while (parent.childElementCount < number) parent.append(parent.firstElementChild.cloneNode(true));
  return [...parent.children];
};

class Chart {
  /** For each two seconds: the sorted latencies of each side, and the number of withheld acks. */
  #bins = new Map();
  /** Milliseconds since the sidecar started, and its start as an epoch. */
  #now = 0;
  #startedAt = 0;
  /** When the last truncated response came. */
  #cutAt = -Infinity;

  constructor() {
    $("chart").addEventListener("pointermove", ({ clientX }) => this.#point(clientX));
    $("chart").addEventListener("pointerleave", () => this.#point(undefined));
    new ResizeObserver(() => this.draw()).observe($("chart"));
  }

  /** The sidecar was restarted. */
  clear() {
    this.#bins.clear();
    this.#cutAt = -Infinity;
  }

  add({ now, answers, answers_cut }, startedAt) {
    [this.#now, this.#startedAt] = [now, startedAt];
    const oldest = now - SPAN_MS;
    const changed = new Set();
    for (const [at, side, micros] of answers) {
      if (at <= oldest) continue;
      const key = Math.floor(at / BIN_MS);
      if (!this.#bins.has(key)) this.#bins.set(key, { sidecar: [], upstream: [], withheld: 0 });
      const bin = this.#bins.get(key);
      if (side === "withheld") bin.withheld += 1;
      else bin[side].push(micros / 1e6);
      changed.add(bin);
    }
    for (const bin of changed) for (const side of SIDES) bin[side].sort((one, other) => one - other);
    for (const key of this.#bins.keys()) if ((key + 1) * BIN_MS < oldest) this.#bins.delete(key);
    if (answers_cut && answers[0][0] > oldest) this.#cutAt = now;
    $("cut").hidden = this.#cutAt < oldest;
  }

  draw() {
    const frame = this.#frame();
    if (!frame.width) return;
    this.#drawAxes(frame);
    const paths = { sidecar: { range: "", median: "" }, upstream: { range: "", median: "" } };
    let marks = "";
    for (const [key, bin] of this.#bins) {
      const middle = frame.x((key + 0.5) * BIN_MS);
      if (middle < LEFT) continue;
      for (const side of SIDES.filter((side) => bin[side].length)) {
        // Side by side where both have acked.
        const beside = bin.sidecar.length && bin.upstream.length ? (side === "sidecar" ? -1.5 : 1.5) : 0;
        const x = (middle + beside).toFixed(1);
        const [fastest, middling, slowest] = [bin[side][0], median(bin[side]), bin[side].at(-1)].map(frame.y);
        paths[side].range += `M${x} ${slowest}V${fastest}`;
        paths[side].median += `M${x} ${middling}h0.01`;
      }
      if (bin.withheld) marks += `M${(middle - 4).toFixed(1)} 3h8l-4 8z`;
    }
    for (const side of SIDES) {
      for (const [part, path] of Object.entries(paths[side])) {
        $("chart").querySelector(`.${part}.${side}`).setAttribute("d", path);
      }
    }
    $("withheld").setAttribute("d", marks);
    this.#describe();
  }

  /** Positions and scales. */
  #frame() {
    const { left, width, height } = $("chart").getBoundingClientRect();
    const slowest = [...this.#bins.values()].map((bin) => Math.max(...SIDES.map((side) => bin[side].at(-1) ?? 0)));
    const needed = Math.ceil(Math.log10(Math.max(FLOOR_SECONDS, ...slowest) / FLOOR_SECONDS) - 1e-9);
    const decades = Math.max(4, Math.min(DECADES.length - 1, needed));
    const tall = height - BOTTOM - TOP;
    return {
      left,
      width,
      decades,
      bottom: height - BOTTOM,
      x: (at) => LEFT + (1 - (this.#now - at) / SPAN_MS) * (width - LEFT - RIGHT),
      y: (seconds) => {
        const part = Math.log10(Math.max(seconds, FLOOR_SECONDS) / FLOOR_SECONDS) / decades;
        return (height - BOTTOM - Math.min(part, 1) * tall).toFixed(1);
      },
    };
  }

  #drawAxes({ width, decades, bottom, x, y }) {
    children($("decades"), decades + 1).forEach((line, power) => {
      const at = y(FLOOR_SECONDS * 10 ** power);
      line.firstElementChild.setAttribute("d", `M${LEFT} ${at}H${width}`);
      line.lastElementChild.setAttribute("x", LEFT - 8);
      line.lastElementChild.setAttribute("y", at);
      set(line.lastElementChild, DECADES[power]);
    });
    children($("minutes"), SPAN_MS / 60_000 + 1).forEach((text, minutes) => {
      text.setAttribute("x", minutes ? x(this.#now - minutes * 60_000) : width - 12);
      text.setAttribute("y", bottom + 15);
      set(text, minutes ? `−${minutes} min` : "now");
    });
  }

  /** The text alternative of the chart. */
  #describe() {
    const inOrder = [...this.#bins].sort(([one], [other]) => one - other).map(([, bin]) => bin);
    const texts = SIDES.map((side) => {
      const acked = inOrder.map((bin) => bin[side]).filter((values) => values.length);
      if (!acked.length) return "none";
      const acks = acked.reduce((sum, values) => sum + values.length, 0);
      const slowest = Math.max(...acked.map((values) => values.at(-1)));
      return `${plural(acks, "ack")}, latest ${latency(median(acked.at(-1)))}, slowest ${latency(slowest)}`;
    });
    const withheld = inOrder.reduce((sum, bin) => sum + bin.withheld, 0);
    SIDES.forEach((side, index) => set($(`of-${side}`), texts[index]));
    set($("of-withheld"), withheld ? count(withheld) : "none");
    const [sidecar, upstream] = texts;
    const label = `Ack latency of the last five minutes. Sidecar: ${sidecar}. Upstream: ${upstream}. Withheld: ${withheld}.`;
    $("chart").setAttribute("aria-label", label);
  }

  /** Shows the values under the pointer, if any. */
  #point(clientX) {
    const { left, width, bottom, x } = this.#frame();
    const at = this.#now - (1 - (clientX - left - LEFT) / (width - LEFT - RIGHT)) * SPAN_MS;
    const key = [0, -1, 1].map((side) => Math.floor(at / BIN_MS) + side).find((key) => this.#bins.has(key));
    const bin = this.#bins.get(key);
    $("pointer").setAttribute("d", bin ? `M${x((key + 0.5) * BIN_MS).toFixed(1)} ${TOP - 6}V${bottom}` : "");
    if (!bin) return set($("pointed"), "");
    const texts = SIDES.filter((side) => bin[side].length).map((side) => {
      const [fastest, middling, slowest] = [bin[side][0], median(bin[side]), bin[side].at(-1)].map(latency);
      const values = bin[side].length === 1 ? middling : `${fastest} to ${slowest}, median ${middling}`;
      return `${side} ${plural(bin[side].length, "ack")}, ${values}`;
    });
    if (bin.withheld) texts.push(`${count(bin.withheld)} withheld`);
    set($("pointed"), `${clock(this.#startedAt + key * BIN_MS)}: ${texts.join("; ")}`);
  }
}
