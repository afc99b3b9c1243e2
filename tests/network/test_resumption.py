"""A page whose connection is cut goes on as if nothing had happened: neither the app nor the user notices."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Iterator

import pytest
from acting import users
from actor import User, Way
from conftest import NETWORK
from support import polling, status_watch, stream_watch
from support.cutter import Cut, Cutter

SCRIPT = Path(__file__).with_name("long_app.py")
INTERVAL_SECONDS, ACK_TIMEOUT_SECONDS = 3.0, 2.0
QUICK = Way(
    "resumption",
    ("--watchdog", "self", "--watchdog-interval", "3s", "--watchdog-ack-timeout", "2s"),
)
"""Notices a silent loss within five seconds."""
VERSIONS = [NETWORK[0], NETWORK[len(NETWORK) // 2], NETWORK[-1]]
CUTS = 20
ANSWER_WITHIN = 20.0
"""Seconds: a silent loss is noticed in 5 s, and an attempt is given up after 3 s."""
WORK_SECONDS = 30
SILENT_SECONDS = 12.0


@pytest.fixture(scope="module")
def opened(chromium, host, cable) -> Iterator[list[User]]:
    with users(chromium, host, VERSIONS, [QUICK], "resumption", SCRIPT, Cutter) as opened:
        yield opened


@pytest.fixture
def people(opened: list[User], network) -> list[User]:
    """Pages as after a reload, each of which has received an ack."""
    for user in opened:
        user.open()
    for user in opened:
        user.wait_for_ack()
    return opened


def _save(user: User, name: str) -> str:
    user.page.save_evidence(f"{name} {user}")
    return str(user)


def check_nothing_noticed(people: list[User], runs: dict[str, int], name: str) -> None:
    """No page said that it was connecting, showed a dialog or was drawn again, and each has its first session."""
    harm = []
    for user in people:
        connecting = [shown.text for shown in status_watch.history(user.page.frame) if shown.connecting]
        count = len([line for line in user.journal() if line.startswith("run ")])
        found = {
            "says": connecting,
            "dialogs": user.page.dialogs.count(),
            "blank": not user.shows("end of page"),
            "runs more": count - runs[user.name],
            "closed": user.page.stream.closed if connecting else [],
        }
        if any(found.values()):
            harm.append(f"{_save(user, name)}: {found}")
    assert not harm, "\n".join(harm)


def count_runs(people: list[User]) -> dict[str, int]:
    return {user.name: len([line for line in user.journal() if line.startswith("run ")]) for user in people}


def _click_all(people: list[User], chosen: set[int]) -> dict[str, str]:
    lines = {}
    for number, user in enumerate(people):
        if number in chosen:
            line = user.click()
            assert line is not None, f"{_save(user, 'click')} does not let its user click"
            lines[user.name] = line
    return lines


def test_twenty_cuts_in_a_row_under_a_chatty_app_lose_and_double_no_click(people, request) -> None:
    chance = random.Random(20)
    for user in people:
        user.page.frame.get_by_text("Chatter", exact=True).click()
    for user in people:
        user.page.frame.get_by_text(re.compile(r"^beat \d\d")).wait_for()
    before = {user.name: len(user.journal()) for user in people}
    runs = count_runs(people)
    cuts = [Cut.RESET, Cut.END, Cut.SILENCE] * CUTS
    harm: list[str] = []
    for number, how in enumerate(chance.sample(cuts[:CUTS], CUTS), 1):
        early = {index for index in range(len(people)) if chance.random() < 0.5}
        lines = _click_all(people, early)
        for user in people:
            user.page.front.cut(how)
        lines |= _click_all(people, set(range(len(people))) - early)
        for user in people:
            if not user.shows(lines[user.name], ANSWER_WITHIN):
                legs = user.page.stream.opened
                answer = f"no answer to {lines[user.name]!r} at {how.name}, {len(legs)} sockets"
                harm.append(f"{_save(user, f'cut {number}')}: {answer}, {user.journal()[-3:]}")
        assert not harm, "\n".join(harm)
    for user in people:
        clicks = [line for line in user.journal()[before[user.name] :] if line.startswith("click ")]
        if clicks != [f"click {count + 1}" for count in range(CUTS)]:
            harm.append(f"{_save(user, 'cuts')}: {clicks}")
        beat = _beat(user)
        polling.wait_until(lambda: _beat(user) > beat, lambda: f"{user} stopped at beat {beat}", ANSWER_WITHIN)
    assert not harm, "\n".join(harm)
    check_nothing_noticed(people, {name: count + CUTS for name, count in runs.items()}, request.node.name)


def _beat(user: User) -> int:
    user.page.page.wait_for_timeout(50)
    texts = user.page.frame.locator("[data-testid=stText]").filter(has_text="beat ").all_inner_texts()
    return int(texts[-1].split()[1]) if texts else -1


@pytest.mark.parametrize("how", Cut, ids=lambda how: how.name.lower())
def test_a_cut_does_not_stop_a_script_and_its_output_is_complete(people, how, request) -> None:
    before = {user.name: len(user.journal()) for user in people}
    for user in people:
        user.page.frame.get_by_role("button", name="Work").click()
    for user in people:
        assert user.shows("step 5", ANSWER_WITHIN)
    runs = count_runs(people)
    for user in people:
        user.page.front.cut(how)
    check_work(people, before, WORK_SECONDS, ANSWER_WITHIN)
    check_nothing_noticed(people, runs, request.node.name)


def check_work(people: list[User], before: dict[str, int], seconds: int, within: float) -> None:
    """Every script has run once to its end, and its page shows all of its output."""
    whole = [f"step {step}" for step in [*range(2 * seconds), "end"]]
    harm = []
    for user in people:
        done = user.shows("work done", seconds + within)
        steps = [line for line in user.journal()[before[user.name] :] if line.startswith("step ")]
        shown = user.page.frame.locator("[data-testid=stText]").filter(has_text="step ").all_inner_texts()
        if not done or steps != whole or shown != whole[:-1]:
            harm.append(f"{_save(user, 'work')}: done {done}, {len(steps)} of {len(whole)} steps, {len(shown)} shown")
    assert not harm, "\n".join(harm)


def test_a_fragment_on_a_timer_goes_on_after_an_outage(people, network, request) -> None:
    ticking = [user for user in people if user.version.line >= (1, 37)]
    runs = count_runs(people)
    network.drop()
    people[0].page.page.wait_for_timeout(SILENT_SECONDS * 1000)
    network.restore()
    for user in ticking:
        ticks = _ticks(user)
        target = ticks[-1] + 5
        assert user.shows(f"tick {target}", ANSWER_WITHIN + 10), f"{_save(user, 'ticks')} stopped at {_ticks(user)[-1]}"
        assert _ticks(user) == list(range(1, _ticks(user)[-1] + 1)), f"{user}: {_ticks(user)}"
    check_nothing_noticed(people, runs, request.node.name)


def _ticks(user: User) -> list[int]:
    """The ticks of the page's last session."""
    ticks = [int(line.split()[1]) for line in user.journal() if line.startswith("tick ")]
    last = len(ticks) - 1 - ticks[::-1].index(1)
    return ticks[last:]


def test_a_changed_network_costs_nothing(people, network, request) -> None:
    runs = count_runs(people)
    network.drop()
    lines = _click_all(people, set(range(len(people))))
    people[0].page.page.wait_for_timeout((INTERVAL_SECONDS + ACK_TIMEOUT_SECONDS) * 1000)
    network.restore(drop_connections=True)
    for user in people:
        assert user.shows(lines[user.name], ANSWER_WITHIN), f"{_save(user, 'changed')}: no {lines[user.name]!r}"
    check_nothing_noticed(people, {name: count + 1 for name, count in runs.items()}, request.node.name)


def test_a_sidecar_that_restarts_costs_only_what_was_under_way(people) -> None:
    sessions = {user.name: user.session for user in people}
    for user in people:
        user.page.sidecar.restart()
    for user in people:
        stream_watch.wait_for_sockets(user.page.frame, 2)
        stream_watch.wait_until_open(user.page.frame)
        status_watch.wait_until_connected(user.page.frame, ANSWER_WITHIN)
    for user in people:
        line = user.click()
        assert line and user.shows(line, ANSWER_WITHIN), f"{_save(user, 'restart')} does not answer"
        assert user.session == sessions[user.name], f"{_save(user, 'restart')} lost its session"
        assert user.page.dialogs.count() == 0
