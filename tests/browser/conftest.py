"""One chromium and one host page per run; a real Streamlit per version; a sidecar and a new page per test."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterator, Sequence

import pytest
from playwright.sync_api import Browser
from support import chromium as chromiums
from support.app import App, environment, versions
from support.app_page import AppPage
from support.certificate import Certificate
from support.host_page import HostedPage, HostServer
from support.sidecar import Sidecar
from support.streamlit_server import StreamlitServer

OLD, NEW = "1.53.1", "1.67.0"
"""An old version without native acks, and the newest version."""

HOSTED = versions("HEARTBEAT_SIDECAR_TEST_HOSTED", f"{OLD} {NEW}")
"""The versions whose page is embedded in a host page. `tests/run` sets them, more with --all."""

HOSTED_APP = Path(__file__).resolve().parent / "hosted_app" / "home.py"

OpenPage = Callable[..., AppPage]
OpenHosted = Callable[..., AppPage]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="session")
def chromium(certificate: Certificate) -> Iterator[Browser]:
    with chromiums.launched(chromiums.executable(), certificate.trust_argument) as browser:
        yield browser


@pytest.fixture(scope="module", params=[OLD, NEW])
def server(request: pytest.FixtureRequest) -> Iterator[StreamlitServer]:
    running = StreamlitServer(environment(request.param))
    yield running
    running.stop()


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
            page.save_evidence(request.node.name)
        page.close()


@pytest.fixture
def open_page(
    chromium: Browser, certificate: Certificate, server: StreamlitServer, request: pytest.FixtureRequest
) -> Iterator[OpenPage]:
    """Opens the app through a sidecar with the given arguments; over TLS if `encrypted`."""
    opened: list[AppPage] = []

    def open_with(*arguments: str, encrypted: bool = False) -> AppPage:
        if encrypted:
            sidecar = Sidecar.encrypted(certificate, server.address, *arguments)
        else:
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
def hosted(request: pytest.FixtureRequest, host: HostServer) -> Iterator[App]:
    running = App(request.param, host, HOSTED_APP)
    yield running
    running.stop()


@pytest.fixture
def open_hosted(
    chromium: Browser, host: HostServer, hosted: App, request: pytest.FixtureRequest
) -> Iterator[OpenHosted]:
    """Opens the hosted app through a sidecar with the given arguments, in the host page if `embedded`.

    With `relayed` its websocket can be blackholed.
    """
    opened: list[AppPage] = []
    # On a busy machine the browser may answer a ping later than 1 s, and such a server would drop it.
    shield = ("--session-shield-pings", "true") if hosted.version.has_short_ping_timeout else ()

    def open_with(*arguments: str, relayed: bool = False, embedded: bool = True) -> AppPage:
        sidecar = Sidecar(hosted.address, *shield, *arguments)
        if embedded:
            opened.append(HostedPage(chromium, sidecar, host, relayed=relayed))
        else:
            opened.append(AppPage(chromium, sidecar, relayed=relayed))
        opened[-1].open()
        return opened[-1]

    yield open_with
    _keep_evidence_and_close(opened, request)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the measurements. The tests have already checked them."""
    noted = [note for report in terminalreporter.getreports("passed") for note in report.user_properties]
    for name, title in (("heartbeats", "heartbeats, as measured in the pages"), ("status page", "the status page")):
        rows = [value for key, value in noted if key == name]
        if rows:
            terminalreporter.section(title)
        for row in rows:
            terminalreporter.line(row)
