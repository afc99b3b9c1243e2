"""Measures how long pages without a watchdog take to notice that all packets are lost; a quarter of an hour, judges little.

Not a test of every run, and so not named as one: name the file to pytest to run it.
"""

from __future__ import annotations

import time

import pytest
from conftest import NETWORK
from support import status_watch
from visitor import CLICKS_BEFORE, Plan, Visitor, visitors

LONGEST_SECONDS = 970.0
"""Linux gives up on a connection whose data is not acknowledged after 924 s and more."""
RETURN_SECONDS = 300.0
"""TCP resends after at most 120 s; a page may need more than one try."""

NEWEST = NETWORK[-1]


def _wait_until_noticed(everyone: list[Visitor], lost: float) -> None:
    for visitor in everyone:
        visitor.wait_until_noticed(max(0.1, lost + LONGEST_SECONDS - time.time()))
    for visitor in everyone:
        noticed = visitor.seconds_to_notice(lost)
        visitor.measured["noticed s"] = f"> {LONGEST_SECONDS:.0f}" if noticed is None else f"{noticed:.1f}"
        since = [shown for shown in status_watch.history(visitor.page.frame) if shown.at >= lost]
        visitor.measured["shown"] = ", ".join(f"{it.at - lost:.1f} s {it.text!r}" for it in since)


def _come_back(everyone: list[Visitor], restored: float) -> None:
    for visitor in everyone:
        answer = visitor.click_until_answered(RETURN_SECONDS)
        visitor.measured["answer s"] = f"{answer:.1f}, {time.time() - restored:.1f} after return"
        visitor.measured["runs"] = f"{CLICKS_BEFORE + 1} -> {visitor.runs}"
    for visitor in everyone:
        since = [shown for shown in status_watch.history(visitor.page.frame) if shown.at >= restored]
        visitor.measured["shown after return"] = ", ".join(f"{it.at - restored:.1f} s {it.text!r}" for it in since)


@pytest.mark.parametrize("clicks", [True, False], ids=["clicking", "idle"])
def test_how_long_pages_take_without_a_watchdog(chromium, host, network, request, clicks) -> None:
    plans = [*(Plan(version) for version in NETWORK), Plan(NEWEST, hosted=True)]
    with visitors(chromium, host, plans, request.node.name) as everyone:
        for visitor in everyone:
            visitor.use()
        for visitor in everyone:
            visitor.start_heartbeats()
        everyone[-1].page.wait_for_posted(2)
        network.drop()
        lost = time.time()
        for visitor in everyone:
            visitor.measured = {"page": str(visitor.plan), "user": request.node.callspec.id}
            if clicks:
                visitor.click()
        _wait_until_noticed(everyone, lost)
        network.restore()
        _come_back(everyone, time.time())
        request.node.user_properties.extend(("measured", visitor.measured) for visitor in everyone)
