"""A page whose network dies in silence comes back to the session that it had."""

from __future__ import annotations

import enum
import re
import time

import pytest
from conftest import NETWORK
from playwright.sync_api import Request, expect
from support import status_watch, stream_watch
from support.app import App
from support.app_page import AppPage
from support.host_page import HostedPage
from support.network import Network
from support.version import Version

INTERVAL_SECONDS = 3.0
ACK_TIMEOUT_SECONDS = 2.0
"""Shorter than the interval: in 1.55 and later each heartbeat starts the timer anew."""

WATCHDOG = {
    "--watchdog": "self",
    "--watchdog-interval": f"{INTERVAL_SECONDS:.0f}s",
    "--watchdog-ack-timeout": f"{ACK_TIMEOUT_SECONDS:.0f}s",
}
"""For pages that do not watch for acks themselves."""

FORGETFUL = [version for version in NETWORK if not version.keeps_sessions]
"""These servers start an empty session while they still hold the old connection; 1.61 mended that."""

RUNS_BEFORE = 4
"""Script runs before the network dies, and more than a new session sees here: one for the connection, one a click."""


CONNECTED_WITHIN = 5.0
"""Seconds from the network's return, for a page with the watchdog that has noticed just before it."""


class Return(enum.Enum):
    """How the network comes back, and within how many seconds the page must have connected again."""

    # TCP resends after ever longer pauses. The old connection has waited for longer than the page's new requests, so
    # the servers hear of its end after them, and only from a takeover before.
    SOON = "as soon as the page has noticed", 15.0
    LATE = "when the page has tried to reach the server for the second time", 45.0
    # Streamlit asks for the server's health before it connects, and gives each answer 15 s: once for every dead
    # connection that Chromium keeps for its next request, of which it keeps up to six. The watchdog drops these.
    ELSEWHERE = "as soon as the page has noticed, without the connections that were open", 120.0


each = pytest.mark.parametrize("app", NETWORK, ids=lambda version: version.name, indirect=True)
each_forgetful = pytest.mark.parametrize("app", FORGETFUL, ids=lambda version: version.name, indirect=True)


class Outage:
    """One page before, during and after an outage; measures as it goes."""

    def __init__(self, page: AppPage, network: Network, version: Version) -> None:
        self._page, self._network = page, network
        self._pings = 0
        page.page.on("request", self._count)
        self.measured = {"Streamlit": version.name}

    def _count(self, request: Request) -> None:
        self._pings += self._is_ping(request)

    @staticmethod
    def _is_ping(request: Request) -> bool:
        return request.url.endswith("/_stcore/health")

    @property
    def _runs(self) -> int:
        text = self._page.frame.get_by_text(re.compile(r"^run \d+$")).inner_text()
        return int(text.removeprefix("run "))

    def use(self) -> None:
        """Gives the session a state that can be lost."""
        for run in range(2, RUNS_BEFORE + 1):
            self._page.move_slider("Level")
            self._page.expect_text(f"run {run}")
            self._page.expect_text(f"level {9 + run}")

    def lose_network(self) -> None:
        """Every packet is lost, and the page must notice."""
        page = self._page
        if isinstance(page, HostedPage):
            page.start_heartbeats(10_000, interval=INTERVAL_SECONDS, ack_timeout=ACK_TIMEOUT_SECONDS)
        stream_watch.wait_for_acks(page.frame, 1)
        assert len(page.stream.opened) == 1, "the page has connected again before anything had happened to it"
        self._pings = 0
        self._network.drop()
        lost = time.monotonic()
        status_watch.wait_until_connecting(page.frame, INTERVAL_SECONDS + ACK_TIMEOUT_SECONDS + 2)
        self.measured["noticed s"] = f"{time.monotonic() - lost:.2f}"

    def restore_network(self, how: Return) -> None:
        """Packets pass again, and the page must connect."""
        page, patience = self._page, how.value[1]
        if how is Return.ELSEWHERE and not isinstance(page, HostedPage):
            patience = CONNECTED_WITHIN
        while how is Return.LATE and self._pings < 2:
            page.page.wait_for_event("request", self._is_ping, timeout=patience * 1000)
        forgotten = self._network.restore(forget_connections=how is Return.ELSEWHERE)
        restored = time.monotonic()
        stream_watch.wait_for_sockets(page.frame, 2, patience)
        stream_watch.wait_until_open(page.frame, patience)
        status_watch.wait_until_connected(page.frame, patience)
        connected = time.monotonic() - restored
        self.measured |= {"back": how.name.lower(), "forgotten": str(forgotten), "connected s": f"{connected:.2f}"}

    def click(self) -> int:
        """The next thing that the user does; returns how many runs the session remembers."""
        clicked = time.monotonic()
        self._page.move_slider("Level")
        self._page.expect_text(f"level {10 + RUNS_BEFORE}")
        self.measured["click s"] = f"{time.monotonic() - clicked:.2f}"
        # A later line of the page than the level.
        expect(self._page.frame.get_by_text(f"run {RUNS_BEFORE}", exact=True)).to_have_count(0)
        runs = self._runs
        takeovers = self._page.sidecar.metrics().value("takeovers_total", result="closed")
        self.measured |= {"runs": f"{RUNS_BEFORE} -> {runs}", "takeovers closed": f"{takeovers:.0f}"}
        return runs


def _live_through(outage: Outage, how: Return, request: pytest.FixtureRequest) -> int:
    outage.use()
    outage.lose_network()
    outage.restore_network(how)
    runs = outage.click()
    request.node.user_properties.append(("measured", outage.measured))
    return runs


def _watchdog(app: App) -> list[str]:
    return [] if app.version.acks_natively else [word for setting in WATCHDOG.items() for word in setting]


@each
@pytest.mark.parametrize("how", Return, ids=lambda how: how.name.lower())
def test_the_page_comes_back_to_its_session(app, open_page, network, how, request) -> None:
    with open_page(*_watchdog(app)) as page:
        runs = _live_through(Outage(page, network, app.version), how, request)
        # A frontend that was interrupted runs the script once more when it connects.
        assert runs in (RUNS_BEFORE + 1, RUNS_BEFORE + 2), f"the session has seen {runs} runs"
        metrics = page.sidecar.metrics()
        assert metrics.value("takeovers_total", result="closed") >= 1
        assert metrics.value("takeovers_total", result="timeout") == 0
        expect(page.dialogs).to_have_count(0)


@each_forgetful
def test_without_takeover_the_session_is_lost(app, open_page, network, request) -> None:
    with open_page(*_watchdog(app), "--session-takeover", "false") as page:
        runs = _live_through(Outage(page, network, app.version), Return.SOON, request)
        assert runs < RUNS_BEFORE, f"the session has seen {runs} runs"
        assert page.sidecar.metrics().value("takeovers_total") == 0
