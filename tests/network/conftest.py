"""One simulated network, one chromium at its far end and one host page per run; a real Streamlit per version."""

from __future__ import annotations

import contextlib
import shlex
from typing import Callable, ContextManager, Iterator

import pytest
from playwright.sync_api import Browser
from support import chromium as chromiums
from support.app import App, versions
from support.app_page import AppPage
from support.cabled import cable, network  # noqa: F401: fixtures
from support.host_page import HostedPage, HostServer
from support.network import Network
from support.sidecar import Sidecar

NETWORK = versions("HEARTBEAT_SIDECAR_TEST_NETWORK", "1.53.1 1.67.0")
"""The Streamlit versions under test; `tests/run` sets them."""

OpenPage = Callable[..., ContextManager[AppPage]]


@pytest.fixture(scope="session")
def chromium(cable: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    launcher = tmp_path_factory.mktemp("chromium") / "launch"
    launcher.write_text(f'#!/bin/sh\nexec {shlex.join([*cable.at_far_end, chromiums.executable()])} "$@"\n')
    launcher.chmod(0o755)
    with chromiums.launched(launcher, cable.resolver_rule) as browser:
        yield browser


@pytest.fixture(scope="session")
def host(cable: Network) -> Iterator[HostServer]:
    running = HostServer()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def app(request: pytest.FixtureRequest, host: HostServer) -> Iterator[App]:
    running = App(request.param, host)
    yield running
    running.stop()


@pytest.fixture
def open_page(
    chromium: Browser, host: HostServer, app: App, network: Network, request: pytest.FixtureRequest
) -> OpenPage:
    """Opens the app through a sidecar with the given arguments. From 1.55 on it is embedded in a host page."""

    @contextlib.contextmanager
    def open_with(*arguments: str) -> Iterator[AppPage]:
        sidecar = Sidecar(app.server.address, *arguments)
        page = HostedPage(chromium, sidecar, host) if app.version.acks_natively else AppPage(chromium, sidecar)
        try:
            page.open()
            yield page
        except BaseException:
            page.save_evidence(request.node.name)
            raise
        finally:
            page.close()

    return open_with


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the measurements. The tests have already checked them."""
    reports = [report for outcome in ("passed", "xfailed", "failed") for report in terminalreporter.getreports(outcome)]
    rows = [row for report in reports for key, row in report.user_properties if key == "measured"]
    if rows:
        terminalreporter.section("measurements of the pages")
    columns: list[str] = []
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            terminalreporter.line("\n" + " | ".join(columns))
        terminalreporter.line(" | ".join(row.values()))
