"""One simulated network, one browser of each engine at its far end and a real Streamlit per version."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Callable, Iterator

import pytest
from app_page import AppPage
from support.app import environment, versions
from support.bidi import Firefox
from support.cabled import cable, network  # noqa: F401: fixtures
from support.classic import ClassicBrowser, WebKit
from support.network import Network
from support.sidecar import REPOSITORY, Sidecar
from support.streamlit_server import StreamlitServer

VERSIONS = versions("HEARTBEAT_SIDECAR_TEST_ENGINES", "1.29.0 1.53.1 1.67.0")
"""The Streamlit versions under test; `tests/run` sets them."""

SCRIPT = Path(__file__).resolve().parent.parent / "network" / "journal_app.py"

_ARTIFACTS = REPOSITORY / "target" / "test-artifacts"

Browser = Firefox | ClassicBrowser
OpenApp = Callable[..., AppPage]


@pytest.fixture(scope="session", params=[Firefox, WebKit], ids=lambda engine: engine.name)
def engine(request: pytest.FixtureRequest) -> type[Browser]:
    return request.param


@pytest.fixture(scope="session")
def browser(engine: type[Browser], cable: Network) -> Iterator[Browser]:
    running = engine(cable)
    yield running
    running.stop()


@pytest.fixture(scope="session", params=VERSIONS, ids=lambda version: version.name)
def server(request: pytest.FixtureRequest) -> Iterator[StreamlitServer]:
    running = StreamlitServer(environment(request.param.name), SCRIPT)
    yield running
    running.stop()


@pytest.fixture
def open_app(
    browser: Browser, network: Network, server: StreamlitServer, request: pytest.FixtureRequest
) -> Iterator[OpenApp]:
    """Opens the app in a new tab through a sidecar with the given arguments. Saves evidence if the test fails."""
    opened: list[AppPage] = []

    def open_with(*arguments: str, browser: Browser = browser) -> AppPage:
        page = AppPage(browser.new_tab(), Sidecar(server.address, *arguments), server, network)
        opened.append(page)
        page.open()
        return page

    yield open_with
    for page in opened:
        if request.node.stash.get(_FAILED, True):
            _save_evidence(page, request.node.name)
        with contextlib.suppress(Exception):  # the test may have closed it
            page.tab.close()
        page.sidecar.stop()


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


def _save_evidence(page: AppPage, name: str) -> None:
    _ARTIFACTS.mkdir(parents=True, exist_ok=True)
    stem = _ARTIFACTS / ("engines-" + re.sub(r"[^\w.-]+", "-", name).strip("-"))
    Path(f"{stem}.txt").write_text("\n".join(page.sidecar.log) + "\n")
    with contextlib.suppress(Exception):  # the browser may be gone
        Path(f"{stem}.png").write_bytes(page.tab.screenshot())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the measurements."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    rows = [value for report in reports for key, value in report.user_properties if key == "measured"]
    if rows:
        terminalreporter.section("measured")
    for row in rows:
        terminalreporter.line(row)
