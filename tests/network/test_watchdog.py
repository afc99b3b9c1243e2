"""With the watchdog a page of any version notices a dead network within seconds and reconnects after the outage."""

from __future__ import annotations

from typing import Iterator

import pytest
from outage import ALL_PLANS, NATIVE, WITH, WITHOUT, Outcome, go_through_outage
from playwright.sync_api import Browser, expect
from support.host_page import HostServer
from support.network import Network
from visitor import CLICKS_BEFORE, NOTICED_WITHIN, Plan, visitors

OUTAGE_SECONDS = 20.0
CONNECTED_WITHIN = 5.0
"""Seconds from the end of the outage."""
ANSWERED_WITHIN = 5.0
"""Seconds from a click after the reconnect."""


@pytest.fixture(scope="module")
def outage(cable: Network, chromium: Browser, host: HostServer) -> Iterator[dict[Plan, Outcome]]:
    with visitors(chromium, host, ALL_PLANS, "outage") as people:
        try:
            yield {outcome.visitor.plan: outcome for outcome in go_through_outage(cable, people, OUTAGE_SECONDS)}
        finally:
            cable.reset()


with_watchdog = pytest.mark.parametrize("plan", WITH, ids=str)


@pytest.mark.parametrize("plan", ALL_PLANS, ids=str)
def test_every_page_answers_after_the_outage(outage, plan, request) -> None:
    request.node.user_properties.append(("measured", outage[plan].row()))
    assert outage[plan].answer <= ANSWERED_WITHIN or plan in WITHOUT


@with_watchdog
def test_the_page_shows_in_time_that_it_is_connecting(outage, plan) -> None:
    noticed = outage[plan].noticed
    assert noticed is not None, "the page noticed nothing during the outage"
    assert noticed <= NOTICED_WITHIN


@with_watchdog
def test_the_page_connects_soon_after_the_outage(outage, plan) -> None:
    # The kernel's retry pauses grow: the next retry comes after about the time that it has already tried. Streamlit's
    # own reconnect has to wait for that as well.
    retrying = OUTAGE_SECONDS - outage[plan].noticed
    assert outage[plan].connected <= max(CONNECTED_WITHIN, outage[NATIVE].connected, retrying)


@with_watchdog
def test_the_session_survives(outage, plan) -> None:
    visitor, runs, dialogs = outage[plan].visitor, outage[plan].runs, outage[plan].dialogs
    # The page shows the answer to the last click, so the slider is where the user moved it. The run of the click
    # during the outage may be missing, and a run for the new connection may be added.
    assert visitor.level == 10 + CLICKS_BEFORE + 2
    assert runs in range(CLICKS_BEFORE + 2, CLICKS_BEFORE + 5), "the session is new: it has too few runs"
    assert dialogs == 0
    expect(visitor.page.dialogs).to_have_count(0)


@with_watchdog
def test_the_reconnect_is_counted_once(outage, plan) -> None:
    metrics = outage[plan].visitor.page.sidecar.metrics()
    assert metrics.value("reconnects_total", cause="watchdog") == 1
    assert metrics.value("reconnects_total", cause="other") == 0
    assert metrics.value("watchdog_pages_total", result="added") == 1
