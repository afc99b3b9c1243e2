"""One cable, one chromium at its far end and one host for the run; a real Streamlit per version."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, ContextManager, Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright
from support.app_page import AppPage
from support.host_page import HostedPage, HostServer
from support.network import Network
from support.sidecar import REPOSITORY, Sidecar
from support.streamlit_server import StreamlitServer
from support.version import Version

ARTIFACTS = REPOSITORY / "target" / "test-artifacts"

OpenPage = Callable[..., ContextManager[AppPage]]


@dataclass(frozen=True)
class App:
    """A running server of the test app."""

    version: Version
    server: StreamlitServer


def environment(version: str) -> Path:
    """The Python of `tests/run`'s environment for that Streamlit."""
    cache = os.environ.get("HEARTBEAT_SIDECAR_TEST_CACHE")
    assert cache, "HEARTBEAT_SIDECAR_TEST_CACHE is not set: start these tests with `tests/run --only network`"
    python = Path(cache) / f"streamlit-{version}" / "bin" / "python"
    assert python.exists(), f"{python} is missing: `tests/run --only network` makes it"
    return python


@pytest.fixture(scope="session")
def cable() -> Iterator[Network]:
    network = Network()
    yield network
    network.stop()


@pytest.fixture
def network(cable: Network) -> Iterator[Network]:
    yield cable
    cable.mend()


@pytest.fixture(scope="session")
def chromium(cable: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = shutil.which("chromium")
    assert executable, "chromium is missing: it comes with Debian's package of that name"
    launcher = tmp_path_factory.mktemp("chromium") / "launch"
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join([*cable.at_far_end, executable])} "$@"\n')
    launcher.chmod(0o755)
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", cable.resolver_rule, *quiet]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=launcher, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def host(cable: Network) -> Iterator[HostServer]:
    running = HostServer()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def app(request: pytest.FixtureRequest, host: HostServer) -> Iterator[App]:
    version: Version = request.param
    options = {"client.allowedOrigins": host.origin} if version.acks_natively else {}
    server = StreamlitServer(environment(version.name), options=options)
    yield App(version, server)
    server.stop()


@pytest.fixture
def open_page(
    chromium: Browser, host: HostServer, app: App, network: Network, request: pytest.FixtureRequest
) -> OpenPage:
    """Opens the app through a sidecar that is started with the given arguments; in a host's page where it obeys one."""

    @contextlib.contextmanager
    def open_with(*arguments: str) -> Iterator[AppPage]:
        sidecar = Sidecar(app.server.address, *arguments)
        page = HostedPage(chromium, sidecar, host) if app.version.acks_natively else AppPage(chromium, sidecar)
        try:
            page.open()
            yield page
        except BaseException:
            ARTIFACTS.mkdir(parents=True, exist_ok=True)
            page.save_evidence(ARTIFACTS / re.sub(r"[^\w.-]+", "-", request.node.name).strip("-"))
            raise
        finally:
            page.close()

    return open_with


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured, for people; the tests themselves have judged it."""
    reports = terminalreporter.getreports("passed")
    rows = [row for report in reports for key, row in report.user_properties if key == "measured"]
    if rows:
        terminalreporter.section("a network that died in silence, as the pages saw it")
        for row in [" | ".join(rows[0]), *(" | ".join(row.values()) for row in rows)]:
            terminalreporter.line(row)
