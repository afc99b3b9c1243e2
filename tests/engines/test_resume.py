"""A short or long outage costs a user of Firefox or WebKitGTK nothing: the page resumes its session.

In each outage the user does one thing, and the app executes it once.
"""

from __future__ import annotations

import time

import pytest
from app_page import AppPage
from conftest import VERSIONS
from support.network import Network

SHORT_SECONDS, LONG_SECONDS = 4.0, 20.0
"""A page that checks its connection every 10 s, with 5 s for the answer, notices only the second."""
LONGEST_SECONDS = 50.0
"""An action that is older than a minute is not sent any more."""
SOON_SECONDS = 20.0
"""An attempt ends after 10 s at most, and the next begins up to 6 s later."""
ANSWER_WITHIN = 30.0
"""Seconds from the return of the network. TCP repeats about as long after its last attempt as it has tried before."""
WORK_STEPS = 60
"""Of half a second each, as in the app."""


def _act_in_an_outage(
    page: AppPage, network: Network, kind: str, seconds: float, within: float = ANSWER_WITHIN
) -> float:
    """Returns the seconds from the return of the network to the answer."""
    session = page.session
    network.drop()
    lost = time.monotonic()
    answer = page.act(kind, f"{kind}{seconds:.0f}")
    time.sleep(max(0.0, lost + seconds - time.monotonic()))
    network.restore()
    restored = time.monotonic()
    page.tab.wait_for_text(answer, seconds=within)
    took = time.monotonic() - restored
    assert page.executed(answer) == 1, f"the app has executed {answer!r} {page.executed(answer)} times"
    assert page.session == session, "the session is another"
    page.tab.wait_for_text("end of page")
    assert page.dialogs == 0
    return took


@pytest.mark.parametrize(
    "seconds, kinds",
    [(SHORT_SECONDS, ["click", "level", "form", "chat"]), (LONG_SECONDS, ["click", "chat"])],
    ids=["short", "long"],
)
def test_an_action_in_an_outage_is_executed_once(open_app, network: Network, request, seconds, kinds) -> None:
    page = open_app("--watchdog", "self")
    page.tab.wait_for_text(page.act("click"))
    page.wait_for_acks(1)
    took = [f"{kind} {_act_in_an_outage(page, network, kind, seconds):.1f} s" for kind in kinds]
    note = f"{request.node.name}: answers after the outage: {', '.join(took)}"
    request.node.user_properties.append(("measured", note))
    assert page.sidecar.metrics().value("reconnects_total") == 0, "the frontend has reconnected"


@pytest.mark.parametrize("server", [VERSIONS[-1]], ids=lambda version: version.name, indirect=True)
def test_after_a_long_outage_the_session_is_resumed_soon(open_app, network: Network, request) -> None:
    """Firefox delays websockets after failed ones, for longer each time."""
    page = open_app("--watchdog", "self")
    page.tab.wait_for_text(page.act("click"))
    page.wait_for_acks(1)
    took = _act_in_an_outage(page, network, "click", LONGEST_SECONDS, SOON_SECONDS)
    request.node.user_properties.append(("measured", f"{request.node.name}: answer after the outage: {took:.1f} s"))


def test_an_outage_does_not_stop_a_running_script(open_app, network: Network) -> None:
    page = open_app("--watchdog", "self")
    page.wait_for_acks(1)
    page.tab.click("button", "Work")
    page.tab.wait_for_text("step 0")
    network.drop()
    time.sleep(LONG_SECONDS)
    network.restore()
    page.tab.wait_for_text("work done", seconds=WORK_STEPS / 2 + ANSWER_WITHIN)
    assert [page.executed(f"step {step}") for step in range(WORK_STEPS)] == [1] * WORK_STEPS
    assert page.executed("step end") == 1
    assert page.dialogs == 0
