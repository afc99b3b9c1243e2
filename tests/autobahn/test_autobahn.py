"""Autobahn|Testsuite has the same result with and without the sidecar, for every case and its close."""

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
# Some cases are races, such as a close frame against the end of the connection.
ATTEMPTS = 4


def run_all(processes: Mapping[str, Process], seconds: float) -> None:
    """Waits for all processes; remaining ones are stopped."""
    try:
        for process in processes.values():
            code = process.wait(seconds)
            assert code == 0, f"exit code {code}; {process.transcript()}"
    finally:
        for process in processes.values():
            process.stop()


def fuzz_servers(urls: Mapping[str, str], cases: Cases, outdir: Path) -> dict[str, Report]:
    """Runs one Autobahn client per URL, concurrently."""
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
    """Runs three clients of one Autobahn server, concurrently."""
    paths = {"direct": (upstream, ""), "tapped": (sidecar.address, STREAM), "untapped": (sidecar.address, "")}
    client = [sys.executable, str(HERE / "echo_client.py")]
    processes = {
        agent: Process(f"client {agent}", [*client, address, suffix, agent], os.environ)
        for agent, (address, suffix) in paths.items()
    }
    run_all(processes, cases.seconds)
    return {agent: report(outdir, agent) for agent in paths}


def differing(reports: Mapping[str, Report]) -> dict[str, dict[str, str]]:
    """The cases whose results differ, with the result of each path."""
    direct = reports["direct"]
    return {
        case: {agent: str(found[case]) for agent, found in reports.items()}
        for case in direct
        if any(found[case] != direct[case] for found in reports.values())
    }


def check_counts(reports: Mapping[str, Report], cases: Cases) -> None:
    """Checks that every path has run every case; prints a summary."""
    for agent, found in reports.items():
        assert len(found) == cases.count, f"{agent} ran {len(found)} cases"
        print(agent, dict(Counter((outcome.verdict, outcome.close) for outcome in found.values())))
    assert sum(outcome.verdict == "OK" for outcome in reports["direct"].values()) > cases.count / 2


def check_tapped(sidecar: Sidecar) -> None:
    """The tap has parsed messages and met protocol errors, and no connection is open."""
    metrics = sidecar.wait_for_metrics(lambda metrics: metrics.value("sessions") == 0)
    assert metrics.value("messages_total") > 100
    assert metrics.value("sessions_unparsable_total") > 10


def test_a_server_behind_the_sidecar_behaves_as_without_it(echo_server: str, cases: Cases, tmp_path: Path) -> None:
    sidecar = Sidecar(echo_server)
    try:
        paths = {"direct": echo_server, "tapped": sidecar.address, "untapped": sidecar.address}
        urls = {name: f"ws://{address}{OTHER if name == 'untapped' else STREAM}" for name, address in paths.items()}
        (tmp_path / "1").mkdir()
        reports = fuzz_servers(urls, cases, tmp_path / "1")
        check_counts(reports, cases)
        check_tapped(sidecar)
        different = differing(reports)
        for attempt in range(2, ATTEMPTS + 1):
            if not different:
                break
            print(f"again, in case of a race: {different}")
            (tmp_path / str(attempt)).mkdir()
            again = Cases(tuple(different), (), len(different), cases.seconds)
            different = differing(fuzz_servers(urls, again, tmp_path / str(attempt)))
        assert not different
    finally:
        sidecar.stop()


def test_a_client_in_front_of_the_sidecar_behaves_as_without_it(cases: Cases, tmp_path: Path) -> None:
    different = run_with_new_server(cases, tmp_path / "1", whole=True)
    for attempt in range(2, ATTEMPTS + 1):
        if not different:
            break
        print(f"again, in case of a race: {different}")
        again = Cases(tuple(different), (), len(different), cases.seconds)
        different = run_with_new_server(again, tmp_path / str(attempt), whole=False)
    assert not different


def run_with_new_server(cases: Cases, outdir: Path, whole: bool) -> dict[str, dict[str, str]]:
    """Runs these cases against a new fuzzing server; returns those that differ."""
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
