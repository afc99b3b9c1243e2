"""A page whose network dies in silence comes back to the session that it had."""

from __future__ import annotations

import enum
import re
import time

import pytest
from playwright.sync_api import Request, expect
from support import known, stream_watch
from support.app_page import AppPage
from support.host_page import HostedPage
from support.network import Network
from support.version import Version

INTERVAL_SECONDS = 3.0
ACK_TIMEOUT_SECONDS = 2.0
"""Shorter than the interval: in 1.55 and later each heartbeat starts the timer anew."""

VERSIONS = [Version(name) for name in ("1.32.0", "1.53.1", "1.55.0", "1.60.0", "1.67.0")]
FORGETFUL = VERSIONS[:-1]
"""These servers start an empty session while they still hold the old connection; 1.61 mended that."""

RUNS_BEFORE = 4
"""Script runs before the network dies, and more than a new session sees here: one for the connection, one a click."""


class Return(enum.Enum):
    """How the network comes back, and within how many seconds the page must have connected again."""

    # TCP resends after ever longer pauses. The old connection has waited for longer than the page's new requests, so
    # the servers hear of its end after them, and only from a takeover before.
    SOON = "as soon as the page has noticed", 15.0
    LATE = "when the page has tried to reach the server for the second time", 45.0
    # Streamlit asks for the server's health before it connects, and gives each answer 15 s: once for every dead
    # connection that Chromium keeps for its next request, of which it keeps up to six.
    ELSEWHERE = "as soon as the page has noticed, without the connections that were open", 120.0


each = pytest.mark.parametrize("app", VERSIONS, ids=lambda version: version.name, indirect=True)
each_forgetful = pytest.mark.parametrize("app", FORGETFUL, ids=lambda version: version.name, indirect=True)

# What the user sees of a lost connection; asked in the page at each of its frames, so it can be measured.
_CONNECTING = """
[...document.querySelectorAll("[data-testid=stStatusWidget]")].some((widget) => /connecting/i.test(widget.textContent))
"""

# What a watchdog in the page does where the frontend has none: a heartbeat, and when no ack comes, a close event for
# the frontend at once; the socket itself reports on a dead network only after a minute.
_WATCH = """
([heartbeat, ackTimeout]) => {
  const stream = watched.stream;
  stream.send(new Uint8Array(heartbeat));
  setTimeout(() => {
    stream.dispatchEvent(new CloseEvent("close", { code: 1006, wasClean: false }));
    for (const type of ["message", "error", "close"])
      stream.addEventListener(type, (event) => event.stopImmediatePropagation(), { capture: true });
    stream.close();
  }, ackTimeout * 1000);
}
"""


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
        page, patience = self._page, ACK_TIMEOUT_SECONDS + 2
        if isinstance(page, HostedPage):
            page.start_heartbeats(10_000, interval=INTERVAL_SECONDS, ack_timeout=ACK_TIMEOUT_SECONDS)
            stream_watch.wait_for_acks(page.frame, 1)
            patience += INTERVAL_SECONDS
        assert len(page.stream.opened) == 1, "the page has connected again before anything had happened to it"
        self._pings = 0
        self._network.drop()
        lost = time.monotonic()
        if not isinstance(page, HostedPage):
            page.frame.evaluate(_WATCH, [list(known.HEARTBEAT), ACK_TIMEOUT_SECONDS])
        page.frame.wait_for_function(_CONNECTING, timeout=patience * 1000)
        self.measured["noticed s"] = f"{time.monotonic() - lost:.2f}"

    def restore_network(self, how: Return) -> None:
        """Packets pass again, and the page must connect."""
        page, patience = self._page, how.value[1]
        while how is Return.LATE and self._pings < 2:
            page.page.wait_for_event("request", self._is_ping, timeout=patience * 1000)
        forgotten = self._network.restore(forget_connections=how is Return.ELSEWHERE)
        restored = time.monotonic()
        stream_watch.wait_for_sockets(page.frame, 2, patience)
        stream_watch.wait_until_open(page.frame, patience)
        page.frame.wait_for_function(f"!({_CONNECTING.strip()})", timeout=patience * 1000)
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


@each
@pytest.mark.parametrize("how", Return, ids=lambda how: how.name.lower())
def test_the_page_comes_back_to_its_session(app, open_page, network, how, request) -> None:
    with open_page() as page:
        runs = _live_through(Outage(page, network, app.version), how, request)
        # A frontend that was interrupted runs the script once more when it connects.
        assert runs in (RUNS_BEFORE + 1, RUNS_BEFORE + 2), f"the session has seen {runs} runs"
        metrics = page.sidecar.metrics()
        assert metrics.value("takeovers_total", result="closed") >= 1
        assert metrics.value("takeovers_total", result="timeout") == 0
        expect(page.dialogs).to_have_count(0)


@each_forgetful
def test_without_takeover_the_session_is_lost(app, open_page, network, request) -> None:
    with open_page("--session-takeover", "false") as page:
        runs = _live_through(Outage(page, network, app.version), Return.SOON, request)
        assert runs < RUNS_BEFORE, f"the session has seen {runs} runs"
        assert page.sidecar.metrics().value("takeovers_total") == 0
