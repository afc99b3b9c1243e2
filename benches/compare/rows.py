"""The rows of the table. Most measure one proxy at a time, some measure all at the same time."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

from proxies import load, running

# A server of a version without native acks, so the sidecar acks.
STREAM = "/_stcore/stream?version=1.53.1"
# The same bytes on a path where the sidecar inspects frames only.
UNTAPPED = "/other?version=1.53.1"

KIB, MIB = 1 << 10, 1 << 20
SIZES = {"1 KiB": KIB, "64 KiB": 64 * KIB, "4 MiB": 4 * MIB, "64 MiB": 64 * MIB}

TUNNELS = ["haproxy", "haproxy-tuned", "nginx", "nginx-tuned", "envoy"]
PROXIES = ["sidecar", *TUNNELS]


@dataclasses.dataclass
class Scale:
    """The size of the samples."""

    rounds: int
    idle_rounds: int
    idle_sessions: int
    turns: int
    paced_turns: int
    shakes: int
    bulk: int
    tap_repeats: int
    hold_sessions: int
    hold_seconds: float
    hold_every: float


QUICK = Scale(rounds=2, idle_rounds=1, idle_sessions=2000, turns=300, paced_turns=7, shakes=1000, bulk=192 * MIB,
              tap_repeats=2, hold_sessions=500, hold_seconds=6, hold_every=2)
FULL = Scale(rounds=9, idle_rounds=3, idle_sessions=9000, turns=1000, paced_turns=50, shakes=4000, bulk=1024 * MIB,
             tap_repeats=3, hold_sessions=9000, hold_seconds=600, hold_every=30)


@dataclasses.dataclass
class Row:
    """A row: its kinds of proxy, and the function that measures one of them."""

    name: str
    unit: str
    kinds: list
    measure: object
    group: str


def rows(scale, kinds):
    """All rows that measure one proxy after the other. `measure` takes a proxy and returns named numbers."""
    direct = ["direct", *kinds]
    found = []
    for name, size in SIZES.items():
        found.append(Row(f"CPU per GB, {name} messages", "s", direct, bulk(STREAM, size, scale), "bulk"))
    found.append(Row("CPU per round trip, 64 sessions at full speed", "µs", direct, turns(STREAM, scale), "turns"))
    found.append(Row("CPU per handshake", "µs", kinds, shakes(scale), "shake"))
    return found


def bulk(path, size, scale):
    total = max(scale.bulk, size)
    return lambda proxy: proxy.load("bulk", "--size", size, "--total", total, path=path)


def turns(path, scale):
    return lambda proxy: proxy.load("turns", "--turns", scale.turns, path=f"{path}&answer=250")


def latency(proxies, scale):
    """Measures all proxies at the same time."""
    targets = [word for proxy in proxies for word in ("--at", proxy.address)]
    more = ["--path", f"{STREAM}&answer=250", "--turns", scale.paced_turns, "--rate", 1500]
    found = load("all", "latency", *targets, *more)
    return {proxy.kind: found[proxy.address] for proxy in proxies}


def shakes(scale):
    return lambda proxy: proxy.load("shake", "--times", scale.shakes, path="/_stcore/stream")


def ack(message, path, scale):
    """One session with one request at a time."""
    return lambda proxy: proxy.load("turns", "--sessions", 1, "--turns", 2 * scale.turns, "--say", message, path=path)


def first_byte(proxy):
    return proxy.load("first", "--size", 50 * MIB, path=STREAM)


def stall(proxy):
    return proxy.load("stall", "--size", 200_000_000, path=STREAM)


def slow(megabytes):
    return lambda proxy: proxy.load("bulk", "--size", megabytes * 1_000_000, "--total", megabytes * 1_000_000, "--rate", 100,
                                    path=STREAM)


def idle(kind, upstream, directory, scale):
    """Uses a new process, because a used one reuses memory that it has kept."""
    with running(kind, upstream, directory) as proxy:
        # Only the sidecar has a goal for memory that is released afterwards.
        rest = 25 if kind.startswith("sidecar") else 0
        return proxy.load("idle", "--sessions", scale.idle_sessions, "--rest", rest, path=f"{STREAM}&answer=250")


def hold(upstream, directory, scale):
    """Measures both at the same time, in new processes."""
    path = f"{STREAM}&acks=1"
    arguments = ["--sessions", scale.hold_sessions, "--seconds", scale.hold_seconds, "--every", scale.hold_every]
    with running("sidecar", upstream, directory) as sidecar, running("haproxy", upstream, directory) as haproxy:
        with ThreadPoolExecutor() as pool:
            held = [pool.submit(proxy.load, "hold", *arguments, path=path) for proxy in (sidecar, haproxy)]
            return {"sidecar": held[0].result(), "haproxy": held[1].result()}
