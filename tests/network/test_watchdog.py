"""With the watchdog a page of any version notices within seconds that its network is dead, and goes on when it is back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Iterator

import pytest
from conftest import NETWORK
from playwright.sync_api import Browser, expect
from support import status_watch
from support.host_page import HostServer
from support.network import Network
from visitor import CLICKS_BEFORE, NOTICED_WITHIN, Plan, Visitor, visitors

OUTAGE_SECONDS = 20.0
CONNECTED_WITHIN = 5.0
"""Seconds from the network's return."""
ANSWERED_WITHIN = 5.0
"""Seconds from a click on the page that is back."""
PATIENCE = 60.0
"""Seconds, for pages that are only compared with."""

WATCHED = [version for version in NETWORK if version.name in ("1.25.0", "1.29.0", "1.40.0", "1.53.1", "1.67.0")]
WITH = [Plan(version, "self") for version in WATCHED]
WITH += [Plan(version, "host", hosted=True) for version in WATCHED if version.obeys_hosts and not version.acks_natively]
WITHOUT = [Plan(version) for version in WATCHED]
NATIVE = Plan(NETWORK[-1], hosted=True)
"""Streamlit's own mechanism, which the watchdog is measured against."""


@dataclass
class Lived:
    """What a visitor has lived through, in seconds: `noticed` from the loss, the others from the return."""

    visitor: Visitor
    noticed: float | None = None
    connected: float | None = None
    first_answer: float | None = None
    """To the click that was made while the network was dead; a page may have forgotten it."""
    answer: float = 0.0
    """From the next click on."""

    def row(self) -> dict[str, str]:
        times = {"noticed s": self.noticed, "connected s": self.connected, "answer to click in outage s": self.first_answer}
        shown = {name: "-" if value is None else f"{value:.1f}" for name, value in times.items()}
        runs = f"{CLICKS_BEFORE + 1} -> {self.visitor.runs}"
        return {"page": str(self.visitor.plan), **shown, "answer to next click s": f"{self.answer:.1f}", "runs": runs}


def _come_back(everyone: list[Lived], restored: float) -> None:
    for lived in everyone:
        if lived.noticed is not None:
            lived.connected = lived.visitor.wait_until_connected(PATIENCE) - restored
    for lived in everyone:
        in_outage = lived.visitor.level
        lived.answer = lived.visitor.click_until_answered(PATIENCE)
        answered_at = status_watch.texts(lived.visitor.page.frame).get(f"level {in_outage}")
        lived.first_answer = None if answered_at is None else answered_at - restored


@pytest.fixture(scope="module")
def outage(cable: Network, chromium: Browser, host: HostServer) -> Iterator[dict[Plan, Lived]]:
    """One outage for everyone; the user clicks into it, and again when the page is back."""
    with visitors(chromium, host, [*WITH, NATIVE, *WITHOUT], "outage") as everyone:
        for visitor in everyone:
            visitor.use()
        for visitor in everyone:
            visitor.start_heartbeats()
        for visitor in everyone:
            visitor.wait_for_acks(1)
        cable.drop()
        lost = time.time()
        for visitor in everyone:
            assert visitor.click(), f"{visitor.plan} does not let its user click"
        everyone[0].page.page.wait_for_timeout((lost + OUTAGE_SECONDS - time.time()) * 1000)
        lived = [Lived(visitor, visitor.seconds_to_notice(lost)) for visitor in everyone]
        cable.restore()
        try:
            _come_back(lived, time.time())
            yield {it.visitor.plan: it for it in lived}
        finally:
            cable.mend()


with_watchdog = pytest.mark.parametrize("plan", WITH, ids=str)


@pytest.mark.parametrize("plan", [*WITH, NATIVE, *WITHOUT], ids=str)
def test_every_page_answers_again(outage, plan, request) -> None:
    request.node.user_properties.append(("measured", outage[plan].row()))
    assert outage[plan].answer <= ANSWERED_WITHIN or plan in WITHOUT


@with_watchdog
def test_the_page_says_in_time_that_it_is_connecting(outage, plan) -> None:
    noticed = outage[plan].noticed
    assert noticed is not None, "not within the outage"
    assert noticed <= NOTICED_WITHIN


@with_watchdog
def test_the_page_connects_soon_after_the_network_is_back(outage, plan) -> None:
    # The kernel asks ever more seldom, about as long after its last try as it has tried before; Streamlit's own
    # mechanism has to wait for that as well.
    tried = OUTAGE_SECONDS - outage[plan].noticed
    assert outage[plan].connected <= max(CONNECTED_WITHIN, outage[NATIVE].connected, tried)


@with_watchdog
def test_the_session_survives(outage, plan) -> None:
    visitor = outage[plan].visitor
    # The page shows the answer to the last click, so what the widget holds is what the user had moved it to. Of the
    # script's runs, the one of the click in the outage may be missing, and one for the connection may be added.
    assert visitor.level == 10 + CLICKS_BEFORE + 2
    assert visitor.runs in range(CLICKS_BEFORE + 2, CLICKS_BEFORE + 5), "a new session starts at 1"
    expect(visitor.page.dialogs).to_have_count(0)


@with_watchdog
def test_the_reconnect_is_counted_once(outage, plan) -> None:
    metrics = outage[plan].visitor.page.sidecar.metrics()
    assert metrics.value("reconnects_total", cause="watchdog") == 1
    assert metrics.value("reconnects_total", cause="other") == 0
    assert metrics.value("watchdog_pages_total", result="added") == 1
