"""With the ping shield a slow browser keeps its connection; without it the app drops browsers with late pongs."""

from __future__ import annotations

import time

import pytest
from conftest import NETWORK
from playwright.sync_api import expect
from support.cable import Line
from visitor import Plan, Visitor, visitors

FAR_AWAY = Line(delay=0.75)
"""A round trip takes 1.5 s."""
LINES = {
    "1.5 s round trip": FAR_AWAY,
    "0.6 s round trip, 2 % lost": Line(delay=0.3, loss=0.02),
    "64 kbit/s": Line(delay=0.05, rate=64e3, buffer=2.0),
}
SECONDS = 60.0
CLICK_TIMEOUT = 60.0
"""Seconds."""

SHIELD = ("--session-shield-pings", "true")
SHORT_TIMEOUT = [version for version in NETWORK if version.has_short_ping_timeout]
"""Their servers ping every second and wait one second for the pong."""
SHIELDED = [Plan(version, options=SHIELD) for version in [*SHORT_TIMEOUT, NETWORK[-1]]]
UNSHIELDED = [Plan(version) for version in SHORT_TIMEOUT]


def _row(line: str, visitor: Visitor) -> dict[str, str]:
    metrics = visitor.page.sidecar.metrics()
    return {
        "line": line,
        "page": str(visitor.plan),
        "sockets": str(len(visitor.page.stream.opened)),
        "closed by the app": f"{metrics.value('sessions_closed_total', initiator='upstream'):.0f}",
    }


@pytest.mark.parametrize("line", LINES)
def test_a_shielded_session_survives_a_bad_line(chromium, host, network, request, line: str) -> None:
    assert SHORT_TIMEOUT, "no version with a short ping timeout"
    with visitors(chromium, host, [*SHIELDED, *UNSHIELDED], request.node.name) as people:
        shielded, unshielded = people[: len(SHIELDED)], people[len(SHIELDED) :]
        for visitor in shielded:
            visitor.use()
        network.shape(LINES[line])
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for visitor in shielded:
                visitor.click()
                visitor.wait_for_answer(CLICK_TIMEOUT)
        request.node.user_properties.extend(("measured", _row(line, visitor)) for visitor in people)
        for visitor in shielded:
            assert len(visitor.page.stream.opened) == 1, _row(line, visitor)
            expect(visitor.page.dialogs).to_have_count(0)
        if LINES[line] is FAR_AWAY:
            for visitor in unshielded:
                closed = visitor.page.sidecar.metrics().value("sessions_closed_total", initiator="upstream")
                assert closed >= 1, f"{visitor.plan}: the app kept the connection even without the shield"
