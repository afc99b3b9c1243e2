"""One chromium and one host for the run; a real Streamlit per version; a sidecar and a fresh page per test."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Sequence

import pytest
from playwright.sync_api import Browser, sync_playwright
from support.app_page import AppPage
from support.host_page import HostedPage, HostServer
from support.relay import Relay
from support.sidecar import REPOSITORY, Sidecar
from support.streamlit_server import StreamlitServer
from support.version import Version

ARTIFACTS = REPOSITORY / "target" / "test-artifacts"
OLD, NEW = "1.53.1", "1.67.0"
"""The last minor line but one without a native ack, and the newest."""

HOSTED = [Version(name) for name in os.environ.get("HEARTBEAT_SIDECAR_TEST_HOSTED", f"{OLD} {NEW}").split()]
"""The versions whose page is embedded in a host's; `tests/run` sets them, more with --all."""

HOSTED_APP = Path(__file__).resolve().parent / "hosted_app" / "home.py"

OpenPage = Callable[..., AppPage]
OpenHosted = Callable[..., AppPage]


def environment(version: str) -> Path:
    """The Python of `tests/run`'s environment for that Streamlit."""
    cache = os.environ.get("HEARTBEAT_SIDECAR_TEST_CACHE")
    assert cache, "HEARTBEAT_SIDECAR_TEST_CACHE is not set: start these tests with `tests/run --only browser`"
    python = Path(cache) / f"streamlit-{version}" / "bin" / "python"
    assert python.exists(), f"{python} is missing: `tests/run --only browser` makes it"
    return python


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    executable = shutil.which("chromium")
    assert executable, "chromium is missing: it comes with Debian's package of that name"
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu", "--disable-quic", *quiet]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=[OLD, NEW])
def server(request: pytest.FixtureRequest) -> Iterator[StreamlitServer]:
    running = StreamlitServer(environment(request.param))
    yield running
    running.stop()


@dataclass(frozen=True)
class Hosted:
    """A real server of the hosted app, that a page may be embedded from."""

    version: Version
    server: StreamlitServer
    address: str
    """What the sidecar takes for the server."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


_FAILED = pytest.StashKey[bool]()


def _keep_evidence_and_close(opened: Sequence[AppPage], request: pytest.FixtureRequest) -> None:
    for page in opened:
        if request.node.stash.get(_FAILED, True):
            ARTIFACTS.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^\w.-]+", "-", request.node.name).strip("-")
            page.save_evidence(ARTIFACTS / name)
        page.close()


@pytest.fixture
def open_page(chromium: Browser, server: StreamlitServer, request: pytest.FixtureRequest) -> Iterator[OpenPage]:
    """Opens the app through a sidecar that is started with the given arguments."""
    opened: list[AppPage] = []

    def open_with(*arguments: str) -> AppPage:
        sidecar = Sidecar(server.address, *arguments)
        opened.append(AppPage(chromium, sidecar))
        opened[-1].open()
        return opened[-1]

    yield open_with
    _keep_evidence_and_close(opened, request)


@pytest.fixture(scope="session")
def host() -> Iterator[HostServer]:
    running = HostServer()
    yield running
    running.stop()


@pytest.fixture(scope="module", params=HOSTED, ids=lambda version: version.name)
def hosted(request: pytest.FixtureRequest, host: HostServer) -> Iterator[Hosted]:
    version: Version = request.param
    # Before 1.55 the origins are hard-coded, so the relay adds the host's to them.
    options = {"client.allowedOrigins": host.origin} if version.acks_natively else {}
    server = StreamlitServer(environment(version.name), HOSTED_APP, options)
    relay = None if version.acks_natively else Relay(server.address, host.origin)
    yield Hosted(version, server, relay.address if relay else server.address)
    if relay:
        relay.stop()
    server.stop()


@pytest.fixture
def open_hosted(
    chromium: Browser, host: HostServer, hosted: Hosted, request: pytest.FixtureRequest
) -> Iterator[OpenHosted]:
    """Opens the hosted app through a sidecar with the given arguments, in its host's page unless it is to be `alone`.

    With `mortal` its websocket can be let go dead.
    """
    opened: list[AppPage] = []

    def open_with(*arguments: str, mortal: bool = False, alone: bool = False) -> AppPage:
        sidecar = Sidecar(hosted.address, *arguments)
        if alone:
            opened.append(AppPage(chromium, sidecar, mortal=mortal))
        else:
            opened.append(HostedPage(chromium, sidecar, host, mortal=mortal))
        opened[-1].open()
        return opened[-1]

    yield open_with
    _keep_evidence_and_close(opened, request)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured, for people; the tests themselves have judged it."""
    noted = [note for report in terminalreporter.getreports("passed") for note in report.user_properties]
    rows = [value for key, value in noted if key == "heartbeats"]
    if rows:
        terminalreporter.section("heartbeats, as the pages saw them")
        for row in rows:
            terminalreporter.line(row)
