"""Measures all proxies in turn and prints the tables. Use `--quick` during development."""

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile
import time

import report
import rows
from proxies import REPOSITORY, app, running

GROUPS = ["bulk", "turns", "latency", "shake", "ack", "slow", "tap", "idle", "hold"]


class Samples:
    """The measurements: for each row and kind of proxy the values of each round, by name."""

    def __init__(self):
        self.values = {}

    def add(self, row, kind, sample):
        for name, value in sample.items():
            self.values.setdefault(row, {}).setdefault(kind, {}).setdefault(name, []).append(value)

    def merge(self, values):
        """Adds the samples of another run."""
        for row, kinds in values.items():
            for kind, names in kinds.items():
                for name, more in names.items():
                    self.values.setdefault(row, {}).setdefault(kind, {}).setdefault(name, []).extend(more)

    def get(self, row, kind, name):
        return self.values.get(row, {}).get(kind, {}).get(name, [])


def progress(text):
    print(f"[{time.monotonic() - STARTED:5.0f}s] {text}", file=sys.stderr, flush=True)


def measure_round(number, scale, groups, proxies, samples):
    for row in rows.rows(scale, [kind for kind in proxies if kind not in ("direct", "sidecar-connection")]):
        if row.group not in groups:
            continue
        # Rotates the order, because the first one finds cold caches and a low CPU clock.
        turn = number % len(row.kinds)
        for kind in row.kinds[turn:] + row.kinds[:turn]:
            samples.add(row.name, kind, row.measure(proxies[kind]))
    if "latency" in groups:
        # Includes the sidecar's second variant, because variants of one proxy keep shared code in the caches.
        for kind, sample in rows.latency(proxies.values(), scale).items():
            samples.add(report.LATENCY, kind, sample)
    if "ack" in groups:
        measure_acks(scale, proxies, samples)
    if "slow" in groups:
        for kind in ["direct", "sidecar", "haproxy"]:
            if kind in proxies:
                samples.add("first byte", kind, rows.first_byte(proxies[kind]))
        for kind in ["sidecar", "haproxy", "nginx", "envoy"]:
            if kind in proxies:
                samples.add("stalled reader", kind, rows.stall(proxies[kind]))
        for kind in ["sidecar", "haproxy"]:
            if kind in proxies:
                for megabytes in [50, 200]:
                    samples.add(f"slow link, {megabytes} MB", kind, rows.slow(megabytes)(proxies[kind]))
    if "tap" in groups:
        measure_tap(number, scale, proxies["sidecar"], samples)


def measure_acks(scale, proxies, samples):
    turn, beat = f"{rows.STREAM}&answer=7", f"{rows.STREAM}&acks=1"
    samples.add("ack", "direct", rows.ack("heartbeat", beat, scale)(proxies["direct"]))
    samples.add("ack", "relayed", rows.ack("rerun", turn, scale)(proxies["sidecar"]))
    samples.add("ack", "pong", rows.ack("heartbeat", beat, scale)(proxies["sidecar"]))
    samples.add("ack", "connection", rows.ack("heartbeat", beat, scale)(proxies["sidecar-connection"]))


def measure_tap(number, scale, sidecar, samples):
    paths = {"tapped": rows.STREAM, "untapped": rows.UNTAPPED}
    for repeat in range(scale.tap_repeats):
        order = list(paths.items())
        for kind, path in order if (number + repeat) % 2 else order[::-1]:
            for name, size in rows.SIZES.items():
                samples.add(f"tap, {name}", kind, rows.bulk(path, size, scale)(sidecar))
            samples.add("tap, round trips", kind, rows.turns(path, scale)(sidecar))


def arguments():
    parser = argparse.ArgumentParser(prog="benches/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller samples, in two minutes")
    parser.add_argument("--rounds", type=int, help="rounds of measurements per proxy")
    parser.add_argument("--only", help=f"groups to measure, from {','.join(GROUPS)}; '' for none")
    parser.add_argument("--kinds", help="proxies to measure, such as sidecar,haproxy,haproxy-tuned; direct is always included")
    parser.add_argument("--hold", type=float, metavar="SECONDS", help="time to hold idle sessions")
    parser.add_argument("--json", type=pathlib.Path, default=REPOSITORY / "target/benches/last.json",
                        help="file for all samples")
    parser.add_argument("--with", dest="others", type=pathlib.Path, nargs="*", default=[], metavar="JSON",
                        help="files with samples of other runs of the same builds, to include in the tables")
    return parser.parse_args()


def main():
    options = arguments()
    scale = rows.QUICK if options.quick else rows.FULL
    scale.rounds = options.rounds or scale.rounds
    scale.hold_seconds = options.hold or scale.hold_seconds
    groups = GROUPS if options.only is None else [group for group in options.only.split(",") if group]
    kinds = options.kinds.split(",") if options.kinds else rows.PROXIES
    samples = Samples()
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="heartbeat-sidecar-bench.")))
        upstream = stack.enter_context(app())
        if "idle" in groups:
            for number in range(scale.idle_rounds):
                for kind in [kind for kind in kinds if not kind.endswith("-tuned")]:
                    progress(f"idle sessions {number + 1}/{scale.idle_rounds}: {kind}")
                    samples.add("idle", kind, rows.idle(kind, upstream, directory, scale))
        if set(groups) - {"idle", "hold"}:
            proxies = {"direct": upstream}
            for kind in [*kinds, "sidecar-connection"]:
                proxies[kind] = stack.enter_context(running(kind, upstream, directory))
            for number in range(scale.rounds):
                progress(f"round {number + 1}/{scale.rounds}")
                measure_round(number, scale, groups, proxies, samples)
        if "hold" in groups:
            progress(f"{scale.hold_sessions} idle sessions with heartbeats for {scale.hold_seconds:.0f} s")
            for kind, sample in rows.hold(upstream, directory, scale).items():
                samples.add("hold", kind, sample)
    progress("done")
    if groups:
        options.json.write_text(json.dumps(samples.values, indent=1))
    for other in options.others:
        samples.merge(json.loads(other.read_text()))
    print(report.report(samples, kinds, scale))


STARTED = time.monotonic()

if __name__ == "__main__":
    main()
