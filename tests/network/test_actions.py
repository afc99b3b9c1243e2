"""What a user does in the first seconds of an outage is executed exactly once, and a running script goes on.

With resumption switched off, the page's next connection takes the session over. The actions are executed then too. The
script is stopped, which is expected to fail. All print their measurements.
"""

from __future__ import annotations

import random
from typing import Iterator

import pytest
from acting import HarmError, Outcome, act_in_outage, deal, users
from actor import HOSTED, RESUMPTION, WATCHDOG, WORK, User
from conftest import NETWORK
from support.network import Network

OUTAGES = [4.0, 6.0, 8.0, 9.0, 12.0, 20.0]
"""Seconds. The watchdog's script notices an outage 5 to 15 s after the last ack."""
ACT_WITHIN = 2.5
"""Seconds of an outage in which the users act. No page has noticed it by then."""
SCRIPT_OUTAGE = 8.0

harm = pytest.mark.xfail(strict=True, raises=HarmError, reason="a takeover stops a long script")
CASES = [pytest.param(RESUMPTION, seconds) for seconds in OUTAGES]
CASES += [pytest.param(WATCHDOG, seconds) for seconds in OUTAGES]
CASES += [pytest.param(HOSTED, OUTAGES[-1])]
WAYS = [RESUMPTION, pytest.param(WATCHDOG, marks=harm)]


@pytest.fixture(scope="module")
def people(request, chromium, host, cable) -> Iterator[list[User]]:
    with users(chromium, host, NETWORK, [request.param], f"actions {request.param.name}") as opened:
        yield opened


def _check(outcomes: list[Outcome], people: list[User], request: pytest.FixtureRequest) -> None:
    request.node.user_properties.extend(("measured", outcome.row()) for outcome in outcomes)
    assert len(outcomes) == len(people), "some pages did not work before the outage"
    if harmed := [str(outcome.row()) for outcome in outcomes if outcome.harm]:
        raise HarmError("\n".join(harmed))


@pytest.mark.parametrize(("people", "seconds"), CASES, indirect=["people"], ids=str)
def test_an_action_early_in_an_outage_is_executed_once(people, network: Network, request, seconds) -> None:
    chance = random.Random(seconds)
    outcomes = act_in_outage(network, people, deal(people, chance), seconds, ACT_WITHIN, chance)
    _check(outcomes, people, request)


@pytest.mark.parametrize("people", WAYS, indirect=True, ids=str)
def test_an_outage_does_not_stop_a_running_script(people, network: Network, request) -> None:
    kinds = [WORK] * len(people)
    outcomes = act_in_outage(network, people, kinds, SCRIPT_OUTAGE, SCRIPT_OUTAGE, random.Random(1))
    _check(outcomes, people, request)
