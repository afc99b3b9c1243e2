"""Autobahn|Testsuite finds the same behind the sidecar as without it: case by case, closes and all."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Mapping

from conftest import HERE, Cases, Report, autobahn, report, start
from support.process import Process
from support.sidecar import Sidecar

STREAM = "/_stcore/stream"
OTHER = "/other"
# Some cases are races by their nature, such as a close frame against the end of the connection.
ATTEMPTS = 4


def run_all(processes: Mapping[str, Process], seconds: float) -> None:
    """Waits for all; what is left of them is ended."""
    try:
        for process in processes.values():
            code = process.wait(seconds)
            assert code == 0, f"exit code {code}; {process.transcript()}"
    finally:
        for process in processes.values():
            process.stop()


def fuzz_servers(urls: Mapping[str, str], cases: Cases, outdir: Path) -> dict[str, Report]:
    """Autobahn as the client of every URL at a time."""
    processes = {}
    for agent, url in urls.items():
        spec = {
            "outdir": str(outdir / agent),
            "servers": [{"agent": agent, "url": url, "protocols": ["streamlit"]}],
            "cases": list(cases.patterns),
            "exclude-cases": list(cases.excluded),
            "exclude-agent-cases": {},
        }
        path = outdir / f"{agent}.json"
        path.write_text(json.dumps(spec))
        wstest = [str(autobahn().parent / "wstest"), "-m", "fuzzingclient", "-s", str(path)]
        processes[agent] = Process(f"wstest for {agent}", wstest, os.environ, cwd=outdir)
    run_all(processes, cases.seconds)
    return {agent: report(outdir / agent, agent) for agent in urls}


def fuzz_clients(outdir: Path, cases: Cases, upstream: str, sidecar: Sidecar) -> dict[str, Report]:
    """Autobahn as the server of three clients at a time."""
    ways = {"direct": (upstream, ""), "tapped": (sidecar.address, STREAM), "untapped": (sidecar.address, "")}
    client = [sys.executable, str(HERE / "echo_client.py")]
    processes = {
        agent: Process(f"client {agent}", [*client, address, suffix, agent], os.environ)
        for agent, (address, suffix) in ways.items()
    }
    run_all(processes, cases.seconds)
    return {agent: report(outdir, agent) for agent in ways}


def differing(reports: Mapping[str, Report]) -> dict[str, dict[str, str]]:
    """The cases that are not the same everywhere, with what each way said."""
    direct = reports["direct"]
    return {
        case: {agent: str(found[case]) for agent, found in reports.items()}
        for case in direct
        if any(found[case] != direct[case] for found in reports.values())
    }


def check_counts(reports: Mapping[str, Report], cases: Cases) -> None:
    """Every way has run every case; prints what they came to."""
    for agent, found in reports.items():
        assert len(found) == cases.count, f"{agent} has run {len(found)} cases"
        print(agent, dict(Counter((outcome.verdict, outcome.close) for outcome in found.values())))
    assert sum(outcome.verdict == "OK" for outcome in reports["direct"].values()) > cases.count / 2


def check_tapped(sidecar: Sidecar) -> None:
    """The tap has followed one way and only that, and has been lost there; nothing is left open."""
    metrics = sidecar.wait_for_metrics(lambda metrics: metrics.value("connections") == 0)
    assert metrics.value("messages_total") > 100
    assert metrics.value("tap_disabled_total") > 10


def test_a_server_behind_the_sidecar_behaves_as_without_it(echo_server: str, cases: Cases, tmp_path: Path) -> None:
    sidecar = Sidecar(echo_server)
    try:
        ways = {"direct": echo_server, "tapped": sidecar.address, "untapped": sidecar.address}
        urls = {way: f"ws://{address}{OTHER if way == 'untapped' else STREAM}" for way, address in ways.items()}
        (tmp_path / "1").mkdir()
        reports = fuzz_servers(urls, cases, tmp_path / "1")
        check_counts(reports, cases)
        check_tapped(sidecar)
        different = differing(reports)
        for attempt in range(2, ATTEMPTS + 1):
            if not different:
                break
            print(f"once more, for a race: {different}")
            (tmp_path / str(attempt)).mkdir()
            again = Cases(tuple(different), (), len(different), cases.seconds)
            different = differing(fuzz_servers(urls, again, tmp_path / str(attempt)))
        assert not different
    finally:
        sidecar.stop()


def test_a_client_before_the_sidecar_behaves_as_without_it(cases: Cases, tmp_path: Path) -> None:
    different = attempted(cases, tmp_path / "1", whole=True)
    for attempt in range(2, ATTEMPTS + 1):
        if not different:
            break
        print(f"once more, for a race: {different}")
        again = Cases(tuple(different), (), len(different), cases.seconds)
        different = attempted(again, tmp_path / str(attempt), whole=False)
    assert not different


def attempted(cases: Cases, outdir: Path, whole: bool) -> dict[str, dict[str, str]]:
    """Runs these cases against a fuzzing server of their own and tells which differ."""
    outdir.mkdir()
    patterns = [*cases.patterns, "--not", *cases.excluded]
    process, upstream = start("fuzzing server", autobahn(), HERE / "fuzzing_server.py", outdir, *patterns)
    try:
        sidecar = Sidecar(upstream)
        try:
            reports = fuzz_clients(outdir, cases, upstream, sidecar)
            if whole:
                check_counts(reports, cases)
                check_tapped(sidecar)
        finally:
            sidecar.stop()
    finally:
        process.stop()
    return differing(reports)
