"""Finds and starts Autobahn|Testsuite and the echo servers, and reads the reports."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import pytest
from support.process import Process
from support.sidecar import REPOSITORY

HERE = Path(__file__).resolve().parent
# Sections 9 (performance), 12 and 13 (compression) take most of the time.
SLOW = ["9.*", "12.*", "13.*"]
_START_SECONDS = 20.0


@dataclass(frozen=True)
class Cases:
    """The cases that match one of `patterns` and none of `excluded`."""

    patterns: tuple[str, ...]
    excluded: tuple[str, ...]
    count: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """Autobahn's result of one case, as far as a relay could change it."""

    verdict: str
    close: str
    code: int | None
    reason: str | None
    clean: bool


Report = dict[str, Outcome]


def report(outdir: Path, agent: str) -> Report:
    """Reads Autobahn's report about an agent."""

    def outcome(case: dict[str, str]) -> Outcome:
        detail = json.loads((outdir / case["reportfile"]).read_text(encoding="latin-1"))
        # NON-STRICT counts as OK: an echo is lost if a violation follows it, a race that exists without a relay too.
        verdict = "OK" if detail["behavior"] == "NON-STRICT" else detail["behavior"]
        close = (detail["behaviorClose"], detail["remoteCloseCode"], detail["remoteCloseReason"])
        return Outcome(verdict, *close, detail["wasClean"])

    index = json.loads((outdir / "index.json").read_text())
    return {number: outcome(case) for number, case in index[agent].items()}


def autobahn() -> Path:
    """The Python of `tests/run`'s environment with Autobahn|Testsuite."""
    cache = os.environ.get("HEARTBEAT_SIDECAR_TEST_CACHE")
    assert cache, "HEARTBEAT_SIDECAR_TEST_CACHE is not set: start these tests with `tests/run --only autobahn`"
    python = Path(cache) / "autobahn" / "bin" / "python"
    assert python.is_file(), f"{python} is missing: start these tests with `tests/run --only autobahn`"
    return python


def start(name: str, *command: str | Path) -> tuple[Process, str]:
    """Starts a server that prints its address; returns both."""
    process = Process(name, [str(word) for word in command], os.environ)
    try:
        return process, process.wait_for_line(r"listening on (127\.0\.0\.1:\d+)", _START_SECONDS)[1]
    except BaseException:
        process.stop()
        raise


@pytest.fixture(scope="session")
def cases() -> Cases:
    if os.environ.get("HEARTBEAT_SIDECAR_TEST_ALL_CASES"):
        return Cases(("*",), (), 517, 3600.0)
    return Cases(("*",), tuple(SLOW), 247, 150.0)


@pytest.fixture(params=["websockets", "tungstenite"])
def echo_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of an echo server."""
    if request.param == "websockets":
        process, address = start("echo server", sys.executable, HERE / "echo_server.py")
    else:
        process, address = start("echo server", REPOSITORY / "target/debug/examples/autobahn_echo")
    yield address
    process.stop()
