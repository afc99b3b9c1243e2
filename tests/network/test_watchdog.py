"""With the watchdog a page of any version notices in seconds that its network is dead, and goes on when it is back."""

from __future__ import annotations

from typing import Iterator

import pytest
from outage import EVERYONE, NATIVE, WITH, WITHOUT, Lived, live_through
from playwright.sync_api import Browser, expect
from support.host_page import HostServer
from support.network import Network
from visitor import CLICKS_BEFORE, NOTICED_WITHIN, Plan, visitors

OUTAGE_SECONDS = 20.0
CONNECTED_WITHIN = 5.0
"""Seconds from the network's return."""
ANSWERED_WITHIN = 5.0
"""Seconds from a click on the page that is back."""


@pytest.fixture(scope="module")
def outage(cable: Network, chromium: Browser, host: HostServer) -> Iterator[dict[Plan, Lived]]:
    with visitors(chromium, host, EVERYONE, "outage") as everyone:
        try:
            yield {lived.visitor.plan: lived for lived in live_through(cable, everyone, OUTAGE_SECONDS)}
        finally:
            cable.mend()


with_watchdog = pytest.mark.parametrize("plan", WITH, ids=str)


@pytest.mark.parametrize("plan", EVERYONE, ids=str)
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
    visitor, runs, dialogs = outage[plan].visitor, outage[plan].runs, outage[plan].dialogs
    # The page shows the answer to the last click, so what the widget holds is what the user had moved it to. Of the
    # script's runs, the one of the click in the outage may be missing, and one for the connection may be added.
    assert visitor.level == 10 + CLICKS_BEFORE + 2
    assert runs in range(CLICKS_BEFORE + 2, CLICKS_BEFORE + 5), "a new session starts at 1"
    assert dialogs == 0
    expect(visitor.page.dialogs).to_have_count(0)


@with_watchdog
def test_the_reconnect_is_counted_once(outage, plan) -> None:
    metrics = outage[plan].visitor.page.sidecar.metrics()
    assert metrics.value("reconnects_total", cause="watchdog") == 1
    assert metrics.value("reconnects_total", cause="other") == 0
    assert metrics.value("watchdog_pages_total", result="added") == 1
