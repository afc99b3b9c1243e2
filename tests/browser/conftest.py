"""One chromium for the run; a real Streamlit per version; a sidecar and a fresh page per test."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Callable, Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright
from support.app_page import AppPage
from support.sidecar import REPOSITORY, Sidecar
from support.streamlit_server import StreamlitServer

ARTIFACTS = REPOSITORY / "target" / "test-artifacts"
OLD, NEW = "1.53.1", "1.67.0"
"""The last minor line but one without a native ack, and the newest."""

OpenPage = Callable[..., AppPage]


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


_FAILED = pytest.StashKey[bool]()


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
    for page in opened:
        if request.node.stash.get(_FAILED, True):
            ARTIFACTS.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^\w.-]+", "-", request.node.name).strip("-")
            page.save_evidence(ARTIFACTS / name)
        page.close()
