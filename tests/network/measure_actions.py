"""Measures what becomes of actions in outages of 2 to 20 s, with and without the watchdog. It checks nothing.

Runs only if this file is named to pytest. All pages share each outage. HEARTBEAT_SIDECAR_TEST_ROUNDS is the number of
outages of each length, HEARTBEAT_SIDECAR_TEST_WAYS the names of the ways; one that is named twice gets two pages of each
version.
"""

from __future__ import annotations

import os
import random
from typing import Iterator

import pytest
from acting import Outcome, act_in_outage, deal, users
from actor import ALL_WAYS, KINDS, WORK, User, Way
from conftest import NETWORK
from support.sidecar import REPOSITORY

OUTAGES = [2.0, 4.0, 6.0, 8.0, 9.0, 12.0, 20.0]
ROUNDS = int(os.environ.get("HEARTBEAT_SIDECAR_TEST_ROUNDS", "1"))
NAMES = os.environ.get("HEARTBEAT_SIDECAR_TEST_WAYS", " ".join(2 * [way.name for way in ALL_WAYS])).split()
PAGES = [way for name in NAMES for way in ALL_WAYS if way.name == name]
WAYS = [way for way in ALL_WAYS if way in PAGES]
SCRIPT_EVERY = 3
"""Outages of one length: only every third one also has running scripts, because they take half a minute."""
RECORD = REPOSITORY / "target" / "test-artifacts" / "actions.txt"
"""One line an action, written after each outage, so that a stopped measurement is not lost."""
chance = random.Random(1)
outcomes: list[Outcome] = []


def totals(way: Way, seconds: float, kinds: tuple[str, ...]) -> dict[str, str]:
    all_pages = [it for it in outcomes if it.user.way == way and it.seconds == seconds and it.kind in kinds]
    acted = [it for it in all_pages if it.accepted]
    counts = {
        "pages": len(all_pages),
        "acted": len(acted),
        "executed once": sum(it.executed == 1 for it in acted),
        "twice": sum(it.executed > 1 for it in acted),
        "lost": sum(it.executed < 1 for it in acted),
        "answer not shown": sum(not it.shown for it in acted),
        "blank": sum(it.blank for it in all_pages),
        "dialogs": sum(it.dialogs for it in all_pages),
        "sessions lost": sum(not it.kept and not it.blank for it in all_pages),
    }
    first = {"action": "script" if kinds == (WORK,) else "action", "outage s": f"{seconds:.0f}", "way": way.name}
    return {**first, **{name: str(count) for name, count in counts.items()}}


@pytest.fixture(scope="module")
def people(chromium, host, cable) -> Iterator[list[User]]:
    with users(chromium, host, NETWORK, PAGES, "measure actions") as opened:
        yield opened


@pytest.mark.parametrize("seconds", OUTAGES)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_measure_actions(people, network, seconds, number) -> None:
    kinds = deal(people, chance, KINDS if number % SCRIPT_EVERY else (*KINDS, WORK))
    new = act_in_outage(network, people, kinds, seconds, seconds, chance)
    outcomes.extend(new)
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    with RECORD.open("a") as record:
        record.writelines(" | ".join(outcome.row().values()) + "\n" for outcome in new)


def test_totals(request) -> None:
    for kinds in (KINDS, (WORK,)):
        for seconds in OUTAGES:
            for way in WAYS:
                if any(it.seconds == seconds for it in outcomes):
                    request.node.user_properties.append(("measured", totals(way, seconds, kinds)))
