"""The tables: medians with their spread, ratios, and whether each goal is met."""

import datetime
import os
import statistics

import rows
from proxies import CORES, versions

TITLES = {"direct": "direct", "sidecar": "**sidecar**", "sidecar-resume": "sidecar, resumable", "haproxy": "HAProxy",
          "haproxy-tuned": "HAProxy tuned", "haproxy-logged": "HAProxy logged", "nginx": "nginx",
          "nginx-tuned": "nginx tuned", "envoy": "Envoy"}


def median(values):
    return statistics.median(values) if values else None


def number(value):
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def spread(values):
    if not values:
        return "–"
    if len(values) == 1:
        return number(values[0])
    return f"{number(median(values))} ({number(min(values))}–{number(max(values))})"


def ratio(ours, theirs):
    """The median of the ratios per round. A disturbance of a whole round affects both values."""
    pairs = [our / their for our, their in zip(ours, theirs) if their]
    return median(pairs)


def table(lines):
    head, *rest = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rest])


def report(samples, kinds, scale):
    return "\n\n".join([heading(scale), comparison(samples, kinds), latencies(samples), goals(samples, scale)]) + "\n"


def heading(scale):
    found = versions()
    today = datetime.date.today().isoformat()
    names = ", ".join(f"{TITLES.get(name, name).strip('*')} {version}" for name, version in found.items())
    return (f"{today}, {os.cpu_count()} cores ({processor()}), proxy on core {CORES[-1]}, load on core {CORES[0]}, "
            f"{scale.rounds} rounds. {names}.")


def processor():
    with open("/proc/cpuinfo") as lines:
        return next((line.partition(": ")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def comparison(samples, kinds):
    lines = [["median (min–max)", *[TITLES.get(kind, kind) for kind in kinds], "/ HAProxy", "/ tuned"]]
    lines.append(line(samples, kinds, "idle bytes per session", "idle", "bytes_per_session"))
    lines.append(line(samples, kinds, "CPU µs per round trip", ROUND_TRIP, "cpu_us"))
    for name in rows.SIZES:
        lines.append(line(samples, kinds, f"CPU s per GB, {name}", f"CPU per GB, {name} messages", "seconds_per_gb"))
    lines.append(line(samples, kinds, "CPU µs per handshake", "CPU per handshake", "cpu_us"))
    lines.append(line(samples, kinds, "added latency p50, µs", LATENCY, "p50_us", above="direct"))
    lines.append(line(samples, kinds, "added latency p99, µs", LATENCY, "p99_us", above="direct"))
    return table([line for line in lines if any(cell != "–" for cell in line[1:])])


ROUND_TRIP = "CPU per round trip, 64 sessions at full speed"
LATENCY = "latency, 64 sessions each, all at the same time, 1,500 round trips/s in all"


def values(samples, row, kind, name, above=None):
    found = samples.get(row, kind, name)
    if above is None:
        return found
    return [value - floor for value, floor in zip(found, samples.get(row, above, name))]


def line(samples, kinds, title, row, name, above=None):
    each = {kind: values(samples, row, kind, name, above) for kind in kinds}
    ratios = [ratio(each.get("sidecar", []), each.get(other, [])) for other in ["haproxy", "haproxy-tuned"]]
    return [title, *[spread(each[kind]) for kind in kinds], *[number(value) for value in ratios]]


def latencies(samples):
    lines = [["sidecar only", "p50 µs", "p99 µs"]]
    titles = {"direct": "the server's own ack, direct", "relayed": "a message relayed and answered",
              "connection": "ack, proof = connection", "pong": "ack, proof = pong"}
    for kind, title in titles.items():
        lines.append([title, *[spread(samples.get("ack", kind, name)) for name in ["p50_us", "p99_us"]]])
    return table(lines)


class Goals:
    """The performance goals, as far as they were measured."""

    def __init__(self):
        self.lines = [["goal", "measured", "bound", "holds"]]

    def add(self, title, value, bound, unit=""):
        if value is not None:
            self.lines.append([title, number(value) + unit, "≤ " + number(bound) + unit, "yes" if value <= bound else "**no**"])


def goals(samples, scale):
    found = Goals()
    get = samples.get
    each = lambda kind: get("idle", kind, "bytes_per_session")
    found.add("idle memory per session / HAProxy", ratio(each("sidecar"), each("haproxy")), 0.4)
    found.add("idle memory per session", median(each("sidecar")), 2048, " B")
    idle_back(samples, found)
    held(samples, found, scale)
    found.add("CPU per round trip / HAProxy", against(samples, ROUND_TRIP, "cpu_us", "haproxy"), 0.95)
    for name in ["p50", "p99"]:
        value = against(samples, LATENCY, f"{name}_us", "haproxy", above="direct")
        found.add(f"added latency {name} / HAProxy", value, 1.0)
    for other, bound in [("haproxy", 0.7), ("haproxy-tuned", 1.0)]:
        for name in rows.SIZES:
            value = against(samples, f"CPU per GB, {name} messages", "seconds_per_gb", other)
            found.add(f"CPU per GB, {name} / {TITLES[other]}", value, bound)
    found.add("CPU per handshake / HAProxy", against(samples, "CPU per handshake", "cpu_us", "haproxy"), 1.0)
    acks(samples, found)
    slow(samples, found)
    taps(samples, found)
    resumable(samples, found)
    return table(found.lines)


def against(samples, row, name, other, above=None, ours="sidecar"):
    return ratio(*(values(samples, row, kind, name, above) for kind in [ours, other]))


def idle_back(samples, found):
    fields = [samples.get("idle", "sidecar", name) for name in ["before_bytes", "open_bytes", "closed_bytes"]]
    kept = [(closed - before) / (opened - before) for before, opened, closed in zip(*fields)]
    found.add("memory kept after idle sessions close, as a share of it", median(kept), 0.1)


def held(samples, found, scale):
    title = f"{scale.hold_sessions:,} sessions, a heartbeat every {scale.hold_every:g} s, {scale.hold_seconds:g} s"
    found.add(f"{title}: CPU / HAProxy", against(samples, "hold", "cpu_seconds", "haproxy"), 1.0)
    fields = [samples.get("hold", "sidecar", name) for name in ["before_bytes", "held_bytes", "closed_bytes"]]
    for before, during, closed in zip(*fields):
        found.add("memory kept after they close, as a share of it", (closed - before) / (during - before), 0.1)
        found.add("memory while they are held", (during - before) / scale.hold_sessions, 2048, " B a session")


def acks(samples, found):
    p50, p99 = ({kind: median(samples.get("ack", kind, name)) for kind in ["direct", "relayed", "connection", "pong"]}
                for name in ["p50_us", "p99_us"])
    if p50["pong"] is None:
        return
    found.add("ack, proof = connection: p99 above a relayed round trip", p99["connection"] - p99["relayed"], 200, " µs")
    found.add("ack, proof = pong: p50 above proof = connection, in relayed round trips",
              (p50["pong"] - p50["connection"]) / p50["relayed"], 1.0)


def slow(samples, found):
    first = {kind: median(samples.get("first byte", kind, "p50_us")) for kind in ["direct", "sidecar"]}
    if first["direct"] is None:
        return
    found.add("first byte of a slow 50 MiB message above direct", first["sidecar"] - first["direct"], 1000, " µs")
    growth = max(samples.get("stalled reader", "sidecar", "growth_bytes"))
    found.add("200 MB to a stalled reader: memory growth", growth / 1024, 2048, " KiB")
    ratios = ratio(*(samples.get(f"slow link, {size} MB", "sidecar", "cpu_seconds") for size in [200, 50]))
    found.add("slow link: CPU of 200 MB / CPU of 50 MB", ratios, 5)


def taps(samples, found):
    for name, field in [*[(name, "seconds_per_gb") for name in rows.SIZES], ("round trips", "cpu_us")]:
        tapped, untapped = (samples.get(f"tap, {name}", kind, field) for kind in ["tapped", "untapped"])
        found.add(f"the tap's cost, {name}: tapped / untapped", ratio(tapped, untapped), 1.03)


def resumable(samples, found):
    """Sessions that their pages can resume, and sessions without the watchdog."""
    found.add("idle memory per resumable session", median(samples.get("idle", "sidecar-resume", "bytes_per_session")),
              2200, " B")
    compared = lambda row, name: against(samples, row, name, "sidecar", ours="sidecar-resume")
    found.add("CPU per round trip: resumable / plain", compared(ROUND_TRIP, "cpu_us"), 1.1)
    for name in rows.SIZES:
        value = compared(f"CPU per GB, {name} messages", "seconds_per_gb")
        found.add(f"CPU per GB, {name}: resumable / plain", value, 1.25)
