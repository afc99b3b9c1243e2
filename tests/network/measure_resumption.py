"""Measures what takes minutes: long scripts, an outage of five minutes, and load balancers that cut. It checks as well.

Runs only if this file is named to pytest. HEARTBEAT_SIDECAR_TEST_MINUTES is the time behind each load balancer and of
the long script.
"""

from __future__ import annotations

import os
import time

import pytest
from acting import users
from actor import RESUMPTION
from conftest import NETWORK
from support.balancer import Balancer
from support.cutter import Cut, Cutter
from test_resumption import SCRIPT, check_nothing_noticed, check_work, count_runs

MINUTES = float(os.environ.get("HEARTBEAT_SIDECAR_TEST_MINUTES", "10"))
CUT_EVERY_SECONDS = 47.0
LONG_OUTAGE_SECONDS = 290.0
"""Just less than `resume.window`, which counts from when the page is lost."""
ANSWER_WITHIN = 40.0
LIMITS = [("haproxy", 60), ("nginx", 60), ("haproxy", 4), ("nginx", 4)]
"""Idle seconds. A page sends a message every 10 s, so the shorter ones cut it again and again."""


def test_a_long_script_survives_cuts_of_all_kinds(chromium, host, network, request) -> None:
    with users(chromium, host, NETWORK, [RESUMPTION], request.node.name, SCRIPT, Cutter) as people:
        before = {user.name: len(user.journal()) for user in people}
        for user in people:
            seconds = user.page.frame.get_by_role("spinbutton", name="Seconds")
            seconds.fill(str(int(MINUTES * 60)))
            seconds.press("Enter")
        for user in people:
            assert user.shows("run 2", ANSWER_WITHIN)
            user.page.frame.get_by_role("button", name="Work").click()
        for user in people:
            assert user.shows("step 5", ANSWER_WITHIN)
        runs = count_runs(people)
        end = time.monotonic() + MINUTES * 60
        cuts = 0
        while time.monotonic() < end - CUT_EVERY_SECONDS:
            people[0].page.page.wait_for_timeout(CUT_EVERY_SECONDS * 1000)
            for user in people:
                user.page.front.cut(list(Cut)[cuts % len(Cut)])
            cuts += 1
        check_work(people, before, int(MINUTES * 60), ANSWER_WITHIN)
        check_nothing_noticed(people, runs, request.node.name)
        request.node.user_properties.append(("measured", {"script min": f"{MINUTES:g}", "cuts": str(cuts)}))


def test_the_state_is_kept_after_five_minutes(chromium, host, network, request) -> None:
    with users(chromium, host, NETWORK, [RESUMPTION], request.node.name, SCRIPT) as people:
        for user in people:
            line = user.click()
            assert line and user.shows(line, ANSWER_WITHIN)
        for user in people:
            user.wait_for_ack()
        runs, sessions = count_runs(people), {user.name: user.session for user in people}
        network.drop()
        people[0].page.page.wait_for_timeout(LONG_OUTAGE_SECONDS * 1000)
        network.restore()
        harm = []
        deadline = time.monotonic() + ANSWER_WITHIN
        for user in people:
            line = None
            while line is None and time.monotonic() < deadline:
                line = user.click()
            if line is None or not user.shows(line, ANSWER_WITHIN) or user.session != sessions[user.name]:
                user.page.save_evidence(f"{request.node.name} {user}")
                harm.append(f"{user}: {line}, {user.journal()[-3:]}")
        assert not harm, "\n".join(harm)
        check_nothing_noticed(people, {name: count + 1 for name, count in runs.items()}, request.node.name)


@pytest.mark.parametrize(("program", "idle"), LIMITS)
def test_a_balancers_cuts_cost_nothing(chromium, host, network, request, program, idle) -> None:
    def front(upstream: str) -> Balancer:
        return Balancer(program, upstream, idle)

    with users(chromium, host, NETWORK, [RESUMPTION], request.node.name, SCRIPT, front) as people:
        runs = count_runs(people)
        end = time.monotonic() + MINUTES * 60
        clicks = 0
        while time.monotonic() < end:
            people[0].page.page.wait_for_timeout(25_000)
            lines = [(user, user.click()) for user in people]
            clicks += 1
            for user, line in lines:
                assert line and user.shows(line, ANSWER_WITHIN), f"{user}: no answer to click {clicks}"
        for user in people:
            sockets = str(len(user.page.stream.opened))
            row = {"balancer": program, "idle s": str(idle), "page": str(user), "sockets": sockets}
            request.node.user_properties.append(("measured", {**row, "clicks": str(clicks)}))
        check_nothing_noticed(people, {name: count + clicks for name, count in runs.items()}, request.node.name)
