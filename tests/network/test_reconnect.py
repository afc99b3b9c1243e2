"""A page whose network fails silently reconnects to its own session."""

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
"""Shorter than the interval: from 1.55 on each heartbeat restarts the timer."""

WATCHDOG = {
    "--watchdog": "self",
    "--watchdog-interval": f"{INTERVAL_SECONDS:.0f}s",
    "--watchdog-ack-timeout": f"{ACK_TIMEOUT_SECONDS:.0f}s",
    "--resume-enabled": "false",
}
"""For pages that do not enforce acks themselves. A page that resumes its connection does not reconnect."""

LOSING_SESSIONS = [version for version in NETWORK if not version.keeps_sessions]
"""These servers give a reconnecting page an empty session while the old connection is open; 1.61 fixed that."""

RUNS_BEFORE = 4
"""Script runs before the outage. A new session has fewer: one for the connection and one per click."""


CONNECTED_WITHIN = 5.0
"""Seconds from the outage's end, for a page with the watchdog that noticed the outage just before that."""


class Recovery(enum.Enum):
    """How the network recovers, and within how many seconds the page must be connected again."""

    # TCP retransmits with growing pauses. The old connection has the longest pause, so its end reaches the server
    # after the page's new requests. Only a takeover closes it earlier.
    SOON = "as soon as the page has noticed", 15.0
    LATE = "after the page's second attempt to reach the server", 45.0
    # Streamlit polls the server's health before it connects, with a timeout of 15 s. Chromium reuses up to six dead
    # connections for these requests, one after the other. The watchdog avoids that.
    ELSEWHERE = "as soon as the page has noticed, but without the connections that were open", 120.0


each = pytest.mark.parametrize("app", NETWORK, ids=lambda version: version.name, indirect=True)
each_losing_sessions = pytest.mark.parametrize("app", LOSING_SESSIONS, ids=lambda version: version.name, indirect=True)


class Outage:
    """One page before, during and after an outage, with measurements."""

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
        """Gives the session some state."""
        for run in range(2, RUNS_BEFORE + 1):
            self._page.move_slider("Level")
            self._page.expect_text(f"run {run}")
            self._page.expect_text(f"level {9 + run}")

    def lose_network(self) -> None:
        """Drops all packets and waits until the page notices."""
        page = self._page
        if isinstance(page, HostedPage):
            page.start_heartbeats(10_000, interval=INTERVAL_SECONDS, ack_timeout=ACK_TIMEOUT_SECONDS)
        stream_watch.wait_for_acks(page.frame, 1)
        assert len(page.stream.opened) == 1, "the page reconnected before the outage"
        self._pings = 0
        self._network.drop()
        lost = time.monotonic()
        status_watch.wait_until_connecting(page.frame, INTERVAL_SECONDS + ACK_TIMEOUT_SECONDS + 2)
        self.measured["noticed s"] = f"{time.monotonic() - lost:.2f}"

    def restore_network(self, how: Recovery) -> None:
        """Lets packets pass again and waits until the page is connected."""
        page, timeout = self._page, how.value[1]
        if how is Recovery.ELSEWHERE and not isinstance(page, HostedPage):
            timeout = CONNECTED_WITHIN
        while how is Recovery.LATE and self._pings < 2:
            page.page.wait_for_event("request", self._is_ping, timeout=timeout * 1000)
        dropped = self._network.restore(drop_connections=how is Recovery.ELSEWHERE)
        restored = time.monotonic()
        stream_watch.wait_for_sockets(page.frame, 2, timeout)
        stream_watch.wait_until_open(page.frame, timeout)
        status_watch.wait_until_connected(page.frame, timeout)
        connected = time.monotonic() - restored
        self.measured |= {"recovery": how.name.lower(), "dropped": str(dropped), "connected s": f"{connected:.2f}"}

    def click(self) -> int:
        """The user clicks. Returns the number of runs that the session has counted."""
        clicked = time.monotonic()
        self._page.move_slider("Level")
        self._page.expect_text(f"level {10 + RUNS_BEFORE}")
        self.measured["click s"] = f"{time.monotonic() - clicked:.2f}"
        # The run's text is below the level, so it may be drawn later.
        expect(self._page.frame.get_by_text(f"run {RUNS_BEFORE}", exact=True)).to_have_count(0)
        runs = self._runs
        takeovers = self._page.sidecar.metrics().value("takeovers_total", result="closed")
        self.measured |= {"runs": f"{RUNS_BEFORE} -> {runs}", "takeovers closed": f"{takeovers:.0f}"}
        return runs


def _go_through_outage(outage: Outage, how: Recovery, request: pytest.FixtureRequest) -> int:
    outage.use()
    outage.lose_network()
    outage.restore_network(how)
    runs = outage.click()
    request.node.user_properties.append(("measured", outage.measured))
    return runs


def _watchdog(app: App) -> list[str]:
    return [] if app.version.acks_natively else [word for setting in WATCHDOG.items() for word in setting]


@each
@pytest.mark.parametrize("how", Recovery, ids=lambda how: how.name.lower())
def test_a_reconnect_after_an_outage_keeps_the_session(app, open_page, network, how, request) -> None:
    with open_page(*_watchdog(app)) as page:
        runs = _go_through_outage(Outage(page, network, app.version), how, request)
        # An interrupted frontend reruns the script once when it connects.
        assert runs in (RUNS_BEFORE + 1, RUNS_BEFORE + 2), f"the session has seen {runs} runs"
        metrics = page.sidecar.metrics()
        assert metrics.value("takeovers_total", result="closed") >= 1
        assert metrics.value("takeovers_total", result="timeout") == 0
        expect(page.dialogs).to_have_count(0)


@each_losing_sessions
def test_without_takeover_the_session_is_lost(app, open_page, network, request) -> None:
    with open_page(*_watchdog(app), "--session-takeover", "false") as page:
        runs = _go_through_outage(Outage(page, network, app.version), Recovery.SOON, request)
        assert runs < RUNS_BEFORE, f"the session has seen {runs} runs"
        assert page.sidecar.metrics().value("takeovers_total") == 0
